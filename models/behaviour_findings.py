"""What a policy does that its score does not say: reward hacks by name, and changes to look at.

A finding of severity "hack" says that the trained-on reward rose, that the truth (a verifier, else a held-out reward model) did not follow,
and what the policy does instead. Every condition is an effect larger than a threshold and an interval; see ``FindingsConfig``.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np

from data.intervals import Interval
from data.labelling.display import pieces
from data.measures import Measure
from data.phrases import Exploded, Phrase, exploded_phrases, fullest
from models.answered import Answered
from models.behaviour_contrast import Columns, Contrast, Explanation
from models.behaviour_measures import degenerate_reasons, format_traits, repeated_shares, token_logps

TRUTHS = {"score": "the verifier's score", "held_out_reward": "the held-out reward", "": "nothing that could confirm it"}
Measures = Mapping[str, Measure]
_SPREADS = ("diversity/distinct_2", "diversity/semantic_spread")
_CANDIDATES = 24  # phrases whose effect on the reward is estimated
_PARTIAL = (0.0, 0.99)  # a score between these is partial credit
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a policy does. ``message`` quotes its text, which is hostile: whoever shows it escapes it."""

    check: str
    severity: Literal["hack", "warning"]
    message: str
    evidence: Mapping[str, float] = field(default_factory=dict)


def findings_of(contrast: Contrast, own: Measures, base: Measures) -> list[Finding]:
    """All that is found of a policy; nothing where there are fewer prompts than an interval can be trusted with."""
    if contrast.own.prompts < contrast.config.min_prompts:
        return []
    hacks = list(hacks_of(contrast))
    return [*hacks, *warnings_of(contrast, own, base)]


# Hacks


def hacks_of(contrast: Contrast) -> Iterator[Finding]:
    """Why the trained-on reward rose, where the truth did not follow or fell."""
    if not contrast.has("reward"):
        return
    if contrast.reward.low > 0 and contrast.truth and contrast.truth_fell:
        message = f"over-optimisation: the trained-on reward rises and {TRUTHS[contrast.truth]} falls: {_rewards(contrast)}"
        yield Finding("over_optimisation", "hack", message, _evidence(contrast))
    if not contrast.reward_rose or contrast.truth_followed:
        return
    causes = list(_causes(contrast))
    yield from causes
    if not causes and contrast.truth and not contrast.truth_fell:
        message = f"the trained-on reward rises without {TRUTHS[contrast.truth]}, and neither length, phrase nor repetition explains it"
        yield Finding("unconfirmed_gain", "warning", f"{message}: {_rewards(contrast)}", _evidence(contrast))


def _causes(contrast: Contrast) -> Iterator[Finding]:
    phrase = _phrase(contrast)
    controls = [] if phrase is None else [_counts(phrase[0])]
    if phrase is not None:
        yield _phrase_hack(contrast, *phrase)
    length = contrast.by_length(controls)
    if _longer(contrast) and length.holds(contrast.config.explained_share):
        yield _length_hack(contrast, length)
    yield from _repetition_hacks(contrast, controls)


def _hack(contrast: Contrast, check: str, does: str, explanation: Explanation, **evidence: float) -> Finding:
    """A hack where something says that the gain is not real, else a warning."""
    explained = f"which explains {explanation.share.mean:.0%} of the rise of the trained-on reward"
    shown = _evidence(contrast) | {"explained_share": explanation.share.mean, "explained_share_low": explanation.share.low} | evidence
    return Finding(check, "hack" if contrast.truth else "warning", f"{does}, {explained}: {_rewards(contrast)}", shown)


def _longer(contrast: Contrast) -> bool:
    change = contrast.change(contrast.tokens)
    return change.low > 0 and change.mean >= contrast.config.length_gain * float(np.mean(contrast.tokens[1]))


def _length_hack(contrast: Contrast, length: Explanation) -> Finding:
    own, base = (float(np.mean(tokens)) for tokens in contrast.tokens)
    does = f"length hack: it writes longer answers ({base:.0f} to {own:.0f} tokens, {own / base - 1:+.0%})"
    return _hack(contrast, "length_hack", does, length, completion_tokens=own, baseline_tokens=base)


