"""An n-gram language model with interpolated modified Kneser-Ney smoothing, estimated with NumPy and written as an ARPA file.

Kneser and Ney 1995; Chen and Goodman 1999, equations 24 to 26; the estimation and the special cases of Heafield et al. 2013 (lmplz).

Axes: ``N`` tokens of the text, sentence marks included; ``G`` different n-grams of one order; ``V`` words.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

UNKNOWN, BEGIN, END = 0, 1, 2
_FALLBACK = (0.5, 1.0, 1.5)
_LINES_AT_ONCE = 65_536


@dataclass(frozen=True)
class NgramTable:
    """The n-grams of one order. ``context_G`` and ``suffix_G`` are rows of the next lower table: all words but the last, but the first."""

    word_G: np.ndarray
    context_G: np.ndarray
    suffix_G: np.ndarray
    count_G: np.ndarray
    begins_G: np.ndarray  # whether it starts with <s>


@dataclass(frozen=True)
class NgramModel:
    """Probabilities and back-off weights of every n-gram, lowest order first, and the three discounts of each order."""

    words: list[str]
    tables: list[NgramTable]
    probability_G: list[np.ndarray]
    backoff_G: list[np.ndarray]
    discounts: list[tuple[float, float, float]]


def train(sentences: Iterable[Sequence[str]], order: int) -> NgramModel:
    """The model of tokenised sentences (the marks <s> and </s> are put around each). Raises ValueError where there is no word."""
    words, id_N, place_N = _encoded(sentences)
    if len(words) == 3:
        raise ValueError("there is no word to learn from")
    tables = _counted(id_N, place_N, len(words), order)
    adjusted = [_adjusted(table, tables[n + 1] if n + 1 < order else None) for n, table in enumerate(tables)]
    adjusted[0][BEGIN] = 0
    discounts = [discounts_of(count_G) for count_G in adjusted]
    probability, backoff = [_unigram_probability(adjusted[0], discounts[0])], []
    for n in range(1, order):
        p_G, gamma_C = _interpolated(tables[n], adjusted[n], discounts[n], probability[-1])
        probability.append(p_G)
        backoff.append(gamma_C)
    return NgramModel(words, tables, probability, [*backoff, np.ones(len(probability[-1]))], discounts)


def _encoded(sentences: Iterable[Sequence[str]]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The vocabulary, the tokens as word numbers, and each token's place in its sentence (0 is <s>)."""
    numbers = {"<unk>": UNKNOWN, "<s>": BEGIN, "</s>": END}
    ids: list[int] = []
    lengths: list[int] = []
    for sentence in sentences:
        if any(word in ("<unk>", "<s>", "</s>") or not word or len(word.split()) != 1 for word in sentence):
            raise ValueError(f"a word is without white space and none of <unk>, <s>, </s>; the sentence is {list(sentence)[:20]}")
        ids += [BEGIN, *(numbers.setdefault(word, len(numbers)) for word in sentence), END]
        lengths.append(len(sentence) + 2)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths).astype(np.int64)
    return list(numbers), np.asarray(ids, np.int64), np.arange(len(ids)) - starts


