"""AdamW over float32 master weights, the learning-rate schedule, and gradient clipping."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.configs.optimisation import OptimConfig
from models.parallel import has_shards, local, total_norm
from models.training.pieces import Piece, own_rows, piece_of

WIDE = (torch.float32, torch.float64)


def rate_share(update: int, updates: int, config: OptimConfig) -> float:
    """Learning rate of an update as a share of the peak: linear warm-up, then the schedule. A pure function, so resume needs no state."""
    warmup = round(config.warmup_share * updates)
    if update < warmup:
        return (update + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    done = (update - warmup) / max(1, updates - warmup - 1)
    fall = done if config.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * done))
    return 1.0 - (1.0 - config.final_rate_share) * min(1.0, fall)


class Trainee:
    """A module that learns, with its optimiser.

    Half-precision weights get float32 master copies: the optimiser moves the masters, and the module reads them rounded. Gradients of
    micro-batches are added up in float32. Float32 weights are their own masters. Of a sharded module each rank has the masters, gradients
    and moments of its rows; AdamW moves every number by itself, so that only the norm is asked of all ranks.
    """

    def __init__(self, module: nn.Module, config: OptimConfig, metric_group: str = "train"):
        self.module, self.config, self.metric_group = module, config, metric_group
        self.named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.masters = {name: local(p) if p.dtype in WIDE else local(p).detach().float() for name, p in self.named.items()}
        decayed = [m for m in self.masters.values() if m.ndim >= 2]
        plain = [m for m in self.masters.values() if m.ndim < 2]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.adam = torch.optim.AdamW(
            [g for g in groups if g["params"]], config.learning_rate, (config.beta1, config.beta2), config.epsilon, fused=True
        )

    def accumulate(self) -> None:
        """Add the gradients of a micro-batch to the masters' and free them."""
        for name, p in self.named.items():
            master = self.masters[name]
            if master is p or p.grad is None:
                continue
            grad = local(p.grad)
            master.grad = grad.to(master.dtype) if master.grad is None else master.grad.add_(grad)
            p.grad = None

    def grad_norm(self) -> float:
        """Global norm of the accumulated gradients; not finite if any gradient is not."""
        grads = [m.grad for m in self.masters.values() if m.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
        return total_norm(norm) if has_shards(self.module) else norm

    def step(self, norm: float, share: float) -> None:
        """Clip to the configured norm, move the masters, round them into the module."""
        scale = self.config.max_grad_norm / (norm + 1e-6)
        for master in self.masters.values():
            if scale < 1 and master.grad is not None:
                master.grad.mul_(scale)
        for group in self.adam.param_groups:
            group["lr"] = self.config.learning_rate * share
        self.adam.step()
        self.discard()
        self._publish()

    def discard(self) -> None:
        """Forget the accumulated gradients."""
        self.adam.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _publish(self) -> None:
        for name, p in self.named.items():
            if self.masters[name].dtype != p.dtype:
                local(p).copy_(self.masters[name])

    def state(self) -> dict[str, Tensor | Piece]:
        """Masters and moments by name, for a checkpoint: of a sharded module this rank's pieces."""
        tensors: dict[str, Tensor | Piece] = {}
        for name, p in self.named.items():
            master = self.masters[name]
            tensors[f"master/{name}"] = piece_of(p, master.detach())
            moments = self.adam.state.get(master, {})
            tensors |= {f"{key}/{name}": piece_of(p, value) if value.ndim else value for key, value in moments.items()}
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put a checkpoint back, bit for bit, whatever the number of ranks that wrote it."""
        for name, p in self.named.items():
            m = self.masters[name]
            m.copy_(own_rows(p, tensors, f"master/{name}"))
            found = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}/{name}" in tensors]
            moments = {key: own_rows(p, tensors, f"{key}/{name}").to(m.device, copy=True) for key in found}
            if moments:
                self.adam.state[m] = moments
        self._publish()
