import hashlib
import json

import pytest

from data import curation
from data.configs import CurateConfig, SourceConfig
from data.curation import curate
from data.records import Demonstration, Label, Message, Preference, Prompt, Ranking, normalised_text
from data.tables import read_table
from data.verifiers import verify

NONE = dict.fromkeys(("demonstrations", "prompts", "preferences", "labels", "rankings", "test_prompts", "test_preferences"), 0)
SUMS = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2}
TYPES = {
    "demonstrations": Demonstration,
    "prompts": Prompt,
    "preferences": Preference,
    "labels": Label,
    "rankings": Ranking,
    "test_prompts": Prompt,
    "test_preferences": Preference,
}


@pytest.fixture
def curated(chat_folder, new_run):
    """Curates with every table size 0 but those given; returns the run."""

    def curated(*sources, seed=1, **fields):
        run = new_run()
        run.meta = curate(CurateConfig(sources=list(sources), **(NONE | fields)), base=chat_folder, seed=seed, run=run)
        return run

    return curated


@pytest.fixture
def jsonl(tmp_path):
    """Writes rows (or raw lines) to a file and returns it as a source."""

    def jsonl(rows, name="rows.jsonl", **fields):
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        (tmp_path / name).write_bytes(b"\n".join(lines) + b"\n")
        return SourceConfig(kind="file", name=str(tmp_path / name), **fields)

    return jsonl


def table(run, name):
    return read_table(run.out / f"{name}.parquet", TYPES[name])


def rejected(run):
    return [json.loads(line) for line in (run.out / "rejected.jsonl").read_text().splitlines()]


def digests(run):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(run.out.iterdir())}


def shows(n, prefix="question "):
    return [{"prompt": f"{prefix}{i}", "completion": f"answer {i}"} for i in range(n)]


# A procedural task


def test_a_task_is_split_into_disjoint_tables_that_its_verifier_agrees_with(curated):
    run = curated(SourceConfig(task=SUMS), demonstrations=60, prompts=40, test_prompts=30)
    shown, asked, tested = (table(run, name) for name in ("demonstrations", "prompts", "test_prompts"))
    texts = [
        {normalised_text(messages) for messages in part}
        for part in ([row.messages[:-1] for row in shown], [row.messages for row in asked], [row.messages for row in tested])
    ]
    assert [len(part) for part in texts] == [60, 40, 30]
    assert len(set.union(*texts)) == 130
    for prompt in (*asked, *tested):
        assert prompt.verifier == "reasoning_gym" and prompt.answer is not None
        assert verify(prompt, prompt.answer).correct
        assert not verify(prompt, prompt.answer + "1").correct
    assert run.meta == {
        "rows": {"demonstrations": 60, "prompts": 40, "test_prompts": 30},
        "read_rows": run.metrics["data/read_rows"],
        "bad_rows": 0,
    }
    assert len({row.id for row in (*shown, *asked, *tested)}) == 130


def test_the_same_seed_gives_the_same_bytes_and_another_other_questions(curated):
    first, again, other = (curated(SourceConfig(task=SUMS), demonstrations=40, test_prompts=20, seed=seed) for seed in (1, 1, 2))
    assert digests(first) == digests(again)
    one, two = ({row.id for row in table(run, "demonstrations")} for run in (first, other))
    assert len(one & two) < 10  # neighbouring seeds of the library itself share all but one


def test_two_sources_of_one_task_share_no_question_and_are_mixed_by_weight(curated):
    easy, hard = SourceConfig(task=SUMS, weight=3), SourceConfig(task=SUMS | {"max_terms": 4})
    run = curated(easy, hard, SourceConfig(name="gcd", weight=4), prompts=80, test_prompts=40)
    asked = table(run, "prompts")
    assert sum(row.source == "reasoning_gym:gcd" for row in asked) == 40
    texts = [normalised_text(row.messages) for row in (*asked, *table(run, "test_prompts"))]
    assert len(set(texts)) == 120


def test_system_prompt_instruction_and_demonstration_wording(curated):
    source = SourceConfig(task=SUMS, instruction="Say only the number.", demonstration="The answer is {answer}.")
    run = curated(source, demonstrations=5, prompts=5, system_prompt="You add.")
    for row in table(run, "prompts"):
        assert row.messages[0] == Message("system", "You add.")
        assert row.messages[1].content.endswith("=\nSay only the number.")
        assert verify(row, f"The answer is {row.answer}.").correct
    assert all(row.messages[-1].content.startswith("The answer is ") for row in table(run, "demonstrations"))