def _counted(id_N: np.ndarray, place_N: np.ndarray, words: int, order: int) -> list[NgramTable]:
    count_V = np.bincount(id_N, minlength=words)
    nothing = np.zeros(words, np.int64)
    tables = [NgramTable(np.arange(words), nothing, nothing, count_V, np.arange(words) == BEGIN)]
    gram_N = id_N
    for n in range(2, order + 1):
        (ends,) = np.nonzero(place_N >= n - 1)
        key = gram_N[ends - 1] * words + id_N[ends]
        unique_G, first_G, inverse, count_G = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
        suffix_G = gram_N[ends[first_G]]
        tables.append(NgramTable(unique_G % words, unique_G // words, suffix_G, count_G, place_N[ends[first_G]] == n - 1))
        gram_N = np.zeros_like(id_N)
        gram_N[ends] = inverse
    return tables


def _adjusted(table: NgramTable, longer: NgramTable | None) -> np.ndarray:
    """How many different words come before an n-gram; the count itself for the highest order and after <s>, where nothing comes."""
    if longer is None:
        return table.count_G.copy()
    before_G = np.bincount(longer.suffix_G, minlength=len(table.word_G))
    return np.where(table.begins_G, table.count_G, before_G)


def discounts_of(count_G: np.ndarray) -> tuple[float, float, float]:
    """What is taken from counts of 1, 2 and 3 or more: D_k = k - (k + 1) Y t_(k+1) / t_k with Y = t_1 / (t_1 + 2 t_2), and t_k the
    number of n-grams counted k times.

    0.5, 1 and 1.5, as lmplz falls back to, where a t_k is 0 or a D_k falls outside 0 to k: small or artificial text. By hand: t = 4, 3,
    2, 1 give Y = 0.4, D = 1 - 0.8 * 3/4 = 0.4, 2 - 1.2 * 2/3 = 1.2, 3 - 1.6 * 1/2 = 2.2.
    """
    t = np.bincount(np.minimum(count_G, 5), minlength=6).astype(float)
    if (t[1:4] == 0).any():
        return _FALLBACK
    y = t[1] / (t[1] + 2 * t[2])
    one, two, three = (k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3))
    valid = 0 <= one <= 1 and 0 <= two <= 2 and 0 <= three <= 3
    return (float(one), float(two), float(three)) if valid else _FALLBACK


def _discount(count_G: np.ndarray, discounts: tuple[float, float, float]) -> np.ndarray:
    return np.array([0.0, *discounts])[np.minimum(count_G, 3)]


def _unigram_probability(count_V: np.ndarray, discounts: tuple[float, float, float]) -> np.ndarray:
    """Discounted shares, mixed with the uniform distribution over all words and <unk>; 1 for <s>, which nobody has to guess."""
    discount_V = _discount(count_V, discounts)
    p_V = (count_V - discount_V + discount_V.sum() / (len(count_V) - 1)) / count_V.sum()
    p_V[BEGIN] = 1.0
    return p_V


def _interpolated(
    table: NgramTable, count_G: np.ndarray, discounts: tuple[float, float, float], lower: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """p(w | context) = (count - D) / sum over the context + gamma(context) p(w | shorter context), and the gamma of each context."""
    discount_G = _discount(count_G, discounts)
    total_C = np.bincount(table.context_G, count_G, minlength=len(lower))
    taken_C = np.bincount(table.context_G, discount_G, minlength=len(lower))
    gamma_C = np.divide(taken_C, total_C, out=np.ones(len(lower)), where=total_C > 0)
    return (count_G - discount_G) / total_C[table.context_G] + gamma_C[table.context_G] * lower[table.suffix_G], gamma_C


def write_arpa(model: NgramModel, path: Path) -> None:
    """Write the model in the ARPA format: log10 of probabilities and back-off weights."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\\data\\\n" + "".join(f"ngram {n}={len(p)}\n" for n, p in enumerate(model.probability_G, start=1)))
        gram_Gn = np.zeros((1, 0), np.int64)
        for n, table in enumerate(model.tables, start=1):
            gram_Gn = np.column_stack([gram_Gn[table.context_G], table.word_G])
            file.write(f"\n\\{n}-grams:\n")
            file.writelines(_arpa_lines(model, n, gram_Gn))
        file.write("\n\\end\\\n")


def _arpa_lines(model: NgramModel, n: int, gram_Gn: np.ndarray) -> Iterator[str]:
    probability, backoff = np.log10(model.probability_G[n - 1]), np.log10(model.backoff_G[n - 1])
    highest = n == len(model.tables)
    for start in range(0, len(gram_Gn), _LINES_AT_ONCE):
        part = slice(start, start + _LINES_AT_ONCE)
        for gram, logp, weight in zip(gram_Gn[part].tolist(), probability[part].tolist(), backoff[part].tolist(), strict=True):
            text = " ".join(model.words[number] for number in gram)
            yield f"{logp:.8g}\t{text}\n" if highest else f"{logp:.8g}\t{text}\t{weight:.8g}\n"
