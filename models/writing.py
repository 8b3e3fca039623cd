"""Completions to be judged: sampled from policies, or those of labelled sets."""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data.judgements import Candidates
from data.records import Prompt, record_id
from data.tables import read_table
from data.templates import load_tokenizer, render_prompt
from models.chunks import map_chunks
from models.configs.preferences import WritingConfig
from models.loading import load_policy
from models.rendering import eos_ids, text_of
from models.run import Run
from models.sampler import Sampler
from models.seeds import derive_seed


def write_completions(config: WritingConfig, policies: Mapping[str, Path], data: Path, seed: int, run: Run) -> list[Candidates]:
    """All completions of every prompt by every writer, equal texts too, in the order of the writers.

    Raises:
        ValueError: a writer names a policy that is not there, or none and there are several.
    """
    if not config.writers:
        return []
    prompts = read_table(data / "prompts.parquet", Prompt)
    prompts = prompts[: config.prompts] if config.prompts else prompts
    named = [(_named(policy, policies), temperature) for policy, temperature in config.temperatures]
    written = []
    for number, (name, temperature) in enumerate(named):
        written.append(_sample(config, policies[name], temperature, prompts, number, seed, run))
        gc.collect()  # the next writer's weights take its place
    writers = tuple(f"{name}@{t}" for name, t in named for _ in range(config.samples_per_prompt))
    return [_candidates(prompt, [text for texts in by for text in texts], writers) for prompt, *by in zip(prompts, *written, strict=True)]


def distinct(row: Candidates) -> tuple[Candidates, tuple[int, ...]]:
    """The row with every text once, which is what a judge sees, and the place of each of the row's completions in it.

    By hand: completions (x, y, x) become (x, y) with places (0, 1, 0).
    """
    texts = tuple(dict.fromkeys(row.completions))
    writers = tuple(row.writers[row.completions.index(text)] for text in texts)
    return replace(row, completions=texts, writers=writers), tuple(texts.index(text) for text in row.completions)


def _named(policy: str, policies: Mapping[str, Path]) -> str:
    if not policy and len(policies) == 1:
        return next(iter(policies))
    if policy not in policies:
        raise ValueError(f"a writer is the policy {policy!r}, and the policies are {', '.join(policies) or 'none'}: name one of them")
    return policy


def _candidates(prompt: Prompt, texts: Sequence[str], writers: tuple[str, ...]) -> Candidates:
    name = record_id("candidates", prompt.id, list(dict.fromkeys(texts)))
    return Candidates(name, prompt.source, prompt.messages, tuple(texts), writers, prompt.answer, prompt.verifier, prompt.metadata)


def _sample(
    config: WritingConfig, policy: Path, temperature: float, prompts: list[Prompt], writer: int, seed: int, run: Run
) -> list[list[str]]:
    tokenizer = load_tokenizer(policy)
    sampler = Sampler(policy, load_policy(policy, run.device))
    ends = eos_ids(policy, tokenizer)
    sampling = config.sampling.model_copy(update={"temperature": temperature})
    own = () if not writer else (writer,)  # what one writer draws does not depend on whether there are others

    def sample(number: int, chunk: Sequence[Prompt]) -> list[list[str]]:
        rows = sampler(
            [render_prompt(tokenizer, prompt.messages) for prompt in chunk],
            sampling,
            samples=config.samples_per_prompt,
            eos_ids=ends,
            seed=derive_seed(seed, "preferences", *own, number),
            on_step=run.stop_if_asked,
        )
        return [[text_of(tokenizer, c.tokens) for c in row] for row in rows]

    return map_chunks(run, "-".join(["sampled", *map(str, own)]), prompts, config.chunk_prompts, sample)
