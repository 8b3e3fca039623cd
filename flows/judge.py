"""How every flow starts and ends: one model and one set of data, and at the end each policy judged on the same held-out prompts."""

from collections.abc import Mapping

from pydantic import Field

from data.configs import CurateConfig
from models.configs.base import StageConfig
from models.configs.base_model import BaseModelConfig
from models.configs.evaluation import ComparisonConfig, EvaluateConfig
from tasks.comparison import comparison, publish
from tasks.curate import publish as publish_card
from tasks.evaluate import evaluate
from tasks.store import Artifact


class FlowConfig(StageConfig):
    """Settings that every flow has; a flow adds those of its own stages."""

    seed: int = Field(default=0, ge=0, description="Seed of every stage: data split, sampling, order of examples.")
    base_model: BaseModelConfig = Field(default_factory=BaseModelConfig, description="Which model everything starts from.")
    curate: CurateConfig = Field(default_factory=CurateConfig, description="Data: sources, splits, filters.")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="Evaluation on held-out prompts.")
    comparison: ComparisonConfig = Field(default_factory=ComparisonConfig, description="The table at the end.")


def judge(
    config: FlowConfig,
    policies: Mapping[str, Artifact],
    reference: Artifact,
    data: Artifact,
    reward: Artifact | None = None,
    *,
    held_out_reward: Artifact | None = None,
    suites: Mapping[str, Mapping[str, Artifact]] | None = None,
    behaviour: Artifact | None = None,
    overoptimisation: Mapping[str, Artifact] | None = None,
    reward_evaluation: Artifact | None = None,
) -> Artifact:
    """Evaluate every policy, compare them, publish the table, the page of the run and the card of the data.

    Args:
        config: settings of the flow.
        policies: every policy on the way, by the name it has in the table.
        reference: policy that the KL is measured to.
        data: artifact of curate, which holds the held-out prompts.
        reward: reward model whose view is shown beside the verifier's, where there is one.
        held_out_reward: reward model that no policy was trained on.
        suites: what further suites of evaluation found, by policy and by the suite's name.
        behaviour: what training did to the policies.
        overoptimisation: by policy, how its rewards went while it was trained.
        reward_evaluation: how good the reward model is.

    Returns:
        The artifact of the comparison.
    """
    seed = config.seed
    publish_card(data)
    evaluations = {
        name: evaluate.named(name)(config.evaluate, candidate, reference, data, reward, held_out_reward, seed=seed)
        for name, candidate in policies.items()
    }
    found = {name: dict(own) for name, own in suites.items()} if suites else None
    curves = dict(overoptimisation) if overoptimisation else None
    report = comparison(config.comparison, evaluations, found, behaviour, curves, reward_evaluation, seed=seed)
    publish(report)
    return report
