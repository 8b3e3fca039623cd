"""How this project's rates grow with the work: fine-tuning over batch and length, generation over rows.

One process holds one model and runs all cases, a lap of each in turn, so that drift of the machine meets all of them alike.
"""

import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.groups import demonstration_group
from data.records import Demonstration, Message
from data.templates import load_tokenizer, render_prompt
from models.configs.sampling import SamplingConfig
from models.configs.sft import SFTConfig
from models.generation import generate
from models.loading import load_policy
from models.training.core import Loop, update_once
from models.training.imitation import Imitation
from models.training.optimiser import Trainee
from tests.bench.drive import Setting, start
from tests.bench.gate import Gate
from tests.bench.report import achieved, model_flops, parameters_of, short, table
from tests.bench.work import SEED, Work, Writer

FRAME_TOKENS = 12  # about what a chat template adds to a question and its answer
UPDATES = 10_000
PROMPT_TOKENS, NEW_TOKENS = 80, 64


@dataclass(frozen=True)
class Case:
    """Sequences of about ``tokens`` tokens at once; of generation, rows that answer prompts of 80 tokens with 64."""

    group: str
    rows: int
    tokens: int

    @property
    def name(self) -> str:
        """As the driver asks for it."""
        return f"{self.group}-{self.tokens if self.group == 'length' else self.rows}"


