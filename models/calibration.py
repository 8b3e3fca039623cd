"""How far the probabilities of a preference model can be trusted, on held-out pairs.

Axes: ``P`` pairs; ``p_P`` is the probability that the model gives to the chosen completion beating the rejected one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from data.intervals import wilson
from data.packing import Group

BINS = 10
REPORT_FILE = "report.json"  # what is shown beside a tracked model


def brier_score(p_P: Tensor) -> float:
    """Mean of (1 - p)^2: the squared error of the probability of what was indeed chosen. 0 is perfect, 1/4 is a coin, 1 is surely wrong.

    By hand: p = (0.8, 0.4): (0.04 + 0.36) / 2 = 0.2.

    Source: Brier 1950 (one of its two equal halves).
    """
    return float(((1 - p_P) ** 2).mean())


def expected_calibration_error(p_P: Tensor, bins: int = BINS) -> float:
    """sum over bins of n_b / n * |accuracy_b - confidence_b|: how far stated confidence is from being right.

    A model's confidence is max(p, 1 - p), of the side that it prefers; it lies in [1/2, 1], which is cut into ``bins`` of equal width,
    each closed above. It is right where p > 1/2; p = 1/2 is half right.

    By hand: p = (0.9, 0.9, 0.9, 0.1): one bin of confidence 0.9, three of four right: |0.75 - 0.9| = 0.15.

    Source: Naeini et al. 2015; Guo et al. 2017, equation 3.
    """
    confidence_P, right_P, bin_P = binned(p_P, bins)
    gap_B = torch.zeros(bins, dtype=torch.float64).index_add(0, bin_P, right_P - confidence_P)
    return float(gap_B.abs().sum() / len(p_P))


def binned(p_P: Tensor, bins: int = BINS) -> tuple[Tensor, Tensor, Tensor]:
    """Of each pair the confidence max(p, 1 - p), whether the preferred side is the chosen one (1/2 at p = 1/2), and the bin, from 0."""
    p_P = p_P.double()
    confidence_P = torch.maximum(p_P, 1 - p_P)
    right_P = torch.where(p_P == 0.5, 0.5, (p_P > 0.5).double())
    bin_P = ((confidence_P - 0.5) * 2 * bins).ceil().long().sub(1).clamp(0, bins - 1)
    return confidence_P, right_P, bin_P


def reliability(p_P: Tensor, bins: int = BINS) -> list[dict[str, float]]:
    """The reliability diagram: of each bin of confidence with a pair in it its edges, mean confidence, accuracy with Wilson's interval.

    By hand: p = (0.9, 0.9, 0.9, 0.1), ten bins: one bin, from 0.85 to 0.9, confidence 0.9, accuracy 3/4.

    Source: Murphy and Winkler 1977; Guo et al. 2017, figure 1.
    """
    confidence_P, right_P, bin_P = binned(p_P, bins)
    rows = []
    for number in sorted(set(bin_P.tolist())):
        inside_P = bin_P == number
        pairs = int(inside_P.sum())
        share = wilson(int(right_P[inside_P].sum()), pairs)
        edges = {"low": 0.5 + number / (2 * bins), "high": 0.5 + (number + 1) / (2 * bins)}
        measured = {"confidence": float(confidence_P[inside_P].mean()), "accuracy": float(right_P[inside_P].mean())}
        rows.append(edges | measured | {"accuracy_low": share.low, "accuracy_high": share.high, "pairs": pairs})
    return rows


def subsets(groups: Sequence[Group], margins: Sequence[float], sources: Sequence[str]) -> dict[str, list[bool]]:
    """Which pairs (chosen, rejected) belong to which subset: by source, by which side is longer in tokens, by the sign of the margin.

    ``chosen_longer`` and ``chosen_shorter`` show a taste for length: a model that only prefers the longer text is right on all of the
    first and on none of the second. Empty subsets are left out.
    """
    longer = [len(g.completions[0]) - len(g.completions[1]) for g in groups]
    members = {f"source:{name}": [s == name for s in sources] for name in sorted(set(sources))}
    for name, values in (("length:chosen_longer", longer), ("margin:positive", margins)):
        members[name] = [v > 0 for v in values]
    for name, values in (("length:chosen_shorter", longer), ("margin:negative", margins)):
        members[name] = [v < 0 for v in values]
    members |= {"length:equal": [v == 0 for v in longer], "margin:zero": [v == 0 for v in margins]}
    return {name: member for name, member in members.items() if any(member)}


def judge_probabilities(p_P: Tensor, members: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    """Accuracy with its 95 % interval, expected calibration error and Brier score: of all pairs, and of each subset.

    Raises:
        ValueError: no pair, or a probability that is not finite.
    """
    if not len(p_P) or not bool(torch.isfinite(p_P).all()):
        raise ValueError(f"{len(p_P)} held-out pairs, with probabilities {p_P[:8].tolist()}: the model is damaged, or there is no pair")
    return _judged(p_P) | {"subsets": {name: _judged(p_P[torch.tensor(list(member))]) for name, member in members.items()}}


def _judged(p_P: Tensor) -> dict[str, Any]:
    share = wilson(int((p_P > 0.5).sum()), len(p_P))
    return {
        "pairs": len(p_P),
        "accuracy": share.mean,
        "accuracy_low": share.low,
        "accuracy_high": share.high,
        "calibration_error": expected_calibration_error(p_P),
        "brier": brier_score(p_P),
    }


def calibration_metrics(judged: Mapping[str, Any]) -> dict[str, float]:
    """What is reported of ``judge_probabilities``; the subsets by length only where they are there."""
    metrics = {
        "eval/accuracy": judged["accuracy"],
        "eval/accuracy_low": judged["accuracy_low"],
        "eval/accuracy_high": judged["accuracy_high"],
        "eval/pairs": judged["pairs"],
        "eval/calibration_error": judged["calibration_error"],
        "eval/brier": judged["brier"],
    }
    by_length = {"eval/accuracy_chosen_longer": "length:chosen_longer", "eval/accuracy_chosen_shorter": "length:chosen_shorter"}
    found = judged["subsets"]
    return metrics | {name: found[subset]["accuracy"] for name, subset in by_length.items() if subset in found}
