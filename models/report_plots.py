"""Which plots the page of a comparison shows, from the comparison and from what the stages reported."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from models.lineage import Made
from models.plots import Plot, Point, Series, pareto_front, thinned

# What is drawn of the stages' reports, where more than one step of it was reported; names of mlflow/metrics.md.
_CURVES = {
    "train/reward": "Reward of sampled completions",
    "train/kl_nats": "KL to the reference, nats per completion",
    "train/completion_tokens": "Length of sampled completions, tokens",
    "train/accuracy": "Pairs ranked rightly",
    "train/entropy_nats": "Entropy, nats per token",
    "train/grad_norm": "Norm of the gradient",
    "eval/accuracy": "Accuracy on held-out prompts or pairs",
    "eval/reward": "Reward on held-out prompts",
}
_LOSS = "train/loss"
_MOST_LOSSES = 24
_FAR = 5.0  # times the KL of the next


class Styles:
    """The same name has the same colour, marker and dashes in every plot: policies first, in the order of the table."""

    def __init__(self, names: Sequence[str]) -> None:
        self._numbers = {name: number for number, name in enumerate(names)}

    def number(self, name: str) -> int:
        """The style of a name, a new one for a new name."""
        return self._numbers.setdefault(name, len(self._numbers))


def trade_offs(content: Mapping[str, Any], styles: Styles) -> Iterator[Plot]:
    """Accuracy, win rate and rewards against KL, with the policies that no other beats in both."""
    titles = {"accuracy": "accuracy", "win_rate": "win rate", "reward": "reward", "held_out_reward": "held-out reward"}
    for column, title in titles.items():
        rows = [row for row in content["rows"] if row.get(column) is not None and row.get("kl_nats") is not None]
        rows, left_out = _without_outlier(rows)
        if len(rows) < 2:
            continue
        points = {row["policy"]: _point(row["kl_nats"], row[column]) for row in rows}
        front = pareto_front([(p.x, p.y) for p in points.values()])
        yield Plot(
            f"{title.capitalize()} against KL",
            "KL, nats",
            title,
            [Series(name, styles.number(name), [point]) for name, point in points.items()],
            f"The thin line joins the policies that no other beats: none has more for less KL.{left_out}",
            lines=False,
            front=front if len(front) > 1 else (),
        )


def _without_outlier(rows: list[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], str]:
    """Without a policy, such as an untrained one, whose KL would press all others into a corner; and what to say of it."""
    ordered = sorted(rows, key=lambda row: row["kl_nats"])
    if len(rows) < 3 or ordered[-1]["kl_nats"] <= _FAR * ordered[-2]["kl_nats"] or ordered[-2]["kl_nats"] <= 0:
        return rows, ""
    far = ordered[-1]
    return [row for row in rows if row is not far], f" {far['policy']} is not drawn: its KL is {far['kl_nats']:.3g} nats."


def _point(x: float, value: Any) -> Point:
    return Point(x, value["mean"], value.get("low"), value.get("high")) if isinstance(value, Mapping) else Point(x, value)


def curves(stages: Sequence[Made], styles: Styles, points: int) -> Iterator[Plot]:
    """What the stages reported while they trained: one plot a quantity, and of the losses, which do not compare, one plot a stage."""
    for metric, title in _CURVES.items():
        found = [(made, made.history[metric]) for made in stages if len(made.history.get(metric, ())) > 1]
        series = [Series(made.label, styles.number(made.label), thinned(own, points)) for made, own in found]
        series = [one for one in series if _is_drawable(one)]
        if series:
            yield Plot(title, "update", metric, series)
    for made in [made for made in stages if len(made.history.get(_LOSS, ())) > 1][:_MOST_LOSSES]:
        one = Series(made.label, styles.number(made.label), thinned(made.history[_LOSS], points))
        if _is_drawable(one):
            yield Plot(f"Loss of {made.label}", "update", _LOSS, [one], "Losses of different methods do not compare.")


def _is_drawable(one: Series) -> bool:
    return any(math.isfinite(point.y) for point in one.points)


def over_optimisation(content: Mapping[str, Any], points: int) -> Iterator[tuple[str, Plot, Mapping[str, Any]]]:
    """By policy: the reward that was trained on, the held-out reward and the verifier against the root of the KL, each as its own change
    since the first snapshot over its largest change, so that their scales compare."""
    titles = {"reward": "reward trained on", "held_out_reward": "held-out reward", "score": "verifier"}
    for policy, found in (content.get("overoptimisation") or {}).items():
        series = []
        for style, (key, title) in enumerate(titles.items()):
            own = [(p["sqrt_kl"], p[key]) for p in found["points"] if p.get(key) is not None]
            scale = max((abs(value["mean"] - own[0][1]["mean"]) for _, value in own), default=0.0) or 1.0
            moved = [_moved(x, value, own[0][1]["mean"], scale) for x, value in own]
            if moved:
                series.append(Series(title, style, thinned(moved, points)))
        if series:
            note = "Each curve is its change since the first snapshot over its largest change."
            yield policy, Plot(f"Over-optimisation of {policy}", "square root of KL, nats", "change, scaled", series, note), found


def _moved(x: float, value: Mapping[str, float], start: float, scale: float) -> Point:
    low, high = value.get("low"), value.get("high")
    ends = [None if end is None else (end - start) / scale for end in (low, high)]
    return Point(x, (value["mean"] - start) / scale, *ends)


def reward_plots(content: Mapping[str, Any], points: int) -> Iterator[Plot]:
    """Reliability, margin by length and best of n of the reward model, as far as its evaluation holds them."""
    found = content.get("reward_evaluation") or {}
    bins = found.get("reliability") or []
    if bins:
        own = [Point(b["confidence"], b["accuracy"], b.get("accuracy_low"), b.get("accuracy_high")) for b in bins]
        note = "On the thin line confidence is as often right as it says."
        yield Plot("Reliability of the reward model", "confidence", "share right", [Series("held-out pairs", 0, own)], note, diagonal=True)
    lengths = found.get("margin_by_length") or []
    if lengths:
        own = [_point(b["tokens"], b["margin"]) for b in lengths]
        yield Plot("Margin by length", "chosen less rejected, tokens", "margin", [Series("held-out pairs", 0, thinned(own, points))])
    best = found.get("best_of_n") or []
    keys = [key for key in ("score", "true_score", "oracle_score") if best and key in best[0]]
    if keys:
        own = {key: [_point(b["n"], b[key]) for b in best if b.get(key) is not None] for key in keys}
        yield Plot("Best of n", "n", "score", [Series(key.replace("_", " "), i, own[key]) for i, key in enumerate(keys)])


def behaviour_order(content: Mapping[str, Any]) -> tuple[list[str], list[str], dict[tuple[str, str], Mapping[str, Any]]]:
    """Measures, policies, and the measure of each policy, of what training did to the model."""
    policies = (content.get("behaviour") or {}).get("policies") or {}
    cells = {(policy, measure["name"]): measure for policy, found in policies.items() for measure in found["measures"]}
    return list(dict.fromkeys(name for _, name in cells)), list(policies), cells
