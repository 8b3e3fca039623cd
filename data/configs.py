"""What a user may set about data. Pydantic only: importing this loads neither torch nor a dataset library."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data.blocks.configs import BlockConfig
from data.files import files_near, sha256_of

Form = Literal["auto", "messages", "prompt_completion", "preference", "label", "alpaca", "hh", "ranked", "text"]
VerifierName = Literal["none", "reasoning_gym", "math", "number", "exact"]


class SourceConfig(BaseModel):
    """One source of rows: a procedural task, a hub dataset or local files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["reasoning_gym", "hub", "file"] = Field(
        default="reasoning_gym",
        description="Where rows come from: a procedural reasoning-gym task, a Hugging Face hub dataset, or local files.",
    )
    name: str = Field(
        default="chain_sum",
        min_length=1,
        description="Task name, hub dataset id, or path of a json, jsonl, csv or parquet file (also .gz, * matches).",
    )
    role: Literal["both", "train", "test"] = Field(
        default="both", description="Which tables it feeds: training, held-out test, or both (then split by prompt, never sharing one)."
    )
    form: Form = Field(default="auto", description="Shape of a row; auto tells it from the column names.")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Column mapping, our name -> the file's (dots reach into nested values), such as prompt: question, completion: answer.",
    )
    subset: str = Field(default="", description="Hub dataset configuration; empty: its default.")
    split: str = Field(default="train", description="Hub dataset split.")
    revision: str = Field(default="", description="Hub dataset commit or tag; empty: its newest. Pin one to make the cache key exact.")
    rows: int = Field(default=0, ge=0, description="Read at most this many rows; 0: all.")
    weight: float = Field(default=1.0, gt=0, description="Share of each table this source supplies, relative to the other sources.")
    task: dict[str, Any] = Field(default_factory=dict, description="Parameters of the reasoning-gym task, such as max_terms: 3.")
    verifier: Literal["auto", "none", "reasoning_gym", "math", "number", "exact"] = Field(
        default="auto", description="How completions to its prompts are judged; auto: reasoning_gym for its tasks, none otherwise."
    )
    extraction: Literal["answer", "last_number"] = Field(
        default="answer",
        description="What of a completion the reasoning_gym and exact verifiers judge: the stated answer (an <answer> tag, what follows "
        "'Answer:', else the whole text), or the last number in it.",
    )
    instruction: str = Field(default="", description="Text added on a line of its own after each prompt's last user turn.")
    prompt: str = Field(
        default="{question}",
        description="Prompt of a reasoning-gym task: {question}, or fields of the task's metadata, such as {expression} =.",
    )
    demonstration: str = Field(
        default="{answer}", description="What a demonstration of a reasoning-gym task says; {answer} is the task's answer."
    )
    remove_calculator_marks: bool = Field(default=False, description="Remove gsm8k's <<...>> calculator annotations from completions.")
    license: str = Field(default="", description="Licence of the rows, for the data card, such as MIT; empty: the card says not stated.")

    @model_validator(mode="after")
    def _consistent(self) -> "SourceConfig":
        if "{answer}" not in self.demonstration:
            raise ValueError(f"demonstration={self.demonstration!r} must contain {{answer}}")
        if self.prompt != "{question}" and self.kind != "reasoning_gym":
            raise ValueError(f"prompt={self.prompt!r} is for kind='reasoning_gym'; {self.kind!r} sources take columns and instruction")
        if self.verifier == "reasoning_gym" and self.kind != "reasoning_gym":
            raise ValueError(f"verifier='reasoning_gym' needs kind='reasoning_gym', not {self.kind!r}: use math, number or exact")
        if self.task and self.kind != "reasoning_gym":
            raise ValueError(f"task={self.task} is for kind='reasoning_gym'; {self.kind!r} sources take columns, subset, split and rows")
        if self.columns and self.kind == "reasoning_gym":
            raise ValueError(f"columns={self.columns} is for hub and file sources; a reasoning_gym task has no columns")
        return self

    @property
    def place(self) -> str:
        """What its rows are said to come from."""
        return self.name if self.kind == "file" else f"{self.kind}:{self.name}"

    @property
    def verifier_name(self) -> VerifierName:
        """The verifier in force: ``auto`` resolved."""
        if self.verifier != "auto":
            return self.verifier
        return "reasoning_gym" if self.kind == "reasoning_gym" else "none"

    def paths(self) -> list[Path]:
        """Local files of a file source, in name order. Raises FileNotFoundError naming the files that are near."""
        if self.kind != "file":
            return []
        path = Path(self.name).expanduser()
        found = sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
        files = [p for p in found if p.is_file()]
        if not files:
            raise FileNotFoundError(f"no data file {self.name!r}{files_near(path)}")
        return files


