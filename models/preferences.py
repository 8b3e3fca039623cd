"""Stage entry: sample completions, let a judge score them, pair the better with the worse.

Axes: ``P`` prompts, ``G`` completions of each.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.records import Label, Preference, Prompt, Ranking, record_id
from data.tables import read_table, write_table
from data.templates import load_tokenizer, render_prompt
from data.verifiers import Verdict, verify
from models.callables import load_callable
from models.chunks import map_chunks
from models.configs.preferences import PreferencesConfig
from models.generation import generate
from models.judges import Judge, judge_of
from models.loading import load_policy
from models.rendering import eos_ids, text_of
from models.run import Run
from models.seeds import derive_seed


def collect(config: PreferencesConfig, *, policy: Path, data: Path, seed: int, run: Run) -> dict[str, Any]:
    """Write ``rankings.parquet``, ``preferences.parquet``, ``labels.parquet`` and, where there are any, ``test_preferences.parquet``.

    The prompts of held-out pairs give no labels.
    """
    prompts = read_table(data / "prompts.parquet", Prompt)
    prompts = prompts[: config.prompts] if config.prompts else prompts
    judge = load_judge(config)
    sampled = _sample(config, policy, prompts, seed, run)
    verdicts = [[judge(prompt, text) for text in texts] for prompt, texts in zip(prompts, sampled, strict=True)]
    rankings = [rank(p, texts, [v.score for v in row]) for p, texts, row in zip(prompts, sampled, verdicts, strict=True)]
    pairs = [pairs_of(r, config.pairs_per_prompt, config.min_gap) for r in rankings]
    held_out = round(len(prompts) * config.test_share)
    train = [pair for row in pairs[: len(pairs) - held_out] for pair in row]
    test = [pair for row in pairs[len(pairs) - held_out :] for pair in row]
    labelled = [labels_of(r, row, config.label_threshold) for r, row in zip(rankings, verdicts, strict=True)]
    labels = [label for row in labelled[: len(labelled) - held_out] for label in row]
    if not train:
        raise ValueError(
            f"the judge found no completion better than another in {len(prompts)} prompts: sample more, or choose easier prompts"
        )
    write_table(run.out / "rankings.parquet", rankings, Ranking)
    write_table(run.out / "preferences.parquet", train, Preference)
    write_table(run.out / "labels.parquet", labels, Label)
    if test:
        write_table(run.out / "test_preferences.parquet", test, Preference)
    flat = [v for row in verdicts for v in row]
    summary = {
        "preferences/prompts": len(prompts),
        "preferences/pairs": len(train),
        "preferences/test_pairs": len(test),
        "preferences/labels": len(labels),
        "preferences/desirable_labels": sum(label.desirable for label in labels),
        "preferences/tied_prompts": sum(not row for row in pairs),
        "preferences/judge_failures": sum(v.error is not None for v in flat),
        "preferences/score": sum(v.score for v in flat) / len(flat),
    }
    run.report(summary, 0)
    return {name.removeprefix("preferences/"): value for name, value in summary.items()}


def _sample(config: PreferencesConfig, policy: Path, prompts: list[Prompt], seed: int, run: Run) -> list[list[str]]:
    tokenizer = load_tokenizer(policy)
    model = load_policy(policy, run.device)
    ends = eos_ids(policy, tokenizer)

    def sample(number: int, chunk: Sequence[Prompt]) -> list[list[str]]:
        ids = [render_prompt(tokenizer, prompt.messages) for prompt in chunk]
        rows = generate(
            model,
            ids,
            config.sampling,
            samples=config.samples_per_prompt,
            eos_ids=ends,
            seed=derive_seed(seed, "preferences", number),
            on_step=run.stop_if_asked,
        )
        return [[text_of(tokenizer, c.tokens) for c in row] for row in rows]

    return map_chunks(run, "sampled", prompts, config.chunk_prompts, sample)


def load_judge(config: PreferencesConfig) -> Judge:
    """The judge that a configuration names.

    Raises:
        ValueError: the function cannot be imported.
    """
    if config.judge == "verifier":
        return verify
    return judge_of(load_callable(config.judge_callable, "judge_callable"))


def rank(prompt: Prompt, completions: Sequence[str], scores: Sequence[float]) -> Ranking:
    """Completions with their ranks: 0 is best, equal scores share a rank.

    By hand: scores (0, 1, 0.5, 1) give ranks (2, 0, 1, 0).
    """
    order = sorted(set(scores), reverse=True)
    ranks = tuple(order.index(s) for s in scores)
    return Ranking(
        record_id(prompt.messages, tuple(completions)), prompt.source, prompt.messages, tuple(completions), ranks, tuple(map(float, scores))
    )


def pairs_of(ranking: Ranking, most: int, min_gap: float) -> list[Preference]:
    """The widest-gap pairs of a ranking, no text twice on the same side; none where all scores are within ``min_gap``."""
    candidates = [
        (ranking.scores[i] - ranking.scores[j], ranking.completions[i], ranking.completions[j])
        for i, j in itertools.permutations(range(len(ranking.scores)), 2)
        if ranking.scores[i] - ranking.scores[j] > min_gap and ranking.completions[i].strip() != ranking.completions[j].strip()
    ]
    pairs: list[Preference] = []
    for gap, chosen, rejected in sorted(candidates, key=lambda c: -c[0]):
        if len(pairs) < most and all(chosen != p.chosen and rejected != p.rejected for p in pairs):
            pairs.append(Preference(record_id(ranking.prompt, chosen, rejected), ranking.source, ranking.prompt, chosen, rejected, gap))
    return pairs


def labels_of(ranking: Ranking, verdicts: Sequence[Verdict], threshold: float) -> list[Label]:
    """Each text of a ranking once, desirable if its score is at least ``threshold``; what could not be judged has no label.

    By hand, threshold 0.5: scores (0, 1, 0.5) of x, y, x are undesirable, desirable; the second x is left out.
    """
    labels: dict[str, Label] = {}
    for text, verdict in zip(ranking.completions, verdicts, strict=True):
        if verdict.error is None and text not in labels:
            desirable = verdict.score >= threshold
            labels[text] = Label(record_id("label", ranking.prompt, text, desirable), ranking.source, ranking.prompt, text, desirable)
    return list(labels.values())
