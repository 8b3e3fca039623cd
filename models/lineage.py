"""Which artifact was made from which: what a run's stages say, as plain data, and the ways through it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.plots import Point


@dataclass(frozen=True)
class Made:
    """One stage of one run and the artifact it gave.

    ``inputs``: digests by name. ``config``: its settings, flat. ``cost``: seconds, tokens and peak memory, as far as they are known.
    ``history``: what it reported by metric, each point a step and a value.
    """

    run: str
    label: str
    stage: str
    kind: str
    digest: str
    outcome: str
    inputs: Mapping[str, str]
    config: Mapping[str, str]
    cost: Mapping[str, float]
    history: Mapping[str, Sequence[Point]] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFacts:
    """One run: its name, its recipe, its settings, flat, and its stages in the order they were called."""

    name: str
    recipe: str
    config: Mapping[str, str]
    stages: Sequence[Made]


def ancestors(digest: str, stages: Sequence[Made]) -> list[Made]:
    """The stage that made an artifact and every stage that it was made from, each once, the first ones first."""
    by_digest: dict[str, Made] = {}
    for made in stages:
        by_digest.setdefault(made.digest, made)
    found: dict[str, Made] = {}
    _collect(digest, by_digest, found)
    return list(found.values())


def _collect(digest: str, by_digest: Mapping[str, Made], found: dict[str, Made]) -> None:
    made = by_digest.get(digest)
    if made is None or digest in found:
        return
    for part in made.inputs.values():
        if part != digest:
            _collect(part, by_digest, found)
    found[digest] = made


def cost_of(digest: str, stages: Sequence[Made]) -> dict[str, float]:
    """What the stage of an artifact took, and under ``lineage_seconds`` all that it was made from with it; that only if all is known."""
    line = ancestors(digest, stages)
    if not line:
        return {}
    seconds = [made.cost.get("seconds") for made in line]
    known = [value for value in seconds if value is not None]
    return dict(line[-1].cost) | ({"lineage_seconds": sum(known)} if len(known) == len(seconds) else {})


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings as (dotted path, text)."""
    if isinstance(value, Mapping) and value:
        for name, part in value.items():
            yield from flat(part, f"{prefix}.{name}" if prefix else str(name))
    elif prefix:
        yield prefix, str(value)


def differing(settings: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Fields that at least two of the named settings have and in which they differ: field -> name -> value."""
    fields = dict.fromkeys(field for own in settings.values() for field in own)
    found = {}
    for one in fields:
        values = {name: own[one] for name, own in settings.items() if one in own}
        if len(set(values.values())) > 1:
            found[one] = values
    return found


@dataclass(frozen=True)
class Node:
    """A stage in the drawn graph, in pixels."""

    made: Made
    x: int
    y: int
    is_policy: bool


@dataclass(frozen=True)
class Graph:
    """The drawn graph."""

    nodes: Sequence[Node]
    edges: Sequence[str]
    width: int
    height: int


NODE_WIDTH, NODE_HEIGHT, GAP_X, GAP_Y = 148, 36, 34, 12


def graph_of(stages: Sequence[Made], policies: Sequence[str]) -> Graph:
    """The stages that lead to the policies, each right of all that it was made from. ``policies``: their digests."""
    shown: dict[str, Made] = {}
    for digest in policies:
        shown |= {made.digest: made for made in ancestors(digest, stages)}
    depth: dict[str, int] = {}
    for digest, made in shown.items():
        depth[digest] = 1 + max((depth[part] for part in made.inputs.values() if part in depth and part != digest), default=-1)
    columns: dict[int, list[str]] = {}
    for digest, column in depth.items():
        columns.setdefault(column, []).append(digest)
    nodes: dict[str, Node] = {}
    for column, members in columns.items():
        for row, digest in enumerate(members):
            x, y = 2 + column * (NODE_WIDTH + GAP_X), 2 + row * (NODE_HEIGHT + GAP_Y)
            nodes[digest] = Node(shown[digest], x, y, digest in policies)
    pairs = [(part, digest) for digest, node in nodes.items() for part in dict.fromkeys(node.made.inputs.values())]
    edges = [_edge(nodes[part], nodes[digest]) for part, digest in pairs if part in nodes and part != digest]
    width = 4 + len(columns) * (NODE_WIDTH + GAP_X) - GAP_X
    height = 4 + max((len(members) for members in columns.values()), default=0) * (NODE_HEIGHT + GAP_Y) - GAP_Y
    return Graph(list(nodes.values()), edges, width, height)


def _edge(start: Node, end: Node) -> str:
    x1, y1, x2, y2 = start.x + NODE_WIDTH, start.y + NODE_HEIGHT // 2, end.x, end.y + NODE_HEIGHT // 2
    middle = (x1 + x2) // 2
    return f"M{x1} {y1}C{middle} {y1} {middle} {y2} {x2} {y2}"
