"""Hidden states and log-probabilities of packed batches: the head is applied to scored tokens only.

Axes: ``N`` packed tokens, ``S`` scored tokens, ``C`` completions, ``V`` vocabulary, ``E`` hidden width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from data.packing import Group, Packed, pack, split_by_tokens
from models.attention import PackedLayout
from models.parallel import in_forward, spread
from models.vocabulary_head import head_logps

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
        ``logp_S`` and ``entropy_S`` in nats, both differentiable; where the entropy is only read, its gradient costs nothing.
    """

    def scored() -> tuple[Tensor, Tensor]:
        hidden_SE = hidden_states(policy.base_model, packed)[packed.source_S]
        return head_logps(hidden_SE, head_weight(policy), packed.target_S, temperature)

    return in_forward(policy, scored)


def head_weight(policy: PreTrainedModel) -> Tensor:
    """The language-model head: ``[V, E]``."""
    head = policy.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    return head.weight


@torch.no_grad()
def sequence_logps(policy: PreTrainedModel, groups: Sequence[Group], max_tokens: int) -> Tensor:
    """Summed log-probability of every completion, in their order: ``[C]``, nats."""

    def sums(part: list[Group]) -> Tensor:
        packed = pack(part).to(policy.device)
        return packed.sum_by_completion(token_logps(policy, packed)[0]).cpu()

    return torch.cat(spread(policy, split_by_tokens(groups, max_tokens), sums))
