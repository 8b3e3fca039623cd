"""The sampler's memory of keys and values: a prompt's once for all its rows, and each row's own.

Rows (prompt x sample) are generated together, one token at a time. What a row attends to is its prompt, read once for all rows of that
prompt, and what was sampled for it, in slots that are written in place.

Heads come first in every tensor, so that rows, prompts and seats are views of one another and nothing but the new token is copied.

Axes: ``P`` prompts, ``R`` rows, ``U`` rows of the prompt that has most, ``J`` key-value heads, ``G`` query heads that share one of them (no
head is repeated in memory), ``A`` new tokens of a row, ``M`` = G x A queries, ``T`` past tokens: the prompt's, then the row's own,
``D`` head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]

# Slots are added so many at a time and are all read: a matrix product copies what is only part of a tensor, and a copy costs more.
SLOTS = 16


class DecodeLayout:
    """One new token a row."""

    def __init__(self, prompts: list[KeysValues], prompt_tokens_P: Tensor, samples: int, max_tokens: int):
        """``prompts``: of each layer, ``[J, P, T, D]``. Each prompt gets ``samples`` rows of at most ``max_tokens`` tokens."""
        self.prompts = prompts
        self.prompt_tokens_P = prompt_tokens_P
        self.prompt_R = torch.arange(len(prompt_tokens_P), device=prompt_tokens_P.device).repeat_interleave(samples)
        self.own_R = torch.zeros_like(self.prompt_R)
        self.max_tokens = max_tokens
        self.own = [(k[:, self.prompt_R, :0], v[:, self.prompt_R, :0]) for k, v in prompts]
        self._seat()
        self._prepare()

    @property
    def length_R(self) -> Tensor:
        """Tokens that each row has: the position of its next."""
        return self.prompt_tokens_P[self.prompt_R] + self.own_R

    def _seat(self) -> None:
        """Where the queries of a row stand among those of its prompt: seat ``u`` of prompt ``p``."""
        rows = torch.arange(len(self.prompt_R), device=self.prompt_R.device)
        of_prompt_P = torch.bincount(self.prompt_R, minlength=len(self.prompt_tokens_P))
        self.seats = int(of_prompt_P.max())
        first_P = of_prompt_P.cumsum(0) - of_prompt_P
        self.seat_R = self.prompt_R * self.seats + rows - first_P[self.prompt_R]
        self.full = len(rows) == self.seats * len(of_prompt_P)
        # An empty seat holds row 0's queries; what they find is not read.
        self.row_PU = rows.new_zeros(len(of_prompt_P) * self.seats).index_put((self.seat_R,), rows)

    def _prepare(self) -> None:
        self.row_R = torch.arange(len(self.own_R), device=self.own_R.device)
        longest = int(self.own_R.max())
        self.lockstep = bool((self.own_R == longest).all())
        self.next = longest
        missing = longest + 1 - self.own[0][0].shape[2]
        if missing > 0:
            self._add_slots(missing)
        self.bias_R1T = bias_of(self.seen(self.own_R + 1), self.prompts[0][0].dtype)[:, None]

    def _add_slots(self, missing: int) -> None:
        there = self.own[0][0].shape[2]
        slots = max(missing, min(there + SLOTS, self.max_tokens) - there)
        for layer, (k, v) in enumerate(self.own):  # layer by layer: only one is there twice
            # Zeros, not garbage: a weight of 0 for a slot that was never written must give 0.
            self.own[layer] = F.pad(k, (0, 0, 0, slots)), F.pad(v, (0, 0, 0, slots))

    def seen(self, own_R: Tensor) -> Tensor:
        """True for the tokens of each row's prompt and its first ``own_R`` own ones: ``[R, T]``."""
        prompt_T, own_T = (torch.arange(kept[0][0].shape[2], device=own_R.device) for kept in (self.prompts, self.own))
        return torch.cat([prompt_T < self.prompt_tokens_P[self.prompt_R, None], own_T < own_R[:, None]], dim=1)

    def advance(self) -> None:
        """The token that was just run through the model is part of the past now."""
        self.own_R = self.own_R + 1
        self._prepare()

    def select(self, rows: Tensor) -> None:
        """Keep only these rows, in their order: the others have ended. So do prompts that have no row left."""
        self.own = [(k[:, rows], v[:, rows]) for k, v in self.own]
        self.own_R = self.own_R[rows]
        kept_P, self.prompt_R = self.prompt_R[rows].unique(return_inverse=True)
        if len(kept_P) < len(self.prompt_tokens_P):
            self.prompt_tokens_P = self.prompt_tokens_P[kept_P]
            longest = int(self.prompt_tokens_P.max())
            self.prompts = [(k[:, kept_P, :longest], v[:, kept_P, :longest]) for k, v in self.prompts]
        self._seat()
        self._prepare()

    def join(self, other: "DecodeLayout") -> None:
        """Take in the rows of another cache, after these."""
        here, there = self.own[0][0].shape[2], other.own[0][0].shape[2]
        most = max(self.prompts[0][0].shape[2], other.prompts[0][0].shape[2])
        for layer in range(len(self.own)):
            (k, v), (more_k, more_v) = self.own[layer], other.own[layer]
            self.own[layer] = _beside(k, more_k, max(here, there)), _beside(v, more_v, max(here, there))
            (k, v), (more_k, more_v) = self.prompts[layer], other.prompts[layer]
            self.prompts[layer] = _beside(k, more_k, most), _beside(v, more_v, most)
        self.prompt_R = torch.cat([self.prompt_R, other.prompt_R + len(self.prompt_tokens_P)])
        self.prompt_tokens_P = torch.cat([self.prompt_tokens_P, other.prompt_tokens_P])
        self.own_R = torch.cat([self.own_R, other.own_R])
        self._seat()
        self._prepare()

    def rewind(self, own_R: Tensor) -> None:
        """Forget all but the first ``own_R`` sampled tokens of each row; their slots are written again."""
        self.own_R = own_R
        self._prepare()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """The new token's queries over the past and itself, whose keys and values are kept."""
        rows, _, _, width = query.shape
        for kept, new in zip(self.own[layer], (key, value), strict=True):
            new_JRD = new[:, :, 0].transpose(0, 1)
            if self.lockstep:
                kept[:, :, self.next] = new_JRD
            else:
                kept[:, self.row_R, self.own_R] = new_JRD
        q_JRMD = heads_first(query, key.shape[1])
        weights_JRMT = softmax(self.scores(layer, q_JRMD), scaling, self.bias_R1T)
        return self.mix(layer, weights_JRMT).transpose(0, 1).reshape(rows, 1, -1, width)

    def scores(self, layer: int, q_JRMD: Tensor) -> Tensor:
        """Products of queries with the keys of their prompt and of the row's own slots: ``[J, R, M, T]``."""
        keys_JPTD, own_JRTD = self.prompts[layer][0], self.own[layer][0]
        by_prompt = self._to_seats(q_JRMD) @ keys_JPTD.transpose(2, 3)
        own = q_JRMD @ own_JRTD.transpose(2, 3)
        return torch.cat([self._to_rows(by_prompt, q_JRMD.shape[2]), own], dim=3)

    def mix(self, layer: int, weights_JRMT: Tensor) -> Tensor:
        """Weighted sums of the values of the same tokens: ``[J, R, M, D]``."""
        values_JPTD, own_JRTD = self.prompts[layer][1], self.own[layer][1]
        slots = values_JPTD.shape[2]
        by_prompt = self._to_seats(weights_JRMT[..., :slots]) @ values_JPTD
        own = weights_JRMT[..., slots:] @ own_JRTD
        return self._to_rows(by_prompt, weights_JRMT.shape[2]).add_(own)

    def _to_seats(self, x_JRMD: Tensor) -> Tensor:
        """What rows bring, by prompt: ``[J, P, U x M, D]``."""
        seated = x_JRMD if self.full else x_JRMD[:, self.row_PU]
        return seated.unflatten(1, (-1, self.seats)).flatten(2, 3)

    def _to_rows(self, x_JPUD: Tensor, queries: int) -> Tensor:
        """The inverse: ``[J, R, M, D]``."""
        x = x_JPUD.unflatten(2, (self.seats, queries)).flatten(1, 2)
        return x if self.full else x[:, self.seat_R]


