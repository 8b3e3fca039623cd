"""Nash-MD: the mixture that the opponent samples from, duels, the moving reference, and the equilibrium of a game without a best move."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.packing import Group, pack
from data.records import Prompt
from data.tables import read_table
from data.templates import load_tokenizer
from models.configs.checkpointing import CheckpointConfig
from models.configs.nash_md import NashMDConfig
from models.configs.optimisation import OptimConfig
from models.configs.sampling import SamplingConfig
from models.duels import ScoreDuel, bradley_terry, duel_function, higher_wins
from models.generation import generate
from models.loading import load_policy
from models.logprobs import head_weight, hidden_states, token_logps
from models.losses.sums import merge
from models.mixture import GeometricMixture
from models.rewards import Scored
from models.run import Run
from models.training import nash_md
from models.training.core import fit
from models.training.nash_md import NashMD
from models.training.optimiser import Trainee
from models.training.reference import MovingReference

EOS = list(range(0, 259, 5))  # many tokens end a completion, so that rows leave the batch


# The mixture


def logits(model: Any, prompt: list[int], completion: list[int]) -> Tensor:
    packed = pack([Group(prompt, [completion])])
    return hidden_states(model.base_model, packed)[packed.source_S] @ head_weight(model).T


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_every_token_is_drawn_from_the_geometric_mixture(base: Path, other: Path, share: float):
    """What was sampled, row by row as rows end, against p^(1 - s) q^s normalised, of whole sequences run through both models."""
    pi, mu = load_policy(base), load_policy(other)
    prompts = [[5, 6, 7], [8], [9, 10]]
    sampling = SamplingConfig(temperature=0.7, max_tokens=8)
    rows = generate(pi, prompts, sampling, samples=4, eos_ids=EOS, seed=1, guide=GeometricMixture(mu, share))
    lengths = {len(c.tokens) for row in rows for c in row}
    assert len(lengths) > 2, "rows leave at different times"
    for prompt, row in zip(prompts, rows, strict=True):
        for completion in row:
            p, q = (torch.softmax(logits(m, prompt, completion.tokens).double() / 0.7, -1) for m in (pi, mu))
            mixed = p ** (1 - share) * q**share
            wanted = (mixed / mixed.sum(-1, keepdim=True)).gather(-1, torch.tensor(completion.tokens)[:, None])[:, 0].log()
            assert completion.logps == pytest.approx(wanted.tolist(), abs=1e-4)


def test_the_ends_of_the_mixture_are_the_two_policies(base: Path, other: Path):
    pi, mu = load_policy(base), load_policy(other)
    settings = {"sampling": SamplingConfig(max_tokens=6), "samples": 3, "eos_ids": EOS, "seed": 2}
    for share, alone in ((0.0, pi), (1.0, mu)):
        mixed = generate(pi, [[5, 6], [7]], **settings, guide=GeometricMixture(mu, share))
        assert [c.tokens for row in mixed for c in row] == [c.tokens for row in generate(alone, [[5, 6], [7]], **settings) for c in row]


# Duels


def test_duels_by_hand():
    """Scores (1, 0, 0.5) against (0, 1, 0.5), and a normalised gap of 0.5 at deviation 2: sigmoid(1) = 0.731059."""
    scores = {1: 1.0, 2: 0.0, 3: 0.5}

    def reward(prompts: Any, groups: Sequence[Group]) -> Scored:
        return Scored([[scores[c[0]] for c in group.completions] for group in groups], failures=3)

    ours, theirs = [Group([9], [[1], [2], [3]])], [Group([9], [[2], [1], [3]])]
    won = ScoreDuel(reward, higher_wins)([], ours, theirs)  # type: ignore[arg-type]
    assert (won.reward_PG, won.failures) == ([[1.0, 0.0, 0.5]], 3)
    assert bradley_terry(0.5, 2.0) == pytest.approx(0.731059, abs=1e-6) and bradley_terry(-1e6, 2.0) == 0.0


def test_the_reward_models_duel_is_in_its_raw_units(reward_folder: Path, tokenizer: Any):
    """The probability that Bradley-Terry training gave it, not that of normalised scores."""
    duel = duel_function("reward_model", tokenizer, reward_folder, torch.device("cpu"))
    ours, theirs = [Group([5, 6], [[7, 8], [9]])], [Group([5, 6], [[10], [11, 12]])]
    raw = duel.reward.model.at_ends(pack([*ours, *theirs])).tolist()  # type: ignore[attr-defined]
    wanted = [1 / (1 + math.exp(raw[i + 2] - raw[i])) for i in (0, 1)]
    assert duel([], ours, theirs).reward_PG == [pytest.approx(wanted, abs=1e-5)]
    assert duel([], theirs, ours).reward_PG == [pytest.approx([1 - p for p in wanted], abs=1e-5)]
    with pytest.raises(ValueError, match="needs the artifact of a reward_model stage"):
        duel_function("reward_model", tokenizer, None, torch.device("cpu"))


# The moving reference


def weights(model: Any) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def test_the_reference_moves_when_it_is_time_and_once(base: Path, other: Path):
    reference, policy = load_policy(base), load_policy(other)
    before, goal = weights(reference), weights(policy)
    moving = MovingReference(reference, policy, every=2, share=0.25)
    for step in (0, 1):
        moving.follow(step)
    assert torch.equal(weights(reference), before)
    moving.follow(2)
    wanted = 0.75 * before + 0.25 * goal
    torch.testing.assert_close(weights(reference), wanted)
    resumed = MovingReference(load_policy(base), policy, every=2, share=0.25)
    resumed.load_state(*moving.state())
    for again in (moving, resumed):
        again.follow(2)  # an attempt that was stopped while it sampled this round makes it again
        torch.testing.assert_close(weights(again.model), wanted)
        again.follow(4)
        torch.testing.assert_close(weights(again.model), 0.75 * wanted + 0.25 * goal)
    still = MovingReference(load_policy(base), policy, every=0, share=1.0)
    still.follow(0)
    assert torch.equal(weights(still.model), before) and still.state() == ({}, {})


def test_small_steps_are_not_lost_in_half_precision(half: Path, other: Path):
    """A thousandth of the way, a hundred times: each step is below the spacing of bfloat16."""
    policy = load_policy(other).bfloat16()
    moving = MovingReference(load_policy(half), policy, every=1, share=0.001)
    before, goal = weights(moving.model).float(), weights(policy).float()
    for step in range(1, 101):
        moving.follow(step)
    left = 0.999**100
    torch.testing.assert_close(weights(moving.model).float(), left * before + (1 - left) * goal, rtol=1e-2, atol=1e-3)


def test_a_share_without_a_time_is_refused():
    with pytest.raises(ValueError, match="say after how many rounds"):
        NashMDConfig(reference_sync_share=0.5)


# The loss


ROUND = {"prompts_per_iteration": 4, "samples_per_prompt": 3, "micro_batch_tokens": 40}


def test_the_loss_is_the_policy_gradient_one_completion_at_a_time(base: Path, other: Path, tables: Path, tokenizer: Any, run: Run):
    """Before the first step: the gradient of -1/C sum_i sum_t (P - 1/2 - tau sum_{s >= t} log pi/mu) log pi_t."""
    config = NashMDConfig(**ROUND, kl_coefficient=0.1, sampling=SamplingConfig(temperature=0.8, max_tokens=6))
    policy, reference = load_policy(base, trainable=True), load_policy(other)
    fought: list[Any] = []

    def duel(prompts: Any, groups: Sequence[Group], opponents: Sequence[Group]) -> Scored:
        fought.append((groups, opponents))
        return Scored([[1.0 - 0.3 * i for i, _ in enumerate(group.completions)] for group in groups])

    prompts = read_table(tables / "prompts.parquet", Prompt)
    algorithm = NashMD(policy, prompts, tokenizer, duel, MovingReference(reference, policy, 0, 1.0), EOS, config, 5, run)
    batches = algorithm.batches(0)
    parts = [algorithm.loss(batch) for batch in batches]
    sum(loss for loss, _ in parts).backward()
    found = torch.cat([p.grad.flatten() for p in policy.parameters()])
    policy.zero_grad()
    total, kl = torch.zeros(()), []
    for group in algorithm.rollout.groups:
        for i, completion in enumerate(group.completions):
            alone = pack([Group(group.prompt, [completion])])
            logp, ref = token_logps(policy, alone, 0.8)[0], token_logps(reference, alone, 0.8)[0]
            gain = (logp - ref).detach()
            kl.append(float(gain.sum()))
            to_come = 1.0 - 0.3 * i - 0.5 - 0.1 * gain.flip(0).cumsum(0).flip(0)
            total = total - (to_come * logp).sum() / 12
    total.backward()
    wanted = torch.cat([p.grad.flatten() for p in policy.parameters()])
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    assert algorithm.rollout.metrics["train/kl_nats"] == pytest.approx(sum(kl) / 12, rel=1e-4)
    assert merge(sums for _, sums in parts)["train/loss"] == pytest.approx(sum(float(loss.detach()) for loss, _ in parts), rel=1e-4)
    ((groups, opponents),) = fought
    assert [g.prompt for g in groups] == [o.prompt for o in opponents] and groups[0].completions != opponents[0].completions


# The equilibrium

SETTLE = OptimConfig(learning_rate=2e-2, schedule="linear", final_rate_share=0.0, warmup_share=0)
# Plain descent: Adam's moving averages and unit steps would carry it round the equilibrium instead of into it.
DESCENT = OptimConfig(learning_rate=3.0, schedule="linear", final_rate_share=0.0, warmup_share=0, epsilon=1.0, beta1=0.0, max_grad_norm=1e6)
GAME = {"prompts_per_iteration": 4, "samples_per_prompt": 64, "iterations": 60, "optim": SETTLE, "sampling": SamplingConfig(max_tokens=1)}
A, B = 1, 2


def chances(model: Any) -> Tensor:
    return token_logps(model, pack([Group([A], [[token] for token in range(5)])]))[0].detach().double().exp()


def equilibrium(mu: Tensor, wins: Tensor, tau: float, share: float) -> Tensor:
    """pi proportional to mu exp(P(y beats pi') / tau), pi' the mixture of pi and mu, by damped iteration."""
    pi = mu.clone()
    for _ in range(20_000):
        opponent = pi ** (1 - share) * mu**share
        best = mu * (wins @ (opponent / opponent.sum()) / tau).exp()
        pi = 0.99 * pi + 0.01 * best / best.sum()
    return pi


def test_on_right_and_wrong_it_finds_the_regularised_optimum(bandit: Path, run: Run, journal: Callable):
    """Right beats wrong, else a tie: a right answer wins 1/2 more often against anyone, so pi* = mu exp(1/2 [right] / tau) / Z."""
    tau = 0.25
    config = NashMDConfig(**GAME, reward="verifier", kl_coefficient=tau, checkpoint=CheckpointConfig(every_s=0))
    nash_md.train(config, policy=bandit, data=bandit, seed=0, run=run)
    mu = chances(load_policy(bandit))
    optimum = mu * torch.tensor([0.0, 0.0, 0.5 / tau, 0.0, 0.0]).exp()
    assert float((chances(load_policy(run.out)) - optimum / optimum.sum()).abs().sum() / 2) < 0.05
    lines = [metrics for _, metrics in journal(run)]
    assert lines[0]["train/reward"] == pytest.approx(0.5, abs=0.05) and lines[0]["train/kl_nats"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_where_no_move_is_best_it_finds_the_mixed_equilibrium(bandit: Path, run: Run, share: float):
    """Rock, paper, scissors among b, c, d with a lopsided reference; everything else loses to them. A greedy learner would go round."""
    wins = torch.full((5, 5), 0.5, dtype=torch.float64)
    for winner, loser in ((2, 3), (3, 4), (4, 2), *((w, l) for w in (2, 3, 4) for l in (0, 1))):  # noqa: E741
        wins[winner, loser], wins[loser, winner] = 1.0, 0.0

    def duel(prompts: Any, groups: Sequence[Group], opponents: Sequence[Group]) -> Scored:
        pairs = zip(groups, opponents, strict=True)
        return Scored([[float(wins[a[0], b[0]]) for a, b in zip(g.completions, o.completions, strict=True)] for g, o in pairs])

    tau = 0.15
    model, start = load_policy(bandit, trainable=True), load_policy(bandit)
    with torch.no_grad():
        noise = 0.12 * torch.randn(5, 16, generator=torch.Generator().manual_seed(4))
        for each in (model, start):
            head_weight(each).copy_(noise)
    config = NashMDConfig(**GAME | {"optim": DESCENT}, kl_coefficient=tau, mixture_share=share, checkpoint=CheckpointConfig(every_s=0))
    prompts, tokenizer = read_table(bandit / "prompts.parquet", Prompt), load_tokenizer(bandit)
    algorithm = NashMD(model, prompts, tokenizer, duel, MovingReference(start, model, 0, 1.0), [0], config, 0, run)
    fit(run, algorithm, {"policy": Trainee(model, config.optim)}, 60, config.checkpoint)
    mu = chances(start)
    optimum = equilibrium(mu, wins, tau, share)
    assert float((mu - optimum).abs().sum() / 2) > 0.15, "the test could fail"
    assert float((chances(model) - optimum).abs().sum() / 2) < 0.05
