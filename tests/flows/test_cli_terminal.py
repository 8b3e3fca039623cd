"""What reaches the terminal: text of unknown origin cannot act on it, numbers are for people, bars follow the stages."""

import io
import itertools

import pytest
from rich.console import Console

from flows.cli.comparison import as_table
from flows.cli.progress import Display
from flows.cli.terminal import duration, plain, size
from tasks import outlook
from tasks.outlook import Outlook
from tasks.plan import PlanEntry
from tasks.process import Progress
from tasks.wording import about, one_line, rates_in_words


@pytest.mark.parametrize(
    ("hostile", "harmless"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[1;1Hgone", "gone"),
        ("\x9b31mred", "red"),
        ("a\x1b]0;a new title\x07b", "ab"),
        ("a\x1b]52;c;ZXZpbA==\x1b\\b", "ab"),  # would write the clipboard
        ("a\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\b", "aclickb"),
        ("a\x1bPq#0\x1b\\b", "ab"),
        ("a\x1b(0b", "ab"),
        ("a\x1bcb", "ab"),  # full reset
        ("over\rwritten", "overwritten"),
        ("back\x08space", "backspace"),
        ("bell\x07", "bell"),
        ("a\u202eb\u2066c", "abc"),
        ("half of a sequence \x1b[", "half of a sequence "),
        ("a\ud800b", "ab"),
        ("line\n\ttab [bold]kept[/bold] ü 漢", "line\n\ttab [bold]kept[/bold] ü 漢"),
    ],
)
def test_nothing_that_a_terminal_acts_on_gets_through(hostile, harmless):
    assert plain(hostile) == harmless


def test_a_text_that_grows_only_grows_on_the_screen():
    text = "a\x1b[1;31mb\x9b2Jc\x1b]0;title\x07d\x1b(0e\x1b]52;never ended\nf"
    shown = [plain(text[:end]) for end in range(len(text) + 1)]
    assert all(after.startswith(before) for before, after in itertools.pairwise(shown))
    assert shown[-1] == "abcde\nf"


def test_a_sequence_cut_in_two_by_streaming_is_harmless_too():
    assert "\x1b" not in plain("text \x1b") + plain("[2Jmore")


@pytest.mark.parametrize(("n", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB"), (5 * 2**40, "5.0 TiB")])
def test_sizes(n, text):
    assert size(n) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_rates_have_their_unit():
    assert rates_in_words({"tokens_per_s": 1310.2, "reward": 0.5}) == "1310 tokens/s, 0.5 reward"
    shares = {"generate_share": 0.614, "score_share": 0.124, "train_share": 0.262}
    assert rates_in_words({"tokens_per_s": 310.0} | shares) == "310 tokens/s, generate 61 %, score 12 %, train 26 %"
    assert rates_in_words({"step_s": 3.21, "prepare_s": 0.0123}) == "3.21 s a step, prepare 0.0123 s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "5 s"),
        (57.4, "55 s"),
        (57.6, "1 min"),
        (89.0, "1 min"),
        (3569.0, "59 min"),
        (3571.0, "1 h"),
        (7799.0, "2 h 10 min"),
        (35_699.0, "9 h 50 min"),
        (35_701.0, "10 h"),
        (50 * 3600.0, "50 h"),
        (5.4 * 86400, "5 days"),
    ],
)
def test_estimates_are_as_exact_as_they_can_be(seconds, text):
    assert about(seconds) == f"about {text}"


def test_a_text_of_unknown_origin_is_one_line_with_an_end():
    assert one_line("a\x1b[2J\r\nb\u202ec\t d\x00\u2028e") == "a [2J b c d e"
    assert one_line("x" * 500) == "x" * 397 + "..."


def display(terminal: bool) -> tuple[Display, io.StringIO]:
    file = io.StringIO()
    return Display(Console(file=file, force_terminal=terminal, width=120, no_color=True)), file


def test_bars_show_stage_step_rate_and_time_left():
    shown, file = display(terminal=True)
    with shown:
        shown.show(Progress("sft", "waiting"))
        shown.show(Progress("sft", "running"))
        for step in range(1, 5):
            shown.show(Progress("sft", "running", step, 40, {"tokens_per_s": 310.0}, step * 1.0, 7800.0 - step))
        shown._bars.refresh()
        shown.show(Progress("sft", "computed", seconds=40.0))
    text = file.getvalue()
    assert "sft, waiting" in text and "4/40" in text and "310 tokens/s" in text and "about 2 h 10 min left" in text
    assert "40 s" in text


def test_the_bar_says_which_stage_of_the_plan_it_is(monkeypatch):
    view = Outlook([PlanEntry(label, label, "miss", None, "", None, {}) for label in ("sft", "dpo")], [], None)
    view.begin("sft")
    monkeypatch.setattr(outlook, "current", lambda: view)
    shown, _ = display(terminal=True)
    with shown:
        shown.show(Progress("sft", "running", 39, 40, {}, 0.1))
        (bar,) = shown._bars.tasks
        assert (bar.description, bar.completed, bar.fields["left"]) == ("sft (stage 1 of 2)", 39, "")


def test_a_line_says_why_and_acts_on_nothing():
    shown, file = display(terminal=False)
    with shown:
        shown.show(Progress("sft\x1b[2J", "computed", seconds=192.0, why="because sft.method changed \x1b[31mplus -> minus since mini-1"))
        shown.show(Progress("dpo", "resumed", seconds=2.0, why="after update 120"))
        shown.show(Progress("ppo", "failed", seconds=2.0, why="it was killed"))
    assert [" ".join(line.split()) for line in file.getvalue().splitlines()] == [
        "+ sft 3 min 12 s because sft.method changed plus -> minus since mini-1",
        "+ dpo 2.0 s resumed after update 120",
        "! ppo 2.0 s failed",
    ]


def test_without_a_terminal_there_are_lines_and_not_too_many(monkeypatch):
    shown, file = display(terminal=False)
    now = 0.0
    monkeypatch.setattr("flows.cli.progress.time.monotonic", lambda: now)
    with shown:
        for step in range(1, 31):
            now = step * 1.0
            shown.show(Progress("sft", "running", step, 100, {"tokens_per_s": 310.0}, 60 + step, 100.0 - step if step > 2 else None))
        shown.show(Progress("sft", "hit", seconds=0.1, why="made by quickstart-1"))
    lines = file.getvalue().splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "sft: running 1/100, 310 tokens/s",
        "sft: running 16/100, 310 tokens/s, about 1 min left",
        "= sft 0.1 s computed before, made by quickstart-1",
    ]


def test_the_comparison_shows_intervals_dashes_and_what_they_mean():
    interval = {"mean": 0.5, "low": 0.25, "high": 0.75}
    rows = [
        {"policy": "sft", "accuracy": interval, "win_rate": None, "reward": None, "distinct": 3},
        {"policy": "dpo [2J", "accuracy": interval, "win_rate": interval, "reward": None, "distinct": 4},
    ]
    console = Console(file=io.StringIO(), width=120)
    console.print(as_table({"rows": rows, "markdown": "| table |\n\n32 held-out prompts, the same for every policy\n"}))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.splitlines()[0].split() == ["policy", "accuracy", "win", "rate", "distinct", "completions"]
    assert shown.splitlines()[1].split() == ["sft", "0.500", "[0.250,", "0.750]", "-", "3"]
    assert "dpo [2J" in shown and "32 held-out prompts" in shown
