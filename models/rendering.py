"""From rankings and completions to token groups and back, through the chat template of the policy's own tokenizer; see `data.groups`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from data.packing import Group
from data.records import Messages, Ranking
from data.templates import render_completion, render_prompt
from models.run import Run


def completion_ids(tokenizer: PreTrainedTokenizerBase, prompt: Messages, completion: str) -> list[int]:
    """Tokens of an answer to a prompt, its end-of-turn token included."""
    return render_completion(tokenizer, prompt, completion)


def ranking_group(tokenizer: PreTrainedTokenizerBase, ranking: Ranking) -> Group:
    """All answers of a ranking behind their shared prompt, in the order of the record."""
    prompt = render_prompt(tokenizer, ranking.prompt)
    return Group(prompt, [completion_ids(tokenizer, ranking.prompt, text) for text in ranking.completions])


def drop_long(groups: Sequence[Group], max_tokens: int, run: Run) -> list[int]:
    """Indices of the groups of at most ``max_tokens`` tokens; says how many are left out.

    Raises:
        ValueError: none is left.
    """
    kept = [i for i, group in enumerate(groups) if group.n_tokens <= max_tokens]
    if len(kept) < len(groups):
        run.log(f"{len(groups) - len(kept)} of {len(groups)} examples are longer than {max_tokens} tokens and are left out")
    if not kept:
        raise ValueError(
            f"all {len(groups)} examples are longer than max_tokens {max_tokens}, or there is none: raise max_tokens or check the data"
        )
    return kept


def eos_ids(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a completion: the tokenizer's, and those that the model's generation settings name."""
    from transformers import GenerationConfig

    named: Any = GenerationConfig.from_pretrained(folder).eos_token_id if (folder / "generation_config.json").is_file() else []
    own: Any = tokenizer.eos_token_id
    found = {i for i in [own, *(named if isinstance(named, list) else [named])] if i is not None}
    if not found:
        raise ValueError(f"{folder} names no end-of-turn token: set eos_token in its tokenizer_config.json")
    return sorted(found)


def text_of(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The words of a completion, control tokens left out."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))
