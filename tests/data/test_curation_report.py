"""The page, the card and the counts: what they say, and that hostile rows stay text in them."""

import json
import re
from html.parser import HTMLParser

import pytest
import yaml

from data import curation_report
from data.blocks import registry
from data.configs import BlockConfig, CurateConfig, SourceConfig
from data.curation import curate
from data.curation_report import bars_of
from data.records import Demonstration
from data.tables import read_table
from data.templates import render_demonstration

HOSTILE = '<script>alert(1)</script><img src="http://evil/x" onerror=alert(2)>" onload="x\u202e{{ 7*7 }}'
NONE = dict.fromkeys(("demonstrations", "prompts", "test_prompts"), 0)


class Page(HTMLParser):
    """Tags with their attributes, and the text of each coloured and plain token box."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.boxes, self.stack, self.text = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.stack.append((tag, dict(attributes)))
        if tag == "span" and any(dict(a).get("class") == "tokens" for _, a in self.stack):
            self.boxes.append(["", dict(attributes).get("class") == "on"])

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop()[0] != tag:
            pass

    def handle_data(self, data):
        self.text.append(data)
        if self.stack and self.stack[-1][0] == "span" and any(a.get("class") == "tokens" for _, a in self.stack):
            self.boxes[-1][0] += data


@pytest.fixture
def curated(chat_folder, new_run, tmp_path, monkeypatch):
    monkeypatch.setitem(registry.BLOCKS, "unicode", "tests.data.planted_blocks:Upper")
    monkeypatch.setitem(registry.BLOCKS, "gopher", "tests.data.planted_blocks:Short")

    def curated(rows, *blocks, name="rows.jsonl", seed=1, source=None, **fields):
        run = new_run()
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = SourceConfig(kind="file", name=str(tmp_path / name), **(source or {}))
        listed = [BlockConfig(kind=kind, settings=settings) for kind, settings in blocks]
        config = CurateConfig(sources=[source], blocks=listed, workers=1, **(NONE | fields))
        curate(config, base=chat_folder, seed=seed, run=run)
        run.html, run.card = ((run.out / name).read_text() for name in ("report.html", "card.md"))
        return run

    return curated


def shows(n):
    return [{"prompt": f"question {i}", "completion": f"a long enough answer {i}"} for i in range(n)]


def test_hostile_rows_names_and_reasons_stay_text(curated):
    rows = [*shows(30), {"prompt": HOSTILE, "completion": HOSTILE * 3}, {"prompt": "x", "completion": "y", HOSTILE: 1}]
    blocks = (("unicode", {"only": HOSTILE[:8]}), ("gopher", {"least": 14}))
    run = curated(rows, *blocks, name="<b>rows.jsonl", source={"license": HOSTILE}, demonstrations=-1)
    page = Page(run.html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img", "b", "iframe", "link", "object"})
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name in ("src", "href")]
    policy = next(attributes for tag, attributes in page.tags if attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    shown = "".join(page.text)
    assert "<script>alert(1)</script>" in shown and "<SCRIPT>ALERT(1)" in shown and "{{ 7*7 }}" in shown
    assert "<" not in run.card
    assert yaml.safe_load(run.card.split("\n---\n")[0])["license"] == HOSTILE


def test_the_card_has_a_head_sources_digests_blocks_and_tables(curated, tmp_path):
    run = curated(shows(20), ("gopher", {"least": 3}), source={"license": "MIT"}, demonstrations=12, test_prompts=5)
    head, body = run.card.removeprefix("---\n").split("\n---\n", 1)
    parsed = yaml.safe_load(head)
    assert parsed["license"] == "MIT" and parsed["configs"][0] == {
        "config_name": "demonstrations",
        "data_files": "demonstrations.parquet",
    }
    import hashlib

    assert hashlib.sha256((tmp_path / "rows.jsonl").read_bytes()).hexdigest() in body
    assert "Made with seed 1." in body and '"least": 3' in body and "20 rows, 0 edited, 20 kept; rejected: none" in body
    assert re.search(r"\| demonstrations \| 12 \|", body) and re.search(r"\| test\\_prompts \| 5 \|", body)
    assert "| both | MIT | 20 | 0 | 0 | 1 |" in body
    assert yaml.safe_load(curated(shows(9), demonstrations=-1).card.split("---\n")[1])["license_name"] == "not stated"


def test_the_preview_is_what_a_trainer_sees(curated, chat_tokenizer):
    """Boxes are the tokens of the first rows in order, coloured exactly where they are trained on."""
    run = curated(shows(200), demonstrations=-1)
    boxes = Page(run.html).boxes
    ids, trained = [], []
    for record in read_table(run.out / "demonstrations.parquet", Demonstration):
        row, mask = render_demonstration(chat_tokenizer, record.messages)
        end = len(mask) - mask[::-1].index(True)  # what follows the last trained token is not packed
        if len(ids) + end > curation_report._PREVIEW_TOKENS:
            break
        ids += row[:end]
        trained += mask[:end]
    assert [on for _, on in boxes] == trained and True in trained and False in trained
    assert "".join(text for text, _ in boxes) == chat_tokenizer.decode(ids).replace("\n", "\u23ce")


def test_pairs_and_documents_are_previewed_too_and_prompts_are_not(curated):
    pairs = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(9)]
    boxes = Page(curated(pairs, preferences=-1).html).boxes
    coloured = "".join(text for text, on in boxes if on)
    assert "good" in coloured and "bad" in coloured and "q1" not in coloured
    boxes = Page(curated([{"text": f"page {i}"} for i in range(3)], documents=-1).html).boxes
    assert [on for _, on in boxes].count(False) == 3
    run = curated([{"prompt": f"q{i}"} for i in range(9)], prompts=-1)
    assert "No table of these is trained on" in run.html


def test_what_was_kept_and_what_was_not_is_shown(curated):
    rows = [*shows(40), *({"prompt": f"s{i}", "completion": "no"} for i in range(30)), {"prompt": 3}]
    run = curated(rows, ("unicode", {}), ("gopher", {"least": 10}), demonstrations=-1)
    text = "".join(Page(run.html).text)
    assert text.count("short: ") == 20 and "the least is 10" in text
    assert "Kept: 20" in text and "wrong_type: prompt is int, not a list of messages" in text
    assert text.count("became") == 20
    assert "odd 35, even 35" in text  # what the first block calls the rows


def test_a_page_of_long_rows_is_cut_to_a_size_that_tracking_takes(curated):
    rows = [{"prompt": f"question {i}", "completion": "<&>" * 900} for i in range(60)]
    run = curated(rows, *[("unicode", {})] * 8, demonstrations=-1, max_completion_tokens=0)
    assert 100_000 < len(run.html.encode()) <= curation_report._LARGEST_PAGE


def test_the_bars_of_a_histogram_by_hand():
    assert [(bar.name, bar.count, bar.height) for bar in bars_of([0, 1, 1, 3])] == [
        ("0", 1, 0.5),
        ("1", 2, 1.0),
        ("2", 0, 0.0),
        ("3", 1, 0.5),
    ]
    wide = bars_of([0, 50, 99])
    assert [bar.count for bar in wide] == [1, *[0] * 9, 1, *[0] * 8, 1] and wide[10].name == "50 to 54"
