"""Stage entry: sample completions, let an AI judge compare them, pair the better with the worse.

Source: Bai et al. 2022, section 4 (RL from AI feedback).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.judgements import Candidates, Judgement
from data.records import Preference, Prompt, Ranking, record_id
from data.tables import read_table, write_table
from data.templates import load_tokenizer, render_prompt
from models.chunks import map_chunks
from models.configs.ai_feedback import AIFeedbackConfig
from models.generation import generate
from models.judging.chunked import judge_candidates
from models.judging.loading import load_ai_judge
from models.loading import load_policy
from models.preferences import pairs_of
from models.rendering import eos_ids, text_of
from models.run import Run
from models.seeds import derive_seed


def collect(config: AIFeedbackConfig, *, policy: Path, judge: Path, data: Path, cache: Path, seed: int, run: Run) -> dict[str, Any]:
    """Write ``judgements.parquet``, ``rankings.parquet``, ``preferences.parquet`` and, where there are any, ``test_preferences.parquet``.

    Raises:
        ValueError: the judge finds no completion better than another.
    """
    prompts = read_table(data / "prompts.parquet", Prompt)
    prompts = prompts[: config.prompts] if config.prompts else prompts
    candidates = sampled(config, policy, prompts, seed, run)
    asked = load_ai_judge(config.judge, folder=judge, cache=cache, device=run.device, payer=run.stage_key)
    judgements, metrics = judge_candidates(run, asked, candidates, config.chunk_prompts, seed)
    pairs = [preferences_of(judgement, config.pairs_per_prompt) for judgement in judgements]
    held_out = round(len(pairs) * config.test_share)
    train = [pair for row in pairs[: len(pairs) - held_out] for pair in row]
    test = [pair for row in pairs[len(pairs) - held_out :] for pair in row]
    if not train:
        raise ValueError(f"the judge found no completion better than another in {len(prompts)} prompts: {metrics}. Take a better judge")
    write_table(run.out / "judgements.parquet", judgements, Judgement)
    write_table(run.out / "rankings.parquet", [ranking_of(j) for j in judgements if not j.abstained], Ranking)
    write_table(run.out / "preferences.parquet", train, Preference)
    if test:
        write_table(run.out / "test_preferences.parquet", test, Preference)
    summary = {
        "preferences/prompts": len(prompts),
        "preferences/pairs": len(train),
        "preferences/test_pairs": len(test),
        "preferences/tied_prompts": sum(not row and not j.abstained for row, j in zip(pairs, judgements, strict=True)),
    }
    run.report(summary | metrics, 0)
    return {name.removeprefix("preferences/"): value for name, value in summary.items()}


def sampled(config: AIFeedbackConfig, policy: Path, prompts: Sequence[Prompt], seed: int, run: Run) -> list[Candidates]:
    """Completions of every prompt."""
    tokenizer = load_tokenizer(policy)
    model = load_policy(policy, run.device)
    ends = eos_ids(policy, tokenizer)

    def sample(number: int, chunk: Sequence[Prompt]) -> list[list[str]]:
        ids = [render_prompt(tokenizer, prompt.messages) for prompt in chunk]
        noise = derive_seed(seed, "ai feedback", number)
        count = config.samples_per_prompt
        rows = generate(model, ids, config.sampling, samples=count, eos_ids=ends, seed=noise, on_step=run.stop_if_asked)
        return [[text_of(tokenizer, completion.tokens) for completion in row] for row in rows]

    texts = map_chunks(run, "sampled", prompts, config.chunk_prompts, sample)
    writer = f"policy@{config.sampling.temperature:g}"
    return [
        Candidates(record_id(p.messages, tuple(t)), p.source, p.messages, tuple(t), (writer,) * len(t), p.answer, p.verifier, p.metadata)
        for p, t in zip(prompts, texts, strict=True)
    ]


def ranking_of(judgement: Judgement) -> Ranking:
    """A judgement as a ranking. A pair's score gap is its grade (1 slightly better, 2 better), where the judge gives one."""
    scores = (judgement.grade / 2, -judgement.grade / 2) if judgement.grade else judgement.scores
    return Ranking(judgement.id, judgement.source, judgement.prompt, judgement.completions, judgement.ranks, scores)


def preferences_of(judgement: Judgement, most: int) -> list[Preference]:
    """The widest-gap pairs of a judgement; none where the judge abstained or all completions tie. The margin is the gap of scores."""
    return [] if judgement.abstained else pairs_of(ranking_of(judgement), most, 0.0)
