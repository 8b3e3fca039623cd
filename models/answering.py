"""A policy that answers: loaded once, asked chunk by chunk, with the same noise for every policy."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from data.records import Messages
from data.templates import load_tokenizer, render_prompt
from models.chunks import map_chunks
from models.configs.sampling import SamplingConfig
from models.generation import Completion
from models.loading import load_policy
from models.rendering import eos_ids, text_of
from models.run import Run
from models.sampler import Sampler
from models.seeds import derive_seed

T = TypeVar("T")


class Answerer:
    """A policy with its tokenizer. The noise of a chunk comes from the seed, the purpose and the chunk's number, and from nothing else."""

    def __init__(self, policy: Path, purpose: str, seed: int, run: Run) -> None:
        self.purpose, self.seed, self.run = purpose, seed, run
        self.tokenizer = load_tokenizer(policy)
        self.model = load_policy(policy, run.device)
        self.ends = eos_ids(policy, self.tokenizer)
        self.sampler = Sampler(policy, self.model)

    def render(self, conversations: Sequence[Messages]) -> list[list[int]]:
        """Token ids of conversations that wait for an answer."""
        return [render_prompt(self.tokenizer, messages) for messages in conversations]

    def sample(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, samples: int, number: int) -> list[list[Completion]]:
        """So many completions of each prompt of chunk ``number``."""
        given = {"samples": samples, "eos_ids": self.ends, "on_step": self.run.stop_if_asked}
        return self.sampler(prompts, sampling, seed=derive_seed(self.seed, self.purpose, number), **given)

    def text(self, completion: Completion) -> str:
        """The words of a completion."""
        return text_of(self.tokenizer, completion.tokens)


def ask(
    policy: Path,
    items: Sequence[T],
    conversation: Callable[[T], Messages],
    sampling: SamplingConfig,
    *,
    purpose: str,
    samples: int,
    chunk: int,
    seed: int,
    run: Run,
    judge: Callable[[T, str], Mapping[str, Any]] = lambda item, text: {},
    kept: str = "answers",
) -> list[list[dict[str, Any]]]:
    """Answers to the conversation of every item, with what ``judge`` says of each; kept chunk by chunk over a kill.

    An answer is ``{"text", "n_tokens", "finished"}`` and the judge's own. ``kept``: what the finished chunks are called, one name for
    each policy that a stage asks.
    """
    answerer = Answerer(policy, purpose, seed, run)

    def judged(item: T, completion: Completion) -> dict[str, Any]:
        text = answerer.text(completion)
        return {"text": text, "n_tokens": len(completion.tokens), "finished": completion.finished, **judge(item, text)}

    def answer(number: int, asked: Sequence[T]) -> list[Any]:
        completions = answerer.sample(answerer.render([conversation(item) for item in asked]), sampling, samples, number)
        return [[judged(item, c) for c in row] for item, row in zip(asked, completions, strict=True)]

    return map_chunks(run, kept, items, chunk, answer)
