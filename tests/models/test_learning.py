"""Every method learns what it should on a bandit: four letters to answer with, one of which is right."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from data.packing import Group, pack
from models.configs.dpo import DPOConfig
from models.configs.grpo import GRPOConfig
from models.configs.guidance import PrefixValueConfig, TokenRewardConfig
from models.configs.kto import KTOConfig
from models.configs.kwise_dpo import KWiseDPOConfig
from models.configs.nash_md import NashMDConfig
from models.configs.online_dpo import OnlineDPOConfig
from models.configs.online_rejection_sampling import OnlineRejectionSamplingConfig
from models.configs.optimisation import OptimConfig
from models.configs.ppo import PPOConfig
from models.configs.preference_model import PreferenceModelConfig
from models.configs.reinforce import ActorCriticConfig, ReinforceConfig
from models.configs.rejection_sampling import RejectionSamplingConfig
from models.configs.reward_model import RewardModelConfig
from models.configs.sampling import SamplingConfig
from models.configs.sft import SFTConfig
from models.heads import new_scalar, save_scalar
from models.loading import load_policy
from models.logprobs import token_logps
from models.run import Run
from models.training import (
    actor_critic,
    dpo,
    grpo,
    kto,
    kwise_dpo,
    nash_md,
    online_dpo,
    online_rejection_sampling,
    ppo,
    preference_model,
    prefix_value,
    reinforce,
    rejection_sampling,
    reward_model,
    sft,
    token_reward,
)

FAST = OptimConfig(learning_rate=3e-2, schedule="constant", warmup_share=0)
ROUND = {
    "prompts_per_iteration": 4,
    "samples_per_prompt": 8,
    "iterations": 12,
    "reward": "verifier",
    "optim": FAST,
    "sampling": SamplingConfig(max_tokens=1),
}
A, B, C = 1, 2, 3  # token ids of the letters


def chances(folder: Path) -> list[float]:
    """What the policy answers to "a", over all five tokens."""
    logp_S, _ = token_logps(load_policy(folder), pack([Group([A], [[token] for token in range(5)])]))
    return logp_S.exp().tolist()


def first_and_last(lines: list[tuple[int, dict[str, float]]], name: str) -> tuple[float, float]:
    return lines[0][1][name], lines[-1][1][name]


def test_nothing_is_known_at_first(bandit: Path):
    assert max(chances(bandit)) < 0.3


def test_grpo_moves_probability_to_what_the_verifier_rewards(bandit: Path, run: Run, journal: Callable):
    grpo.train(GRPOConfig(**ROUND), policy=bandit, data=bandit, seed=0, run=run)
    assert chances(run.out)[B] > 0.8
    before, after = first_and_last(journal(run), "train/reward")
    assert before < 0.5 and after > 0.8
    kl = [metrics["train/kl_nats"] for _, metrics in journal(run)]
    assert kl[0] == pytest.approx(0, abs=1e-5) and kl[-1] > 0.3, "it has left the reference"


def test_a_high_price_of_kl_keeps_the_policy_home(bandit: Path, run: Run):
    grpo.train(GRPOConfig(**ROUND, kl_coefficient=30.0), policy=bandit, data=bandit, seed=0, run=run)
    assert chances(run.out)[B] < 0.5


def test_ppo_moves_probability_to_what_the_verifier_rewards(bandit: Path, run: Run, journal: Callable, tmp_path: Path):
    save_scalar(new_scalar(bandit, 0), bandit, tmp_path)
    config = PPOConfig(**ROUND, value_optim=FAST)
    ppo.train(config, policy=bandit, data=bandit, reward=tmp_path, seed=0, run=run)
    assert chances(run.out)[B] > 0.8
    before, after = first_and_last(journal(run), "ppo/value_loss")
    assert after < before / 2, "the critic learns too"


def test_dpo_raises_the_margin_of_the_implicit_reward(bandit: Path, run: Run, journal: Callable):
    config = DPOConfig(beta=0.5, epochs=15, batch_size=1, optim=FAST)
    dpo.train(config, policy=bandit, preferences=bandit, seed=0, run=run)
    before, after = chances(bandit), chances(run.out)
    assert after[B] / after[C] > 10 * before[B] / before[C]
    margins = [metrics["dpo/margin"] for _, metrics in journal(run)]
    assert margins[0] == pytest.approx(0, abs=1e-6), "the reference is the policy as it came in"
    assert margins[-1] > 1 and journal(run)[-1][1]["train/accuracy"] == 1
    assert all(later > earlier - 0.05 for earlier, later in pairwise(margins))


def test_sft_learns_the_answer_and_its_end(bandit: Path, run: Run, journal: Callable):
    sft.train(SFTConfig(epochs=15, batch_size=1, optim=FAST), base=bandit, data=bandit, seed=0, run=run)
    assert chances(run.out)[B] > 0.9
    logp_S, _ = token_logps(load_policy(run.out), pack([Group([A], [[B, 0]])]))
    assert float(logp_S[1].exp()) > 0.9
    before, after = first_and_last(journal(run), "train/loss")
    assert after < before / 4


# Micro-batches are for memory alone


def smooth(learning_rate: float) -> OptimConfig:
    """Adam with an epsilon so large that it is nearly plain descent: rounding is not blown up to whole steps."""
    return OptimConfig(learning_rate=learning_rate, epsilon=1.0, schedule="constant", warmup_share=0, max_grad_norm=1e6)


ROUNDS = {"iterations": 2, "prompts_per_iteration": 4, "samples_per_prompt": 3, "sampling": SamplingConfig(max_tokens=5)}
PAIRS, ON_POLICY = ("policy", "preferences"), ("policy", "data", "reward")
SAMPLED = {"samples_per_prompt": 3, "sampling": SamplingConfig(max_tokens=5)}
STAGES: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "sft": (sft, SFTConfig(batch_size=5, normaliser="sequence_mean", optim=smooth(0.3)), ("base", "data")),
    "reward_model": (reward_model, RewardModelConfig(batch_size=5, use_margin=True, optim=smooth(0.3)), PAIRS),
    "reward_model, k_wise": (
        reward_model,
        RewardModelConfig(loss="k_wise", centring_coefficient=0.1, batch_size=4, optim=smooth(0.3)),
        PAIRS,
    ),
    "reward_model, prefixes": (reward_model, RewardModelConfig(batch_size=5, loss="prefix_bradley_terry", optim=smooth(0.3)), PAIRS),
    "prefix_value": (prefix_value, PrefixValueConfig(**SAMPLED, batch_size=5, optim=smooth(0.3)), ON_POLICY),
    "token_reward": (token_reward, TokenRewardConfig(batch_size=5, optim=smooth(0.3)), PAIRS),
    "dpo": (dpo, DPOConfig(batch_size=5, optim=smooth(0.3)), PAIRS),
    "dpo, moving reference": (dpo, DPOConfig(batch_size=5, reference_sync_every=1, reference_sync_share=0.5, optim=smooth(0.3)), PAIRS),
    "orpo": (dpo, DPOConfig(loss="orpo", batch_size=5, optim=smooth(0.3)), PAIRS),
    "kto": (kto, KTOConfig(batch_size=5, optim=smooth(0.3)), ("policy", "labels")),
    "kwise_dpo": (kwise_dpo, KWiseDPOConfig(batch_size=4, optim=smooth(0.3)), PAIRS),
    "preference_model": (preference_model, PreferenceModelConfig(batch_size=5, optim=smooth(0.3)), PAIRS),
    "rejection_sampling": (rejection_sampling, RejectionSamplingConfig(batch_size=4, optim=smooth(0.3)), (*PAIRS, "reward")),
    "online_rejection_sampling": (
        online_rejection_sampling,
        OnlineRejectionSamplingConfig(
            rounds=2,
            prompts_per_round=4,
            samples_per_prompt=3,
            keep_unfinished=True,
            sampling=SamplingConfig(max_tokens=5),
            optim=smooth(0.3),
        ),
        ON_POLICY,
    ),
    "grpo": (grpo, GRPOConfig(**ROUNDS, reward="reward_model", minibatches=2, optim=smooth(0.3)), ON_POLICY),
    "ppo-ptx": (
        ppo,
        PPOConfig(**ROUNDS, ptx_coefficient=0.5, ptx_batch_size=5, value_clip=0, optim=smooth(0.3), value_optim=smooth(0.3)),
        ON_POLICY,
    ),
    "dapo": (
        grpo,
        GRPOConfig(
            **ROUNDS, loss="dapo", reward="reward_model", minibatches=2, importance_cap=2, entropy_coefficient=0.1, optim=smooth(0.3)
        ),
        ON_POLICY,
    ),
    "reinforce": (reinforce, ReinforceConfig(**ROUNDS, optim=smooth(0.3)), ON_POLICY),
    "actor_critic": (actor_critic, ActorCriticConfig(**ROUNDS, optim=smooth(0.3), value_optim=smooth(0.3)), ON_POLICY),
    "ppo": (ppo, PPOConfig(**ROUNDS, optim=smooth(0.3), value_optim=smooth(0.3)), ON_POLICY),
    "online_dpo": (online_dpo, OnlineDPOConfig(**ROUNDS, minibatches=2, optim=smooth(0.3)), ON_POLICY),
    "nash_md": (nash_md, NashMDConfig(**ROUNDS, reference_sync_every=1, reference_sync_share=0.5, optim=smooth(0.3)), ON_POLICY),
}


@pytest.mark.parametrize("name", STAGES)
def test_the_size_of_micro_batches_changes_nothing(name: str, base: Path, tables: Path, reward_folder: Path, new_run: Callable[..., Run]):
    """After running out of memory a stage is run again with smaller ones."""
    module, config, inputs = STAGES[name]
    folders = {"base": base, "policy": base, "data": tables, "preferences": tables, "labels": tables, "reward": reward_folder}
    weights = []
    for scale in (1.0, 0.01):
        run = new_run(f"{name}-{scale}")
        run.micro_batch_scale = scale
        module.train(config, **{i: folders[i] for i in inputs}, seed=0, run=run)
        weights.append(load_policy(run.out).state_dict())
    before = load_policy(base).state_dict()
    whole, cut = weights
    assert max(float((whole[key] - before[key]).abs().max()) for key in whole) > 1e-3, "it has learned"
    for key in whole:
        torch.testing.assert_close(cut[key], whole[key], rtol=0, atol=2e-5)
