"""The page: what it says, that hostile text stays text in it, and that it never grows too large for tracking."""

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from models.comparison import Findings, cell, compared
from models.configs.evaluation import ComparisonConfig
from models.lineage import Made, RunFacts
from models.plots import Point
from models.report import LARGEST_PAGE, Judged, page, plain
from models.side_by_side import LONGEST_TEXT, SHOWN, side_by_side

HOSTILE = (
    '</pre></title></svg><script>document.title="taken"</script>]]><img src="http://evil/x" onerror="x">'
    "{{ 7*7 }}\u202eevil\u2066\x00\ud800"
)
CONFIG = ComparisonConfig(baseline="base", resamples=200)
HACK = {"severity": "hack", "check": "length", "message": "Longer answers, not better ones.", "evidence": {"slope": 0.25}}


def rows(correct: float, text: str = "t", n: int = 30) -> list[dict[str, Any]]:
    known = {"n_tokens": 4, "finished": True, "kl_nats": 1 + correct}
    answers = [{"text": f"{text}{i}", "score": float(i / n < correct), **known} for i in range(n)]
    return [{"id": f"p{i}", "prompt": "q", "sampled": [a | {"correct": a["score"] == 1}]} for i, a in enumerate(answers)]


def content_of(names: tuple[str, ...] = ("base", "own", "other"), text: str = "t", **found: Any) -> dict[str, Any]:
    return compared(CONFIG, {name: rows(0.2 * (k + 1), text) for k, name in enumerate(names)}, Findings(**found), seed=1)


def facts(names: tuple[str, ...] = ("base", "own", "other"), updates: int = 30, name: str = "tiny-1") -> tuple[list[Judged], RunFacts]:
    history = {"train/loss": [Point(x, 1 / x) for x in range(1, updates)], "train/reward": [Point(x, x) for x in range(1, updates)]}
    cost = {"seconds": 12.5, "peak_bytes": 2**30}
    data = Made(name, "curate", "curate", "dataset", "d" * 64, "hit", {}, {}, {})
    made = [
        Made(name, one, "dpo", "policy", f"{k:064d}", "computed", {"data": data.digest}, {"beta": str(k)}, cost, history)
        for k, one in enumerate(names)
    ]
    return [Judged(one.label, one.digest, name) for one in made], RunFacts(name, "tiny", {"seed": name}, [data, *made])


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


def test_the_numbers_of_the_page_are_those_of_the_comparison():
    content = content_of()
    judged, run = facts()
    text = page(json.loads(json.dumps(content)), judged, [run])
    table = text.split('<table id="policies">')[1].split("</table>")[0]
    for row in content["rows"]:
        (line,) = [line for line in table.splitlines() if f'<th scope="row">{row["policy"]}</th>' in line]
        values = re.findall(r"<td[^>]*>([^<]*)</td>", line)
        gain = content["gains"].get(row["policy"], {}).get("accuracy")
        assert values[0] == cell(row["accuracy"]) and values[1] == (f"{cell(row['accuracy_gain'])}{gain['mark']}" if gain else "-")
    assert "12.5" in text and "cache hit" in text and "beta" in text and "d" * 12 in text


def test_the_same_twice():
    judged, run = facts()
    assert page(content_of(), judged, [run]) == page(content_of(), judged, [run])


def test_hostile_text_is_text_everywhere():
    names = ("base", f"own{HOSTILE}")
    finding = HACK | {"message": HOSTILE, "check": HOSTILE, "evidence": {HOSTILE: 1.0}}
    behaviour = {"policies": {names[1]: {"measures": [{"name": HOSTILE, "mean": 1.0, "low": 0.0, "high": 2.0}], "findings": [finding]}}}
    judged, run = facts(names, name=f"run{HOSTILE}")
    text = page(content_of(names, HOSTILE, behaviour=behaviour), judged, [run])
    text.encode("utf-8")
    assert not set("\u202e\u2066\x00") & set(text) and "RLO" in text
    found = Tags(text).found
    assert not {"script", "img", "link", "iframe", "object"} & {tag for tag, _ in found}
    assert not [name for _, attributes in found for name in attributes if name.startswith("on") or name in ("src", "href")]
    assert "http://" not in text.replace("http://evil/x", "") and "default-src 'none'" in text and "{{ 7*7 }}" in text


