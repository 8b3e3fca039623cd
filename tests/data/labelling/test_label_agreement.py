"""Agreement against published worked examples and values by hand; the report on a small session by hand."""

import json
import math

import numpy as np
import pytest

from data.labelling.agreement import alpha, coincidences, confusion, grades, kappa, observed, over_items, signs
from data.labelling.records import Given
from data.labelling.report import markdown_of, report_of

# Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, section C: four observers, twelve units, "." is missing.
OBSERVERS = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]


def published_units() -> list[dict[str, int]]:
    rows = [observer.split() for observer in OBSERVERS]
    return [{str(n): int(row[unit]) - 1 for n, row in enumerate(rows) if row[unit] != "."} for unit in range(12)]


@pytest.mark.parametrize(("scale", "published"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_alpha_of_the_published_example(scale, published):
    assert alpha(coincidences(published_units(), 5), scale) == pytest.approx(published, abs=5e-4)


def test_coincidences_of_the_published_example():
    table = coincidences(published_units(), 5)
    assert table.sum(axis=1).tolist() == pytest.approx([9, 13, 10, 5, 3]) and table.sum() == pytest.approx(40)
    assert table[0, 1] == pytest.approx(4 / 3) and np.array_equal(table, table.T)


def test_alpha_by_hand():
    # Two observers, units (0, 0), (0, 1), (1, 1): coincidences [[2, 1], [1, 2]], n = 6; 1 - 5 * 2 / (2 * 3 * 3) = 4/9.
    assert alpha(coincidences([{"a": 0, "b": 0}, {"a": 0, "b": 1}, {"a": 1, "b": 1}], 2), "nominal") == pytest.approx(4 / 9)


def test_agreement_without_two_values_or_two_people_has_no_value():
    assert math.isnan(alpha(coincidences([{"a": 0, "b": 0}], 3), "nominal"))
    assert math.isnan(alpha(coincidences([{"a": 0}], 3), "ordinal"))
    assert math.isnan(kappa(np.zeros((3, 3)))) and math.isnan(kappa(np.diag([4.0, 0, 0])))
    assert over_items([np.zeros((3, 3))], observed, seed=0, n=100) is None


def test_kappa_by_hand():
    assert kappa(np.array([[20.0, 5.0], [10.0, 15.0]])) == pytest.approx(0.4)
    assert observed(np.array([[20.0, 5.0], [10.0, 15.0]])) == pytest.approx(0.7)


def test_a_table_of_two_annotators_counts_what_both_judged():
    units = [{"a": 0, "b": 2}, {"a": 1}, {"b": 1}, {"a": 1, "b": 1}]
    assert confusion(units, "a", "b").tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_comparisons_of_a_ranking_and_of_a_graded_pair():
    given = [Given("r", "a", (1, 0, 1)), Given("p", "a", (0, 1), 1), Given("p", "b", (1, 0), -2), Given("q", "a", (0, 1))]
    assert signs(given) == {"r": [{"a": 0}, {"a": 1}, {"a": 2}], "p": [{"a": 2, "b": 0}], "q": [{"a": 2}]}
    assert grades(given) == {"r": [{"a": 0}, {"a": 2}, {"a": 4}], "p": [{"a": 3, "b": 0}], "q": [{"a": 4}]}


def test_the_interval_is_over_items():
    tables = [np.diag([1.0, 0, 0])] * 50 + [np.array([[0, 1.0, 0], [0, 0, 0], [0, 0, 0]])] * 50
    found = over_items(tables, observed, seed=1, n=1000)
    assert found.mean == 0.5 and found.low == pytest.approx(0.4, abs=0.03) and found.high == pytest.approx(0.6, abs=0.03)
    assert over_items(tables, observed, seed=1, n=1000) == found


def session() -> list[Given]:
    """Two annotators on four pairs, and known answers: ada right on both, bob on one of two."""
    ada = [Given(f"i{n}", "ada", (0, 1), 2, "", (0, 1), 10.0 + n) for n in range(3)]
    ada += [Given("i3", "ada", (0, 0), 0, "", (0, 1), 20.0)]
    bob = [Given("i0", "bob", (0, 1), 1, "", (1, 0), 4.0), Given("i1", "bob", (1, 0), -2, "", (0, 1), 6.0)]
    skipped = Given("i2", "bob", (), order=(0, 1))
    known = [("ada", 0, (0, 1)), ("bob", 0, (0, 1)), ("bob", 1, (1, 0))]
    return [*ada, *bob, skipped, *(Given(f"g{n}", name, (0, 1), 2, "", (0, 1), 5.0, gold) for name, n, gold in known)]


def test_the_report_by_hand():
    report = report_of(session(), resamples=200)
    assert [report[name] for name in ("items_labelled", "items_of_several", "labels", "skips", "gold_labels")] == [4, 2, 6, 1, 3]
    assert report["agreement"]["raw"]["mean"] == 0.5
    assert report["pairs_of_annotators"][0] | {"raw": 0, "kappa": 0} == {"first": "ada", "second": "bob", "items": 2, "raw": 0, "kappa": 0}
    ada, bob = report["annotators"]["ada"], report["annotators"]["bob"]
    assert (ada["labels"], ada["skips"], bob["labels"], bob["skips"]) == (4, 0, 2, 1)
    assert (ada["gold_accuracy"]["mean"], bob["gold_accuracy"]["mean"], bob["gold_accuracy"]["n"]) == (1.0, 0.5, 2)
    assert ada["median_s"] == 11.0 and bob["median_s"] == 5.0  # ada: 5, 10, 11, 12, 20
    assert ada["tie_share"]["mean"] == 0.2 and bob["tie_share"]["mean"] == 0.0
    # Shown first won: of ada's four decided comparisons all; of bob's, what came first lost on both items and won on both known ones.
    assert ada["shown_first_share"]["mean"] == 1.0
    assert bob["shown_first_share"]["mean"] == pytest.approx(2 / 4)
    json.dumps(report, allow_nan=False)


def test_the_report_reads_well_and_a_name_is_no_markup():
    text = markdown_of(report_of([Given("i", "a|<b>", (0, 1), 2, "", (0, 1), 3.0)], resamples=100))
    assert "1 labels of 1 items" in text and "| a__b_ | 1 | 0 |" in text and "<b>" not in text
