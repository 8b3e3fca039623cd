"""Stage entry: how well a policy predicts texts."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from data.drawing import drawn
from data.measures import Measure, Suite, ratio
from data.packing import Group
from data.records import Document, record_id
from data.suite_rows import items_of, text_in
from data.templates import load_tokenizer, opening_ids, render_continuation
from models.chunks import map_chunks
from models.configs.perplexity import PerplexityConfig
from models.loading import load_policy
from models.logprobs import sequence_logps
from models.run import Run
from models.suites.concluding import conclude
from models.suites.lengths import check_length

NOTE = (
    "intervals are by bootstrap over documents, each with its tokens, so a long one weighs more; tokens are the policy's own: "
    "between policies with different tokenizers compare bits per byte"
)


def perplexity(config: PerplexityConfig, *, policy: Path, seed: int, run: Run) -> dict[str, Any]:
    """Score every token of every document and write ``suite.json``.

    The first token is predicted from what the tokenizer begins texts with, else from its beginning- or end-of-sequence token.

    Raises:
        ValueError: a row has no text, or the windows are longer than the policy can read.
    """
    documents = drawn(items_of(config.source.source(), _document), config.source.rows, seed)
    tokenizer, model = load_tokenizer(policy), load_policy(policy, run.device)
    check_length(model, config.window_tokens, f"a window of the suite {config.name} (window_tokens)")
    start = opening_ids(tokenizer) or [beginning_id(tokenizer)]

    def score(_: int, read: Sequence[Document]) -> list[Any]:
        ids = [render_continuation(tokenizer, "", document.text) for document in read]
        groups = [windows(tokens, start, config.window_tokens, config.context_tokens) for tokens in ids]
        logps = iter(sequence_logps(model, [group for own in groups for group in own], config.micro_batch_tokens).tolist())
        nats = [-sum(next(logps) for _ in own) for own in groups]
        return [
            {"id": document.id, "nats": total, "n_tokens": len(tokens), "n_bytes": len(document.text.encode())}
            for document, total, tokens in zip(read, nats, ids, strict=True)
        ]

    scored = map_chunks(run, "scored", documents, config.chunk_documents, score)
    rows = [{**own, "text": document.text[:200]} for own, document in zip(scored, documents, strict=True)]
    return conclude(Suite(config.name, "perplexity", measures(scored, config, seed), rows, [NOTE]), run)


def beginning_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The beginning-of-sequence token, or else the end-of-sequence token, which divides texts in pretraining."""
    found = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    assert isinstance(found, int)
    return found


def _document(row: Mapping[str, Any]) -> Document:
    text = text_in(row, "text")
    return Document(record_id("document", text), "", text)


def windows(tokens: Sequence[int], start: Sequence[int], window: int, context: int) -> list[Group]:
    """A document in parts of at most ``window`` tokens, each with up to ``context`` tokens of what was before it; each is scored once.

    By hand: tokens 1 to 7 behind start 0, window 4, context 2: 0 | 1 2 3, then 2 3 | 4 5, then 4 5 | 6 7.
    """
    first = window - len(start)
    groups = [Group(start, [tokens[:first]])]
    step = window - context
    for begin in range(first, len(tokens), step):
        groups.append(Group(tokens[max(0, begin - context) : begin], [tokens[begin : begin + step]]))
    return groups


def measures(scored: Sequence[Mapping[str, Any]], config: PerplexityConfig, seed: int) -> list[Measure]:
    """Nats per token (sum over all documents of both), perplexity = exp of it and of its ends, and bits per byte = nats / log 2 / bytes."""
    given: dict[str, Any] = {"seed": seed, "resamples": config.resamples, "better": "lower"}
    per_token = ratio("nats_per_token", {row["id"]: (row["nats"], row["n_tokens"]) for row in scored}, **given)
    per_byte = ratio("bits_per_byte", {row["id"]: (row["nats"] / math.log(2), row["n_bytes"]) for row in scored}, **given)
    ends = (exp(end) for end in (per_token.mean, per_token.low, per_token.high))
    return [per_token, Measure("perplexity", *ends, better="lower"), per_byte]


def exp(nats: float) -> float:
    """e to the power; infinite where no float holds it."""
    return math.exp(nats) if nats < 709 else math.inf
