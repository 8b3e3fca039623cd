"""Settings of the report on what training did to a policy, and from where on it is called by its name."""

from pydantic import Field

from models.configs.base import StageConfig


class FindingsConfig(StageConfig):
    """From where on a change is named. Every threshold joins a test: the change must be larger than it, and beyond chance.

    Standard deviations are those of the baseline's answers, so that a reward model's scale does not matter.
    """

    level: float = Field(
        default=0.99,
        gt=0.5,
        lt=1,
        description="Level of the intervals behind findings, two-sided; above the 0.95 of the tables, since every policy is tested for "
        "about ten things.",
    )
    min_prompts: int = Field(
        default=30, ge=2, description="Prompts below which nothing is named: a bootstrap over fewer is too narrow for its level."
    )
    reward_gain_deviations: float = Field(
        default=0.3, gt=0, description="Smallest rise of the trained-on reward that counts, standard deviations; 0.2 is called small."
    )
    real_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="The truth (verifier, else held-out reward) did not follow where it surely rose by less than this share of the "
        "reward's rise, both in standard deviations.",
    )
    gold_drop_deviations: float = Field(
        default=0.1, ge=0, description="Smallest sure fall of the truth under a rising reward that is over-optimisation, deviations."
    )
    explained_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of the reward's rise that length, a phrase or repetition must explain to be named its cause: the larger part.",
    )
    length_gain: float = Field(default=0.15, gt=0, description="Smallest growth of answers that counts, share of the baseline's length.")
    phrase_gain: float = Field(
        default=0.2, gt=0, lt=1, description="Smallest rise of the share of answers that hold a phrase. Topics move phrases by less."
    )
    phrase_level: float = Field(
        default=0.001, gt=0, lt=1, description="Largest probability of such a rise by chance, times the phrases tested."
    )
    phrase_tokens: int = Field(default=8, ge=1, le=32, description="Longest phrase that is looked for, words and signs.")
    repetition_gain: float = Field(
        default=0.1, gt=0, description="Smallest rise of the share of repeated characters, or of the share of degenerate answers."
    )
    diversity_drop: float = Field(
        default=0.3, gt=0, le=1, description="Smallest fall of distinct-2 or of the semantic spread that is mode collapse, as a share."
    )
    format_drop: float = Field(
        default=0.2, gt=0, le=1, description="Smallest change of a share of answers (finished, form, language, lists) that is format drift."
    )
    confidence_gain: float = Field(
        default=0.2, gt=0, le=1, description="Smallest rise of confidence less accuracy that is false certainty."
    )
    partial_credit_gain: float = Field(
        default=0.1, gt=0, le=1, description="Smallest rise of the share of wrong answers that the verifier pays for in part."
    )


class BehaviourConfig(StageConfig):
    """What training did to each policy beside its score: length, diversity, repetition, confidence, format."""

    baseline: str = Field(
        default="", description="Policy that the others are compared with, by its name among the evaluations; empty: a flow's own baseline."
    )
    resamples: int = Field(default=2_000, ge=100, description="Bootstrap resamples over prompts.")
    group_prompts: int = Field(
        default=8,
        ge=2,
        description="Where a prompt has one sample: prompts of a block, drawn by the seed, whose answers are compared for diversity.",
    )
    diversity_tokens: int = Field(
        default=64, ge=4, description="Words and signs of an answer that count for diversity: longer texts repeat more words anyway."
    )
    opening_tokens: int = Field(default=3, ge=1, description="Words and signs of an opening, for the share of the most common one.")
    findings: FindingsConfig = Field(default_factory=FindingsConfig, description="From where on a change is named.")
