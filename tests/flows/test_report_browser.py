"""The page of a comparison in a real browser, from disk: it asks for nothing, runs nothing, and is never wider than the window."""

import os
from pathlib import Path
from typing import Any

import pytest

from models.comparison import Findings, compared
from models.configs.evaluation import ComparisonConfig
from models.lineage import Made, RunFacts
from models.plots import Point
from models.report import Judged, page

SHOTS = os.environ.get("POSTTRAIN_REPORT_SHOTS")  # a folder for pictures of the page, to be looked at
HOSTILE = (
    "</pre></svg><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">]]><style>*{display:none}</style>",
    "before \u202eedisni\u202c \u2066\u2067 zero\u200bwidth \ufeff\x00\x1b[31m {{ 7 * 7 }}",
    "<iframe src='http://127.0.0.1:9/'></iframe><meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>" + "x" * 4000,
    "Z\u0336\u0321\u0322\u031b\u0327a\u0336l\u0336g\u0337o " * 40,
)


def rows(correct: float) -> list[dict[str, Any]]:
    known = {"n_tokens": 4, "finished": True, "kl_nats": correct}
    right = [i < correct * 30 for i in range(30)]
    answers = [{"text": HOSTILE[i % 4], "score": float(right[i]), "correct": right[i], **known} for i in range(30)]
    return [{"id": f"p{i}", "prompt": HOSTILE[(i + 1) % 4], "sampled": [answer]} for i, answer in enumerate(answers)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run whose policies, settings and texts mean ill."""
    names = ["base", f"dpo{HOSTILE[0]}", *(f"variant_with_a_long_name_{n}" for n in range(6))]
    finding = {"severity": "hack", "check": "length", "message": HOSTILE[0], "evidence": {"slope": 0.25}}
    behaviour = {"policies": {names[1]: {"measures": [], "findings": [finding]}}}
    answers = {name: rows(0.1 * (k + 1)) for k, name in enumerate(names)}
    content = compared(ComparisonConfig(baseline="base", resamples=200), answers, Findings({}, behaviour), seed=1)
    history = {"train/loss": [Point(x, 1 / x) for x in range(1, 40)]}
    cost = {"seconds": 1.0}
    stages = [Made("tiny-1", n, "dpo", "policy", f"{k:064x}", "hit", {}, {"beta": n}, cost, history) for k, n in enumerate(names)]
    text = page(content, [Judged(one.label, one.digest, "tiny-1") for one in stages], [RunFacts("tiny-1", "tiny", {}, stages)])
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_offline_harmless_and_no_wider_than_the_window(chromium: Any, place: Path, width: int, scheme: str):
    context = chromium.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True)
    tab = context.new_page()
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda sent: said.append(sent.url) if sent.url != place.as_uri() else None)
    tab.on("dialog", lambda dialog: said.append("dialog"))
    tab.goto(place.as_uri())
    if SHOTS:
        tab.screenshot(path=f"{SHOTS}/report-{width}.png", full_page=True)
    assert said == [] and tab.title().startswith("Comparison:")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    wide = "e => !e.closest('.wide') && e.getBoundingClientRect().right > innerWidth + 1"
    assert tab.evaluate(f"[...document.querySelectorAll('body *')].filter({wide}).map(e => e.outerHTML.slice(0, 80))") == []
    assert tab.evaluate("document.querySelectorAll('script, img, iframe, pre style, a').length") == 0
    assert tab.evaluate("document.querySelectorAll('figure svg title').length") >= 3
    shown = tab.inner_text("body")
    assert "<script>document.title='taken'</script>" in shown and "RLO" in shown and "\u202e" not in shown
    context.close()
