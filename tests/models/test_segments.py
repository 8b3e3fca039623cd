"""Segments accepted or drawn again: the rate and the distribution of the formula, caches that are right after every rejection."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.packing import Group, pack
from models import segments
from models.configs.guidance import GuidanceConfig
from models.configs.sampling import SamplingConfig
from models.generation import Completion
from models.heads import ScalarModel, load_scalar, new_scalar
from models.loading import load_policy
from models.logprobs import token_logps
from models.rewards import score_groups
from models.segments import acceptance, generate_by_segments, goal_at

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15, 16]]
A, V, N = 1, 5, 6000


@pytest.fixture
def coin(bandit: Path) -> tuple[Any, ScalarModel]:
    """A policy over five tokens and rewards of them."""
    policy, reward = load_policy(bandit), new_scalar(bandit, 1).requires_grad_(False)
    torch.nn.init.normal_(reward.head.weight, generator=torch.Generator().manual_seed(0))
    return policy, reward


def one_token(coin: tuple[Any, ScalarModel], **knobs: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, segments.Tally]:
    """Policy, rewards and the sampled shares of completions of one token, and what it took."""
    policy, reward = coin
    packed = pack([Group([A], [[a] for a in range(V)])])
    pi, r = token_logps(policy, packed)[0].exp().numpy(), reward.reward(packed).numpy()
    config = GuidanceConfig(mode="cards", entropy_nats=0.0, goal_start=1.0, **knobs)
    (rows,), tally = generate_by_segments(
        policy, reward, [[A]], SamplingConfig(max_tokens=1, max_rows=N), config, samples=N, eos_ids=[], seed=0
    )
    return pi, r, np.bincount([c.tokens[0] for c in rows], minlength=V) / N, tally


def test_acceptance_and_goal_by_hand():
    assert acceptance(0.3, 1.0, 0.7) == pytest.approx(np.exp(-1)) and acceptance(1.0, 1.0, 0.7) == acceptance(5.0, 1.0, 0.7) == 1
    rising = GuidanceConfig(goal=1.0, goal_start=0.5)
    assert [goal_at(rising, -1.0, n, 10) for n in (0, 5, 10)] == [0.0, 0.5, 1.0]
    assert goal_at(GuidanceConfig(goal=2.0, goal_start=1.0), -1.0, 0, 10) == 2.0


def test_segments_are_accepted_as_often_as_the_formula_says(coin: tuple[Any, ScalarModel]):
    pi, r, shares, tally = one_token(coin, goal=0.5, goal_width=0.4, max_tries=1000)
    accept = np.minimum(1, np.exp((r - 0.5) / 0.4))
    rate = float((pi * accept).sum())
    assert tally.accepted == N and tally.forced == 0
    assert tally.accepted / tally.drawn == pytest.approx(rate, abs=0.02) and 0.1 < rate < 0.9
    wanted = pi * accept / rate
    assert np.abs(shares - wanted).sum() / 2 < 0.03 < np.abs(pi - wanted).sum() / 2


def test_when_the_tries_are_used_up_the_best_is_taken(coin: tuple[Any, ScalarModel]):
    """The best of 3 draws: P(best is a) by the distribution of a maximum."""
    pi, r, shares, tally = one_token(coin, goal=1e9, goal_width=0.1, max_tries=3)
    assert (tally.drawn, tally.accepted, tally.forced) == (3 * N, 0, N)
    up_to = np.array([pi[r <= x].sum() for x in r])
    below = np.array([pi[r < x].sum() for x in r])
    np.testing.assert_allclose(shares, up_to**3 - below**3, atol=0.03)


@pytest.fixture
def drawn(base: Path, reward_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Completions of several prompts, and every judged segment with the reward that it was judged by."""
    policy, reward = load_policy(base), load_scalar(reward_folder)
    judged: list[tuple[list[int], float]] = []
    accepts = segments._Wave._accepts

    def noted(wave: Any, row: Any, value: float, chance: float) -> bool:
        judged.append((row.completion.tokens + row.tokens, value))
        return accepts(wave, row, value, chance)

    monkeypatch.setattr(segments._Wave, "_accepts", noted)

    def draw(config: GuidanceConfig, max_tokens: int = 12, **more: Any) -> tuple[Any, ScalarModel, list[list[Completion]], Any, Any]:
        sampling = SamplingConfig(max_tokens=max_tokens, **more)
        eos = list(range(0, 259, 9))
        rows, tally = generate_by_segments(policy, reward, PROMPTS, sampling, config, samples=4, eos_ids=eos, seed=0)
        return policy, reward, rows, tally, judged

    return draw


CARDS = GuidanceConfig(mode="cards", entropy_nats=4.0, goal=0.6, goal_width=0.3, max_tries=4)


def test_caches_are_right_after_every_rejection(drawn: Callable[..., Any]):
    policy, reward, rows, tally, judged = drawn(CARDS, max_rows=8)
    assert tally.drawn > tally.accepted > 0 and tally.forced > 0
    groups = [Group(prompt, [c.tokens for c in row]) for prompt, row in zip(PROMPTS, rows, strict=True)]
    own = torch.tensor([logp for row in rows for c in row for logp in c.logps])
    torch.testing.assert_close(own, token_logps(policy, pack(groups))[0], rtol=0, atol=1e-5)
    for tokens, value in judged:
        assert any(abs(s - value) < 1e-5 for (s,) in score_groups(reward, [Group(p, [tokens]) for p in PROMPTS], 999))
    lengths = [len(tokens) for tokens, _ in judged]
    assert len(set(lengths)) > 4, "segments of several lengths"


def test_completions_end_at_the_end_of_turn_or_at_the_longest(drawn: Callable[..., Any]):
    *_, rows, _, _ = drawn(CARDS)
    for c in (c for row in rows for c in row):
        assert c.finished == (c.tokens[-1] % 9 == 0) and not any(t % 9 == 0 for t in c.tokens[:-1])
        assert c.finished or len(c.tokens) == 12
    assert len({c.finished for row in rows for c in row}) == 2


def test_a_certain_policy_draws_whole_completions(drawn: Callable[..., Any]):
    *_, rows, tally, judged = drawn(CARDS.model_copy(update={"entropy_nats": 99.0, "goal": -99.0}))
    assert tally.drawn == tally.accepted == len(judged) == 12
    assert sorted(tokens for tokens, _ in judged) == sorted(c.tokens for row in rows for c in row)
