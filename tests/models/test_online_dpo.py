"""Online DPO: which of a round's completions make pairs, the loss one pair at a time, and what it learns."""

import math
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from data.packing import Group, pack
from data.records import Prompt
from data.tables import read_table
from models.configs.dpo import PairLossConfig
from models.configs.online_dpo import OnlineDPOConfig
from models.configs.optimisation import OptimConfig
from models.configs.sampling import SamplingConfig
from models.loading import load_policy
from models.logprobs import token_logps
from models.losses.sums import merge
from models.rewards import Scored
from models.run import Run
from models.training import online_dpo
from models.training.online_dpo import OnlineDPO, keep_pairs
from models.training.rollout import Rollout

SAMPLING = SamplingConfig(temperature=0.8, max_tokens=6)
EOS = list(range(0, 259, 5))  # many tokens end a completion, so that lengths differ
ROUND = {"prompts_per_iteration": 6, "samples_per_prompt": 4, "sampling": SAMPLING, "micro_batch_tokens": 40}


def test_pairs_by_hand():
    """Scores (0.5, 0, 1, 1) keep the third and the second; of ties the first counts; a prompt with equal scores is tied."""
    tokens = [[[1], [2, 2], [3], [4, 4, 4]], [[5], [6], [7], [8]]]
    score = torch.tensor([0.5, 0.0, 1.0, 1.0, 0.3, 0.3, 0.3, 0.3])
    rollout = Rollout([Group([9], row) for row in tokens], {"score": score, "mask": torch.arange(24).view(8, 3) % 2 == 0})
    wanted_mask = rollout.tensors["mask"][[2, 1, 4, 4]][:, :2]
    keep_pairs(rollout)
    assert [g.completions for g in rollout.groups] == [[[3], [2, 2]], [[5], [5]]]
    assert rollout.tensors["score"].tolist() == pytest.approx([1.0, 0.0, 0.3, 0.3])
    assert rollout.tensors["tied"].tolist() == [False, True]
    assert torch.equal(rollout.tensors["mask"], wanted_mask), "no wider than the longest completion that is left"


class ByLength:
    """Scores by length, the same for all answers to the first prompt of a round."""

    def __call__(self, prompts: list[Prompt], groups: list[Group]) -> Scored:
        self.groups = groups
        return Scored([[float(len(c)) if p else 1.0 for c in group.completions] for p, group in enumerate(groups)])


