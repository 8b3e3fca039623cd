"""The policy on its way through training: kept at the right moments, whole, bit for bit, and without a trace in what is trained."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file

from data.templates import load_tokenizer
from models.configs.checkpointing import CheckpointConfig
from models.configs.dpo import DPOConfig
from models.configs.grpo import GRPOConfig
from models.configs.kto import KTOConfig
from models.configs.kwise_dpo import KWiseDPOConfig
from models.configs.lora import LoraSettings
from models.configs.nash_md import NashMDConfig
from models.configs.online_dpo import OnlineDPOConfig
from models.configs.online_rejection_sampling import OnlineRejectionSamplingConfig
from models.configs.optimisation import OptimConfig
from models.configs.ppo import PPOConfig
from models.configs.reinforce import ActorCriticConfig, ReinforceConfig
from models.configs.reward_model import RewardModelConfig
from models.configs.sampling import SamplingConfig
from models.configs.sft import SFTConfig
from models.loading import TOKENIZER_FILES, load_policy
from models.run import Run
from models.snapshots import read_snapshots, snapshot_folder
from models.training import (
    actor_critic,
    dpo,
    grpo,
    kto,
    kwise_dpo,
    nash_md,
    online_dpo,
    online_rejection_sampling,
    ppo,
    reinforce,
    sft,
)
from models.training.snapshots import Snapshots, snapshot_steps

FAST = OptimConfig(learning_rate=1e-2)
SHORT = SamplingConfig(max_tokens=4)
BATCHES: dict[str, Any] = {"batch_size": 4, "max_updates": 4, "epochs": 4, "optim": FAST}
ROUNDS: dict[str, Any] = {"iterations": 4, "prompts_per_iteration": 2, "samples_per_prompt": 2, "sampling": SHORT, "optim": FAST}
ON_POLICY = {"policy": "base", "data": "tables", "reward": "reward_folder"}
PAIRS = {"policy": "base", "preferences": "tables"}

TRAINERS: dict[str, tuple[Any, BaseModel, dict[str, str]]] = {
    "sft": (sft.train, SFTConfig(**BATCHES), {"base": "base", "data": "tables"}),
    "dpo": (dpo.train, DPOConfig(**BATCHES), PAIRS | {"policy": "half"}),
    "kto": (kto.train, KTOConfig(**BATCHES), {"policy": "base", "labels": "tables"}),
    "kwise_dpo": (kwise_dpo.train, KWiseDPOConfig(**BATCHES), PAIRS),
    "ppo": (ppo.train, PPOConfig(**ROUNDS, epochs=1), ON_POLICY),
    "grpo": (grpo.train, GRPOConfig(**ROUNDS, reward="reward_model"), ON_POLICY),
    "grpo, adapters": (grpo.train, GRPOConfig(**ROUNDS, reward="reward_model", lora=LoraSettings(rank=2)), ON_POLICY | {"policy": "half"}),
    "reinforce": (reinforce.train, ReinforceConfig(**ROUNDS), ON_POLICY),
    "actor_critic": (actor_critic.train, ActorCriticConfig(**ROUNDS), ON_POLICY),
    "online_dpo": (online_dpo.train, OnlineDPOConfig(**ROUNDS), ON_POLICY),
    "nash_md": (nash_md.train, NashMDConfig(**ROUNDS), ON_POLICY),
    "online_rejection_sampling": (
        online_rejection_sampling.train,
        OnlineRejectionSamplingConfig(
            rounds=4, prompts_per_round=2, samples_per_prompt=2, keep_unfinished=True, sampling=SHORT, optim=FAST
        ),
        ON_POLICY,
    ),
}


def with_snapshots(config: BaseModel, count: int) -> BaseModel:
    return config.model_copy(update={"checkpoint": CheckpointConfig(every_s=0, snapshots=count)})


def files(folder: Path) -> dict[str, str]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


# When


@pytest.mark.parametrize(
    ("updates", "count", "steps"),
    [(40, 3, [10, 20, 30]), (3, 5, [1, 2]), (10, 3, [2, 5, 7]), (1, 4, []), (40, 0, []), (0, 3, [])],
)
def test_snapshots_are_evenly_spaced_and_the_end_is_none(updates: int, count: int, steps: list[int]) -> None:
    assert snapshot_steps(updates, count) == steps


def test_only_stages_that_train_a_policy_have_the_setting() -> None:
    assert SFTConfig.model_validate({"checkpoint": {"snapshots": 2}}).checkpoint.snapshots == 2
    with pytest.raises(ValueError, match=r"checkpoint\.snapshots"):
        RewardModelConfig.model_validate({"checkpoint": {"snapshots": 2}})


# What


@pytest.mark.parametrize("name", TRAINERS)
def test_every_trainer_keeps_its_policy_and_trains_the_same(name: str, new_run: Callable[..., Run], request: Any) -> None:
    train, config, names = TRAINERS[name]
    inputs = {key: request.getfixturevalue(value) for key, value in names.items()}
    plain, kept = new_run("plain"), new_run("kept")
    train(with_snapshots(config, 0), seed=1, run=plain, **inputs)
    train(with_snapshots(config, 3), seed=1, run=kept, **inputs)
    own = files(kept.out)
    assert {path: digest for path, digest in own.items() if not path.startswith("snapshots/")} == files(plain.out)
    found = read_snapshots(kept.out)
    assert list(found) == [1, 2, 3, 4] and found[4] == kept.out
    assert {path.relative_to(kept.out).as_posix() for path in (kept.out / "snapshots").iterdir()} == {
        "snapshots/index.json",
        *(f"snapshots/00000{i}" for i in (1, 2, 3)),
    }
    parent = inputs.get("policy", inputs.get("base"))
    for folder in (snapshot_folder(kept.out, 1), kept.out):
        assert {path.name for path in folder.iterdir() if path.is_file()} == {path.name for path in kept.out.iterdir() if path.is_file()}
        assert all((folder / n).read_bytes() == (parent / n).read_bytes() for n in TOKENIZER_FILES if (parent / n).is_file())
    assert load_policy(found[2]).dtype == load_policy(kept.out).dtype and load_tokenizer(found[2]).chat_template
    assert len({own[f"snapshots/00000{i}/model.safetensors"] for i in (1, 2, 3)} | {own["model.safetensors"]}) == 4


@pytest.mark.parametrize("name", ["sft", "grpo, adapters"])
def test_a_snapshot_is_what_training_would_have_ended_with(name: str, new_run: Callable[..., Run], request: Any) -> None:
    train, config, names = TRAINERS[name]
    constant = FAST.model_copy(update={"schedule": "constant", "warmup_share": 0.0})  # no step depends on how many follow
    config = config.model_copy(update={"optim": constant})
    inputs = {key: request.getfixturevalue(value) for key, value in names.items()}
    length = "max_updates" if name == "sft" else "iterations"
    long, short = new_run("long"), new_run("short")
    train(with_snapshots(config, 1), seed=1, run=long, **inputs)
    train(with_snapshots(config.model_copy(update={length: 2}), 0), seed=1, run=short, **inputs)
    found = read_snapshots(long.out)
    assert list(found) == [2, 4] and files(found[2]) == files(short.out)
    assert not any("lora" in tensor for tensor in load_file(found[2] / "model.safetensors"))


def test_a_policy_without_snapshots_says_how_to_get_them(base: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no snapshots: train the policy with checkpoint\.snapshots above 0"):
        read_snapshots(base)


# Deaths


# Six updates, snapshots after 2 and 4, checkpoints after 2 and 4: how attempts end, and the step from which the last one goes on.
DEATHS: dict[str, tuple[list[str], int | None]] = {
    "before the first": (["step:1"], None),
    "between two": (["step:4"], 2),
    "in the middle of one": (["snapshot:2"], 2),
    "after one, before its checkpoint": (["snapshotted:1"], None),
    "after one and its checkpoint": (["saved:1"], 2),
    "after SIGTERM at each": (["stop:2", "stop:2"], 4),
}
Start = Callable[[Path, int], Any]


@pytest.fixture(scope="module")
def start(stage_process: Callable[..., Any], half: Path, tables: Path) -> Start:
    def make(folder: Path, every: int) -> Any:
        checkpoint = CheckpointConfig(every_s=0, every_updates=every, snapshots=2)
        config = DPOConfig(batch_size=4, max_updates=6, epochs=6, optim=FAST, lora=LoraSettings(rank=2), checkpoint=checkpoint)
        return stage_process(folder, "models.training.dpo:train", config, {"policy": half, "preferences": tables})

    return make


@pytest.fixture(scope="module")
def undisturbed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Any:
    stage = start(tmp_path_factory.mktemp("undisturbed") / "stage", 2)
    stage.run()
    return stage


@pytest.mark.parametrize(("deaths", "resumed"), DEATHS.values(), ids=DEATHS)
def test_a_killed_stage_ends_with_the_same_snapshots(
    deaths: list[str], resumed: int | None, start: Start, undisturbed: Any, tmp_path: Path
) -> None:
    stage = start(tmp_path / "stage", 2)
    for death in deaths:
        if death.startswith("stop:"):
            stage.stop(int(death.removeprefix("stop:")))
        else:
            stage.kill(death)
    assert stage.run().resumed_step == resumed
    wanted = undisturbed.digests()
    assert [path for path in wanted if path.endswith("model.safetensors")] == [
        "model.safetensors",
        "snapshots/000002/model.safetensors",
        "snapshots/000004/model.safetensors",
    ]
    assert stage.digests() == wanted
    assert stage.history() == undisturbed.history()


def test_an_attempt_that_dies_after_the_end_leaves_the_snapshots_to_the_next(start: Start, tmp_path: Path) -> None:
    stage = start(tmp_path / "stage", 5)
    stage.run()
    wanted, first = stage.digests(), stage.out
    for path in first.rglob("*"):  # as the store does with what it takes: the files are the same as those of the stage key
        path.chmod(0o555 if path.is_dir() else 0o444)
    result = stage.run()
    assert result.resumed_step == 5 and stage.digests() == wanted
    assert (first / "snapshots/000002/model.safetensors").read_bytes() == (stage.out / "snapshots/000002/model.safetensors").read_bytes()


@pytest.mark.parametrize("damage", ["torn", "gone", "foreign"])
def test_a_damaged_snapshot_is_never_handed_over(damage: str, start: Start, tmp_path: Path) -> None:
    stage = start(tmp_path / "stage", 5)
    stage.run()
    wanted = stage.digests()
    folder = snapshot_folder(stage.checkpoints, 2)
    if damage == "torn":
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").write_bytes(b"torn")
    elif damage == "gone":
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    else:
        text = (folder / "manifest.json").read_text()
        (folder / "manifest.json").write_text(text.replace("key-0", "key-1"))
    result = stage.run()
    assert result.resumed_step is None, "a checkpoint after the damaged snapshot cannot make it again"
    assert stage.digests() == wanted


def test_a_disk_without_links_gets_copies(run: Run, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError("cross-device link")

    monkeypatch.setattr("os.link", refuse)
    snapshots = Snapshots(run, policy, 2, [1])
    snapshots.keep(1)
    snapshots.keep(2)
    snapshots.hand_over()
    (kept,) = (run.out / "snapshots").glob("0*")
    assert torch.equal(load_file(kept / "model.safetensors")["model.norm.weight"], policy.model.norm.weight)
    assert (kept / "model.safetensors").stat().st_ino != (snapshot_folder(run.checkpoints, 1) / "model.safetensors").stat().st_ino
