"""Stage entry: one table of all policies, judged on the same held-out prompts, with all that was found out about them.

    comparison.json    {"baseline", "prompts", "primary", "rows": the table, "markdown": the table, "gains": {policy: {quantity: {"mean",
                       "low", "high", "p", "mark"}}}, "suites": [...], "behaviour": {...}, "overoptimisation": {policy: {...}},
                       "reward_evaluation": {...}, "completions": [...], "notes": [...], "metrics": {policy: {name: number}}}
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.intervals import Interval, paired_bootstrap
from data.measures import Suite, read_suite
from models.configs.evaluation import ComparisonConfig
from models.gains import Gains, gain_of, mark_all, paired_values, suite_table
from models.policy_metrics import policy_metrics
from models.run import Run
from models.seeds import derive_seed
from models.side_by_side import RULE, side_by_side

Rows = list[dict[str, Any]]

COLUMNS = {
    "policy": "policy",
    "accuracy": "accuracy",
    "accuracy_gain": "gain over baseline",
    "win_rate": "win rate",
    "reward": "reward",
    "held_out_reward": "held-out reward",
    "minutes": "minutes",
    "kl_nats": "KL to baseline, nats",
    "completion_tokens": "length, tokens",
    "distinct": "distinct completions",
    "accuracy_greedy": "greedy accuracy",
}
MARKS = (
    "* the paired 95 % interval against the baseline excludes zero; ** also by Holm's correction over all policies in the column."
)
_MARKED = ("accuracy_gain", "win_rate", "reward", "held_out_reward")


def compare(
    config: ComparisonConfig,
    *,
    evaluations: dict[str, Path],
    seed: int,
    run: Run,
    suites: dict[str, dict[str, Path]] | None = None,
    behaviour: Path | None = None,
    overoptimisation: dict[str, Path] | None = None,
    reward_evaluation: Path | None = None,
) -> dict[str, Any]:
    """Write ``comparison.json`` and ``comparison.md``: accuracy and win rate with 95 % paired-bootstrap intervals over prompts.

    Raises:
        ValueError: the baseline was not evaluated, or two policies answered different prompts.
    """
    answers = {name: read_json(folder / "evaluation.json")["rows"] for name, folder in evaluations.items()}
    for name in answers:
        if config.baseline in answers and not same_prompts(answers[name], answers[config.baseline]):
            raise ValueError(f"{name} and {config.baseline} answered different prompts: evaluate both on the same data")
    found = Findings(
        {policy: {name: read_suite(folder) for name, folder in own.items()} for policy, own in (suites or {}).items()},
        read_json(behaviour / "behaviour.json") if behaviour else None,
        {policy: read_json(folder / "overoptimisation.json") for policy, folder in (overoptimisation or {}).items()},
        read_json(reward_evaluation / "reward_evaluation.json") if reward_evaluation else None,
    )
    content = compared(config, answers, found, seed)
    (run.out / "comparison.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (run.out / "comparison.md").write_text(content["markdown"], encoding="utf-8")
    return {"policies": len(content["rows"]), "prompts": content["prompts"]}


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Findings:
    """What other stages found, as their files say it. ``suites``: by policy and name of the suite; ``overoptimisation``: by policy."""

    suites: Mapping[str, Mapping[str, Suite]] = field(default_factory=dict)
    behaviour: Mapping[str, Any] | None = None
    overoptimisation: Mapping[str, Any] = field(default_factory=dict)
    reward_evaluation: Mapping[str, Any] | None = None


def compared(
    config: ComparisonConfig,
    answers: Mapping[str, Rows],
    found: Findings,
    seed: int,
    unpaired: Mapping[str, Sequence[str]] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """All that ``comparison.json`` says. ``unpaired``: by policy, quantities of which it may not be paired with the baseline.

    A policy that answered other prompts than the baseline is paired in nothing.

    Raises:
        ValueError: the baseline was not evaluated.
    """
    baseline = answers.get(config.baseline)
    if baseline is None:
        raise ValueError(f"comparison.baseline {config.baseline!r} was not evaluated; there is {', '.join(answers)}")
    draws = derive_seed(seed, "comparison")
    pairable = {name: own for name, own in answers.items() if same_prompts(own, baseline)}
    strangers = [name for name in answers if name not in pairable]
    rows = [row_of(name, own, baseline if name in pairable else None, config, draws) for name, own in answers.items()]
    for row in rows:
        row |= dict.fromkeys((column for column in _without((unpaired or {}).get(row["policy"], ())) if column in row), None)
    gains = {name: _gains(own, baseline, config, draws) for name, own in pairable.items() if name != config.baseline}
    gains = {name: {q: gain for q, gain in own.items() if q not in (unpaired or {}).get(name, ())} for name, own in gains.items()}
    mark_all(gains)
    said = [*notes, *(_refusal(name, answers[name], config.baseline, baseline) for name in strangers)]
    gain = functools.partial(gain_of, seed=draws, resamples=config.resamples)
    content = {
        "baseline": config.baseline,
        "prompts": len(baseline),
        "primary": config.primary,
        "rows": rows,
        "markdown": as_markdown(rows, config, len(baseline), gains, said),
        "gains": gains,
        "suites": suite_table(found.suites, config.baseline, gain),
        "behaviour": _without_values(found.behaviour),
        "overoptimisation": dict(found.overoptimisation),
        "reward_evaluation": _without_values(found.reward_evaluation),
        "completions": side_by_side(answers, seed),
        "rule": RULE,
        "notes": said,
    }
    return content | {"metrics": policy_metrics(content)}


def same_prompts(own: Rows, baseline: Rows) -> bool:
    """Whether two policies answered the same prompts, in the same order."""
    return [row["id"] for row in own] == [row["id"] for row in baseline]


def _without(quantities: Sequence[str]) -> list[str]:
    """The columns of the table that say how these quantities compare with the baseline's."""
    return [{"accuracy": "accuracy_gain"}.get(quantity, quantity) for quantity in quantities if quantity in ("accuracy", "win_rate")]


