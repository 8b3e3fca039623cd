"""The one training loop. An algorithm brings its batches and its loss; everything that all of them share is here, once:

accumulation over micro-batches, clipping, the schedule, finite checks, checkpoints, exact resume, reports.

Several ranks run this loop in step, each on its share of the micro-batches. What decides (losses, norms, a wish to stop, the clock) is
agreed on by all of them, so that all skip, save and stop at the same update.
"""

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.configs.checkpointing import ResumeConfig
from models.losses.sums import Sums, merge
from models.parallel import first_rank_says, gather, merged_sums, own_share, ranks
from models.run import Run, Stopped
from models.training.checkpoint import drop_checkpoints, load_checkpoint, save_checkpoint
from models.training.optimiser import Trainee, rate_share
from models.training.pieces import Piece
from models.training.snapshots import Snapshots

MAX_SKIPPED_IN_A_ROW = 3


class Algorithm:
    """What a training method passes to ``fit``."""

    sampling_s: float | None = None  # seconds of this update in ``sampling``; None for methods that do not sample

    def batches(self, update: int) -> list[Any]:
        """The micro-batches of an update; may sample from the policy first. An empty list skips the update."""
        raise AssertionError("an algorithm must say its batches")

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Around every generation of completions, so that its share of the time is seen."""
        began = time.monotonic()
        yield
        self.sampling_s = (self.sampling_s or 0.0) + time.monotonic() - began

    def loss(self, batch: Any) -> tuple[Tensor, Sums]:
        """The loss of a micro-batch, already divided by the denominator of the whole update, and its metrics."""
        raise AssertionError("an algorithm must say its loss")

    def tokens(self, batch: Any) -> int:
        """Real tokens of a micro-batch, for the rate that is shown."""
        return len(batch.packed.input_ids_N)

    def extra_metrics(self, update: int) -> dict[str, float]:
        """Metrics of the update that are not sums over micro-batches."""
        return {}

    def state(self) -> tuple[Mapping[str, Tensor | Piece], dict[str, Any]]:
        """What has to survive a kill beyond weights and optimiser: rollout buffers, controllers, baselines."""
        return {}, {}

    def load_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Put ``state`` back."""


@dataclass
class Loop:
    """Where a training loop stands."""

    update: int = 0
    skipped_in_a_row: int = 0
    skipped: int = 0


def fit(run: Run, algorithm: Algorithm, trainees: dict[str, Trainee], updates: int, checkpointing: ResumeConfig) -> Loop:
    """Run ``updates`` optimiser updates, resuming from the newest checkpoint of this stage key; the snapshots asked for are in ``run.out``.

    Raises:
        ValueError: three updates in a row had a loss or gradient that is not finite.
        Stopped: SIGTERM came; a checkpoint was written first.
    """
    snapshots = Snapshots.of(run, trainees, updates, checkpointing)
    loop = _resume(run, algorithm, trainees, snapshots)
    run.stop_if_asked()  # and from here on SIGTERM waits for the end of an update
    saved_at = time.monotonic()
    spent: Counter[str] = Counter()  # seconds of this attempt, by what they went to
    while loop.update < updates:
        try:
            metrics = update_once(run, algorithm, trainees, loop, updates)
        except Stopped:
            _save(run, algorithm, trainees, loop)
            raise
        loop.update += 1
        run.report(metrics, loop.update)
        run.progress(loop.update, updates, **_rates(metrics, spent))
        snapshots.keep(loop.update)  # before the checkpoint, which counts on it
        due = checkpointing.every_s and time.monotonic() - saved_at > checkpointing.every_s
        due = due or (checkpointing.every_updates and loop.update % checkpointing.every_updates == 0)
        stopping, due = _any_rank(run.stopping, bool(due))
        if stopping or (due and loop.update < updates):
            _save(run, algorithm, trainees, loop)
            saved_at = time.monotonic()
        if stopping:
            raise Stopped
    snapshots.hand_over()
    return loop


def _any_rank(*flags: bool) -> list[bool]:
    """Each flag as all ranks see it: up if it is up on any of them, so that all do the same."""
    return [any(column) for column in zip(*gather(flags), strict=True)]


def _rates(metrics: dict[str, float], spent: Counter[str]) -> dict[str, float]:
    """What is shown of an update: its times, and of a method that samples how all the time until now was shared."""
    times = {name.removeprefix("time/"): value for name, value in metrics.items() if name.startswith("time/")}
    if "generate_s" not in times:
        return times
    spent.update({name: times[f"{name}_s"] for name in ("generate", "score", "train")})
    shares = {f"{name}_share": seconds / max(spent.total(), 1e-9) for name, seconds in spent.items()}
    return {name: times[name] for name in ("tokens_per_s", "step_s")} | shares


