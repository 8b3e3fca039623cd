"""What reaches the terminal: text of unknown origin cannot act on it, numbers are for people, bars follow the stages."""

import io
import itertools

import pytest
from rich.console import Console

from flows.cli.comparison import as_table
from flows.cli.progress import Display, rates_in_words
from flows.cli.terminal import duration, plain, size
from tasks.process import Progress


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


def display(terminal: bool) -> tuple[Display, io.StringIO]:
    file = io.StringIO()
    return Display(Console(file=file, force_terminal=terminal, width=120, no_color=True)), file


def test_bars_show_stage_step_rate_and_time_left():
    shown, file = display(terminal=True)
    with shown:
        shown.show(Progress("sft", "waiting"))
        shown.show(Progress("sft", "running"))
        for step in range(1, 5):
            shown.show(Progress("sft", "running", step, 40, {"tokens_per_s": 310.0}, step * 1.0))
        shown._bars.refresh()
        shown.show(Progress("sft", "computed", seconds=40.0))
    text = file.getvalue()
    assert "sft, waiting" in text and "4/40" in text and "310 tokens/s" in text and "left" in text
    assert "40 s" in text


def test_a_resumed_stage_is_not_credited_with_the_steps_of_its_predecessor():
    shown, _ = display(terminal=True)
    with shown:
        shown.show(Progress("sft", "running"))
        shown.show(Progress("sft", "running", 39, 40, {}, 0.1))
        (bar,) = shown._bars.tasks
        assert bar.completed == 39 and bar.speed is None


def test_without_a_terminal_there_are_lines_and_not_too_many(monkeypatch):
    shown, file = display(terminal=False)
    now = 0.0
    monkeypatch.setattr("flows.cli.progress.time.monotonic", lambda: now)
    with shown:
        for step in range(1, 31):
            now = step * 1.0
            shown.show(Progress("sft", "running", step, 100, {"tokens_per_s": 310.0}, 60 + step))
        shown.show(Progress("sft", "hit", seconds=0.1))
    lines = file.getvalue().splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "sft: running 1/100, 310 tokens/s",
        "sft: running 16/100, 310 tokens/s, about 1 min 24 s left",
        "= sft 0.1 s computed before",
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
