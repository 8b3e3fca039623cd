"""The sampler: a prompt is prefilled once whatever the number of samples, rows that end leave the batch.

Axes: ``R`` rows (prompt x sample) being generated, ``A`` alternatives for a next token, ``J`` key-value heads, ``T`` slots of the cache,
``D`` head width, ``V`` vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from data.packing import Group, pack
from models.attention import BranchLayout, DecodeLayout, PackedLayout
from models.configs.sampling import SamplingConfig
from models.logprobs import NO_MASK, head_weight, hidden_states
from models.seeds import derive_seed

KEEP_SHARE = 0.8  # rows are compacted when fewer than this share of them is still running


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
    """
    results = [[Completion() for _ in range(samples)] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    wave = max(1, sampling.max_rows // samples)
    for number, begin in enumerate(range(0, len(order), wave)):
        members = order[begin : begin + wave]
        rows = [completion for i in members for completion in results[i]]
        noise = torch.Generator(device=policy.device).manual_seed(derive_seed(seed, "wave", number))
        own = [prompts[i] for i in members]
        _generate_wave(policy, own, rows, samples, sampling, set(eos_ids), noise, on_step, on_tokens, guide or Guide())
    return results


def _generate_wave(policy, prompts, rows: list[Completion], samples, sampling, eos_ids, noise, on_step, on_tokens, guide) -> None:
    layout, hidden_RE = prefill(policy, prompts, samples, sampling.max_tokens)
    guide.begin(prompts, samples, sampling.max_tokens)
    head_VE = head_weight(policy)
    running = list(range(len(rows)))
    for step in range(sampling.max_tokens):
        if on_step is not None:
            on_step()
        logits_RV = guide.adjust(hidden_RE @ head_VE.T)
        token_R, logp_R = sample_tokens(logits_RV, sampling, noise)
        tokens = token_R.tolist()
        for r, token, logp in zip(running, tokens, logp_R.tolist(), strict=True):
            if r >= 0:
                rows[r].tokens.append(token)
                rows[r].logps.append(logp)
                rows[r].finished = token in eos_ids
        if on_tokens is not None:
            on_tokens(tokens)
        running = [-1 if r < 0 or rows[r].finished else r for r in running]
        alive = [i for i, r in enumerate(running) if r >= 0]
        if not alive or step + 1 == sampling.max_tokens:
            return
        if len(alive) <= KEEP_SHARE * len(running):
            keep = torch.tensor(alive, device=token_R.device)
            layout.select(keep)
            guide.select(keep)
            token_R, running = token_R[keep], [running[i] for i in alive]
        hidden_RE = decode(policy, token_R, layout)
        guide.advance(token_R)


def prefill(policy: PreTrainedModel, prompts: Sequence[Sequence[int]], samples: int, max_tokens: int) -> tuple[DecodeLayout, Tensor]:
    """Run every prompt once; spread its keys and values over its rows. Returns the cache and the last hidden state ``[R, E]``."""
    packed = pack([Group(prompt, []) for prompt in prompts]).to(policy.device)
    layout = PackedLayout(packed, keep=True)
    last_E = hidden_states(policy.base_model, packed, layout)[packed.group_starts_K[1:] - 1]
    length_P = packed.group_starts_K.diff()
    slots = int(length_P.max())
    slot_T = torch.arange(slots, device=policy.device)
    index_PT = packed.group_starts_K[:-1, None] + torch.minimum(slot_T, length_P[:, None] - 1)
    assert layout.kept is not None
    keys, values = [], []
    for i in range(len(layout.kept)):
        for kept, cache in zip(layout.kept.pop(i), (keys, values), strict=True):
            spread = kept[:, index_PT].transpose(0, 1).repeat_interleave(samples, 0)
            cache.append(torch.cat([spread, spread.new_zeros(*spread.shape[:2], max_tokens, spread.shape[3])], dim=2))
    return DecodeLayout(keys, values, length_P.repeat_interleave(samples)), last_E.repeat_interleave(samples, 0)


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

    The inverse distribution function is read at one uniform number a row, in float64 so that no token loses its mass to rounding.
    """
    logits_RV = logits_RV.float()
    if sampling.temperature == 0:
        token_R = logits_RV.argmax(-1)
        return token_R, logits_RV.log_softmax(-1).gather(-1, token_R[:, None])[:, 0]
    logp_RV = (logits_RV / sampling.temperature).log_softmax(-1)
    mass_RV = truncate(logp_RV, sampling.top_k, sampling.top_p).exp().double()
    cumulative_RV = mass_RV.cumsum(-1)
    threshold_R = torch.rand(len(logits_RV), generator=noise, device=logits_RV.device, dtype=torch.float64) * cumulative_RV[:, -1]
    token_R = torch.searchsorted(cumulative_RV, threshold_R[:, None], right=True)[:, 0]
    # Rounding can put the threshold on the total itself; the last token that has any mass is meant then.
    last_R = (mass_RV > 0).long().cumsum(-1).argmax(-1)
    token_R = torch.minimum(token_R, last_R)
    return token_R, logp_RV.gather(-1, token_R[:, None])[:, 0]


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
