"""Ranks that train one model together: who they are, what they tell each other, and how a model is sharded over them.

Weights, gradients and optimiser states are cut by rows (dimension 0) into as many shards as there are ranks (FSDP2). A layer is whole only
while it computes. Without torchrun there is one rank, and every function here hands back what it was given.

What ranks say to each other beside tensors is JSON: the library's calls for objects would pickle them.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from data.packing import Group, split_by_tokens
from models.losses.sums import Sums

R = TypeVar("R")


def ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 reports and writes."""
    return dist.get_rank() if ranks() > 1 else 0


# What they tell each other


def gather(value: Any) -> list[Any]:
    """Every rank's value, which is JSON, in the order of the ranks."""
    if ranks() == 1:
        return [value]
    said = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.long) for _ in range(ranks())]
    dist.all_gather(lengths, torch.tensor([len(said)]))
    padded = torch.zeros(int(max(lengths)), dtype=torch.uint8)
    padded[: len(said)] = said
    heard = [torch.zeros_like(padded) for _ in lengths]
    dist.all_gather(heard, padded)
    return [json.loads(text[: int(length)].numpy().tobytes()) for text, length in zip(heard, lengths, strict=True)]


def first_rank_says(value: Callable[[], R]) -> R:
    """What rank 0 finds, which is JSON; the others wait for it and look at nothing themselves."""
    return value() if ranks() == 1 else gather(value() if rank() == 0 else None)[0]


def barrier() -> None:
    """Go on when all ranks are here."""
    gather(None)


# Who does what


def micro_batches(groups: Sequence[Group], max_tokens: int) -> list[list[Group]]:
    """The groups of an update, in order, cut into lists of at most ``max_tokens`` tokens; a longer group stands alone.

    For several ranks the lists are as even as the order allows, and no more rounds of them than it takes.
    """
    if ranks() == 1:
        return list(split_by_tokens(groups, max_tokens))
    total = sum(group.n_tokens for group in groups)
    rounds = max(1, -(-total // (max_tokens * ranks())))
    while True:
        limit = _even_limit(groups, rounds * ranks())
        if limit <= max_tokens or rounds * ranks() >= len(groups):
            return list(split_by_tokens(groups, min(limit, max_tokens)))
        rounds += 1


def _even_limit(groups: Sequence[Group], most: int) -> int:
    """The fewest tokens a list that give at most so many lists."""
    low, high = 1, sum(group.n_tokens for group in groups)
    while low < high:
        middle = (low + high) // 2
        fits = sum(1 for _ in split_by_tokens(groups, middle)) <= most
        low, high = (low, middle) if fits else (middle + 1, high)
    return low


def own_share(parts: Sequence[R]) -> list[tuple[R, bool]]:
    """This rank's parts, as many as any other's, since layers are gathered in step: one that it has only for that is marked False."""
    if ranks() == 1:
        return [(part, True) for part in parts]
    rounds = range(0, len(parts), ranks())
    return [(parts[begin + rank()], True) if begin + rank() < len(parts) else (parts[0], False) for begin in rounds]


def spread(model: Any, parts: Iterable[R], value_of: Callable[[R], Tensor]) -> list[Tensor]:
    """``value_of`` every part, in their order; of a sharded model each rank computes its share, and all get all, in float32."""
    if not is_sharded(model):
        return [value_of(part) for part in parts]
    wanted = list(parts)
    by_rank = gather([value_of(part).float().tolist() for part, _ in own_share(wanted)])
    return [torch.tensor(by_rank[i % ranks()][i // ranks()]) for i in range(len(wanted))]


def merged_sums(parts: list[Sums]) -> list[Sums]:
    """The sums of all ranks' micro-batches."""
    if ranks() == 1:
        return parts
    own = [{name: (float(total), float(count)) for name, (total, count) in part.items()} for part in parts]
    return [{name: (torch.tensor(t, dtype=torch.float64), n) for name, (t, n) in part.items()} for said in gather(own) for part in said]


# Shards


def shard(model: nn.Module, device: torch.device) -> None:
    """Cut a model over the ranks, layer by layer onto the device, so that it never is there whole; nothing for one rank.

    Gradients are summed over the ranks, not averaged: a loss is divided by the denominator of the whole update already.
    """
    if ranks() == 1:
        return
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh, policy = _mesh(device.type), MixedPrecisionPolicy(reduce_dtype=torch.float32)
    backbone = getattr(model, "backbone", None)
    for module in (*_layers(model), *([backbone] if backbone is not None else []), model):
        fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    model.forward = MethodType(_part_of_forward, model)


def _layers(model: nn.Module) -> nn.ModuleList:
    """The decoder's layers: its longest list of modules."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of layers to shard: train it with parallel.ranks 1")
    return max(lists, key=len)


@lru_cache(maxsize=1)
def _mesh(device_type: str) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device_type, (ranks(),))


def loading_device(device: torch.device | str) -> torch.device | str:
    """Where a model is loaded that will be sharded: one device may not hold it whole."""
    return device if ranks() == 1 else "cpu"


def is_sharded(model: Any) -> bool:
    """True after ``shard`` with several ranks."""
    return getattr(getattr(model, "forward", None), "__func__", None) is _part_of_forward


def has_shards(model: nn.Module) -> bool:
    """True for a sharded model and for its parts."""
    return ranks() > 1 and any(_is_distributed(p) for p in model.parameters())


def _part_of_forward(model: nn.Module, part: Callable[[], Any]) -> Any:
    return part()


def in_forward(model: Any, function: Callable[..., R], *args: Any) -> R:
    """``function(*args)``, within which a sharded model's own weights (embedding, norm, head) are whole, as its layers are in theirs."""
    return model(lambda: _without_views(function(*args))) if is_sharded(model) else function(*args)


def _without_views(output: Any) -> Any:
    """The hook that gathers weights for the backward pass sits on the output: of a view, a change in place would lose it."""
    if isinstance(output, tuple):
        return tuple(_without_views(item) for item in output)
    return output.clone() if isinstance(output, Tensor) and output._is_view() else output


def local(p: Any) -> Tensor:
    """This rank's rows of a parameter or gradient, the same memory; all of it where it is not sharded."""
    return p.detach().to_local() if _is_distributed(p) else p


def rows_of(p: Tensor) -> tuple[int, int] | None:
    """The rows, from and to, of a parameter that this rank holds; None where it holds all.

    By hand, 5 rows on 3 ranks: 0 to 2, 2 to 4, 4 to 5. 1 row on 2 ranks: 0 to 1, 1 to 1.
    """
    if not _is_distributed(p):
        return None
    chunk = -(-len(p) // ranks())
    return min(rank() * chunk, len(p)), min((rank() + 1) * chunk, len(p))


def _is_distributed(p: Tensor) -> bool:
    return ranks() > 1 and hasattr(p, "to_local")


def total_norm(norm: float) -> float:
    """The norm of all ranks' shards, from this rank's: the root of the sum of squares."""
    return math.hypot(*gather(norm)) if ranks() > 1 else norm


@torch.no_grad()
def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """All weights of a sharded model in the first rank's memory, tensor by tensor; the other ranks help and get nothing."""
    found = {}
    for name, p in model.named_parameters():
        whole = _whole(p)
        if rank() == 0:
            found[name] = whole.detach().cpu()
    return found


def _whole(p: Any) -> Tensor:
    return p.full_tensor() if _is_distributed(p) else p


def plain_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    """The class of a model before it was sharded."""
    from torch.distributed.fsdp import FSDPModule

    return next(kind for kind in type(model).__mro__ if issubclass(kind, PreTrainedModel) and not issubclass(kind, FSDPModule))
