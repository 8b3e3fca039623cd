"""Sets of human comparisons."""

import json
from collections import Counter

import pytest

from data.judge_sets import load_judge_set, majority

PANDALM = {
    "instruction": "Rewrite.",
    "input": "Be so kind.",
    "response1": "Please.",
    "response2": True,
    "annotator1": 1,
    "annotator2": 2,
    "annotator3": 1,
}


@pytest.mark.parametrize(
    ("votes", "label"),
    [((1, 1, -1), 1), ((1, 0, -1), 0), ((-1, 0, 0), 0), ((-1, -1, -1), -1), ((1,), 1), ((0, 1, 1), 1), ((1, -1), 0)],
)
def test_the_majority(votes, label):
    assert majority(votes) == label


def test_pandalm_rows(tmp_path):
    (tmp_path / "set.json").write_text(json.dumps([PANDALM, {**PANDALM, "input": "", "annotator1": 0, "annotator3": 0}]))
    first, second = load_judge_set("pandalm", tmp_path / "set.json")
    assert first.candidates.prompt[0].content == "Rewrite.\n\nBe so kind." and second.candidates.prompt[0].content == "Rewrite."
    assert first.candidates.completions == ("Please.", "True")
    assert (first.votes, first.label, second.votes, second.label) == ((1, -1, 1), 1, (0, -1, 0), 0)


def test_llmbar_is_a_folder_of_subsets(tmp_path):
    row = {"input": "Name a colour.", "output_1": "Blue", "output_2": "Monday", "label": 1}
    (tmp_path / "natural.json").write_text(json.dumps([row]))
    (tmp_path / "Adversarial" / "Manual").mkdir(parents=True)
    (tmp_path / "Adversarial" / "Manual" / "dataset.json").write_text(json.dumps([{**row, "label": 2}]))
    found = [(pair.subset, pair.label) for pair in load_judge_set("llmbar", tmp_path)]
    assert found == [("Adversarial/Manual/dataset", -1), ("natural", 1)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "is not JSON"),
        ("{}", "not a list of rows"),
        (json.dumps([{**PANDALM, "annotator2": 3}]), "row 0 of .*set.json is not a row of pandalm: KeyError"),
        (json.dumps([PANDALM, {"instruction": "x"}]), "row 1 of"),
        ("[3]", "row 0 of"),
    ],
)
def test_another_form_is_named(tmp_path, content, words):
    (tmp_path / "set.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        load_judge_set("pandalm", tmp_path / "set.json")


def test_nothing_to_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="give the file, or the folder"):
        load_judge_set("llmbar", tmp_path)


def test_the_published_sets(shared_data):
    pandalm = load_judge_set("pandalm", shared_data / "pandalm")
    assert Counter(pair.label for pair in pandalm) == {-1: 472, 1: 422, 0: 105}
    llmbar = load_judge_set("llmbar", shared_data / "llmbar")
    assert Counter(pair.subset for pair in llmbar) == {
        "natural": 100,
        "adversarial-GPTInst": 92,
        "adversarial-GPTOut": 47,
        "adversarial-Manual": 46,
        "adversarial-Neighbor": 134,
    }
    assert Counter(pair.label for pair in llmbar) == {-1: 213, 1: 206}