def test_a_task_may_be_asked_in_ones_own_words(curated):
    run = curated(SourceConfig(task=SUMS, prompt="{expression} = ?"), prompts=5)
    for row in table(run, "prompts"):
        asked = row.messages[0].content
        assert asked == f"{row.metadata['metadata']['expression']} = ?" and verify(row, row.answer).correct


@pytest.mark.parametrize("prompt", ["{sum} =", "{} =", "{expression", "{expression.x}", "{expression[x]}"])
def test_words_the_task_does_not_know_are_refused(curated, prompt):
    with pytest.raises(ValueError, match=r"prompt=.* of chain_sum cannot be filled in.*it may name expression, num_digits"):
        curated(SourceConfig(task=SUMS, prompt=prompt), prompts=5)


def test_a_demonstration_that_its_own_verifier_refuses_stops_curation(curated):
    source = SourceConfig(task=SUMS, demonstration="{answer} it is")
    with pytest.raises(ValueError, match=r"it is' of chain_sum scores 0.*extraction='answer'"):
        curated(source, demonstrations=5)
    run = curated(source.model_copy(update={"extraction": "last_number"}), demonstrations=5, prompts=5)
    prompt = table(run, "prompts")[0]
    assert verify(prompt, f"{prompt.answer} it is").correct


def test_a_task_too_small_says_how_many_questions_it_has(curated):
    tiny = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    with pytest.raises(ValueError, match=r"gives only \d+ distinct questions in \d+ tries, 2000 are needed"):
        curated(SourceConfig(task=tiny), prompts=2000)


def test_a_task_without_answers_can_ask_but_not_show(curated, monkeypatch):
    def entries(task, parameters, *, seed):
        yield from ({"question": f"{i}?", "answer": None, "metadata": {}} for i in range(100))

    monkeypatch.setattr(curation, "task_entries", entries)
    assert len(table(curated(SourceConfig(), prompts=5), "prompts")) == 5
    with pytest.raises(ValueError, match="no_answer"):
        curated(SourceConfig(), demonstrations=5)


def test_many_repeats_of_a_small_task_are_counted_not_listed(curated):
    run = curated(SourceConfig(task={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}), prompts=60)
    report = json.loads((run.out / "report.json").read_text())
    assert report["sources"][0]["set_aside"]["duplicate"] > 0 and report["sources"][0]["bad"] == 0
    assert rejected(run) == []


# Files

BAD_ROWS = [
    (b'{"prompt": "caf\xe9", "completion": "x"}', "invalid_utf8"),
    (b"not json", "invalid_json"),
    ([1, 2], "wrong_type"),
    ({"prompt": 7, "completion": "x"}, "wrong_type"),
    ({"prompt": "q", "completion": " "}, "empty"),
    ({"prompt": "q", "completion": "\ud800"}, "invalid_utf8"),
    ({"prompt": "long " * 300, "completion": "x"}, "too_long"),
    ({"prompt": "q", "completion": "long " * 300}, "too_long"),
    ({"prompt": "say <|im_end|>", "completion": "x"}, "control_token"),
    ({"prompt": "q", "completion": "x<|im_start|>system"}, "control_token"),
    ({"prompt": "question 3", "completion": "answer 3"}, "duplicate"),
    ({"prompt": [{"role": "assistant", "content": "q"}], "completion": "x"}, "no_user_turn"),
]


def test_bad_rows_are_set_aside_with_reason_file_and_line(curated, jsonl):
    source = jsonl([*shows(20), *(row for row, _ in BAD_ROWS), *shows(5, "other ")])
    run = curated(source, demonstrations=-1, max_prompt_tokens=64, max_completion_tokens=64, max_bad_share=0.5)
    assert len(table(run, "demonstrations")) == 25
    assert [(row["line"], row["reason"]) for row in rejected(run)] == [(21 + i, reason) for i, (_, reason) in enumerate(BAD_ROWS)]
    assert {row["file"] for row in rejected(run)} == {source.name}
    assert all(row["detail"] for row in rejected(run))
    report = json.loads((run.out / "report.json").read_text())
    assert report["sources"] == [
        {
            "source": source.name,
            "read": 37,
            "bad": 11,
            "set_aside": {
                "control_token": 2,
                "duplicate": 1,
                "empty": 1,
                "invalid_json": 1,
                "invalid_utf8": 2,
                "no_user_turn": 1,
                "too_long": 2,
                "wrong_type": 2,
            },
        }
    ]
    assert run.metrics == {"data/read_rows": 37, "data/bad_rows": 11, "data/kept_rows": 25}


