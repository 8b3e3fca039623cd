"""Blocks inside curation: which rows pass them and when, what is left for the tables, and what the stage's key holds."""

import json
import tracemalloc
from collections import Counter

import pytest
from pydantic import ValidationError

from data.blocks import registry
from data.configs import BlockConfig, CurateConfig, SourceConfig
from data.curation import curate
from data.records import Demonstration, Document, Prompt
from data.tables import read_table, write_table

NONE = dict.fromkeys(("demonstrations", "prompts", "test_prompts"), 0)
KINDS = {"unicode": "Upper", "gopher": "Short", "exact": "First", "perplexity": "Words", "decontaminate": "Seen"}


@pytest.fixture(autouse=True)
def planted(monkeypatch):
    """Real kinds that stand for the blocks made for tests."""
    for kind, name in KINDS.items():
        monkeypatch.setitem(registry.BLOCKS, kind, f"tests.data.planted_blocks:{name}")


@pytest.fixture
def curated(chat_folder, new_run, tmp_path):
    """Curates rows of files with blocks; returns the run."""

    def curated(files, *blocks, workers=1, **fields):
        run = new_run()
        sources = []
        for number, (rows, more) in enumerate(files):
            path = tmp_path / f"rows{number}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            sources.append(SourceConfig(kind="file", name=str(path), **more))
        listed = [BlockConfig(kind=kind, settings=settings) for kind, settings in blocks]
        config = CurateConfig(sources=sources, blocks=listed, workers=workers, **(NONE | fields))
        run.meta = curate(config, base=chat_folder, seed=1, run=run)
        run.report_json = json.loads((run.out / "report.json").read_text())
        return run

    return curated


def shows(n, prefix="question", answer="a long enough answer"):
    return [{"prompt": f"{prefix} {i}", "completion": f"{answer} {i}"} for i in range(n)]


def asked(run, table="demonstrations"):
    return [row.messages[0].content for row in read_table(run.out / f"{table}.parquet", Demonstration)]


def rejected(run):
    return [json.loads(line) for line in (run.out / "rejected.jsonl").read_text().splitlines()]


def test_blocks_edit_and_reject_and_everything_is_told(curated):
    rows = [*shows(8), {"prompt": "q", "completion": "no"}, {"prompt": 7, "completion": "x"}, *shows(1)]
    run = curated([(rows, {})], ("gopher", {"least": 10}), ("unicode", {}), demonstrations=-1, max_bad_share=0.5)
    assert sorted(asked(run)) == [f"QUESTION {i}" for i in range(8)]
    listed = [(row["line"], row.get("block"), row["reason"]) for row in rejected(run)]
    assert listed == [(10, None, "wrong_type"), (11, None, "duplicate"), (9, "gopher", "short")]
    assert run.report_json["sources"][0] | {"source": ""} == {
        "source": "",
        "read": 11,
        "bad": 1,
        "set_aside": {"duplicate": 1, "wrong_type": 1},
        "rejected_by_blocks": {"gopher": 1},
    }
    gopher, upper = run.report_json["blocks"]
    assert gopher == {"block": "gopher", "rows": 10, "kept": 9, "edited": 0, "rejected": {"short": 1}}
    assert upper == {
        "block": "unicode",
        "rows": 9,
        "kept": 9,
        "edited": 9,
        "rejected": {},
        "labels": {"odd": 5, "even": 4},  # lines 1 to 8 and 11
    }
    assert run.metrics == {"data/read_rows": 11, "data/bad_rows": 1, "data/rejected_rows": 1, "data/kept_rows": 8}
    assert run.meta == {"rows": {"demonstrations": 8}, "read_rows": 11, "bad_rows": 1, "rejected_rows": 1}


def test_the_tables_do_not_depend_on_the_number_of_workers(curated):
    files = [(shows(50), {}), (shows(50, "ask"), {})]
    fields = {"demonstrations": 30, "prompts": 20, "test_prompts": 10}
    blocks = (("gopher", {"least": 29}), ("exact", {}), ("decontaminate", {}))
    one, two = (curated(files, *blocks, workers=n, **fields) for n in (1, 2))
    names = sorted(path.name for path in one.out.iterdir())
    assert names == sorted(path.name for path in two.out.iterdir()) and "report.html" in names
    assert all((one.out / name).read_bytes() == (two.out / name).read_bytes() for name in names)


