"""How far a policy's own confidence in its answers can be trusted.

Axes: ``C`` completions.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

BINS = 10


def bin_gaps(confidence_C: np.ndarray, correct_C: np.ndarray, prompt_C: np.ndarray, prompts: int) -> np.ndarray:
    """Sum of correct minus confidence in each bin, by prompt, and the prompt's completions: ``[P, BINS + 1]``."""
    bin_C = np.clip(np.ceil(confidence_C * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.zeros((prompts, BINS + 1))
    np.add.at(gaps, (prompt_C, bin_C), correct_C - confidence_C)
    gaps[:, BINS] = np.bincount(prompt_C, minlength=prompts)
    return gaps


def calibration_error(sums: np.ndarray) -> np.ndarray:
    """sum over bins of n_b / n * |accuracy_b - confidence_b|, of the sums over prompts of ``bin_gaps``: ``[..., BINS + 1]`` to ``[...]``.

    Ten bins of equal width over 0 to 1, each closed above. By hand: confidences .9, .9, .9, .9, three right: |.75 - .9| = .15.

    Source: Naeini et al. 2015; Guo et al. 2017, equation 3.
    """
    return np.abs(sums[..., :BINS]).sum(-1) / sums[..., BINS]


def agreement(answers: Sequence[str]) -> list[float]:
    """For each sampled answer the share of the other samples that say the same: self-consistency as confidence (Wang et al. 2023).

    By hand: 7, 7, 8 gives 1/2, 1/2, 0.
    """
    counts = Counter(answers)
    return [(counts[answer] - 1) / (len(answers) - 1) for answer in answers]