@pytest.mark.parametrize(("share", "stops"), [(0.19, True), (0.2, False)])
def test_more_than_the_allowed_share_of_bad_rows_stops_and_names_the_worst(curated, jsonl, share, stops):
    """2 of 10 rows are bad; two duplicates count for nothing."""
    source = jsonl([*shows(8), *shows(2), {"prompt": 1}, {"prompt": ""}])
    if not stops:
        curated(source, demonstrations=-1, max_bad_share=share)
        return
    with pytest.raises(
        ValueError, match=r"2 of 10 rows of .*rows.jsonl cannot be used.*wrong_type 1 \(first .*rows.jsonl:11: .*empty 1 \("
    ):
        curated(source, demonstrations=-1, max_bad_share=share)


def test_lengths_are_tokens_of_the_base_models_template(curated, jsonl, chat_tokenizer):
    source = jsonl(shows(10))
    run = curated(source, demonstrations=-1)
    lengths = json.loads((run.out / "report.json").read_text())["tables"]["demonstrations"]
    row = table(run, "demonstrations")[0]
    rendered = chat_tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in row.messages[:-1]], add_generation_prompt=True, return_dict=False
    )
    assert lengths["prompt_tokens_max"] == len(rendered)
    assert lengths["completion_tokens_max"] == len(chat_tokenizer("answer 3", add_special_tokens=False)["input_ids"]) + 1
    limit = lengths["prompt_tokens_max"]
    curated(source, demonstrations=-1, max_prompt_tokens=limit)
    with pytest.raises(ValueError, match=f"the prompt is {limit} tokens long, the limit is {limit - 1}"):
        curated(source, demonstrations=-1, max_prompt_tokens=limit - 1)
    with pytest.raises(ValueError, match=r"too_short 10 \(first .*the least is 40"):
        curated(source, demonstrations=-1, min_completion_tokens=40)


def test_a_test_prompt_is_kept_however_long_its_reference_answer_is(curated, jsonl):
    """Otherwise the test set would hold the easy questions only."""
    hard = {"prompt": "hard", "completion": "step " * 200}
    source = jsonl([*shows(9), hard], "test.jsonl", role="test")
    train = jsonl([*shows(9, "other "), hard | {"prompt": "also hard"}], "train.jsonl", role="train")
    run = curated(train, source, demonstrations=-1, test_prompts=-1, max_completion_tokens=64)
    assert len(table(run, "test_prompts")) == 10
    assert [(row["line"], row["reason"]) for row in rejected(run)] == [(10, "too_long")]


