"""Stage entry: one way of decoding on held-out prompts, its reward and its time.

Axes: ``C`` completions.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.packing import Group
from data.records import Prompt
from data.tables import read_table
from data.templates import load_tokenizer, render_prompt
from models.chunks import map_chunks
from models.configs.guidance import GuidedEvaluationConfig
from models.evaluation import summarise, without_tokens
from models.generation import Completion, generate
from models.guidance import load_guide
from models.heads import load_scalar
from models.loading import load_policy
from models.logprobs import sequence_logps
from models.rendering import eos_ids, text_of
from models.rewards import score_groups
from models.run import Run
from models.seeds import derive_seed
from models.segments import generate_by_segments

Answers = tuple[list[list[Completion]], dict[str, int]]  # completions of each prompt, and what the mode counts


def evaluate(
    config: GuidedEvaluationConfig,
    *,
    policy: Path,
    reference: Path,
    data: Path,
    reward: Path,
    seed: int,
    run: Run,
    scorer: Path | None = None,
) -> dict[str, Any]:
    """Answer held-out prompts under guidance, score the answers with the reward model, write one JSON row a prompt to ``evaluation.json``.

    The seconds that decoding took, loading and final scoring left out, are part of what is returned and not of the file: the same
    settings give the same file. KL to the reference is the mean of log q(y|x) - log pi_ref(y|x), nats, with q what was sampled from; it is
    left out where q is not known token by token (cards, best_of_n).

    Raises:
        ValueError: the mode needs a model of its own and there is none.
    """
    prompts = read_table(data / "test_prompts.parquet", Prompt)
    prompts = prompts[: config.prompts] if config.prompts else prompts
    decoder = Decoder(config, policy, reward, scorer, seed, run)
    chunks = map_chunks(run, "guided", prompts, config.chunk_prompts, decoder.answer)
    rows = [row for chunk in chunks for row in chunk["rows"]]
    del decoder
    _add_rewards(rows, config, reward, run)
    if "logp" in rows[0]["sampled"][0]:
        _add_kl(rows, config, reference, run)
    counts = {name: sum(chunk["counts"][name] for chunk in chunks) for name in chunks[0]["counts"]}
    rows = [{"id": row["id"], "sampled": [without_tokens(answer) for answer in row["sampled"]]} for row in rows]
    summary = summarise(rows) | {f"guidance/{name}": float(total) for name, total in counts.items()}
    (run.out / "evaluation.json").write_text(json.dumps({"summary": summary, "rows": rows}), encoding="utf-8")
    seconds = sum(chunk["seconds"] for chunk in chunks)
    run.report(summary | {"time/decoding_s": seconds}, 0)
    return summary | {"seconds": seconds, "answers": sum(len(row["sampled"]) for row in rows)}


class Decoder:
    """A policy and what guides it."""

    def __init__(self, config: GuidedEvaluationConfig, policy: Path, reward: Path, scorer: Path | None, seed: int, run: Run):
        self.config, self.seed, self.run = config, seed, run
        self.tokenizer = load_tokenizer(policy)
        self.policy = load_policy(policy, run.device)
        self.ends = eos_ids(policy, self.tokenizer)
        mode = config.guidance.mode
        self.decode = {"cards": self._by_segments, "best_of_n": self._best_of}.get(mode, self._by_token)
        # What is sampled from is known token by token; greedily nothing is sampled.
        self.has_logps = mode not in ("cards", "best_of_n") and config.sampling.temperature > 0
        if mode in ("cards", "best_of_n"):
            self.reward = load_scalar(reward, run.device)
        else:
            self.guide = load_guide(config.guidance, reward, scorer, run.device)

    def answer(self, number: int, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """One chunk of prompts: their rows, the seconds they took, what the mode counted."""
        ids = [render_prompt(self.tokenizer, prompt.messages) for prompt in prompts]
        began = time.perf_counter()
        sampled, counts = self.decode(ids, derive_seed(self.seed, "guided", number))
        seconds = time.perf_counter() - began
        rows = [
            {"id": prompt.id, "prompt": own, "sampled": [self._answer(c) for c in completions]}
            for prompt, own, completions in zip(prompts, ids, sampled, strict=True)
        ]
        return [{"rows": rows, "seconds": seconds, "counts": counts}]

    def _answer(self, completion: Completion) -> dict[str, Any]:
        answer = {"tokens": completion.tokens, "finished": completion.finished, "text": text_of(self.tokenizer, completion.tokens)}
        return answer | ({"logp": sum(completion.logps)} if self.has_logps else {})

    def _by_token(self, ids: list[list[int]], seed: int) -> Answers:
        return self._sample(ids, self.config.samples_per_prompt, seed, self.guide), {}

    def _sample(self, ids: list[list[int]], samples: int, seed: int, guide: Any = None) -> list[list[Completion]]:
        stop = self.run.stop_if_asked
        return generate(self.policy, ids, self.config.sampling, samples=samples, eos_ids=self.ends, seed=seed, on_step=stop, guide=guide)

    def _by_segments(self, ids: list[list[int]], seed: int) -> Answers:
        samples, stop = self.config.samples_per_prompt, self.run.stop_if_asked
        sampling, guidance = self.config.sampling, self.config.guidance
        rows, tally = generate_by_segments(
            self.policy, self.reward, ids, sampling, guidance, samples=samples, eos_ids=self.ends, seed=seed, on_step=stop
        )
        return rows, {"drawn_segments": tally.drawn, "accepted_segments": tally.accepted, "forced_segments": tally.forced}

    def _best_of(self, ids: list[list[int]], seed: int) -> Answers:
        """Each answer is the best of as many samples as the configuration says; answers to one prompt share no sample."""
        n, answers = self.config.guidance.samples, self.config.samples_per_prompt
        sampled = self._sample(ids, n * answers, seed)
        groups = [Group(prompt, [c.tokens for c in row]) for prompt, row in zip(ids, sampled, strict=True)]
        scores = score_groups(self.reward, groups, self.config.micro_batch_tokens)
        picked = [
            [row[max(range(a * n, (a + 1) * n), key=own.__getitem__)] for a in range(answers)]
            for row, own in zip(sampled, scores, strict=True)
        ]
        return picked, {}


def _groups(rows: list[dict[str, Any]]) -> list[Group]:
    return [Group(row["prompt"], [c["tokens"] for c in row["sampled"]]) for row in rows]


def _add_rewards(rows: list[dict[str, Any]], config: GuidedEvaluationConfig, reward: Path, run: Run) -> None:
    scores = score_groups(load_scalar(reward, run.device), _groups(rows), config.micro_batch_tokens)
    for row, own in zip(rows, scores, strict=True):
        for answer, score in zip(row["sampled"], own, strict=True):
            answer["reward"] = score


def _add_kl(rows: list[dict[str, Any]], config: GuidedEvaluationConfig, reference: Path, run: Run) -> None:
    logps = iter(sequence_logps(load_policy(reference, run.device), _groups(rows), config.micro_batch_tokens).tolist())
    for answer in (c for row in rows for c in row["sampled"]):
        answer["kl_nats"] = answer.pop("logp") - next(logps)
