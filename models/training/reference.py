"""A reference policy that moves: every so often it goes a share of the way to the policy that learns."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from models.parallel import local
from models.training.pieces import own_rows, piece_of


class MovingReference:
    """ref <- share * policy + (1 - share) * ref, every ``every`` steps; 0 = never. With share 1 it is a copy of the policy.

    The mixture is kept in float32, since small shares are lost to the rounding of half precision.
    By hand, share 0.25: a weight of 1 in the reference and 2 in the policy becomes 1.25.

    Source: Gorbatovski et al. 2024 (TR-DPO): its hard update at share 1, its soft one below.
    """

    def __init__(self, model: PreTrainedModel, policy: PreTrainedModel, every: int, share: float):
        self.model, self.policy, self.every, self.share = model, policy, every, share
        self.moved_at = 0
        self.weights = {n: local(p).detach().to(torch.promote_types(p.dtype, torch.float32)) for n, p in model.named_parameters()}

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Before step ``step``: move if it is time. A second call for the same step, after a resume, changes nothing."""
        if not self.every or step % self.every or step == self.moved_at:
            return
        self.moved_at = step
        learned = dict(self.policy.named_parameters())
        for name, weight in self.weights.items():
            weight.lerp_(local(learned[name]).to(weight.dtype), self.share)
        self._publish()

    def _publish(self) -> None:
        for name, p in self.model.named_parameters():
            if self.weights[name].data_ptr() != local(p).data_ptr():
                local(p).copy_(self.weights[name])

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Weights (of a sharded reference this rank's pieces) and the last move, for a checkpoint; one that never moves has none."""
        if not self.every:
            return {}, {}
        return {n: piece_of(p, self.weights[n]) for n, p in self.model.named_parameters()}, {"moved_at": self.moved_at}

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Put ``state`` back."""
        if not self.every:
            return
        self.moved_at = state["moved_at"]
        for name, p in self.model.named_parameters():
            self.weights[name].copy_(own_rows(p, tensors, name))
        self._publish()
