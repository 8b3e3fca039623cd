"""What a run needs is known before it starts."""

from types import SimpleNamespace

import pytest

from flows.cli import plan
from flows.cli.plan import need_of, require_room
from models.configs.base_model import BaseModelConfig
from models.configs.checkpointing import CheckpointConfig
from models.configs.ppo import PPOConfig
from models.configs.sft import SFTConfig
from models.memory import shape_for
from tasks.plan import PlanEntry

BASE = BaseModelConfig(kind="packaged", dtype="float32")


@pytest.fixture(autouse=True)
def _without_gpu(home, monkeypatch):
    monkeypatch.setattr(plan, "visible_gpus", list)


def entries(ppo_outcome="miss"):
    return [
        PlanEntry("base_model", "base_model", "miss", None, "", BASE, {}),
        PlanEntry("sft", "sft", "miss", None, "", SFTConfig(), {}),
        PlanEntry("ppo", "ppo", ppo_outcome, None, "", PPOConfig(), {}),
    ]


def test_the_largest_stage_is_named_with_what_it_needs(monkeypatch):
    need = need_of(entries())
    assert need.memory["ppo"].total > need.memory["sft"].total > 2 * 2**30
    assert "base_model" not in need.memory
    monkeypatch.setattr(plan, "available_bytes", lambda: need.memory["ppo"].total)
    require_room(need)
    monkeypatch.setattr(plan, "available_bytes", lambda: need.memory["ppo"].total - 1)
    with pytest.raises(ValueError, match=r"ppo needs about .* GiB of memory \(weights .* GiB are free: lower its micro_batch_tokens"):
        require_room(need)


def test_what_was_computed_before_needs_nothing():
    assert "ppo" not in need_of(entries("hit")).memory
    assert need_of(entries("hit")).disk_bytes < need_of(entries()).disk_bytes
    assert need_of([]).disk_bytes == 0


def test_snapshots_take_the_disk_of_a_policy_each():
    kept = PlanEntry("sft", "sft", "miss", None, "", SFTConfig(checkpoint=CheckpointConfig(snapshots=3)), {})
    before, after = need_of(entries()), need_of([entries()[0], kept, entries()[2]])
    shape = shape_for(BASE)
    assert shape is not None and after.disk_bytes - before.disk_bytes == 3 * shape.parameters * 4
    assert after.memory == before.memory


def test_a_full_disk_is_said_before_the_work_starts(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**30))
    with pytest.raises(ValueError, match=r"the run needs about .* GiB in .*, and 1\.0 GiB are free"):
        require_room(need_of(entries()))


def test_a_gpu_is_not_measured_by_the_memory_of_the_machine(monkeypatch):
    monkeypatch.setattr(plan, "available_bytes", lambda: 0)
    monkeypatch.setattr(plan, "visible_gpus", lambda: ["0"])
    require_room(need_of(entries()))


def test_the_parts_of_the_memory_are_columns_where_the_terminal_is_wide(monkeypatch, capsys):
    from flows import recipes
    from flows.cli import terminal

    recipe = recipes.load("tiny")
    for width, shown in ((plan.PARTS_WIDTH, True), (plan.PARTS_WIDTH - 1, False)):
        monkeypatch.setattr(terminal.out, "_width", width)
        plan.show_plan(recipe, *recipes.configure(recipe))
        assert ("KV cache" in capsys.readouterr().out) is shown
