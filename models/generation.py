"""The sampler: a prompt is prefilled once whatever the number of samples, rows that end leave the batch and waiting prompts enter it.

Axes: ``R`` rows (prompt x sample) being generated, ``A`` alternatives for a next token, ``J`` key-value heads, ``T`` slots of the cache,
``D`` head width, ``V`` vocabulary.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from data.packing import Group, pack
from models.attention import PackedLayout
from models.configs.sampling import SamplingConfig
from models.kv_cache import BranchLayout, DecodeLayout
from models.lean_decoder import LeanDecoder, unsupported
from models.logprobs import NO_MASK, head_weight, hidden_states
from models.notices import say_once
from models.seeds import derive_seed
from models.spending import count_generated

KEEP_SHARE = 0.8  # rows are compacted when fewer than this share of them is still running
REFILL_SHARE = 0.25  # waiting prompts enter when there is room for this share of the prompts that fit
WORTH_JOINING = 8  # steps from which joined and laid-out weights repay the copy
BLOCK = 256  # tokens of the vocabulary that are summed before any is chosen


@dataclass
class Completion:
    """What was sampled for one row. ``logps`` are under the policy at the sampling temperature, before top-k and top-p."""

    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finished: bool = False  # the end-of-turn token was sampled (it is the last of ``tokens``)


class Guide:
    """Changes what the sampler draws from, token by token: a mixture with another policy, a reward on prefixes. This one changes nothing.

    It follows the same rows as the sampler: those of one wave, some of which leave when they end.
    """

    def begin(self, prompts: Sequence[Sequence[int]], samples: int, max_tokens: int) -> None:
        """A new wave: ``samples`` rows of each prompt, prompt by prompt, of at most ``max_tokens`` new tokens."""

    def adjust(self, logits_RV: Tensor) -> Tensor:
        """The logits to sample from instead of the policy's own, in the order of the rows."""
        return logits_RV

    def advance(self, token_R: Tensor) -> None:
        """The token that each row goes on with."""

    def select(self, keep_R: Tensor) -> None:
        """Keep only these rows."""


