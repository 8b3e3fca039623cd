"""The page of a comparison: one HTML file without script and without anything from elsewhere, for reading offline and for print.

What policies wrote is hostile text: all of it is escaped, hidden and reordering characters are named instead of obeyed, and the page's own
policy lets nothing in it load or run anything.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.labelling.display import pieces
from models.comparison import COLUMNS, MARKS, cell, columns_of, marked
from models.lineage import NODE_HEIGHT, NODE_WIDTH, Made, RunFacts, ancestors, cost_of, differing, graph_of
from models.plots import HEIGHT, WIDTH, draw
from models.report_plots import Styles, behaviour_order, curves, over_optimisation, reward_plots, trade_offs

LARGEST_PAGE = 900_000  # bytes; tracking takes files of up to a MiB
_DETAIL = ((2_000, 80, 20), (800, 40, 20), (300, 20, 20), (120, 12, 10), (60, 8, 4), (40, 4, 0))  # characters, points, prompts
_TEMPLATE = "report.html.jinja"


@dataclass(frozen=True)
class Judged:
    """A policy of the table: the digest of its artifact and the run that it is of."""

    name: str
    digest: str
    run: str


def page(content: Mapping[str, Any], judged: Sequence[Judged], runs: Sequence[RunFacts]) -> str:
    """The report as HTML, of at most 900 kB: where there is more, texts are cut shorter and curves thinned until it fits.

    Args:
        content: what ``comparison.json`` says.
        judged: the policies of the table that are known to the runs.
        runs: where they come from.

    Raises:
        ValueError: it is larger even so.
    """
    text = ""
    for longest, points, prompts in _DETAIL:
        text = _rendered(content, judged, runs, longest, points, prompts)
        if len(text.encode("utf-8", "replace")) <= LARGEST_PAGE:
            return text
    raise ValueError(f"the report has {len(text)} characters, more than {LARGEST_PAGE}: name fewer policies with --policy")


def _rendered(
    content: Mapping[str, Any], judged: Sequence[Judged], runs: Sequence[RunFacts], longest: int, points: int, prompts: int
) -> str:
    import jinja2
    from markupsafe import Markup

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"plain": plain, "shown": lambda text: Markup(shown(text)), "cell": cell, "number": number}
    environment.finalize = lambda value: plain(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
    stages = unique_stages(runs)
    styles = Styles([row["policy"] for row in content["rows"]])
    completions = content.get("completions", [])
    return environment.get_template(_TEMPLATE).render(
        content=content,
        runs=runs,
        judged=judged,
        columns=[(column, COLUMNS[column]) for column in columns_of(content["rows"])],
        marked=lambda row, column: marked(row, column, content.get("gains")),
        marks=MARKS,
        hacks=_findings(content, "hack"),
        warnings=_findings(content, "warning"),
        gain_columns=_gain_columns(content),
        trade_offs=[draw(plot) for plot in trade_offs(content, styles)],
        curves=[draw(plot) for plot in curves(stages, styles, points)],
        over=[(name, draw(plot), found) for name, plot, found in over_optimisation(content, points)],
        reward=[draw(plot) for plot in reward_plots(content, points)],
        behaviour=behaviour_order(content),
        stages=stages,
        costs={one.name: cost_of(one.digest, stages) for one in judged},
        lineage=[(one, ancestors(one.digest, stages)) for one in judged],
        names=_names(stages),
        graph=graph_of(stages, [one.digest for one in judged]),
        differences=_differences(judged, stages, runs),
        completions=completions[:prompts] if prompts < len(completions) else completions,
        longest=longest,
        size={"width": WIDTH, "height": HEIGHT, "node_width": NODE_WIDTH, "node_height": NODE_HEIGHT},
    )


# Text


def plain(text: object) -> str:
    """A text in which hidden and reordering characters are named: "a\\u202eb" becomes "a[RLO]b"."""
    return "".join(part or f"[{mark}]" for part, mark in pieces(str(text)))


def shown(text: str) -> str:
    """A text as HTML: escaped, hidden characters as marks."""
    return "".join(html.escape(part) if part else f'<b class="hidden">{html.escape(mark)}</b>' for part, mark in pieces(text))


def number(value: Any, unit: str = "") -> str:
    """A number with at most three significant decimals; "-" where it is not known."""
    if value is None:
        return "-"
    text = f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.3g}"
    return f"{text}{unit}"


# What the template walks over


def unique_stages(runs: Sequence[RunFacts]) -> list[Made]:
    """The stages of all runs; what several runs have in common once, from the run that computed it where one did."""
    best: dict[tuple[str, str], Made] = {}
    for made in (stage for run in runs for stage in run.stages):
        key = made.stage, made.digest
        if key not in best or (best[key].outcome == "hit" and made.outcome != "hit"):
            best[key] = made
    return list(best.values())


def _names(stages: Sequence[Made]) -> dict[str, str]:
    names: dict[str, str] = {}
    for made in stages:
        names.setdefault(made.digest, made.label)
    return names


def _findings(content: Mapping[str, Any], severity: str) -> list[tuple[str, Mapping[str, Any]]]:
    policies = ((content.get("behaviour") or {}).get("policies") or {}).items()
    return [(policy, finding) for policy, found in policies for finding in found["findings"] if finding["severity"] == severity]


def _gain_columns(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    titles = {
        "accuracy": "accuracy",
        "win_rate": "win rate over one half",
        "reward": "reward",
        "held_out_reward": "held-out reward",
        "kl_nats": "KL, nats",
        "n_tokens": "length, tokens",
    }
    return [(name, title) for name, title in titles.items() if any(name in own for own in content.get("gains", {}).values())]


def _settings(judged: Sequence[Judged], stages: Sequence[Made]) -> dict[str, Mapping[str, str]]:
    by_digest = {made.digest: made for made in reversed(stages)}
    return {one.name: by_digest[one.digest].config for one in judged if one.digest in by_digest}


def _differences(
    judged: Sequence[Judged], stages: Sequence[Made], runs: Sequence[RunFacts]
) -> list[tuple[str, list[str], dict[str, dict[str, str]]]]:
    """Fields that differ between policies, and between runs: title, whose columns there are, field -> name -> value."""
    fields = dict.fromkeys(field for run in runs for field in run.config)
    of_runs = differing({run.name: {field: run.config.get(field, "-") for field in fields} for run in runs})
    both = (("Between policies: fields that at least two of them have", differing(_settings(judged, stages))), ("Between runs", of_runs))
    return [(title, list(dict.fromkeys(name for own in found.values() for name in own)), found) for title, found in both if found]
