"""Small blocks to run the executor with; found by the workers under this module's name."""

import os
import signal
import zlib
from pathlib import Path

import numpy as np

from data.blocks.base import Decision, Rejected, edited
from data.blocks.settings import BlockSettings


class UpperSettings(BlockSettings):
    only: str = ""


class Upper:
    """Upper case, of rows that hold a word."""

    name = "upper"

    def __init__(self, settings):
        self.settings = settings

    def label(self, row):
        return "even" if row.line % 2 == 0 else "odd"

    def __call__(self, row):
        return edited(row, str.upper) if self.settings.only in row.text else row


class ShortSettings(BlockSettings):
    least: int = 10


class Short:
    """Rejects short rows."""

    name = "short"

    def __init__(self, settings):
        self.settings = settings

    def __call__(self, row):
        n = len(row.text)
        return row if n >= self.settings.least else Rejected(row, "short", f"{n} characters, the least is {self.settings.least}")


class FirstSettings(BlockSettings):
    pass


class First:
    """Of rows with the same text the first one stays."""

    name = "first"
    values = np.dtype((np.uint64, 2))

    def __init__(self, settings):
        self.settings = settings

    def describe(self, rows):
        return np.array([[len(row.text), zlib.crc32(row.text.encode())] for row in rows], np.uint64)

    def decide(self, values, seed):
        seen, details = {}, {}
        keep = np.ones(len(values), bool)
        for number, value in enumerate(map(tuple, np.asarray(values))):
            if value in seen:
                keep[number] = False
                details[number] = f"as row {seen[value]}"
            seen.setdefault(value, number)
        return Decision(keep, "repeated", details)


class LuckSettings(BlockSettings):
    share: float = 0.5


class Luck:
    """Keeps a share of the rows, drawn with the seed."""

    name = "luck"
    values = np.dtype(np.float32)

    def __init__(self, settings):
        self.settings = settings

    def describe(self, rows):
        return np.zeros(len(rows), np.float32)

    def decide(self, values, seed):
        return Decision(np.random.default_rng(seed).random(len(values)) < self.settings.share, "unlucky", {})


class WordsSettings(BlockSettings):
    file: str

    def paths(self):
        return [Path(self.file)]


class Words:
    """Rejects rows with a word of a file, which is read when the block is prepared."""

    name = "words"

    def __init__(self, settings):
        self.settings = settings

    def prepare(self, seed, scratch):
        (scratch / "words").write_text(Path(self.settings.file).read_text() + f" seed{seed % 10}")

    def load(self, scratch):
        self.words = (scratch / "words").read_text().split()

    def __call__(self, row):
        found = next((word for word in self.words if word in row.text), None)
        return row if found is None else Rejected(row, "word", found)


class SeenSettings(BlockSettings):
    pass


class Seen:
    """Rejects rows whose text holds a line that is evaluated on."""

    name = "seen"

    def __init__(self, settings):
        self.settings = settings

    def against(self, texts, scratch):
        (scratch / "texts").write_text("\n".join(texts))

    def load(self, scratch):
        self.lines = set((scratch / "texts").read_text().split("\n"))

    def __call__(self, row):
        found = next((line for line in row.text.split("\n") if line in self.lines), None)
        return row if found is None else Rejected(row, "evaluated", found)


class FatalSettings(BlockSettings):
    line: int
    how: str = "kill"


class Fatal:
    """Goes wrong at a line."""

    name = "fatal"

    def __init__(self, settings):
        self.settings = settings

    def __call__(self, row):
        if row.line != self.settings.line:
            return row
        if self.settings.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.settings.how == "user":
            raise UnicodeError("the model file is not for this block")
        print("a library talks")
        raise KeyError("mistake")
