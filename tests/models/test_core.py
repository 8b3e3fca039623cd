"""The one loop: what is not finite never reaches the weights, what is saved is all there is, SIGTERM is obeyed at the next step."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.configs.checkpointing import CheckpointConfig
from models.configs.grpo import GRPOConfig
from models.configs.nash_md import NashMDConfig
from models.configs.online_rejection_sampling import OnlineRejectionSamplingConfig
from models.configs.optimisation import OptimConfig
from models.configs.sampling import SamplingConfig
from models.generation import generate
from models.losses.sums import Sums, mean_of
from models.run import Run, Stopped, read_journal
from models.training import core, grpo, nash_md, online_rejection_sampling, rollout
from models.training.core import Algorithm, Loop, fit
from models.training.optimiser import Trainee

OPTIM = OptimConfig(learning_rate=0.1, schedule="linear", warmup_share=0.0, final_rate_share=0.5)
NEVER = CheckpointConfig(every_s=0)
ALWAYS = CheckpointConfig(every_s=0, every_updates=1)
Journal = Callable[[Run], list[tuple[int, dict[str, float]]]]


class Toy(Algorithm):
    """Regression on noise that the default generator makes, with a running mean beside the weights; can fail or stop where it is told."""

    def __init__(self, bad: dict[int, Any] | None = None, stop_in: int = 0) -> None:
        torch.manual_seed(0)
        self.module = nn.Linear(3, 1)
        self.bad, self.stop_in, self.mean, self.calls = bad or {}, stop_in, torch.zeros(()), 0
        self.update = -1

    def trainees(self) -> dict[str, Trainee]:
        return {"policy": Trainee(self.module, OPTIM)}

    def batches(self, update: int) -> list[Tensor]:
        self.update = update
        if self.stop_in and update == self.stop_in:
            raise Stopped
        return [] if self.bad.get(update) == "empty" else list(torch.randn(2, 4, 3))

    def loss(self, batch: Tensor) -> tuple[Tensor, Sums]:
        error = (self.module(batch)[:, 0] - batch.sum(-1) - self.mean) ** 2
        trouble = self.bad.get(self.update)
        loss = error.sum() / 8
        self.mean = 0.9 * self.mean + 0.1 * error.mean().detach()
        self.calls += 1
        if trouble == "gradient":
            loss = loss + (self.module.weight * 0).sum().sqrt()  # finite, with an infinite slope
        elif isinstance(trouble, float):
            loss = loss * trouble
        return loss, {"train/loss": mean_of(loss.detach() * 4), "toy/mean": mean_of(self.mean)}

    def tokens(self, batch: Tensor) -> int:
        return len(batch)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"mean": self.mean}, {"calls": self.calls}

    def load_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.mean, self.calls = tensors["mean"], state["calls"]


def weights(toy: Toy) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in toy.module.parameters()]


def fitted(run: Run, toy: Toy, updates: int, checkpointing: CheckpointConfig = NEVER) -> Loop:
    return fit(run, toy, toy.trainees(), updates, checkpointing)


# What is not finite


@pytest.mark.parametrize("trouble", [float("nan"), float("inf"), "gradient"])
def test_an_update_that_is_not_finite_leaves_the_weights_bit_for_bit(new_run: Callable[..., Run], journal: Journal, capsys, trouble: Any):
    before = Toy()
    fitted(new_run("short"), before, 1)
    toy, run = Toy(bad={1: trouble}), new_run("skip")
    trainees = toy.trainees()
    moments = {}
    step = trainees["policy"].step
    trainees["policy"].step = lambda *a: (step(*a), moments.update({k: v.clone() for k, v in trainees["policy"].state().items()}))  # type: ignore[method-assign]
    # One update of a run of two: the rate of the first is the peak in both.
    loop = fit(run, toy, trainees, 2, NEVER)
    assert weights(toy) == weights(before)
    assert all(torch.equal(value, moments[name]) for name, value in trainees["policy"].state().items()), "nor do the moments move"
    assert (loop.update, loop.skipped, loop.skipped_in_a_row) == (2, 1, 1)
    assert "update 2 is skipped, the weights are untouched" in capsys.readouterr().out
    (_, first), (_, second) = journal(run)
    assert (first["train/skipped_updates"], second["train/skipped_updates"]) == (0, 1)
    assert second["train/learning_rate"] == 0 and "train/loss" in first
    assert all(value == value and abs(value) != float("inf") for value in second.values())


def test_three_in_a_row_stop_the_stage_and_say_what_to_do(run: Run):
    toy = Toy(bad=dict.fromkeys(range(3), float("nan")))
    said = r"3 updates in a row were not finite, the last is update 3 .*train/loss.*lower optim\.learning_rate"
    with pytest.raises(ValueError, match=said):
        fitted(run, toy, 9)
    assert weights(toy) == weights(Toy())


def test_two_in_a_row_and_two_more_do_not(run: Run):
    toy = Toy(bad=dict.fromkeys((0, 1, 3, 4), float("nan")))
    loop = fitted(run, toy, 6)
    assert (loop.skipped, loop.skipped_in_a_row) == (4, 0)
    assert weights(toy) != weights(Toy())


def test_a_bad_micro_batch_takes_the_good_ones_of_its_update_with_it(run: Run):
    class OneBad(Toy):
        def loss(self, batch: Tensor) -> tuple[Tensor, Sums]:
            loss, sums = super().loss(batch)
            return (loss * float("nan"), sums) if self.update == 0 and self.calls == 1 else (loss, sums)

    toy = OneBad()
    fitted(run, toy, 1)
    assert weights(toy) == weights(Toy())


def test_an_update_without_batches_is_no_fault(run: Run):
    toy = Toy(bad=dict.fromkeys(range(4), "empty"))
    loop = fitted(run, toy, 4)
    assert (loop.update, loop.skipped) == (4, 0) and weights(toy) == weights(Toy())


# Reports


def test_every_update_is_reported_with_means_over_its_micro_batches(run: Run, journal: Journal):
    toy = Toy()
    losses: list[float] = []
    original = toy.loss
    toy.loss = lambda batch: (losses.append(float((found := original(batch))[1]["train/loss"][0])), found)[1]  # type: ignore[method-assign]
    fitted(run, toy, 3)
    lines = journal(run)
    assert [step for step, _ in lines] == [1, 2, 3]
    assert [metrics["train/loss"] for _, metrics in lines] == pytest.approx([sum(losses[i : i + 2]) / 2 for i in (0, 2, 4)])
    assert [metrics["train/learning_rate"] for _, metrics in lines] == pytest.approx([0.1, 0.075, 0.05])
    assert all(metrics["train/grad_norm"] > 0 for _, metrics in lines)


def test_each_trainee_reports_its_own_rate_and_norm(run: Run, journal: Journal):
    """A critic has a schedule of its own."""
    toy = Toy()
    constant = OPTIM.model_copy(update={"schedule": "constant", "learning_rate": 0.3})
    trainees = {"policy": Trainee(toy.module, OPTIM), "value": Trainee(nn.Linear(1, 1), constant, "ppo")}
    fit(run, toy, trainees, 3, NEVER)
    lines = [metrics for _, metrics in journal(run)]
    assert [m["train/learning_rate"] for m in lines] == pytest.approx([0.1, 0.075, 0.05])
    assert [m["ppo/learning_rate"] for m in lines] == pytest.approx([0.3, 0.3, 0.3])
    assert all(m["ppo/grad_norm"] == 0 < m["train/grad_norm"] for m in lines)


# Resume


@pytest.mark.parametrize("stop_in", [1, 3])
def test_a_stop_while_batches_are_made_saves_and_resumes_to_the_same_bits(new_run: Callable[..., Run], journal: Journal, stop_in: int):
    """SIGTERM in the middle of a rollout: what it had drawn of the generator is drawn again."""
    whole, first, second = new_run("whole"), new_run("cut"), new_run("cut")
    wanted = Toy()
    fitted(whole, wanted, 5)
    with pytest.raises(Stopped):
        fitted(first, Toy(stop_in=stop_in), 5)
    first.close()
    resumed = Toy()
    loop = fitted(second, resumed, 5)
    assert second.resumed_step == stop_in
    assert (weights(resumed), float(resumed.mean), resumed.calls) == (weights(wanted), float(wanted.mean), wanted.calls)
    assert journal(second) == journal(whole)
    assert loop.update == 5


def test_a_stop_after_the_last_update_resumes_to_the_end(new_run: Callable[..., Run]):
    run = new_run()
    report = run.report
    run.report = lambda metrics, step: (report(metrics, step), setattr(run, "_asked_to_stop", step == 2))  # type: ignore[method-assign]
    toy = Toy()
    with pytest.raises(Stopped):
        fitted(run, toy, 2)
    resumed, second = Toy(), new_run()
    fitted(second, resumed, 2)
    assert second.resumed_step == 2, "it was saved"
    assert (weights(resumed), resumed.calls) == (weights(toy), toy.calls)


def test_skips_are_counted_over_a_resume(new_run: Callable[..., Run]):
    """Two bad updates before a kill and one after it are three in a row."""
    bad = dict.fromkeys((1, 2, 3), float("nan"))
    with pytest.raises(Stopped):
        fitted(new_run(), Toy(bad=bad, stop_in=3), 9)
    with pytest.raises(ValueError, match="the last is update 4"):
        fitted(new_run(), Toy(bad=bad), 9)


def test_metrics_after_the_checkpoint_are_forgotten(new_run: Callable[..., Run], journal: Journal):
    """A kill between two saves: the updates since the last one happen again, and are reported once."""
    first = new_run()
    toy = Toy(bad={4: "raise"})
    original = toy.batches
    toy.batches = lambda update: 1 / 0 if update == 4 else original(update)  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        fitted(first, toy, 6, CheckpointConfig(every_s=0, every_updates=3))
    assert [step for step, _ in journal(first)] == [1, 2, 3, 4]
    second = new_run()
    fitted(second, Toy(), 6)
    assert [step for step, _ in journal(second)] == [1, 2, 3, 4, 5, 6]


def test_checkpoints_come_by_count_and_by_time(new_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch):
    def saved(config: CheckpointConfig) -> list[int]:
        steps: list[int] = []
        monkeypatch.setattr("models.training.core.save_checkpoint", lambda run, step, *_: steps.append(step))
        fitted(new_run(str(config)), Toy(), 5, config)
        return steps

    assert saved(NEVER) == []
    assert saved(CheckpointConfig(every_s=0, every_updates=2)) == [2, 4]
    assert saved(ALWAYS) == [1, 2, 3, 4], "not after the last update: the result itself is written then"
    assert saved(CheckpointConfig(every_s=1e-9)) == [1, 2, 3, 4]


# Where the time goes


class Clock:
    """Stands in for the module time: what is awaited takes as long as it says, and nothing else takes any."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Sampler(Toy):
    """Rounds of two updates: 6 s of sampling and 2 s of scoring before the first of them, and 1 s a micro-batch."""

    sampling_s = 0.0

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def batches(self, update: int) -> list[Tensor]:
        if update % 2 == 0:
            for _ in range(2):
                with self.sampling():
                    self.clock.now += 3.0
            self.clock.now += 2.0
        return super().batches(update)

    def loss(self, batch: Tensor) -> tuple[Tensor, Sums]:
        self.clock.now += 1.0
        return super().loss(batch)


