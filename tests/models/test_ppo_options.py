"""What PPO can do beside its plain form: a price of KL that follows a target, scaled and cut rewards, demonstrations; and its optimum."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.packing import Group, pack
from data.records import Document, Prompt
from data.tables import read_table, write_table
from data.templates import load_tokenizer
from models.advantages import scale_rewards, token_rewards
from models.configs.optimisation import OptimConfig
from models.configs.ppo import PPOConfig
from models.configs.rewards import RewardComponent
from models.configs.sampling import SamplingConfig
from models.heads import load_scalar
from models.loading import load_policy
from models.logprobs import token_logps
from models.losses.policy_gradient import value_loss
from models.losses.sums import merge
from models.rewards import Scored
from models.run import Run
from models.training import ppo
from models.training.kl_control import KLControl
from models.training.ppo import PPO, PPOWithDemonstrations
from models.training.ptx import DemonstrationBatch, Demonstrations, read_demonstrations

A, B = 1, 2  # token ids of the letters
FAST = OptimConfig(learning_rate=3e-2, schedule="constant", warmup_share=0)
BANDIT: Any = {
    "prompts_per_iteration": 4,
    "samples_per_prompt": 8,
    "iterations": 12,
    "reward": "verifier",
    "optim": FAST,
    "value_optim": FAST,
    "sampling": SamplingConfig(max_tokens=1),
}


def doubles(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chances(folder: Path) -> Tensor:
    return token_logps(load_policy(folder), pack([Group([A], [[token] for token in range(5)])]))[0].exp()


# The price of KL


@pytest.mark.parametrize(("kl", "price"), [(6.6, 0.0505), (60.0, 0.051), (6.0, 0.05), (0.0, 0.049), (-1.0, 0.049)])
def test_the_price_of_kl_follows_its_target_by_hand(kl: float, price: float):
    control = KLControl(0.05, 6.0, 0.1)
    control.follow(kl)
    assert control.coefficient == pytest.approx(price)


def test_without_a_target_the_price_stays():
    control = KLControl(0.05, 0.0, 0.1)
    control.follow(60.0)
    assert control.coefficient == 0.05


def test_a_low_target_raises_the_price_and_holds_the_policy(bandit: Path, new_run: Callable[..., Run], journal: Callable):
    slow = OptimConfig(learning_rate=8e-3, schedule="constant", warmup_share=0)
    shape = BANDIT | {"samples_per_prompt": 32, "iterations": 30, "epochs": 1, "optim": slow, "value_optim": slow}
    prices, reached = {}, {}
    for target in (0.0, 0.15):
        run = new_run(f"target {target}")
        config = PPOConfig(**shape, kl_coefficient=0.1, kl_target_nats=target, kl_rate=1.0)
        ppo.train(config, policy=bandit, data=bandit, seed=0, run=run)
        history = [metrics for _, metrics in journal(run)]
        prices[target] = [metrics.get("ppo/kl_coefficient") for metrics in history]
        reached[target] = np.mean([metrics["train/kl_nats"] for metrics in history[-5:]])
    assert set(prices[0.0]) == {None} and prices[0.15][0] == 0.1 and min(prices[0.15]) < 0.1 < max(prices[0.15])
    assert reached[0.0] > 1.0 and reached[0.15] < 0.4


def test_a_target_without_a_price_is_refused():
    with pytest.raises(ValueError, match="0 stays 0: start from a kl_coefficient above 0"):
        PPOConfig(kl_coefficient=0.0, kl_target_nats=6.0)


# Rewards


def test_scaled_rewards_by_hand():
    """(0, 0, 3, 1): mean 1, deviation sqrt(1.5): (0.183503, 0.183503, 2.632993, 1)."""
    mask = torch.tensor([[True, True], [True, True]])
    scaled = scale_rewards(torch.tensor([[0.0, 0.0], [3.0, 1.0]], dtype=torch.float64), mask)
    assert scaled.flatten().tolist() == pytest.approx([0.183503, 0.183503, 2.632993, 1.0], abs=1e-6)
    same = torch.full((2, 2), 0.3)
    torch.testing.assert_close(scale_rewards(same, mask), same)


def test_scaled_rewards_keep_their_mean_and_ignore_padding():
    mask = torch.arange(5) < torch.tensor([5, 2, 3])[:, None]
    reward = torch.where(mask, doubles(3, 5, seed=1) * 7 + 2, 99.0)
    scaled = scale_rewards(reward, mask)
    chosen = reward[mask].numpy()
    np.testing.assert_allclose(scaled[mask].numpy(), (chosen - chosen.mean()) / chosen.std() + chosen.mean(), rtol=1e-7)
    assert float(scaled[~mask].abs().max()) == 0


@pytest.mark.parametrize(("estimator", "price"), [("k1", math.log(2)), ("k2", 0.240227), ("k3", 0.193147)])
def test_token_rewards_by_each_estimate(estimator: str, price: float):
    logp, ref, mask = torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log(), torch.ones(1, 1, dtype=torch.bool)
    reward = token_rewards(torch.tensor([3.0]), logp, ref, mask, 2.0, estimator)
    assert float(reward) == pytest.approx(3 - 2 * price, abs=1e-5)


def test_without_a_clip_the_value_loss_is_the_plain_square():
    """V 1, V_old 0, G 0.5 where a clip of 0.2 would leave 1/2 max(0.25, 0.09); V 0, V_old 1, G 0: the clip would leave 0.32, now 0."""
    values = (torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.0]]))
    mask = torch.ones(1, 2, dtype=torch.bool)
    torch.testing.assert_close(value_loss(*values, mask, 0.2)[0], torch.tensor([[0.125, 0.32]]))
    torch.testing.assert_close(value_loss(*values, mask, 0.0)[0], torch.tensor([[0.125, 0.0]]))


# The stage

SAMPLING = SamplingConfig(temperature=0.8, max_tokens=6)
ROUND: Any = {"prompts_per_iteration": 4, "samples_per_prompt": 3, "sampling": SAMPLING, "micro_batch_tokens": 60}


@pytest.fixture
def make(base: Path, other: Path, reward_folder: Path, tables: Path, tokenizer: Any, run: Run) -> Callable[..., PPO]:
    prompts = read_table(tables / "prompts.parquet", Prompt)

    def make_one(kind: type[PPO] = PPO, **settings: Any) -> PPO:
        def score(prompts: Any, groups: Any) -> Scored:
            return Scored([[9.0 * g - 8.0 for g in range(len(group.completions))] for group in groups])

        algorithm = kind(load_policy(base, trainable=True), prompts, tokenizer, score, [0, 5, 10], PPOConfig(**ROUND | settings), 5, run)
        algorithm.reference, algorithm.critic = load_policy(other), load_scalar(reward_folder, trainable=True)
        return algorithm

    return make_one


def returns(algorithm: PPO) -> Tensor:
    algorithm.batches(0)
    assert algorithm.rollout is not None
    return algorithm.rollout.tensors["return"]


def test_scores_are_cut_before_the_kl_is_priced(make: Callable):
    """At lambda 1 returns are rewards to go: those of the first token are the score less the price of the whole completion."""
    plain, cut = (returns(make(gae_decay=1.0, reward_clip=clip))[:, 0] for clip in (0.0, 2.0))
    torch.testing.assert_close((plain - cut).view(4, 3), torch.tensor([-6.0, 0.0, 8.0]).expand(4, 3), rtol=0, atol=1e-4)


def test_scaled_rewards_make_returns_of_scaled_rewards(make: Callable):
    algorithm = make(gae_decay=1.0, whiten_rewards=True, kl_coefficient=0.3)
    found = returns(algorithm)
    tensors = algorithm.rollout.tensors
    ref = algorithm.per_token(algorithm.rollout, algorithm.logps(algorithm.reference))
    reward = scale_rewards(token_rewards(tensors["score"], tensors["old_logp"], ref, tensors["mask"], 0.3), tensors["mask"])
    torch.testing.assert_close(found, torch.where(tensors["mask"], reward.flip(-1).cumsum(-1).flip(-1), 0.0), rtol=1e-4, atol=1e-4)


def test_the_price_of_a_round_is_that_of_the_rounds_before(make: Callable):
    algorithm = make(kl_target_nats=0.1, kl_rate=1.0)
    algorithm.batches(0)
    metrics = algorithm.rollout.metrics
    assert metrics["ppo/kl_coefficient"] == 0.05 and metrics["train/kl_nats"] > 0.2
    assert algorithm.kl.coefficient == pytest.approx(0.05 * 1.2)
    again = make(kl_target_nats=0.1)
    again.load_state(*algorithm.state())
    assert again.kl.coefficient == algorithm.kl.coefficient


def test_the_entropy_bonus_is_the_mean_over_tokens_times_its_weight(make: Callable):
    losses, entropies = [], []
    for coefficient in (0.0, 0.5):
        algorithm = make(entropy_coefficient=coefficient)
        found = [algorithm.loss(batch) for batch in algorithm.batches(0)]
        losses.append(float(sum(loss.detach() for loss, _ in found)))
        entropies.append(merge(sums for _, sums in found)["train/entropy_nats"])
    assert losses[1] == pytest.approx(losses[0] - 0.5 * entropies[0], abs=1e-5)


# Demonstrations


def test_demonstrations_add_their_mean_token_loss(make: Callable, base: Path, tables: Path, run: Run):
    plain = make()
    with_some = make(PPOWithDemonstrations, ptx_coefficient=0.7, ptx_batch_size=5)
    shown = read_demonstrations(with_some.config, base, tables, run)
    with_some.demonstrations = Demonstrations(with_some.policy, shown, with_some.config, with_some.max_tokens, 5)
    batches = with_some.batches(0)
    extra = [batch for batch in batches if isinstance(batch, DemonstrationBatch)]
    assert len(extra) > 1 and sum(batch.packed.n_completions for batch in extra) == 5
    logps = torch.cat([token_logps(with_some.policy, batch.packed)[0].detach() for batch in extra])
    found = [with_some.loss(batch) for batch in batches]
    wanted = sum(float(plain.loss(batch)[0].detach()) for batch in plain.batches(0)) - 0.7 * float(logps.mean())
    assert float(sum(loss.detach() for loss, _ in found)) == pytest.approx(wanted, abs=1e-4)
    assert merge(sums for _, sums in found)["ppo/ptx_loss"] == pytest.approx(-float(logps.mean()), abs=1e-5)
    seen = [batch.packed.input_ids_N.tolist() for batch in with_some.batches(1) if isinstance(batch, DemonstrationBatch)]
    assert seen != [batch.packed.input_ids_N.tolist() for batch in extra], "another update sees others"


def test_demonstrations_keep_what_the_reward_would_forget(bandit: Path, new_run: Callable[..., Run], tmp_path: Path, monkeypatch: Any):
    """The reward wants the answer c, the demonstration shows b and its end."""
    (tmp_path / "bandit_wants_c.py").write_text("def grade(prompt, text):\n    return float(text == 'c')\n")
    monkeypatch.syspath_prepend(tmp_path)
    rewards = (RewardComponent(name="c", source="callable", callable="bandit_wants_c:grade"),)
    kept = []
    for coefficient in (0.0, 2.0):
        run = new_run(f"ptx {coefficient}")
        config = PPOConfig(**BANDIT | {"reward": "weighted"}, rewards=rewards, ptx_coefficient=coefficient, ptx_batch_size=2)
        ppo.train(config, policy=bandit, data=bandit, seed=0, run=run)
        kept.append(float(chances(run.out)[B]))
    assert kept[0] < 0.1 and kept[1] > 0.3


def test_data_without_demonstrations_is_refused(bandit: Path, tmp_path: Path, run: Run):
    with pytest.raises(ValueError, match="this data artifact has none: curate a source of them, or set it to 0"):
        read_demonstrations(PPOConfig(), bandit, tmp_path, run)


def test_documents_may_be_mixed_in_instead(bandit: Path, tmp_path: Path, run: Run):
    """A document is scored from its second token to its end-of-sequence token."""
    write_table(tmp_path / "documents.parquet", [Document("d", "s", "abc")])
    (group,) = read_demonstrations(PPOConfig(ptx_table="documents"), bandit, tmp_path, run)
    tokenizer = load_tokenizer(bandit)
    ids = tokenizer("abc", add_special_tokens=False)["input_ids"]
    assert [*group.prompt, *group.completions[0]] == [*ids, tokenizer.eos_token_id]
    assert len(group.prompt) == 1 and group.scored is None


# The optimum that is known

GRADES = [-0.5, 0.0, 1.0, 0.5, -1.0]


def test_the_optimum_is_the_reference_tilted_by_the_reward(bandit: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """pi_ref exp(r / beta) / Z over the five completions of one token."""
    grader = f"def grade(prompt, text):\n    return {GRADES}['abcd'.find(text) + 1 if text else 0]\n"
    (tmp_path / "bandit_grades_of_ppo.py").write_text(grader)
    monkeypatch.syspath_prepend(tmp_path)
    rewards = (RewardComponent(name="grade", source="callable", callable="bandit_grades_of_ppo:grade"),)
    slowing = OptimConfig(learning_rate=2e-2, schedule="linear", final_rate_share=0.01, warmup_share=0, beta2=0.95)
    shape = {"prompts_per_iteration": 1, "samples_per_prompt": 256, "iterations": 24, "optim": slowing, "value_optim": slowing}
    config = PPOConfig(**BANDIT | shape | {"reward": "weighted"}, rewards=rewards, kl_coefficient=0.7)
    ppo.train(config, policy=bandit, data=bandit, seed=0, run=run)
    wanted = (chances(bandit).log() + torch.tensor(GRADES) / 0.7).softmax(-1)
    assert float((wanted - chances(bandit)).abs().sum() / 2) > 0.2
    assert float((wanted - chances(run.out)).abs().sum() / 2) < 0.03
