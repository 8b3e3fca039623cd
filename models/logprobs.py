"""Hidden states and log-probabilities of packed batches: the head is applied to scored tokens only, in chunks.

Axes: ``N`` packed tokens, ``S`` scored tokens, ``C`` completions, ``V`` vocabulary, ``E`` hidden width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from data.packing import Group, Packed, pack, split_by_tokens
from models.attention import PackedLayout

HEAD_CHUNK_TOKENS = 256  # logits of this many tokens exist at once: 256 x 49,152 x 4 bytes = 48 MiB

NO_MASK = torch.ones(1, 1, 1, 1, dtype=torch.bool)  # a ready 4-D mask: transformers builds none of its own


def hidden_states(backbone: nn.Module, packed: Packed, layout: PackedLayout | None = None) -> Tensor:
    """Last hidden states ``[N, E]`` of a transformers decoder without its head."""
    output = backbone(
        input_ids=packed.input_ids_N[None],
        position_ids=packed.position_N[None],
        attention_mask=NO_MASK.to(packed.input_ids_N.device),
        layout=layout or PackedLayout(packed),
        use_cache=False,
    )
    return output.last_hidden_state[0]


def token_logps(policy: PreTrainedModel, packed: Packed, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of every scored token.

    logp_S = z[target] - logsumexp(z), entropy_S = logsumexp(z) - sum softmax(z) z, with z = logits / temperature, in float32.

    Args:
        policy: a transformers causal language model loaded by ``models.loading``.
        packed: the batch.
        temperature: divides the logits, as in sampling.

    Returns:
        ``logp_S`` in nats, differentiable, and ``entropy_S`` in nats, not differentiable unless it is asked for by autograd.
    """
    hidden_SE = hidden_states(policy.base_model, packed)[packed.source_S]
    return head_logps(hidden_SE, head_weight(policy), packed.target_S, temperature)


def head_weight(policy: PreTrainedModel) -> Tensor:
    """The language-model head: ``[V, E]``."""
    head = policy.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    return head.weight


def head_logps(hidden_SE: Tensor, head_VE: Tensor, target_S: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """``token_logps`` from hidden states: chunk by chunk, the logits recomputed in the backward pass instead of kept."""
    logps, entropies = [], []
    for hidden, target in zip(hidden_SE.split(HEAD_CHUNK_TOKENS), target_S.split(HEAD_CHUNK_TOKENS), strict=True):
        if torch.is_grad_enabled():
            logp, entropy = checkpoint(_chunk_logps, hidden, head_VE, target, temperature, use_reentrant=False, preserve_rng_state=False)
        else:
            logp, entropy = _chunk_logps(hidden, head_VE, target, temperature)
        logps.append(logp)
        entropies.append(entropy)
    if not logps:
        return hidden_SE.new_zeros(0, dtype=torch.float32), hidden_SE.new_zeros(0, dtype=torch.float32)
    return torch.cat(logps), torch.cat(entropies)


def _chunk_logps(hidden_SE: Tensor, head_VE: Tensor, target_S: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    # float64 stays float64 (gradient checks); every narrower type is raised to float32 before the softmax.
    logits_SV = hidden_SE @ head_VE.T
    logits_SV = logits_SV.to(torch.promote_types(logits_SV.dtype, torch.float32)) / temperature
    logp_SV = logits_SV.log_softmax(-1)
    logp_S = logp_SV.gather(-1, target_S[:, None])[:, 0]
    return logp_S, -(logp_SV.exp() * logp_SV).sum(-1)


@torch.no_grad()
def sequence_logps(policy: PreTrainedModel, groups: Sequence[Group], max_tokens: int) -> Tensor:
    """Summed log-probability of every completion, in their order: ``[C]``, nats."""
    parts = []
    for part in split_by_tokens(groups, max_tokens):
        packed = pack(part).to(policy.device)
        logp_S, _ = token_logps(policy, packed)
        parts.append(packed.sum_by_completion(logp_S).cpu())
    return torch.cat(parts)
