import pytest

from data.forms import Example, detect_form, mapped, parse
from data.records import Message
from data.sources import BadRow

U, A, S = (lambda text: Message("user", text)), (lambda text: Message("assistant", text)), (lambda text: Message("system", text))


def chat(*turns):
    return [{"role": message.role, "content": message.content} for message in turns]


def sharegpt(*turns):
    return [{"from": sender, "value": text} for sender, text in turns]


def tree(text, role="prompter", rank=None, replies=(), **more):
    return {"text": text, "role": role, "rank": rank, "replies": list(replies), **more}


HH = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: how?\n\nAssistant: "
TREE = tree(
    "q",
    replies=[
        tree("best", "assistant", 0, [tree("more", replies=[tree("x", "assistant", 1), tree("y", "assistant", 0)])]),
        tree("tie", "assistant", 1),
        tree("worst", "assistant", 1),
        tree("gone", "assistant", 2, deleted=True),
        tree("unranked", "assistant"),
    ],
)

# name, row, form it is recognised as, examples
CASES = {
    "messages": ({"messages": chat(S("s"), U("q"), A("a"))}, "messages", [Example((S("s"), U("q")), completion="a")]),
    "messages, trailing user": ({"messages": chat(U("q"), A("a"), U("r"))}, "messages", [Example((U("q"),), completion="a")]),
    "messages, parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, *chat(A("a"))]},
        "messages",
        [Example((U("q"),), completion="a")],
    ),
    "sharegpt": (
        {"conversations": sharegpt(("human", "q"), ("gpt", "a")), "system": "s"},
        "messages",
        [Example((S("s"), U("q")), completion="a")],
    ),
    "prompt and completion": ({"prompt": "q", "completion": "a"}, "prompt_completion", [Example((U("q"),), completion="a")]),
    "prompt messages": (
        {"prompt": chat(U("q")), "completion": chat(A("a"))},
        "prompt_completion",
        [Example((U("q"),), completion="a")],
    ),
    "prompt only": ({"prompt": "q", "answer": 4}, "prompt_completion", [Example((U("q"),), answer="4")]),
    "alpaca": ({"instruction": "do", "input": "this", "output": "a"}, "alpaca", [Example((U("do\n\nthis"),), completion="a")]),
    "alpaca, no input": ({"instruction": "do", "input": "", "output": "a"}, "alpaca", [Example((U("do"),), completion="a")]),
    "preference": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 8, "score_rejected": 5.5},
        "preference",
        [Example((U("q"),), completion="a", chosen="a", rejected="b", margin=2.5)],
    ),
    "preference of an instruction": (
        {"instruction": "do", "input": "this", "output": "a", "chosen": "a", "rejected": "b"},
        "preference",
        [Example((U("do\n\nthis"),), completion="a", chosen="a", rejected="b")],
    ),
    "preference of sharegpt": (
        {"conversations": sharegpt(("human", "q")), "chosen": sharegpt(("gpt", "a"))[0], "rejected": sharegpt(("gpt", "b"))[0]},
        "preference",
        [Example((U("q"),), completion="a", chosen="a", rejected="b")],
    ),
    "preference lists without prompt": (
        {"chosen": chat(U("q"), A("x"), U("r"), A("a")), "rejected": chat(U("q"), A("x"), U("r"), A("b"))},
        "preference",
        [Example((U("q"), A("x"), U("r")), completion="a", chosen="a", rejected="b")],
    ),
    "preference lists that repeat the prompt": (
        {"prompt": "q", "chosen": chat(U("q"), A("a")), "rejected": chat(U("q"), A("b"))},
        "preference",
        [Example((U("q"),), completion="a", chosen="a", rejected="b")],
    ),
    "preference lists that repeat it with a system message": (
        {"prompt": "q", "chosen": chat(S("s"), U("q"), A("a")), "rejected": chat(S("s"), U("q"), A("b"))},
        "preference",
        [Example((U("q"),), completion="a", chosen="a", rejected="b")],
    ),
    "hh": (
        {"chosen": HH + "fine", "rejected": HH + "bad\n\nHuman: oh"},
        "hh",
        [Example((U("hi"), A("hello"), U("how?")), completion="fine", chosen="fine", rejected="bad")],
    ),
    "hh, one speaker twice": (
        {"chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "rejected": "\n\nHuman: a\n\nHuman: b\n\nAssistant: d"},
        "hh",
        [Example((U("a\n\nb"),), completion="c", chosen="c", rejected="d")],
    ),
    "label": (
        {"prompt": "q", "completion": "a", "label": True},
        "label",
        [Example((U("q"),), completion="a", labelled="a", desirable=True)],
    ),
    "label, bad": ({"messages": chat(U("q"), A("a")), "label": "0"}, "label", [Example((U("q"),), labelled="a", desirable=False)]),
    "ranked": (
        {"prompt": "q", "completions": ["b", "a", "c"], "ranks": [2, 1, 2]},
        "ranked",
        [Example((U("q"),), completion="a", chosen="a", rejected="b", ranked=("b", "a", "c"), ranks=(1, 0, 1))],
    ),
    "ranked by score": (
        {"instruction": "q", "completions": [{"text": "b", "score": 0.1}, {"text": "a", "score": 0.9}]},
        "ranked",
        [Example((U("q"),), completion="a", chosen="a", rejected="b", ranked=("b", "a"), ranks=(1, 0), scores=(0.1, 0.9))],
    ),
    "ranked, all tied": (
        {"prompt": "q", "completions": ["a", "b"], "ranks": [3, 3]},
        "ranked",
        [Example((U("q"),), completion="a", ranked=("a", "b"), ranks=(0, 0))],
    ),
    "tree": (
        {"message_tree_id": "1", "prompt": TREE},
        "ranked",
        [
            Example((U("q"),), completion="best", chosen="best", rejected="tie", ranked=("best", "tie", "worst"), ranks=(0, 1, 1)),
            Example((U("q"), A("best"), U("more")), completion="y", chosen="y", rejected="x", ranked=("x", "y"), ranks=(1, 0)),
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_form_is_recognised_and_read(name):
    row, form, examples = CASES[name]
    assert detect_form(row, row) == form
    assert parse(row, form) == examples


BAD = [
    ({"messages": "text"}, "messages", "wrong_type", "messages is str"),
    ({"messages": []}, "messages", "empty", "messages is empty"),
    ({"messages": [3]}, "messages", "wrong_type", r"messages\[0\] is int"),
    ({"messages": None}, "messages", "empty", "missing"),
    ({"messages": [{"role": "alien", "content": "x"}]}, "messages", "wrong_type", "role 'alien'"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "messages", "wrong_type", "role"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages", "wrong_type", "is int, not text"),
    ({"messages": [{"role": "user"}]}, "messages", "empty", "missing"),
    ({"messages": chat(U("q"))}, "messages", "no_assistant_turn", "roles are"),
    ({"messages": chat(A("a"))}, "messages", "empty", "no prompt"),
    ({"messages": chat(S("s"), A("a"))}, "messages", "no_user_turn", "system"),
    ({"messages": chat(U("q"), A(" \n"))}, "messages", "empty", "is empty"),
    ({"prompt": "q", "completion": ["a", "b"]}, "prompt_completion", "wrong_type", "not a message"),
    ({"prompt": "q", "completion": chat(U("a"))}, "prompt_completion", "wrong_type", "not one assistant turn"),
    ({"prompt": None, "completion": "a"}, "prompt_completion", "empty", "no prompt"),
    ({"prompt": 5, "completion": "a"}, "prompt_completion", "wrong_type", "prompt is int"),
    ({"prompt": "a\udcff", "completion": "a"}, "prompt_completion", "invalid_utf8", "prompt"),
    ({"prompt": "a", "completion": "\ud83d"}, "prompt_completion", "invalid_utf8", "completion"),
    ({"instruction": "do", "output": None}, "alpaca", "empty", "output is missing"),
    ({"instruction": "do", "input": 3, "output": "a"}, "alpaca", "wrong_type", "input is int"),
    ({"prompt": "q", "chosen": "a", "rejected": " a\n"}, "preference", "chosen_equals_rejected", "same"),
    ({"prompt": "q", "chosen": "a"}, "preference", "empty", "rejected is missing"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "big"}, "preference", "wrong_type", "not a number"),
    ({"prompt": chat(A("a")), "chosen": "a", "rejected": "b"}, "preference", "no_user_turn", "assistant"),
    ({"chosen": chat(U("q"), A("a")), "rejected": chat(U("r"), A("b"))}, "preference", "different_prompts", "0 shared"),
    ({"chosen": HH + "a", "rejected": HH + "a"}, "hh", "chosen_equals_rejected", "same"),
    ({"chosen": "Q: hi", "rejected": "Q: ho"}, "hh", "wrong_type", "not a transcript"),
    ({"chosen": "\n\nHuman: hi", "rejected": HH + "a"}, "hh", "no_assistant_turn", "chosen"),
    ({"chosen": HH, "rejected": HH + "a"}, "hh", "empty", "chosen"),
    ({"chosen": HH + "a", "rejected": HH.replace("hello", "hey") + "a"}, "hh", "different_prompts", "1 shared"),
    ({"prompt": "q", "completion": "a", "label": "maybe"}, "label", "wrong_type", "'maybe'"),
    ({"prompt": "q", "completion": "a", "label": None}, "label", "wrong_type", "None"),
    ({"prompt": "q", "completions": "a", "ranks": [0]}, "ranked", "wrong_type", "not a list"),
    ({"prompt": "q", "completions": ["a"], "ranks": [0]}, "ranked", "too_few_completions", "needs two"),
    ({"prompt": "q", "completions": ["a", "b"], "ranks": [0]}, "ranked", "wrong_type", "2 completions with 1"),
    ({"prompt": "q", "completions": ["a", "b"], "ranks": ["x", "y"]}, "ranked", "wrong_type", "not numbers"),
    ({"prompt": "q", "completions": ["a", "b"], "ranks": 4}, "ranked", "wrong_type", "not numbers"),
    ({"prompt": tree("q", replies=[tree("a", "assistant", 0)])}, "ranked", "too_few_completions", "two ranked replies"),
]


@pytest.mark.parametrize(("row", "form", "reason", "detail"), BAD)
def test_a_row_that_cannot_be_used_says_why(row, form, reason, detail):
    with pytest.raises(BadRow, match=detail) as caught:
        parse(row, form)
    assert caught.value.reason == reason


def test_unknown_columns_are_named():
    with pytest.raises(ValueError, match=r"\['Frage', 'Antwort'\]|\['Antwort', 'Frage'\]"):
        detect_form({"Frage", "Antwort"}, {})


def test_mapping_renames_columns():
    row = {"question": "q", "answer": "a #### 4", "meta": {"lang": "en", "a.b": 1}, "keep": 1}
    assert mapped(row, {"prompt": "question", "completion": "answer"}) == {
        "prompt": "q",
        "completion": "a #### 4",
        "meta": row["meta"],
        "keep": 1,
    }
    assert mapped(row, {"prompt": "question", "system": "meta.lang"}) == {"prompt": "q", "system": "en", "answer": row["answer"], "keep": 1}
    assert mapped(row, {"prompt": "nothing.here"}) == row
    assert mapped({"a.b": 1, "c": {"d": 2}}, {"x": "a.b", "y": "c.d.e"}) == {"x": 1}


def test_answers_are_each_given_once():
    assert Example((), completion="a", chosen="a", rejected="b").answers() == ("a", "b")