_EASY_SUMS = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2}


class CurateConfig(BaseModel):
    """What curation reads, how it splits it, and what it refuses. Table sizes: 0 leaves the table out, -1 takes every usable row."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: list[SourceConfig] = Field(
        default_factory=lambda: [SourceConfig(task=_EASY_SUMS)],
        min_length=1,
        description="Where rows come from. With a source of role test, held-out rows come from such sources only.",
    )
    demonstrations: int = Field(default=1280, ge=-1, description="Conversations to imitate (SFT), in rows. 0: none, -1: all.")
    prompts: int = Field(
        default=1024, ge=-1, description="Prompts for sampling (preferences, rejection sampling, RL), in rows. 0: none, -1: all."
    )
    preferences: int = Field(default=0, ge=-1, description="Chosen/rejected pairs, in rows. 0: none, -1: all.")
    labels: int = Field(default=0, ge=-1, description="Unpaired desirable/undesirable completions, in rows. 0: none, -1: all.")
    rankings: int = Field(default=0, ge=-1, description="K-way ranked completions, in rows. 0: none, -1: all.")
    documents: int = Field(default=0, ge=-1, description="Plain texts for a pretraining mix, in rows. 0: none, -1: all.")
    test_prompts: int = Field(default=400, ge=-1, description="Held-out prompts, in rows. 0: none, -1: all of the sources with role test.")
    test_preferences: int = Field(
        default=0, ge=-1, description="Held-out pairs, one a prompt, in rows. 0: none, -1: all of the sources with role test."
    )
    share_rows: bool = Field(
        default=False,
        description="Let one row feed several training tables. Off: training tables share no prompt. Test rows are apart in any case.",
    )
    system_prompt: str = Field(
        default="", description="System message put before conversations that have none; empty: leave them as they are."
    )
    max_prompt_tokens: int = Field(default=512, ge=0, description="Longest prompt kept, in tokens with the chat template. 0: no limit.")
    max_completion_tokens: int = Field(
        default=512, ge=0, description="Longest completion or document kept, in tokens with its end-of-turn token. 0: no limit."
    )
    min_completion_tokens: int = Field(
        default=0, ge=0, description="Shortest completion or document kept, in tokens with its end-of-turn token."
    )
    max_bad_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Largest share of a source's rows that may be unusable before curation stops (duplicates do not count; what "
        "blocks reject is not unusable).",
    )
    blocks: list[BlockConfig] = Field(
        default_factory=list,
        description="What rows of files and hub datasets pass through, in order, before they are split. Rows of sources with role test do "
        "not. A decontaminate block and all after it come when the held-out rows are chosen, and see the others only.",
    )
    workers: int = Field(
        default=0,
        ge=0,
        description="Processes that run blocks; 0: one for each core that the stage may use. Does not change the result.",
        json_schema_extra={"cache": False},
    )

    lint: Literal["warn", "stop", "off"] = Field(
        default="warn", description="Look for faults in the pairs (see posttrain lint): say so, stop the run, or do not look."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "CurateConfig":
        training = [self.demonstrations, self.prompts, self.preferences, self.labels, self.rankings, self.documents]
        if not any([*training, self.test_prompts, self.test_preferences]):
            raise ValueError("every table size is 0: set at least one of demonstrations, prompts, preferences, labels, rankings, documents")
        has_test = any(source.role == "test" for source in self.sources)
        for name in ("test_prompts", "test_preferences"):
            if getattr(self, name) == -1 and not has_test:
                raise ValueError(f"{name}=-1 takes all rows of the sources with role='test', and there is none: add one or give a number")
        return self

    def cache_extra(self) -> dict[str, str]:
        """SHA-256 of every local file named, by sources or by blocks: a byte of one changes the stage's key."""
        named = {f"{source.name}/{path.name}": path for source in self.sources for path in source.paths()}
        for number, block in enumerate(self.blocks):
            named |= {f"blocks.{number}.{block.kind}/{path}": path for path in block.paths()}
        return {name: sha256_of(path) for name, path in named.items()}
