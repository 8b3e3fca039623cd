"""Static plots as SVG geometry: what a template draws without script, the same bytes for the same numbers.

Colours alone never tell two series apart: a marker's shape and a line's dashes do too. The colours are those of Okabe and Ito 2008.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 34
COLOURS = 8
DASHES = ("", "5 3", "1.5 2.5", "7 2 1.5 2")
_MARKS_A_LINE = 6
_ROWS_OF_A_TABLE = 12


@dataclass(frozen=True)
class Point:
    """A value with the ends of its interval, where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points of one name. ``style``: the number of its colour, marker and dashes; the same name has the same in every plot."""

    name: str
    style: int
    points: Sequence[Point]


@dataclass(frozen=True)
class Plot:
    """What is drawn. ``lines``: points are joined; ``diagonal``: a thin line y = x; ``front``: the points that no other beats."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    note: str = ""
    lines: bool = True
    diagonal: bool = False
    front: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Tick:
    """A place on an axis, in pixels, and what stands there."""

    at: float
    text: str


@dataclass(frozen=True)
class Drawn:
    """A series in pixels: the path of its line, of its intervals, and of its markers."""

    name: str
    colour: int
    dash: str
    line: str
    bars: str
    marks: str
    key: str


@dataclass(frozen=True)
class Drawing:
    """A plot in pixels, and its numbers as a table."""

    plot: Plot
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    series: Sequence[Drawn]
    guide: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default_factory=list)


def draw(plot: Plot) -> Drawing:
    """The geometry of a plot; points that are not finite are left out.

    Raises:
        ValueError: no series has a point.
    """
    series = [Series(one.name, one.style, [p for p in one.points if math.isfinite(p.x) and math.isfinite(p.y)]) for one in plot.series]
    points = [p for one in series for p in one.points]
    if not points:
        raise ValueError(f"the plot {plot.title!r} has no point to draw")
    xs = [p.x for p in points]
    ys = [end for p in points for end in (p.y, p.low, p.high) if end is not None and math.isfinite(end)]
    x_ends, y_ends = _ends(xs + (ys if plot.diagonal else [])), _ends(ys + (xs if plot.diagonal else []))
    to_x, to_y = _scale(x_ends, LEFT, WIDTH - RIGHT), _scale(y_ends, HEIGHT - BOTTOM, TOP)
    guide = ""
    if plot.diagonal:
        guide = _path([(to_x(v), to_y(v)) for v in (max(x_ends[0], y_ends[0]), min(x_ends[1], y_ends[1]))])
    elif plot.front:
        guide = _path([(to_x(x), to_y(y)) for x, y in plot.front])
    return Drawing(
        plot,
        [Tick(to_x(v), _text(v)) for v in ticks(*x_ends, 5)],
        [Tick(to_y(v), _text(v)) for v in ticks(*y_ends, 5)],
        [_drawn(one, to_x, to_y, plot.lines) for one in series if one.points],
        guide,
        *_table(plot, series),
    )


def _drawn(one: Series, to_x: Callable[[float], float], to_y: Callable[[float], float], lines: bool) -> Drawn:
    places = [(to_x(p.x), to_y(p.y)) for p in one.points]
    shape = (one.style + one.style // COLOURS) % len(_SHAPES)  # of 64 series no two have both colour and shape in common
    step = max(1, len(places) // _MARKS_A_LINE) if lines else 1
    shown = places[::-step]
    bars = "".join(
        f"M{to_x(p.x):.1f} {to_y(p.low):.1f}V{to_y(p.high):.1f}" for p in one.points if p.low is not None and p.high is not None
    )
    marks = "".join(_SHAPES[shape](x, y) for x, y in shown)
    dash = DASHES[one.style // COLOURS % len(DASHES)]
    return Drawn(one.name, one.style % COLOURS, dash, _path(places) if lines else "", bars, marks, _SHAPES[shape](8, 6))


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def _polygon(*corners: tuple[float, float]) -> Callable[[float, float], str]:
    return lambda x, y: _path([(x + dx, y + dy) for dx, dy in corners]) + "Z"


def _arm(sx: int, sy: int) -> list[tuple[float, float]]:
    """A quarter of the outline of a plus sign."""
    corners = [(1.2 * sx, 4.0 * sy), (1.2 * sx, 1.2 * sy), (4.0 * sx, 1.2 * sy)]
    return corners if sx == -sy else corners[::-1]


_SHAPES: tuple[Callable[[float, float], str], ...] = (
    lambda x, y: f"M{x - 3.2:.1f} {y:.1f}a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0 -6.4 0Z",
    _polygon((-3, -3), (3, -3), (3, 3), (-3, 3)),
    _polygon((0, -4), (3.8, 3), (-3.8, 3)),
    _polygon((0, -4.3), (4.3, 0), (0, 4.3), (-4.3, 0)),
    _polygon((0, 4), (3.8, -3), (-3.8, -3)),
    _polygon(*((dx, dy) for sx, sy in ((1, -1), (1, 1), (-1, 1), (-1, -1)) for dx, dy in _arm(sx, sy))),
    _polygon((-4, 0), (3, -3.8), (3, 3.8)),
    _polygon((4, 0), (-3, -3.8), (-3, 3.8)),
)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis: the values with a little room; around a single value some room of its size."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.1 * abs(low) or 0.5
    return low - room, high + room


def _scale(ends: tuple[float, float], start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - ends[0]) / (ends[1] - ends[0]) * (end - start)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round values within an axis, 1, 2 or 5 times a power of ten apart. By hand: (0.03, 0.97), 5: 0.2, 0.4, 0.6, 0.8."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def _text(value: float) -> str:
    return f"{value:.4g}" if value else "0"


def _table(plot: Plot, series: Sequence[Series]) -> tuple[list[str], list[list[str]]]:
    """What the plot shows as rows of text: of a line twelve of its points, of others all."""
    has_interval = any(p.low is not None for one in series for p in one.points)
    columns = ["", plot.x_label, plot.y_label, *(["low", "high"] if has_interval else [])]
    rows = []
    for one in series:
        kept = thinned(one.points, _ROWS_OF_A_TABLE) if plot.lines else one.points
        for p in kept:
            ends = ["-" if end is None else _text(end) for end in (p.low, p.high)] if has_interval else []
            rows.append([one.name, _text(p.x), _text(p.y), *ends])
    return columns, rows


def thinned(points: Sequence[Point], n: int) -> Sequence[Point]:
    """At most ``n`` of the points, evenly, the first and the last among them."""
    if len(points) <= n:
        return points
    return [points[round(i * (len(points) - 1) / (n - 1))] for i in range(n)]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats, by x: less of x and more of y is better. By hand: (0, 1), (1, 0), (2, 3) gives (0, 1), (2, 3)."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front