def cases(update_tokens: int) -> dict[str, Case]:
    """Batch 8, 32, 128 at length 128; length 128, 512, 2,048 with ``update_tokens`` tokens an update; generation of 8, 32, 128 rows."""
    found = [Case("batch", rows, 128) for rows in (8, 32, 128)]
    found += [Case("length", max(1, update_tokens // tokens), tokens) for tokens in (128, 512, 2048)]
    found += [Case("generate", rows, NEW_TOKENS) for rows in (8, 32, 128)]
    return {case.name: case for case in found}


# The side


class Scales:
    """A model, its optimiser, and a lap of any case."""

    def __init__(self, model: Path, run: Any) -> None:
        from tests.bench.ours import OPTIM

        self.run, self.policy = run, load_policy(model, run.device, trainable=True)
        self.trainees, self.loop = {"policy": Trainee(self.policy, OPTIM)}, Loop()
        self.writer, self.tokenizer = Writer(model), load_tokenizer(model)
        self.data: dict[Case, Any] = {}

    def lap(self, case: Case) -> float:
        """Tokens trained or generated."""
        return self._generate(case) if case.group == "generate" else self._train(case)

    def prepare(self, case: Case) -> None:
        """Texts of the case; they are the same in every lap."""
        draw = self.writer.text
        if case.group == "generate":
            work = Work("tokens", batch=max(1, case.rows // 8), prompt_tokens=PROMPT_TOKENS, completion_tokens=0)
            self.data[case] = [render_prompt(self.tokenizer, p.messages) for p in self.writer.prompts(work)[: work.batch]]
            return
        half = (case.tokens - FRAME_TOKENS) // 2
        records = [
            Demonstration(str(i), "bench", (Message("user", draw(half, 0.0)), Message("assistant", draw(half, 0.0))))
            for i in range(case.rows)
        ]
        groups = [demonstration_group(self.tokenizer, record.messages) for record in records]
        self.data[case] = Imitation(self.policy, groups, SFTConfig(batch_size=case.rows), SEED, 1.0)

    def _train(self, case: Case) -> float:
        metrics = update_once(self.run, self.data[case], self.trainees, self.loop, UPDATES)
        self.loop.update += 1
        return float(round(metrics["time/tokens_per_s"] * metrics["time/step_s"]))

    def _generate(self, case: Case) -> float:
        sampling = SamplingConfig(max_tokens=NEW_TOKENS, max_rows=case.rows)
        rows = generate(self.policy, self.data[case], sampling, samples=min(8, case.rows), eos_ids=[], seed=self.loop.update)
        return float(sum(len(completion.tokens) for row in rows for completion in row))


def serve(gate: Gate, model: Path, folder: Path) -> None:
    """Laps of the cases that the driver names, until it is done: ``NAME@TOKENS``, or ``NAME+@TOKENS`` to make the texts of one."""
    from tests.bench.ours import OPTIM, GatedRun

    scales, done = Scales(model, GatedRun(gate, folder)), 0.0
    gate.settings = SFTConfig(optim=OPTIM).model_dump(mode="json") | {"dtype": str(scales.policy.dtype)}
    while True:
        name, _, update_tokens = gate.lap(tokens=done).partition("@")
        case, prepares = cases(int(update_tokens))[name.removesuffix("+")], name.endswith("+")
        if prepares:
            scales.prepare(case)
        done = 0.0 if prepares else scales.lap(case)


# The driver


def measure(model: Path, setting: Setting, update_tokens: int, only: list[str] | None = None) -> dict[str, Any]:
    """Every case's laps, one of each in turn. The texts are made before the first."""
    wanted = [name for name in cases(update_tokens) if only is None or name in only]
    laps: dict[str, list[dict[str, Any]]] = {name: [] for name in wanted}
    with tempfile.TemporaryDirectory() as folder:
        side = start("ours", "scaling", model, Path(folder) / "ours", setting)
        try:
            for name in wanted:
                side.lap(f"{name}+@{update_tokens}")
            for lap in range(setting.warmup + setting.laps):
                for name in wanted[lap % len(wanted) :] + wanted[: lap % len(wanted)]:
                    measured = side.lap(f"{name}@{update_tokens}")
                    if lap >= setting.warmup:
                        laps[name].append(measured)
                    print(f"  {name} lap {lap + 1 - setting.warmup}: {measured}", file=sys.stderr, flush=True)
        finally:
            side.close()
    return {"update_tokens": update_tokens, "settings": side.settings, "laps": laps, "parameters": parameters_of(model)}


def summarise(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Median rate of each case, its share of the best of its group, and the model FLOP/s."""
    known = cases(measured["update_tokens"])
    rows = []
    for name, laps in measured["laps"].items():
        rates = [lap["work"]["tokens"] / lap["seconds"] for lap in laps]
        case = known[name]
        prompt_share = PROMPT_TOKENS / NEW_TOKENS if case.group == "generate" else 0.0
        each = model_flops(measured["parameters"], 0, 1 + prompt_share) if prompt_share else model_flops(measured["parameters"], 1, 0)
        rate = statistics.median(rates)
        row = {"case": name, "group": case.group, "rows": case.rows, "length_tokens": case.tokens, "tokens_per_s": rate}
        rows.append(row | {"low": min(rates), "high": max(rates), "flops_per_s": each * rate})
    best = {group: max(r["tokens_per_s"] for r in rows if r["group"] == group) for group in {r["group"] for r in rows}}
    return [row | {"share_of_best": row["tokens_per_s"] / best[row["group"]]} for row in rows]


def scaling_table(rows: list[dict[str, Any]], peak: float | None) -> str:
    """One row a case."""
    said = {"batch": "train, {rows} x {length_tokens} tokens", "length": "train, {rows} x {length_tokens} tokens"}
    said["generate"] = "generate, {rows} rows of {length_tokens} tokens"
    return table(
        ["case", "tokens/s (lowest to highest)", "share of the best", "model FLOP/s"],
        [
            [
                said[r["group"]].format(**r),
                f"{short(r['tokens_per_s'])} ({short(r['low'])} to {short(r['high'])})",
                f"{r['share_of_best']:.2f}",
                achieved(r["flops_per_s"], peak),
            ]
            for r in rows
        ],
    )


def plot(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Rates over batch, length and rows, with the line at 70 % of the best."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    axis = {
        "batch": ("rows", "sequences an update, of 128 tokens"),
        "length": ("length_tokens", "tokens a sequence, same tokens an update"),
        "generate": ("rows", "rows generated at once"),
    }
    groups = [group for group in axis if any(r["group"] == group for r in rows)]
    figure, panels = plt.subplots(1, len(groups), figsize=(4.2 * len(groups), 3.4), squeeze=False, layout="constrained")
    for panel, group in zip(panels[0], groups, strict=True):
        own = [r for r in rows if r["group"] == group]
        x, y = [r[axis[group][0]] for r in own], [r["tokens_per_s"] for r in own]
        spread = [[r["tokens_per_s"] - r["low"] for r in own], [r["high"] - r["tokens_per_s"] for r in own]]
        panel.errorbar(x, y, yerr=spread, marker="o", capsize=3)
        panel.axhline(0.7 * max(y), linestyle="--", linewidth=0.8, color="grey")
        panel.set_xscale("log", base=2)
        panel.set_xticks(x, [str(value) for value in x])
        panel.minorticks_off()
        panel.set_ylim(bottom=0)
        panel.set_xlabel(axis[group][1])
        panel.set_ylabel("tokens/s")
    figure.suptitle(title, fontsize=9)
    figure.savefig(path)
    plt.close(figure)
