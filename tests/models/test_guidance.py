"""Guided decoding: what is sampled follows the formula by enumeration, and prefix scores through the cache are those of full passes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.packing import Group, pack
from models.configs.guidance import GuidanceConfig
from models.configs.sampling import SamplingConfig
from models.generation import generate
from models.guidance import PrefixGuide, RewardGuide, TokenGuide, load_guide
from models.heads import HeadModel, RewardRule, ScalarModel, load_scalar, load_token_reward, new_token_reward, save_scalar
from models.loading import load_backbone, load_policy
from models.logprobs import sequence_logps, token_logps

A = 1  # the prompt
V = 5
PAIRS = [[a, b] for a in range(V) for b in range(V)]
NEVER: list[int] = []
N = 4000


@torch.no_grad()
def rough(model: nn.Module, seed: int) -> Any:
    noise = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.copy_(torch.randn(p.shape, generator=noise) * (0.6 if p.ndim > 1 else 0.1) + (p.ndim == 1))
    return model.eval().requires_grad_(False)


@pytest.fixture
def coin(bandit: Path) -> Any:
    """A policy over five tokens with preferences of its own."""
    return rough(load_policy(bandit), 1)


@pytest.fixture
def scalar(bandit: Path) -> ScalarModel:
    return rough(ScalarModel(load_backbone(bandit), RewardRule(0.2, 1.5, 1)), 2)


@pytest.fixture
def wide(bandit: Path) -> Any:
    model = rough(new_token_reward(bandit), 3)
    model.rule = RewardRule(-0.3, 0.8, 1)
    return model


def reference(policy: Any) -> tuple[np.ndarray, np.ndarray]:
    """log pi(a) and log pi(b | a) by whole sequences."""
    logp_S, _ = token_logps(policy, pack([Group([A], PAIRS)]))
    both = logp_S.double().numpy().reshape(V, V, 2)
    return both[:, 0, 0], both[:, :, 1]


def rewards(model: HeadModel) -> tuple[np.ndarray, np.ndarray]:
    """Normalised scores of the prefixes of one and of two tokens, by whole sequences."""
    one = model.reward(pack([Group([A], [[a] for a in range(V)])]))
    two = model.reward(pack([Group([A], PAIRS)]))
    return one.double().numpy(), two.double().numpy().reshape(V, V)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cut(logp: np.ndarray, top_k: int) -> np.ndarray:
    """Minus infinity outside the ``top_k`` most likely."""
    kth = np.sort(logp, -1)[..., [-top_k]]
    return np.where(logp < kth, -np.inf, 0.0)


def joint(policy: Any, one: np.ndarray, two: np.ndarray, weight: float, top_k: int = V) -> np.ndarray:
    """q(a) q(b | a) with q proportional to pi exp(w r) among the policy's most likely tokens."""
    logp_a, logp_ab = reference(policy)
    q_a = softmax(logp_a + weight * one + cut(logp_a, top_k))
    return q_a[:, None] * softmax(logp_ab + weight * two + cut(logp_ab, top_k))


def sampled(policy: Any, guide: Any, seed: int = 0, **settings: Any) -> tuple[np.ndarray, list[Any]]:
    (rows,) = generate(
        policy, [[A]], SamplingConfig(max_tokens=2, max_rows=N, **settings), samples=N, eos_ids=NEVER, seed=seed, guide=guide
    )
    counts = np.bincount([V * c.tokens[0] + c.tokens[1] for c in rows], minlength=V * V)
    return counts.reshape(V, V) / N, rows


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.abs(p - q).sum() / 2)


def says(policy: Any, guide: Any) -> np.ndarray:
    """The probabilities of all pairs that the sampler says it drew them with."""
    _, rows = sampled(policy, guide)
    found = np.zeros((V, V))
    for c in rows:
        found[c.tokens[0], c.tokens[1]] = math.exp(sum(c.logps))
    return found


# Scores through the cache


