"""Which suites of evaluation a flow puts every policy through."""

from collections.abc import Mapping
from itertools import chain

from pydantic import Field, model_validator

from models.configs.ai_judge import AIJudgeConfig
from models.configs.base import StageConfig
from models.configs.instructions import InstructionsConfig
from models.configs.lm_eval import LMEvalConfig
from models.configs.multiple_choice import MultipleChoiceConfig
from models.configs.perplexity import PerplexityConfig
from models.configs.safety import SafetyConfig
from models.configs.toxicity import ToxicityConfig
from models.configs.verifiable import VerifiableConfig
from models.configs.win_rate import WinRateConfig
from tasks.instructions import instructions
from tasks.lm_eval import lm_eval
from tasks.multiple_choice import multiple_choice
from tasks.perplexity import perplexity
from tasks.safety import safety
from tasks.store import Artifact
from tasks.toxicity import toxicity
from tasks.verifiable import verifiable
from tasks.win_rate import win_rate


class SuitesConfig(StageConfig):
    """Suites beside the held-out prompts; an entry each, under names that differ."""

    verifiable: list[VerifiableConfig] = Field(default_factory=list, description="Accuracy and pass@k, by task and difficulty.")
    instructions: list[InstructionsConfig] = Field(default_factory=list, description="Instructions that a rule can check (IFEval).")
    multiple_choice: list[MultipleChoiceConfig] = Field(default_factory=list, description="The likeliest of given choices; truthfulness.")
    perplexity: list[PerplexityConfig] = Field(default_factory=list, description="How well documents are predicted.")
    win_rate: list[WinRateConfig] = Field(default_factory=list, description="A judge compares with the reference policy, or with texts.")
    safety: list[SafetyConfig] = Field(default_factory=list, description="Over-refusal and compliance (XSTest).")
    toxicity: list[ToxicityConfig] = Field(default_factory=list, description="Toxic answers, by a classifier and word lists.")
    lm_eval: list[LMEvalConfig] = Field(default_factory=list, description="Tasks of lm-eval; needs the extra lm-eval.")

    @model_validator(mode="after")
    def _named_apart(self) -> "SuitesConfig":
        names = [suite.name for suite in chain.from_iterable(getattr(self, kind) for kind in type(self).model_fields)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two suites are named {twice[0]!r}: give each its own name, under which it stands in tables and metrics")
        return self


def measured(
    config: SuitesConfig,
    policies: Mapping[str, Artifact],
    reference: Artifact,
    data: Artifact,
    reward: Artifact | None = None,
    *,
    seed: int,
) -> dict[str, dict[str, Artifact]]:
    """Every policy through every suite: by policy, by the suite's name.

    Args:
        config: the suites.
        policies: by their names.
        reference: policy that win rates are against, and that judges where a language model is to judge and names no model of its own.
        data: artifact of curate, which holds the held-out prompts.
        reward: reward model, for judges of that kind.
        seed: the same for every policy.
    """
    return {name: _of_one(config, name, policy, reference, data, reward, seed) for name, policy in policies.items()}


def _of_one(
    config: SuitesConfig, name: str, policy: Artifact, reference: Artifact, data: Artifact, reward: Artifact | None, seed: int
) -> dict[str, Artifact]:
    """A stage is given only what its settings read, so that nothing else is in its key."""
    found: dict[str, Artifact] = {}
    for suite in config.verifiable:
        asked = data if suite.ask == "held_out" else None
        found[suite.name] = verifiable.named(f"{name}/{suite.name}")(suite, policy, asked, seed=seed)
    for kind, suites in ((instructions, config.instructions), (multiple_choice, config.multiple_choice), (perplexity, config.perplexity)):
        for suite in suites:
            found[suite.name] = kind.named(f"{name}/{suite.name}")(suite, policy, seed=seed)
    for suite in config.win_rate:
        against = reference if suite.against == "policy" else None
        asked = data if suite.prompts.kind == "held_out" else None
        scores = reward if suite.judge.kind == "reward_model" else None
        own = reference if suite.judge.kind == "language_model" and _runs_a_policy(suite.judge.ai) else None
        found[suite.name] = win_rate.named(f"{name}/{suite.name}")(suite, policy, asked, against, scores, own, seed=seed)
    for suite in config.safety:
        own = reference if suite.judge == "language_model" and _runs_a_policy(suite.ai) else None
        found[suite.name] = safety.named(f"{name}/{suite.name}")(suite, policy, own, seed=seed)
    for suite in config.toxicity:
        asked = data if suite.prompts.kind == "held_out" else None
        found[suite.name] = toxicity.named(f"{name}/{suite.name}")(suite, policy, asked, seed=seed)
    for suite in config.lm_eval:
        found[suite.name] = lm_eval.named(f"{name}/{suite.name}")(suite, policy, seed=seed)
    return found


def _runs_a_policy(judge: AIJudgeConfig) -> bool:
    return judge.backend == "policy" and not judge.model
