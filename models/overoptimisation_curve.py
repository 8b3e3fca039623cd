"""What can be said of a policy's way through training from the same prompts answered at several points of it.

Axes: ``K`` points, the first of which is the reference, ``P`` prompts, ``N`` bootstrap draws.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data.intervals import Interval, paired_bootstrap, weights_of

FEWEST_PROMPTS = 10  # fewer resampled prompts look surer than they are
FEWEST_POINTS = 4  # for two coefficients
LEAST_EXPLAINED = 0.5  # share of the variance over points, below which a form is not the curve's
ERROR = 0.05  # chance of calling a difference significant where there is none


@dataclass(frozen=True)
class Curve:
    """Quantities of every prompt at every point, means over a prompt's completions; None where nothing gave them.

    Rewards are standardised, so that two reward models are comparable: minus the mean of the reference's completions, over their standard
    deviation. ``score_KP`` has the prompts that name a verifier only.
    """

    steps: Sequence[int]
    kl_KP: np.ndarray
    reward_KP: np.ndarray
    held_out_KP: np.ndarray | None
    score_KP: np.ndarray | None
    seed: int
    resamples: int

    @property
    def kl_K(self) -> np.ndarray:
        """Mean KL of each point, nats."""
        return self.kl_KP.mean(axis=1)

    @property
    def sqrt_kl_K(self) -> np.ndarray:
        """Its square root; an estimate below 0 counts as 0."""
        return np.sqrt(np.maximum(self.kl_K, 0.0))

    @property
    def judged(self) -> tuple[str, np.ndarray] | None:
        """What tells whether the policy got better: the verifier, else the held-out reward; None where there is neither."""
        if self.score_KP is not None:
            return "the verifier's score", self.score_KP
        return None if self.held_out_KP is None else ("the held-out reward", self.held_out_KP)

    def difference(self, value_KP: np.ndarray, later: int, earlier: int, level: float = 1 - ERROR) -> Interval:
        """One point minus another on the same prompts."""
        return paired_bootstrap(value_KP[later].tolist(), value_KP[earlier].tolist(), seed=self.seed, n=self.resamples, level=level)

    def mean(self, value_KP: np.ndarray, point: int) -> Interval:
        """A point's mean over prompts."""
        return paired_bootstrap(value_KP[point].tolist(), seed=self.seed, n=self.resamples)


def standardised(value_KP: np.ndarray, answer_KA: np.ndarray) -> np.ndarray:
    """Rewards minus the mean of those of the reference's answers, over their standard deviation.

    Where the reference's answers are all equal the deviation is that of all answers; where those are, too, 1.

    By hand: the reference's answers 1 and 3, another point's 6: (6 - 2) / 1 = 4.
    """
    reference_A = answer_KA[0]
    deviation = float(reference_A.std()) or float(answer_KA.std()) or 1.0
    return (value_KP - reference_A.mean()) / deviation


def points(curve: Curve) -> list[dict[str, Any]]:
    """The curve with 95 % intervals over prompts: rewards as gains over the reference, paired with it; the verifier's score as it is."""
    found = []
    for k, step in enumerate(curve.steps):
        kl = curve.mean(curve.kl_KP, k)
        gains = {"reward": curve.reward_KP, "held_out_reward": curve.held_out_KP}
        found.append(
            {
                "step": step,
                "kl_nats": kl.mean,
                "kl_low": kl.low,
                "kl_high": kl.high,
                "sqrt_kl": float(curve.sqrt_kl_K[k]),
                **{name: None if value_KP is None else asdict(curve.difference(value_KP, k, 0)) for name, value_KP in gains.items()},
                "score": None if curve.score_KP is None else asdict(curve.mean(curve.score_KP, k)),
            }
        )
    return found


# Where to stop


@dataclass(frozen=True)
class Verdict:
    """Where to stop, whether the policy went past it, and why, in words."""

    recommended_step: int | None
    overoptimised: bool
    message: str


def verdict(curve: Curve) -> Verdict:
    """Stop where what was not trained on is best; over-optimised is who went on while only what was trained on rose.

    The stopping point has the highest mean of the verifier's score (else of the held-out reward) of all points, the first of equals: no
    later one is significantly better. Over-optimised: at the end that is significantly below its best, while the reward trained on is
    significantly above the reference's and not significantly below its own at the best point. The best was chosen by its size among K - 1
    earlier points, so its interval has the level 1 - 0.05 / (K - 1) (Bonferroni). Of simulated runs that never fell (60 prompts, 6 points)
    2 % are called over-optimised, and 9 % would be without that.

    Source: Gao et al. 2023, figure 1, for what over-optimisation looks like.
    """
    judged = curve.judged
    if judged is None:
        return Verdict(None, False, "Nothing but the reward trained on was measured, and from that alone nobody can tell where to stop.")
    name, value_KP = judged
    best = int(value_KP.mean(axis=1).argmax())
    step, prompts = curve.steps[best], value_KP.shape[1]
    if prompts < FEWEST_PROMPTS:
        said = f"{prompts} prompts are too few to tell a fall from chance: take at least {FEWEST_PROMPTS}."
        return Verdict(step, False, f"{name.capitalize()} is highest at step {step}, but {said}")
    if best == len(curve.steps) - 1:
        return Verdict(step, False, _still_rising(curve, name, value_KP))
    return _after_the_best(curve, name, value_KP, best)