def test_time_is_shared_between_generate_score_and_train_by_hand(run: Run, monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    monkeypatch.setattr(core, "time", clock)
    shown: list[dict[str, float]] = []
    monkeypatch.setattr(run, "progress", lambda done, total, **rates: shown.append(rates))
    fitted(run, Sampler(clock), 3)
    run.close()
    metrics = [entry["metrics"] for entry in read_journal(run.checkpoints / "journal.jsonl")]
    assert [[m[f"time/{name}_s"] for name in ("generate", "score", "train", "prepare", "step")] for m in metrics] == [
        [6, 2, 2, 8, 10],
        [0, 0, 2, 0, 2],
        [6, 2, 2, 8, 10],
    ]
    assert [m["time/tokens_per_s"] for m in metrics] == [0.8, 4.0, 0.8]
    shares = [[rates[f"{name}_share"] for name in ("generate", "score", "train")] for rates in shown]
    assert shares == [pytest.approx([0.6, 0.2, 0.2]), pytest.approx([6 / 12, 2 / 12, 4 / 12]), pytest.approx([12 / 22, 4 / 22, 6 / 22])]
    assert [rates["tokens_per_s"] for rates in shown] == [0.8, 4.0, 0.8]


def test_a_method_that_does_not_sample_reports_no_shares(run: Run, monkeypatch: pytest.MonkeyPatch):
    shown: list[dict[str, float]] = []
    monkeypatch.setattr(run, "progress", lambda done, total, **rates: shown.append(rates))
    fitted(run, Toy(), 1)
    assert sorted(shown[0]) == ["prepare_s", "step_s", "tokens_per_s"]


ROUND = {"samples_per_prompt": 2, "sampling": SamplingConfig(max_tokens=2), "optim": OPTIM}
SAMPLING_METHODS: list[tuple[Any, Any]] = [
    (rollout, GRPOConfig(reward="verifier", iterations=2, prompts_per_iteration=1, **ROUND)),
    (nash_md, NashMDConfig(reward="verifier", iterations=2, prompts_per_iteration=1, **ROUND)),
    (online_rejection_sampling, OnlineRejectionSamplingConfig(reward="verifier", rounds=2, prompts_per_round=1, **ROUND)),
]


@pytest.mark.parametrize(("module", "config"), SAMPLING_METHODS, ids=["grpo", "nash_md", "online_rejection_sampling"])
def test_every_generation_of_a_loop_is_counted(module: Any, config: Any, bandit: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    took = 0.0

    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal took
        began = time.monotonic()
        found = generate(*args, **kwargs)
        took += time.monotonic() - began
        return found

    for place in {module, rollout}:
        monkeypatch.setattr(place, "generate", timed)
    train = grpo.train if module is rollout else module.train
    train(config, policy=bandit, data=bandit, seed=0, run=run)
    run.close()
    metrics = [entry["metrics"] for entry in read_journal(run.checkpoints / "journal.jsonl")]
    assert took > 0 and sum(m["time/generate_s"] for m in metrics) >= took
    for m in metrics:
        assert m["time/generate_s"] + m["time/score_s"] + m["time/train_s"] == pytest.approx(m["time/step_s"])
