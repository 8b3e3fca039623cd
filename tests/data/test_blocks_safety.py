"""Profanity, refusals and boilerplate: what is found, what is left alone, and the counts on published sets."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.blocks.base import Block, Rejected, Row
from data.blocks.safety import Boilerplate, BoilerplateSettings, Profanity, ProfanitySettings, Refusals, RefusalsSettings, is_boilerplate
from data.forms import Example
from data.records import Message


def row(completion: str | None, **fields) -> Row:
    return Row(0, "file", 1, Example((Message("user", "Why?"),), completion=completion, **fields))


def reason(answer):
    return answer.reason if isinstance(answer, Rejected) else None


def test_profanity_counts_whole_words():
    block = Profanity(ProfanitySettings(max_share=0))
    rejected = block(row("What the Fuck is this shit, you asshole?"))
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.detail) == ("profanity", "3 of 8 words, such as fuck, shit, asshole")
    for text in (
        "The assassin classified Scunthorpe and Essex.",
        "Cockpit, shitake, analysis, cumulative.",
        "The god of hell is damn sexy.",
    ):
        assert isinstance(block(row(text)), Row), text


def test_profanity_phrases_and_own_words():
    block = Profanity(ProfanitySettings(max_share=0, also=("silly goose", "Silly goose chase"), ignore=()))
    assert block.found(("a", "silly", "goose", "chase", "silly", "goose", "silly")) == [("silly", "goose", "chase"), ("silly", "goose")]
    assert reason(block(row("You SILLY-goose!"))) == "profanity"
    assert reason(block(row("That is sexy."))) == "profanity"  # nothing is ignored


def test_profanity_thresholds():
    text = "shit " + "word " * 49  # 1 of 50
    assert reason(Profanity(ProfanitySettings(max_share=0.02))(row(text))) is None
    assert reason(Profanity(ProfanitySettings(max_share=0.019))(row(text))) == "profanity"
    assert reason(Profanity(ProfanitySettings(max_share=0, min_words=2))(row(text))) is None


def test_profanity_in_other_languages_and_scopes():
    german = Profanity(ProfanitySettings(languages=["de", "fr"], max_share=0))
    assert reason(german(row("So eine Scheiße!"))) == "profanity" and reason(german(row("merde"))) == "profanity"
    pair = row("fine", chosen="fine", rejected="shit")
    assert reason(Profanity(ProfanitySettings())(pair)) is None
    assert reason(Profanity(ProfanitySettings(scope="answers"))(pair)) == "profanity"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("I\u2019m sorry, but as an AI language model I cannot.", "refusal"),
        ("Sorry, I cannot assist with this request.", "refusal"),
        ("I cannot provide medical advice.", "refusal"),
        ("I am unable to fulfill this request", "refusal"),
        ("I apologize, but I must say no.", "refusal"),
        ("Unfortunately, I'm not able to help you there.", "refusal"),
        ("It would be unethical to tell you.", "refusal"),
        ("As an AI language model, I have no opinion.", "self_reference"),
        ("Paris. As a large language model I know that.", "self_reference"),
        ("My knowledge cutoff is 2021.", "self_reference"),
        ("I'm sorry you feel that way. Have you tried tea?", None),
        ("I can help you with that!", None),
        ("You cannot divide by zero.", None),
        ("AI is a field as an academic subject.", None),
        ("She said: it can't be done.", None),
    ],
)
def test_refusals(text, expected):
    assert reason(Refusals(RefusalsSettings())(row(text))) == expected


def test_refusals_are_looked_for_at_the_beginning_only_and_can_be_left_out():
    late = "First, here is the whole recipe. " * 10 + "I cannot help with the rest."
    assert reason(Refusals(RefusalsSettings())(row(late))) is None
    assert reason(Refusals(RefusalsSettings(opening_characters=10_000))(row(late))) == "refusal"
    assert reason(Refusals(RefusalsSettings(refusals=False))(row("I can't help with that."))) is None
    assert reason(Refusals(RefusalsSettings(self_reference=False))(row("As an AI, I think so."))) is None
    pair = row("Sure.", chosen="Sure.", rejected="I can't help with that.")
    assert reason(Refusals(RefusalsSettings())(pair)) is None
    assert reason(Refusals(RefusalsSettings(scope="answers"))(pair)) == "refusal"


BOILERPLATE = [
    "We use cookies to improve your experience.",
    "Share this on Facebook",
    "Share this:",
    "Copyright © 2021 Example Inc. All rights reserved.",
    "© 2024 Somebody",
    "Subscribe to our weekly newsletter!",
    "Read more...",
    "Skip to main content",
    "Home | About us | Contact",
    "Home » Blog » Some post",
    "Privacy Policy",
    "  Log in / Sign up ",
    "12 comments",
    "Previous post »",
    "Powered by WordPress",
]
PROSE = [
    "Share this idea with your team before you start.",
    "Cookies are baked for ten minutes.",
    "| name | age |",
    "|---|---|---|",
    "a | b | c",
    "Copyright is a right of the author.",
    "Read more books and you will learn.",
    "The privacy policy of the shop says that it keeps addresses for a year.",
    "Home is where the heart is.",
    "Sign in with the code that was sent to you.",
    "",
]


@pytest.mark.parametrize("line", BOILERPLATE)
def test_boilerplate_lines(line):
    assert is_boilerplate(line)


@pytest.mark.parametrize("line", PROSE)
def test_lines_that_are_no_boilerplate(line):
    assert not is_boilerplate(line)


def test_boilerplate_is_removed_or_rejected():
    text = "Skip to content\nTea is a drink.\n```\nRead more\n```\nShare this:\n"
    edited = Boilerplate(BoilerplateSettings())(row(text))
    assert isinstance(edited, Row) and edited.example.completion == "Tea is a drink.\n```\nRead more\n```\n"
    again = Boilerplate(BoilerplateSettings())(edited)
    assert again is edited
    rejected = Boilerplate(BoilerplateSettings(action="reject"))(row("Tea.\nShare this:"))
    assert isinstance(rejected, Rejected) and rejected.detail == "1 of 2 lines, such as 'Share this:'"
    assert isinstance(Boilerplate(BoilerplateSettings(action="reject", max_share=0.5))(row("Tea.\nShare this:")), Row)
    assert reason(Boilerplate(BoilerplateSettings())(row("Share this:"))) == "emptied"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*BOILERPLATE, *PROSE, "```", "\n", " "]), max_size=12).map("\n".join))
def test_a_second_pass_changes_nothing(text):
    block = Boilerplate(BoilerplateSettings())
    once = block(row("x\n" + text))
    assert isinstance(once, Row) and block(once) is once


def test_they_are_blocks():
    blocks = (Profanity(ProfanitySettings()), Refusals(RefusalsSettings()), Boilerplate(BoilerplateSettings()))
    assert all(isinstance(block, Block) for block in blocks)
    prompt = row(None)
    assert all(block(prompt) is prompt for block in blocks)