@pytest.mark.parametrize("kind", ["prefix", "token"])
def test_scores_through_the_cache_are_those_of_full_passes(base: Path, reward_folder: Path, kind: str):
    torch.manual_seed(0)
    model: Any = load_scalar(reward_folder) if kind == "prefix" else rough(new_token_reward(base), 4)
    torch.nn.Module.to(model, torch.float64)  # the order of sums differs; with so rough a head float32 shows it
    guide = PrefixGuide(model, 1.0, 3) if kind == "prefix" else TokenGuide(model, 1.0, 3)
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15, 16]]
    guide.begin(prompts, 2, 6)
    prefixes = [(p, []) for p in prompts for _ in range(2)]
    for step in range(6):
        token_RA = torch.randint(259, (len(prefixes), 3))
        found_RA = guide.scores(token_RA)
        wanted = [model.at_ends(pack([Group(p, [[*c, t] for t in row])])) for (p, c), row in zip(prefixes, token_RA.tolist(), strict=True)]
        torch.testing.assert_close(found_RA, torch.stack(wanted), rtol=0, atol=1e-12)
        assert float(found_RA.std()) > 0.05
        if step == 2:
            keep = [0, 3, 4]
            guide.select(torch.tensor(keep))
            prefixes, token_RA = [prefixes[i] for i in keep], token_RA[keep]
            torch.testing.assert_close(guide.scores(token_RA), found_RA[keep], rtol=0, atol=1e-5)
        guide.advance(token_RA[:, 0])
        prefixes = [(p, [*c, t]) for (p, c), t in zip(prefixes, token_RA[:, 0].tolist(), strict=True)]


# The distribution that is sampled from


@pytest.mark.parametrize(("weight", "top_k"), [(0.0, 0), (1.0, 0), (2.5, 0), (1.5, 3)])
def test_args_samples_the_policy_times_the_exponential_reward_of_prefixes(coin: Any, scalar: ScalarModel, weight: float, top_k: int):
    """ARGS and PARGS: the models differ in their training alone."""
    one, two = rewards(scalar)
    wanted = joint(coin, one, two, weight, top_k or V)
    guide = PrefixGuide(scalar, weight, top_k)
    assert total_variation(sampled(coin, guide)[0], wanted) < 0.05
    found = says(coin, guide)
    seen = found > 0
    np.testing.assert_allclose(found[seen], wanted[seen], atol=1e-6)
    assert wanted[~seen].sum() < 0.01
    if weight:
        assert total_variation(wanted, joint(coin, one, two, 0.0)) > 0.1, "the reward matters"


def test_greedy_args_takes_the_highest_sum_of_log_probability_and_reward(coin: Any, scalar: ScalarModel):
    one, two = rewards(scalar)
    logp_a, logp_ab = reference(coin)
    a = int((logp_a + 2 * one).argmax())
    b = int((logp_ab[a] + 2 * two[a]).argmax())
    (row,) = generate(
        coin, [[A]], SamplingConfig(max_tokens=2, temperature=0), samples=1, eos_ids=NEVER, seed=0, guide=PrefixGuide(scalar, 2.0, 0)
    )
    assert row[0].tokens == [a, b] != [int(logp_a.argmax()), int(logp_ab[int(logp_a.argmax())].argmax())]


def test_farma_samples_by_the_scores_of_one_pass(coin: Any, wide: Any):
    one, two = rewards(wide)
    wanted = joint(coin, one, two, 1.2)
    found = says(coin, TokenGuide(wide, 1.2, 0))
    np.testing.assert_allclose(found[found > 0], wanted[found > 0], atol=1e-6)
    assert total_variation(sampled(coin, TokenGuide(wide, 1.2, 0))[0], wanted) < 0.05


class Exact(RewardGuide):
    """Scores from a table: the value of every prefix, exactly."""

    def __init__(self, model: ScalarModel, weight: float, one: np.ndarray, two: np.ndarray):
        super().__init__(model, weight, 0)
        self.tables = [torch.tensor(one), torch.tensor(two)]

    def begin(self, prompts: Sequence[Sequence[int]], samples: int, max_tokens: int) -> None:
        super().begin(prompts, samples, max_tokens)
        self.taken_R: Tensor | None = None

    def scores(self, token_RA: Tensor) -> Tensor:
        return self.tables[0][token_RA] if self.taken_R is None else self.tables[1][self.taken_R[:, None], token_RA]

    def advance(self, token_R: Tensor) -> None:
        super().advance(token_R)
        self.taken_R = token_R


