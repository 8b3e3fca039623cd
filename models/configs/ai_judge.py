"""Settings of a judge that is a language model: behind an OpenAI-compatible endpoint, or a local policy."""

from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from models.configs.base import StageConfig, operational
from models.configs.base_model import folder_digest
from models.configs.constitution import Principle, default_principles

RUBRIC = (
    "Prefer the answer that you would rather receive from an assistant you rely on.\n"
    "Helpful: it does what the person meant, in the form asked for, clearly, and without padding. Asking back is right where the request "
    "is unclear.\n"
    "Truthful: nothing in it is made up or misleading, it is as certain as the facts allow, and it does not pretend to be what it is not.\n"
    "Harmless: following it hurts nobody, it demeans nobody, and it gives no help with crimes or with harming others.\n"
    "Truthful and harmless usually outrank helpful. Helpful outranks them only where one answer is much more helpful, is only slightly "
    "less truthful or harmless, and the subject is not one of high stakes (such as health, law or money).\n"
    "Of two answers that are similarly helpful and harmful in different ways, the one that does more harm to the person asking is the "
    "worse. Length, an air of authority and the order of the answers are no merits. If all this does not separate them, it is a tie."
)


class AIJudgeConfig(StageConfig):
    """Compares answers two at a time, both ways round, by a rubric and by the principles of a constitution."""

    backend: Literal["endpoint", "policy"] = Field(
        default="policy", description="Who answers: an OpenAI-compatible endpoint, or a model folder run here."
    )
    model: str = Field(
        default="",
        description="Endpoint: the model's name there. Policy: folder in transformers' format; empty = the policy that the stage is given.",
    )
    url: str = Field(
        default="http://127.0.0.1:8000/v1",
        description="Endpoint: its base address, to which /chat/completions is appended; without user name, query or key.",
    )
    api_key_variable: str = Field(
        default="",
        pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$",
        description="Endpoint: name of the environment variable that holds the API key, such as OPENAI_API_KEY; empty = no key is sent.",
    )
    rubric: str = Field(default=RUBRIC, description="What the judge goes by; empty = the principles alone.")
    constitution: Literal["own", "packaged"] = Field(
        default="own", description="own = the principles given here; packaged = those that come with the package, where none are given."
    )
    principles: list[Principle] = Field(default_factory=list, description="Constitution; empty = the rubric alone.")
    principle_choice: Literal["draw", "all"] = Field(
        default="draw", description="One principle drawn for each pair of answers, as in Bai et al. 2022, or all in every question."
    )
    grades: bool = Field(default=False, description="Also distinguish slightly better from better.")
    reasoning: bool = Field(
        default=False,
        description="The judge gives reasons before its verdict; a policy then writes its answer instead of being read at one token.",
    )
    both_orders: Literal["agree", "mean"] = Field(
        default="agree",
        description="agree = verdicts that differ between the two orders are a tie; mean = the mean probability over both orders decides "
        "(policy without reasoning).",
    )
    tie_margin: float = Field(
        default=0.0, ge=0, lt=0.5, description="Policy, mean: probabilities of winning within this of one half are a tie."
    )
    clear_share: float = Field(
        default=0.75,
        gt=0.5,
        le=1,
        description="Policy read at one token, grades: probability from which an answer is better, not slightly better.",
    )
    temperature: float = Field(default=0.0, ge=0, le=2, description="Of the judge's answers, where they are written; 0 = the most likely.")
    max_tokens: int = Field(default=512, ge=1, le=32768, description="Longest answer of the judge, in tokens, where it is written.")
    answer_format: Literal["plain", "json_object", "json_schema"] = Field(
        default="plain", description="Endpoint: response_format to ask for, where the server knows it; answers are checked in any case."
    )
    concurrency: int = operational(8, "Endpoint: requests under way at once.", ge=1, le=256)
    requests_per_minute: float = operational(0.0, "Endpoint: most requests a minute, spread evenly; 0 = no limit.", ge=0)
    timeout_s: float = operational(60.0, "Endpoint: seconds to wait for an answer.", gt=0)
    retries: int = operational(6, "Endpoint: further attempts after too many requests (429), a server error or a timeout.", ge=0, le=50)
    price_in: float = operational(0.0, "Endpoint: price of a million prompt tokens, in any currency.", ge=0)
    price_out: float = operational(0.0, "Endpoint: price of a million answer tokens, in the same currency.", ge=0)
    max_cost: float = operational(0.0, "Endpoint: the most that a stage may spend on it, all its attempts together; 0 = no limit.", ge=0)
    micro_batch_tokens: int = operational(4096, "Policy: tokens of a forward pass.", ge=16)

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, values: Any) -> Any:
        """The packaged principles become part of the settings: their words are what the judge goes by, and belong to the cache key."""
        if isinstance(values, dict) and values.get("constitution") == "packaged" and not values.get("principles"):
            return {**values, "principles": default_principles()}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> "AIJudgeConfig":
        if not self.rubric.strip() and not self.principles:
            raise ValueError("the judge has neither a rubric nor principles: give it one of them")
        if self.both_orders == "mean" and (self.backend == "endpoint" or self.reasoning):
            raise ValueError("both_orders = mean needs probabilities: use backend = policy with reasoning = false, or both_orders = agree")
        if self.max_cost and not (self.price_in or self.price_out):
            raise ValueError(f"max_cost {self.max_cost} needs prices: give price_in and price_out, per million tokens")
        if self.api_key_variable.startswith("POSTTRAIN_"):
            raise ValueError(
                f"api_key_variable {self.api_key_variable!r}: variables that begin with POSTTRAIN_ are written into job files; name another"
            )
        if self.backend == "endpoint":
            self._check_endpoint()
        return self

    def _check_endpoint(self) -> None:
        if not self.model:
            raise ValueError("an endpoint needs the name of a model in model")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "url must be http(s)://host[:port]/path without user name, query or fragment; a key belongs into api_key_variable"
            )

    def cache_extra(self) -> dict[str, str]:
        """Digest of the judging model's folder, where one is named."""
        return {"judge_model": folder_digest(Path(self.model))} if self.backend == "policy" and self.model else {}
