"""Stage entry: the policy answers, criticises its answer by a principle of the constitution, and writes it anew.

Source: Bai et al. 2022, "Constitutional AI: Harmlessness from AI feedback", section 3. Its few-shot examples are left out: the chat
template says whose turn it is.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.degenerate import degenerate
from data.records import Demonstration, Message, Messages, Prompt, record_id
from data.tables import read_table, write_table
from data.templates import load_tokenizer, render_prompt
from models.chunks import map_chunks
from models.configs.constitution import Principle, ReviseConfig
from models.configs.sampling import SamplingConfig
from models.generation import generate
from models.loading import load_policy
from models.rendering import eos_ids, text_of
from models.run import Run, write_atomic
from models.seeds import derive_seed

DEMONSTRATIONS = "demonstrations.parquet"


def revise(config: ReviseConfig, *, policy: Path, data: Path, seed: int, run: Run) -> dict[str, Any]:
    """Write the revised answers as ``demonstrations.parquet``, every step as ``revisions.jsonl``, and the other tables as they are.

    Raises:
        ValueError: no revision can be used.
    """
    prompts = read_table(data / "prompts.parquet", Prompt)
    prompts = prompts[: config.prompts] if config.prompts else prompts
    writer = Reviser(config, policy, seed, run)
    rows = map_chunks(run, "revised", prompts, config.chunk_prompts, writer.revise)
    demonstrations, summary = chosen(config, prompts, rows)
    if not demonstrations:
        raise ValueError(f"none of {len(rows)} revisions can be used: {summary}. Raise answer.max_tokens, or start from a better policy")
    if config.keep_demonstrations:
        demonstrations += read_table(data / DEMONSTRATIONS, Demonstration)
    write_table(run.out / DEMONSTRATIONS, demonstrations, Demonstration)
    write_atomic(run.out / "revisions.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    for table in sorted(data.glob("*.parquet")):
        if table.name != DEMONSTRATIONS:
            shutil.copyfile(table, run.out / table.name)
    run.report(summary, 0)
    return {name.removeprefix("constitution/"): value for name, value in summary.items()}


class Reviser:
    """A policy with what it takes to answer, criticise and revise."""

    def __init__(self, config: ReviseConfig, policy: Path, seed: int, run: Run) -> None:
        self.config, self.seed, self.run = config, seed, run
        self.tokenizer = load_tokenizer(policy)
        self.model = load_policy(policy, run.device)
        self.ends = eos_ids(policy, self.tokenizer)

    def revise(self, number: int, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """One row a prompt and round, prompt by prompt: the answer before, the principle, the critique and the revision."""
        answers = self._written([prompt.messages for prompt in prompts], self.config.answer, "answer", number)
        rows: list[list[dict[str, Any]]] = [[] for _ in prompts]
        for round_number in range(self.config.rounds):
            principles = [self._principle(prompt, round_number) for prompt in prompts]
            talks = [
                (*prompt.messages, Message("assistant", text), Message("user", principle.critique))
                for prompt, (text, _), principle in zip(prompts, answers, principles, strict=True)
            ]
            critiques = self._written(talks, self.config.critique, f"critique {round_number}", number)
            talks = [
                (*talk, Message("assistant", critique), Message("user", principle.revision))
                for talk, (critique, _), principle in zip(talks, critiques, principles, strict=True)
            ]
            revisions = self._written(talks, self.config.answer, f"revision {round_number}", number)
            steps = zip(rows, prompts, answers, principles, critiques, revisions, strict=True)
            for own, prompt, (answer, _), principle, (critique, _), (revision, finished) in steps:
                own.append(
                    {
                        "id": prompt.id,
                        "prompt": [{"role": message.role, "content": message.content} for message in prompt.messages],
                        "round": round_number + 1,
                        "answer": answer,
                        "principle": principle.name,
                        "critique": critique,
                        "revision": revision,
                        "finished": finished,
                    }
                )
            answers = revisions
        return [row for own in rows for row in own]

    def _principle(self, prompt: Prompt, round_number: int) -> Principle:
        principles = self.config.principles
        return principles[derive_seed(self.seed, "principle", prompt.id, round_number) % len(principles)]

    def _written(self, talks: Sequence[Messages], sampling: SamplingConfig, what: str, number: int) -> list[tuple[str, bool]]:
        """One text for each conversation, and whether it ended by itself."""
        ids = [render_prompt(self.tokenizer, talk) for talk in talks]
        seed = derive_seed(self.seed, "constitution", what, number)
        rows = generate(self.model, ids, sampling, samples=1, eos_ids=self.ends, seed=seed, on_step=self.run.stop_if_asked)
        return [(text_of(self.tokenizer, row[0].tokens), row[0].finished) for row in rows]


def chosen(config: ReviseConfig, prompts: Sequence[Prompt], rows: Sequence[dict[str, Any]]) -> tuple[list[Demonstration], dict[str, float]]:
    """The demonstrations that revisions make, no conversation twice, and what became of the revisions.

    Degenerate ones and, unless the configuration keeps them, unfinished ones are left out; with train_on = last the conversation is then
    left out, whatever its earlier rounds say.
    """
    sources = {prompt.id: prompt for prompt in prompts}
    meant = [row for row in rows if config.train_on == "all" or row["round"] == config.rounds]
    reasons = [degenerate(row["revision"]) or ("unfinished" if config.drop_unfinished and not row["finished"] else "") for row in meant]
    demonstrations: dict[str, Demonstration] = {}
    for row, reason in zip(meant, reasons, strict=True):
        if not reason:
            prompt = sources[row["id"]]
            talk = (*prompt.messages, Message("assistant", row["revision"]))
            demonstrations.setdefault(record_id(talk), Demonstration(record_id(talk), prompt.source, talk))
    unfinished = reasons.count("unfinished")
    summary = {
        "constitution/prompts": float(len(prompts)),
        "constitution/revisions": float(len(rows)),
        "constitution/changed": _mean([float(row["answer"].strip() != row["revision"].strip()) for row in rows]),
        "constitution/answer_characters": _mean([float(len(row["answer"])) for row in rows if row["round"] == 1]),
        "constitution/critique_characters": _mean([float(len(row["critique"])) for row in rows]),
        "constitution/revision_characters": _mean([float(len(row["revision"])) for row in rows if row["round"] == config.rounds]),
        "constitution/degenerate": float(sum(map(bool, reasons)) - unfinished),
        "constitution/unfinished": float(unfinished),
        "constitution/demonstrations": float(len(demonstrations)),
    }
    return list(demonstrations.values()), summary


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
