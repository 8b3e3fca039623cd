"""Stage entry: best-of-n sampling. Of n completions take the one that a scorer likes best; the policy stays as it is.

Axes: ``P`` prompts, ``N`` samples of each.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data.intervals import paired_bootstrap
from data.packing import Group
from data.records import Prompt
from data.tables import read_table
from data.templates import load_tokenizer
from data.verifiers import verify
from models.answering import Answerer
from models.callables import load_callable
from models.chunks import map_chunks
from models.configs.best_of_n import BestOfNConfig
from models.judges import judge_of
from models.rendering import text_of
from models.rewards import reward_function
from models.run import Run
from models.seeds import derive_seed

Rows = list[dict[str, Any]]


def best_of_n(config: BestOfNConfig, *, policy: Path, data: Path, seed: int, run: Run, reward: Path | None = None) -> dict[str, Any]:
    """Sample every held-out prompt, score, and write the curve over n to ``best_of_n.json`` and ``best_of_n.md``.

    Metrics are reported at step n: the picking score and the true score of the best of n by the picking score, the best that picking by
    the truth could do, and the KL to the policy itself.

    Raises:
        ValueError: the reward model picks and there is none, or the truth is the verifier and a prompt names none.
    """
    prompts = read_table(data / "test_prompts.parquet", Prompt)
    prompts = prompts[: config.prompts] if config.prompts else prompts
    if config.pick == "reward_model" and reward is None:
        raise ValueError("best_of_n.pick is reward_model and the stage got no reward model: give one, or use pick verifier")
    unjudged = next((prompt.id for prompt in prompts if prompt.verifier == "none"), None)
    if config.truth == "verifier" and unjudged is not None:
        raise ValueError(f"prompt {unjudged} names no verifier: use truth none, and let a reward model or a function pick")
    sampled = _sample(config, policy, prompts, seed, run)
    rows, failures = _score(config, policy, prompts, sampled, reward, run)
    curve = [_point(rows, n, config, derive_seed(seed, "best of n")) for n in sizes(config.samples)]
    finished = sum(s["finished"] for row in rows for s in row["samples"]) / (len(rows) * config.samples)
    markdown = as_markdown(curve, config, len(rows))
    content = {"curve": curve, "finished": finished, "failures": failures, "markdown": markdown, "rows": rows}
    (run.out / "best_of_n.json").write_text(json.dumps(content), encoding="utf-8")
    (run.out / "best_of_n.md").write_text(markdown, encoding="utf-8")
    run.log(markdown)
    for point in curve:
        run.report(_metrics(point), point["n"])
    return {"prompts": len(rows), "samples": config.samples, "finished": finished, "failures": failures} | _gains(curve)


def sizes(samples: int) -> list[int]:
    """1, 2, 4, ... and the number of samples itself. By hand: 6 gives 1, 2, 4, 6."""
    powers = [2**k for k in range(samples.bit_length()) if 2**k < samples]
    return [*powers, samples]


def picked_weights(scores_N: Sequence[float], n: int) -> np.ndarray:
    """How likely each of N samples is to be the best of n drawn from them without replacement: ``[N]``, sums to 1.

    The i-th smallest score (i = 1..N) is the largest of a subset with probability C(i - 1, n - 1) / C(N, n); equal scores share theirs
    evenly, as if ties were broken at random. The mean of any quantity under these weights is the unbiased (U-statistic) estimate of its
    expectation for the best of n fresh samples; for a score of 0 or 1 picked by itself it is pass@n.

    By hand: scores (3, 1, 2), n = 2: of the three pairs two are won by 3 and one by 2: (2/3, 0, 1/3).

    Raises:
        ValueError: n is not between 1 and N.

    Source: Nakano et al. 2021, appendix I; Chen et al. 2021, equation 1, for pass@k.
    """
    total = len(scores_N)
    if not 1 <= n <= total:
        raise ValueError(f"best of {n} cannot be estimated from {total} samples: 1 <= n <= {total}")
    scores = np.asarray(scores_N, dtype=np.float64)
    order = np.argsort(scores, kind="stable")
    subsets = math.comb(total, n)
    weights = np.empty(total)
    weights[order] = [math.comb(i, n - 1) / subsets for i in range(total)]
    _, tied, counts = np.unique(scores, return_inverse=True, return_counts=True)
    return (np.bincount(tied, weights) / counts)[tied]


def kl_of_best(n: int) -> float:
    """KL of the best-of-n policy from the policy itself, nats: log n - (n - 1) / n. By hand: n = 2: 0.693147 - 0.5 = 0.193147.

    Exact where no two completions tie; an upper bound otherwise.

    Source: Stiennon et al. 2020, appendix G.3; Beirami et al. 2024 for the bound.
    """
    return math.log(n) - (n - 1) / n


def _sample(config: BestOfNConfig, policy: Path, prompts: list[Prompt], seed: int, run: Run) -> Rows:
    answerer = Answerer(policy, "best of n", seed, run)

    def sample(number: int, chunk: Sequence[Prompt]) -> Rows:
        ids = answerer.render([prompt.messages for prompt in chunk])
        sampled = answerer.sample(ids, config.sampling, config.samples, number)
        return [
            {"prompt": own, "samples": [{"tokens": c.tokens, "finished": c.finished} for c in row]}
            for own, row in zip(ids, sampled, strict=True)
        ]

    return map_chunks(run, "sampled", prompts, config.chunk_prompts, sample)


def _score(config: BestOfNConfig, policy: Path, prompts: list[Prompt], sampled: Rows, reward: Path | None, run: Run) -> tuple[Rows, int]:
    """One readable row a prompt with picking and true scores, and how many completions the picking scorer could not score."""
    tokenizer = load_tokenizer(policy)
    groups = [Group(row["prompt"], [s["tokens"] for s in row["samples"]]) for row in sampled]
    texts = [[text_of(tokenizer, tokens) for tokens in group.completions] for group in groups]
    if config.pick == "callable":
        judge = judge_of(load_callable(config.judge_callable, "judge_callable"))
        verdicts = [[judge(prompt, text) for text in own] for prompt, own in zip(prompts, texts, strict=True)]
        picked, failures = [[v.score for v in own] for own in verdicts], sum(v.error is not None for own in verdicts for v in own)
    else:
        scored = reward_function(config.pick, tokenizer, reward, run.device)(prompts, groups)
        picked, failures = scored.reward_PG, scored.failures
    rows = []
    for prompt, row, own, scores in zip(prompts, sampled, texts, picked, strict=True):
        samples = [
            {"text": text, "finished": s["finished"], "score": score - config.missing_eos_penalty * (not s["finished"])}
            | ({"true_score": verify(prompt, text).score} if config.truth == "verifier" else {})
            for s, text, score in zip(row["samples"], own, scores, strict=True)
        ]
        rows.append({"id": prompt.id, "prompt": tokenizer.decode(row["prompt"]), "samples": samples})
    return rows, failures


def _point(rows: Rows, n: int, config: BestOfNConfig, seed: int) -> dict[str, Any]:
    """The curve at n: means over prompts with 95 % bootstrap intervals."""
    columns = {"score": ("score", "score")}
    if config.truth == "verifier":
        columns |= {"true_score": ("score", "true_score"), "oracle_score": ("true_score", "true_score")}
    point: dict[str, Any] = {"n": n, "kl_nats": kl_of_best(n)}
    for name, (by, of) in columns.items():
        values = [float(picked_weights([s[by] for s in row["samples"]], n) @ [s[of] for s in row["samples"]]) for row in rows]
        point[name] = asdict(paired_bootstrap(values, seed=seed, n=config.resamples))
    return point


def _metrics(point: dict[str, Any]) -> dict[str, float]:
    metrics = {"best_of_n/kl_nats": point["kl_nats"], "best_of_n/score": point["score"]["mean"]}
    if "true_score" in point:
        true = point["true_score"]
        metrics |= {"best_of_n/true_score": true["mean"], "best_of_n/oracle_score": point["oracle_score"]["mean"]}
        metrics |= {"best_of_n/true_score_low": true["low"], "best_of_n/true_score_high": true["high"]}
    return metrics


def _gains(curve: Rows) -> dict[str, float]:
    first, last = curve[0], curve[-1]
    return {f"{name}_gain": last[name]["mean"] - first[name]["mean"] for name in ("score", "true_score") if name in first}


def as_markdown(curve: Rows, config: BestOfNConfig, prompts: int) -> str:
    """The curve as a table, with what its numbers mean."""
    named = {"score": "picking score", "true_score": "true score", "oracle_score": "true score, picked by the truth"}
    present = [name for name in named if name in curve[0]]
    lines = ["| n | KL, nats | " + " | ".join(named[name] for name in present) + " |", "|" + "---|" * (2 + len(present))]
    for point in curve:
        cells = [f"{point[name]['mean']:.3f} [{point[name]['low']:.3f},\u00a0{point[name]['high']:.3f}]" for name in present]
        lines.append(f"| {point['n']} | {point['kl_nats']:.3f} | " + " | ".join(cells) + " |")
    note = (
        f"{prompts} held-out prompts, {config.samples} samples of each, picked by {config.pick}; unbiased estimates over all subsets of n; "
        "brackets are 95 % bootstrap intervals over prompts."
    )
    return "\n".join([*lines, "", note, ""])
