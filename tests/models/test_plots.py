"""Geometry of plots, lineage and costs, by hand."""

import math

import pytest

from models.lineage import Made, ancestors, cost_of, differing, flat, graph_of
from models.plots import HEIGHT, WIDTH, Plot, Point, Series, draw, pareto_front, thinned, ticks


def plot(*series: Series, **options) -> Plot:
    return Plot("title", "x", "y", series, **options)


def test_ticks_by_hand():
    assert ticks(0.03, 0.97, 5) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert ticks(-1, 1, 4) == pytest.approx([-1, -0.5, 0, 0.5, 1])


def test_the_front_by_hand():
    assert pareto_front([(2, 3), (1, 0), (0, 1), (2, 2)]) == [(0, 1), (2, 3)]


def test_thinned_keeps_both_ends():
    points = [Point(x, x) for x in range(100)]
    assert [p.x for p in thinned(points, 3)] == [0, 50, 99] and thinned(points[:2], 3) == points[:2]


def test_a_drawing_lies_within_its_frame_and_higher_values_higher_up():
    drawn = draw(plot(Series("a", 0, [Point(0, 1, 0.5, 1.5), Point(1, 2, 1.5, 2.5)]), lines=False, front=[(0, 1), (1, 2)]))
    assert all(0 < tick.at < WIDTH for tick in drawn.x_ticks) and all(0 < tick.at < HEIGHT for tick in drawn.y_ticks)
    heights = [tick.at for tick in drawn.y_ticks]
    assert heights == sorted(heights, reverse=True) and drawn.guide.startswith("M")
    assert drawn.rows == [["a", "0", "1", "0.5", "1.5"], ["a", "1", "2", "1.5", "2.5"]]


@pytest.mark.parametrize("y", [0.0, 5.0, -1e-9, 1e12])
def test_a_single_value_can_be_drawn(y):
    assert draw(plot(Series("a", 0, [Point(1, y)]))).series[0].marks


def test_values_that_are_not_finite_are_left_out():
    drawn = draw(plot(Series("a", 0, [Point(0, 1), Point(1, math.nan), Point(2, math.inf)])))
    assert "nan" not in drawn.series[0].line and len(drawn.rows) == 1
    with pytest.raises(ValueError, match="no point to draw"):
        draw(plot(Series("a", 0, [Point(0, math.nan)])))


def test_sixty_four_series_differ_by_more_than_their_dashes():
    drawn = draw(plot(*(Series(str(n), n, [Point(0, n), Point(1, n)]) for n in range(64))))
    assert len({(one.colour, one.key) for one in drawn.series}) == 64


# Lineage


def made(label: str, digest: str, seconds: float | None = None, **inputs: str) -> Made:
    cost = {} if seconds is None else {"seconds": seconds}
    return Made("run-1", label, label, "policy", digest, "computed", inputs, {}, cost)


STAGES = [
    made("base", "b", 1.0),
    made("curate", "d", 2.0, base="b"),
    made("sft", "s", 4.0, base="b", data="d"),
    made("dpo", "p", 8.0, policy="s"),
]


def test_what_a_policy_was_made_from_and_what_that_took():
    assert [one.label for one in ancestors("p", STAGES)] == ["base", "curate", "sft", "dpo"]
    assert cost_of("p", STAGES) == {"seconds": 8.0, "lineage_seconds": 15.0}
    assert cost_of("unknown", STAGES) == {}


def test_what_is_not_known_of_one_stage_is_not_known_of_all():
    assert cost_of("p", [*STAGES[:3], made("dpo", "p", None, policy="s")]) == {}
    assert cost_of("p", [made("sft", "s"), made("dpo", "p", 8.0, policy="s")]) == {"seconds": 8.0}


def test_arrows_lead_to_the_right():
    graph = graph_of(STAGES, ["p", "s"])
    places = {node.made.label: node.x for node in graph.nodes}
    assert places["base"] < places["curate"] < places["sft"] < places["dpo"] and len(graph.edges) == 4
    assert [node.made.label for node in graph.nodes if node.is_policy] == ["sft", "dpo"]


def test_only_fields_that_differ():
    first, second = dict(flat({"optim": {"rate": 1}, "beta": 0.1})), dict(flat({"optim": {"rate": 2}, "beta": 0.1, "own": 3}))
    assert differing({"a": first, "b": second}) == {"optim.rate": {"a": "1", "b": "2"}}
