"""How every flow starts and ends: one model and one set of data, and at the end each policy judged on the same held-out prompts.

evaluate[...] -> suites -> behaviour, overoptimisation[...], evaluate_reward -> comparison -> the page of the run
"""

from collections.abc import Mapping

from pydantic import Field, model_validator

from data.configs import CurateConfig
from flows.forms import FormConfig
from flows.held_out import held_out_reward
from flows.suites import SuitesConfig, measured
from models.configs.base import StageConfig
from models.configs.base_model import BaseModelConfig
from models.configs.behaviour import BehaviourConfig
from models.configs.evaluate_reward import EvaluateRewardConfig
from models.configs.evaluation import ComparisonConfig, EvaluateConfig
from models.configs.held_out_reward import HeldOutRewardConfig
from models.configs.overoptimisation import OveroptimisationConfig
from models.configs.reward_model import RewardModelConfig
from tasks.behaviour import behaviour
from tasks.behaviour import publish as publish_behaviour
from tasks.comparison import comparison, publish
from tasks.curate import publish as publish_card
from tasks.evaluate import evaluate
from tasks.evaluate_reward import evaluate_reward
from tasks.overoptimisation import overoptimisation
from tasks.store import Artifact


class JudgedConfig(FormConfig):
    """How policies are judged."""

    seed: int = Field(default=0, ge=0, description="Seed of every stage: data split, sampling, order of examples.")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="Evaluation on held-out prompts.")
    suites: SuitesConfig = Field(default_factory=SuitesConfig, description="Further suites of evaluation; none by default.")
    behaviour: BehaviourConfig = Field(default_factory=BehaviourConfig, description="What training did to each policy, hacks by name.")
    overoptimisation: OveroptimisationConfig = Field(
        default_factory=OveroptimisationConfig, description="The curve of every policy whose training kept snapshots."
    )
    comparison: ComparisonConfig = Field(default_factory=ComparisonConfig, description="The table at the end.")

    @model_validator(mode="after")
    def _one_baseline(self) -> "JudgedConfig":
        own, common = self.behaviour.baseline, self.comparison.baseline
        if own not in ("", common):
            raise ValueError(f"behaviour.baseline is {own!r} and comparison.baseline {common!r}: leave the first empty")
        return self


class FlowConfig(JudgedConfig):
    """Settings that every flow has; a flow adds those of its own stages."""

    base_model: BaseModelConfig = Field(default_factory=BaseModelConfig, description="Which model everything starts from.")
    curate: CurateConfig = Field(default_factory=CurateConfig, description="Data: sources, splits, filters.")


class RewardFlowConfig(FlowConfig):
    """Settings of a flow with a reward model."""

    reward_model: RewardModelConfig = Field(default_factory=RewardModelConfig, description="Reward modelling.")
    held_out_reward: HeldOutRewardConfig = Field(
        default_factory=HeldOutRewardConfig, description="A second reward model, which no policy is trained on."
    )
    evaluate_reward: EvaluateRewardConfig = Field(
        default_factory=EvaluateRewardConfig, description="How far the reward models can be trusted."
    )
    reward_curve: bool = Field(
        default=False, description="Also draw the reward model's best-of-n curve (evaluate_reward.best_of_n): samples the reference."
    )


def judge(
    config: JudgedConfig,
    policies: Mapping[str, Artifact],
    reference: Artifact,
    data: Artifact,
    reward: Artifact | None = None,
    preferences: Artifact | None = None,
) -> Artifact:
    """Evaluate every policy, compare them, publish the table, the page of the run and the card of the data.

    Args:
        config: settings of the flow.
        policies: every policy on the way, by the name it has in the table.
        reference: policy that the KL is measured to.
        data: artifact of curate, which holds the held-out prompts.
        reward: reward model whose view is shown beside the verifier's, where there is one.
        preferences: pairs that it was trained on, with those held out.

    Returns:
        The artifact of the comparison.
    """
    seed = config.seed
    publish_card(data)
    second, trust = _about(config, reward, preferences, reference, data)
    evaluations = {
        name: evaluate.named(name)(config.evaluate, candidate, reference, data, reward, second, seed=seed)
        for name, candidate in policies.items()
    }
    suites = measured(config.suites, policies, reference, data, reward, seed=seed)
    changed = behaviour(config.behaviour.model_copy(update={"baseline": config.comparison.baseline}), evaluations, seed=seed)
    curves = {
        name: overoptimisation.named(name)(
            config.overoptimisation.trained_on(training), policies[name], reference, data, reward, second, seed=seed
        )
        for name, training in _kept_snapshots(config, policies).items()
    }
    found = suites if any(suites.values()) else None
    report = comparison(config.comparison, evaluations, found, changed, curves or None, trust, seed=seed)
    publish_behaviour(changed)
    publish(report)
    return report


def _about(
    config: JudgedConfig, reward: Artifact | None, preferences: Artifact | None, reference: Artifact, data: Artifact
) -> tuple[Artifact | None, Artifact | None]:
    """The second reward model, where one is asked for, and what was measured of the first."""
    if reward is None or preferences is None or not isinstance(config, RewardFlowConfig):
        return None, None
    second = held_out_reward(config.held_out_reward, config.reward_model, reference, preferences, seed=config.seed)
    if second is not None:
        evaluate_reward.named("held out")(config.evaluate_reward, second, preferences, seed=config.seed)
    sampled = (reference, data) if config.reward_curve else (None, None)
    return second, evaluate_reward(config.evaluate_reward, reward, preferences, None, *sampled, seed=config.seed)


def _kept_snapshots(config: JudgedConfig, policies: Mapping[str, Artifact]) -> dict[str, StageConfig]:
    """The settings that a policy was trained with, of those that kept snapshots; a policy is named after its stage, or its variant."""
    families = [dict(config), *(value for value in dict(config).values() if isinstance(value, Mapping))]
    trained = {name: family[name] for family in families for name in policies if isinstance(family.get(name), StageConfig)}
    return {name: settings for name, settings in trained.items() if getattr(getattr(settings, "checkpoint", None), "snapshots", 0)}
