"""Two ranks under torchrun are one trainer: the same losses, checkpoints that any number of ranks takes up, one death for all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect import flow
from pydantic import BaseModel
from safetensors.torch import load_file, save_file

from data.packing import Group, split_by_tokens
from models import parallel
from models.configs.checkpointing import CheckpointConfig
from models.configs.dpo import DPOConfig
from models.configs.grpo import GRPOConfig
from models.configs.kto import KTOConfig
from models.configs.kwise_dpo import KWiseDPOConfig
from models.configs.lora import LoraSettings
from models.configs.optimisation import OptimConfig
from models.configs.parallel import ParallelConfig
from models.configs.preference_model import PreferenceModelConfig
from models.configs.reward_model import RewardModelConfig
from models.configs.sft import SFTConfig
from models.memory import PROCESS_BYTES, ModelShape, estimate
from models.ranks import follows, ranks_here, ranks_of, verdict
from models.run import read_journal
from models.training.pieces import Saved
from tasks.process import StageProcessError
from tasks.sft import sft as sft_stage
from tasks.store import Artifact, Store

EVERY_UPDATE = CheckpointConfig(every_s=0, every_updates=1)
BATCHES = {"batch_size": 4, "micro_batch_tokens": 60, "optim": OptimConfig(learning_rate=3e-3), "epochs": 2, "checkpoint": EVERY_UPDATE}
TWO = ParallelConfig(ranks=2)
PREFERENCES = {"policy": "base", "preferences": "tables"}
SFT = SFTConfig(**{**BATCHES, "checkpoint": CheckpointConfig(every_s=0, every_updates=1, snapshots=1)}, parallel=TWO)

# name: entry, configuration, inputs by fixture
METHODS: dict[str, tuple[str, BaseModel, dict[str, str]]] = {
    "sft": ("models.training.sft:train", SFT, {"base": "base", "data": "tables"}),
    "sft, bfloat16": ("models.training.sft:train", SFTConfig(**BATCHES), {"base": "half", "data": "tables"}),
    "sft, adapters": ("models.training.sft:train", SFTConfig(lora=LoraSettings(rank=2), **BATCHES), {"base": "base", "data": "tables"}),
    "sft, its head not tied": ("models.training.sft:train", SFTConfig(**BATCHES), {"base": "untied", "data": "tables"}),
    "sft, a rank has a bad batch": ("interrupted:poisoned", SFTConfig(**BATCHES), {"base": "base", "data": "tables"}),
    "dpo": ("models.training.dpo:train", DPOConfig(**BATCHES), PREFERENCES),
    "dpo, moving reference": (
        "models.training.dpo:train",
        DPOConfig(reference_sync_every=2, reference_sync_share=0.3, **BATCHES),
        PREFERENCES,
    ),
    "kto": ("models.training.kto:train", KTOConfig(**BATCHES), {"policy": "base", "labels": "tables"}),
    "kwise_dpo": ("models.training.kwise_dpo:train", KWiseDPOConfig(**BATCHES), PREFERENCES),
    "reward_model": ("models.training.reward_model:train", RewardModelConfig(use_margin=True, **BATCHES), PREFERENCES),
    "reward_model, bfloat16": ("models.training.reward_model:train", RewardModelConfig(**BATCHES), {**PREFERENCES, "policy": "half"}),
    "preference_model": ("models.training.preference_model:train", PreferenceModelConfig(**BATCHES), PREFERENCES),
}

SEVERAL = '''

from pathlib import Path

from models import parallel
from models.loading import load_policy
from models.training.imitation import Imitation
from models.training.optimiser import Trainee
from models.configs.optimisation import OptimConfig
from models.configs.sft import SFTConfig


class Several(BaseModel):
    stages: dict[str, list]
    parallel: dict


def several(config: Several, *, seed, run):
    """Stage after stage in the same processes, each with a folder of its own."""
    found = {}
    for name, (entry_name, own, inputs) in config.stages.items():
        entry = worker.load_entry(entry_name, ["models", "interrupted"])
        out, checkpoints = run.out / name, run.checkpoints / name
        out.mkdir()
        checkpoints.mkdir(exist_ok=True)
        own_run = type(run)(out, checkpoints, "key-0")
        folders = {key: Path(value) for key, value in inputs.items()}
        found[name] = worker.call_entry(entry, worker.config_class(entry).model_validate(own), folders, seed, own_run)
        own_run.close()
    return found


def first_stopped(config: Interrupted, *, seed, run, **inputs):
    """``stopped`` on the first rank; the others learn of it."""
    if parallel.rank() == 0:
        return stopped(config, seed=seed, run=run, **inputs)
    entry = worker.load_entry(config.entry, ["models"])
    return worker.call_entry(entry, worker.config_class(entry).model_validate(config.config), inputs, seed, run)


def poisoned(config: SFTConfig, *, base, data, seed, run):
    """Supervised fine-tuning in which a micro-batch of the last rank is not a number in the second update, and none before or after."""
    from models.training import sft
    loss, batches = Imitation.loss, Imitation.batches
    seen = []
    Imitation.batches = lambda self, update: (seen.append(update), batches(self, update))[1]
    bad = lambda: seen[-1] == 1 and parallel.rank() == parallel.ranks() - 1
    Imitation.loss = lambda self, batch: (lambda found: (found[0] * float("nan"), found[1]) if bad() else found)(loss(self, batch))
    try:
        return sft.train(config, base=base, data=data, seed=seed, run=run)
    finally:
        Imitation.loss, Imitation.batches = loss, batches


def shares(config: SFTConfig, *, base, run):
    """Bytes of weights, gradients, masters and moments that each rank holds after an update."""
    policy = load_policy(base, trainable=True)
    parallel.shard(policy, run.device)
    trainee = Trainee(policy, config.optim)
    ids = torch.arange(8)[None]
    parallel.in_forward(policy, lambda: policy.base_model(input_ids=ids).last_hidden_state.sum()).backward()
    trainee.accumulate()
    gradients = sum(m.grad.nbytes for m in trainee.masters.values() if m.grad is not None)
    trainee.step(trainee.grad_norm(), 1.0)
    moments = sum(t.nbytes for state in trainee.adam.state.values() for t in state.values() if t.ndim)
    weights = sum(parallel.local(p).nbytes for p in policy.parameters())
    return {"by_rank": parallel.gather([weights, gradients, moments])}
'''


@pytest.fixture(scope="session")
def untied(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` with a head of its own."""
    from models.loading import copy_tokenizer, load_policy

    folder = tmp_path_factory.mktemp("untied")
    policy = load_policy(base)
    policy.lm_head.weight = torch.nn.Parameter(policy.lm_head.weight.detach().clone() * 1.1)
    policy.config.tie_word_embeddings = False
    policy.save_pretrained(folder)
    copy_tokenizer(base, folder)
    return folder


