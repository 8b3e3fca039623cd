"""What is measured for the laws of growth: one function a work, run in a process of its own on one thread.

    python -m tests.bench.growth_side WORK '[SIZE, ...]' LAPS

prints {size: {quantity: [value of each lap]}} as its last line. Sizes take turns, so that drift of the machine meets all alike.
"""

import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.bench.growth_laws import MEMORY_CONFIG, MIB, SHAPES, Size

Values = dict[Size, dict[str, list[float]]]

SEED = 0
SEQUENCE = "a" * 110  # with its frame 128 tokens of the byte tokenizer
UPDATES = 10_000
ROWS, NEW_TOKENS, PROMPT = 16, 32, "b" * 50
METRICS = 8  # of a step
SHARDS = 4
SETTLE_S = 4.0  # Prefect writes logs and events behind the flow


def main(work: str, sizes: list[Size], laps: int) -> Values:
    """The laps of a work."""
    return WORKS[work](sizes, laps)


class Spent:
    """CPU and wall seconds of a block, added to lists."""

    def __init__(self, values: dict[str, list[float]], prefix: str = "") -> None:
        self.values, self.prefix = values, prefix

    def __enter__(self) -> None:
        self.began = time.process_time(), time.perf_counter()

    def __exit__(self, *error: object) -> None:
        for name, now, then in zip(("cpu_s", "wall_s"), (time.process_time(), time.perf_counter()), self.began, strict=True):
            self.values.setdefault(self.prefix + name, []).append(now - then)


def in_turn(sizes: list[Size], laps: int, lap: Callable[[Size, dict[str, list[float]]], None]) -> Values:
    """Laps of every size, after one of each that does not count."""
    values: Values = {size: {} for size in sizes}
    for number in range(laps + 1):
        for size in sizes[number % len(sizes) :] + sizes[: number % len(sizes)]:
            lap(size, values[size] if number else {})
    return values


# Training and generation


def policy_of(name: str, trainable: bool) -> Any:
    """A scratch model in float32, its tokenizer."""
    from models.loading import load_policy
    from models.scratch import make_scratch
    from models.worker import prepare_numerics

    prepare_numerics(SEED)
    with tempfile.TemporaryDirectory() as folder:
        for part in make_scratch(SHAPES[name], SEED):
            part.save_pretrained(folder)
        from data.templates import load_tokenizer

        return load_policy(Path(folder), trainable=trainable), load_tokenizer(Path(folder))


