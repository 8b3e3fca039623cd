"""What is measured of a policy's behaviour beside its score.

Axes: ``P`` prompts, ``C`` sampled completions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np

from data.answer_form import FORMS, answer_form, language_of, traits
from data.blocks.language import UNKNOWN
from data.blocks.repetition import duplicate_ngram_shares
from data.confidence import agreement, bin_gaps, calibration_error
from data.degenerate import degenerate
from data.diversity import cut_tokens, distinct, embeddings, most_common_opening, self_bleu, semantic_spread
from data.intervals import Interval
from data.measures import Better, Measure, gain, mean, rate
from data.resampling import Resamples, Statistic, slope, slope_sums
from data.verifiers import stated_answer
from models.answered import Answered
from models.configs.behaviour import BehaviourConfig

_Summed = tuple[np.ndarray, Statistic, Better]
REWARDS = ("reward", "held_out_reward", "score")
PER_TOKENS = 100  # slopes are per so many tokens
_REPEATED_NGRAM = 3
_SELF_BLEU_GROUPS = 64  # each text against all others of its group takes a while
_REMEMBERED = 4  # policies, each of which is also compared with the baseline


class Measuring:
    """Measures policies that answered the same prompts, with the same resamples and the same blocks of prompts for all."""

    def __init__(self, config: BehaviourConfig, baseline: Answered, seed: int) -> None:
        self.config, self.baseline, self.seed = config, baseline, seed
        self.resamples = Resamples(baseline.prompts, seed=seed, n=config.resamples)
        order = np.random.default_rng(seed).permutation(baseline.prompts)
        size = min(config.group_prompts, baseline.prompts)
        self.blocks = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]

    def measures(self, own: Answered) -> dict[str, Measure]:
        """All that can be measured of a policy, by name."""
        parts = (self._length, self._diversity, self._repetition, self._confidence, self._format)
        found = [measure for part in parts for measure in part(own)]
        for name, (sums_PK, statistic, better) in self._statistics(own).items():
            found.append(_measure(name, self.resamples.interval(sums_PK, statistic), better))
        return {measure.name: measure for measure in found}

    def gains(self, own: Answered, measures: Mapping[str, Measure], before: Mapping[str, Measure]) -> dict[str, Interval]:
        """Own less baseline over the same prompts, of every quantity that both have."""
        own_statistics, base_statistics = self._statistics(own), self._statistics(self.baseline)
        gains = {}
        for name in measures.keys() & before.keys():
            if name in own_statistics:
                gains[name] = self._statistic_gain(own_statistics[name], base_statistics[name])
            elif (change := gain(measures[name], before[name], seed=self.seed, resamples=self.config.resamples)) is not None:
                gains[name] = change
        return {name: gains[name] for name in measures if name in gains}

    def _statistic_gain(self, own: _Summed, base: _Summed) -> Interval:
        sums_PK, statistic, _ = own
        width = sums_PK.shape[1]
        return self.resamples.interval(
            np.concatenate([sums_PK, base[0]], 1), lambda sums: statistic(sums[..., :width]) - statistic(sums[..., width:])
        )

    def _statistics(self, own: Answered) -> dict[str, _Summed]:
        """Quantities that are no means over prompts: slopes of rewards on length, and calibration errors."""
        found: dict[str, _Summed] = {
            f"length/{field}_slope": (self.slopes(own, field), _scaled_slope, "neither") for field in REWARDS if field in own.numbers
        }
        for name, confidence_C in confidences(own).items():
            gaps = bin_gaps(confidence_C, own.numbers["correct"], own.prompt_C, own.prompts)
            found[f"confidence/{name}_calibration_error"] = (gaps, calibration_error, "lower")
        return found

    def _mean(self, name: str, own: Answered, value_C: Sequence[float] | np.ndarray, better: Better = "neither") -> Measure:
        """Of one value a completion: a share by Wilson where every prompt has 0 or 1, else a bootstrapped mean."""
        return self._over(name, own.by_id(own.means(np.asarray(value_C, np.float64))), better)

    def _over(self, name: str, values: dict[str, float], better: Better) -> Measure:
        if all(value in (0, 1) for value in values.values()):
            return rate(name, values, better)
        return mean(name, values, seed=self.seed, resamples=self.config.resamples, better=better)

    # Length

    def _length(self, own: Answered) -> Iterator[Measure]:
        yield self._mean("length/completion_tokens", own, own.numbers["n_tokens"])

    def slopes(self, own: Answered, field: str) -> np.ndarray:
        """What the slope of a reward on length is made of; within prompts where they have several samples, else across prompts."""
        return slope_sums(own.prompt_C, own.numbers["n_tokens"], own.numbers[field], own.prompts, within=own.samples > 1)

    # Diversity

    def _diversity(self, own: Answered) -> Iterator[Measure]:
        cut = [cut_tokens(text, self.config.diversity_tokens) for text in own.texts]
        named = self.groups(own)
        groups = {name: [cut[c] for c in places] for name, places in named.items()}
        for n in (1, 2, 3):
            yield self._grouped(f"diversity/distinct_{n}", groups, lambda group, n=n: distinct(group, n), "higher")
        sample = dict(list(groups.items())[:_SELF_BLEU_GROUPS])
        yield self._grouped("diversity/self_bleu", sample, self_bleu, "lower")
        embedding_CD = embeddings([" ".join(tokens) for tokens in cut])
        spread = {name: semantic_spread(embedding_CD[places]) for name, places in named.items()}
        yield self._over("diversity/semantic_spread", spread, "higher")
        several = {name: len({own.texts[c] for c in places}) / len(places) for name, places in named.items()}
        yield self._over("diversity/distinct_completions", several, "higher")
        opening = most_common_opening(cut, self.config.opening_tokens)
        opens = [tuple(tokens[: len(opening)]) == opening for tokens in cut]
        yield self._mean("diversity/common_opening", own, opens, "lower")
        if "logp_nats" in own.numbers:
            yield self._mean("diversity/entropy_nats", own, -token_logps(own))

    def groups(self, own: Answered) -> dict[str, np.ndarray]:
        """The completions that are compared for diversity: the samples of a prompt, or of blocks of prompts the only ones."""
        if min(own.samples, self.baseline.samples) > 1:
            most = min(own.samples, self.baseline.samples)
            return {own.ids[p]: np.flatnonzero(own.prompt_C == p)[:most] for p in range(own.prompts)}
        _, first_P = np.unique(own.prompt_C, return_index=True)
        return {f"block-{number}": first_P[block] for number, block in enumerate(self.blocks) if len(block) > 1}

    def _grouped(
        self, name: str, groups: dict[str, list[list[str]]], of: Callable[[Sequence[Sequence[str]]], float], better: Better
    ) -> Measure:
        return self._over(name, {key: of(group) for key, group in groups.items()}, better)

    # Repetition

    def _repetition(self, own: Answered) -> Iterator[Measure]:
        yield self._mean("repetition/duplicate_3grams", own, repeated_shares(own), "lower")
        why = degenerate_reasons(own)
        yield self._mean("repetition/degenerate", own, [reason != "" for reason in why], "lower")
        yield self._mean("repetition/empty", own, [reason == "empty" for reason in why], "lower")

    # Confidence

    def _confidence(self, own: Answered) -> Iterator[Measure]:
        for name, confidence_C in confidences(own).items():
            yield self._mean(f"confidence/{name}", own, confidence_C)
            yield self._mean(f"confidence/{name}_overconfidence", own, confidence_C - own.numbers["correct"], "lower")

    # Format

    def _format(self, own: Answered) -> Iterator[Measure]:
        for name, value_C in format_traits(own, self.baseline).items():
            yield self._mean(f"format/{name}", own, value_C)


def confidences(own: Answered) -> dict[str, np.ndarray]:
    """How sure a policy is of each answer, where answers are right or wrong: ``[C]`` each.

    ``token_probability``: exp of the mean log-probability of its tokens; ``agreement``: the share of the prompt's other samples that state
    the same answer.
    """
    found: dict[str, np.ndarray] = {}
    if "correct" not in own.numbers:
        return found
    if "logp_nats" in own.numbers:
        found["token_probability"] = np.exp(np.minimum(token_logps(own), 0.0))
    if own.samples > 1:
        stated = [" ".join(stated_answer(text).split()) for text in own.texts]
        groups = [np.flatnonzero(own.prompt_C == p) for p in range(own.prompts)]
        found["agreement"] = np.array([value for places in groups for value in agreement([stated[c] for c in places])])
    return found


@lru_cache(maxsize=_REMEMBERED)
def format_traits(own: Answered, baseline: Answered) -> dict[str, np.ndarray]:
    """What the answers look like, by name: one value a completion, 0 or 1 or a share of characters: ``[C]`` each.

    ``usual_language``: 1 where the answer is in the language of most answers of the baseline, or too short to have one.
    """
    found = {"finished": own.numbers["finished"]} if "finished" in own.numbers else {}
    forms = np.array([answer_form(text) for text in own.texts])
    found |= {f"form_{form}": (forms == form).astype(float) for form in FORMS}
    seen = [traits(text) for text in own.texts]
    found |= {name: np.array([one[name] for one in seen]) for name in seen[0]}
    usual = _usual_language(baseline)
    return found | {"usual_language": np.array([float(language_of(text) in (usual, UNKNOWN)) for text in own.texts])}


@lru_cache(maxsize=_REMEMBERED)
def repeated_shares(own: Answered) -> np.ndarray:
    """Share of each answer's characters that lie in runs of three tokens which occurred before in it: ``[C]``."""
    sizes = [max(sum(map(len, tokens)), 1) for tokens in own.tokens]
    n = _REPEATED_NGRAM
    return np.array([duplicate_ngram_shares(tokens, [n], size)[n] for tokens, size in zip(own.tokens, sizes, strict=True)])


@lru_cache(maxsize=_REMEMBERED)
def degenerate_reasons(own: Answered) -> tuple[str, ...]:
    """Why each answer must not win, "" where nothing speaks against it."""
    return tuple(degenerate(text) for text in own.texts)


@lru_cache(maxsize=_REMEMBERED)
def _usual_language(baseline: Answered) -> str:
    """The language of most answers of the baseline, of those that are long enough to have one."""
    languages = [language for language in map(language_of, baseline.texts) if language != UNKNOWN]
    return max(sorted(set(languages)), key=languages.count, default=UNKNOWN)


def token_logps(own: Answered) -> np.ndarray:
    """Mean log-probability of the tokens of each answer, nats: ``[C]``."""
    return own.numbers["logp_nats"] / np.maximum(own.numbers["n_tokens"], 1)


def _scaled_slope(sums: np.ndarray) -> np.ndarray:
    return slope(sums) * PER_TOKENS


def _measure(name: str, interval: Interval, better: Better = "neither") -> Measure:
    return Measure(name, interval.mean, interval.low, interval.high, better)
