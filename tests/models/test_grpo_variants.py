"""The variants of GRPO: each against its formula in NumPy, what bounds the ratio, what the loss is divided by, and what they learn."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.packing import Group, pack
from data.records import Prompt
from data.tables import read_table
from models.advantages import group_advantages, overlong
from models.configs.grpo import GRPOConfig
from models.configs.optimisation import OptimConfig
from models.configs.rewards import RewardComponent
from models.configs.sampling import SamplingConfig
from models.loading import load_policy
from models.logprobs import token_logps
from models.losses.grpo import VARIANTS, Sizes, sequence_surrogate, truncated_importance, weighted_likelihood
from models.losses.kl import KL_ESTIMATORS, k1, k2, k3
from models.losses.policy_gradient import clipped_surrogate
from models.losses.sums import merge
from models.rewards import Scored
from models.run import Run
from models.training import grpo
from models.training.grpo import GRPO

LENGTHS = [4, 1, 3]
MASK = torch.arange(4) < torch.tensor(LENGTHS)[:, None]
SIZES = Sizes(sequences=3, tokens=8, round_tokens=10.0, longest=6)
CLIP, HIGH = 0.1, 0.25
A, B = 1, 2  # token ids of the letters


def doubles(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of(name: str, logp_CT: Tensor, old_logp_CT: Tensor, advantage_C: Tensor, mask_CT: Tensor = MASK) -> Tensor:
    variant = VARIANTS[name]
    advantage_CT = advantage_C[:, None].expand_as(logp_CT)
    loss_CT, _ = variant.surrogate(logp_CT, old_logp_CT, advantage_CT, mask_CT, CLIP, HIGH)
    return variant.reduce(loss_CT, mask_CT, SIZES)


def clipped(ratio: Any, advantage: float) -> Any:
    return np.minimum(ratio * advantage, np.clip(ratio, 1 - CLIP, 1 + HIGH) * advantage)


def by_definition(name: str, logp: np.ndarray, old: np.ndarray, advantage: np.ndarray) -> float:
    """Completion by completion, as the papers write it."""
    total = 0.0
    for c, length in enumerate(LENGTHS):
        now, gap = logp[c, :length], logp[c, :length] - old[c, :length]
        if name == "gspo":
            gain = clipped(math.exp(gap.mean()), advantage[c])
            total -= gain / 3
            continue
        gain = np.minimum(np.exp(gap), 1 + HIGH) * advantage[c] * now if name == "cispo" else clipped(np.exp(gap), advantage[c])
        divisor = {"grpo": 3 * length, "dr_grpo": 3 * 6, "dapo": 10, "bnpo": 8, "cispo": 10}[name]
        total -= gain.sum() / divisor
    return float(total)


@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_is_its_formula_whatever_the_micro_batches(name: str):
    logp, old, advantage = doubles(3, 4, seed=1), doubles(3, 4, seed=2), doubles(3, seed=3)
    wanted = by_definition(name, logp.numpy(), old.numpy(), advantage.numpy())
    assert float(loss_of(name, logp, old, advantage)) == pytest.approx(wanted, abs=1e-12)
    cut = [loss_of(name, logp[rows], old[rows], advantage[rows], MASK[rows]) for rows in ([0], [1, 2])]
    assert float(sum(cut)) == pytest.approx(wanted, abs=1e-12)
    order = [2, 0, 1]
    assert float(loss_of(name, logp[order], old[order], advantage[order], MASK[order])) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "cispo"])
def test_gradients(name: str):
    logp, old, advantage = doubles(3, 4, seed=1).mul(0.1).requires_grad_(), doubles(3, 4, seed=2) * 0.1, doubles(3, seed=3)
    assert torch.autograd.gradcheck(lambda x: loss_of(name, x, old, advantage), logp)


def test_cispo_by_hand_and_its_gradient_where_the_ratio_is_cut():
    """rho 2 cut to 1.5, logp -1, A 1: -1.5 * -1 = 1.5; the gradient is -1.5, where a clipped surrogate has none."""
    logp = torch.tensor([[-1.0]], requires_grad=True)
    old, one, mask = logp.detach() - math.log(2), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
    loss, sums = weighted_likelihood(logp, old, one, mask, 0.2, 0.5)
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(1.5) and float(logp.grad) == pytest.approx(-1.5)  # type: ignore[arg-type]
    assert merge([sums])["train/clip_fraction"] == 1
    assert (
        not clipped_surrogate(logp, old, one, mask, 0.2, 0.5)[0].requires_grad
        or not torch.autograd.grad(clipped_surrogate(logp, old, one, mask, 0.2, 0.5)[0].sum(), logp)[0].any()
    )


def test_gspo_by_hand():
    """Log-ratios (0.3, 0.1): s = e^0.2 = 1.2214, clipped to 1.1 at both tokens."""
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss, sums = sequence_surrogate(torch.tensor([[0.3, 0.1]]), torch.zeros(1, 2), torch.ones(1, 2), mask, 0.1)
    torch.testing.assert_close(loss, torch.tensor([[-1.1, -1.1]]))
    assert merge([sums])["train/ratio"] == pytest.approx(math.exp(0.2))


def test_clip_higher_lets_a_ratio_rise_further():
    """rho 1.25, A 1: eps 0.2 alone clips to 1.2; eps_high 0.28 leaves it. Below, both clip at 0.8."""
    logp, ones, mask = torch.tensor([[1.25, 0.5]]).log(), torch.tensor([[1.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool)
    for clip_high, wanted in ((0.0, [-1.2, 0.8]), (0.28, [-1.25, 0.8])):
        loss, _ = clipped_surrogate(logp, torch.zeros(1, 2), ones, mask, 0.2, clip_high)
        torch.testing.assert_close(loss, torch.tensor([wanted]))


def test_dr_grpo_does_not_divide_by_the_deviation():
    advantage, flat = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 3.0], [2.0, 2.0, 2.0, 2.0]]), by_deviation=False)
    assert advantage.tolist() == [[0.0, -1.0, -1.0, 2.0], [0.0] * 4] and flat.tolist() == [False, True]
    assert [name for name, variant in VARIANTS.items() if not variant.by_deviation] == ["dr_grpo"]


def test_overlong_punishment_by_hand():
    assert overlong(torch.tensor([15, 18, 20]), 20, 5).tolist() == pytest.approx([0.0, 0.6, 1.0])
    assert overlong(torch.tensor([1, 20]), 20, 0).tolist() == [0.0, 0.0]


def test_truncated_importance_by_hand():
    """e^0.5 = 1.6487, and e^2 cut to 2; 1 outside the mask."""
    mask = torch.tensor([[True, True, False]])
    weight, sums = truncated_importance(torch.tensor([[-1.0, -1.0, 5.0]]), torch.tensor([[-1.5, -3.0, 0.0]]), mask, 2.0)
    torch.testing.assert_close(weight, torch.tensor([[math.exp(0.5), 2.0, 1.0]]))
    assert merge([sums]) == pytest.approx({"grpo/importance_weight": (math.exp(0.5) + 2) / 2, "grpo/sampler_gap_nats": 1.25})


# KL


def test_kl_estimates_by_hand():
    logp, ref = torch.tensor(0.5).log(), torch.tensor(0.25).log()
    found = [float(estimate(logp, ref)) for estimate in (k1, k2, k3)]
    assert found == pytest.approx([math.log(2), 0.5 * math.log(2) ** 2, 0.5 - math.log(0.5) - 1])


def test_what_the_estimates_and_their_gradients_are_worth_by_enumeration():
    """k1 and k3 are unbiased; differentiated in the loss k1 gives nothing and k2 the gradient of the KL; that is never below 0."""
    logits, ref = doubles(4, seed=1).requires_grad_(), doubles(4, seed=2).log_softmax(-1)
    logp = logits.log_softmax(-1)
    probability = logp.exp().detach()
    exact = (logp.exp() * (logp - ref)).sum()
    wanted = torch.autograd.grad(exact, logits, retain_graph=True)[0]
    means, gradients = {}, {}
    for name, estimate in KL_ESTIMATORS.items():
        expected = (probability * estimate(logp, ref)).sum()  # the samples are not differentiated
        means[name], gradients[name] = float(expected.detach()), torch.autograd.grad(expected, logits, retain_graph=True)[0]
    assert means["k1"] == pytest.approx(float(exact.detach())) == pytest.approx(means["k3"]) and float(exact.detach()) > 0
    assert all(float(estimate(ref, ref).abs().max()) == 0 for estimate in KL_ESTIMATORS.values())
    assert float(gradients["k1"].abs().max()) < 1e-12
    torch.testing.assert_close(gradients["k2"], wanted)
    assert float(k2(logp, ref).detach().min()) >= 0 and float(k3(logp, ref).detach().min()) >= 0


# The stage

SAMPLING = SamplingConfig(temperature=0.8, max_tokens=6)
ROUND: Any = {"prompts_per_iteration": 4, "samples_per_prompt": 3, "sampling": SAMPLING, "micro_batch_tokens": 40}
EOS = list(range(0, 259, 5))


class Spread:
    """Scores with spread for some calls and prompts, and counts the calls."""

    def __init__(self, flat: list[list[bool]]) -> None:
        self.flat, self.asked = flat, []

    def __call__(self, prompts: Sequence[Prompt], groups: Sequence[Group]) -> Scored:
        flat = self.flat[min(len(self.asked), len(self.flat) - 1)][: len(groups)]
        self.asked.append(len(groups))
        return Scored([[0.0, 0.0, 0.0] if same else [0.0, 1.0, 0.5] for same in flat], failures=1)


@pytest.fixture
def make(base: Path, other: Path, tables: Path, tokenizer: Any, run: Run) -> Callable[..., GRPO]:
    prompts = read_table(tables / "prompts.parquet", Prompt)

    def make_one(reward: Any = None, **settings: Any) -> GRPO:
        config = GRPOConfig(**ROUND | settings)
        algorithm = GRPO(load_policy(base, trainable=True), prompts, tokenizer, reward or Spread([[False] * 4]), EOS, config, 5, run)
        algorithm.reference = load_policy(other) if config.kl_coefficient else None
        return algorithm

    return make_one


def test_groups_without_spread_are_replaced_while_draws_are_left(make: Callable):
    reward = Spread([[True, False, True, True], [True, False, True], [True, True]])
    algorithm = make(reward, dynamic_sampling_rounds=2, kl_coefficient=0.0)
    algorithm.batches(0)
    assert reward.asked == [4, 3, 2], "only what is missing is drawn"
    metrics = algorithm.rollout.metrics
    assert metrics["grpo/resampled_prompts"] == 5 and metrics["grpo/zero_spread_groups"] == 2 and metrics["train/reward_failures"] == 3
    assert len(algorithm.rollout.groups) == 4 and len(algorithm.rollout.tensors["score"]) == 12


def test_a_prompt_that_is_drawn_again_is_sampled_anew(make: Callable):
    algorithm = make(
        Spread([[True, True], [True, True], [False] * 4]), dynamic_sampling_rounds=2, kl_coefficient=0.0, prompts_per_iteration=2
    )
    algorithm.prompts, algorithm.prompt_ids = algorithm.prompts[:1], algorithm.prompt_ids[:1]
    drawn = []
    draw = algorithm.draw
    algorithm.draw = lambda *args: drawn.append(draw(*args)) or drawn[-1]
    algorithm.batches(0)
    assert len({str([group.completions for group in part.groups]) for part in drawn}) == 3


def test_no_draw_is_wasted_where_all_groups_have_spread(make: Callable):
    reward = Spread([[True, False, False, False], [False]])
    algorithm = make(reward, dynamic_sampling_rounds=9, kl_coefficient=0.0)
    algorithm.batches(0)
    assert reward.asked == [4, 1] and algorithm.rollout.metrics["grpo/zero_spread_groups"] == 0
    again = make(Spread([[True, False, False, False], [False]]), dynamic_sampling_rounds=9, kl_coefficient=0.0)
    again.batches(0)
    assert [g.completions for g in again.rollout.groups] == [g.completions for g in algorithm.rollout.groups]


def test_the_kl_can_be_part_of_the_reward(make: Callable):
    algorithm = make(kl_in="reward", kl_estimator="k1", kl_coefficient=0.3)
    batch = algorithm.batches(0)[0]
    tensors = algorithm.rollout.tensors
    price = 0.3 * (tensors["old_logp"] - tensors["ref_logp"]).sum(-1)
    wanted, _ = group_advantages((tensors["score"] - price).view(4, 3))
    torch.testing.assert_close(tensors["advantage"], wanted.flatten())
    assert "train/kl_token_nats" not in algorithm.loss(batch)[1] and algorithm.rollout.metrics["train/kl_nats"] != 0


def test_length_is_punished_before_the_longest(make: Callable):
    algorithm = make(kl_coefficient=0.0, overlong_buffer_tokens=4, overlong_penalty=2.0)
    algorithm.batches(0)
    tensors = algorithm.rollout.tensors
    length_C = tensors["mask"].sum(-1)
    wanted, _ = group_advantages((tensors["score"] - 2 * ((length_C - 2) / 4).clamp(0, 1)).view(4, 3))
    assert length_C.unique().numel() > 1
    torch.testing.assert_close(tensors["advantage"], wanted.flatten())


def test_the_sampler_and_the_trainer_are_one_function(make: Callable):
    """The log-probabilities of the sampler, at the temperature 0.8, are the trainer's: weights of 1, and the same loss with the cap."""
    plain, capped = make(kl_coefficient=0.0), make(kl_coefficient=0.0, importance_cap=2.0)
    batches = [algorithm.batches(0) for algorithm in (plain, capped)]
    wanted = sum(float(plain.loss(batch)[0].detach()) for batch in batches[0])
    found = [capped.loss(batch) for batch in batches[1]]
    metrics = merge(sums for _, sums in found)
    assert metrics["grpo/sampler_gap_nats"] < 1e-5 and metrics["grpo/importance_weight"] == pytest.approx(1, abs=1e-5)
    assert sum(float(loss.detach()) for loss, _ in found) == pytest.approx(wanted, abs=1e-5)
    capped.rollout.tensors["sampler_logp"] += math.log(2)  # a sampler that thinks its tokens twice as likely
    assert sum(float(capped.loss(batch)[0].detach()) for batch in batches[1]) == pytest.approx(wanted / 2, abs=1e-5)