def update_once(run: Run, algorithm: Algorithm, trainees: dict[str, Trainee], loop: Loop, updates: int) -> dict[str, float]:
    """Update ``loop.update`` of ``updates``, without counting or reporting it; its metrics."""
    began = time.monotonic()
    if algorithm.sampling_s is not None:
        algorithm.sampling_s = 0.0
    batches = algorithm.batches(loop.update)
    prepared = time.monotonic()
    parts: list[Sums] = []
    for batch, counts in own_share(batches):
        loss, sums = algorithm.loss(batch)
        (loss if counts else 0 * loss).backward()
        parts += [sums] if counts else []
        for trainee in trainees.values():
            trainee.accumulate()
    run.failpoint("step")
    norms = {name: trainee.grad_norm() for name, trainee in trainees.items()}
    metrics = merge(merged_sums(parts))
    healthy = bool(batches) and all(math.isfinite(x) for x in (*norms.values(), metrics.get("train/loss", 0.0)))
    shares = _apply(trainees, norms, loop, updates) if healthy else _skip(run, trainees, loop, metrics, norms, bool(batches))
    for name, trainee in trainees.items():
        if math.isfinite(norms[name]):
            metrics[f"{trainee.metric_group}/grad_norm"] = norms[name]
        metrics[f"{trainee.metric_group}/learning_rate"] = trainee.config.learning_rate * shares.get(name, 0.0)
    metrics["train/skipped_updates"] = loop.skipped
    metrics |= algorithm.extra_metrics(loop.update)
    seconds = time.monotonic() - began
    timing = {
        "time/step_s": seconds,
        "time/prepare_s": prepared - began,
        "time/tokens_per_s": sum(map(algorithm.tokens, batches)) / seconds,
    }
    if algorithm.sampling_s is not None:
        timing["time/generate_s"] = algorithm.sampling_s
        timing["time/score_s"] = prepared - began - algorithm.sampling_s
        timing["time/train_s"] = seconds - (prepared - began)
    return {name: value for name, value in metrics.items() if math.isfinite(value)} | timing


def _apply(trainees: dict[str, Trainee], norms: dict[str, float], loop: Loop, updates: int) -> dict[str, float]:
    shares = {name: rate_share(loop.update, updates, trainee.config) for name, trainee in trainees.items()}
    for name, trainee in trainees.items():
        trainee.step(norms[name], shares[name])
    loop.skipped_in_a_row = 0
    return shares


def _skip(
    run: Run, trainees: dict[str, Trainee], loop: Loop, metrics: dict[str, float], norms: dict[str, float], had_batches: bool
) -> dict[str, float]:
    for trainee in trainees.values():
        trainee.discard()
    if not had_batches:
        return {}
    loop.skipped += 1
    loop.skipped_in_a_row += 1
    seen = {
        name: value for name, value in {**metrics, **{f"{n}/grad_norm": v for n, v in norms.items()}}.items() if not math.isfinite(value)
    }
    run.log(f"update {loop.update + 1} is skipped, the weights are untouched: not finite: {seen}")
    if loop.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        raise ValueError(
            f"{MAX_SKIPPED_IN_A_ROW} updates in a row were not finite, the last is update {loop.update + 1} ({seen}): "
            "lower optim.learning_rate, or use dtype float32 for the base model"
        )
    return {}


def _save(run: Run, algorithm: Algorithm, trainees: dict[str, Trainee], loop: Loop) -> None:
    extra, state = algorithm.state()
    tensors: dict[str, Tensor | Piece] = {f"algorithm/{name}": t for name, t in extra.items()}
    for name, trainee in trainees.items():
        tensors |= {f"{name}/{key}": t for key, t in trainee.state().items()}
    tensors["torch_rng"] = torch.get_rng_state()
    save_checkpoint(run, loop.update, tensors, {"loop": vars(loop), "algorithm": state})


def _resume(run: Run, algorithm: Algorithm, trainees: dict[str, Trainee], snapshots: Snapshots) -> Loop:
    found = load_checkpoint(run)
    if found is None:
        return Loop()
    step, tensors, state = found
    for problem in first_rank_says(lambda: snapshots.lost(step)):
        run.log(f"{problem}; starting again from the first update")
        drop_checkpoints(run)
        return Loop()
    run.rewind(step)
    for name, trainee in trainees.items():
        trainee.load_state(tensors.under(f"{name}/"))
    torch.set_rng_state(tensors["torch_rng"])
    algorithm.load_state(dict(tensors.under("algorithm/")), state["algorithm"])
    run.log(f"resumed after update {step}" + _resharding(tensors.written_by))
    return Loop(**state["loop"])


def _resharding(written_by: int) -> str:
    return "" if written_by == ranks() else f", which {written_by} ranks had saved and {ranks()} go on from: equal up to rounding"