def test_hacks_come_first_and_only_where_there_are_any():
    behaviour = {"policies": {"own": {"measures": [], "findings": [HACK]}}}
    judged, run = facts()
    text = page(content_of(behaviour=behaviour), judged, [run])
    assert text.index("Reward hacking") < text.index("<h2>Policies") and "slope 0.25" in text
    assert "Reward hacking" not in page(content_of(), judged, [run])


def test_a_large_comparison_fits_nevertheless():
    names = ("base", *(f"policy {n}" for n in range(40)))
    judged, run = facts(names, updates=800)
    content = compared(CONFIG, {name: rows(0.5, "long " * 600, n=25) for name in names}, Findings(), seed=1)
    assert len(page(content, judged, [run]).encode()) <= LARGEST_PAGE


def test_the_page_of_a_comparison_with_nothing_but_a_table():
    text = page({"baseline": "a", "prompts": 2, "rows": [{"policy": "a", "reward": {"mean": 1.0, "se": 0.1}}], "markdown": ""}, [], [])
    assert "1.00 ± 0.10" in text


def test_every_plot_has_a_title_a_description_and_a_table():
    judged, run = facts()
    text = page(content_of(), judged, [run])
    figures = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    assert len(figures) >= 4 and all(part in figure for figure in figures for part in ("<title>", "<desc>", "<table>"))


def test_over_optimisation_and_the_reward_model_are_shown_where_they_are_there():
    point = {"mean": 1.0, "low": 0.5, "high": 1.5}
    measured = {"reward": point, "held_out_reward": None, "score": point}
    curve: dict[str, Any] = {"points": [{"step": s, "kl_nats": s**2, "sqrt_kl": s, **measured} for s in (0, 1)]}
    curve |= {"recommended_step": 1, "overoptimised": True, "message": "The held-out reward fell."}
    reward = {"measures": [{"name": "accuracy", "mean": 0.7, "low": 0.6, "high": 0.8, "values": {"a": 1}}]}
    reward |= {"reliability": [{"confidence": 0.6, "accuracy": 0.5, "accuracy_low": 0.2, "accuracy_high": 0.8, "pairs": 9}]}
    reward |= {"margin_by_length": [{"tokens": 3.0, "margin": point, "pairs": 9}], "best_of_n": [{"n": 2, "score": point}]}
    judged, run = facts()
    text = page(content_of(overoptimisation={"own": curve}, reward_evaluation=reward), judged, [run])
    assert "own: over-optimised" in text and "Recommended: update 1" in text and "Reliability of the reward model" in text
    assert "Margin by length" in text and "Best of n" in text
    assert "0.700 [0.600" in text


# Completions


def test_half_are_drawn_and_half_differ_most():
    base, own = rows(0.0, n=60), rows(0.1, n=60)  # they differ on p0 to p5
    chosen = side_by_side({"base": base, "own": own}, seed=3)
    assert len(chosen) == SHOWN == len({one["id"] for one in chosen})
    drawn, differing = ({one["id"] for one in chosen if one["why"] == why} for why in ("drawn at random", "policies differ"))
    assert len(drawn) == 10 and {f"p{i}" for i in range(6)} <= drawn | differing
    assert chosen == side_by_side({"base": base, "own": own}, seed=3) != side_by_side({"base": base, "own": own}, seed=4)


def test_a_long_text_is_cut_and_says_so():
    answer = side_by_side({"base": rows(1.0, "x" * 5000, n=1)}, seed=0)[0]["answers"]["base"]["text"]
    assert len(answer) < LONGEST_TEXT + 30 and answer.endswith("(5001 characters)")


@pytest.mark.parametrize(("text", "said"), [("a\u202eb", "a[RLO]b"), ("\x1b[1m", "[ESC][1m"), ("<b>", "<b>")])
def test_hidden_characters_are_named(text: str, said: str):
    assert plain(text) == said
