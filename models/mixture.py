"""Sampling from a geometric mixture of two policies.

Axes: ``R`` rows being generated, ``V`` vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from models.generation import Guide, decode, prefill
from models.logprobs import head_weight


class GeometricMixture(Guide):
    """Next-token probabilities proportional to pi^(1 - share) other^share, with pi the sampler's own policy.

    By hand, share 0.5: probabilities (0.8, 0.2) and (0.2, 0.8) mix to (0.5, 0.5). Share 0 is the policy, 1 the other one. At a sampling
    temperature both are tempered before they are mixed.

    Source: Munos et al. 2024, the mixture of Nash-MD, token by token as in its Nash-MD-PG.
    """

    def __init__(self, other: PreTrainedModel, share: float):
        self.other, self.share = other, share

    def begin(self, prompts: Sequence[Sequence[int]], samples: int, max_tokens: int) -> None:
        self.layout, self.hidden_RE = prefill(self.other, prompts, samples, max_tokens)

    def adjust(self, logits_RV: Tensor) -> Tensor:
        other_RV = self.hidden_RE @ head_weight(self.other).T
        # A weighted sum of logits is one of log-probabilities plus what is the same for all tokens.
        return torch.lerp(logits_RV.float(), other_RV.float(), self.share)

    def advance(self, token_R: Tensor) -> None:
        self.hidden_RE = decode(self.other, token_R, self.layout)

    def select(self, keep_R: Tensor) -> None:
        self.layout.select(keep_R)
