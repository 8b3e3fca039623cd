"""How much of a text repeats itself: the measures of Rae et al. 2021, table A1, and the tokens they count."""

import re
from collections import Counter
from collections.abc import Hashable, Sequence

_TOKEN = re.compile(r"\w++(?:['\u2019\-]\w++)*+|[^\w\s]")
_LINES, _PARAGRAPHS = re.compile(r"\n++"), re.compile(r"\n{2,}+")


def tokens_of(text: str) -> list[str]:
    """Words, and each other sign by itself. By hand: "It's well-known: 3.5!" is It's, well-known, :, 3, ., 5, !."""
    return _TOKEN.findall(text)


def words_in(tokens: Sequence[str]) -> list[str]:
    """The tokens that are words: those with a letter or digit in them."""
    return [token for token in tokens if token[0].isalnum() or any(map(str.isalnum, token))]


def duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts an earlier part equals, and their characters. By hand: of a, bb, bb, bb these are 2 and 4."""
    seen: set[str] = set()
    count = characters = 0
    for part in parts:
        if part in seen:
            count += 1
            characters += len(part)
        seen.add(part)
    return count, characters


def duplicate_lines(text: str) -> tuple[float, float]:
    """Share of lines that repeat an earlier one, and share of the text's characters in them."""
    return _duplicate_shares(_LINES.split(text), len(text))


def duplicate_paragraphs(text: str) -> tuple[float, float]:
    """The same of paragraphs, which blank lines part."""
    return _duplicate_shares(_PARAGRAPHS.split(text.strip()), len(text))


def _duplicate_shares(parts: Sequence[str], characters: int) -> tuple[float, float]:
    count, repeated = duplicates(parts)
    return count / len(parts), repeated / max(characters, 1)


def top_ngram_share(tokens: Sequence[str], n: int, characters: int) -> float:
    """Share of characters in all occurrences of the most frequent n-gram of tokens, a space between two; 0 where none occurs twice.

    By hand: "a b a b a b" has 11 characters, its top 2-gram "a b" is 3 characters and occurs 3 times: 9 / 11.
    """
    counts = Counter(zip(*(tokens[start:] for start in range(n)), strict=False))
    gram, count = max(counts.items(), key=lambda item: item[1], default=((), 0))
    return (sum(map(len, gram)) + n - 1) * count / characters if count > 1 else 0.0


def duplicate_ngram_shares(tokens: Sequence[str], sizes: Sequence[int], characters: int) -> dict[int, float]:
    """For each n of ``sizes`` (ascending) the share of characters in n-grams that occurred before; overlapping ones count once.

    By hand: of a b c a b c the second "a b c" is a 3-gram that occurred before: 3 of the 11 characters (spaces are not counted).
    Where no n-gram repeats, no longer one can.
    """
    lengths = list(map(len, tokens))
    ends = [0]
    for length in lengths:
        ends.append(ends[-1] + length)
    shares = dict.fromkeys(sizes, 0.0)
    for n in sizes:
        repeated = _repeated_characters(tokens, n, ends)
        if not repeated:
            break
        shares[n] = repeated / characters
    return shares


def _repeated_characters(tokens: Sequence[str], n: int, ends: Sequence[int]) -> int:
    grams = list(zip(*(tokens[start:] for start in range(n)), strict=False))
    if len(set(grams)) == len(grams):
        return 0
    seen: set[Hashable] = set()
    position = repeated = 0
    while position < len(grams):
        if grams[position] in seen:
            repeated += ends[position + n] - ends[position]
            position += n
        else:
            seen.add(grams[position])
            position += 1
    return repeated