class BranchLayout:
    """``A`` alternatives for the next token of each row: each sees the row's past and itself. Nothing is written."""

    def __init__(self, cache: DecodeLayout, alternatives: int):
        self.cache = cache
        past_RAT = cache.seen(cache.own_R)[:, None].expand(-1, alternatives, -1)
        itself_RAA = torch.eye(alternatives, dtype=torch.bool, device=past_RAT.device).expand(len(past_RAT), -1, -1)
        self.bias_RAT = bias_of(torch.cat([past_RAT, itself_RAA], dim=2), cache.prompts[0][0].dtype)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """The alternatives' queries."""
        rows, heads, alternatives, width = query.shape
        key_JRAD, value_JRAD = key.transpose(0, 1), value.transpose(0, 1)
        q_JRMD = heads_first(query, key.shape[1])
        scores = torch.cat([self.cache.scores(layer, q_JRMD), q_JRMD @ key_JRAD.transpose(2, 3)], dim=3)
        weights = softmax(scores, scaling, self.bias_RAT.repeat(1, heads // key.shape[1], 1))
        seen_JRMD = self.cache.mix(layer, weights[..., :-alternatives]) + weights[..., -alternatives:] @ value_JRAD
        return seen_JRMD.transpose(0, 1).reshape(rows, heads, alternatives, width).transpose(1, 2)


def _beside(x_JRTD: Tensor, more_JRTD: Tensor, slots: int) -> Tensor:
    """Two caches of one layer as one, both with so many slots; the new ones are zeros."""
    return torch.cat([F.pad(x, (0, 0, 0, slots - x.shape[2])) for x in (x_JRTD, more_JRTD)], dim=1)


def heads_first(query: Tensor, shared: int) -> Tensor:
    """Queries ``[R, H, A, D]`` by the ``shared`` key-value heads that they belong to: ``[J, R, M, D]``."""
    rows, _, _, width = query.shape
    return query.reshape(rows, shared, -1, width).transpose(0, 1).contiguous()


def bias_of(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where something is seen, minus infinity elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def softmax(scores: Tensor, scaling: float, bias: Tensor) -> Tensor:
    """softmax(scaling scores + bias), in place up to there; a softmax of half-precision numbers is computed in float32 and rounded once."""
    return torch.add(bias, scores, alpha=scaling, out=scores).softmax(-1)
