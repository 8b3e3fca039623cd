"""Guides of the sampler: a reward on prefixes shifts the policy's next-token distribution.

Axes: ``R`` rows being generated, ``A`` candidates for the next token of a row, ``V`` vocabulary, ``E`` hidden width.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.configs.guidance import SCORER_OF, GuidanceConfig
from models.generation import Guide, branch, decode, prefill
from models.heads import HeadModel, ScalarModel, TokenRewardModel, load_scalar, load_token_reward
from models.kv_cache import DecodeLayout


class RewardGuide(Guide):
    """pi(a^i | s, a^{<i}) proportional to pi_ref(a^i | s, a^{<i}) exp(w r(s, a^{1:i})) over the policy's most likely tokens.

    The reward model keeps keys and values of the rows, as the policy does, and runs each chosen token once.
    """

    def __init__(self, model: HeadModel, weight: float, top_k: int):
        self.model, self.weight, self.top_k = model, weight, top_k
        self.layout: DecodeLayout | None = None
        self.hidden_RE = torch.empty(0)

    @property
    def cache(self) -> DecodeLayout:
        """Of the wave that is being sampled."""
        assert self.layout is not None, "begin comes first"
        return self.layout

    def begin(self, prompts: Sequence[Sequence[int]], samples: int, max_tokens: int) -> None:
        self.layout, self.hidden_RE = prefill(self.model.backbone, prompts, samples, max_tokens)

    def adjust(self, logits_RV: Tensor) -> Tensor:
        wide = torch.promote_types(logits_RV.dtype, torch.float32)
        count = min(self.top_k or logits_RV.shape[-1], logits_RV.shape[-1])
        logp_RA, token_RA = logits_RV.to(wide).log_softmax(-1).topk(count, dim=-1)
        score_RA = self.model.normalised(self.scores(token_RA))
        guided_RV = torch.full_like(logits_RV, -torch.inf, dtype=wide)
        return guided_RV.scatter(-1, token_RA, logp_RA + self.weight * score_RA.to(wide))

    def scores(self, token_RA: Tensor) -> Tensor:
        """Raw score of each row continued by each candidate: ``[R, A]``."""
        raise AssertionError("a guide must score its candidates")

    def advance(self, token_R: Tensor) -> None:
        self.hidden_RE = decode(self.model.backbone, token_R, self.cache)

    def select(self, keep_R: Tensor) -> None:
        self.cache.select(keep_R)
        self.hidden_RE = self.hidden_RE[keep_R]


class PrefixGuide(RewardGuide):
    """Candidates scored by a model of one number a prefix, each candidate a token of a forward pass.

    With a reward model trained on full sequences this is ARGS (Khanov et al. 2024; the paper's stochastic form at temperature
    1, its greedy form at temperature 0); with one trained on prefixes PARGS (Rashid et al. 2024); with a value function of the policy's
    rollouts CD, token-wise (Mudgal et al. 2023).
    """

    model: ScalarModel

    def scores(self, token_RA: Tensor) -> Tensor:
        return self.model.read(branch(self.model.backbone, token_RA, self.cache))


class TokenGuide(RewardGuide):
    """Every next token scored by the one pass that the chosen token needs anyway: FaRMA (Rashid et al. 2025)."""

    model: TokenRewardModel

    def scores(self, token_RA: Tensor) -> Tensor:
        return self.model.every(self.hidden_RE).gather(-1, token_RA)


def load_guide(config: GuidanceConfig, reward: Path, scorer: Path | None, device: torch.device) -> Guide:
    """The guide of a mode that works token by token.

    Raises:
        ValueError: the mode needs a model of its own and there is none.
    """
    if config.mode == "none":
        return Guide()
    if config.mode in SCORER_OF and scorer is None:
        raise ValueError(f"guidance.mode {config.mode} needs the artifact of the stage {SCORER_OF[config.mode]} as its scorer")
    if config.mode == "farma":
        assert scorer is not None
        return TokenGuide(load_token_reward(scorer, device), config.weight, config.top_k)
    return PrefixGuide(load_scalar(scorer or reward, device), config.weight, config.top_k)
