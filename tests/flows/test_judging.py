"""How a flow judges its policies: what a user can get wrong, and which settings lead to which curve."""

import pytest
from pydantic import ValidationError

from flows.compare import CompareConfig
from flows.evaluation import EvaluationConfig
from flows.judge import JudgedConfig, _kept_snapshots
from flows.rlhf import RLHFConfig
from flows.suites import SuitesConfig
from tasks.store import Artifact

POLICY = Artifact(kind="policy", digest="0" * 64, size_bytes=1, n_files=1)


def test_two_suites_of_one_name_are_refused():
    with pytest.raises(ValidationError, match="two suites are named 'x'"):
        SuitesConfig.model_validate({"verifiable": [{"name": "x"}], "safety": [{"name": "x"}]})


def test_there_is_one_baseline():
    with pytest.raises(ValidationError, match=r"behaviour.baseline is 'base' and comparison.baseline 'sft'"):
        JudgedConfig.model_validate({"behaviour": {"baseline": "base"}})
    whole = JudgedConfig.model_validate({"comparison": {"baseline": "base"}})
    assert JudgedConfig.model_validate(whole.model_dump()) == whole, "settings come back as they were sent"


def test_a_curve_for_every_policy_that_kept_snapshots():
    kept = {"checkpoint": {"snapshots": 2}}
    config = RLHFConfig.model_validate({"grpo": kept})
    assert list(_kept_snapshots(config, {"sft": POLICY, "grpo": POLICY, "dpo": POLICY})) == ["grpo"]
    families = CompareConfig.model_validate({"dpo": {"ipo": kept | {"loss": "ipo"}, "dpo": {}}})
    assert list(_kept_snapshots(families, {"sft": POLICY, "ipo": POLICY, "dpo": POLICY})) == ["ipo"]


def test_what_is_judged_must_be_named():
    with pytest.raises(ValidationError, match=r"comparison.baseline is 'sft', which is not among the policies a, b"):
        EvaluationConfig.model_validate({"policies": {"a": "run/a", "b": "run/b"}})
