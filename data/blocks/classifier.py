"""A linear classifier over hashed word and character n-grams (as fastText, Joulin et al. 2016), trained here on good against bad texts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from data.blocks.base import Rejected, Row
from data.blocks.features import character_ngram_buckets, word_ngram_buckets
from data.blocks.references import reference_texts
from data.blocks.scopes import texts_in
from data.blocks.settings import SCOPE, BlockSettings, Scope, existing_file

_HELD_OUT = 0.1
_LEAST_TEXTS = 10
_READ_CHARACTERS = 20_000


class ClassifierSettings(BlockSettings):
    """What is good, what is bad, and how sure the classifier must be to keep a text."""

    scope: Scope = Field(default="imitated", description=SCOPE)
    good: str = Field(min_length=1, description="Path of good texts: .txt with a text a line, or rows (json, jsonl, csv, parquet, .gz).")
    bad: str = Field(min_length=1, description="Path of bad texts, in the same formats.")
    max_texts: int = Field(default=100_000, ge=1, description="Read at most this many texts of each file.")
    word_ngrams: int = Field(default=2, ge=1, le=5, description="Longest n-gram of words that is a feature, in words.")
    min_characters: int = Field(default=3, ge=1, le=8, description="Shortest n-gram of characters of the text, in characters.")
    max_characters: int = Field(default=0, ge=0, le=8, description="Longest n-gram of characters of the text, in characters. 0: none.")
    buckets_log2: int = Field(
        default=18, ge=8, le=24, description="Features are hashed into 2 to this many buckets, words and characters apart."
    )
    regularisation: float = Field(default=0.1, gt=0, description="Weight of the L2 penalty, relative to the summed log loss (1 / C).")
    min_probability: float = Field(default=0.5, ge=0, le=1, description="Reject texts that are good with a smaller probability than this.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_characters and self.max_characters < self.min_characters:
            raise ValueError(f"max_characters={self.max_characters} must be 0 or at least min_characters={self.min_characters}")
        return self

    def paths(self) -> list[Path]:
        return [existing_file(self.good, "good"), existing_file(self.bad, "bad")]


class Classifier:
    """Rejects texts that look more like the bad than like the good ones. ``prepare`` trains it, ``load`` reads it."""

    name = "classifier"

    def __init__(self, settings: ClassifierSettings) -> None:
        self.settings = settings
        self._weights: np.ndarray | None = None
        self._intercept = 0.0

    def prepare(self, seed: int, scratch: Path) -> None:
        """Train on nine tenths of the texts, with both classes of equal weight; writes classifier.npz, and classifier.json with the
        accuracy and the area under the ROC curve on the tenth that is held out."""
        from sklearn.linear_model import LogisticRegression

        texts, good = self._texts()
        used, features = _matrix([self._buckets(text) for text in texts])
        held_out = np.random.default_rng(seed).random(len(texts)) < _HELD_OUT
        model = LogisticRegression(C=1 / self.settings.regularisation, class_weight="balanced", max_iter=2000, tol=1e-4)
        model.fit(features[~held_out], good[~held_out])
        weights = np.zeros(2 ** (self.settings.buckets_log2 + (1 if self.settings.max_characters else 0)), np.float32)
        weights[used] = model.coef_[0]
        np.savez(scratch / "classifier.npz", weights=weights, intercept=model.intercept_)
        report = {"good": int(good.sum()), "bad": int((~good).sum()), **_quality(model, features[held_out], good[held_out])}
        (scratch / "classifier.json").write_text(json.dumps(report, indent=1))
        self.load(scratch)

    def load(self, scratch: Path) -> None:
        """Read what ``prepare`` wrote."""
        with np.load(scratch / "classifier.npz", allow_pickle=False) as stored:
            self._weights, self._intercept = stored["weights"], float(stored["intercept"][0])

    def __call__(self, row: Row) -> Row | Rejected:
        for text in texts_in(row, self.settings.scope):
            probability = self.probability(text)
            if probability < self.settings.min_probability:
                return Rejected(row, "classified_bad", f"good with probability {probability:.3f}")
        return row

    def probability(self, text: str) -> float:
        """The probability that a text is good: 1 / (1 + exp(-(weights . counts / |counts| + intercept))), counts those of its n-grams."""
        if self._weights is None:
            raise ValueError("the classifier block is not trained yet: call prepare or load first")
        buckets, counts = np.unique(self._buckets(text), return_counts=True)
        length = float(np.sqrt((counts.astype(float) ** 2).sum())) or 1.0
        score = float(self._weights[buckets] @ counts) / length + self._intercept
        return float(1 / (1 + np.exp(-np.clip(score, -500, 500))))

    def _texts(self) -> tuple[list[str], np.ndarray]:
        classes = []
        for name, path in (("good", self.settings.good), ("bad", self.settings.bad)):
            texts = reference_texts(existing_file(path, name), self.settings.scope)
            classes.append([text for text, _ in zip(texts, range(self.settings.max_texts), strict=False)])
            if len(classes[-1]) < _LEAST_TEXTS:
                raise ValueError(f"{name}={path!r} holds {len(classes[-1])} texts; a classifier needs {_LEAST_TEXTS} at the least")
        good, bad = classes
        return good + bad, np.array([True] * len(good) + [False] * len(bad))

    def _buckets(self, text: str) -> np.ndarray:
        """The buckets of a text's features: words in the first half of the weights, characters in the second."""
        settings = self.settings
        half = 2**settings.buckets_log2
        read = text[:_READ_CHARACTERS]
        words = word_ngram_buckets(read, settings.word_ngrams, half)
        if not settings.max_characters:
            return words
        return np.concatenate([words, half + character_ngram_buckets(read, settings.min_characters, settings.max_characters, half)])


def _matrix(texts: Sequence[np.ndarray]) -> tuple[np.ndarray, Any]:
    """The buckets in use, and the counts of each text in them, each row of length 1: a sparse matrix [texts, used]."""
    from scipy.sparse import csr_array

    used, columns = np.unique(np.concatenate(texts), return_inverse=True)
    starts = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    counts = csr_array((np.ones(len(columns)), columns, starts), shape=(len(texts), len(used)))
    counts.sum_duplicates()
    lengths = np.sqrt(counts.multiply(counts).sum(axis=1))
    return used, counts.multiply(1 / np.maximum(lengths, 1e-12)[:, None]).tocsr()


def _quality(model: Any, features: Any, good: np.ndarray) -> dict[str, float | None]:
    from sklearn.metrics import roc_auc_score

    if len(set(good.tolist())) < 2:
        return {"held_out": len(good), "accuracy": None, "auc": None}
    scores = model.decision_function(features)
    return {"held_out": len(good), "accuracy": float(((scores > 0) == good).mean()), "auc": float(roc_auc_score(good, scores))}