def _counts(exploded: Exploded) -> Columns:
    """ln(1 + occurrences): the first counts most, whether the reward asks for one or for many."""
    return np.log1p(exploded.own_C), np.log1p(exploded.base_C)


@lru_cache(maxsize=1)
def exploded_of(contrast: Contrast) -> list[Exploded]:
    """The phrases that the policy says in far more answers than the baseline."""
    config = contrast.config
    return exploded_phrases(
        contrast.own.tokens,
        contrast.base.tokens,
        (contrast.own.prompt_C, contrast.base.prompt_C),
        longest=config.phrase_tokens,
        min_gain=config.phrase_gain,
        level=config.phrase_level,
    )


def _phrase(contrast: Contrast) -> tuple[Exploded, Explanation] | None:
    """The phrase that explains most of the rise of the reward, as it is said in full; None where none explains enough."""
    phrases = exploded_of(contrast)
    explained = [(phrase, contrast.by_quantity(_counts(phrase))) for phrase in phrases[:_CANDIDATES]]
    holding = [(phrase, found) for phrase, found in explained if found.holds(contrast.config.explained_share)]
    if not holding:
        return None
    best, found = max(holding, key=lambda pair: (pair[1].effect.low > 0, min(pair[1].share.low, 1.0), pair[0].gain))
    return fullest(phrases, best), found


def _phrase_hack(contrast: Contrast, exploded: Exploded, explanation: Explanation) -> Finding:
    does = (
        f"phrase hack: it says \u201c{shown_phrase(exploded.phrase)}\u201d in {exploded.own_share:.0%} of its answers "
        f"(baseline {exploded.base_share:.0%})"
    )
    with_C = np.concatenate([exploded.own_C, exploded.base_C]) > 0
    evidence = {"phrase_share": exploded.own_share, "baseline_phrase_share": exploded.base_share, "p_corrected": exploded.p_corrected}
    for name in ("reward", contrast.truth):
        if name and with_C.any() and not with_C.all():
            value_C = np.concatenate(contrast.numbers(name))
            evidence |= {f"{name}_with": float(value_C[with_C].mean()), f"{name}_without": float(value_C[~with_C].mean())}
    return _hack(contrast, "phrase_hack", does, explanation, **evidence)


def shown_phrase(phrase: Phrase) -> str:
    """A phrase on one line, what a reader would not see named, cut where it is long."""
    shown = "".join(text or f"[{mark}]" for text, mark in pieces(" ".join(phrase)))
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}\u2026"


def _repetition_hacks(contrast: Contrast, controls: list[Columns]) -> Iterator[Finding]:
    named = {
        "repetition_hack": ("repetition hack: it repeats itself", "repeated characters", _both(contrast, repeated_shares)),
        "degenerate_hack": ("degenerate answers hack: it says nothing, a heading or an order to the judge", "answers", _empty(contrast)),
    }
    for check, (does, of, shares) in named.items():
        change = contrast.change(shares)
        if controls or change.low <= 0 or change.mean < contrast.config.repetition_gain:
            continue  # a phrase that is said over and over has been named
        explanation = contrast.by_quantity(shares)
        if explanation.holds(contrast.config.explained_share):
            own, base = (float(share.mean()) for share in shares)
            yield _hack(contrast, check, f"{does} ({base:.0%} to {own:.0%} of {of})", explanation, share=own, baseline_share=base)


def _both(contrast: Contrast, of: Callable[[Answered], np.ndarray]) -> Columns:
    return of(contrast.own), of(contrast.base)


def _empty(contrast: Contrast) -> Columns:
    return _both(contrast, lambda one: np.array([float(reason != "") for reason in degenerate_reasons(one)]))


def _rewards(contrast: Contrast) -> str:
    reward = contrast.change(contrast.numbers("reward"))
    said = f"reward {_signed(reward)}"
    return f"{said}, {TRUTHS[contrast.truth]} {_signed(contrast.change(contrast.numbers(contrast.truth)))}" if contrast.truth else said


def _signed(interval: Interval) -> str:
    return f"{interval.mean:+.3g} [{interval.low:+.3g}, {interval.high:+.3g}]"


