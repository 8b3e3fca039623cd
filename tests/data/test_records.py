import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.records import Demonstration, Label, Message, Preference, Prompt, Ranking, Tie, normalised_text, record_id
from data.tables import read_table, write_table

ASKED = (Message("system", "Be brief."), Message("user", "2 + 2? é 漢"))
RECORDS = [
    Prompt("p", "s", ASKED, answer="4", verifier="number", metadata={"b": [1, {"c": None}], "a": 0.5}),
    Prompt("q", "s", ASKED),
    Demonstration("d", "s", (*ASKED, Message("assistant", "4"))),
    Preference("f", "s", ASKED, "4", "5", 0.25),
    Tie("u", "s", ASKED, "4", "four"),
    Label("l", "s", ASKED, "4", True),
    Ranking("r", "s", ASKED, ("4", "5", "6"), (0, 1, 1)),
    Ranking("t", "s", ASKED, ("4", "5"), (0, 1), (0.9, 0.1)),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.id)
def test_a_record_comes_back_from_its_table_as_it_went_in(record, tmp_path):
    assert type(record).from_row(record.to_row()) == record
    path = tmp_path / "table.parquet"
    assert write_table(path, [record, record]) == 2
    assert read_table(path, type(record)) == [record, record]
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_records_give_the_same_bytes(tmp_path):
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    for path in (first, second):
        write_table(path, [RECORDS[0], RECORDS[1]])
    assert first.read_bytes() == second.read_bytes()
    reordered = Prompt("p", "s", ASKED, answer="4", verifier="number", metadata={"a": 0.5, "b": [1, {"c": None}]})
    write_table(second, [reordered, RECORDS[1]])
    assert first.read_bytes() == second.read_bytes()


def test_an_empty_table_needs_its_type(tmp_path):
    with pytest.raises(ValueError, match="no record and no record_type"):
        write_table(tmp_path / "table.parquet", [])
    write_table(tmp_path / "table.parquet", [], Label)
    assert read_table(tmp_path / "table.parquet", Label) == []


def test_a_table_holds_one_type(tmp_path):
    with pytest.raises(ValueError, match=r"Demonstration.*Prompt"):
        write_table(tmp_path / "table.parquet", [RECORDS[0], RECORDS[2]])


def test_reading_the_wrong_thing_says_what_is_there(tmp_path):
    write_table(tmp_path / "prompts.parquet", [RECORDS[0]])
    with pytest.raises(ValueError, match="holds Prompt, not Label"):
        read_table(tmp_path / "prompts.parquet", Label)
    with pytest.raises(FileNotFoundError, match=r"no table labels.parquet .*\['prompts.parquet'\]"):
        read_table(tmp_path / "labels.parquet", Label)
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "prompts.parquet").read_bytes()[:-30])
    with pytest.raises(ValueError, match="not a readable Parquet table"):
        read_table(tmp_path / "torn.parquet", Prompt)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="holds unknown rows"):
        read_table(tmp_path / "other.parquet", Prompt)


def test_a_row_that_lacks_a_field_is_refused():
    with pytest.raises(ValueError, match=r"lacks \['completion'\]"):
        Label.from_row({"id": "", "source": "", "prompt": [], "desirable": True})


def test_ids_name_the_content():
    assert record_id(ASKED, "4") == record_id(tuple(ASKED), "4") != record_id(ASKED, "5")
    assert record_id(ASKED) != record_id((Message("user", "Be brief."), ASKED[1]))
    assert len(record_id("x")) == 16


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What  is\n2+2?", "what is 2+2?", True),
        ("\uff12 + 2", "2 + 2", True),
        ("What is 2+2?", "What is 2+3?", False),
    ],
)
def test_prompts_are_compared_by_their_normalised_text(one, other, same):
    left = normalised_text((Message("system", "anything"), Message("user", one)))
    assert (left == normalised_text((Message("user", other),))) is same


def test_who_says_it_counts():
    assert normalised_text((Message("user", "a"), Message("assistant", "b"))) != normalised_text((Message("user", "a b"),))
