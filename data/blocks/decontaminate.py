"""Decontamination: rows that share word n-grams with evaluation texts go (Brown et al. 2020, appendix C).

Axes: ``S`` n-grams of evaluation texts, ``K`` n-grams of one row.
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from data.blocks.base import Rejected, Row
from data.blocks.settings import BlockSettings
from data.blocks.words import hash_words, ngram_hashes, run_hashes, words_of
from data.configs import SourceConfig
from data.sources import read_rows

_TEXTS_AT_ONCE = 1024
_LINES = {".txt", ".md"}


class EvaluationFile(BlockSettings):
    """Evaluation texts in a local file."""

    path: str = Field(min_length=1, description="Path of a txt or md (a text a line), json, jsonl, csv or parquet file; * matches.")
    columns: list[str] = Field(default_factory=list, description="Columns whose texts are compared, nested ones too. Empty: all columns.")

    def paths(self) -> list[Path]:
        """The files. Raises FileNotFoundError where there is none."""
        return SourceConfig(kind="file", name=self.path).paths()

    def texts(self) -> Iterator[str]:
        """Every text of the named columns.

        Raises:
            ValueError: a row that cannot be read, or none that has a named column.
        """
        for path in self.paths():
            if path.suffix in _LINES:
                with path.open(encoding="utf-8", errors="replace") as lines:
                    yield from lines
            else:
                yield from self._columns_of(path)

    def _columns_of(self, path: Path) -> Iterator[str]:
        found = False
        for row in read_rows(SourceConfig(kind="file", name=str(path))):
            if row.values is None:
                raise ValueError(f"block decontaminate: {row.file}:{row.line} cannot be read: {row.fault}. Mend or remove the line")
            for column in self.columns or row.values:
                if column in row.values:
                    found = True
                    yield from _strings(row.values[column])
        if not found:
            raise ValueError(f"block decontaminate: {path} has none of the columns {self.columns}; set columns to those that hold texts")


class DecontaminateSettings(BlockSettings):
    """What counts as contaminated."""

    files: list[EvaluationFile] = Field(default_factory=list, description="Evaluation texts beside those of the recipe.")
    ngram_words: int = Field(default=13, ge=2, le=50, description="Length of a shared n-gram, in words. GPT-3 used 13.")
    shortest_words: int = Field(
        default=8,
        ge=1,
        description="Evaluation texts of fewer than ngram_words words are looked for as a whole, down to this many words; shorter ones are "
        "left out (an answer such as 42 would be found everywhere).",
    )
    share: float = Field(
        default=0.0, ge=0, le=1, description="Least share of a row's words that lie in shared n-grams for it to go. 0: any shared n-gram."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.shortest_words > self.ngram_words:
            raise ValueError(f"shortest_words={self.shortest_words} is more than ngram_words={self.ngram_words}: lower it")
        return self

    def paths(self) -> list[Path]:
        """Every local file named."""
        return [path for file in self.files for path in file.paths()]


class Decontaminate:
    """Block: rejects a row that says what an evaluation text says. ``against`` once, then ``load`` in every process that runs it.

    Words are compared case folded and without punctuation, as 64-bit hashes; a foreign n-gram is taken for a shared one with probability
    (n-grams of evaluation texts) / 2^64.
    """

    name = "decontaminate"

    def __init__(self, settings: DecontaminateSettings) -> None:
        self.settings = settings
        self._index: _Index | None = None

    def against(self, texts: Iterable[str], scratch: Path) -> None:
        """Write the n-grams of evaluation texts, and of those in the files that the settings name, to ``scratch``.

        Raises:
            ValueError: not one text is long enough, or a file cannot be read.
        """
        every = itertools.chain(texts, *(file.texts() for file in self.settings.files))
        _write_index(every, self.settings, scratch)

    def load(self, scratch: Path) -> None:
        """Map what ``against`` wrote: processes share its memory."""
        self._index = _Index(scratch)

    def __call__(self, row: Row) -> Row | Rejected:
        """The row, or why it goes: its first shared n-gram, the number of the evaluation text, the share of its words."""
        assert self._index is not None, "load() before the first row"
        words = words_of(row.text, signs=False)
        found = self._index.found(hash_words(words))
        if not found:
            return row
        covered = np.zeros(len(words), bool)
        for place, length, _ in found:
            covered[place : place + length] = True
        share = covered.mean()
        if share < self.settings.share:
            return row
        place, length, text = min(found)
        shared = " ".join(words[place : place + length])
        return Rejected(row, "contaminated", f"evaluation text {text} has {shared!r} too; {share:.0%} of the words are in shared n-grams")


class _Index:
    """The n-grams of evaluation texts, mapped from disk."""

    def __init__(self, folder: Path) -> None:
        self._head_S = np.load(folder / "heads.npy", mmap_mode="r", allow_pickle=False)
        self._hash_S = np.load(folder / "hashes.npy", mmap_mode="r", allow_pickle=False)
        self._text_S = np.load(folder / "texts.npy", mmap_mode="r", allow_pickle=False)
        facts = json.loads((folder / "index.json").read_text())
        self._lengths: list[int] = facts["lengths"]
        self._head_words: int = facts["head_words"]

    def found(self, hash_W: np.ndarray) -> list[tuple[int, int, int]]:
        """(place, length, evaluation text) of every n-gram of a row's words that evaluation texts have.

        Nearly every row is done with its short heads: no n-gram is shared whose first words are not.
        """
        if not len(_places(self._head_S, run_hashes(hash_W, self._head_words))[0]):
            return []
        found = []
        for length in self._lengths:
            place_K, index_K = _places(self._hash_S, run_hashes(hash_W, length))
            found += [(place, length, text) for place, text in zip(place_K.tolist(), self._text_S[index_K].tolist(), strict=True)]
        return found


def _places(sorted_S: np.ndarray, gram_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of the n-grams are among the sorted ones, and where there."""
    index_K = np.minimum(np.searchsorted(sorted_S, gram_K), len(sorted_S) - 1)
    place_K = np.flatnonzero(sorted_S[index_K] == gram_K)
    return place_K, index_K[place_K]


