"""Padding-free batches: prompts with one or more completions, laid end to end in one flat row of tokens.

A *group* is a prompt and its completions. The prompt is stored once, whatever the number of completions: every completion
attends to the prompt and to itself, never to a sibling or to another group. A plain sequence is a group of one.

Axes: ``N`` packed tokens, ``C`` completions, ``S`` scored tokens (those whose log-probability is read), ``K`` groups.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """A prompt and its completions, as token ids.

    ``scored`` says per completion which of its tokens are trained on or scored (default: all).
    """

    prompt: Sequence[int]
    completions: Sequence[Sequence[int]]
    scored: Sequence[Sequence[bool]] | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens that this group takes in a packed batch."""
        return len(self.prompt) + sum(map(len, self.completions))


@dataclass(frozen=True)
class Packed:
    """One flat batch. ``source_S[i]`` is the packed token whose hidden state predicts ``target_S[i]``."""

    input_ids_N: Tensor
    position_N: Tensor
    group_N: Tensor  # which group a token belongs to
    branch_N: Tensor  # 0 for prompt tokens, 1 + i for tokens of the group's i-th completion
    group_starts_K: Tensor  # first packed token of each group, then N: [K + 1]
    last_C: Tensor  # packed index of each completion's last token, where a reward is read
    source_S: Tensor
    target_S: Tensor
    completion_S: Tensor  # which completion (of all C) a scored token belongs to
    offset_S: Tensor  # its position in that completion
    own_S: Tensor  # packed index of the scored token itself, where the prefix that it ends is read

    @property
    def n_completions(self) -> int:
        """``C``: completions in the batch, counted group by group."""
        return len(self.last_C)

    def to(self, device: torch.device) -> "Packed":
        """The same batch on another device."""
        return Packed(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def unflatten(self, values_S: Tensor, length: int, fill: float = 0.0) -> Tensor:
        """Scatter per-scored-token values to ``[C, length]``, the unscored places filled with ``fill``. Differentiable."""
        out_CT = values_S.new_full((self.n_completions, length), fill)
        return out_CT.index_put((self.completion_S, self.offset_S), values_S)

    def sum_by_completion(self, values_S: Tensor) -> Tensor:
        """Sum of the values of each completion's scored tokens: ``[C]``. Differentiable."""
        return values_S.new_zeros(self.n_completions).index_add(0, self.completion_S, values_S)

    def lengths_C(self) -> Tensor:
        """Number of scored tokens of each completion: ``[C]``."""
        return torch.bincount(self.completion_S, minlength=self.n_completions)


def pack(groups: Sequence[Group]) -> Packed:
    """Lay groups end to end.

    Raises:
        ValueError: a group without a prompt token (nothing would predict its first completion token) or with an empty completion.
    """
    ids: list[int] = []
    position: list[int] = []
    group_of: list[int] = []
    branch: list[int] = []
    starts: list[int] = [0]
    last: list[int] = []
    scored: list[tuple[int, ...]] = []
    for k, group in enumerate(groups):
        _check(group, k)
        prompt_end = len(ids) + len(group.prompt)
        ids += group.prompt
        position += range(len(group.prompt))
        branch += [0] * len(group.prompt)
        for b, completion in enumerate(group.completions):
            begin = len(ids)
            keep = group.scored[b] if group.scored is not None else [True] * len(completion)
            sources = [prompt_end - 1, *range(begin, begin + len(completion) - 1)]
            scored += [(sources[t], token, len(last), t, begin + t) for t, token in enumerate(completion) if keep[t]]
            ids += completion
            position += range(len(group.prompt), len(group.prompt) + len(completion))
            branch += [b + 1] * len(completion)
            last.append(len(ids) - 1)
        group_of += [k] * (len(ids) - starts[-1])
        starts.append(len(ids))
    columns = (ids, position, group_of, branch, starts, last, *(zip(*scored, strict=True) if scored else [()] * 5))
    return Packed(*(torch.tensor(column, dtype=torch.long) for column in columns))


def _check(group: Group, k: int) -> None:
    if not len(group.prompt) or not all(map(len, group.completions)):
        raise ValueError(
            f"group {k} has {len(group.prompt)} prompt tokens and completions of {[len(c) for c in group.completions]} tokens: "
            "each needs at least one token, since the first completion token is predicted from the last prompt token"
        )


def split_by_tokens(groups: Iterable[Group], max_tokens: int) -> Iterator[list[Group]]:
    """Cut groups, in order, into lists of at most ``max_tokens`` tokens; a longer group stands alone."""
    batch: list[Group] = []
    size = 0
    for group in groups:
        if batch and size + group.n_tokens > max_tokens:
            yield batch
            batch, size = [], 0
        batch.append(group)
        size += group.n_tokens
    if batch:
        yield batch
