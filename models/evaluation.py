"""Stage entry: judge a policy on held-out prompts.

Axes: ``C`` completions.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from data.packing import Group
from data.records import Prompt
from data.tables import read_table
from data.verifiers import verify
from models.answering import Answerer
from models.chunks import map_chunks
from models.configs.evaluation import EvaluateConfig
from models.ensembles import Ensemble, load_reward
from models.generation import Completion
from models.heads import HeadModel
from models.loading import load_policy
from models.logprobs import sequence_logps
from models.rewards import score_groups
from models.run import Run

Measure = Callable[[Sequence[Group]], list[list[float]]]  # a number for each completion of each group


def evaluate(
    config: EvaluateConfig,
    *,
    policy: Path,
    reference: Path,
    data: Path,
    seed: int,
    run: Run,
    reward: Path | None = None,
    held_out_reward: Path | None = None,
) -> dict[str, Any]:
    """Answer every held-out prompt, score the answers, write one JSON row a prompt to ``evaluation.json``.

    KL to the reference is the mean over sampled completions of log pi(y|x) - log pi_ref(y|x), nats, exact in expectation at temperature 1.
    Prompts and sampling noise are the same for every policy of a seed. ``held_out_reward`` is a reward model that no policy was trained
    on: what it says of the answers stands beside what ``reward`` says.

    Raises:
        ValueError: the judge is the reward model and there is none, or it is the verifier and a prompt names none.
    """
    if config.judge == "reward_model" and reward is None:
        raise ValueError("evaluate.judge is reward_model, but the flow gives evaluate no reward model: use judge verifier")
    prompts = read_table(data / "test_prompts.parquet", Prompt)
    prompts = prompts[: config.prompts] if config.prompts else prompts
    evaluator = Evaluator(config, policy, seed, run)
    answered = map_chunks(run, "answers", prompts, config.chunk_prompts, evaluator.answer)
    rows = evaluator.measure(answered, reference, {"reward": reward, "held_out_reward": held_out_reward})
    summary = summarise(rows)
    (run.out / "evaluation.json").write_text(json.dumps({"summary": summary, "rows": rows}), encoding="utf-8")
    run.report(summary, 0)
    return summary


class Evaluator:
    """A policy with what it takes to answer and to measure."""

    def __init__(self, config: EvaluateConfig, policy: Path, seed: int, run: Run):
        self.config, self.run = config, run
        self.answerer = Answerer(policy, "evaluate", seed, run)

    def answer(self, number: int, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """Sampled and greedy answers with their verdicts."""
        config, ids = self.config, self.answerer.render([prompt.messages for prompt in prompts])
        sampled = self.answerer.sample(ids, config.sampling, config.samples_per_prompt, number)
        likeliest = config.sampling.model_copy(update={"temperature": 0.0})
        greedy = self.answerer.sample(ids, likeliest, 1, number) if config.greedy else None
        rows = []
        for i, prompt in enumerate(prompts):
            row = {"id": prompt.id, "prompt": ids[i], **task_of(prompt), "sampled": [self._judged(prompt, c) for c in sampled[i]]}
            if greedy is not None:
                row["greedy"] = self._judged(prompt, greedy[i][0])
            rows.append(row)
        return rows

    def _judged(self, prompt: Prompt, completion: Completion) -> dict[str, Any]:
        text = self.answerer.text(completion)
        answer = {"text": text, "tokens": completion.tokens, "finished": completion.finished}
        if self.config.judge == "reward_model":
            return answer
        return answer | verdict_of(prompt, text)

    def measure(
        self, rows: list[dict[str, Any]], reference: Path, rewards: Mapping[str, Path | None], kept: str = ""
    ) -> list[dict[str, Any]]:
        """Add log-probability, KL and what the reward models say to the answers; drop the token ids.

        ``kept``: what the names of finished chunks begin with, where a stage measures more than once.
        """
        answers = [row["sampled"] for row in rows]
        self._add(rows, answers, f"{kept}logp", "logp_nats", lambda: self._logps_by(self.answerer.model))
        del self.answerer.model, self.answerer.sampler
        self._add(rows, answers, f"{kept}ref_logp", "kl_nats", lambda: self._logps_by(load_policy(reference, self.run.device)))
        for answer in (answer for own in answers for answer in own):
            answer["kl_nats"] = answer["logp_nats"] - answer["kl_nats"]
        judged = [row["sampled"] + ([row["greedy"]] if "greedy" in row else []) for row in rows]
        for name, folder in rewards.items():
            if folder is not None:
                self._add(rows, judged, f"{kept}{name}", name, lambda folder=folder: self._rewards_by(load_reward(folder, self.run.device)))
        if rewards.get("reward") is not None and self.config.judge == "reward_model":
            for answer in (answer for own in judged for answer in own):
                answer["score"] = answer["reward"]
        return [self._readable(row) for row in rows]

    def _add(
        self, rows: list[dict[str, Any]], answers: list[list[dict[str, Any]]], kept: str, name: str, load: Callable[[], Measure]
    ) -> None:
        """Measure the answers of every row, chunk by chunk, under a name. The model is loaded by whoever computes a chunk."""
        groups = [Group(row["prompt"], [c["tokens"] for c in own]) for row, own in zip(rows, answers, strict=True)]
        loaded = cache(load)
        measured = map_chunks(self.run, kept, groups, self.config.chunk_prompts, lambda _, chunk: loaded()(chunk))
        for own, values in zip(answers, measured, strict=True):
            for answer, value in zip(own, values, strict=True):
                answer[name] = value

    def _logps_by(self, policy: PreTrainedModel) -> Measure:
        def logps(groups: Sequence[Group]) -> list[list[float]]:
            values = iter(sequence_logps(policy, groups, self.config.micro_batch_tokens).tolist())
            return [[next(values) for _ in group.completions] for group in groups]

        return logps

    def _rewards_by(self, model: HeadModel | Ensemble) -> Measure:
        return lambda groups: score_groups(model, groups, self.config.micro_batch_tokens)

    def _readable(self, row: dict[str, Any]) -> dict[str, Any]:
        readable = row | {"prompt": self.answerer.tokenizer.decode(row["prompt"]), "sampled": [without_tokens(c) for c in row["sampled"]]}
        return readable | ({"greedy": without_tokens(row["greedy"])} if "greedy" in row else {})


def task_of(prompt: Prompt) -> dict[str, str]:
    """Task and difficulty of a prompt, where its metadata says them.

    reasoning_gym names by ``difficulty`` the quantities that make an entry hard; what counts are the entry's own: ``num_terms=3``.
    """
    entry = prompt.metadata.get("metadata")
    known = prompt.metadata | (entry if isinstance(entry, dict) else {})
    difficulty = known.get("difficulty", "")
    if isinstance(difficulty, dict):
        difficulty = ", ".join(f"{name}={known[name]}" for name in sorted(difficulty) if isinstance(known.get(name), str | int | float))
    return {name: str(value) for name, value in (("task", known.get("task", "")), ("difficulty", difficulty)) if value != ""}


def verdict_of(prompt: Prompt, text: str) -> dict[str, Any]:
    """What the prompt's own verifier says of an answer."""
    verdict = verify(prompt, text)
    return {"score": verdict.score, "correct": verdict.correct, "failed": verdict.error is not None}


def without_tokens(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer for people: how many tokens it has instead of which."""
    return {"n_tokens": len(answer["tokens"])} | {key: value for key, value in answer.items() if key != "tokens"}


def summarise(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Means over sampled answers; failures are counted; distinct = different texts, as a share. What was not judged is left out."""
    sampled = [c for row in rows for c in row["sampled"]]
    greedy = [row["greedy"] for row in rows if "greedy" in row]
    columns = {
        "eval/accuracy": (sampled, "correct"),
        "eval/accuracy_greedy": (greedy, "correct"),
        "eval/score": (sampled, "score"),
        "eval/reward": (sampled, "reward"),
        "eval/held_out_reward": (sampled, "held_out_reward"),
        "eval/kl_nats": (sampled, "kl_nats"),
        "eval/completion_tokens": (sampled, "n_tokens"),
        "eval/finished": (sampled, "finished"),
    }
    means = {name: sum(c[key] for c in answers) / len(answers) for name, (answers, key) in columns.items() if answers and key in answers[0]}
    failures = {"eval/verifier_failures": float(sum(c["failed"] for c in sampled))} if "failed" in sampled[0] else {}
    return means | failures | {"eval/distinct": len({c["text"] for c in sampled}) / len(sampled)}
