"""Stage entry: one table of ways to decode: average reward with its standard error, and minutes."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.comparison import Rows, markdown_table
from models.configs.guidance import DecodingComparisonConfig
from models.policy_metrics import policy_metrics
from models.run import Run
from models.side_by_side import RULE, side_by_side


def compare(config: DecodingComparisonConfig, *, evaluations: dict[str, Path], seconds: dict[str, float], run: Run) -> dict[str, Any]:
    """Write ``comparison.json`` and ``comparison.md``: one row a way of decoding, on the same held-out prompts.

    Args:
        config: what the table says besides.
        evaluations: results of ``models.guided_evaluation`` by name, in the order of the rows.
        seconds: that decoding took, by name.

    Raises:
        ValueError: two of them answered different prompts.
    """
    answers = {name: json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["rows"] for name, folder in evaluations.items()}
    first = next(iter(answers))
    for name, own in answers.items():
        if [r["id"] for r in own] != [r["id"] for r in answers[first]]:
            raise ValueError(f"{name} and {first} answered different prompts: evaluate both on the same data with the same settings")
    rows = [row_of(name, own, seconds[name]) for name, own in answers.items()]
    note = f"{len(answers[first])} held-out prompts, the same for every row; reward of the reward model, ± the standard error over prompts"
    note += f"; {config.note}." if config.note else "."
    markdown = markdown_table(rows, note)
    content = {"baseline": first, "prompts": len(answers[first]), "rows": rows, "markdown": markdown}
    content |= {"completions": side_by_side(answers, seed=0), "rule": RULE}
    content |= {"metrics": policy_metrics(content)}
    (run.out / "comparison.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (run.out / "comparison.md").write_text(markdown, encoding="utf-8")
    return {"rows": len(rows), "prompts": len(answers[first])}


def row_of(name: str, own: Rows, seconds: float) -> dict[str, Any]:
    """What the table says of one way of decoding."""
    answers = [c for r in own for c in r["sampled"]]
    kl = [c["kl_nats"] for c in answers if "kl_nats" in c]
    return {
        "policy": name,
        "reward": mean_and_error([_mean([c["reward"] for c in r["sampled"]]) for r in own]),
        "minutes": seconds / 60,
        "kl_nats": _mean(kl) if kl else None,
        "completion_tokens": _mean([c["n_tokens"] for c in answers]),
        "distinct": len({c["text"] for c in answers}),
        "distinct_share": len({c["text"] for c in answers}) / len(answers),
    }


def mean_and_error(values: Sequence[float]) -> dict[str, float]:
    """Mean and its standard error: the sample's deviation over the root of its size.

    By hand: (0, 2): mean 1, deviation sqrt(2), error 1. A single value has no error: 0.
    """
    mean = _mean(values)
    if len(values) < 2:
        return {"mean": mean, "se": 0.0}
    return {"mean": mean, "se": math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
