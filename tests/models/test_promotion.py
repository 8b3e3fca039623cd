"""The gate, by hand: what it asks for, what it refuses, and that nothing missing ever counts as passed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from models.configs.promotion import GateConfig, GuardConfig
from models.length_control import length_controlled_gain
from models.promotion import Check, Evidence, Finding, Quantity, decide

PROMPTS = [f"p{i}" for i in range(200)]
GATE = GateConfig(resamples=500)
CONDITIONS = {"evaluation": {"seed": 0, "config.greedy": False}}


def spread(share: float, start: int = 0) -> dict[str, float]:
    """1 for this share of the prompts, 0 for the others."""
    return {prompt: float((i + start) % 200 < round(200 * share)) for i, prompt in enumerate(PROMPTS)}


def constant(value: float) -> dict[str, float]:
    return dict.fromkeys(PROMPTS, value)


def policy(name: str, accuracy: float, **more: Quantity) -> Evidence:
    quantities = {
        "accuracy": Quantity(spread(accuracy), "higher"),
        "finished": Quantity(constant(1.0), "higher"),
        "kl_nats": Quantity(constant(3.0), "lower"),
        "completion_tokens": Quantity(constant(8.0), "neither"),
    }
    return Evidence(name, name * 8, quantities | more, conditions=CONDITIONS, held_out=PROMPTS, data="d0", findings=[])


CANDIDATE, CHAMPION = policy("new", 0.7), policy("old", 0.5)


def found(checks: Sequence[Check], name: str) -> Check:
    (check,) = [check for check in checks if check.check == name]
    return check


def refused_by(candidate: Evidence, champion: Evidence = CHAMPION, gate: GateConfig = GATE) -> list[str]:
    decision = decide(candidate, champion, gate)
    assert decision.accepted == (not decision.reasons)
    return [check.check for check in decision.checks if check.stands_in_the_way]


def changed(evidence: Evidence, **quantities: Quantity) -> Evidence:
    return replace(evidence, quantities={**evidence.quantities, **quantities})


def test_a_better_policy_is_accepted_with_its_numbers():
    decision = decide(CANDIDATE, CHAMPION, GATE)
    assert decision.accepted and decision.reasons == []
    gain = found(decision.checks, "beats on accuracy")
    assert (gain.candidate, gain.champion) == (0.7, 0.5) and gain.gain is not None
    assert gain.gain.mean == pytest.approx(0.2) and 0 < gain.gain.low < 0.2 < gain.gain.high
    written = decision.to_json()
    assert written["accepted"] and {check["check"] for check in written["checks"]} >= {"conditions", "KL ceiling", "no reward hack"}


@pytest.mark.parametrize("accuracy", [0.5, 0.505, 0.3])
def test_an_interval_that_holds_zero_is_no_gain(accuracy):
    assert "beats on accuracy" in refused_by(policy("new", accuracy))


def test_a_gain_must_exceed_what_the_gate_asks_for():
    assert refused_by(CANDIDATE, gate=GateConfig(minimum_gain=0.19, resamples=500)) == ["beats on accuracy"]


def test_lower_is_better_where_the_measure_says_so():
    own, other = Quantity(constant(2.0), "lower", suite="s", kind="perplexity"), Quantity(constant(3.0), "lower", suite="s")
    gate = GateConfig(primary="s/perplexity", resamples=500)
    conditions = {**CONDITIONS, "s": {"seed": 0}}
    better, worse = (replace(changed(CANDIDATE, **{"s/perplexity": q}), conditions=conditions) for q in (own, other))
    old = replace(changed(CHAMPION, **{"s/perplexity": other}), conditions=conditions)
    assert refused_by(better, old, gate) == []
    assert refused_by(replace(worse, name="x"), replace(better, digest="other"), gate) == ["beats on s/perplexity"]


def test_win_rate_by_hand():
    """One pair of answers a prompt: wins on 3 of 4 prompts, a tie on the last: (3 + 0.5) / 4 - 0.5 = 0.375."""
    own = {prompt: [1.0] for prompt in PROMPTS[:4]}
    other = {"p0": [0.0], "p1": [0.5], "p2": [-1.0], "p3": [1.0]}
    decision = decide(replace(CANDIDATE, scores=own), replace(CHAMPION, scores=other), GateConfig(primary="win_rate", resamples=500))
    check = found(decision.checks, "beats on win_rate")
    assert check.gain is not None and check.gain.mean == pytest.approx(0.375)
    assert "beats on win_rate" in refused_by(CANDIDATE, gate=GateConfig(primary="win_rate", resamples=500)), "nobody scored"


# Evidence


@pytest.mark.parametrize(
    ("difference", "check"),
    [
        ({"problems": ["model.safetensors has other bytes"]}, "evidence"),
        ({"digest": CHAMPION.digest}, "evidence"),
        ({"conditions": {"evaluation": {"seed": 1, "config.greedy": False}}}, "conditions"),
        ({"conditions": {"evaluation": {"seed": 0}}}, "conditions"),
        ({"conditions": {}}, "conditions"),
        ({"held_out": PROMPTS[1:]}, "prompts"),
        ({"held_out": [*PROMPTS, "one more"]}, "prompts"),
        ({"trained_prompts": 1}, "unseen"),
        ({"findings": None}, "no reward hack"),
        ({"findings": [Finding("length_bias", "hack", "reward pays for length")]}, "no reward hack"),
        ({"overoptimised": True}, "not over-optimised"),
    ],
)
def test_one_flaw_alone_refuses(difference: Mapping[str, Any], check: str):
    assert refused_by(replace(CANDIDATE, **difference)) == [check]


@pytest.mark.parametrize(
    "difference",
    [{"findings": [Finding("format", "warning", "fewer lists")]}, {"overoptimised": False}, {"overoptimised": None}],
)
def test_what_is_no_flaw_does_not_refuse(difference: Mapping[str, Any]):
    assert refused_by(replace(CANDIDATE, **difference)) == []


def test_the_champions_own_evidence_must_be_whole_too():
    assert refused_by(CANDIDATE, replace(CHAMPION, problems=["it cannot be judged"])) == ["evidence"]


@pytest.mark.parametrize("gate", [GateConfig(min_prompts=201, resamples=500), GateConfig(held_out="abc", resamples=500)])
def test_too_few_prompts_or_other_data(gate):
    assert refused_by(CANDIDATE, gate=gate) == ["prompts"]


def test_other_prompts_cannot_be_paired():
    few = PROMPTS[:100]
    cut = {name: Quantity({p: one.values[p] for p in few}, one.better) for name, one in CANDIDATE.quantities.items()}
    assert refused_by(replace(CANDIDATE, quantities=cut)) == ["prompts", "beats on accuracy", "finished not worse"]
    part = GateConfig(all_prompts=False, resamples=500)
    assert "prompts" not in refused_by(replace(CANDIDATE, quantities=cut), gate=part)


# Guards


@pytest.mark.parametrize(("ceiling", "refused"), [(3.0, []), (2.9, ["KL ceiling"])])
def test_the_ceiling_of_the_kl(ceiling, refused):
    assert refused_by(CANDIDATE, gate=GateConfig(kl_ceiling_nats=ceiling, resamples=500)) == refused


@pytest.mark.parametrize(("share", "refused"), [(1.0, []), (0.99, []), (0.8, ["finished not worse"])])
def test_a_guard_allows_its_margin_and_no_more(share, refused):
    assert refused_by(changed(CANDIDATE, finished=Quantity(spread(share), "higher"))) == refused


def test_a_guard_without_margin_takes_equal_for_not_worse():
    gate = GateConfig(guards=[GuardConfig(measure="finished")], resamples=500)
    assert refused_by(CANDIDATE, gate=gate) == []
    assert refused_by(changed(CANDIDATE, finished=Quantity(spread(0.99), "higher")), gate=gate) == ["finished not worse"]


@pytest.mark.parametrize("measure", ["reward", "safety/refused", "completion_tokens"])
def test_a_guard_that_was_not_measured_or_has_no_direction_refuses(measure):
    gate = GateConfig(guards=[GuardConfig(measure=measure)], resamples=500)
    assert f"{measure} not worse" in refused_by(CANDIDATE, gate=gate)


def test_a_guard_can_say_which_direction_is_better():
    shorter = changed(CANDIDATE, completion_tokens=Quantity(constant(9.0), "neither"))
    gate = GateConfig(guards=[GuardConfig(measure="completion_tokens", better="lower")], resamples=500)
    assert refused_by(shorter, gate=gate) == ["completion_tokens not worse"]


def test_a_value_that_is_not_finite_is_no_measurement():
    broken = changed(CANDIDATE, kl_nats=Quantity({**constant(1.0), "p7": math.nan}, "lower"))
    assert refused_by(broken) == ["KL ceiling"]


def test_a_measure_without_values_by_item_cannot_be_paired():
    assert refused_by(changed(CANDIDATE, accuracy=Quantity({}, "higher"))) == ["beats on accuracy"]


@pytest.mark.parametrize(("drop", "refused"), [(0.0, []), (0.1, []), (0.4, ["held_out_reward not worse"])])
def test_the_held_out_reward_may_fall_by_a_fifth_of_its_deviation(drop, refused):
    """Rewards of the champion are 1 and -1 in turn: a standard deviation of 1, a margin of 0.2."""
    rewards = {prompt: 1.0 - 2 * (i % 2) for i, prompt in enumerate(PROMPTS)}
    own = Quantity({prompt: value - drop for prompt, value in rewards.items()}, "higher", judged=True)
    candidate = changed(CANDIDATE, held_out_reward=own)
    assert refused_by(candidate, changed(CHAMPION, held_out_reward=Quantity(rewards, "higher", judged=True))) == refused


@pytest.mark.parametrize(
    ("field", "check"),
    [
        ("held_out_reward", "held_out_reward not worse"),
        ("over_optimisation", "not over-optimised"),
        ("safety", "safety"),
    ],
)
def test_what_is_required_and_missing_refuses(field, check):
    assert refused_by(CANDIDATE, gate=GateConfig.model_validate({field: "required", "resamples": 500})) == [check]
    silent = decide(CANDIDATE, CHAMPION, GATE).checks
    assert found(silent, check).status == "not asked"


def test_what_is_off_is_not_asked():
    gate = GateConfig(behaviour="off", over_optimisation="off", held_out_reward="off", safety="off", length_control="off", resamples=500)
    hacked = replace(CANDIDATE, findings=[Finding("x", "hack", "y")], overoptimised=True)
    assert refused_by(hacked, gate=gate) == []


def test_every_whole_measure_of_a_safety_suite_is_guarded():
    def with_suite(evidence: Evidence, refused: float) -> Evidence:
        whole = Quantity(spread(refused), "lower", suite="xstest", kind="safety")
        part = Quantity(spread(refused), "lower", suite="xstest", kind="safety")
        conditions = {**CONDITIONS, "xstest": {"seed": 0}}
        return replace(changed(evidence, **{"xstest/over_refusal": whole, "xstest/over_refusal/type=a": part}), conditions=conditions)

    old = with_suite(CHAMPION, 0.1)
    assert refused_by(with_suite(CANDIDATE, 0.1), old) == []
    assert refused_by(with_suite(CANDIDATE, 0.3), old) == ["xstest/over_refusal not worse"]
    assert refused_by(with_suite(CANDIDATE, 0.3), CHAMPION) == ["conditions", "xstest/over_refusal not worse"], "the champion has none"


# Length


def test_the_gain_at_equal_length_by_hand():
    """Gains (2, 4) at 1 and 2 more tokens are length alone; (3, 5) are 1 more."""
    assert length_controlled_gain([2.0, 4.0], [1.0, 2.0], seed=0, n=100).mean == pytest.approx(0.0)
    assert length_controlled_gain([3.0, 5.0], [1.0, 2.0], seed=0, n=100).mean == pytest.approx(1.0)
    assert length_controlled_gain([1.0, 3.0], [5.0, 5.0], seed=0, n=100).mean == pytest.approx(2.0), "no variance, no slope"


def judged_policy(name: str, reward: Mapping[str, float], tokens: Mapping[str, float]) -> Evidence:
    lengths = Quantity(tokens, "neither")
    return policy(name, 0.5, reward=Quantity(reward, "higher", judged=True), completion_tokens=lengths)


def test_a_reward_that_was_bought_with_length_is_refused():
    gate = GateConfig(primary="reward", guards=[], resamples=500)
    old = judged_policy("old", constant(0.0), constant(8.0))
    tokens = {prompt: 8.0 + i % 40 for i, prompt in enumerate(PROMPTS)}
    bought = {prompt: 0.1 * (n - 8) for prompt, n in tokens.items()}
    assert refused_by(judged_policy("new", bought, tokens), old, gate) == ["gain at equal length"]
    earned = {prompt: reward + 1.0 for prompt, reward in bought.items()}
    assert refused_by(judged_policy("new", earned, tokens), old, gate) == []
    assert refused_by(judged_policy("new", constant(1.0), constant(7.0)), old, gate) == [], "shorter answers bought nothing"


def test_a_rule_is_not_bought_with_length_unless_the_gate_says_always():
    longer = changed(CANDIDATE, completion_tokens=Quantity({p: 9.0 + i % 3 for i, p in enumerate(PROMPTS)}, "neither"))
    assert found(decide(longer, CHAMPION, GATE).checks, "gain at equal length").status == "not asked"
    always = GateConfig(length_control="always", resamples=500)
    assert found(decide(longer, CHAMPION, always).checks, "gain at equal length").status in ("passed", "failed")
