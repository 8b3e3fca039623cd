"""Confidence against being right, by hand."""

import numpy as np
import pytest

from data.confidence import agreement, bin_gaps, calibration_error


def error(confidence, correct):
    places = np.arange(len(confidence))
    return float(calibration_error(bin_gaps(np.array(confidence), np.array(correct, float), places, len(places)).sum(0)))


def test_calibration_error_by_hand():
    assert error([0.9] * 4, [1, 1, 1, 0]) == pytest.approx(0.15)
    assert error([0.9, 0.9, 0.1, 0.1], [1, 1, 1, 1]) == pytest.approx((0.2 + 1.8) / 4), "bins do not cancel"
    assert error([1.0, 0.0], [1, 0]) == 0


def test_agreement_by_hand():
    assert agreement(["7", "7", "8"]) == [0.5, 0.5, 0]
