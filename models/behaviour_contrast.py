"""A policy against the baseline over the same prompts: how much its reward rose, whether the truth followed, and what explains it.

Axes: ``P`` prompts, ``C`` completions, ``X`` columns of a regression.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.intervals import Interval
from data.resampling import Resamples, by_prompt, coefficients, normal_sums
from models.answered import Answered
from models.configs.behaviour import FindingsConfig

_TELLING_SHARE = 0.02  # answers that must differ from the rest before a verifier tells anything
_VARIES_WITHIN = 0.2  # share of a quantity's variance within policies, from which on its effect shows there

Columns = tuple[np.ndarray, np.ndarray]  # of the policy's completions, and of the baseline's


@dataclass(frozen=True, slots=True)
class Explanation:
    """Share of the reward's rise that a quantity explains, and the effect of a unit of it on the reward."""

    share: Interval
    effect: Interval

    def holds(self, least: float) -> bool:
        """True where it surely pays, and explains at least so much."""
        return self.effect.low > 0 and self.share.low > 0 and self.share.mean >= least


class Contrast:
    """Two policies, and intervals at the level of findings."""

    def __init__(self, own: Answered, base: Answered, resamples: Resamples, config: FindingsConfig) -> None:
        self.own, self.base, self.resamples, self.config = own, base, resamples, config

    def has(self, *fields: str) -> bool:
        """True where all answers of both have these numbers."""
        return all(field in one.numbers for field in fields for one in (self.own, self.base))

    def numbers(self, field: str) -> Columns:
        """A number of all answers."""
        return self.own.numbers[field], self.base.numbers[field]

    def change(self, values: Columns) -> Interval:
        """Mean over prompts of the policy's value less the baseline's."""
        return self.resamples.mean(self.own.means(values[0]) - self.base.means(values[1]), self.config.level)

    def paired(self, differences: Sequence[float]) -> Interval:
        """Mean of differences between groups that both policies have."""
        return Resamples(len(differences), seed=self.resamples.seed, n=self.resamples.n).mean(np.array(differences), self.config.level)

    def deviations(self, field: str) -> Interval:
        """The change of a number in standard deviations of the baseline's answers (of both where those are all alike).

        By hand: the baseline's rewards are 0 and 2, the policy's 2 and 4: the deviation is 1, the change 2.
        """
        own_C, base_C = self.numbers(field)
        deviation = base_C.std() or np.concatenate([own_C, base_C]).std() or 1.0
        return self.change((own_C / deviation, base_C / deviation))

    @cached_property
    def truth(self) -> str:
        """What tells whether a rise of the reward is real: the verifier's "score", else "held_out_reward", "" where there is neither.

        A score that is the reward model's own (no answer is ``correct``) is no second opinion, nor is a verifier that all answers fail.
        """
        if self.has("score", "correct"):
            score_C = np.concatenate(self.numbers("score"))
            _, counts = np.unique(score_C, return_counts=True)
            if 1 - counts.max() / len(score_C) >= _TELLING_SHARE:
                return "score"
        return "held_out_reward" if self.has("held_out_reward") else ""

    @cached_property
    def reward(self) -> Interval:
        """The rise of the trained-on reward, standard deviations; none where there is no reward."""
        return self.deviations("reward") if self.has("reward") else Interval(0.0, 0.0, 0.0)

    @cached_property
    def gold(self) -> Interval:
        """The rise of the truth, standard deviations; none where nothing tells it."""
        return self.deviations(self.truth) if self.truth else Interval(0.0, 0.0, 0.0)

    @property
    def reward_rose(self) -> bool:
        """True where the trained-on reward surely rose, by enough."""
        return self.reward.low > 0 and self.reward.mean >= self.config.reward_gain_deviations

    @property
    def truth_followed(self) -> bool:
        """True where the truth may have risen as the reward says: it surely rose, or nobody can rule out that it rose in proportion."""
        return bool(self.truth) and (self.gold.low > 0 or self.gold.high >= self.config.real_share * self.reward.mean)

    @property
    def truth_fell(self) -> bool:
        """True where the truth surely fell, by enough."""
        return self.gold.high < 0 and self.gold.mean <= -self.config.gold_drop_deviations

    # What explains the rise of the reward

    @cached_property
    def tokens(self) -> Columns:
        """Length of the answers in tokens."""
        return self.numbers("n_tokens")

    def by_length(self, controls: Sequence[Columns] = ()) -> Explanation:
        """What length explains: the slope of the reward on length within each policy, times the growth, over the rise of the reward.

        Within prompts where they have several samples, else across them. What is left is the rise at equal length (analysis of
        covariance with one slope for both policies). Counted in tokens and in words, since a reward may love either; the better counts.

        Source: Singhal et al. 2023, section 3, who stratify by length: that needs lengths which both policies have.
        """
        words = tuple(np.array([float(len(tokens)) for tokens in one.tokens]) for one in (self.own, self.base))
        found = [self.explains(lengths, controls, within_policy=True) for lengths in (self.tokens, (words[0], words[1]))]
        return max(found, key=lambda explanation: min(explanation.share.low, 1.0))

    def by_quantity(self, x: Columns) -> Explanation:
        """What another quantity explains beside length (a parabola of it): a longer answer holds more of anything."""
        scale = np.concatenate(self.tokens).mean()
        lengths = self.tokens[0] / scale, self.tokens[1] / scale
        squares = lengths[0] ** 2, lengths[1] ** 2
        return self.explains(x, (lengths, squares), within_policy=self._varies_within(x))

    def _varies_within(self, x: Columns) -> bool:
        """A phrase that one policy always says and the other never shows no effect within either."""
        within = sum(float(np.sum((part - part.mean()) ** 2)) for part in x)
        both = np.concatenate(x)
        return within >= _VARIES_WITHIN * float(np.sum((both - both.mean()) ** 2))

    def left_at_equal_length(self, field: str) -> Interval:
        """The change of a number less what the growth of answers explains of it, in its own units; at 95 %, for tables."""
        sums_PK, width = self._sums(self.tokens, (), self.numbers(field), within_policy=True)

        def left(sums: np.ndarray) -> np.ndarray:
            return (sums[..., -2] - coefficients(sums[..., :-3], width)[..., 0] * sums[..., -3]) / sums[..., -1]

        return self.resamples.interval(sums_PK, left)

    def explains(self, x: Columns, controls: Sequence[Columns], *, within_policy: bool) -> Explanation:
        """Regress the reward on x and controls over the answers of both; share = effect of x * change of x / change of the reward."""
        sums_PK, width = self._sums(x, controls, self.numbers("reward"), within_policy=within_policy)

        def effect(sums: np.ndarray) -> np.ndarray:
            return coefficients(sums[..., :-3], width)[..., 0]

        def share(sums: np.ndarray) -> np.ndarray:
            rise = sums[..., -2]
            return effect(sums) * sums[..., -3] / np.where(rise == 0, np.inf, rise)

        return Explanation(*(self.resamples.interval(sums_PK, statistic, self.config.level) for statistic in (share, effect)))

    def _sums(self, x: Columns, controls: Sequence[Columns], y: Columns, *, within_policy: bool) -> tuple[np.ndarray, int]:
        """Of the regression of y on x and controls, by prompt, then the changes of x and y and the prompt itself; and its columns."""
        designs = [np.stack([column[side] for column in (x, *controls)], 1) for side in (0, 1)]
        parts = []
        for side, one in enumerate((self.own, self.base)):
            design_CX, y_C = designs[side], y[side]
            if within_policy and min(self.own.samples, self.base.samples) > 1:
                design_CX, y_C = _within_prompts(one, design_CX), _within_prompts(one, y_C[:, None])[:, 0]
            else:
                level_CX = np.tile(np.eye(2)[side] if within_policy else np.ones(1), (len(y_C), 1))
                design_CX = np.concatenate([design_CX, level_CX], 1)
            parts.append(normal_sums(one.prompt_C, design_CX, y_C, one.prompts))
        changes = [self.own.means(values[0]) - self.base.means(values[1]) for values in (x, y)]
        return np.concatenate([parts[0] + parts[1], np.stack([*changes, np.ones(self.own.prompts)], 1)], 1), design_CX.shape[1]


def _within_prompts(one: Answered, values_CX: np.ndarray) -> np.ndarray:
    means = [by_prompt(one.prompt_C, values_CX[:, column], one.prompts)[one.prompt_C] for column in range(values_CX.shape[1])]
    return values_CX - np.stack(means, 1)