class Both:
    """All methods by one process and by two ranks."""

    def __init__(self, one: Any, two: Any, meta: dict[int, dict[str, Any]]) -> None:
        self.stages, self.meta = {1: one, 2: two}, meta

    def history(self, ranks: int, name: str) -> list[dict[str, float]]:
        entries = read_journal(self.stages[ranks].checkpoints / name / "journal.jsonl")
        return [{key: value for key, value in entry["metrics"].items() if not key.startswith("time/")} for entry in entries]

    def out(self, ranks: int, name: str) -> Path:
        return self.stages[ranks].out / name


def with_several(stage: Any) -> Any:
    """The entries of this file beside those of every stage process."""
    path = stage.folder / "interrupted.py"
    path.write_text(path.read_text() + SEVERAL)
    return stage


@pytest.fixture(scope="module")
def both(request: pytest.FixtureRequest, stage_process: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Both:
    def found(inputs: dict[str, str]) -> dict[str, str]:
        return {key: str(request.getfixturevalue(fixture)) for key, fixture in inputs.items()}

    stages = {name: [entry, config.model_dump(mode="json"), found(inputs)] for name, (entry, config, inputs) in METHODS.items()}
    stages["shares"] = ["interrupted:shares", SFT.model_dump(mode="json"), found({"base": "base"})]
    made, meta = {}, {}
    for ranks in (1, 2):
        folder = tmp_path_factory.mktemp(f"ranks-{ranks}")
        made[ranks] = with_several(stage_process(folder / "stage", "interrupted:several", SFT, {}))
        meta[ranks] = made[ranks].run(config={"stages": stages, "parallel": {"ranks": ranks}}).meta
    return Both(made[1], made[2], meta)


# The same trainer


@pytest.mark.parametrize("name", METHODS)
def test_the_losses_are_those_of_one_process(both: Both, name: str) -> None:
    one, two = both.history(1, name), both.history(2, name)
    tolerance = 2e-2 if "bfloat16" in name else 1e-4
    assert len(one) == len(two) > 1
    for alone, together in zip(one, two, strict=True):
        assert together == pytest.approx(alone, rel=tolerance, abs=tolerance)
    assert len({entry["train/loss"] for entry in one if "train/loss" in entry}) > 1, "a stage that learns nothing would pass"
    assert both.meta[1][name] == pytest.approx(both.meta[2][name], abs=tolerance)


@pytest.mark.parametrize("name", [name for name in METHODS if "bfloat16" not in name])
def test_the_artifact_is_that_of_one_process_up_to_rounding(both: Both, name: str) -> None:
    one, two = (sorted(p.relative_to(both.out(n, name)) for p in both.out(n, name).rglob("*") if p.is_file()) for n in (1, 2))
    assert one == two
    for path in one:
        if path.suffix == ".safetensors":
            alone, together = (load_file(both.out(n, name) / path) for n in (1, 2))
            assert alone.keys() == together.keys()
            for key, tensor in alone.items():
                torch.testing.assert_close(together[key], tensor, rtol=1e-3, atol=1e-4)
        elif path.name not in ("report.json", "reward.json"):
            assert (both.out(1, name) / path).read_bytes() == (both.out(2, name) / path).read_bytes()


def test_one_ranks_bad_batch_skips_the_update_on_all(both: Both) -> None:
    """Only the last rank saw it; had the other moved its weights, the losses behind it would differ."""
    skipped = [entry["train/skipped_updates"] for entry in both.history(2, "sft, a rank has a bad batch")]
    assert skipped == [0, 1, 1, 1, 1]


def test_each_rank_holds_half_of_weights_gradients_and_optimiser(both: Both) -> None:
    (whole,) = both.meta[1]["shares"]["by_rank"]
    for own in both.meta[2]["shares"]["by_rank"]:
        assert own == pytest.approx([number / 2 for number in whole], rel=0.02)


def test_a_checkpoint_is_in_pieces_without_pickle(both: Both) -> None:
    (folder,) = (both.stages[2].checkpoints / "sft").glob("step-*")
    assert sorted(p.name for p in folder.iterdir()) == [
        "manifest.json",
        "pieces.json",
        "rank-00000.safetensors",
        "rank-00001.safetensors",
        "state.json",
    ]
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert set(files) == {p.name for p in folder.iterdir()} - {"manifest.json"}
    saved, (alone,) = Saved(folder), (both.stages[1].checkpoints / "sft").glob("step-*")
    assert saved.written_by == 2
    whole = load_file(alone / "tensors.safetensors")
    assert set(saved) == set(whole)
    for name, tensor in whole.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(saved[name], tensor, rtol=1e-2, atol=1e-4)


# Death and resume


@pytest.fixture
def troubled(stage_process: Callable[..., Any], tmp_path: Path, base: Path, tables: Path) -> Any:
    return with_several(stage_process(tmp_path / "troubled", "models.training.sft:train", SFT, {"base": base, "data": tables}))


def test_sigterm_on_one_rank_saves_and_other_numbers_of_ranks_go_on(both: Both, troubled: Any) -> None:
    """One process, then two ranks of which the first is told to stop, then one process: the key stays, the losses too up to rounding."""
    troubled.environment = {"POSTTRAIN_RANKS": "1"}
    troubled.kill("step:2")
    assert troubled.saved_steps() == [1]
    troubled.environment = {}
    config = {"entry": troubled.entry, "config": SFT.model_dump(mode="json"), "at": 2, "parallel": {"ranks": 2}}
    with pytest.raises(StageProcessError, match="stopped by SIGTERM") as caught:
        troubled.run(entry="interrupted:first_stopped", config=config)
    assert caught.value.exit_code == 143
    (stopped_at,) = troubled.saved_steps()
    assert Saved(troubled.checkpoints / f"step-{stopped_at:06d}").written_by == 2
    troubled.environment = {"POSTTRAIN_RANKS": "1"}
    assert troubled.run().resumed_step == stopped_at == 3
    log = (troubled.out.parent / "log.txt").read_text()
    assert "resumed after update 3, which 2 ranks had saved and 1 go on from: equal up to rounding" in log
    for (_, own), wanted in zip(troubled.history(), both.history(1, "sft"), strict=True):
        assert own == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@pytest.mark.usefixtures("prefect_api", "home")
def test_a_stage_of_two_ranks_of_which_one_is_killed_ends_with_the_same_bytes(
    both: Both, base: Path, tables: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rank 1 dies by SIGKILL in its third update, Prefect tries again, and the artifact is that of the undisturbed ranks."""
    store = Store(home / "store")
    inputs = [store.put(shutil.copytree(folder, tmp_path / kind), kind) for folder, kind in ((base, "policy"), (tables, "dataset"))]
    monkeypatch.setenv("POSTTRAIN_THREADS", "1")
    monkeypatch.setenv("POSTTRAIN_FAILPOINT", "rank1 step:3")
    monkeypatch.setattr(sft_stage, "retry_delays_s", [0.0, 0.0])

    @flow
    def training() -> Artifact:
        return sft_stage(SFT, *inputs, seed=both.stages[2].seed)

    artifact = training()
    assert "rank 1: was killed by SIGKILL" in caplog.text and "resumed after update 2" in caplog.text
    made = store.folder(artifact.digest)
    wanted = both.out(2, "sft")
    files = sorted(p.relative_to(wanted) for p in wanted.rglob("*") if p.is_file())
    assert len(files) > 3 and files == sorted(p.relative_to(made) for p in made.rglob("*") if p.is_file())
    assert [name for name in files if (made / name).read_bytes() != (wanted / name).read_bytes()] == []


# What is told of ranks that failed


def told(folder: Path, rank: int, time: float, follows: bool, exit_code: int = 78) -> None:
    error = {"rank": rank, "type": "ValueError", "message": f"trouble {rank}", "time": time, "follows": follows, "exit": exit_code}
    (folder / f"rank-{rank:05d}.json").write_text(json.dumps(error))


@pytest.mark.parametrize(
    ("errors", "failures", "exit_code", "message"),
    [
        ([], {}, 0, None),
        ([(1, 5.0, False), (0, 4.0, True)], {0: 1, 1: 78}, 78, "rank 1: trouble 1"),  # the other lost its partner
        ([(2, 5.0, False), (1, 4.0, False)], {2: 78, 1: 78}, 78, "rank 1: trouble 1"),
        ([(0, 4.0, True)], {1: -9, 0: 1}, -9, "rank 1: was killed by SIGKILL"),
        ([], {1: -11, 0: 143}, 1, "rank 1: was killed by SIGSEGV"),
        ([], {0: 143, 1: 143}, 143, None),
        ([(0, 4.0, True)], {1: 143, 0: 1}, 143, None),
        ([(0, 4.0, True)], {0: 78}, 78, "rank 0: trouble 0"),
        ([], {0: 3}, 3, "rank 0: ended with exit code 3"),
    ],
)
def test_the_failure_from_which_the_others_follow_is_told(tmp_path: Path, errors, failures, exit_code, message) -> None:
    for error in errors:
        told(tmp_path, *error)
    assert verdict(tmp_path / "spec.json", failures) == exit_code
    error = tmp_path / "error.json"
    assert (json.loads(error.read_text())["message"] if error.exists() else None) == message


def test_a_lost_partner_is_told_from_a_mistake() -> None:
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1234")
    assert follows(lost) and not follows(RuntimeError("CUDA out of memory")) and not follows(ValueError("no connection closed"))


# Without torchrun


def test_one_rank_cuts_micro_batches_as_ever(random_groups: Callable[..., list[Group]]) -> None:
    groups = random_groups(20, 2)
    assert parallel.micro_batches(groups, 40) == list(split_by_tokens(groups, 40))


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("max_tokens", [30, 60, 4096])
def test_micro_batches_are_even_and_within_the_limit(
    random_groups: Callable[..., list[Group]], monkeypatch: pytest.MonkeyPatch, ranks: int, max_tokens: int
) -> None:
    groups = random_groups(30, 2)
    monkeypatch.setattr(parallel, "ranks", lambda: ranks)
    parts = parallel.micro_batches(groups, max_tokens)
    sizes = [sum(group.n_tokens for group in part) for part in parts]
    assert [group for part in parts for group in part] == groups
    assert all(size <= max_tokens or len(part) == 1 for size, part in zip(sizes, parts, strict=True))
    rounds = -(-sum(sizes) // (max_tokens * ranks))
    assert rounds <= -(-len(parts) // ranks) <= rounds + 1
    assert len(parts) >= ranks and max(sizes) <= 2 * sum(sizes) / len(parts)


def test_every_rank_has_as_many_micro_batches_and_each_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "ranks", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        shares.append(parallel.own_share(["a", "b", "c", "d"]))
    assert shares == [[("a", True), ("d", True)], [("b", True), ("a", False)], [("c", True), ("a", False)]]


def test_a_stage_that_samples_refuses_several_ranks() -> None:
    with pytest.raises(ValueError, match=r"parallel \{'ranks': 2\}: GRPOConfig runs on one device.*leave it out"):
        GRPOConfig.model_validate({"parallel": {"ranks": 2}})


def test_the_memory_plan_shares_the_model_and_not_the_process() -> None:
    """8 billion parameters in bfloat16: weights 2, masters 4, gradients 4 and moments 8 bytes each are 144 GB, 2.25 GB on each of 64."""
    shape = ModelShape(8 * 10**9, 32, 4096, 14336, 32, 1024, 128256, 2)
    one, many = (estimate("sft", SFTConfig(parallel=ParallelConfig(ranks=n)), shape) for n in (1, 64))
    assert one is not None and many is not None and (one.per_rank, one.ranks, many.ranks) == (one.total, 1, 64)
    assert one.models == many.models == 144 * 10**9
    gathered = 2 * 128256 * 4096 + 8 * ((8 * 10**9 - 128256 * 4096) // 32)
    assert many.per_rank == PROCESS_BYTES + 2_250_000_000 + many.activations // 64
    assert gathered < many.activations // 64 < gathered + one.activations


def test_ranks_of_an_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (ranks_of({}), ranks_of({"parallel": {"ranks": 4}})) == (1, 4)
    monkeypatch.setenv("POSTTRAIN_NODES", "2")
    assert (ranks_here({"parallel": {"ranks": 4}}), ranks_here({})) == (2, 1)
    with pytest.raises(ValueError, match="5 ranks cannot be shared evenly by POSTTRAIN_NODES 2 machines"):
        ranks_here({"parallel": {"ranks": 5}})
    monkeypatch.setenv("POSTTRAIN_RANKS", "2")
    assert (ranks_of({"parallel": {"ranks": 4}}), ranks_of({"parallel": {"ranks": 1}})) == (2, 1)
    monkeypatch.setenv("POSTTRAIN_RANKS", "few")
    with pytest.raises(ValueError, match="POSTTRAIN_RANKS is 'few'"):
        ranks_of({"parallel": {"ranks": 4}})


def test_a_gap_between_pieces_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.arange(2.0)}, tmp_path / "rank-00000.safetensors")
    entry = {"shape": [4], "pieces": [{"file": "rank-00000.safetensors", "rows": [0, 2]}]}
    (tmp_path / "pieces.json").write_text(json.dumps({"x": entry}))
    saved = Saved(tmp_path)
    assert saved.rows("x", 1, 2).tolist() == [1.0] and saved.rows("x", 2, 2).tolist() == []
    with pytest.raises(ValueError, match="has no rows 2 to 4 of x"):
        saved["x"]