@pytest.mark.parametrize("loss", VARIANTS)
def test_minibatches_and_denominators_of_the_stage(make: Callable, loss: str):
    """The loss of an update is the formula over its completions, with tokens of the round or of the update as the variant says."""
    algorithm = make(loss=loss, minibatches=2, kl_coefficient=0.0, clip=CLIP, clip_high=HIGH)
    batches = algorithm.batches(0)
    with torch.no_grad():
        algorithm.policy.get_output_embeddings().weight.mul_(1.1)
    tensors, rows = algorithm.rollout.tensors, [int(row) for batch in batches for row in batch.rows_C]
    now_CT = algorithm.per_token(algorithm.rollout, algorithm.logps(algorithm.policy))
    sizes = Sizes(6, int(tensors["mask"][rows].sum()), int(tensors["mask"].sum()) / 2, 6)
    variant = VARIANTS[loss]
    advantage_CT = tensors["advantage"][rows][:, None].expand(6, now_CT.shape[1])
    loss_CT, _ = variant.surrogate(now_CT[rows], tensors["old_logp"][rows], advantage_CT, tensors["mask"][rows], CLIP, HIGH)
    wanted = float(variant.reduce(loss_CT, tensors["mask"][rows], sizes))
    found = [algorithm.loss(batch) for batch in batches]
    assert len(found) > 1 and sizes.tokens != sizes.round_tokens
    assert float(sum(part.detach() for part, _ in found)) == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert merge(sums for _, sums in found)["train/loss"] == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_the_entropy_bonus_is_the_mean_over_tokens_times_its_weight(make: Callable):
    plain, bonus = make(kl_coefficient=0.0), make(kl_coefficient=0.0, entropy_coefficient=0.5)
    losses, entropies = [], []
    for algorithm in (plain, bonus):
        found = [algorithm.loss(batch) for batch in algorithm.batches(0)]
        losses.append(float(sum(loss.detach() for loss, _ in found)))
        entropies.append(merge(sums for _, sums in found)["train/entropy_nats"])
    assert losses[1] == pytest.approx(losses[0] - 0.5 * entropies[0], abs=1e-5)
    for batch in bonus.batches(0):
        bonus.loss(batch)[0].backward()
    assert bonus.policy.get_output_embeddings().weight.grad.abs().max() > 0