def test_what_a_block_leaves_empty_or_equal_is_set_aside(curated, monkeypatch):
    """Upper case makes one text of these two answers."""
    rows = [{"prompt": f"q{i}", "chosen": "yes it is", "rejected": "YES it is" if i == 3 else "no"} for i in range(20)]
    run = curated([(rows, {})], ("unicode", {}), preferences=-1)
    assert [(row["line"], row["reason"]) for row in rejected(run)] == [(4, "chosen_equals_rejected")]


def test_held_out_rows_are_chosen_before_the_block_that_compares_with_them(curated):
    """Every question is there twice in other words that share an answer: whichever is held out, its twin may not train."""
    rows = [{"prompt": f"{how} {i}", "completion": f"answer {i}"} for i in range(30) for how in ("ask", "tell")]
    before = curated([(rows, {})], demonstrations=-1, test_prompts=10)
    run = curated([(rows, {})], ("decontaminate", {}), demonstrations=-1, test_prompts=10)
    tested = [row.messages[0].content for row in read_table(run.out / "test_prompts.parquet", Prompt)]
    assert tested == [row.messages[0].content for row in read_table(before.out / "test_prompts.parquet", Prompt)]
    numbers = {text.split()[1] for text in tested}
    assert len(tested) == 10 and numbers.isdisjoint(text.split()[1] for text in asked(run))
    assert not numbers.isdisjoint(text.split()[1] for text in asked(before))
    contaminated = [row for row in rejected(run) if row.get("block") == "decontaminate"]
    assert len(asked(run)) + len(contaminated) == 50  # less those whose twin is held out too
    assert {row["reason"] for row in contaminated} == {"evaluated"}


def test_rows_of_a_test_source_pass_no_block_and_all_of_them_are_compared_with(curated):
    train, test = shows(10), [{"prompt": "new", "completion": f"a long enough answer {i}"} for i in (2, 5)]
    files = [(train, {"role": "train"}), (test, {"role": "test"})]
    run = curated(files, ("unicode", {"only": "new"}), ("decontaminate", {}), demonstrations=-1, test_prompts=1)
    assert [row.messages[0].content for row in read_table(run.out / "test_prompts.parquet", Prompt)] == ["new"]
    assert sorted(asked(run)) == [f"question {i}" for i in range(10) if i not in (2, 5)]


def test_a_block_behind_decontamination_may_edit_and_the_row_is_checked_again(curated):
    rows = [*shows(6), {"prompt": "QUESTION 0", "completion": "A LONG ENOUGH ANSWER 0"}]
    run = curated([(rows, {})], ("decontaminate", {}), ("unicode", {}), demonstrations=-1, test_prompts=1)
    tested = read_table(run.out / "test_prompts.parquet", Prompt)[0].messages[0].content
    assert all(text.isupper() for text in asked(run)) and tested.upper() not in asked(run)
    assert len(asked(run)) == len(set(asked(run)))


def test_weights_share_out_what_the_blocks_left(curated):
    """Of the first source 30 of 90 rows are left, enough for its three quarters of 40."""
    short = [{"prompt": f"s{i}", "completion": "no"} for i in range(60)]
    files = [([*shows(30, "first"), *short], {"weight": 3}), (shows(60, "second"), {"weight": 1})]
    run = curated(files, ("gopher", {"least": 10}), demonstrations=40)
    assert Counter(text.split()[0] for text in asked(run)) == {"first": 30, "second": 10}
    assert Counter(row["reason"] for row in rejected(run)) == {"short": 60}


def test_a_source_of_which_blocks_leave_nothing_is_not_asked(curated):
    files = [([{"prompt": f"s{i}", "completion": "no"} for i in range(60)], {}), (shows(40), {})]
    run = curated(files, ("gopher", {"least": 10}), demonstrations=40)
    assert len(asked(run)) == 40


def test_what_blocks_reject_is_not_held_against_a_source(curated):
    """2 of 100 rows are unusable, and so many more are rejected that 8 are left."""
    rows = [*shows(8), *({"prompt": f"s{i}", "completion": "no"} for i in range(90)), {"prompt": 1}, {"prompt": 2}]
    assert len(asked(curated([(rows, {})], ("gopher", {"least": 10}), demonstrations=-1, max_bad_share=0.02))) == 8
    with pytest.raises(ValueError, match=r"2 of 100 rows of .* cannot be used"):
        curated([(rows, {})], ("gopher", {"least": 10}), demonstrations=-1, max_bad_share=0.01)


# Documents


