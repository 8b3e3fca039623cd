"""The packaged safety prompts, and rows as they are published."""

from collections import Counter

import pytest

from data.records import folded
from data.safety_prompts import packaged_prompts, prompts_in, safety_prompt
from data.sources import BadRow, RawRow


def test_the_packaged_set_is_balanced_and_every_safe_type_has_its_contrast():
    prompts = packaged_prompts()
    assert Counter(prompt.safe for prompt in prompts) == {True: 40, False: 40}
    types = Counter((prompt.type, prompt.safe) for prompt in prompts)
    assert set(types.values()) == {5} and len(types) == 16
    assert {(f"contrast_{kind}", False) for kind, safe in types if safe} == {each for each in types if not each[1]}
    assert len({prompt.id for prompt in prompts}) == len({folded(prompt.prompt) for prompt in prompts}) == 80


@pytest.mark.parametrize(
    ("row", "safe", "kind"),
    [
        ({"id": 1, "prompt": "a", "type": "homonyms", "label": "safe"}, True, "homonyms"),
        ({"id": 1, "prompt": "a", "type": "contrast_homonyms", "label": "Unsafe"}, False, "contrast_homonyms"),
        ({"id": 1, "prompt": "a", "type": "contrast_homonyms"}, False, "contrast_homonyms"),
        ({"id": 1, "prompt": "a", "type": "definitions", "focus": "x"}, True, "definitions"),
        ({"id": 1, "prompt": "a", "label": "unsafe"}, False, "unsafe"),
    ],
)
def test_rows_as_published(row, safe, kind):
    prompt = safety_prompt(row, "f.csv:2")
    assert (prompt.id, prompt.safe, prompt.type) == ("1", safe, kind)


@pytest.mark.parametrize("row", [{"prompt": "a"}, {"prompt": "", "label": "safe"}, {"prompt": 3, "label": "safe"}, {"label": "safe"}])
def test_what_is_no_safety_prompt_is_refused_with_its_place(row):
    with pytest.raises(ValueError, match=r"f\.csv:2 is no safety prompt"):
        safety_prompt(row, "f.csv:2")


def test_rows_are_all_or_none():
    row = {"id": "a", "prompt": "a", "label": "safe"}
    with pytest.raises(ValueError, match="two safety prompts have the id 'a'"):
        prompts_in([(RawRow("f", 1, row), row)] * 2)
    with pytest.raises(ValueError, match="no row"):
        prompts_in([])
    with pytest.raises(ValueError, match="f:3: invalid_csv"):
        prompts_in([(RawRow("f", 3, fault=BadRow("invalid_csv", "x")), {})])
