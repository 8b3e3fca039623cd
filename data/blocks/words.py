"""What deduplication and decontamination read of a row: a part of its text, as comparable text, as words, or as hashes of word n-grams.

Axes: ``R`` rows, ``W`` words of all rows one after another, ``S`` n-grams of all rows one after another.
"""

import re
import unicodedata
from collections.abc import Sequence
from hashlib import blake2b
from typing import Literal

import numpy as np
from pydantic import Field

from data.blocks.base import Row
from data.blocks.settings import BlockSettings

Part = Literal["all", "prompt", "answers"]
PART = "What of a row is compared: all that is said, its prompt alone, or its answers alone. System messages never are."
# Scripts that put no space between words: each of their characters counts as one word.
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
)
_WORD = re.compile(r"[^\W_]+")
_WORD_OR_SIGN = re.compile(r"[^\W_]+|[-+*/^%=<>](?=\s*\d)")
_PUNCTUATION = re.compile(r"[^\w\s]|_")
_STEP, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_REMEMBERED_WORDS = 1 << 17
_REMEMBERED_CHARACTERS = 64  # of one word: a hostile text must not fill the memory


class ComparisonSettings(BlockSettings):
    """When two texts count as the same text."""

    part: Part = Field(default="all", description=PART)
    ignore_case: bool = Field(default=True, description="Take upper and lower case for the same (Unicode case folding).")
    ignore_white_space: bool = Field(default=True, description="Take any run of white space for one space, and none at the ends.")
    ignore_punctuation: bool = Field(
        default=False, description="Leave out all but letters, digits and white space. Then 3 + 4 and 3 - 4 are the same, C++ and C# too."
    )
    fold_compatible: bool = Field(default=True, description="Take full width letters, ligatures and the like for plain ones (NFKC).")


def part_of(row: Row, part: Part) -> str:
    """The text of a part of a row, a line break between turns; system messages, which whole sets share, are left out."""
    asked = [m.content for m in row.example.prompt if m.role != "system"] if part != "answers" else []
    return "\n".join([*asked, *(row.example.answers() if part != "prompt" else ())])


def comparable(text: str, settings: ComparisonSettings) -> str:
    """The text with everything removed that does not count; white space alone is removed where nothing would be left.

    By hand: "Hello,  World!" is "hello world" with all four folds, and stays as it is with none.
    """
    whole = text
    if settings.fold_compatible and not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    if settings.ignore_case:
        text = text.casefold()
    if settings.ignore_punctuation:
        text = _PUNCTUATION.sub("", text)
        text = text if text.strip() else whole
    return " ".join(text.split()) if settings.ignore_white_space else text


def words_of(text: str, *, signs: bool) -> list[str]:
    """Runs of letters and digits, NFKC and case folded; in scripts without spaces (Han, Kana, Thai, ...) each character.

    ``signs``: with those before a number, for 3 + 4 is not 3 - 4.
    By hand: "Don't  STOP_it, 東京 3+4-x!" is don, t, stop, it, 東, 京, 3, +, 4, x, without signs all but the +.
    """
    if not text.isascii():
        text = _UNSPACED.sub(r" \1 ", unicodedata.normalize("NFKC", text))
    return (_WORD_OR_SIGN if signs else _WORD).findall(text.casefold())


class _WordHashes(dict[str, int]):
    """64-bit hashes of words, the same in every process; remembers a bounded number of them."""

    def __missing__(self, word: str) -> int:
        value = int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
        if len(word) <= _REMEMBERED_CHARACTERS:
            if len(self) >= _REMEMBERED_WORDS:
                self.clear()
            self[word] = value
        return value


_hashes = _WordHashes()


def hash_words(words: Sequence[str]) -> np.ndarray:
    """A 64-bit hash of each word: ``[W]`` uint64."""
    return np.fromiter(map(_hashes.__getitem__, words), np.uint64, len(words))


def ngram_hashes(words: Sequence[Sequence[str]], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of every row's word n-grams in order, ``[S]`` uint64, and how many each row has, ``[R]``.

    A row of fewer words than n has one n-gram, all of its words; a row without words has none. The hash of words w_1 .. w_m is
    mix(sum over i of hash(w_i) C^(m - i) + n-gram length m times C^m), modulo 2^64, with the finaliser of MurmurHash3 as mix.
    """
    counts_R = np.fromiter(map(len, words), np.int64, len(words))
    hash_W = hash_words([word for row in words for word in row])
    if not len(hash_W):
        return hash_W, counts_R
    ends_R = np.cumsum(counts_R)
    starts_R = ends_R - counts_R
    padded_W = np.concatenate([hash_W, np.zeros(n - 1, np.uint64)])
    gram_W = _rolled(padded_W, n)
    taken_W = np.repeat(ends_R, counts_R) - np.arange(len(hash_W)) >= n  # those that end within their row
    for length in range(1, n):
        short = starts_R[counts_R == length]
        if len(short):
            taken_W[short] = True
            gram_W[short] = _rolled(padded_W, length)[short]
    return mixed(gram_W[taken_W]), np.where(counts_R >= n, counts_R - n + 1, np.minimum(counts_R, 1))


def run_hashes(hash_W: np.ndarray, n: int) -> np.ndarray:
    """The n-gram hashes of one row's words: ``[W - n + 1]``, none where it has fewer than n words."""
    return mixed(_rolled(hash_W, n)) if len(hash_W) >= n else np.empty(0, np.uint64)


def _rolled(hash_W: np.ndarray, n: int) -> np.ndarray:
    """The polynomial of n words from each position on: ``[W - n + 1]``."""
    powers = [pow(_STEP, n - 1 - place, 2**64) for place in range(n)]
    return np.correlate(hash_W, np.array(powers, np.uint64), "valid") + np.uint64(n * pow(_STEP, n, 2**64) % 2**64)


def mixed(value: np.ndarray) -> np.ndarray:
    """Each 64-bit value with its bits spread over all 64: the finaliser of MurmurHash3, a permutation."""
    value = value ^ (value >> np.uint64(33))
    value *= _MIX_1
    value ^= value >> np.uint64(33)
    value *= _MIX_2
    value ^= value >> np.uint64(33)
    return value