def test_plain_documents_become_their_own_table(curated):
    rows = [{"text": f"page {i} of a book"} for i in range(30)]
    run = curated([([*rows, rows[0], {"text": " "}], {})], documents=-1)
    documents = read_table(run.out / "documents.parquet", Document)
    assert sorted(row.text for row in documents) == sorted(row["text"] for row in rows)
    assert [(row["line"], row["reason"]) for row in rejected(run)] == [(31, "duplicate"), (32, "empty")]
    lengths = run.report_json["tables"]["documents"]
    assert lengths["prompt_tokens_max"] == 0 and lengths["completion_tokens_max"] > 5


def test_a_text_column_among_others_has_to_be_asked_for(curated):
    rows = [{"text": f"page {i}", "url": "x"} for i in range(3)]
    with pytest.raises(ValueError, match="text \\(alone, or with form=text\\)"):
        curated([(rows, {})], documents=-1)
    assert curated([(rows, {"form": "text"})], documents=-1).meta["rows"] == {"documents": 3}


def test_documents_and_conversations_do_not_mix(curated):
    files = [([{"text": f"page {i}"} for i in range(5)], {}), (shows(5), {})]
    run = curated(files, demonstrations=-1, documents=-1, prompts=-1, share_rows=True)
    assert run.meta["rows"] == {"demonstrations": 5, "prompts": 5, "documents": 5}
    with pytest.raises(ValueError, match="prompts=-1, but no source supplies"):
        curated(files[:1], documents=-1, prompts=-1)


def test_of_a_row_little_stays_in_memory(chat_folder, new_run, tmp_path, monkeypatch):
    """What stays is a candidate: 7 numbers and references (100 bytes), its key and its identity (49 each) with their place in a set (33 to
    67), and its place on disk and line (32 each): less than 400 bytes. The text alone takes 6000."""
    from data import screening, tables

    monkeypatch.setattr(tables, "_READ_ROWS", 64)
    monkeypatch.setattr(screening, "render_document", lambda tokenizer, text: [1, 2, 3])

    def peak(n):
        path = tmp_path / f"{n}.jsonl"
        path.write_text("".join(json.dumps({"text": f"{i} " + "word " * 1200}) + "\n" for i in range(n)))
        config = CurateConfig(sources=[SourceConfig(kind="file", name=str(path))], documents=-1, max_completion_tokens=0, **NONE)
        run = new_run()
        tracemalloc.start()
        curate(config, base=chat_folder, seed=1, run=run)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(32)  # what is imported and compiled once
    few, many = peak(100), peak(600)
    assert many - few < 500 * 400


# The configuration


def test_settings_are_checked_and_their_defaults_written_out():
    config = BlockConfig(kind="gopher")
    assert config.settings == {"least": 10} == BlockConfig.model_validate_json(config.model_dump_json()).settings
    with pytest.raises(ValidationError, match=r"least = 'x': .*\(settings: least\)"):
        BlockConfig(kind="gopher", settings={"least": "x"})
    with pytest.raises(ValidationError, match=r"leest = 3: Extra inputs"):
        BlockConfig(kind="gopher", settings={"leest": 3})
    with pytest.raises(ValidationError, match="there is no block 'dsir'"):
        registry.BLOCKS.pop("dsir", None)
        BlockConfig(kind="dsir")


def test_a_byte_of_a_file_that_a_block_names_changes_the_key(tmp_path):
    from tasks.key import key_document

    class Code:
        sources, libraries = {}, ()

    def key(**fields):
        blocks = [BlockConfig(kind="perplexity", settings={"file": str(tmp_path / "good.txt")})]
        return key_document("curate", "dataset", CurateConfig(blocks=blocks, **fields), {}, 1, Code)

    (tmp_path / "good.txt").write_text("good")
    first = key()
    assert key(workers=7) == first
    (tmp_path / "good.txt").write_text("goad")
    second = key()
    assert second["config"] == first["config"] and second["extra"] != first["extra"]
    (tmp_path / "good.txt").unlink()
    with pytest.raises(FileNotFoundError, match="which the settings of the block perplexity name"):
        key()


def test_records_of_another_type_in_the_middle_of_a_table_are_refused(tmp_path, monkeypatch):
    from data import tables

    monkeypatch.setattr(tables, "_READ_ROWS", 2)
    records = [Document(str(i), "s", "t") for i in range(5)]
    assert write_table(tmp_path / "t.parquet", iter(records)) == 5
    assert read_table(tmp_path / "t.parquet", Document) == records
    with pytest.raises(ValueError, match=r"one record type, got \['Document', 'Prompt'\]"):
        write_table(tmp_path / "t.parquet", [*records, Prompt("p", "s", ())])
