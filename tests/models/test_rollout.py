"""On-policy rounds: what is sampled, scored and kept, and the losses of GRPO and PPO against their formulas, one completion at a time."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.packing import Group, pack
from data.records import Prompt
from data.tables import read_table
from data.templates import render_prompt
from models.advantages import gae, token_rewards, whiten
from models.configs.grpo import GRPOConfig
from models.configs.ppo import PPOConfig
from models.configs.sampling import SamplingConfig
from models.heads import load_scalar
from models.loading import load_policy
from models.logprobs import token_logps
from models.losses.sums import merge
from models.rewards import RewardModelReward, Scored, TextReward, reward_function
from models.run import Run, Stopped
from models.training.grpo import GRPO
from models.training.ppo import PPO
from models.training.rollout import OnPolicy, Rollout, check_finite

SAMPLING = SamplingConfig(temperature=0.8, max_tokens=6)
ROUND = {"prompts_per_iteration": 4, "samples_per_prompt": 3, "sampling": SAMPLING, "micro_batch_tokens": 40}
EOS = list(range(0, 259, 5))  # many tokens end a completion, so that lengths differ
CLOSE = {"rel": 1e-4, "abs": 1e-5}


class CountedReward:
    """Scores by length, and remembers what it was asked."""

    def __call__(self, prompts: list[Prompt], groups: list[Group]) -> Scored:
        self.prompts, self.groups = prompts, groups
        return Scored([[float(len(c)) + 0.1 * i for i, c in enumerate(group.completions)] for group in groups], failures=2)


@pytest.fixture
def prompts(tables: Path) -> list[Prompt]:
    return read_table(tables / "prompts.parquet", Prompt)


@pytest.fixture
def make(base: Path, other: Path, reward_folder: Path, prompts: list[Prompt], tokenizer: Any, run: Run) -> Callable[..., OnPolicy]:
    """Makes an algorithm whose reference is another policy than the one that learns."""

    def make_one(kind: type[OnPolicy], config: Any, seed: int = 5) -> OnPolicy:
        algorithm = kind(load_policy(base, trainable=True), prompts, tokenizer, CountedReward(), EOS, config, seed, run)  # type: ignore[arg-type]
        algorithm.reference = load_policy(other)  # type: ignore[attr-defined]
        if kind is PPO:
            algorithm.critic = load_scalar(reward_folder, trainable=True)  # type: ignore[attr-defined]
        return algorithm

    return make_one


def alone(model: Any, rollout: Rollout) -> list[Tensor]:
    """Log-probabilities of each completion of a round, each on its own."""
    every = [(group.prompt, completion) for group in rollout.groups for completion in group.completions]
    return [token_logps(model, pack([Group(prompt, [c])]), SAMPLING.temperature)[0] for prompt, c in every]


def rows(values_CT: Tensor, rollout: Rollout) -> list[Tensor]:
    """A padded tensor without its padding."""
    return [row[mask] for row, mask in zip(values_CT, rollout.tensors["mask"], strict=True)]


# A round


def test_a_round_by_hand(make: Callable, prompts: list[Prompt], tokenizer: Any):
    algorithm = make(GRPO, GRPOConfig(**ROUND, missing_eos_penalty=10.0))
    algorithm.batches(0)
    rollout, reward = algorithm.rollout, algorithm.reward
    assert len(rollout.groups) == 4 and {len(group.completions) for group in rollout.groups} == {3}
    assert [group.prompt for group in rollout.groups] == [render_prompt(tokenizer, p.messages) for p in reward.prompts]
    lengths = [len(c) for group in rollout.groups for c in group.completions]
    finished = [c[-1] in EOS for group in rollout.groups for c in group.completions]
    assert len(set(lengths)) > 2 and 0 < sum(finished) < 12
    bare = [score for row in reward(prompts, rollout.groups).reward_PG for score in row]
    wanted = [score - 10.0 * (not ended) for score, ended in zip(bare, finished, strict=True)]
    assert rollout.tensors["score"].tolist() == pytest.approx(wanted), "cut-off completions pay"
    assert rollout.tensors["mask"].sum(-1).tolist() == lengths
    assert rollout.metrics["train/reward"] == pytest.approx(sum(bare) / 12), "the reward that is shown has no penalty in it"
    assert rollout.metrics["train/completion_tokens"] == pytest.approx(sum(lengths) / 12)
    assert rollout.metrics["train/finished"] == pytest.approx(sum(finished) / 12)
    assert rollout.metrics["train/reward_failures"] == 2


def test_minibatches_see_every_prompt_once_an_epoch(make: Callable):
    algorithm = make(GRPO, GRPOConfig(**ROUND, epochs=2, minibatches=2))
    seen = []
    for update in range(4):
        batches = algorithm.batches(update)
        seen.append(sorted(int(row) for batch in batches for row in batch.rows_C))
        for batch in batches:
            assert batch.sequences == 6 == sum(len(b.rows_C) for b in batches)
            assert batch.tokens == sum(len(b.packed.target_S) for b in batches)
            mask_CT = algorithm.pick(batch, "mask")[0]
            assert mask_CT.sum(-1).tolist() == batch.packed.lengths_C().tolist(), "the rows are those of the packed completions"
    for first, second in (seen[:2], seen[2:]):
        assert sorted(first + second) == list(range(12)) and len(first) == 6
    assert seen[:2] != seen[2:], "epochs are shuffled apart"


def test_rounds_and_seeds_sample_anew(make: Callable):
    """Of the same prompt: a round is a function of its number and of the seed."""

    def completions(seed: int, update: int) -> list[Any]:
        algorithm = make(GRPO, GRPOConfig(**ROUND | {"prompts_per_iteration": 1}), seed=seed)
        algorithm.prompts, algorithm.prompt_ids = algorithm.prompts[:1], algorithm.prompt_ids[:1]
        algorithm.batches(update)
        return [group.completions for group in algorithm.rollout.groups]

    assert completions(5, 0) == completions(5, 0)
    assert completions(5, 0) != completions(5, 1) and completions(5, 0) != completions(6, 0)


def test_a_round_survives_as_json_and_tensors(make: Callable):
    import json

    config = PPOConfig(**ROUND, minibatches=2)
    algorithm, again = make(PPO, config), make(PPO, config)
    algorithm.batches(0)
    tensors, state = algorithm.state()
    again.load_state({name: t.clone() for name, t in tensors.items()}, json.loads(json.dumps(state)))
    for own, wanted in zip(again.batches(1), algorithm.batches(1), strict=True):
        assert torch.equal(own.packed.input_ids_N, wanted.packed.input_ids_N) and torch.equal(own.rows_C, wanted.rows_C)
        assert float(again.loss(own)[0].detach()) == float(algorithm.loss(wanted)[0].detach())
    assert make(PPO, config).state() == ({}, {"kl_coefficient": config.kl_coefficient})


def test_sigterm_stops_in_the_middle_of_sampling(make: Callable, run: Run):
    algorithm = make(GRPO, GRPOConfig(**ROUND))
    run._asked_to_stop = True
    with pytest.raises(Stopped):
        algorithm.batches(0)
    assert algorithm.state() == ({}, {}) and not hasattr(algorithm.reward, "groups"), "nothing was scored"


# GRPO


@pytest.mark.parametrize("minibatches", [1, 2])
def test_grpo_is_its_formula(make: Callable, minibatches: int):
    """1/C sum_i 1/|o_i| sum_t {-min[rho A, clip(rho) A] + beta k3}, after the policy has moved from where it sampled."""
    config = GRPOConfig(**ROUND, minibatches=minibatches, kl_coefficient=0.3, clip=0.1)
    algorithm = make(GRPO, config)
    batches = algorithm.batches(0)
    rollout = algorithm.rollout
    old = [logp.detach() for logp in alone(algorithm.policy, rollout)]
    with torch.no_grad():
        algorithm.policy.get_output_embeddings().weight.mul_(1.1)
    new = [logp.detach() for logp in alone(algorithm.policy, rollout)]
    old = new if minibatches == 1 else old  # the only update of a round is at the policy that sampled
    ref = [logp.detach() for logp in alone(algorithm.reference, rollout)]
    score_PG = rollout.tensors["score"].view(4, 3)
    advantages = ((score_PG - score_PG.mean(-1, keepdim=True)) / score_PG.std(-1, correction=0, keepdim=True)).flatten().tolist()

    def of_completion(i: int) -> float:
        rho = (new[i] - old[i]).exp()
        gain = torch.minimum(rho * advantages[i], rho.clamp(0.9, 1.1) * advantages[i])
        k3 = (ref[i] - new[i]).exp() - (ref[i] - new[i]) - 1
        return float((-gain + 0.3 * k3).mean())

    chosen = [int(row) for batch in batches for row in batch.rows_C]
    wanted = sum(map(of_completion, chosen)) / len(chosen)
    found = [algorithm.loss(batch) for batch in batches]
    assert len(found) > 1, "several micro-batches"
    assert float(sum(loss.detach() for loss, _ in found)) == pytest.approx(wanted, **CLOSE)
    metrics = merge(sums for _, sums in found)
    assert metrics["train/loss"] == pytest.approx(wanted, **CLOSE)
    assert metrics["train/kl_nats"] == pytest.approx(sum(float((new[i] - ref[i]).sum()) for i in chosen) / len(chosen), **CLOSE)
    assert (metrics["train/clip_fraction"] > 0) == (minibatches == 2)


def test_grpo_without_kl_runs_no_reference(make: Callable):
    algorithm = make(GRPO, GRPOConfig(**ROUND, kl_coefficient=0.0))
    algorithm.reference = None
    _, sums = algorithm.loss(algorithm.batches(0)[0])
    assert "ref_logp" not in algorithm.rollout.tensors and "train/kl_nats" not in sums


def test_groups_without_spread_are_counted(make: Callable):
    algorithm = make(GRPO, GRPOConfig(**ROUND))
    algorithm.reward = lambda prompts, groups: Scored([[0.1] * 3] * 3 + [[0.0, 1.0, 0.0]])
    algorithm.batches(0)
    assert algorithm.rollout.metrics["grpo/zero_spread_groups"] == 3.0
    assert algorithm.rollout.tensors["advantage"][:9].tolist() == [0.0] * 9


# PPO


def test_ppo_is_its_formula(make: Callable):
    """Advantages from token rewards with the KL inside, and the loss a mean over tokens of the whole update."""
    shape = {"kl_coefficient": 0.2, "discount": 0.9, "gae_decay": 0.8, "value_coefficient": 0.7, "clip": 0.1, "value_clip": 0.05}
    algorithm = make(PPO, PPOConfig(**ROUND, minibatches=2, **shape))
    batches = algorithm.batches(0)
    rollout = algorithm.rollout
    mask_CT, score_C = rollout.tensors["mask"], rollout.tensors["score"]

    def padded(values: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence([v.detach() for v in values], batch_first=True)

    def values() -> Tensor:
        every = [pack([Group(g.prompt, [c])]) for g in rollout.groups for c in g.completions]
        return padded([algorithm.critic.before_tokens(packed) for packed in every])

    old_CT, ref_CT, value_CT = padded(alone(algorithm.policy, rollout)), padded(alone(algorithm.reference, rollout)), values()
    reward_CT = token_rewards(score_C, old_CT, ref_CT, mask_CT, 0.2)
    advantage_CT, return_CT = gae(reward_CT, value_CT, mask_CT, discount=0.9, decay=0.8)
    advantage_CT = whiten(advantage_CT, mask_CT)
    for name, wanted in {"old_logp": old_CT, "old_value": value_CT, "return": return_CT, "advantage": advantage_CT}.items():
        torch.testing.assert_close(rollout.tensors[name], wanted, rtol=1e-3, atol=1e-4)
    assert rollout.metrics["train/kl_nats"] == pytest.approx(float((old_CT - ref_CT).sum(-1).mean()), **CLOSE)
    unexplained = (return_CT - value_CT)[mask_CT].var(correction=0) / return_CT[mask_CT].var(correction=0)
    assert rollout.metrics["ppo/explained_variance"] == pytest.approx(1 - float(unexplained), rel=1e-3)

    with torch.no_grad():
        algorithm.policy.get_output_embeddings().weight.mul_(1.1)
        algorithm.critic.head.weight.mul_(1.3)
    rho_CT, now_CT = (padded(alone(algorithm.policy, rollout)) - old_CT).exp(), values()
    surrogate = -torch.minimum(rho_CT * advantage_CT, rho_CT.clamp(0.9, 1.1) * advantage_CT)
    near_CT = value_CT + (now_CT - value_CT).clamp(-0.05, 0.05)
    error = 0.5 * torch.maximum((now_CT - return_CT) ** 2, (near_CT - return_CT) ** 2)
    rows_C = torch.cat([batch.rows_C for batch in batches])
    wanted = float((surrogate + 0.7 * error)[rows_C][mask_CT[rows_C]].mean())
    found = [algorithm.loss(batch) for batch in batches]
    assert len(found) > 1
    assert float(sum(loss.detach() for loss, _ in found)) == pytest.approx(wanted, rel=1e-3)
    policy_loss = float(surrogate[rows_C][mask_CT[rows_C]].mean())
    metrics = merge(sums for _, sums in found)
    assert metrics["train/loss"] == pytest.approx(policy_loss, rel=1e-3, abs=1e-4) and metrics["train/clip_fraction"] > 0


def test_the_first_update_of_a_round_is_at_the_policy_that_sampled(make: Callable):
    algorithm = make(PPO, PPOConfig(**ROUND))
    metrics = merge(algorithm.loss(batch)[1] for batch in algorithm.batches(0))
    assert metrics["train/ratio"] == pytest.approx(1, abs=1e-5) and metrics["train/clip_fraction"] == 0
    assert metrics["train/kl_old_nats"] == pytest.approx(0, abs=1e-6)


def test_a_round_of_one_update_takes_the_samplers_numbers_and_saves_a_pass(make: Callable, monkeypatch: pytest.MonkeyPatch):
    """A round of several recomputes them: there the rounding of the training pass has to fall out of the ratios."""
    for epochs, passes in ((1, ["reference"]), (2, ["policy", "reference"])):
        algorithm = make(PPO, PPOConfig(**(ROUND | {"epochs": epochs, "minibatches": 1})))
        seen: list[str] = []
        names = {id(algorithm.policy): "policy", id(algorithm.reference): "reference"}
        logps = algorithm.logps
        monkeypatch.setattr(algorithm, "logps", lambda m, seen=seen, names=names, of=logps: seen.append(names[id(m)]) or of(m))
        batches = algorithm.batches(0)
        tensors = algorithm.rollout.tensors
        assert seen == passes
        assert torch.equal(tensors["old_logp"], tensors["sampler_logp"]) == (epochs == 1)
        assert tensors["old_logp"].data_ptr() != tensors["sampler_logp"].data_ptr(), "a checkpoint keeps both"
        torch.testing.assert_close(tensors["old_logp"], tensors["sampler_logp"], rtol=0, atol=1e-5)
        tensors["old_logp"] += 0.1  # what a sampler of another rounding would say, many times over
        metrics = merge(algorithm.loss(batch)[1] for batch in batches)
        assert metrics["train/ratio"] == pytest.approx(1.0 if epochs == 1 else math.exp(-0.1), abs=1e-5)


def test_a_rollout_that_is_not_finite_is_refused_by_name(make: Callable):
    algorithm = make(PPO, PPOConfig(**ROUND))
    algorithm.batches(0)
    check_finite(algorithm.rollout)
    algorithm.rollout.tensors["old_logp"][0, 0] = math.nan
    algorithm.rollout.tensors["score"][0] = math.inf
    with pytest.raises(ValueError, match="score, old_logp of a rollout is not finite: the policy has diverged"):
        check_finite(algorithm.rollout)


@pytest.mark.parametrize("kind", [PPO, GRPO])
def test_log_probabilities_that_are_not_finite_stop_before_any_update(make: Callable, kind: type[OnPolicy]):
    algorithm = make(kind, {PPO: PPOConfig, GRPO: GRPOConfig}[kind](**ROUND))
    with torch.no_grad():
        algorithm.reference.get_output_embeddings().weight[3].fill_(math.nan)
    with pytest.raises(ValueError, match="ref_logp of a rollout" if kind is GRPO else "advantage of a rollout"):
        algorithm.batches(0)


# Rewards


def test_the_verifier_scores_texts_and_counts_its_failures(tokenizer: Any, prompts: list[Prompt]):
    broken = Prompt("x", "toy", prompts[0].messages, "no number", "number")
    exact = Prompt("e", "toy", prompts[0].messages, "1", "exact")
    texts = [["it is 1", "it is 2", "1"], ["1", "2", "3"], ["1<|im_end|>", "1.0", "2"]]
    groups = [Group([1], [tokenizer(text)["input_ids"] for text in row]) for row in texts]
    scored = TextReward(tokenizer)([prompts[0], broken, exact], groups)
    assert scored.reward_PG == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]] and scored.failures == 3


def test_a_reward_that_is_not_finite_becomes_the_lowest_and_is_counted(monkeypatch: pytest.MonkeyPatch):
    reward = RewardModelReward(model=None)  # type: ignore[arg-type]
    monkeypatch.setattr("models.rewards.score_groups", lambda *_: [[2.0, math.nan], [-1.0, -math.inf]])
    assert reward([], []) == Scored([[2.0, -1.0], [-1.0, -1.0]], failures=2)
    monkeypatch.setattr("models.rewards.score_groups", lambda *_: [[math.nan]])
    with pytest.raises(ValueError, match="scores no completion with a finite number"):
        reward([], [])


def test_a_reward_model_that_is_not_there_is_an_error(tokenizer: Any):
    with pytest.raises(ValueError, match="reward = reward_model needs the artifact of a reward_model stage"):
        reward_function("reward_model", tokenizer, None, torch.device("cpu"))
