"""Perplexity: windows by hand, nats as transformers has them, documents weighed by their tokens."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from data.measures import read_suite
from models.configs.perplexity import PerplexityConfig
from models.configs.suites import RowsConfig
from models.loading import copy_tokenizer, load_policy
from models.run import Run
from models.suites.perplexity import exp, measures, perplexity, windows

TEXTS = ["A short text.", "A much longer text, with <|im_end|> typed in it and \u00e4 too, so that it is cut into several windows.", "x"]


def config(path: Path | str = "rows.jsonl", **more: Any) -> PerplexityConfig:
    settings = {"resamples": 200, "chunk_documents": 2, "window_tokens": 24, "context_tokens": 8} | more
    return PerplexityConfig(source=RowsConfig(name=str(path)), **settings)


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text, "url": "u"}) + "\n" for text in TEXTS))
    return path


def test_windows_by_hand():
    found = [(list(group.prompt), [list(c) for c in group.completions]) for group in windows([1, 2, 3, 4, 5, 6, 7], [0], 4, 2)]
    assert found == [([0], [[1, 2, 3]]), ([2, 3], [[4, 5]]), ([4, 5], [[6, 7]])]


@pytest.mark.parametrize(("window", "context"), [(2, 1), (5, 4), (7, 2), (50, 20)])
@pytest.mark.parametrize("length", [1, 2, 6, 20])
def test_every_token_is_scored_once_within_a_window(window: int, context: int, length: int):
    tokens = list(range(1, length + 1))
    groups = windows(tokens, [0], window, context)
    assert [token for group in groups for token in group.completions[0]] == tokens
    assert all(group.n_tokens <= window and len(group.prompt) >= 1 for group in groups)
    whole = [0, *tokens]
    for group in groups:
        text = [*group.prompt, *group.completions[0]]
        assert text == whole[text[0] : text[0] + len(text)], "the context is what stands right before"


@torch.no_grad()
def test_nats_are_those_of_transformers(base: Path, run: Run, rows_file: Path, tokenizer: PreTrainedTokenizerBase):
    """Window by window, one text at a time; one token a byte, so that bits per byte are the nats over log 2."""
    perplexity(config(rows_file), policy=base, seed=0, run=run)
    plain = LlamaForCausalLM.from_pretrained(base, attn_implementation="eager")
    suite = read_suite(run.out)
    for text, item in zip(TEXTS, suite.items, strict=True):
        tokens = tokenizer(text, split_special_tokens=True)["input_ids"]
        nats = 0.0
        for group in windows(tokens, [tokenizer.bos_token_id], 24, 8):
            ids = [*group.prompt, *group.completions[0]]
            logp = plain(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            nats -= sum(float(logp[t - 1, ids[t]]) for t in range(len(group.prompt), len(ids)))
        assert item["nats"] == pytest.approx(nats, abs=1e-3) and item["n_tokens"] == item["n_bytes"] == len(tokens)
    found = {measure.name: measure for measure in suite.measures}
    total = sum(item["nats"] for item in suite.items) / sum(item["n_tokens"] for item in suite.items)
    assert found["nats_per_token"].mean == pytest.approx(total)
    assert found["perplexity"].mean == pytest.approx(math.exp(total))
    assert found["bits_per_byte"].mean == pytest.approx(total / math.log(2))
    assert all(measure.better == "lower" for measure in suite.measures)


def test_documents_weigh_what_they_are_long():
    """2 nats on 1 token and 2 on 3 are 1 nat a token, not (2 + 2/3) / 2; the ends are exp of the ends."""
    scored = [{"id": "a", "nats": 2.0, "n_tokens": 1, "n_bytes": 4}, {"id": "b", "nats": 2.0, "n_tokens": 3, "n_bytes": 4}]
    found = {measure.name: measure for measure in measures(scored, config(), 0)}
    per_token, whole = found["nats_per_token"], found["perplexity"]
    assert (per_token.mean, per_token.low, per_token.high) == (1.0, pytest.approx(2 / 3), 2.0)
    assert (whole.mean, whole.low, whole.high) == (math.e, pytest.approx(math.exp(2 / 3)), math.exp(2.0))
    assert found["bits_per_byte"].mean == pytest.approx(4 / math.log(2) / 8) and not whole.values
    assert exp(1e4) == math.inf


def test_windows_longer_than_the_policy_reads(base: Path, run: Run, rows_file: Path):
    with pytest.raises(ValueError, match=r"\(window_tokens\) has 300 tokens, and the policy reads at most 256"):
        perplexity(config(rows_file, window_tokens=300), policy=base, seed=0, run=run)
    with pytest.raises(ValueError, match="context_tokens 24 must be less than window_tokens 24"):
        config(rows_file, context_tokens=24)


def test_a_policy_that_is_sure_of_something_else(base: Path, run: Run, rows_file: Path, tmp_path: Path):
    """Perplexity without a bound is written down as such, and no metric and no part of the artifact's note."""
    sure = load_policy(base)
    sure.get_output_embeddings().weight.mul_(1e5)
    sure.save_pretrained(tmp_path / "sure")
    copy_tokenizer(base, tmp_path / "sure")
    meta = perplexity(config(rows_file), policy=tmp_path / "sure", seed=0, run=run)
    found = {measure.name: measure.mean for measure in read_suite(run.out).measures}
    assert found["perplexity"] == math.inf and found["nats_per_token"] > 709
    assert json.dumps(meta, allow_nan=False) and meta.keys() == {"items", "nats_per_token", "bits_per_byte"}