def _evidence(contrast: Contrast) -> dict[str, float]:
    """The rises in standard deviations, with the ends of their intervals."""
    named = {"reward_gain_deviations": contrast.reward} | ({"truth_gain_deviations": contrast.gold} if contrast.truth else {})
    return {f"{name}{end}": value for name, i in named.items() for end, value in (("", i.mean), ("_low", i.low), ("_high", i.high))}


# Warnings


def warnings_of(contrast: Contrast, own: Measures, base: Measures) -> Iterator[Finding]:
    """Changes that are no hack by themselves."""
    yield from _collapse(contrast, own, base)
    yield from _degeneration(contrast)
    if not (contrast.truth and contrast.gold.low > 0):  # a format that the verifier pays for is what was to be learned
        yield from _drift(contrast)
    yield from _false_certainty(contrast)
    yield from _partial_credit(contrast)


def _collapse(contrast: Contrast, own: Measures, base: Measures) -> Iterator[Finding]:
    for name in _SPREADS:
        values, before = own[name].values, base[name].values
        change = contrast.paired([values[group] - before[group] for group in values])
        if change.high < 0 and change.mean <= -contrast.config.diversity_drop * base[name].mean:
            now, was = own[name].mean, base[name].mean
            quantity = name.partition("/")[2]
            message = f"mode collapse: {quantity.replace('_', ' ')} falls from {was:.3f} to {now:.3f} ({now / was - 1:+.0%})"
            yield Finding("mode_collapse", "warning", message, {quantity: now, f"baseline_{quantity}": was, "change_high": change.high})


def _degeneration(contrast: Contrast) -> Iterator[Finding]:
    named = {"repeated characters": _both(contrast, repeated_shares), "degenerate answers": _empty(contrast)}
    for what, shares in named.items():
        change = contrast.change(shares)
        if change.low > 0 and change.mean >= contrast.config.repetition_gain:
            own, base = (float(share.mean()) for share in shares)
            message = f"degeneration: the share of {what} rises from {base:.0%} to {own:.0%}"
            yield Finding("degeneration", "warning", message, {"share": own, "baseline_share": base, "change_low": change.low})


def _drift(contrast: Contrast) -> Iterator[Finding]:
    own, base = format_traits(contrast.own, contrast.base), format_traits(contrast.base, contrast.base)
    for name in own:
        change = contrast.change((own[name], base[name]))
        lost = name in ("finished", "usual_language") or name.startswith("form_")
        sure = change.high < 0 if lost else not change.low <= 0 <= change.high
        if sure and abs(change.mean) >= contrast.config.format_drop:
            before, now = float(base[name].mean()), float(own[name].mean())
            message = f"format drift: the share of {name.replace('_', ' ')} goes from {before:.0%} to {now:.0%}"
            yield Finding("format_drift", "warning", message, {name: now, f"baseline_{name}": before})


def _false_certainty(contrast: Contrast) -> Iterator[Finding]:
    if not contrast.has("correct", "logp_nats"):
        return
    sides = _both(contrast, lambda one: np.exp(np.minimum(token_logps(one), 0)) - one.numbers["correct"])
    change = contrast.change(sides)
    if change.low > 0 and change.mean >= contrast.config.confidence_gain:
        own, base = (float(side.mean()) for side in sides)
        message = f"false certainty: probability of its tokens less accuracy goes from {base:+.2f} to {own:+.2f}"
        yield Finding("false_certainty", "warning", message, {"overconfidence": own, "baseline_overconfidence": base})


def _partial_credit(contrast: Contrast) -> Iterator[Finding]:
    """Gaming of the verifier, where it shows: the score rises by partial credit, and no more answers are right."""
    if not contrast.has("score", "correct"):
        return
    low, high = _PARTIAL
    part = [((score > low) & (score < high)).astype(float) for score in contrast.numbers("score")]
    change, right = contrast.change((part[0], part[1])), contrast.change(contrast.numbers("correct"))
    if contrast.deviations("score").low > 0 and right.low <= 0 and change.low > 0 and change.mean >= contrast.config.partial_credit_gain:
        own, base = (float(share.mean()) for share in part)
        message = (
            f"partial credit: the verifier's score rises and correct answers do not ({_signed(right)}); "
            f"answers paid in part go from {base:.0%} to {own:.0%}"
        )
        yield Finding("partial_credit", "warning", message, {"share": own, "baseline_share": base})
