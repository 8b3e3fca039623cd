"""Settings of preference collection: who writes completions, who judges them, and what becomes of their judgements."""

from typing import Literal

from pydantic import Field, model_validator

from models.callables import callable_digest
from models.configs.ai_judge import AIJudgeConfig
from models.configs.base import StageConfig
from models.configs.sampling import SamplingConfig


class WriterConfig(StageConfig):
    """One policy that writes completions."""

    policy: str = Field(default="", description="Name of one of the flow's policies, such as sft or base; empty = its current one.")
    temperatures: list[float] = Field(
        default_factory=list, description="It writes samples_per_prompt completions at each of these; empty = sampling.temperature alone."
    )


class WritingConfig(StageConfig):
    """Who writes how many completions of which prompts."""

    prompts: int = Field(default=0, ge=0, description="Prompts to use; 0 = all.")
    samples_per_prompt: int = Field(default=4, ge=1, description="Completions of each prompt by each writer at each of its temperatures.")
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="How completions are sampled.")
    writers: list[WriterConfig] = Field(
        default_factory=lambda: [WriterConfig()],
        description="The policies that write; empty = none, the completions of a labelled set alone are judged.",
    )
    chunk_prompts: int = Field(default=64, ge=1, description="Prompts sampled, or judged, between two saves.")

    @property
    def temperatures(self) -> list[tuple[str, float]]:
        """Every (policy, temperature) that writes, in order."""
        return [(writer.policy, t) for writer in self.writers for t in writer.temperatures or [self.sampling.temperature]]

    @model_validator(mode="after")
    def _comparable(self) -> "WritingConfig":
        if self.writers and len(self.temperatures) * self.samples_per_prompt < 2:
            raise ValueError("samples_per_prompt 1 by one writer at one temperature leaves nothing to compare: ask for more, or for others")
        for _, temperature in self.temperatures:
            SamplingConfig.model_validate({"temperature": temperature})
        return self


class CandidatesConfig(WritingConfig):
    """Completions that wait for people."""

    asked_share: float = Field(default=1.0, gt=0, le=1, description="Share of the prompts that people are asked about, drawn by seed.")
    labelled_sets: bool = Field(default=False, description="Ask about the data's own pairs and rankings too.")


class JudgeConfig(StageConfig):
    """One judge of completions."""

    kind: Literal["verifier", "callable", "reward_model", "language_model", "people", "dataset"] = Field(
        default="verifier",
        description="verifier: the prompt's own. callable: a Python function. reward_model: a trained one. language_model: one that "
        "compares answers, behind an endpoint or run here (ai). people: who label candidates (labelling of the flow). "
        "dataset: the labels that pairs and rankings of the data already have, which are then judged beside what is sampled.",
    )
    name: str = Field(default="", description="What it is called in judgements and in the log; empty = its kind.")
    weight: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="Its part of a vote, or of the prompts that are shared out; a dataset takes its own in any case.",
    )
    callable: str = Field(
        default="",
        description="module:function taking (data.records.Prompt, completion text) and returning a number; for kind = callable.",
    )
    ai: AIJudgeConfig = Field(default_factory=AIJudgeConfig, description="The judge of kind language_model.")
    micro_batch_tokens: int = Field(default=8192, ge=16, description="Tokens of a forward pass of a reward model.")

    @property
    def called(self) -> str:
        """Its name, or else its kind."""
        return self.name or self.kind

    @model_validator(mode="after")
    def _callable(self) -> "JudgeConfig":
        if (self.kind == "callable") != bool(self.callable):
            raise ValueError(f"callable {self.callable!r} with kind {self.kind}: kind = callable, and no other, names a module:function")
        return self


class PreferencesConfig(WritingConfig):
    """Sample several completions a prompt, let judges rank them, pair better with worse."""

    judges: list[JudgeConfig] = Field(default_factory=lambda: [JudgeConfig()], min_length=1, description="Who judges completions.")
    combine: Literal["vote", "share"] = Field(
        default="vote",
        description="Of several judges: vote asks all, and ranks by share of comparisons won, by weight; share gives each prompt to one of "
        "them, drawn by weight.",
    )
    ties: Literal["drop", "keep"] = Field(
        default="drop", description="keep writes tied completions to ties.parquet, for losses with a tie_threshold."
    )
    margin_better: float = Field(
        default=2 / 3, ge=0, description="Margin of a pair graded better, in reward units (2/3 and 1/3 are Llama 2's small margins)."
    )
    margin_slightly_better: float = Field(default=1 / 3, ge=0, description="Margin of a pair graded slightly better, in reward units.")
    pairs_per_prompt: int = Field(default=1, ge=1, description="Pairs made from a prompt's completions, the widest gaps first; and ties.")
    min_gap: float = Field(default=0.0, ge=0, description="Completions whose scores differ by this or less are tied.")
    label_threshold: float = Field(
        default=0.5,
        description="Completions scored at least this are labelled desirable (for KTO), the others undesirable; a score, or where judges "
        "give ranks only the share of comparisons won.",
    )
    test_share: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the prompts whose pairs are held out, to measure the reward model."
    )
    lint: Literal["warn", "stop", "off"] = Field(
        default="warn", description="Look for faults in the pairs (see posttrain lint): say so, stop the run, or do not look."
    )

    @model_validator(mode="after")
    def _one_panel(self) -> "PreferencesConfig":
        names = [judge.called for judge in self.judges]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two judges are called {twice[0]!r}: give them names of their own (name)")
        for kind in ("people", "dataset"):
            if sum(judge.kind == kind for judge in self.judges) > 1:
                raise ValueError(f"two judges of kind {kind}: there is one such input of the stage; leave one out")
        if not self.writers and not self.has("dataset"):
            raise ValueError("writers is empty and no judge is a dataset: there is nothing to judge; add a writer")
        if self.writers and all(judge.kind == "dataset" for judge in self.judges):
            raise ValueError("a dataset knows its own completions only, and writers write others: add a judge, or set writers to []")
        return self

    def has(self, kind: str) -> bool:
        """Whether a judge of this kind takes part."""
        return any(judge.kind == kind for judge in self.judges)

    @property
    def candidates(self) -> CandidatesConfig:
        """What people are to be asked about, under these settings."""
        shared = {name: getattr(self, name) for name in WritingConfig.model_fields}
        drawn = self.combine == "share"
        weights = {judge.kind: judge.weight for judge in self.judges if judge.kind == "people"}
        total = sum(judge.weight for judge in self.judges if judge.kind != "dataset")
        share = weights.get("people", total) / total if drawn and total else 1.0
        return CandidatesConfig(**shared, asked_share=share, labelled_sets=self.has("dataset") and not drawn)

    def cache_extra(self) -> dict[str, str]:
        """Digests of the judging functions' files."""
        return {f"judges.{judge.called}": callable_digest(judge.callable) for judge in self.judges if judge.kind == "callable"}