# Learning

FAST = OptimConfig(learning_rate=3e-2, schedule="constant", warmup_share=0)
BANDIT: Any = {
    "prompts_per_iteration": 4,
    "samples_per_prompt": 8,
    "iterations": 12,
    "optim": FAST,
    "sampling": SamplingConfig(max_tokens=1),
}


def chances(folder: Path) -> Tensor:
    return token_logps(load_policy(folder), pack([Group([A], [[token] for token in range(5)])]))[0].exp()


@pytest.mark.parametrize("loss", VARIANTS)
def test_every_variant_moves_probability_to_what_is_rewarded(loss: Any, bandit: Path, run: Run, journal: Callable):
    config = GRPOConfig(**BANDIT, loss=loss, clip_high=0.28, dynamic_sampling_rounds=1, importance_cap=2.0, minibatches=2)
    grpo.train(config, policy=bandit, data=bandit, seed=0, run=run)
    assert chances(run.out)[B] > 0.8
    assert all(metrics["grpo/sampler_gap_nats"] < 1e-4 for _, metrics in journal(run))


GRADES = [-0.5, 0.0, 1.0, 0.5, -1.0]


@pytest.mark.parametrize("place", [{"kl_in": "reward", "kl_estimator": "k1"}, {"kl_in": "loss", "kl_estimator": "k2"}])
def test_without_the_division_the_optimum_is_the_reference_tilted_by_the_reward(
    place: Any, bandit: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Dr. GRPO keeps the scale of rewards, so that its optimum under a price of KL is pi_ref exp(r / beta) / Z."""
    (tmp_path / "bandit_grades_of_grpo.py").write_text(
        f"def grade(prompt, text):\n    return {GRADES}['abcd'.find(text) + 1 if text else 0]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rewards: Any = [RewardComponent(name="grade", source="callable", callable="bandit_grades_of_grpo:grade")]
    optim = OptimConfig(learning_rate=2e-2, schedule="linear", final_rate_share=0.02, warmup_share=0, beta2=0.95)
    shape = {
        "prompts_per_iteration": 1,
        "samples_per_prompt": 256,
        "iterations": 28,
        "optim": optim,
        "reward": "weighted",
        "rewards": rewards,
    }
    config = GRPOConfig(**BANDIT | shape, loss="dr_grpo", kl_coefficient=0.7, **place)
    grpo.train(config, policy=bandit, data=bandit, seed=0, run=run)
    wanted = (chances(bandit).log() + torch.tensor(GRADES) / 0.7).softmax(-1)
    assert float((wanted - chances(bandit)).abs().sum() / 2) > 0.2
    assert float((wanted - chances(run.out)).abs().sum() / 2) < 0.03


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"kl_estimator": "k1"}, "k1 in the loss has a gradient of 0"),
        ({"overlong_buffer_tokens": 64}, "must be less than sampling.max_tokens 64"),
        ({"samples_per_prompt": 1}, "greater than or equal to 2"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: Any, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        GRPOConfig(**settings)
