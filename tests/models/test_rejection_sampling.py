"""Which of the sampled completions are imitated."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.records import Ranking
from data.tables import read_table
from models.configs.rejection_sampling import RejectionSamplingConfig
from models.run import Run
from models.training import rejection_sampling
from models.training.rejection_sampling import select, train

SCORES = [[0.7, 0.3, 0.5, 0.2], [0.4, 0.8, 0.6, 0.5], [0.9, 0.3, 0.4, 0.7], [0.2, 0.5, 0.8, 0.6], [0.5, 0.4, 0.3, 0.6]]
NO_LIMIT = -1e6


# Selection, by hand


def test_the_best_of_each_prompt():
    """The columns 1 2 1 3 4, counted from 1."""
    chosen = select(SCORES, "top_per_prompt", 0, NO_LIMIT)
    assert chosen == [(0, 0), (1, 1), (2, 0), (3, 2), (4, 3)]


def test_the_best_of_all():
    """Of prompt 3 the .9 and the .7, of prompt 5 nothing."""
    chosen = select(SCORES, "top_k_overall", 5, NO_LIMIT)
    assert chosen == [(0, 0), (1, 1), (2, 0), (2, 3), (3, 2)]
    assert chosen == select(SCORES, "top_k_overall", 0, NO_LIMIT), "as many as there are prompts, where no number is given"


@pytest.mark.parametrize(
    ("rule", "keep", "min_score", "chosen"),
    [
        ("top_per_prompt", 2, NO_LIMIT, [(1, 1), (2, 0)]),  # .9 and the first of two .8
        ("top_k_overall", 1, NO_LIMIT, [(2, 0)]),
        ("top_per_prompt", 0, 0.75, [(1, 1), (2, 0), (3, 2)]),
        ("top_k_overall", 9, 0.75, [(1, 1), (2, 0), (3, 2)]),
        ("top_per_prompt", 0, 0.95, []),
        ("top_k_overall", 99, NO_LIMIT, [(p, g) for p in range(5) for g in range(4)]),
    ],
)
def test_limits(rule: str, keep: int, min_score: float, chosen: list[tuple[int, int]]):
    assert select(SCORES, rule, keep, min_score) == chosen


@pytest.mark.parametrize("rule", ["top_per_prompt", "top_k_overall"])
def test_ties_go_to_the_first_and_what_is_not_a_number_is_never_chosen(rule: str):
    assert select([[0.5, 0.5]], rule, 1, NO_LIMIT) == [(0, 0)]
    assert select([[math.nan, 0.1], [math.inf, math.nan]], rule, 2, NO_LIMIT) == [(0, 1)]


# The stage


@pytest.fixture
def imitated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The groups that would be imitated."""
    seen: list[Any] = []
    monkeypatch.setattr(rejection_sampling, "imitate", lambda config, policy, groups, seed, run: seen.extend(groups) or {})
    return seen


def test_the_judges_best_answers_are_imitated(base: Path, tables: Path, run: Run, imitated: list[Any], tokenizer: Any, journal: Callable):
    config = RejectionSamplingConfig(score="judge")
    meta = train(config, policy=base, preferences=tables, reward=Path("none"), seed=0, run=run)
    rankings = read_table(tables / "rankings.parquet", Ranking)
    wanted = [r.completions[r.scores.index(max(r.scores))] + "<|im_end|>" for r in rankings]
    assert [tokenizer.decode(group.completions[0]) for group in imitated] == wanted
    assert meta == {"kept": 8, "sampled": 24}
    best = [max(r.scores) for r in rankings]
    every = [s for r in rankings for s in r.scores]
    ((_, metrics),) = journal(run)
    assert metrics == pytest.approx(
        {"rejection_sampling/kept_score": sum(best) / 8, "rejection_sampling/all_score": sum(every) / 24}, abs=1e-6
    )


def test_the_reward_models_best_answers_are_imitated(base: Path, tables: Path, reward_folder: Path, run: Run, imitated: list[Any]):
    train(RejectionSamplingConfig(), policy=base, preferences=tables, reward=reward_folder, seed=0, run=run)
    from models.heads import load_scalar
    from models.rewards import score_groups
    from models.training.rejection_sampling import Group, completion_ids, load_tokenizer, render_prompt

    tokenizer, model = load_tokenizer(base), load_scalar(reward_folder)
    for ranking, chosen in zip(read_table(tables / "rankings.parquet", Ranking), imitated, strict=True):
        ids = [completion_ids(tokenizer, ranking.prompt, c) for c in ranking.completions]
        scores = [score_groups(model, [Group(render_prompt(tokenizer, ranking.prompt), [c])], 99)[0][0] for c in ids]
        assert list(chosen.completions[0]) == ids[int(torch.tensor(scores).argmax())]


def test_nothing_good_enough_is_an_error(base: Path, tables: Path, run: Run):
    config = RejectionSamplingConfig(score="judge", min_score=1000.0)
    with pytest.raises(ValueError, match=r"no completion of 8 prompts reaches min_score 1000\.0: lower it"):
        train(config, policy=base, preferences=tables, reward=Path("none"), seed=0, run=run)
