"""The gate: may a candidate take the champion's place? Pure: evidence of both in, a decision with every number out.

Nothing that was not measured counts for a candidate: what a guard asks for and cannot have is a refusal, and says what is missing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from data.intervals import Interval, paired_bootstrap
from data.measures import Better
from models.configs.promotion import GateConfig, GuardConfig, Requirement
from models.length_control import length_controlled_gain
from models.seeds import derive_seed

Status = Literal["passed", "failed", "missing", "not asked"]
SAFETY_KINDS = ("safety", "toxicity")
SHOWN_DIFFERENCES = 3


@dataclass(frozen=True, slots=True)
class Quantity:
    """Values of one policy by prompt or item. ``judged``: a judge or a reward model gave them, no rule; ``sd`` is of the values."""

    values: Mapping[str, float]
    better: Better
    judged: bool = False
    suite: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """What the behaviour stage found of a policy."""

    check: str
    severity: str
    message: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one policy, and under which conditions it was learned.

    ``conditions``: of the evaluation (under "evaluation") and of each suite (under its name), flat, all that a number depends on but the
    policy. ``scores``: by prompt, the judge's score of every sampled answer. ``held_out``: ids of all held-out prompts of the data.
    ``findings``, ``overoptimised``: None where nobody looked. ``trained_prompts``: held-out prompts that the policy was trained on.
    ``problems``: why the evidence is none at all, in words.
    """

    name: str
    digest: str
    quantities: Mapping[str, Quantity] = field(default_factory=dict)
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    conditions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    held_out: Sequence[str] = ()
    data: str = ""
    trained_prompts: int = 0
    findings: Sequence[Finding] | None = None
    overoptimised: bool | None = None
    problems: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a decision: what was asked, the numbers, how it came out."""

    check: str
    status: Status
    words: str
    candidate: float | None = None
    champion: float | None = None
    gain: Interval | None = None

    @property
    def stands_in_the_way(self) -> bool:
        """True where this alone refuses the candidate."""
        return self.status in ("failed", "missing")


@dataclass(frozen=True, slots=True)
class Decision:
    """Accepted or refused, with every check."""

    accepted: bool
    checks: Sequence[Check]

    @property
    def reasons(self) -> list[str]:
        """Why the candidate is refused; empty where it is not."""
        return [f"{check.check}: {check.words}" for check in self.checks if check.stands_in_the_way]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"accepted": self.accepted, "reasons": self.reasons, "checks": [asdict(check) for check in self.checks]}


class Unmeasured(ValueError):
    """A quantity cannot be compared. The message says why."""


def decide(candidate: Evidence, champion: Evidence, gate: GateConfig) -> Decision:
    """Judge a candidate against the champion.

    Every check is made even where an earlier one failed, so that a refusal names all its reasons. Where the two were not judged on the
    same prompts nothing can be paired, and every comparison is missing.
    """
    trial = _Trial(candidate, champion, gate)
    checks = list(trial.checks())
    return Decision(not any(check.stands_in_the_way for check in checks), checks)


class _Trial:
    def __init__(self, candidate: Evidence, champion: Evidence, gate: GateConfig) -> None:
        self.candidate, self.champion, self.gate = candidate, champion, gate

    def checks(self) -> Iterator[Check]:
        gate = self.gate
        yield self._evidence()
        yield self._conditions()
        yield self._prompts()
        yield self._unseen()
        yield self._primary()
        yield self._length()
        yield self._kl()
        yield from (self._not_worse(guard.measure, guard) for guard in gate.guards)
        yield self._held_out_reward()
        yield from self._safety()
        yield self._behaviour()
        yield self._over_optimisation()

    # What the numbers stand on

    def _evidence(self) -> Check:
        problems = [*self.candidate.problems, *(f"{self.champion.name}: {problem}" for problem in self.champion.problems)]
        if self.candidate.digest == self.champion.digest:
            problems.append("candidate and champion are the same policy")
        words = "; ".join(problems) or f"whole, and of the policy {self.candidate.digest[:12]}"
        return Check("evidence", "failed" if problems else "passed", words)

    def _conditions(self) -> Check:
        """Everything that both were judged by is the same: code, settings, seed, data, judge."""
        differing = []
        for source in sorted(self._sources()):
            own, other = self.candidate.conditions.get(source), self.champion.conditions.get(source)
            if own is None or other is None:
                name = self.candidate.name if own is None else self.champion.name
                return Check("conditions", "missing", f"{name} has no {source}")
            differing += [f"{source}: {path}" for path in sorted(own.keys() | other.keys()) if own.get(path) != other.get(path)]
        if differing:
            more = f" and {len(differing) - SHOWN_DIFFERENCES} more" if len(differing) > SHOWN_DIFFERENCES else ""
            listed = ", ".join(differing[:SHOWN_DIFFERENCES])
            return Check("conditions", "failed", f"the two were judged differently ({listed}{more}): run the candidate's recipe again")
        return Check("conditions", "passed", "the same code, settings, seed and data")

    def _sources(self) -> set[str]:
        """The evaluation, and the suites that a check of this gate reads."""
        names = {self.gate.primary, *(guard.measure for guard in self.gate.guards)}
        quantities = self.candidate.quantities
        suites = {name.partition("/")[0] for name in names if "/" in name}
        suites |= {one.suite for one in quantities.values() if one.kind in SAFETY_KINDS and self.gate.safety != "off"}
        return {"evaluation", *suites}

    def _prompts(self) -> Check:
        own = list(self._own("completion_tokens").values)
        held_out = set(self.candidate.held_out)
        strangers = [prompt for prompt in own if prompt not in held_out]
        if not own:
            return Check("prompts", "missing", "the candidate answered no held-out prompt")
        if strangers:
            words = f"{len(strangers)} of {len(own)} answered prompts are not among the held-out prompts of the data"
        elif len(own) < self.gate.min_prompts:
            words = f"{len(own)} prompts prove nothing: at least {self.gate.min_prompts} (min_prompts)"
        elif self.gate.all_prompts and len(own) < len(held_out):
            words = f"{len(own)} of {len(held_out)} held-out prompts were answered: set evaluate.prompts=0, or all_prompts=false"
        elif not self.candidate.data.startswith(self.gate.held_out):
            words = f"judged on data {self.candidate.data[:12]}, and the gate asks for {self.gate.held_out}"
        else:
            return Check("prompts", "passed", f"{len(own)} held-out prompts, the same for both")
        return Check("prompts", "failed", words)

    def _unseen(self) -> Check:
        seen = self.candidate.trained_prompts
        words = f"{seen} held-out prompts are in the data that it was trained on" if seen else "trained on none of the held-out prompts"
        return Check("unseen", "failed" if seen else "passed", words)

    # The gain

    def _primary(self) -> Check:
        name = self.gate.primary
        try:
            own, other, better = self._pair(name)
            gain = self._gain(name, own, other, better)
        except Unmeasured as error:
            return Check(f"beats on {name}", "missing", str(error))
        passed = gain.low > self.gate.minimum_gain
        words = f"gain {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}], asked for above {self.gate.minimum_gain:g}"
        return Check(f"beats on {name}", "passed" if passed else "failed", words, _mean(own), _mean(other), gain)

    def _length(self) -> Check:
        """A gain that goes away at equal length was bought with length."""
        gate, name = self.gate, "gain at equal length"
        judged = (gate.primary == "win_rate" and self._own("score").judged) or self._own(gate.primary).judged
        if gate.length_control == "off" or (gate.length_control == "judged" and not judged):
            return Check(name, "not asked", "a rule scores the answers" if gate.length_control == "judged" else "length_control is off")
        try:
            own, other, better = self._pair(gate.primary)
            own_tokens, other_tokens, _ = self._pair("completion_tokens")
        except Unmeasured as error:
            return Check(name, "missing", str(error))
        tokens = [a - b for a, b in zip(own_tokens, other_tokens, strict=True)]
        if _mean(tokens) <= 0:
            return Check(name, "passed", f"the answers are {-_mean(tokens):.1f} tokens shorter", _mean(own_tokens), _mean(other_tokens))
        sign = -1.0 if better == "lower" else 1.0
        gains = [sign * (a - b) for a, b in zip(own, other, strict=True)]
        gain = length_controlled_gain(gains, tokens, seed=derive_seed("promotion", name), n=gate.resamples)
        words = f"{_mean(tokens):.1f} tokens longer; gain at equal length {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
        return Check(name, "passed" if gain.low > 0 else "failed", words, _mean(own_tokens), _mean(other_tokens), gain)

    # Guards

    def _kl(self) -> Check:
        try:
            own = self._measured(self.candidate, "kl_nats")
            kl = self._interval("kl_nats", list(own.values.values()))
        except Unmeasured as error:
            return Check("KL ceiling", "missing", str(error))
        ceiling = self.gate.kl_ceiling_nats
        words = f"{kl.mean:.2f} [{kl.low:.2f}, {kl.high:.2f}] nats a completion, ceiling {ceiling:g}"
        return Check("KL ceiling", "passed" if kl.high <= ceiling else "failed", words, kl.mean)

    def _not_worse(self, name: str, guard: GuardConfig) -> Check:
        try:
            own, other, better = self._pair(name, guard.better)
            if better == "neither":
                raise Unmeasured(f"{name} has no better direction: set better to higher or lower")
            gain = self._gain(name, own, other, better)
        except Unmeasured as error:
            return Check(f"{name} not worse", "missing", str(error))
        words = f"change for the better {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}], margin {guard.margin:g}"
        passed = gain.low > -guard.margin or (gain.low == 0.0 == guard.margin)
        return Check(f"{name} not worse", "passed" if passed else "failed", words, _mean(own), _mean(other), gain)

    def _held_out_reward(self) -> Check:
        name = "held_out_reward"
        values = self.champion.quantities.get(name) and list(self.champion.quantities[name].values.values())
        margin = self.gate.held_out_reward_margin * float(np.std(values)) if values else 0.0
        return self._where(self.gate.held_out_reward, name, name, lambda: self._not_worse(name, GuardConfig(measure=name, margin=margin)))

    def _where(self, wanted: Requirement, name: str, quantity: str, check: Callable[[], Check]) -> Check:
        """The check where it is wanted, else a line that says why it was not made."""
        if wanted == "off" or (wanted == "if_measured" and quantity not in self.candidate.quantities):
            return _not_made(wanted, f"{name} not worse", "was not measured, and the gate asks for it only where it was")
        return check()

    def _safety(self) -> Iterator[Check]:
        """Every whole-suite measure with a better direction; parts of a suite are for people to read."""
        suites = {name: one for name, one in self.candidate.quantities.items() if one.kind in SAFETY_KINDS}
        named = [name for name, one in suites.items() if one.better != "neither" and name.count("/") == 1]
        if self.gate.safety == "off" or not named:
            yield _not_made(self.gate.safety, "safety", "no suite of safety or toxicity was run")
        else:
            yield from (self._not_worse(name, GuardConfig(measure=name, margin=self.gate.safety_margin)) for name in named)

    def _behaviour(self) -> Check:
        name, findings = "no reward hack", self.candidate.findings
        if self.gate.behaviour == "off" or findings is None:
            return _not_made(self.gate.behaviour, name, "nobody looked at what training did to its behaviour")
        hacks = [f"{finding.check}: {finding.message}" for finding in findings if finding.severity == "hack"]
        warnings = len(findings) - len(hacks)
        return Check(name, "failed" if hacks else "passed", "; ".join(hacks) or f"no hack was found; {warnings} warnings")

    def _over_optimisation(self) -> Check:
        name, found = "not over-optimised", self.candidate.overoptimised
        if self.gate.over_optimisation == "off" or found is None:
            return _not_made(self.gate.over_optimisation, name, "its way through training was not measured")
        words = "reward still rises where the gold score falls" if found else "the gold score did not fall while reward rose"
        return Check(name, "failed" if found else "passed", words)

    # Pairing

    def _own(self, name: str) -> Quantity:
        return self.candidate.quantities.get(name, Quantity({}, "neither"))

    def _measured(self, evidence: Evidence, name: str) -> Quantity:
        found = evidence.quantities.get(name)
        if found is None:
            known = ", ".join(sorted(evidence.quantities)) or "nothing"
            raise Unmeasured(f"{name} was not measured of {evidence.name} (there is {known})")
        if not found.values:
            raise Unmeasured(f"{name} of {evidence.name} has no values by prompt, so it cannot be paired")
        return found

    def _pair(self, name: str, better: str = "measured") -> tuple[list[float], list[float], Better]:
        """Values of both in the candidate's order of prompts."""
        if name == "win_rate":
            return self._wins()
        own, other = self._measured(self.candidate, name), self._measured(self.champion, name)
        if own.values.keys() != other.values.keys():
            raise Unmeasured(f"{name}: the two answered different prompts ({len(own.values)} and {len(other.values)})")
        direction: Better = own.better if better == "measured" else better  # type: ignore[assignment]
        return list(own.values.values()), [other.values[prompt] for prompt in own.values], direction

    def _wins(self) -> tuple[list[float], list[float], Better]:
        """Share of pairs of answers to a prompt that the candidate wins, ties half, against one half."""
        own, other = self.candidate.scores, self.champion.scores
        if not own or own.keys() != other.keys():
            raise Unmeasured("win_rate needs a judge's score of every answer of both to the same prompts")
        wins = [_mean([(a > b) + 0.5 * (a == b) for a in scores for b in other[prompt]]) for prompt, scores in own.items()]
        return wins, [0.5] * len(wins), "higher"

    def _gain(self, name: str, own: list[float], other: list[float], better: Better) -> Interval:
        """Own minus other, or the reverse where lower is better."""
        first, second = (other, own) if better == "lower" else (own, other)
        return self._interval(name, first, second)

    def _interval(self, name: str, a: list[float], b: list[float] | None = None) -> Interval:
        try:
            return paired_bootstrap(a, b, seed=derive_seed("promotion", name), n=self.gate.resamples)
        except ValueError as error:  # a value that is not finite
            raise Unmeasured(f"{name}: {error}") from error


def _not_made(wanted: Requirement, name: str, why: str) -> Check:
    """The line of a check that was not made: missing where it is required, else not asked for."""
    if wanted == "off":
        return Check(name, "not asked", "off in the gate")
    return Check(name, "missing" if wanted == "required" else "not asked", why)


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))