def _still_rising(curve: Curve, name: str, value_KP: np.ndarray) -> str:
    last = len(curve.steps) - 1
    gain = curve.difference(value_KP, last, 0)
    sure = "" if gain.low > 0 else ", which is within chance"
    return f"No sign of over-optimisation: {name} is best at the end, {_signed(gain)} over the reference{sure}."


def _after_the_best(curve: Curve, name: str, value_KP: np.ndarray, best: int) -> Verdict:
    last = len(curve.steps) - 1
    fall = curve.difference(value_KP, last, best, level=1 - ERROR / last)
    rise = curve.difference(curve.reward_KP, last, 0)
    since = curve.difference(curve.reward_KP, last, best)
    has_fallen = fall.high < 0
    overoptimised = has_fallen and rise.low > 0 and since.high >= 0
    changed = f"from step {curve.steps[best]} to step {curve.steps[last]} {name} changed by {_signed(fall)}"
    trained = f"the reward trained on is {_signed(rise)} standard deviations above the reference's"
    if overoptimised:
        said = f"Over-optimised: {changed}, while {trained}. Stop at step {curve.steps[best]}."
    elif has_fallen:
        said = f"No over-optimisation, but harm: {changed}, and the reward trained on did not rise meanwhile (to {_signed(rise)}). " + (
            f"Stop at step {curve.steps[best]}."
        )
    else:
        said = f"No sign of over-optimisation: {name} is highest at step {curve.steps[best]}, what came after is within chance: {changed}."
    return Verdict(curve.steps[best], overoptimised, said + _as_good_before(curve, name, value_KP, best))


def _as_good_before(curve: Curve, name: str, value_KP: np.ndarray, best: int) -> str:
    """The earliest point that the best is not significantly better than: the same for less KL."""
    for k in range(best):
        if curve.difference(value_KP, best, k).low <= 0:
            kl = f"at a KL of {curve.kl_K[k]:.2f} instead of {curve.kl_K[best]:.2f} nats"
            return f" Step {curve.steps[k]} is not significantly worse, {kl}."
    return ""


def _signed(interval: Interval) -> str:
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


# The form of the curve


def fit(curve: Curve, value_KP: np.ndarray, form: str) -> dict[str, Any] | str:
    """alpha and beta of R(d), d = sqrt(KL), by least squares over the points, with 95 % bootstrap intervals over prompts; or why not.

    reinforcement: R = d (alpha - beta log d), highest at d = exp(alpha / beta - 1). best_of_n: R = d (alpha - beta d), highest at
    d = alpha / (2 beta). R is the gain over the reference, 0 at d = 0. The peak is told only where it lies among the points.

    By hand: best_of_n through R(1) = 1 and R(2) = 0: alpha - beta = 1, alpha - 2 beta = 0: alpha = 2, beta = 1, the peak at d = 1.

    Source: Gao et al. 2023, equations 1 and 2.
    """
    used = curve.sqrt_kl_K > 0
    d_K = curve.sqrt_kl_K[used]
    if len(np.unique(d_K)) < FEWEST_POINTS:
        return f"{len(np.unique(d_K))} points with a KL above 0 are too few for two coefficients: at least {FEWEST_POINTS}"
    gain_KP = (value_KP - value_KP[0])[used]
    solve = np.linalg.pinv(_terms(d_K, form))
    alpha, beta = solve @ gain_KP.mean(axis=1)
    left_K = gain_KP.mean(axis=1) - _terms(d_K, form) @ np.array([alpha, beta])
    spread = float(((gain_KP.mean(axis=1) - gain_KP.mean()) ** 2).sum())
    explained = 1 - float((left_K**2).sum()) / spread if spread else 0.0
    if explained < LEAST_EXPLAINED:
        return f"the form explains {explained:.2f} of the variance over points, less than {LEAST_EXPLAINED}: the curve has another shape"
    ends = np.quantile(solve @ _drawn_means(gain_KP, curve.seed, curve.resamples), [ERROR / 2, 1 - ERROR / 2], axis=1)
    intervals = {name: Interval(mean, *map(float, end)) for name, mean, end in zip(("alpha", "beta"), (alpha, beta), ends.T, strict=True)}
    coefficients = {name: asdict(interval) | {"mean": float(interval.mean)} for name, interval in intervals.items()}
    return {"form": form, **coefficients, "explained": explained, "peak_sqrt_kl": _peak(float(alpha), float(beta), form, float(d_K.max()))}


def _terms(d_K: np.ndarray, form: str) -> np.ndarray:
    """What alpha and beta are multiplied with: ``[K, 2]``."""
    return np.stack([d_K, -d_K * (np.log(d_K) if form == "reinforcement" else d_K)], axis=1)


def _peak(alpha: float, beta: float, form: str, farthest: float) -> float | None:
    if beta <= 0 or alpha / beta > 700:  # no peak, or one beyond any number
        return None
    peak = math.exp(alpha / beta - 1) if form == "reinforcement" else alpha / (2 * beta)
    return peak if 0 < peak <= farthest else None


def _drawn_means(value_KP: np.ndarray, seed: int, draws: int) -> np.ndarray:
    """Means over prompts drawn with replacement, the same for all points: ``[K, N]``."""
    prompts = value_KP.shape[1]
    return np.concatenate([value_KP @ weight_NP.T / prompts for weight_NP in weights_of(prompts, seed, draws)], axis=1)
