"""Each instruction that a rule can check, by an answer that follows it and one that does not; rows as published; the loose reading."""

import time
from typing import Any

import pytest

from data.instruction_checks import CHECKS, sentences
from data.instructions import Instruction, followed, instructed_prompt, loosely_followed, variants
from data.sources import BadRow

GERMAN = "Der Hund l\u00e4uft schnell durch den gro\u00dfen Wald und sucht seinen Ball."
ENGLISH = "The dog runs quickly through the forest and looks for its ball."

# name, parameters, an answer that follows it, one that does not
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["cat", "Dog"]}, "A CAT and a dog.", "A cat alone."),
    ("keywords:existence", {"keywords": ["a+b"]}, "so a+b it is", "so aab it is"),
    ("keywords:frequency", {"keyword": "the", "frequency": 2, "relation": "at least"}, "The other", "the"),
    ("keywords:frequency", {"keyword": "the", "frequency": 2, "relation": "less than"}, "the", "The other"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat", "c++"]}, "concatenate in C", "A Cat."),
    ("keywords:forbidden_words", {"forbidden_words": ["cat", "c++"]}, "catalogue", "I use C++ daily"),
    ("keywords:letter_frequency", {"letter": "a", "let_frequency": 3, "let_relation": "at least"}, "A banana", "ab a"),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 1, "let_relation": "less than"}, "no", "no!"),
    ("language:response_language", {"language": "de"}, GERMAN, ENGLISH),
    ("language:response_language", {"language": "en"}, "1234", GERMAN),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "Yes. No.", "Yes, Mr. Smith."),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "It is 3.5 m.", "One. Two."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\none\n***\ntwo\n***", "one\n***\n***\ntwo"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "one two, three", "one two"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "one two", "one two three"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "however"},
        'First.\n\n"However, second.',
        "However.\n\nSecond.",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "yes"},
        "Yes! all one",
        "Yes\n\nbut two",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] at [address]", "[name at\naddress] and [x]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye\np. s. more", "Bye PS more"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye\nP.P.S more", "P.S. only"),
    ("detectable_content:postscript", {"postscript_marker": "N.B."}, "n.b. this", "nobi this"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two\n**bold**", "* one\n* two\n* three"),
    ("detectable_format:constrained_response", {}, "Well. My answer is maybe.", "My answer is perhaps."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and **two**", "** ** and *one*"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection2\nb",
        "Section one\na\nSection 2\nb",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', '{"a": 1'),
    ("detectable_format:title", {}, "<<My title>>\ntext", "<< >>\n<text>"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:two_responses", {}, "******one******two******", "one******\n******two"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it. "}, " say IT. Done", "I say it."),
    ("startend:end_checker", {"end_phrase": "Any questions?"}, 'So. "any questions?"', "Any questions? No."),
    ("startend:quotation", {}, ' "all of it" ', '"'),
    ("punctuation:no_comma", {}, "one; two", "one, two"),
    ("change_case:english_capital", {}, ENGLISH.upper(), ENGLISH),
    ("change_case:english_capital", {}, ENGLISH.upper(), GERMAN.upper()),
    ("change_case:english_lowercase", {}, ENGLISH.lower(), ENGLISH),
    ("change_case:english_lowercase", {}, ENGLISH.lower(), GERMAN.lower()),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "GO NOW-OR-NEVER there", "GO Now"),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "less than"}, "GO Now", "I GO"),
]


@pytest.mark.parametrize(("name", "parameters", "good", "bad"), CASES, ids=[f"{n}-{i}" for i, (n, *_) in enumerate(CASES)])
def test_an_answer_that_follows_and_one_that_does_not(name: str, parameters: dict[str, Any], good: str, bad: str):
    row = {"key": 1, "prompt": "x", "instruction_id_list": [name], "kwargs": [parameters]}
    (instruction,) = instructed_prompt(row).instructions
    assert followed(good, instruction) is True
    assert followed(bad, instruction) is False


def test_every_instruction_has_a_case():
    assert {name for name, *_ in CASES} == set(CHECKS) and len(CHECKS) == 25