def test_the_exact_value_makes_decoding_the_optimum_of_kl_regularised_reward(coin: Any, scalar: ScalarModel):
    """With V(a) = beta log E[exp(r / beta) | a] the token-wise product telescopes to pi_ref exp(r / beta) / Z."""
    beta = 0.5
    scalar.rule = RewardRule()
    logp_a, logp_ab = reference(coin)
    _, two = rewards(scalar)
    value_a = beta * np.log((np.exp(logp_ab + two / beta)).sum(-1))
    optimum = np.exp(logp_a[:, None] + logp_ab + two / beta)
    optimum /= optimum.sum()
    guide = Exact(scalar, 1 / beta, value_a, two)
    assert total_variation(sampled(coin, guide)[0], optimum) < 0.05
    found = says(coin, guide)
    np.testing.assert_allclose(found[found > 0], optimum[found > 0], atol=1e-6)
    assert total_variation(optimum, np.exp(logp_a[:, None] + logp_ab)) > 0.2


def test_rows_that_end_leave_the_guide_too(coin: Any, scalar: ScalarModel):
    """Greedy completions of rows that end at different times are those of each row alone."""
    prompts = [[1], [2, 3], [4, 4, 1], [3], [2, 2]]
    sampling = SamplingConfig(max_tokens=8, temperature=0)

    def run(some: list[list[int]]) -> list[list[int]]:
        guide = PrefixGuide(scalar, 1.0, 0)
        return [c.tokens for (c,) in generate(coin, some, sampling, samples=1, eos_ids=[0, 2], seed=0, guide=guide)]

    together = run(prompts)
    assert together == [run([p])[0] for p in prompts] and len(set(map(len, together))) > 1


# Which guide a configuration means


@pytest.mark.parametrize(
    ("mode", "stage"), [("pargs", "reward_model with loss = prefix_bradley_terry"), ("cd", "prefix_value"), ("farma", "token_reward")]
)
def test_a_mode_without_its_model_says_which_stage_makes_it(mode: Any, stage: str, reward_folder: Path):
    with pytest.raises(ValueError, match=f"guidance.mode {mode} needs the artifact of the stage {stage} as its scorer"):
        load_guide(GuidanceConfig(mode=mode), reward_folder, None, torch.device("cpu"))


def test_a_reward_model_is_no_model_of_next_tokens_nor_the_other_way_round(reward_folder: Path, base: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="it scores no next tokens"):
        load_guide(GuidanceConfig(mode="farma"), reward_folder, reward_folder, torch.device("cpu"))
    save_scalar(new_token_reward(base), base, tmp_path)
    with pytest.raises(ValueError, match="it is not a reward model"):
        load_guide(GuidanceConfig(mode="cd"), reward_folder, tmp_path, torch.device("cpu"))
    assert type(load_guide(GuidanceConfig(mode="farma"), reward_folder, tmp_path, torch.device("cpu"))) is TokenGuide
    assert load_token_reward(tmp_path).head.out_features == 259


def test_the_said_log_probability_is_that_of_the_guided_distribution(coin: Any, scalar: ScalarModel):
    """KL(q || pi_ref) from them is the enumerated one."""
    one, two = rewards(scalar)
    q = joint(coin, one, two, 1.0)
    logp_a, logp_ab = reference(coin)
    exact = float((q * (np.log(q) - logp_a[:, None] - logp_ab)).sum())
    _, rows = sampled(coin, PrefixGuide(scalar, 1.0, 0))
    ref = sequence_logps(coin, [Group([A], [c.tokens for c in rows])], 10**6)
    own = torch.tensor([sum(c.logps) for c in rows])
    assert float((own - ref).mean()) == pytest.approx(exact, abs=0.03) and exact > 0.1
