"""Numbers and texts for people, worded alike in the terminal, in Prefect and in logs."""

from __future__ import annotations

from collections.abc import Mapping

LONGEST_LINE = 400  # characters


def duration(seconds: float) -> str:
    """A time for people: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def about(seconds: float) -> str:
    """An estimated time, as exact as an estimate can be: `about 25 s`, `about 4 min`, `about 2 h 10 min`, `about 14 h`, `about 5 days`."""
    fives, minutes, tens, hours = (round(seconds / unit) for unit in (5, 60, 600, 3600))
    if fives < 12:
        return f"about {5 * max(fives, 1)} s"
    if minutes < 60:
        return f"about {minutes} min"
    if tens < 60:
        return f"about {tens // 6} h" + (f" {tens % 6}0 min" if tens % 6 else "")
    return f"about {hours} h" if hours < 72 else f"about {round(seconds / 86400)} days"


def rates_in_words(rates: Mapping[str, float]) -> str:
    """{"tokens_per_s": 310.2, "step_s": 3.2, "generate_share": 0.61} -> "310 tokens/s, 3.2 s a step, generate 61 %"."""
    return ", ".join(_in_words(name, value) for name, value in rates.items())


def _in_words(name: str, value: float) -> str:
    if name.endswith("_share"):
        return f"{name.removesuffix('_share').replace('_', ' ')} {100 * value:.0f} %"
    if name.endswith("_per_s"):
        return f"{_short(value)} {name.removesuffix('_per_s').replace('_', ' ')}/s"
    if name == "step_s":
        return f"{_short(value)} s a step"
    if name.endswith("_s"):
        return f"{name.removesuffix('_s').replace('_', ' ')} {_short(value)} s"
    return f"{_short(value)} {name.replace('_', ' ')}"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def one_line(text: str, longest: int = LONGEST_LINE) -> str:
    """Text of unknown origin as one line: without characters that act on what shows it, and not without end."""
    shown = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return shown if len(shown) <= longest else f"{shown[: longest - 3]}..."
