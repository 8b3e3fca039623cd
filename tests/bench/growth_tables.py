"""The tables of docs/scale.md: every number of the page comes from here."""

import statistics
from typing import Any

from tests.bench.growth_laws import MIB
from tests.bench.growth_paper import (
    DAY_S,
    ENGINE_ROWS,
    H100S,
    LLAMA_70B,
    RUN,
    SHARD_BYTES,
    PaperStage,
    artifact_bytes,
    checkpoint_bytes,
    checkpoint_every_s,
    compute_s,
    engine_step_s,
    generate_s,
    kv_bytes,
    memory_of,
    network_s,
    reports_of,
    train_pass_s,
    trained_models,
)
from tests.bench.report import table

RECOMPUTED_GROUPS = 4  # to a pass of a GPU once layers are computed again, or all that it has
EVENTS_KEPT_DAYS = 7  # Prefect's default, PREFECT_SERVER_EVENTS_RETENTION_PERIOD
HEARTBEAT_S = 60  # PREFECT_FLOWS_HEARTBEAT_FREQUENCY, tasks/home.py
RUNS_A_DAY = 2  # what these GPUs have time for
HASH_THREADS = 4  # tasks/store.py


def size(n_bytes: float) -> str:
    """Decimal, as data sheets count."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(n_bytes) >= scale:
            return f"{n_bytes / scale:.3g} {unit}" if n_bytes < 999.5 * scale else f"{n_bytes / scale:,.0f} {unit}"
    return f"{n_bytes:.0f} B"


def span(seconds: float) -> str:
    """A time for people."""
    if seconds < 0.1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def blocks(document: dict[str, Any]) -> dict[str, str]:
    """By the name that the page gives them."""
    costs = Costs(document)
    return {
        "inputs": inputs_table(costs),
        "memory": memory_table(),
        "time": time_table(),
        "rates": rates_table(),
        "disk": disk_table(costs),
        "databases": databases_table(costs),
    }


class Costs:
    """What was measured here, each as the slope of its law."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.machine, self.date = document["machine"], document["date"]
        each = {name: law["coefficients"][1] for name, law in document["laws"].items() if len(law["coefficients"]) == 2}
        self.hash_bytes_per_s = MIB / each["digests.verify_cpu_s"]
        self.known_s = statistics.median(document["beside"]["digests"]["256"]["known_wall_s"])
        self.record_s = each["records.cpu_s"]
        self.point_bytes, self.point_rows, self.point_s = each["points.mlflow_bytes"], each["points.mlflow_rows"], each["points.cpu_s"]
        self.line_bytes, self.line_rows = each["log_lines.prefect_bytes"], each["log_lines.prefect_rows"]
        self.prefect_bytes, self.prefect_rows = each["runs.prefect_bytes"], each["runs.prefect_rows"]
        self.mlflow_bytes, self.mlflow_rows = each["runs.mlflow_bytes"], each["runs.mlflow_rows"]
        self.store_bytes, self.store_files = each["runs.store_bytes"], each["runs.store_files"]


def inputs_table(costs: Costs) -> str:
    """Published, assumed, measured."""
    here = f"measured here: {costs.machine}, {costs.date}"
    sheet, assumed = "NVIDIA H100 SXM data sheet", "assumed"
    return table(
        ["input", "value", "where it comes from"],
        [
            [
                "parameters of the model",
                f"{LLAMA_70B.parameters:,}",
                "shape of Llama 3 70B (Grattafiori et al. 2024, table 3; vocabulary as released, 128,256), summed",
            ],
            ["bfloat16 peak of a GPU, dense", "989 TFLOP/s", sheet],
            ["memory of a GPU, its bandwidth", "80 GB, 3.35 TB/s", sheet],
            ["link within a node, one way", "450 GB/s a GPU", sheet + " (900 GB/s in both directions)"],
            ["links of a node", "8 x 400 Gbit/s", "NVIDIA DGX H100 data sheet"],
            ["used of the peak", f"{H100S.used_of_peak:.0%}", assumed + "; 38 to 43 % in Grattafiori et al. 2024, table 4"],
            ["used of memory's and of the network's bandwidth", f"{H100S.used_of_memory:.0%}, {H100S.used_of_network:.0%}", assumed],
            ["an all-reduce of a decoding step in a node", span(H100S.all_reduce_s), assumed],
            ["shared disk", size(H100S.disk_bytes_per_s) + "/s", assumed],
            [
                "days between failures of 64 GPUs",
                f"{H100S.days_between_failures:.0f}",
                "419 unexpected interruptions of 16,384 GPUs in 54 days (Grattafiori et al. 2024, section 3.3.4), scaled",
            ],
            ["sha256 of one thread", size(costs.hash_bytes_per_s) + "/s", here],
            ["a point of a metric in MLflow", f"{costs.point_bytes:.0f} B, {span(costs.point_s)} to deliver", here + "; SQLite"],
            [
                "a flow run of 3 stages with 400 points each, in MLflow",
                f"{size(costs.mlflow_bytes)}, {costs.mlflow_rows:,.0f} rows",
                here,
            ],
            ["the same in Prefect", f"{size(costs.prefect_bytes)}, {costs.prefect_rows:.0f} rows", here],
            ["the same in the store, beside its artifacts", f"{size(costs.store_bytes)}, {costs.store_files:.0f} files", here],
            ["a line of a run's log in Prefect", f"{costs.line_bytes:.0f} B", here],
            ["a record of a run, read", span(costs.record_s), here],
        ],
    )


