"""What reaches the terminal: results on standard output, everything else on standard error, and no control sequence that is not ours."""

from __future__ import annotations

import os
import re
import sys
import unicodedata

from rich.console import Console
from rich.text import Text

from tasks.wording import duration as duration

# A sequence that is not complete yet ends with the text: of a text that grows, only its end is ever hidden for a while.
# What terminals act on: CSI (ESC [ ... letter), strings (OSC, DCS, APC, PM, SOS up to BEL or ST), ESC with one more character.
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*(?:[@-~]|$)"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
# Characters that reorder the text around them: what is shown would not be what is there.
_REORDERING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C}

WIDTH_OF_FILES = 160


def _console(stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    named = stream.isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, highlight=False, width=None if named else WIDTH_OF_FILES)


out = _console(stderr=False)
err = _console(stderr=True)


def plain(text: str) -> str:
    """Text of unknown origin without anything that a terminal would act on, but for line ends and tabs."""
    return "".join(character for character in _SEQUENCE.sub("", text) if _is_shown(character))


def _is_shown(character: str) -> bool:
    if character in "\n\t":
        return True
    return unicodedata.category(character) not in ("Cc", "Cs") and ord(character) not in _REORDERING


def complain(text: str) -> None:
    """Say on standard error what went wrong."""
    err.print(Text.assemble(("posttrain: ", "bold red"), plain(text)), soft_wrap=True)


def write(text: str) -> None:
    """Write plain text at once; what the terminal's encoding lacks becomes a question mark."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(plain(text).encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def size(n_bytes: float) -> str:
    """A number of bytes for people: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"
