"""Stage entry: instructions that a rule can check, in the manner of IFEval."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.drawing import drawn
from data.instructions import InstructedPrompt, followed, instructed_prompt, loosely_followed
from data.measures import Measure, Suite, rate, ratio
from data.records import Message
from data.suite_rows import items_of
from models.answering import ask
from models.configs.instructions import InstructionsConfig
from models.run import Run
from models.suites.concluding import conclude

NOTE = "sentences are counted by a rule and languages told by fastText, where the published checks use punkt and langdetect"


def instructions(config: InstructionsConfig, *, policy: Path, seed: int, run: Run) -> dict[str, Any]:
    """Answer every prompt once, check its instructions and write ``suite.json``.

    Raises:
        ValueError: a row is not of the published form.
    """
    prompts = drawn(items_of(config.source.source(), instructed_prompt), config.source.rows, seed)
    answers = ask(
        policy,
        prompts,
        lambda prompt: (Message("user", prompt.prompt),),
        config.sampling,
        purpose=f"suite {config.name}",
        samples=1,
        chunk=config.chunk_prompts,
        seed=seed,
        run=run,
        judge=_checked,
    )
    rows = [
        {"id": prompt.id, "prompt": prompt.prompt, "instructions": [i.name for i in prompt.instructions], **row[0]}
        for prompt, row in zip(prompts, answers, strict=True)
    ]
    return conclude(Suite(config.name, "instructions", measures(rows, config, seed), rows, [NOTE]), run)


def _checked(prompt: InstructedPrompt, text: str) -> dict[str, list[bool]]:
    return {
        "strict": [followed(text, instruction) for instruction in prompt.instructions],
        "loose": [loosely_followed(text, instruction) for instruction in prompt.instructions],
    }


def measures(rows: Sequence[Mapping[str, Any]], config: InstructionsConfig, seed: int) -> list[Measure]:
    """Share of prompts all of whose instructions are followed, and share of all instructions; strictly and loosely.

    Instructions of one prompt stand or fall together: their share has the bootstrap interval over prompts. Of each kind of instruction the
    strict share is given, with Wilson's interval.
    """
    found = [rate(f"prompt_{how}", {row["id"]: float(all(row[how])) for row in rows}) for how in ("strict", "loose")]
    for how in ("strict", "loose"):
        parts = {row["id"]: (float(sum(row[how])), float(len(row[how]))) for row in rows}
        found.append(ratio(f"instruction_{how}", parts, seed=seed, resamples=config.resamples))
    kinds: dict[str, dict[str, float]] = {}
    for row in rows:
        for number, (name, kept) in enumerate(zip(row["instructions"], row["strict"], strict=True)):
            kinds.setdefault(name, {})[f"{row['id']}#{number}"] = float(kept)
    return [*found, *(rate(f"instruction_strict/kind={name}", values) for name, values in sorted(kinds.items()))]