class Learner:
    """Updates of one model on sequences of 128 tokens."""

    def __init__(self, name: str, tokens: int) -> None:
        from data.groups import demonstration_group
        from data.records import Message
        from models.configs.sft import SFTConfig
        from models.run import Run
        from models.training.core import Loop
        from models.training.imitation import Imitation
        from models.training.optimiser import Trainee
        from tests.bench.ours import OPTIM

        folder = Path(tempfile.mkdtemp())
        self.run = Run(folder, folder, "growth")
        policy, tokenizer = policy_of(name, trainable=True)
        group = demonstration_group(tokenizer, (Message("user", SEQUENCE[:55]), Message("assistant", SEQUENCE[55:])))
        rows = max(1, tokens // 128)
        self.algorithm = Imitation(policy, [group] * rows, SFTConfig(batch_size=rows), SEED, 1.0)
        self.trainees, self.loop = {"policy": Trainee(policy, OPTIM)}, Loop()

    def update(self) -> None:
        """One."""
        from models.training.core import update_once

        update_once(self.run, self.algorithm, self.trainees, self.loop, UPDATES)
        self.loop.update += 1


def train_shapes(sizes: list[Size], laps: int) -> Values:
    learners = {size: Learner(size, 1024) for size in sizes}
    return _updates(learners, laps)


def train_tokens(sizes: list[Size], laps: int) -> Values:
    return _updates({size: Learner("512x8", size) for size in sizes}, laps)


def _updates(learners: dict[Size, Learner], laps: int) -> Values:
    def lap(size: Size, values: dict[str, list[float]]) -> None:
        with Spent(values):
            learners[size].update()

    return in_turn(list(learners), laps, lap)


def generate_shapes(sizes: list[Size], laps: int) -> Values:
    policies = {size: policy_of(size, trainable=False) for size in sizes}
    return in_turn(sizes, laps, lambda size, values: _sample(*policies[size], NEW_TOKENS, values))


def generate_tokens(sizes: list[Size], laps: int) -> Values:
    policy, tokenizer = policy_of("512x8", trainable=False)
    return in_turn(sizes, laps, lambda size, values: _sample(policy, tokenizer, size, values))


def _sample(policy: Any, tokenizer: Any, tokens: int, values: dict[str, list[float]]) -> None:
    from data.records import Message
    from data.templates import render_prompt
    from models.configs.sampling import SamplingConfig
    from models.generation import generate

    prompts = [render_prompt(tokenizer, (Message("user", PROMPT),))] * (ROWS // 4)
    with Spent(values):
        rows = generate(policy, prompts, SamplingConfig(max_tokens=tokens, max_rows=ROWS), samples=4, eos_ids=[], seed=SEED)
    assert all(len(completion.tokens) == tokens for row in rows for completion in row)


def stage_memory(sizes: list[Size], laps: int) -> Values:
    """Peak resident memory of the whole process of a stage, one process a lap."""
    values: Values = {size: {"peak_bytes": []} for size in sizes}
    for size in sizes * laps:
        answer = subprocess.run(
            [sys.executable, "-m", "tests.bench.growth_side", "peak", json.dumps([size]), "1"], stdout=subprocess.PIPE, check=True
        )
        values[size]["peak_bytes"].append(json.loads(answer.stdout.splitlines()[-1])[str(size)]["peak_bytes"][0])
    return values


def peak(sizes: list[Size], laps: int) -> Values:
    """One stage in this very process: the whole of `models.training.sft:train`, its saving included."""
    from data.records import Demonstration, Message
    from data.tables import write_table
    from models.run import Run
    from models.spending import FILE, accounted, read_cost
    from models.training.sft import train

    (size,) = sizes
    folder = Path(tempfile.mkdtemp())
    for name in ("base", "data", "out", "checkpoints"):
        (folder / name).mkdir()
    _save_elsewhere(size, folder / "base")
    said = (Message("user", SEQUENCE[:55]), Message("assistant", SEQUENCE[55:]))
    write_table(folder / "data" / "demonstrations.parquet", [Demonstration(str(i), "bench", said) for i in range(8)])
    run = Run(folder / "out", folder / "checkpoints", "growth")
    with accounted(folder):
        train(MEMORY_CONFIG, base=folder / "base", data=folder / "data", seed=SEED, run=run)
    run.close()
    cost = read_cost(folder / FILE)
    assert cost is not None
    return {size: {"peak_bytes": [float(cost["peak_bytes"])]}}


def _save_elsewhere(name: str, folder: Path) -> None:
    """Make the model in a process that is not ours, whose memory would count as the stage's: forked, so that nobody waits for it."""
    pid = os.fork()
    if pid == 0:
        from models.scratch import make_scratch

        for part in make_scratch(SHAPES[name], SEED):
            part.save_pretrained(folder)
        os._exit(0)
    os.waitpid(pid, 0)


# Store, MLflow, Prefect


def runs(sizes: list[Size], laps: int) -> Values:
    """Flow runs of three stages, each with 50 steps of 8 metrics; looked at when as many as a size are done. One lap."""
    from tasks.home import home
    from tests.bench.growth_flow import started, three_stages

    found: Values = {}
    with started():
        for number in range(1, max(sizes) + 1):
            three_stages(number)
            if number in sizes:
                time.sleep(SETTLE_S)
                files = [path for path in (home() / "store").rglob("*") if path.is_file() and "objects" not in path.parts]
                files += (home() / "runs").iterdir()
                found[number] = {"store_files": [float(len(files))], "store_bytes": [float(sum(path.stat().st_size for path in files))]}
                for name in ("mlflow", "prefect"):
                    found[number] |= size_of(home() / name / f"{name}.db", name)
    return found


def log_lines(sizes: list[Size], laps: int) -> Values:
    """Lines in the log of a flow run; each size beyond the one before in a run of its own."""
    from tasks.home import home
    from tests.bench.growth_flow import say_lines, started

    found, said = {}, 0
    with started():
        for size in sizes:
            say_lines(size - said)
            said = size
            time.sleep(SETTLE_S)
            found[size] = size_of(home() / "prefect" / "prefect.db", "prefect", ["log"])
    return found


def points(sizes: list[Size], laps: int) -> Values:
    """Points of one run, delivered as the recorder does; each lap has a database of its own."""
    return in_turn(sizes, laps, _deliver)


def _deliver(size: Size, values: dict[str, list[float]]) -> None:
    from tasks import tracking
    from tasks.journal import Point
    from tasks.recorder import AddPoints, OpenRun, now_ms

    folder = Path(tempfile.mkdtemp())
    tracking._load_mlflow("sqlite")
    store = tracking.MlflowStore(f"sqlite:///{folder}/mlflow.db", "growth", folder)
    store.deliver(OpenRun(ref="r", name="stage", parent=None, started_ms=now_ms(), tags={}, params={}))
    told = [Point(f"train/metric_{i % METRICS}", random.random(), i // METRICS, now_ms()) for i in range(size)]
    with Spent(values):
        store.deliver(AddPoints(ref="r", points=told))
    for name, value in size_of(folder / "mlflow.db", "mlflow", ["metrics"]).items():
        values.setdefault(name, []).extend(value)


def size_of(database: Path, name: str, tables: list[str] | None = None) -> dict[str, list[float]]:
    """Rows of the tables (all: of every one), and bytes that the database takes for them with their indices."""
    with closing(sqlite3.connect(database)) as connection:
        known = [row[0] for row in connection.execute("select name from sqlite_master where type = 'table' and name not like 'sqlite_%'")]
        wanted = tables or known
        rows = sum(connection.execute(f'select count(*) from "{table}"').fetchone()[0] for table in wanted)
        indices = connection.execute("select name, tbl_name from sqlite_master where type = 'index'").fetchall()
        parts = {*wanted, *(index for index, table in indices if table in wanted)}
        used = dict(connection.execute("select name, sum(pgsize) from dbstat group by name"))
        n_bytes = sum(value for part, value in used.items() if part in parts)
    return {f"{name}_rows": [float(rows)], f"{name}_bytes": [float(n_bytes)]}


# Bytes and records


def digests(sizes: list[Size], laps: int) -> Values:
    """Storing a folder of four equal files, and its verification by a process that has not seen it, all on one thread's CPU seconds."""
    from tasks import store as store_module

    block = random.Random(SEED).randbytes(MIB)

    def lap(size: Size, values: dict[str, list[float]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            store = store_module.Store(Path(folder))
            staged = store.new_staging()
            out = staged / "out"
            out.mkdir()
            for shard in range(SHARDS):
                with (out / f"model-{shard}.safetensors").open("wb") as file:
                    for number in range(size // SHARDS):
                        file.write(number.to_bytes(4, "big") + block[4:])
            with Spent(values, "put_"):
                artifact = store.put(out, "policy")
            store.discard(staged)
            with Spent(values, "known_"):
                store.verify(artifact)
            store_module._seen.clear()
            with Spent(values, "verify_"):
                store.verify(artifact)

    return in_turn(sizes, laps, lap)


def records(sizes: list[Size], laps: int) -> Values:
    """Reading all records of runs, as every command that names a run does. A record has 12 stages."""
    from tasks import registry
    from tasks.store import Artifact

    homes = {size: tempfile.mkdtemp() for size in sizes}
    meta = {"accuracy": 0.25, "tokens": 123456}
    for size, folder in homes.items():
        os.environ["POSTTRAIN_HOME"] = folder
        for _ in range(size):
            with registry.recording("growth", MEMORY_CONFIG) as run:
                for stage in range(12):
                    artifact = Artifact(kind="policy", digest=f"{stage:064x}", size_bytes=1, n_files=1, meta=meta)
                    run.record.stages[f"stage_{stage}"] = registry.StageRecord(key="k" * 70, artifact=artifact, outcome="hit", seconds=1.0)

    def lap(size: Size, values: dict[str, list[float]]) -> None:
        os.environ["POSTTRAIN_HOME"] = homes[size]
        with Spent(values):
            assert len(registry.runs()) == size

    return in_turn(sizes, laps, lap)


def artifacts(sizes: list[Size], laps: int) -> Values:
    """`posttrain artifacts verify`: all artifacts listed and read in full."""
    from tasks.store import Store

    stores: dict[Size, Store] = {}
    for size in sizes:
        stores[size] = store = Store(Path(tempfile.mkdtemp()))
        for number in range(size):
            staged = store.new_staging()
            (staged / "out").mkdir()
            (staged / "out" / "rows").write_bytes(random.Random(number).randbytes(64 * 1024))
            store.put(staged / "out", "dataset")
            store.discard(staged)

    def lap(size: Size, values: dict[str, list[float]]) -> None:
        with Spent(values):
            found = stores[size].list()
            assert len(found) == size and not any(stores[size].problems(artifact, "full") for artifact in found)

    return in_turn(sizes, laps, lap)


WORKS: dict[str, Callable[[list[Size], int], Values]] = {
    function.__name__: function
    for function in (
        *(train_shapes, train_tokens, generate_shapes, generate_tokens, stage_memory, peak),
        *(runs, log_lines, points, digests, records, artifacts),
    )
}

if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))))