@torch.no_grad()
def generate(
    policy: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    samples: int,
    eos_ids: Sequence[int],
    seed: int,
    on_step: Callable[[], None] | None = None,
    on_tokens: Callable[[list[int]], None] | None = None,
    guide: Guide | None = None,
) -> list[list[Completion]]:
    """Sample ``samples`` completions of every prompt.

    Args:
        policy: a causal language model loaded by ``models.loading``.
        prompts: token ids, the generation prompt included.
        sampling: temperature (0 = greedy), top-k, top-p, longest completion in tokens, rows at once.
        samples: completions a prompt.
        eos_ids: tokens that end a completion.
        seed: of the sampling noise; the same seed, prompts and weights give the same completions.
        on_step: called before each decoding step; may raise to stop.
        on_tokens: receives the newly sampled token of each running row, for streaming.
        guide: changes the logits; the log-probabilities that are kept are then those of what was sampled from.

    Returns:
        One list of ``samples`` completions a prompt, in the order of the prompts.

    Raises:
        ValueError: the sampling asks for vllm, which has no part in this: a policy in memory, or one that is guided.
    """
    if sampling.backend == "vllm":
        raise ValueError("sampling.backend is vllm, which samples from policies on disk, unguided: here set it to own, or to auto")
    results = [[Completion() for _ in range(samples)] for _ in prompts]
    waiting = deque(sorted(range(len(prompts)), key=lambda i: len(prompts[i])))
    noise = torch.Generator(device=policy.device).manual_seed(derive_seed(seed, "wave", 0))
    batch = _Batch(policy, samples, sampling, set(eos_ids), guide or Guide())
    most = max(1, sampling.max_rows // samples)
    while waiting or batch.alive:
        room = most - -(-batch.alive // samples)
        if not batch.alive or (guide is None and room >= REFILL_SHARE * most):
            members = [waiting.popleft() for _ in range(min(room, len(waiting)))]
            batch.admit([prompts[i] for i in members], [completion for i in members for completion in results[i]])
        if on_step is not None:
            on_step()
        tokens = batch.draw(noise)
        if on_tokens is not None:
            on_tokens(tokens)
        batch.advance()
    count_generated(sum(len(completion.tokens) for own in results for completion in own))
    return results


class _Batch:
    """The rows that are generated together. Those that end leave; others may enter."""

    def __init__(self, policy: PreTrainedModel, samples: int, sampling: SamplingConfig, eos_ids: set[int], guide: Guide):
        self.policy, self.samples, self.sampling, self.eos_ids, self.guide = policy, samples, sampling, eos_ids, guide
        self.step = decoder_of(policy, sampling.max_tokens)
        self.rows: list[Completion | None] = []  # None: it has ended, and leaves with the next ones

    @property
    def alive(self) -> int:
        return sum(row is not None for row in self.rows)

    def admit(self, prompts: Sequence[Sequence[int]], rows: Sequence[Completion]) -> None:
        """Rows of further prompts; no prompts: nothing happens."""
        if not prompts:
            return
        layout, hidden_RE = prefill(self.policy, prompts, self.samples, self.sampling.max_tokens)
        if self.alive:
            self._compact()
            self.layout.join(layout)
            hidden_RE = torch.cat([self.hidden_RE, hidden_RE])
        else:
            self.rows = []
            self.layout = layout
            self.guide.begin(prompts, self.samples, self.sampling.max_tokens)
        self.rows += rows
        self.hidden_RE = hidden_RE

    def draw(self, noise: torch.Generator) -> list[int]:
        """Sample the next token of every row and note it; returns the tokens in the order of the rows."""
        logits_RV = self.guide.adjust(self.step.logits(self.hidden_RE))
        self.token_R, logp_R = sample_tokens(logits_RV, self.sampling, noise)
        tokens = self.token_R.tolist()
        for i, (token, logp) in enumerate(zip(tokens, logp_R.tolist(), strict=True)):
            row = self.rows[i]
            if row is None:
                continue
            row.tokens.append(token)
            row.logps.append(logp)
            row.finished = token in self.eos_ids
            if row.finished or len(row.tokens) == self.sampling.max_tokens:
                self.rows[i] = None
        return tokens

    def advance(self) -> None:
        """Append the tokens that were drawn to the rows that go on."""
        if not self.alive:
            return
        if self.alive <= KEEP_SHARE * len(self.rows):
            self._compact()
        self.hidden_RE = self.step(self.token_R, self.layout)
        self.guide.advance(self.token_R)

    def _compact(self) -> None:
        """Let the rows that have ended leave."""
        alive = [i for i, row in enumerate(self.rows) if row is not None]
        if len(alive) == len(self.rows):
            return
        keep = torch.tensor(alive, device=self.token_R.device)
        self.layout.select(keep)
        self.guide.select(keep)
        self.token_R, self.hidden_RE = self.token_R[keep], self.hidden_RE[keep]
        self.rows = [self.rows[i] for i in alive]


def prefill(policy: PreTrainedModel, prompts: Sequence[Sequence[int]], samples: int, max_tokens: int) -> tuple[DecodeLayout, Tensor]:
    """Run every prompt once. Returns the cache of its rows and the last hidden state of each row, ``[R, E]``."""
    packed = pack([Group(prompt, []) for prompt in prompts]).to(policy.device)
    layout = PackedLayout(packed, keep=True)
    last_E = hidden_states(policy.base_model, packed, layout)[packed.group_starts_K[1:] - 1]
    length_P = packed.group_starts_K.diff()
    slot_T = torch.arange(int(length_P.max()), device=policy.device)
    index_PT = packed.group_starts_K[:-1, None] + torch.minimum(slot_T, length_P[:, None] - 1)
    kept = layout.kept
    assert kept is not None
    caches = []
    for i in range(len(kept)):
        keys_JND, values_JND = kept.pop(i)
        caches.append((keys_JND[:, index_PT], values_JND[:, index_PT]))
    return DecodeLayout(caches, length_P, samples, max_tokens), last_E.repeat_interleave(samples, 0)


class GeneralDecoder:
    """Steps any transformers decoder."""

    def __init__(self, policy: PreTrainedModel):
        self.policy, self.head_VE = policy, head_weight(policy)

    def __call__(self, token_R: Tensor, layout: DecodeLayout) -> Tensor:
        """As ``decode``."""
        return decode(self.policy, token_R, layout)

    def logits(self, hidden_RE: Tensor) -> Tensor:
        """Of the next token of each row: ``[R, V]``."""
        return hidden_RE @ self.head_VE.T


def decoder_of(policy: PreTrainedModel, max_tokens: int) -> GeneralDecoder | LeanDecoder:
    """The fastest step for a policy as it is now."""
    reason = unsupported(policy)
    if reason:
        say_once(f"sampling takes the general path, about a third slower: the model cannot be stepped by models/lean_decoder.py: {reason}")
    return GeneralDecoder(policy) if reason or max_tokens < WORTH_JOINING else LeanDecoder(policy)


def decode(policy: PreTrainedModel, token_R: Tensor, layout: DecodeLayout) -> Tensor:
    """Append one token to each row; its hidden state ``[R, E]``, from which the next is predicted."""
    output = policy.base_model(
        input_ids=token_R[:, None],
        position_ids=layout.length_R[:, None],
        attention_mask=NO_MASK.to(token_R.device),
        layout=layout,
        use_cache=False,
    )
    layout.advance()
    return output.last_hidden_state[:, 0]


def branch(policy: PreTrainedModel, token_RA: Tensor, layout: DecodeLayout) -> Tensor:
    """What ``decode`` would return for each of several next tokens: ``[R, A, E]``. The cache stays as it is."""
    output = policy.base_model(
        input_ids=token_RA,
        position_ids=layout.length_R[:, None].expand_as(token_RA),
        attention_mask=NO_MASK.to(token_RA.device),
        layout=BranchLayout(layout, token_RA.shape[1]),
        use_cache=False,
    )
    return output.last_hidden_state


def sample_tokens(logits_RV: Tensor, sampling: SamplingConfig, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """One token a row and its log-probability at the sampling temperature (at 1 when greedy), before truncation.

    The inverse distribution function is read at one uniform number a row: first over blocks of the vocabulary, then inside one block, in
    float64, so that no token loses its mass to rounding and the whole vocabulary is summed only once.
    """
    z_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32), copy=True)
    if sampling.temperature == 0:
        token_R = z_RV.argmax(-1)
        return token_R, z_RV.gather(-1, token_R[:, None])[:, 0] - z_RV.logsumexp(-1)
    if sampling.temperature != 1:
        z_RV.div_(sampling.temperature)
    z_RV.sub_(z_RV.amax(-1, keepdim=True))
    chance_R = torch.rand(len(z_RV), generator=noise, device=z_RV.device, dtype=torch.float64)
    if not sampling.truncates:
        mass_RV = z_RV.exp_()
        token_R, total_R = read_inverse(mass_RV, chance_R)
        return token_R, (mass_RV.gather(-1, token_R[:, None])[:, 0].log() - total_R.log()).to(mass_RV.dtype)
    logp_RV = z_RV.log_softmax(-1)
    token_R, _ = read_inverse(truncate(logp_RV, sampling.top_k, sampling.top_p).exp(), chance_R)
    return token_R, logp_RV.gather(-1, token_R[:, None])[:, 0]


def read_inverse(mass_RV: Tensor, chance_R: Tensor) -> tuple[Tensor, Tensor]:
    """The token at which the running sum of a row's masses passes ``chance`` (in [0, 1)) of their total; and that total, float64.

    By hand: masses 1, 0, 3 and chance 0.25 give the third token, 0.2 the first; the second, of mass 0, is never read.
    """
    vocabulary = mass_RV.shape[-1]
    whole = vocabulary - vocabulary % BLOCK
    parts = [mass_RV[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1)] if whole else []
    parts += [mass_RV[:, whole:].sum(-1, keepdim=True)] if whole < vocabulary else []
    cumulative_RB = torch.cat(parts, dim=-1).double().cumsum(-1)
    total_R = cumulative_RB[:, -1]
    block_R, share_R = _first_past(cumulative_RB, chance_R * total_R)
    index_RW = block_R[:, None] * BLOCK + torch.arange(BLOCK, device=mass_RV.device)
    inside_RW = mass_RV.gather(-1, index_RW.clamp(max=vocabulary - 1)).double().masked_fill_(index_RW >= vocabulary, 0).cumsum(-1)
    offset_R, _ = _first_past(inside_RW, share_R * inside_RW[:, -1])
    return block_R * BLOCK + offset_R, total_R


def _first_past(cumulative_RB: Tensor, threshold_R: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the first running sum above each threshold, and how far into that entry's own mass the threshold lies, in [0, 1)."""
    # Rounding can put the threshold on the total itself; the last entry that has any mass is meant then.
    last_R = (cumulative_RB < cumulative_RB[:, -1:]).sum(-1)
    found_R = torch.minimum(torch.searchsorted(cumulative_RB, threshold_R[:, None], right=True)[:, 0], last_R)[:, None]
    before_R = torch.where(found_R > 0, cumulative_RB.gather(-1, (found_R - 1).clamp(min=0)), 0.0)
    own_R = cumulative_RB.gather(-1, found_R) - before_R
    return found_R[:, 0], ((threshold_R[:, None] - before_R) / own_R)[:, 0].clamp(0, 1 - 2**-53)


def truncate(logp_RV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Put everything outside the top-k tokens (0 = all) and outside the nucleus of mass top-p (1 = all) at minus infinity.

    Nucleus: the smallest set of most likely tokens whose mass reaches top-p (Holtzman et al. 2020).
    """
    if 0 < top_k < logp_RV.shape[-1]:
        kth_R1 = logp_RV.topk(top_k, dim=-1).values[:, -1:]
        logp_RV = logp_RV.masked_fill(logp_RV < kth_R1, -torch.inf)
    if top_p < 1:
        sorted_RV, order_RV = logp_RV.sort(-1, descending=True)
        p_RV = sorted_RV.softmax(-1)
        outside_RV = p_RV.cumsum(-1) - p_RV >= top_p
        logp_RV = logp_RV.masked_fill(outside_RV.scatter(-1, order_RV, outside_RV), -torch.inf)
    return logp_RV