def memory_table() -> str:
    """Gigabytes of one GPU by part."""
    rows = []
    for stage in RUN:
        m = memory_of(stage)
        parts = (m.trained_weights, m.frozen_weights, m.gradients, m.optimiser, m.gathered, m.activations, m.kv_cache)
        rows.append(
            [
                stage.stage,
                f"{stage.group_tokens:,}",
                *(_gb(part) for part in parts),
                _fits(m.total),
                _gb(m.recomputed) if m.gradients else "",
                _fits(m.total_recomputed) if m.gradients else "",
                _fits(memory_of(stage, min(stage.groups // H100S.gpus, RECOMPUTED_GROUPS)).total_recomputed) if m.gradients else "",
            ]
        )
    header = ["stage", "tokens of a pass", "weights", "frozen models", "gradients", "optimiser", "gathered", "activations", "KV cache"]
    return table(
        [*header, "total", "activations, layers computed again", "total then", f"in passes of up to {RECOMPUTED_GROUPS} groups"], rows
    )


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f}" if n_bytes else ""


def _fits(n_bytes: float) -> str:
    return _gb(n_bytes) if n_bytes <= H100S.gpu_bytes else f"**{_gb(n_bytes)}**"


def time_table() -> str:
    """Hours of each stage, by what they go into; and of all."""
    rows, sums = [], [0.0] * 6
    for stage in RUN:
        parts = times(stage)
        sums = [total + part for total, part in zip(sums, parts, strict=True)]
        rows.append([stage.label, f"{stage.tokens / 1e6:,.0f}", *(span(part) if part else "" for part in parts)])
    rows.append(["all", "", *(span(part) for part in sums)])
    header = ["stage", "million tokens", "operations", "network, a group a pass", f"network, {RECOMPUTED_GROUPS} groups a pass"]
    return table([*header, "generation, an engine a node", "generation, weights gathered each step", "all: best of these"], rows)


def times(stage: PaperStage) -> tuple[float, float, float, float, float, float]:
    """Seconds: operations, network with small and with larger passes, generation in both ways, and what the best of them take together.

    Gathers run beside the operations, so that the longer of the two counts.
    """
    compute, small, large = compute_s(stage), network_s(stage, 1), network_s(stage, RECOMPUTED_GROUPS)
    engine = generate_s(stage, gathered=False)
    return compute, small, large, engine, generate_s(stage, gathered=True), max(compute, large) + engine


def rates_table() -> str:
    """What single steps take."""
    group = engine_step_s(64, 768)
    gather = H100S.gather_s(artifact_bytes())
    one = 8 * LLAMA_70B.parameters / (H100S.flops_per_s / H100S.gpus)
    return table(
        ["what", "value", "formula"],
        [
            ["gathering all weights once", span(gather), "2 N (G - 1)/G over the ring"],
            ["network of a training pass", span(train_pass_s()), "two gathers and float32 gradients scattered: 8 N (G - 1)/G"],
            ["operations of a token in training, layers computed again", span(one), "8 N over what one GPU reaches"],
            ["tokens of a pass from which on operations take longer", f"{train_pass_s() / one:,.0f}", "the second over the third"],
            [
                "a decoding step of 64 rows on an engine",
                span(group),
                "(2 N + rows x context x KV) / 8 GPUs over bandwidth, and all-reduces",
            ],
            [
                "rows at which an engine's products take as long as its reads",
                f"{_balance():.0f}",
                "read bytes / bandwidth = 2 N rows / rate",
            ],
            ["a decoding step with weights gathered", span(gather), f"{gather / group:.0f} times the engine's"],
            ["keys and values of a token", size(kv_bytes()), "2 x layers x KV width x 2 bytes"],
        ],
    )


def _balance() -> float:
    """Rows, with contexts short enough that weights are what is read."""
    per_row = 2 * LLAMA_70B.parameters / (H100S.peak_flops_per_s * H100S.used_of_peak)
    return artifact_bytes() / (H100S.memory_bytes_per_s * H100S.used_of_memory) / per_row


def disk_table(costs: Costs) -> str:
    """Checkpoints, artifacts, and what hashing them takes."""
    policy, ppo = artifact_bytes(), checkpoint_bytes(2)
    one = checkpoint_bytes(1)
    models = sum(trained_models(stage) > 0 for stage in RUN) + 1
    shards = -(-policy // SHARD_BYTES)
    threads = min(HASH_THREADS, shards)
    verify = policy / shards / costs.hash_bytes_per_s if shards <= HASH_THREADS else policy / threads / costs.hash_bytes_per_s
    written = one / H100S.disk_bytes_per_s
    return table(
        ["what", "value", "formula"],
        [
            ["a policy", size(policy), "2 N"],
            ["the models of the run", size(models * policy), f"{models} of them: the base and what {models - 1} stages train"],
            ["a checkpoint of one model", size(one), "12 N: float32 weights and two moments"],
            ["of PPO, which trains two", size(ppo), "24 N"],
            ["disk while PPO runs", size(models * policy + 2 * ppo), "all models, and the old checkpoint until the new one is whole"],
            ["writing a checkpoint", span(written), "at the disk's rate"],
            ["its digest by one thread, as one file", span(one / costs.hash_bytes_per_s), "12 N over the measured rate"],
            ["its digest by 64 ranks, each its own part", span(one / H100S.gpus / costs.hash_bytes_per_s), "the same over 64"],
            [
                "best time between checkpoints, if each stops the work",
                span(checkpoint_every_s(written)),
                "sqrt(2 x writing x time between failures)",
            ],
            ["lost at the default of two minutes", f"{written / (written + 120):.0%}", "writing / (writing + 120 s)"],
            ["lost at the best", f"{2 * written / checkpoint_every_s(written):.1%}", "half for writing, half for what failures undo"],
            [
                "digest of a policy when it is stored, or first used by a process",
                span(verify),
                f"{shards} files of at most 50 GB, a thread each",
            ],
            ["the same by one thread", span(policy / costs.hash_bytes_per_s), "2 N over the measured rate"],
            ["a second use in the same process", span(costs.known_s), "size, time and inode of each of four files; measured here"],
        ],
    )


def databases_table(costs: Costs) -> str:
    """Rows and bytes of the run, and a day of a team."""
    points = sum(reports_of(stage) * stage.metrics for stage in RUN)
    hours = sum(times(stage)[-1] for stage in RUN) / 3600
    beats = hours * 3600 / HEARTBEAT_S
    row = costs.prefect_bytes / costs.prefect_rows
    rest = costs.mlflow_bytes - 1200 * costs.point_bytes
    day = RUNS_A_DAY * (points * costs.point_bytes + rest * len(RUN) / 3)
    prefect_day, beats_day = RUNS_A_DAY * costs.prefect_bytes * len(RUN) / 3, RUNS_A_DAY * DAY_S / HEARTBEAT_S * row
    prefect_year = 365 * prefect_day + EVENTS_KEPT_DAYS * beats_day
    return table(
        ["what", "value", "formula"],
        [
            ["points of metrics of the run", f"{points:,}", "updates x metrics of a report, as counted in this project's runs"],
            ["their bytes in MLflow", size(points * costs.point_bytes), "points x measured bytes"],
            ["time to deliver them, over the whole run", span(points * costs.point_s), "points x measured seconds, in the background"],
            [
                "heartbeats in Prefect",
                f"{beats:,.0f}, {size(beats * row)}",
                f"one in {HEARTBEAT_S} s over {hours:.0f} h, as large as its average row",
            ],
            [f"MLflow in a day of {RUNS_A_DAY} such runs", size(day), "points, and the rest of a run by its stages"],
            [
                f"Prefect in a day of {RUNS_A_DAY} runs that last all day",
                size(prefect_day + beats_day),
                "runs by their stages, and heartbeats",
            ],
            ["MLflow in a year of such days", size(365 * day), "nothing is removed by itself"],
            ["Prefect in a year of them", size(prefect_year), f"runs stay; heartbeats are events, removed after {EVENTS_KEPT_DAYS} days"],
            ["reading the records of a year's runs, at each command", span(365 * RUNS_A_DAY * costs.record_s), "runs x measured seconds"],
            [
                "the store beside its artifacts, in a year",
                size(365 * RUNS_A_DAY * costs.store_bytes * len(RUN) / 3),
                "runs by their stages",
            ],
            [
                "files of it",
                f"{365 * RUNS_A_DAY * costs.store_files * len(RUN) / 3:,.0f}",
                "the same; `artifacts gc --keep` removes those of forgotten runs",
            ],
            [
                f"KV cache of {ENGINE_ROWS} rows on an engine, a GPU",
                size(ENGINE_ROWS * 1024 * kv_bytes() / 8),
                "rows x 1,024 tokens / 8 GPUs",
            ],
        ],
    )