def test_an_empty_answer_follows_nothing():
    assert not followed(" \n", Instruction("punctuation:no_comma", {}))
    assert not loosely_followed("", Instruction("punctuation:no_comma", {}))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Dr. Who is 3.5 m tall. Really?\n\nYes", 3),
        ('He said "No." Then he left!', 2),
        ("Wait... what? no", 1),  # a small letter goes on
        ("J. R. Smith came, e.g. today.", 1),
        ("# Title\n\nOne.\nTwo.", 3),
        ("\u4f60\u597d\u3002\u518d\u89c1\u3002", 2),
        ("?!\n\n...", 0),
        ("", 0),
    ],
)
def test_sentences_by_hand(text: str, count: int):
    assert sentences(text) == count


def test_the_loose_reading_forgives_an_introduction_a_farewell_and_emphasis():
    no_comma, quoted = Instruction("punctuation:no_comma", {}), Instruction("startend:quotation", {})
    answer = 'Sure, here it is:\n**"text"**\nGood luck, friend'
    assert variants(answer)[3] == '**"text"**' and variants(answer)[7] == '"text"' and len(variants(answer)) == 8
    for instruction in (no_comma, quoted):
        assert loosely_followed(answer, instruction) and not followed(answer, instruction)
    assert not loosely_followed("a\nb, c\nd", no_comma)


@pytest.mark.parametrize("piece", ["[", "<<", "*", "\n", "p.", "{", ". ", ".", "Dr. ", "? \n", "** "])
def test_no_check_takes_long_on_hostile_text(piece: str):
    text = piece * (200_000 // len(piece)) + "x"
    values = {"text": "a", "texts": ["a"], "letter": "a", "count": 1, "relation": "at least", "language": "en"}
    begin = time.process_time()
    for name, check in CHECKS.items():
        followed(text, Instruction(name, {key: values[kind] for key, kind in check.parameters.items()}))
    assert time.process_time() - begin < 10


# Rows


def row(**changes: Any) -> dict[str, Any]:
    plain = {"key": 7, "prompt": "Go.", "instruction_id_list": ["keywords:frequency"]}
    return plain | {"kwargs": [{"keyword": "go", "frequency": 2.0, "relation": "at least", "num_words": None}]} | changes


def test_a_published_row_with_columns_of_null():
    found = instructed_prompt(row())
    assert (found.id, found.prompt) == ("7", "Go.")
    assert found.instructions == (Instruction("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "at least"}),)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"key": None}, "key is None"),
        ({"prompt": ""}, "prompt is empty"),
        ({"instruction_id_list": "keywords:frequency"}, "not a list of names"),
        ({"instruction_id_list": ["keywords:frequenzy"]}, "'keywords:frequenzy' is not one of keywords:existence"),
        ({"kwargs": []}, "one object for each of the 1 instructions"),
        ({"kwargs": ["x"]}, "not an object"),
        ({"kwargs": [{"keyword": "go"}]}, r"takes \['frequency', 'keyword', 'relation'\], the row gives \['keyword'\]"),
        ({"kwargs": [{"keyword": "go", "frequency": 1.5, "relation": "at least"}]}, "frequency is 1.5, which is no count"),
        ({"kwargs": [{"keyword": "go", "frequency": True, "relation": "at least"}]}, "frequency is True, which is no count"),
        ({"kwargs": [{"keyword": "go", "frequency": 1, "relation": "more than"}]}, "relation is 'more than', which is no relation"),
        ({"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "klingon"}]}, "'klingon', which is no language"),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": "cat"}]}, "'cat', which is no texts"),
        (
            {
                "instruction_id_list": ["keywords:letter_frequency"],
                "kwargs": [{"letter": "ab", "let_frequency": 1, "let_relation": "at least"}],
            },
            "'ab', which is no letter",
        ),
    ],
)
def test_a_row_of_another_form_is_refused(changes: dict[str, Any], fault: str):
    with pytest.raises(BadRow, match=fault):
        instructed_prompt(row(**changes))
