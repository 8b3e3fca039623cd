"""Classifiers of toxic texts: the packaged linear one, and any sequence classifier in safetensors.

Axes: ``C`` classes, ``W`` words of the vocabulary, ``B`` texts.
"""

import importlib.util
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

NEITHER = "neither"
_WORD = re.compile(r"[a-zA-Z0-9_]+")  # as the packaged model was trained


@dataclass(frozen=True, slots=True)
class Toxicity:
    """Of one text the probability that it is toxic, and those of the classifier's labels."""

    toxic: float
    labels: dict[str, float]


class Classifier(Protocol):
    """Anything that reads texts."""

    @property
    def note(self) -> str:
        """What to know of its numbers."""
        ...

    def __call__(self, texts: Sequence[str]) -> list[Toxicity]:
        """One result a text."""
        ...


@dataclass(frozen=True)
class WordsClassifier:
    """softmax(W x + b) over hate speech, offensive language and neither, x the tf-idf of a text's words; toxic = 1 - P(neither).

    Source: the weights of hatesonar 0.1 (Nakayama, MIT), trained on the tweets of Davidson et al. 2017.
    """

    index: dict[str, int]
    idf_W: np.ndarray
    weight_CW: np.ndarray
    bias_C: np.ndarray
    labels: tuple[str, ...] = ("hate_speech", "offensive_language", NEITHER)

    @property
    def note(self) -> str:
        """What to know of its numbers."""
        return (
            "toxicity by a linear classifier of English words (hatesonar, tweets of Davidson et al. 2017): a text of which it knows no "
            f"word has {self(['']).pop().toxic:.2f}; slurs and some names of groups weigh, what a sentence means does not"
        )

    def __call__(self, texts: Sequence[str]) -> list[Toxicity]:
        return [self._read(text) for text in texts]

    def _read(self, text: str) -> Toxicity:
        counts = Counter(self.index[word] for word in _WORD.findall(text.lower()) if word in self.index)
        places = np.fromiter(counts, dtype=np.int64, count=len(counts))
        value_W = np.fromiter(counts.values(), dtype=np.float64, count=len(counts)) * self.idf_W[places]
        value_W /= max(float(np.linalg.norm(value_W)), 1e-12)
        logit_C = self.weight_CW[:, places] @ value_W + self.bias_C
        p_C = np.exp(logit_C - logit_C.max())
        p_C /= p_C.sum()
        return Toxicity(float(1 - p_C[self.labels.index(NEITHER)]), dict(zip(self.labels, p_C.tolist(), strict=True)))


@cache
def load_packaged() -> WordsClassifier:
    """The classifier in the wheel hatesonar: its weights are read from the ONNX file, none of its code is run.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: the file holds another model than the one known.
    """
    found = importlib.util.find_spec("hatesonar")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the packaged toxicity classifier is in hatesonar: pip install 'hatesonar>=0.1,<0.2' onnx")
    import onnx
    from onnx import helper, numpy_helper

    path = Path(found.origin).parent / "model" / "model.onnx"
    graph = onnx.load(path, load_external_data=False).graph
    attributes: dict[tuple[str, str], Any] = {
        (node.op_type, own.name): helper.get_attribute_value(own) for node in graph.node for own in node.attribute
    }
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    try:
        words = [word.decode() for word in attributes["TfIdfVectorizer", "pool_strings"]]
        places = attributes["TfIdfVectorizer", "ngram_indexes"]
        coefficients = np.asarray(attributes["LinearClassifier", "coefficients"], dtype=np.float64).reshape(3, len(words))
        bias_C = np.asarray(attributes["LinearClassifier", "intercepts"], dtype=np.float64)
        idf_W = np.asarray(tensors["idfcst"], dtype=np.float64).reshape(len(words))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} holds another model than hatesonar 0.1: {error!r}; install 'hatesonar>=0.1,<0.2'") from error
    return WordsClassifier(dict(zip(words, places, strict=True)), idf_W, coefficients, bias_C)


class SequenceClassifier:
    """A transformers sequence classifier: sigmoids where it has several labels at once or one, else a softmax.

    toxic = the largest of its toxic labels' probabilities under sigmoids, their sum under a softmax.

    Raises:
        ValueError: no label means toxic, one that was named does not exist, or its weights are not safetensors.
    """

    def __init__(self, folder: Path, toxic_labels: Sequence[str], max_tokens: int, batch_texts: int, device: torch.device | str) -> None:
        if not list(folder.glob("*.safetensors")):
            raise ValueError(f"{folder} holds no weights in safetensors: convert the classifier, other formats can run code when loaded")
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model: Any = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype="auto")
        self.model: Any = torch.nn.Module.to(model.eval().requires_grad_(False), device)
        self.labels = [str(model.config.id2label[number]) for number in range(model.config.num_labels)]
        self.toxic = list(toxic_labels) or [label for label in self.labels if label.lower().startswith("toxic")]
        if not self.toxic or not set(self.toxic) <= set(self.labels):
            raise ValueError(f"the classifier in {folder} has the labels {self.labels}: say in toxic_labels which of them mean toxic")
        self.independent = model.config.problem_type == "multi_label_classification" or len(self.labels) == 1
        model.config.pad_token_id = self.tokenizer.pad_token_id
        known = getattr(model.config, "max_position_embeddings", max_tokens)
        self.room, self.batch_texts = min(max_tokens, self.tokenizer.model_max_length, known), batch_texts
        self.note = f"toxicity by the classifier in {folder.name}: {' + '.join(self.toxic)}"

    def __call__(self, texts: Sequence[str]) -> list[Toxicity]:
        parts = [texts[start : start + self.batch_texts] for start in range(0, len(texts), self.batch_texts)]
        return [own for part in parts for own in self._read(list(part))]

    @torch.no_grad()
    def _read(self, texts: list[str]) -> list[Toxicity]:
        shown = [text or " " for text in texts]  # a batch of no tokens at all cannot be run
        encoded = self.tokenizer(shown, padding=True, truncation=True, max_length=self.room, return_tensors="pt").to(self.model.device)
        logits_BC = self.model(**encoded).logits.float()
        p_BC = (logits_BC.sigmoid() if self.independent else logits_BC.softmax(-1)).tolist()
        return [self._result(dict(zip(self.labels, row, strict=True))) for row in p_BC]

    def _result(self, labels: dict[str, float]) -> Toxicity:
        toxic = [labels[label] for label in self.toxic]
        return Toxicity(max(toxic) if self.independent else min(1.0, sum(toxic)), labels)
