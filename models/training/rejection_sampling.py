"""Stage entry: rejection-sampling fine-tuning. Of the sampled completions of each prompt, imitate the best.

Axes: ``P`` prompts, ``G`` completions of each.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data.packing import Group
from data.records import Ranking
from data.tables import read_table
from data.templates import load_tokenizer, render_prompt
from models.configs.rejection_sampling import RejectionSamplingConfig
from models.ensembles import load_reward
from models.rendering import completion_ids, drop_long
from models.rewards import score_groups
from models.run import Run
from models.seeds import derive_seed
from models.training.imitation import imitate
from models.training.order import permutation

Chosen = tuple[int, int]  # prompt, completion


def train(config: RejectionSamplingConfig, *, policy: Path, preferences: Path, reward: Path, seed: int, run: Run) -> dict[str, Any]:
    """Score the collected completions, keep the best, fine-tune ``policy`` on them."""
    tokenizer = load_tokenizer(policy)
    rankings = read_table(preferences / "rankings.parquet", Ranking)
    groups = [Group(render_prompt(tokenizer, r.prompt), [completion_ids(tokenizer, r.prompt, c) for c in r.completions]) for r in rankings]
    fitting = drop_long(groups, config.max_tokens * max(len(g.completions) for g in groups), run)
    groups = [groups[i] for i in fitting]
    if config.score == "judge":
        scores = [list(rankings[i].scores) for i in fitting]
    else:
        scores = score_groups(load_reward(reward, run.device), groups, config.micro_batch_tokens)
    chosen = select(scores, config.select, config.keep, config.min_score, derive_seed(seed, "control"))
    if not chosen:
        raise ValueError(f"no completion of {len(groups)} prompts reaches min_score {config.min_score}: lower it, or sample more")
    kept = torch.tensor([scores[p][g] for p, g in chosen])
    everything = torch.tensor([s for row in scores for s in row])
    best = [Group(groups[p].prompt, [groups[p].completions[g]]) for p, g in chosen]
    meta = imitate(config, policy, best, seed, run)
    # Not before: a report ahead of the loop would start the journal anew, and a resumed attempt would lose its history.
    run.report({"rejection_sampling/kept_score": float(kept.mean()), "rejection_sampling/all_score": float(everything.mean())}, 0)
    return meta | {"kept": len(chosen), "sampled": len(everything)}


def select(scores_PG: Sequence[Sequence[float]], rule: str, keep: int, min_score: float, seed: int = 0) -> list[Chosen]:
    """Which completions to imitate, as (prompt, completion), by prompt.

    top_per_prompt: argmax over each row; with ``keep`` only the best ``keep`` of these. top_k_overall: the best ``keep`` of all
    (one a prompt in number when 0). Ties go to the first. random: the prompts of top_per_prompt, of each any completion with a finite
    score: what is left of the method when the choice knows nothing.

    By hand, rows [.7 .3 .5 .2] [.4 .8 .6 .5] [.9 .3 .4 .7] [.2 .5 .8 .6] [.5 .4 .3 .6]: per prompt the columns 1 2 1 3 4 (counted from
    1); the top 5 of all keep .9 and .7 of prompt 3 and nothing of prompt 5.
    """
    if rule == "random":
        return _matched_control(select(scores_PG, "top_per_prompt", keep, min_score), scores_PG, seed)
    if rule == "top_per_prompt":
        candidates = [(p, max(range(len(row)), key=lambda g: (_finite(row[g]), -g))) for p, row in enumerate(scores_PG)]
    else:
        candidates = [(p, g) for p, row in enumerate(scores_PG) for g in range(len(row))]
    candidates = [(p, g) for p, g in candidates if scores_PG[p][g] >= min_score and math.isfinite(scores_PG[p][g])]
    limit = keep or len(scores_PG)
    return sorted(sorted(candidates, key=lambda c: -scores_PG[c[0]][c[1]])[:limit])


def _matched_control(chosen: list[Chosen], scores_PG: Sequence[Sequence[float]], seed: int) -> list[Chosen]:
    """The same prompts, of each one completion at random."""
    eligible = {p: [g for g, score in enumerate(scores_PG[p]) if math.isfinite(score)] for p, _ in chosen}
    return [(p, eligible[p][permutation(len(eligible[p]), seed, p)[0]]) for p, _ in chosen]


def _finite(score: float) -> float:
    return score if math.isfinite(score) else -math.inf
