"""What suites put to a policy, and what it answers: the same prompts and the same sampling noise for every policy of a seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.reading import examples_of
from data.records import Messages, Prompt, record_id
from data.sources import BadRow
from data.tables import read_table
from data.templates import load_tokenizer, render_prompt
from models.chunks import map_chunks
from models.configs.sampling import SamplingConfig
from models.configs.suite_rows import PromptsConfig
from models.generation import generate
from models.loading import load_policy
from models.rendering import eos_ids, text_of
from models.run import Run
from models.seeds import derive_seed


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt, and the answer that its row gives; "" where it gives none."""

    prompt: Prompt
    answer: str = ""


def items_of(config: PromptsConfig, data: Path | None, run: Run) -> list[Item]:
    """The prompts of a suite, each once; how many rows could not be used is logged.

    Raises:
        ValueError: there is no data, or no row can be used.
    """
    if config.source == "held_out":
        if data is None:
            raise ValueError("the suite's prompts are the held-out ones, and the stage was given no data: give it, or name a file")
        prompts = read_table(data / "test_prompts.parquet", Prompt)
        return [Item(prompt) for prompt in (prompts[: config.rows] if config.rows else prompts)]
    source = config.of_kind(config.source)
    items: dict[str, Item] = {}
    faults: list[str] = []
    for row, examples in examples_of(source):
        for example in examples:
            if isinstance(example, BadRow):
                faults.append(f"{row.file}:{row.line}: {example}")
            else:
                prompt = Prompt(record_id("item", example.prompt), source.place, example.prompt, example.answer)
                items.setdefault(prompt.id, Item(prompt, example.completion or ""))
    if faults:
        run.log(f"{len(faults)} rows of {source.place} cannot be used, such as {faults[0]}")
    if not items:
        raise ValueError(f"no row of {source.place} can be used{': ' + faults[0] if faults else ', there is none'}")
    return list(items.values())


def answers_of(
    policy: Path,
    prompts: Sequence[Messages],
    sampling: SamplingConfig,
    *,
    name: str,
    samples: int,
    size: int,
    seed: int,
    run: Run,
) -> list[list[dict[str, Any]]]:
    """``samples`` answers to every prompt, as {"text", "n_tokens", "finished"}.

    Args:
        policy: its folder.
        prompts: conversations that wait for an answer.
        sampling: how answers are sampled.
        name: of the chunks that are kept between attempts.
        samples: answers a prompt.
        size: prompts between two saves; it orders the sampling noise.
        seed: the same for all policies.
        run: the stage's attempt.
    """
    tokenizer = load_tokenizer(policy)
    model = load_policy(policy, run.device)
    ends = eos_ids(policy, tokenizer)

    def work(number: int, chunk: Sequence[Messages]) -> list[Any]:
        ids = [render_prompt(tokenizer, messages) for messages in chunk]
        noise = derive_seed(seed, "suite", number)
        rows = generate(model, ids, sampling, samples=samples, eos_ids=ends, seed=noise, on_step=run.stop_if_asked)
        return [
            [{"text": text_of(tokenizer, c.tokens), "n_tokens": len(c.tokens), "finished": c.finished} for c in completions]
            for completions in rows
        ]

    return map_chunks(run, name, prompts, size, work)


def readable(messages: Messages) -> str:
    """A conversation for people: the message itself where there is one only, else each behind its role."""
    return messages[0].content if len(messages) == 1 else "\n\n".join(f"{message.role}: {message.content}" for message in messages)
