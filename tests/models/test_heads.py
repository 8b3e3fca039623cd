"""Reward models and critics: what a scalar head reads, how it is saved, and that an untrained one is never taken for a trained one."""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.groups import pair_group
from data.packing import Group, pack
from models.configs.reward_model import RewardModelConfig
from models.heads import HEAD_FILE, RewardRule, ScalarModel, load_scalar, new_scalar, save_scalar
from models.losses.reward_model import bradley_terry_loss
from models.rewards import score_groups
from models.run import Run
from models.training import reward_model
from models.training.critic import new_critic

GROUPS = [Group([5, 6, 7], [[8, 9], [10]]), Group([11], [[12, 13, 14]])]


def read_alone(model: ScalarModel, ids: list[int]) -> torch.Tensor:
    """The head on the last hidden state of one plain sequence."""
    hidden = model.backbone(torch.tensor([ids])).last_hidden_state[0]
    return (hidden @ model.head.weight[0] + model.head.bias)[-1]


@pytest.fixture
def model(reward_folder: Path) -> ScalarModel:
    return load_scalar(reward_folder)


# What is read


@torch.no_grad()
def test_the_score_is_read_at_the_last_token_of_each_completion(model: ScalarModel):
    wanted = [read_alone(model, [*group.prompt, *completion]) for group in GROUPS for completion in group.completions]
    torch.testing.assert_close(model.at_ends(pack(GROUPS)), torch.stack(wanted), rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_value_is_that_of_the_state_before_each_token(model: ScalarModel):
    wanted = [
        read_alone(model, [*group.prompt, *completion[:t]])
        for group in GROUPS
        for completion in group.completions
        for t in range(len(completion))
    ]
    torch.testing.assert_close(model.before_tokens(pack(GROUPS)), torch.stack(wanted), rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_reward_is_the_score_under_the_rule(model: ScalarModel):
    assert model.rule == RewardRule(mean=0.3, deviation=2.0, trained_pairs=4)
    packed = pack(GROUPS)
    torch.testing.assert_close(model.reward(packed), (model.at_ends(packed) - 0.3) / 2.0)


@pytest.mark.parametrize("max_tokens", [1, 7, 100])
def test_groups_are_scored_in_their_order_whatever_the_micro_batch(model: ScalarModel, max_tokens: int):
    rows = score_groups(model, GROUPS, max_tokens)
    assert [len(row) for row in rows] == [2, 1]
    flat = torch.tensor([score for row in rows for score in row])
    torch.testing.assert_close(flat, model.reward(pack(GROUPS)), rtol=0, atol=1e-5)


def test_a_constant_on_all_rewards_changes_no_loss(model: ScalarModel):
    pairs = pack([Group([5], [[6, 7], [8]]), Group([9, 10], [[11], [12]])])

    def loss() -> float:
        score_P2 = model.at_ends(pairs).view(-1, 2)
        return float(bradley_terry_loss(score_P2[:, 0], score_P2[:, 1], torch.zeros(2), 2)[0])

    with torch.no_grad():
        before = loss()
        model.head.bias.add_(3.0)
        assert loss() == pytest.approx(before, abs=1e-5)


# A new head, and a critic made of a reward model


def test_a_new_head_is_small_seeded_and_float32(base: Path, policy: PreTrainedModel, tmp_path: Path, tokenizer: PreTrainedTokenizerBase):
    one, same, other = (new_scalar(base, seed) for seed in (1, 1, 2))
    assert torch.equal(one.head.weight, same.head.weight) and not torch.equal(one.head.weight, other.head.weight)
    assert float(one.head.bias.detach()) == 0 and 0 < float(one.head.weight.detach().norm()) < 3
    assert all(p.requires_grad for p in one.parameters())
    policy.bfloat16().save_pretrained(tmp_path)
    half = new_scalar(tmp_path, 1)
    assert half.backbone.dtype == torch.bfloat16 and half.head.weight.dtype == torch.float32
    assert half.at_ends(pack(GROUPS)).dtype == torch.float32


@torch.no_grad()
def test_a_critic_starts_at_the_mean_reward_or_as_the_normalised_reward(reward_folder: Path, base: Path, model: ScalarModel):
    """Its backbone is the reward model's; rewards are normalised to mean 0."""
    zero, same = (new_critic("reward_model", head, reward_folder, base, 0, torch.device("cpu")) for head in ("zero", "reward_model"))
    assert zero.before_tokens(pack(GROUPS)).abs().max() == 0
    for (name, own), (_, wanted) in zip(zero.backbone.named_parameters(), model.backbone.named_parameters(), strict=True):
        assert torch.equal(own, wanted) and own.requires_grad, name
    torch.testing.assert_close(same.at_ends(pack(GROUPS)), model.reward(pack(GROUPS)), rtol=0, atol=1e-5)
    assert zero.head.weight.requires_grad and same.head.weight.requires_grad


@torch.no_grad()
def test_against_a_verifier_the_critic_starts_from_the_policy(reward_folder: Path, base: Path):
    critic = new_critic("verifier", "zero", reward_folder, base, 0, torch.device("cpu"))
    torch.testing.assert_close(critic.at_ends(pack(GROUPS)), new_scalar(base, 0).at_ends(pack(GROUPS)))


# On disk


def test_a_reward_model_comes_back_bit_for_bit(reward_folder: Path, model: ScalarModel, tmp_path: Path):
    save_scalar(model, reward_folder, tmp_path)
    again = load_scalar(tmp_path)
    assert again.rule == model.rule
    for (name, own), (_, wanted) in zip(again.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(own, wanted), name
    assert not any(p.requires_grad for p in again.parameters())
    assert all(p.requires_grad for p in load_scalar(tmp_path, trainable=True).parameters())
    names = {path.name for path in tmp_path.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json", "generation_config.json"} <= names
    assert all(path.suffix in (".safetensors", ".json", ".jinja") for path in tmp_path.iterdir()), "no pickle"


def test_a_policy_is_no_reward_model(base: Path):
    with pytest.raises(ValueError, match=rf"has no {HEAD_FILE}: it is not a reward model\. Give the artifact of the reward_model stage"):
        load_scalar(base)


# Training


def test_training_makes_rewards_of_mean_0_and_deviation_1(base: Path, tables: Path, run: Run, journal: Callable, tokenizer: Any):
    from data.records import Preference
    from data.tables import read_table

    config = RewardModelConfig(epochs=8, batch_size=5, micro_batch_tokens=100)
    config = config.model_copy(update={"optim": config.optim.model_copy(update={"learning_rate": 1e-2})})
    meta = reward_model.train(config, policy=base, preferences=tables, seed=0, run=run)
    trained = load_scalar(run.out)
    pairs = read_table(tables / "preferences.parquet", Preference)
    rows = torch.tensor(score_groups(trained, [pair_group(tokenizer, pair) for pair in pairs], 100))
    assert float(rows.mean()) == pytest.approx(0, abs=1e-4) and float(rows.std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert (rows[:, 0] > rows[:, 1]).all(), "it has learned what is chosen"
    assert asdict(trained.rule)["trained_pairs"] == len(pairs)

    lines = journal(run)
    assert lines[0][1]["train/loss"] > 3 * lines[-2][1]["train/loss"]
    step, held_out = lines[-1]
    assert step == meta["updates"] == 16
    # Three of three right: Wilson's interval is n / (n + z^2) to 1.
    low = 3 / (3 + 1.959964**2)
    wanted = {
        "eval/accuracy": 1.0,
        "eval/accuracy_low": low,
        "eval/accuracy_high": 1.0,
        "eval/pairs": 3,
        "eval/accuracy_chosen_longer": 1.0,
    }
    assert {name: held_out[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    assert meta["accuracy"] == 1.0 and math.isclose(meta["accuracy_low"], low, abs_tol=1e-6)