def test_files_of_every_kind_fill_their_tables(curated, jsonl):
    pairs = jsonl([{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}", "margin": i} for i in range(20)], "pairs.jsonl")
    labels = jsonl([{"prompt": f"l{i}", "completion": f"c{i}", "label": i % 2 == 0} for i in range(10)], "labels.jsonl")
    ranked = jsonl([{"prompt": f"r{i}", "completions": ["x", "y", "z"], "ranks": [2, 0, 1]} for i in range(10)], "ranked.jsonl")
    sizes = {"preferences": -1, "labels": -1, "rankings": -1, "demonstrations": -1, "prompts": -1, "test_preferences": 5}
    run = curated(pairs, labels, ranked, share_rows=True, **sizes)
    assert run.meta["rows"]["labels"] == 10 and run.meta["rows"]["rankings"] in range(5, 11)
    held = {normalised_text(row.prompt) for row in table(run, "test_preferences")}
    assert len(held) == 5
    for name in ("preferences", "labels", "rankings"):
        assert held.isdisjoint(normalised_text(row.prompt) for row in table(run, name))
    shown = {row.messages[-1].content for row in table(run, "demonstrations")}
    assert not any(text.startswith("bad") for text in shown) and "c1" not in shown and "c2" in shown and "x" not in shown
    margins = {
        row.chosen: row.margin for row in (*table(run, "preferences"), *table(run, "test_preferences")) if row.chosen.startswith("good")
    }
    assert margins == {f"good {i}": i for i in range(20)}


def test_a_training_row_that_is_in_the_test_file_is_withheld(curated, jsonl):
    twin = {"prompt": "question 10", "completion": "answer 0"}
    train = jsonl([*shows(10), {"prompt": "QUESTION  12", "completion": "leak"}, twin], "train.jsonl", role="train")
    test = jsonl([*shows(3, "question 1"), {"prompt": "question 3", "completion": "other"}], "test.jsonl", role="test")
    run = curated(train, test, demonstrations=-1, test_prompts=2)
    assert {row.messages[0].content for row in table(run, "demonstrations")} == {f"question {i}" for i in range(10) if i != 3}
    assert {(row["line"], row["reason"]) for row in rejected(run)} == {(4, "in_test_set"), (11, "in_test_set"), (12, "in_test_set")}
    assert len(table(run, "test_prompts")) == 2
    assert len(table(curated(train, test, demonstrations=-1, test_prompts=-1), "test_prompts")) == 4


def test_gsm8k_by_mapping(curated, jsonl):
    rows = [{"question": f"{i} + 1?", "answer": f"{i} + 1 = <<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"} for i in range(1000, 1030)]
    columns = {"prompt": "question", "completion": "answer"}
    run = curated(jsonl(rows, columns=columns, verifier="number", remove_calculator_marks=True), demonstrations=10, prompts=10)
    for row in table(run, "demonstrations"):
        assert "<<" not in row.messages[-1].content and "####" in row.messages[-1].content
    for row in table(run, "prompts"):
        assert row.answer == str(int(row.messages[0].content.split()[0]) + 1)
        assert verify(row, f"So it is {int(row.answer):,}.").correct and not verify(row, "1").correct


@pytest.mark.parametrize(("verifier", "completion"), [("number", "none"), ("math", "it is 4"), ("exact", None)])
def test_a_row_its_verifier_cannot_compare_with_is_set_aside(curated, jsonl, verifier, completion):
    source = jsonl([{"prompt": "a", "answer": "#### 4"}, {"prompt": "b", "completion": completion}], verifier=verifier)
    run = curated(source, prompts=-1, max_bad_share=0.5)
    assert [row["reason"] for row in rejected(run)] == ["no_answer"]
    assert verify(table(run, "prompts")[0], "#### 4").correct


def test_a_template_that_refuses_a_row_is_a_reason(curated, jsonl, monkeypatch):
    from data import screening

    def refuse(tokenizer, messages):
        raise ValueError("roles must alternate")

    monkeypatch.setattr(screening, "render_prompt", refuse)
    with pytest.raises(ValueError, match=r"template 3 \(first .*:1: roles must alternate"):
        curated(jsonl(shows(3)), demonstrations=-1)


def test_a_small_table_is_filled_as_far_as_it_goes_and_says_so(curated, jsonl):
    run = curated(jsonl(shows(7)), demonstrations=100)
    assert len(table(run, "demonstrations")) == 7
    assert any("demonstrations: 7 rows, 100 were asked for" in line for line in run.lines)


def test_an_empty_table_is_refused(curated, jsonl):
    with pytest.raises(ValueError, match=r"no row is left for prompts=3.*share_rows"):
        curated(jsonl(shows(7)), demonstrations=-1, prompts=3)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"columns": {"prompt": "question"}}, r"maps prompt to 'question'.*columns are \['completion', 'prompt'\]"),
        ({"columns": {"text": "prompt", "reply": "completion"}}, r"cannot tell the form .*\['reply', 'text'\]"),
        ({"instruction": "Say <|im_end|>"}, r"'<\|im_end\|>' is a control token"),
    ],
)
def test_a_wrong_source_is_the_users_mistake(curated, jsonl, fields, match):
    with pytest.raises(ValueError, match=match):
        curated(jsonl(shows(3), **fields), demonstrations=-1)


def test_a_file_without_rows_is_refused(curated, jsonl):
    with pytest.raises(ValueError, match="holds no rows"):
        curated(jsonl([b"", b" "]), demonstrations=-1)


def test_a_column_missing_from_the_first_rows_is_still_mapped(curated, jsonl):
    rows = [{"prompt": f"p{i}", "completion": "c", **({"who": "Be kind."} if i > 3 else {})} for i in range(6)]
    run = curated(jsonl(rows, columns={"system": "who"}), demonstrations=-1)
    assert sum(row.messages[0].role == "system" for row in table(run, "demonstrations")) == 2


def test_curation_gives_signs_of_life(curated, jsonl):
    assert curated(jsonl(shows(600)), demonstrations=-1).steps


def test_a_damaged_row_of_text_does_not_break_the_report(curated, jsonl):
    run = curated(jsonl([*shows(9), {"prompt": "a", "completion": "b", "\ud800": 1}, {"\ud800": 1}]), demonstrations=-1)
    assert [row["line"] for row in rejected(run)] == [11]


def test_pairs_are_linted_and_faults_stop_where_asked(curated, jsonl):
    rows = [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no"} for i in range(6)]
    source = jsonl([*rows, {"prompt": "0?", "chosen": "no", "rejected": "yes"}])
    run = curated(source, preferences=-1)
    assert run.metrics["data/lint_findings"] == 1 and any("win and lose against each other (1 of 6)" in line for line in run.lines)
    assert json.loads((run.out / "lint.json").read_text())["pairs"] == 7
    assert not (curated(source, prompts=3).out / "lint.json").exists(), "there are no pairs to look at"
    assert not (curated(source, preferences=-1, lint="off").out / "lint.json").exists()
    with pytest.raises(ValueError, match="lint found faults in the preferences"):
        curated(source, preferences=-1, lint="stop")
