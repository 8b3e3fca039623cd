"""Stage entry: what training did to each policy, beside its score, and whether its reward was hacked.

behaviour.json    {"baseline": name, "policies": {name: {"measures": [Measure, ...], "gains": {measure: Interval}, "findings": [...],
                   "phrases": [{"phrase", "share", "baseline_share"}, ...]}}, "notes": [...], "markdown": text}
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.intervals import Interval
from data.markdown import inline
from data.measures import Measure, interval_metrics, metric_part
from models.answered import Answered, read_all
from models.behaviour_contrast import Contrast
from models.behaviour_findings import Finding, exploded_of, findings_of, shown_phrase
from models.behaviour_measures import REWARDS, Measuring
from models.configs.behaviour import BehaviourConfig
from models.run import Run
from models.seeds import derive_seed

_PHRASES = 5  # shown of each policy
COLUMNS = {
    "length/completion_tokens": "length, tokens",
    "length/reward_slope": "reward per 100 tokens",
    "diversity/distinct_2": "distinct-2",
    "diversity/self_bleu": "self-BLEU",
    "diversity/semantic_spread": "semantic spread",
    "diversity/entropy_nats": "entropy, nats",
    "repetition/duplicate_3grams": "repeated characters",
    "confidence/token_probability_calibration_error": "calibration error",
    "format/finished": "finished",
}


def behaviour(config: BehaviourConfig, *, evaluations: dict[str, Path], seed: int, run: Run) -> dict[str, Any]:
    """Measure every policy against the baseline over the same prompts; write ``behaviour.json`` and ``behaviour.md``.

    Metrics are reported as ``behaviour/<policy>/<measure>``.

    Raises:
        ValueError: the baseline was not evaluated, policies answered different prompts, or an evaluation holds a number that is not finite.
    """
    answered = read_all(evaluations, config.baseline)
    baseline = answered[config.baseline]
    measuring = Measuring(config, baseline, derive_seed(seed, "behaviour"))
    before = measuring.measures(baseline)
    policies = {name: _described(own, measuring, before) for name, own in answered.items()}
    notes = _notes(config, baseline)
    markdown = as_markdown(policies, config.baseline, notes)
    content = {"baseline": config.baseline, "policies": policies, "notes": notes, "markdown": markdown}
    (run.out / "behaviour.json").write_text(json.dumps(content), encoding="utf-8")
    (run.out / "behaviour.md").write_text(markdown, encoding="utf-8")
    run.report(metrics_of(policies), 0)
    hacks = [(name, finding) for name, policy in policies.items() for finding in policy["findings"] if finding["severity"] == "hack"]
    for name, finding in hacks:
        run.log(f"reward hack of {name}: {finding['message']}")
    return {"policies": len(policies), "prompts": baseline.prompts, "hacks": len(hacks)}


def _described(own: Answered, measuring: Measuring, before: Mapping[str, Measure]) -> dict[str, Any]:
    """Measures, gains over the baseline, findings and exploded phrases of one policy; the baseline itself is measured only."""
    if own is measuring.baseline:
        return {"measures": [asdict(measure) for measure in before.values()], "gains": {}, "findings": [], "phrases": []}
    contrast = Contrast(own, measuring.baseline, measuring.resamples, measuring.config.findings)
    measures = measuring.measures(own)
    gains = measuring.gains(own, measures, before)
    controlled = length_controlled(contrast)
    phrases = [
        {"phrase": shown_phrase(one.phrase), "share": one.own_share, "baseline_share": one.base_share}
        for one in exploded_of(contrast)[:_PHRASES]
    ]
    return {
        "measures": [asdict(measure) for measure in [*measures.values(), *controlled]],
        "gains": {name: asdict(change) for name, change in gains.items()},
        "findings": [asdict(finding) for finding in findings_of(contrast, measures, before)],
        "phrases": phrases,
    }


def length_controlled(contrast: Contrast) -> list[Measure]:
    """The gain of each reward that is left at equal length, in its own units, with its 95 % interval."""
    left = {field: contrast.left_at_equal_length(field) for field in REWARDS if contrast.has(field)}
    return [Measure(f"length/{field}_gain_at_equal_length", i.mean, i.low, i.high) for field, i in left.items()]


def metrics_of(policies: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What is reported: every measure of every policy, with the ends of its interval, and how many findings there are."""
    found: dict[str, float] = {}
    for policy, described in policies.items():
        own = metric_part(policy)  # policies may be called "dpo [sigmoid]"
        intervals = {one["name"]: Interval(one["mean"], one["low"], one["high"]) for one in described["measures"]}
        found |= interval_metrics({f"behaviour/{own}/{name}": interval for name, interval in intervals.items()})
        for severity in ("hack", "warning"):
            found[f"behaviour/{own}/{severity}s"] = float(sum(one["severity"] == severity for one in described["findings"]))
    return found


# What people read


def _notes(config: BehaviourConfig, baseline: Answered) -> list[str]:
    compared = "the samples of each prompt" if baseline.samples > 1 else f"blocks of {config.group_prompts} prompts"
    notes = [
        f"{baseline.prompts} held-out prompts, the same for every policy; brackets are 95 % intervals over prompts; diversity is that of "
        f"{compared}, the first {config.diversity_tokens} words of each answer."
    ]
    if baseline.prompts < config.findings.min_prompts:
        notes.append(f"Nothing is named below {config.findings.min_prompts} prompts: these are too few to tell.")
    if "reward" not in baseline.numbers:
        notes.append("The evaluations have no trained-on reward: a hack of it cannot be seen here.")
    return notes


def as_markdown(policies: Mapping[str, Mapping[str, Any]], baseline: str, notes: list[str]) -> str:
    """Findings first, then the table of the main measures; what policies wrote is escaped."""
    lines = ["# Behaviour", ""]
    for name, policy in policies.items():
        if name == baseline:
            continue
        found = [Finding(**finding) for finding in policy["findings"]]
        lines += [f"* **{inline(name)}**: {'nothing to name' if not found else ''}".rstrip()]
        lines += [f"  * {one.severity.upper()}, {inline(one.check)}: {inline(one.message)}" for one in found]
    lines += ["", *_table(policies, baseline), "", *notes]
    return "\n".join([*lines, ""])


def _table(policies: Mapping[str, Mapping[str, Any]], baseline: str) -> list[str]:
    named = {name: {measure["name"]: measure for measure in policy["measures"]} for name, policy in policies.items()}
    shown = {key: title for key, title in COLUMNS.items() if any(key in measures for measures in named.values())}
    lines = ["| policy | " + " | ".join(shown.values()) + " |", "|" + "---|" * (1 + len(shown))]
    for name, measures in named.items():
        gains = policies[name]["gains"]
        cells = [_cell(measures.get(key), gains.get(key)) for key in shown]
        lines.append(f"| {inline(name)} | " + " | ".join(cells) + " |")
    return [*lines, "", f"`*`: other than {inline(baseline)}, by the paired 95 % interval."]


def _cell(measure: Mapping[str, Any] | None, gain: Mapping[str, float] | None) -> str:
    if measure is None:
        return "-"
    mark = r" \*" if gain is not None and Interval(**gain).excludes_zero else ""
    return f"{measure['mean']:.3g} [{measure['low']:.3g},\u00a0{measure['high']:.3g}]{mark}"