def _refusal(name: str, own: Rows, baseline_name: str, baseline: Rows) -> str:
    shared = len({row["id"] for row in own} & {row["id"] for row in baseline})
    return (
        f"{name} answered {len(own)} prompts, of which {shared} are among the {len(baseline)} of {baseline_name}: they are not paired, and "
        "its intervals stand alone. Evaluate both on the same data to compare them."
    )


def _gains(own: Rows, baseline: Rows, config: ComparisonConfig, seed: int) -> dict[str, dict[str, Any]]:
    """By quantity, the difference to the baseline; of the win rate that to one half."""
    gains = {}
    for quantity in ("accuracy", "reward", "held_out_reward", "kl_nats", "n_tokens"):
        pair = paired_values(own, quantity, config.primary), paired_values(baseline, quantity, config.primary)
        if pair[0] is not None and pair[1] is not None:
            gains[quantity] = gain_of(pair[0], pair[1], seed, config.resamples)
    if "score" in own[0]["sampled"][0]:
        wins = _wins(own, baseline, config)
        gains["win_rate"] = gain_of(wins, [0.5] * len(wins), seed, config.resamples)
    return gains


def _without_values(found: Any) -> Any:
    """The same without the values item by item, which only pairing needs."""
    if isinstance(found, Mapping):
        return {name: _without_values(value) for name, value in found.items() if name != "values"}
    return [_without_values(value) for value in found] if isinstance(found, list) else found


def row_of(name: str, own: Rows, baseline: Rows | None, config: ComparisonConfig, seed: int) -> dict[str, Any]:
    """What the table says of one policy. Accuracy is there where a verifier was the judge, reward where there is a reward model.

    Without a baseline nothing is said of a gain: the policy answered other prompts.
    """
    if baseline is not None and not same_prompts(own, baseline):
        raise ValueError(f"{name} and {config.baseline} answered different prompts: evaluate both on the same data")
    other = None if name == config.baseline else baseline
    sampled = [c for r in own for c in r["sampled"]]
    row: dict[str, Any] = {"policy": name}
    if all("correct" in c for c in sampled):
        row |= _accuracy(own, other, config, seed)
    return row | {
        "win_rate": asdict(_win_rate(own, other, config, seed)) if other else None,
        "reward": _mean([c["reward"] for c in sampled]) if all("reward" in c for c in sampled) else None,
        "held_out_reward": _mean([c["held_out_reward"] for c in sampled]) if all("held_out_reward" in c for c in sampled) else None,
        "kl_nats": _mean([c["kl_nats"] for c in sampled]),
        "completion_tokens": _mean([c["n_tokens"] for c in sampled]),
        "distinct": len({c["text"] for c in sampled}),
        "distinct_share": len({c["text"] for c in sampled}) / len(sampled),
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
    return paired_bootstrap(_wins(own, baseline, config), seed=seed, n=config.resamples)


def _wins(own: Rows, baseline: Rows, config: ComparisonConfig) -> list[float]:
    return [
        _mean([_beats(a["score"], b["score"]) for a in _answers(x, config) for b in _answers(y, config)])
        for x, y in zip(own, baseline, strict=True)
    ]


def _answers(row: dict[str, Any], config: ComparisonConfig) -> Rows:
    return [row["greedy"]] if config.primary == "accuracy_greedy" else row["sampled"]


def _beats(a: float, b: float) -> float:
    return 1.0 if a > b else 0.5 if a == b else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def as_markdown(rows: Rows, config: ComparisonConfig, prompts: int, gains: Gains | None = None, notes: Sequence[str] = ()) -> str:
    """The table in Markdown, with what its numbers and marks mean."""
    kind = "greedy completions" if config.primary == "accuracy_greedy" else "sampled completions"
    note = (
        f"{prompts} held-out prompts, the same for every policy; {kind}; baseline {config.baseline}; "
        "brackets are 95 % paired-bootstrap intervals over prompts."
    )
    if any(gain["mark"] for own in (gains or {}).values() for gain in own.values()):
        note += f" {MARKS}"
    return markdown_table(rows, " ".join([note, *notes]), gains)


def marked(row: Mapping[str, Any], column: str, gains: Gains | None) -> str:
    """A cell of the table, with the mark of what it says about the baseline."""
    quantity = {"accuracy_gain": "accuracy", "completion_tokens": "n_tokens"}.get(column, column)
    gain = (gains or {}).get(row["policy"], {}).get(quantity) if column in _MARKED else None
    return f"{cell(row.get(column))}{gain['mark']}" if gain else cell(row.get(column))


def columns_of(rows: Rows) -> list[str]:
    """The columns in which a row has a value."""
    return [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]


def markdown_table(rows: Rows, note: str, gains: Gains | None = None) -> str:
    """Columns in which no row has a value are left out; the note stands below."""
    present = columns_of(rows)
    lines = [
        "| " + " | ".join(COLUMNS[key] for key in present) + " |",
        "|" + "---|" * len(present),
        *("| " + " | ".join(marked(row, key, gains) for key in present) + " |" for row in rows),
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
