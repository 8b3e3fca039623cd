"""Keeps texts that an n-gram model, trained here on a given text, finds probable enough (and, if wanted, not too probable).

The model is estimated by data.blocks.ngram_model and scored by KenLM (Heafield 2011), as in CCNet (Wenzek et al. 2020).
"""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from data.blocks import ngram_model
from data.blocks.base import Rejected, Row
from data.blocks.clean import without_surrogates
from data.blocks.references import reference_texts
from data.blocks.repetition import tokens_of
from data.blocks.scopes import texts_in
from data.blocks.settings import SCOPE, BlockSettings, Scope, existing_file

_DIGITS = str.maketrans("123456789", "000000000")
_HELD_OUT = 0.1
_LEAST_REFERENCE = 20
_MAX_WORD_CHARACTERS = 100  # a longer one is no word; the scorer need not read it


class PerplexitySettings(BlockSettings):
    """What the model learns from, and which perplexities stay."""

    scope: Scope = Field(default="imitated", description=SCOPE)
    text: str = Field(
        min_length=1, description="Path of the text to learn from: .txt with a text a line, or rows (json, jsonl, csv, parquet; also .gz)."
    )
    order: int = Field(default=5, ge=2, le=6, description="Length of the longest n-gram, in words.")
    max_words: int = Field(default=1_000_000, ge=1, description="Read at most about this many words of the text: it bounds the memory.")
    limit: Literal["quantile", "perplexity"] = Field(
        default="quantile", description="What bounds are given in: quantiles of a reference text's perplexities, or perplexities."
    )
    min_quantile: float = Field(default=0.0, ge=0, le=1, description="With limit=quantile: reject texts below this quantile. 0: off.")
    max_quantile: float = Field(default=0.95, ge=0, le=1, description="With limit=quantile: reject texts above this quantile. 1: off.")
    min_perplexity: float = Field(default=0.0, ge=0, description="With limit=perplexity: reject texts below. 0: off.")
    max_perplexity: float = Field(default=1000.0, gt=0, description="With limit=perplexity: reject texts above.")
    reference: str = Field(
        default="", description="Path of the reference text for quantiles; empty: a tenth of the texts to learn from, which is held out."
    )
    min_words: int = Field(default=10, ge=1, description="Texts with fewer words are kept unjudged, in words.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.limit == "quantile" and self.min_quantile >= self.max_quantile:
            raise ValueError(f"min_quantile={self.min_quantile} must be below max_quantile={self.max_quantile}")
        if self.limit == "perplexity" and self.min_perplexity >= self.max_perplexity:
            raise ValueError(f"min_perplexity={self.min_perplexity} must be below max_perplexity={self.max_perplexity}")
        if self.reference and self.limit != "quantile":
            raise ValueError(f"reference={self.reference!r} is for limit='quantile': leave it empty")
        return self

    def paths(self) -> list[Path]:
        named = [existing_file(self.text, "text")]
        return [*named, existing_file(self.reference, "reference")] if self.reference else named


class Perplexity:
    """Rejects texts outside the bounds. ``prepare`` trains the model, ``load`` reads it."""

    name = "perplexity"

    def __init__(self, settings: PerplexitySettings) -> None:
        self.settings = settings
        self._model: Any = None
        self._bounds = (0.0, math.inf)

    def prepare(self, seed: int, scratch: Path) -> None:
        """Train the model and measure the bounds; writes model.arpa and perplexity.json to ``scratch``."""
        settings = self.settings
        texts, held_out = self._split(seed)
        model = ngram_model.train((line for text in texts for line in lines_of(text)), settings.order)
        ngram_model.write_arpa(model, scratch / "model.arpa")
        self._model = _read(scratch / "model.arpa")
        measured = sorted(self.perplexity(text) for text in self._reference(held_out) if _words_in(text) >= settings.min_words)
        bounds = self._bounds_among(measured)
        report = {
            "bounds": bounds,
            "discounts": model.discounts,
            "ngrams": [len(p_G) for p_G in model.probability_G],
            "reference_perplexities": _quantiles(measured),
        }
        (scratch / "perplexity.json").write_text(json.dumps(report, indent=1))
        self._set_bounds(*bounds)

    def load(self, scratch: Path) -> None:
        """Read what ``prepare`` wrote."""
        self._set_bounds(*json.loads((scratch / "perplexity.json").read_text())["bounds"])
        self._model = _read(scratch / "model.arpa")

    def _set_bounds(self, low: float, high: float | None) -> None:
        self._bounds = low, math.inf if high is None else high

    def __call__(self, row: Row) -> Row | Rejected:
        low, high = self._bounds
        for text in texts_in(row, self.settings.scope):
            if _words_in(text) < self.settings.min_words:
                continue
            perplexity = self.perplexity(text)
            if perplexity > high:
                return Rejected(row, "perplexity_high", f"{perplexity:.0f}, the most is {high:.0f}")
            if perplexity < low:
                return Rejected(row, "perplexity_low", f"{perplexity:.0f}, the least is {low:.0f}")
        return row

    def perplexity(self, text: str) -> float:
        """10^(-sum of log10 p / (words and line ends)), each line a sentence; 1 for a text without words."""
        if self._model is None:
            raise ValueError("the perplexity block has no model yet: call prepare or load first")
        lines = list(lines_of(text))
        logp = sum(self._model.score(" ".join(line)) for line in lines)
        return 10 ** min(-logp / max(sum(len(line) + 1 for line in lines), 1), 300.0)

    def _split(self, seed: int) -> tuple[list[str], list[str]]:
        """The texts to learn from, and those that are held out of it for the quantiles."""
        settings = self.settings
        holds_out = settings.limit == "quantile" and not settings.reference
        generator = np.random.default_rng(seed)
        texts: list[str] = []
        held_out: list[str] = []
        words = 0
        for text in reference_texts(existing_file(settings.text, "text"), settings.scope):
            (held_out if holds_out and generator.random() < _HELD_OUT else texts).append(text)
            words += _words_in(text)
            if words >= settings.max_words:
                break
        if not texts:
            raise ValueError(f"text={settings.text!r} holds {len(held_out)} texts only: give more, or a reference file")
        return texts, held_out

    def _reference(self, held_out: list[str]) -> Iterable[str]:
        if self.settings.limit == "quantile" and self.settings.reference:
            return reference_texts(existing_file(self.settings.reference, "reference"), self.settings.scope)
        return held_out

    def _bounds_among(self, measured: list[float]) -> tuple[float, float | None]:
        settings = self.settings
        if settings.limit == "perplexity":
            return settings.min_perplexity, settings.max_perplexity
        if len(measured) < _LEAST_REFERENCE:
            raise ValueError(
                f"quantiles need {_LEAST_REFERENCE} reference texts of {settings.min_words} words or more, there are {len(measured)} "
                f"(a tenth of text={settings.text!r}): give more text, a reference file, or limit='perplexity'"
            )
        low = float(np.quantile(measured, settings.min_quantile)) if settings.min_quantile else 0.0
        return low, float(np.quantile(measured, settings.max_quantile)) if settings.max_quantile < 1 else None


def lines_of(text: str) -> Iterator[list[str]]:
    """The lines of a text that hold words, as the model knows them: in lower case, every digit a 0.

    By hand: "Is 3 < 12?" is is, 0, <, 00, ?.
    """
    for line in without_surrogates(text).lower().translate(_DIGITS).replace("\0", " ").splitlines():
        if words := [word[:_MAX_WORD_CHARACTERS] for word in tokens_of(line)]:
            yield words


def _words_in(text: str) -> int:
    return len(tokens_of(text))


def _quantiles(measured: list[float]) -> dict[str, float]:
    if not measured:
        return {}
    return {str(q): float(np.quantile(measured, q)) for q in (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)}


def _read(path: Path) -> Any:
    import kenlm

    config = kenlm.Config()
    config.show_progress = False
    config.arpa_complain = kenlm.ARPALoadComplain.NONE
    return kenlm.Model(str(path), config)