@pytest.fixture
def make(base: Path, other: Path, tables: Path, tokenizer: Any, run: Run) -> Callable[..., OnlineDPO]:
    """Makes an algorithm whose reference is another policy than the one that learns."""

    def make_one(reward: Any, preference: PairLossConfig, **settings: Any) -> OnlineDPO:
        config = OnlineDPOConfig(**ROUND | settings, preference=preference)
        prompts = read_table(tables / "prompts.parquet", Prompt)
        algorithm = OnlineDPO(load_policy(base, trainable=True), prompts, tokenizer, reward, EOS, config, 5, run)
        algorithm.reference = load_policy(other) if preference.has_reference else None
        return algorithm

    return make_one


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_the_loss_is_that_of_best_against_worst_alone(make: Callable):
    reward = ByLength()
    algorithm = make(reward, PairLossConfig(beta=0.05))
    batches = algorithm.batches(0)
    sampled = reward.groups
    tied = [p == 0 or len({len(c) for c in g.completions}) == 1 for p, g in enumerate(sampled)]
    assert len(batches) > 1 and algorithm.rollout.metrics["online_dpo/tied_prompts"] == sum(tied) < 6

    def logp(model: Any, prompt: Any, completion: Any) -> float:
        return float(token_logps(model, pack([Group(prompt, [completion])]), SAMPLING.temperature)[0].sum().detach())

    losses, gains = [], []
    for group, is_tied in zip(sampled, tied, strict=True):
        gain = {tuple(c): logp(algorithm.policy, group.prompt, c) - logp(algorithm.reference, group.prompt, c) for c in group.completions}
        gains += [gain[tuple(c)] for c in group.completions]
        best, worst = (pick(group.completions, key=len) for pick in (max, min))
        if not is_tied:
            losses.append(-log_sigmoid(0.05 * (gain[tuple(best)] - gain[tuple(worst)])))
    parts = [algorithm.loss(batch) for batch in batches]
    assert float(sum(loss for loss, _ in parts).detach()) == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert merge(sums for _, sums in parts)["train/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert algorithm.rollout.metrics["train/kl_nats"] == pytest.approx(sum(gains) / 24, rel=1e-4), "of all completions, not of the pairs"


def test_every_prompt_that_is_not_tied_is_learned_from_once_an_epoch(make: Callable):
    algorithm = make(ByLength(), PairLossConfig(), minibatches=3, epochs=2)
    rows = [sorted(int(row) for batch in algorithm.batches(update) for row in batch.rows_C) for update in range(6)]
    untied = [p for p in range(6) if not algorithm.rollout.tensors["tied"][p]]
    assert sorted(chain(*rows[:3])) == sorted(chain(*rows[3:])) == [2 * p + i for p in untied for i in (0, 1)]


def test_a_loss_without_reference_runs_none(make: Callable):
    algorithm = make(ByLength(), PairLossConfig(loss="simpo", beta=2.0))
    batches = algorithm.batches(0)
    assert "ref_logp" not in algorithm.rollout.tensors and "train/kl_nats" not in algorithm.rollout.metrics
    assert sum(float(algorithm.loss(batch)[0].detach()) for batch in batches) > 0


# Learning

FAST = OptimConfig(learning_rate=3e-2, schedule="constant", warmup_share=0)
ONE_TOKEN = SamplingConfig(max_tokens=1)
BANDIT = {"reward": "verifier", "prompts_per_iteration": 4, "samples_per_prompt": 8, "optim": FAST, "sampling": ONE_TOKEN}


def chances(folder: Path) -> list[float]:
    return token_logps(load_policy(folder), pack([Group([1], [[token] for token in range(5)])]))[0].exp().tolist()


def test_it_moves_probability_to_what_the_verifier_rewards(bandit: Path, run: Run, journal: Callable):
    config = OnlineDPOConfig(**BANDIT, iterations=15, preference=PairLossConfig(beta=0.1))
    online_dpo.train(config, policy=bandit, data=bandit, seed=0, run=run)
    lines = [metrics for _, metrics in journal(run)]
    assert chances(bandit)[2] < 0.3 and chances(run.out)[2] > 0.8
    assert lines[0]["train/reward"] < 0.5 and lines[-1]["train/reward"] > 0.8
    assert lines[0]["train/kl_nats"] == pytest.approx(0, abs=1e-5) and lines[-1]["train/kl_nats"] > 0.3


def test_a_high_beta_keeps_the_policy_home(bandit: Path, run: Run):
    config = OnlineDPOConfig(**BANDIT, iterations=15, preference=PairLossConfig(loss="ipo", beta=20.0))
    online_dpo.train(config, policy=bandit, data=bandit, seed=0, run=run)
    assert chances(run.out)[2] < 0.4


def test_a_round_of_ties_is_counted_and_teaches_nothing(bandit: Path, run: Run, journal: Callable, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr("models.rewards.TextReward.__call__", lambda self, prompts, groups: Scored([[0.0] * 8 for _ in groups]))
    meta = online_dpo.train(OnlineDPOConfig(**BANDIT, iterations=2), policy=bandit, data=bandit, seed=0, run=run)
    lines = [metrics for _, metrics in journal(run)]
    assert [line["online_dpo/tied_prompts"] for line in lines] == [4, 4] and "train/loss" not in lines[0]
    assert meta["skipped_updates"] == 0, "skipped are updates that were not finite"
    assert chances(run.out) == chances(bandit)
