"""Stage entry: one table of all policies, judged on the same held-out prompts."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.intervals import Interval, paired_bootstrap
from models.configs.evaluation import ComparisonConfig
from models.run import Run
from models.seeds import derive_seed

Rows = list[dict[str, Any]]

COLUMNS = {
    "policy": "policy",
    "accuracy": "accuracy",
    "accuracy_gain": "gain over baseline",
    "win_rate": "win rate",
    "reward": "reward",
    "minutes": "minutes",
    "kl_nats": "KL to baseline, nats",
    "completion_tokens": "length, tokens",
    "distinct": "distinct completions",
    "accuracy_greedy": "greedy accuracy",
}


def compare(config: ComparisonConfig, *, evaluations: dict[str, Path], seed: int, run: Run) -> dict[str, Any]:
    """Write ``comparison.json`` and ``comparison.md``: accuracy and win rate with 95 % paired-bootstrap intervals over prompts.

    Raises:
        ValueError: the baseline was not evaluated, or two policies answered different prompts.
    """
    answers = {name: json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["rows"] for name, folder in evaluations.items()}
    baseline = answers.get(config.baseline)
    if baseline is None:
        raise ValueError(f"comparison.baseline {config.baseline!r} was not evaluated; there is {', '.join(answers)}")
    rows = [row_of(name, own, baseline, config, derive_seed(seed, "comparison")) for name, own in answers.items()]
    markdown = as_markdown(rows, config, len(baseline))
    content = {"baseline": config.baseline, "prompts": len(baseline), "rows": rows, "markdown": markdown}
    (run.out / "comparison.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (run.out / "comparison.md").write_text(markdown, encoding="utf-8")
    return {"policies": len(rows), "prompts": len(baseline)}


def row_of(name: str, own: Rows, baseline: Rows, config: ComparisonConfig, seed: int) -> dict[str, Any]:
    """What the table says of one policy. Accuracy is there where a verifier was the judge, reward where there is a reward model."""
    if [r["id"] for r in own] != [r["id"] for r in baseline]:
        raise ValueError(f"{name} and {config.baseline} answered different prompts: evaluate both on the same data")
    other = None if name == config.baseline else baseline
    sampled = [c for r in own for c in r["sampled"]]
    row: dict[str, Any] = {"policy": name}
    if all("correct" in c for c in sampled):
        row |= _accuracy(own, other, config, seed)
    return row | {
        "win_rate": asdict(_win_rate(own, other, config, seed)) if other else None,
        "reward": _mean([c["reward"] for c in sampled]) if all("reward" in c for c in sampled) else None,
        "kl_nats": _mean([c["kl_nats"] for c in sampled]),
        "completion_tokens": _mean([c["n_tokens"] for c in sampled]),
        "distinct": len({c["text"] for c in sampled}),
    }


def _accuracy(own: Rows, other: Rows | None, config: ComparisonConfig, seed: int) -> dict[str, Any]:
    """Accuracy, its gain over the baseline on the same prompts, and the greedy accuracy where that is not the primary one."""
    accuracy = [_correct(r, config.primary) for r in own]
    before = [_correct(r, config.primary) for r in other] if other else None
    row: dict[str, Any] = {
        "accuracy": asdict(paired_bootstrap(accuracy, seed=seed, n=config.resamples)),
        "accuracy_gain": asdict(paired_bootstrap(accuracy, before, seed=seed, n=config.resamples)) if before else None,
    }
    if config.primary == "accuracy" and all("greedy" in r for r in own):
        row["accuracy_greedy"] = asdict(paired_bootstrap([_correct(r, "accuracy_greedy") for r in own], seed=seed, n=config.resamples))
    return row


def _correct(row: dict[str, Any], primary: str) -> float:
    return float(row["greedy"]["correct"]) if primary == "accuracy_greedy" else _mean([float(c["correct"]) for c in row["sampled"]])


def _win_rate(own: Rows, baseline: Rows, config: ComparisonConfig, seed: int) -> Interval:
    """Share of prompts on which the judge scores the policy's answer above the baseline's; ties are half."""
    wins = [
        _mean([_beats(a["score"], b["score"]) for a in _answers(x, config) for b in _answers(y, config)])
        for x, y in zip(own, baseline, strict=True)
    ]
    return paired_bootstrap(wins, seed=seed, n=config.resamples)


def _answers(row: dict[str, Any], config: ComparisonConfig) -> Rows:
    return [row["greedy"]] if config.primary == "accuracy_greedy" else row["sampled"]


def _beats(a: float, b: float) -> float:
    return 1.0 if a > b else 0.5 if a == b else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def as_markdown(rows: Rows, config: ComparisonConfig, prompts: int) -> str:
    """The table in Markdown, with what its numbers mean."""
    kind = "greedy completions" if config.primary == "accuracy_greedy" else "sampled completions"
    note = (
        f"{prompts} held-out prompts, the same for every policy; {kind}; baseline {config.baseline}; "
        "brackets are 95 % paired-bootstrap intervals over prompts."
    )
    return markdown_table(rows, note)


def markdown_table(rows: Rows, note: str) -> str:
    """Columns in which no row has a value are left out; the note stands below."""
    present = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    lines = [
        "| " + " | ".join(COLUMNS[key] for key in present) + " |",
        "|" + "---|" * len(present),
        *("| " + " | ".join(cell(row.get(key)) for key in present) + " |" for row in rows),
    ]
    return "\n".join([*lines, "", note, ""])


def cell(value: Any) -> str:
    """A value as text: a number with three digits, an interval with its ends, a mean with its standard error."""
    if value is None:
        return "-"
    if isinstance(value, dict) and "se" in value:
        return f"{value['mean']:.2f} ± {value['se']:.2f}"
    if isinstance(value, dict):
        # The space inside the brackets does not break, so that a narrow terminal wraps before the interval and not in it.
        return f"{value['mean']:.3f} [{value['low']:.3f},\u00a0{value['high']:.3f}]"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