def _write_index(texts: Iterator[str], settings: DecontaminateSettings, folder: Path) -> None:
    """``hashes.npy`` (sorted uint64), ``texts.npy`` (the first text that has each, from 1 on), ``heads.npy`` (of the first
    ``shortest_words`` words of n-grams, sorted) and ``index.json`` (n-gram lengths in use, texts, those left out as too short)."""
    hashes, heads, numbers, lengths, read, short = [], [], [], set(), 0, 0
    while batch := list(itertools.islice(texts, _TEXTS_AT_ONCE)):
        every = [words_of(text, signs=False) for text in batch]
        words = [row if len(row) >= settings.shortest_words else [] for row in every]
        gram_S, count_R = ngram_hashes(words, settings.ngram_words)
        hashes.append(gram_S)
        heads.append(np.unique(ngram_hashes(words, settings.shortest_words)[0]))
        numbers.append(np.repeat(np.arange(read + 1, read + 1 + len(words)), count_R))
        lengths |= {min(len(row), settings.ngram_words) for row in words if row}
        read, short = read + len(words), short + words.count([])
    if not lengths:
        raise ValueError(
            f"block decontaminate: none of {read} evaluation texts has {settings.shortest_words} words; name files with evaluation texts, "
            "give held-out sources, lower shortest_words, or leave the block out"
        )
    hash_S, first = np.unique(np.concatenate(hashes), return_index=True)
    np.save(folder / "hashes.npy", hash_S, allow_pickle=False)
    np.save(folder / "texts.npy", np.concatenate(numbers)[first], allow_pickle=False)
    np.save(folder / "heads.npy", np.unique(np.concatenate(heads)), allow_pickle=False)
    facts = {"lengths": sorted(lengths), "head_words": settings.shortest_words, "texts": read, "too_short": short}
    (folder / "index.json").write_text(json.dumps(facts))


def _strings(value: Any) -> Iterator[str]:
    """Every text in a nested value, a conversation's turns say."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _strings(each)
