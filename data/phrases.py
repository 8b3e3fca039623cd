"""Which phrases one set of answers uses far more than another, over the same prompts.

Axes: ``P`` prompts, ``C`` completions, ``H`` phrases.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from data.diversity import ngrams
from data.resampling import by_prompt

Phrase = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Exploded:
    """A phrase with the share of answers that hold it, before and now, and the probability of that by chance times the phrases tested.

    ``own_C``, ``base_C``: how often each answer holds it.
    """

    phrase: Phrase
    own_share: float
    base_share: float
    p_corrected: float
    own_C: np.ndarray
    base_C: np.ndarray

    @property
    def gain(self) -> float:
        """Share of answers now less share before."""
        return self.own_share - self.base_share


def frequent_phrases(texts: Sequence[Sequence[str]], longest: int, least: int) -> dict[Phrase, Counter[int]]:
    """Phrases of 1 to ``longest`` tokens in at least ``least`` texts, each with how often which text holds it.

    A phrase is only looked at where the two that it is made of are frequent (Agrawal and Srikant 1994): no more is kept than is asked for.
    """
    found: dict[Phrase, Counter[int]] = {}
    for n in range(1, longest + 1):
        counts: dict[Phrase, Counter[int]] = defaultdict(Counter)
        for place, tokens in enumerate(texts):
            for gram in ngrams(tokens, n):
                if n == 1 or (gram[:-1] in found and gram[1:] in found):
                    counts[gram][place] += 1
        frequent = {gram: places for gram, places in counts.items() if len(places) >= least}
        if not frequent:
            break
        found |= frequent
    return found


def exploded_phrases(
    own: Sequence[Sequence[str]],
    base: Sequence[Sequence[str]],
    prompt_C: tuple[np.ndarray, np.ndarray],
    *,
    longest: int,
    min_gain: float,
    level: float,
) -> list[Exploded]:
    """Phrases in at least ``min_gain`` more of the own answers than of the baseline's, beyond chance, the largest gain first.

    Chance: were the two policies the same, a phrase would be more frequent in the own answers to a prompt as often as less frequent.
    One-sided sign test over prompts, times the number of phrases tested (Bonferroni); tested is what enough answers of both together
    hold, which says nothing about whose they are.

    Args:
        own: tokens of the policy's answers.
        base: tokens of the baseline's answers.
        prompt_C: the prompt of each answer, of the policy and of the baseline.
        longest: tokens of the longest phrase.
        min_gain: smallest difference of the two shares.
        level: largest corrected probability.
    """
    least = max(2, round(min_gain * len(own)))
    found = frequent_phrases([*own, *base], longest, least)
    if not found:
        return []
    counts = [_split(places, len(own), len(base)) for places in found.values()]
    p_H = np.minimum(_sign_tests(counts, prompt_C) * len(found), 1)
    exploded = [
        Exploded(phrase, float((own_C > 0).mean()), float((base_C > 0).mean()), float(p), own_C, base_C)
        for phrase, (own_C, base_C), p in zip(found, counts, p_H, strict=True)
        if p <= level
    ]
    return sorted((e for e in exploded if e.gain >= min_gain), key=lambda e: (-e.gain, -len(e.phrase), e.phrase))


def _split(places: Mapping[int, int], own: int, base: int) -> tuple[np.ndarray, np.ndarray]:
    count_C = np.zeros(own + base)
    count_C[list(places)] = list(places.values())
    return count_C[:own], count_C[own:]


def _sign_tests(counts: Sequence[tuple[np.ndarray, np.ndarray]], prompt_C: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """P(at least as many prompts with more in the own answers | one half), ties left out: ``[H]``.

    By hand: more in 3 of 3 prompts: 1/8.
    """
    prompts = int(prompt_C[0].max()) + 1
    sign_HP = np.stack([np.sign(by_prompt(prompt_C[0], own, prompts) - by_prompt(prompt_C[1], base, prompts)) for own, base in counts])
    more_H, fewer_H = (sign_HP > 0).sum(1), (sign_HP < 0).sum(1)
    return binom.sf(more_H - 1, more_H + fewer_H, 0.5)


def fullest(phrases: Sequence[Exploded], named: Exploded) -> Exploded:
    """The longest phrase that holds ``named`` and has nearly its gain (nine tenths): what is said as a whole."""
    around = [e for e in phrases if e.gain >= 0.9 * named.gain and _holds(e.phrase, named.phrase)]
    return max([named, *around], key=lambda e: (len(e.phrase), e.gain))


def _holds(phrase: Phrase, part: Phrase) -> bool:
    return part in ngrams(phrase, len(part))
