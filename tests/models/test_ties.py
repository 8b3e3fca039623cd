"""Ties: their likelihood by hand, in float64 and by gradient; from the table to a reward model and to DPO; what is refused."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data.packing import Group
from data.records import Message, Preference, Ranking, Tie
from data.tables import read_table, write_table
from models.configs.dpo import DPOConfig, PairLossConfig
from models.configs.optimisation import OptimConfig
from models.configs.reward_model import RewardModelConfig
from models.heads import load_scalar
from models.loading import load_policy
from models.logprobs import sequence_logps
from models.losses.dpo import Side, dpo_loss
from models.losses.reward_model import bradley_terry_loss, tie_aware_loss
from models.losses.sums import merge
from models.losses.ties import rao_kupper
from models.rewards import score_groups
from models.run import Run
from models.training import dpo, reward_model
from models.training.pairs import read_pairs
from models.training.rankings import Pair, ordered_pairs

LOG3 = math.log(3)
QUESTION = (Message("user", "a"),)
FAST = OptimConfig(learning_rate=3e-2, schedule="constant", warmup_share=0)


def doubles(size: int, seed: int) -> torch.Tensor:
    return 2 * torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The loss


def test_rao_kupper_by_hand():
    """Threshold log 3: at d = 0 won 1/4, tied 1/2; at d = log 3 won 1/2, tied 2/5."""
    gap_P = torch.tensor([0.0, 0.0, LOG3, LOG3, -LOG3], dtype=torch.float64)
    tied_P = torch.tensor([False, True, False, True, True])
    assert rao_kupper(gap_P, tied_P, LOG3).exp().tolist() == pytest.approx([4, 2, 2, 2.5, 2.5])


@pytest.mark.parametrize("threshold", [1e-3, 0.1, 1.0, 30.0])
def test_won_lost_and_tied_add_up_to_one(threshold: float):
    gap_P = torch.linspace(-40, 40, 41, dtype=torch.float64)
    no, yes = torch.zeros(41, dtype=torch.bool), torch.ones(41, dtype=torch.bool)
    parts = rao_kupper(gap_P, no, threshold), rao_kupper(-gap_P, no, threshold), rao_kupper(gap_P, yes, threshold)
    torch.testing.assert_close(sum((-part).exp() for part in parts), torch.ones(41, dtype=torch.float64), rtol=0, atol=1e-9)


def test_tie_aware_loss_against_numpy_and_by_gradient():
    chosen, rejected, margin, tied = doubles(6, 1), doubles(6, 2), doubles(6, 3).abs(), torch.tensor([0, 1, 0, 1, 1, 0]).bool()
    margin = torch.where(tied, 0.0, margin)
    theta = 1.7
    a, b = (np.exp(x.numpy()) for x in (chosen - margin, rejected))
    won = a / (a + theta * b)
    drawn = (theta**2 - 1) * a * b / ((a + theta * b) * (theta * a + b))
    wanted = -np.log(np.where(tied.numpy(), drawn, won)).sum() / 9
    loss, sums = tie_aware_loss(chosen, rejected, margin, tied, math.log(theta), 9)
    assert float(loss) == pytest.approx(wanted, abs=1e-12)
    right = [float(c > r) for c, r, t in zip(chosen, rejected, tied, strict=True) if not t]
    assert merge([sums])["train/accuracy"] == pytest.approx(sum(right) / 3), "of the won pairs"
    assert torch.autograd.gradcheck(
        lambda c, r: tie_aware_loss(c, r, margin, tied, 0.5, 9)[0], [x.requires_grad_() for x in (chosen, rejected)]
    )


def test_without_a_threshold_to_speak_of_it_is_bradley_terry():
    chosen, rejected, margin = doubles(6, 1), doubles(6, 2), doubles(6, 3).abs()
    loss, sums = tie_aware_loss(chosen, rejected, margin, torch.zeros(6).bool(), 1e-12, 6)
    wanted, same = bradley_terry_loss(chosen, rejected, margin, 6)
    torch.testing.assert_close(loss, wanted, rtol=0, atol=1e-9)
    assert merge([sums]) == pytest.approx(merge([same]))


def test_dpo_with_ties_by_hand():
    """beta 0.1; log-ratios (0.5, -0.5) give z = 0.1 won, (1, 1) give z = 0 tied: 1 + 3 e^-0.1 = 3.714512 and 2 as inverse probabilities."""
    chosen = Side(torch.tensor([-1.0, -1.0]), torch.tensor([-1.5, -2.0]), torch.tensor([1, 1]))
    rejected = Side(torch.tensor([-2.0, -3.0]), torch.tensor([-1.5, -4.0]), torch.tensor([1, 1]))
    loss, sums = dpo_loss(chosen, rejected, PairLossConfig(), 2, torch.tensor([False, True]), LOG3)
    assert float(loss) == pytest.approx((math.log(3.714512) + math.log(2)) / 2, abs=1e-6)
    assert merge([sums])["train/accuracy"] == 1.0


# From table to model


@pytest.fixture
def collected(tmp_path: Path) -> Path:
    """b beats d; c and d are tied, and so are a and c: c must come to lie between."""
    write_table(tmp_path / "preferences.parquet", [Preference("p", "toy", QUESTION, "b", "d")])
    write_table(tmp_path / "ties.parquet", [Tie("t", "toy", QUESTION, "c", "d"), Tie("u", "toy", QUESTION, "a", "c")])
    return tmp_path


def test_a_tie_comes_back_from_its_table(collected: Path):
    assert read_table(collected / "ties.parquet", Tie)[0] == Tie("t", "toy", QUESTION, "c", "d")
    with pytest.raises(ValueError, match="holds Tie, not Preference"):
        read_table(collected / "ties.parquet", Preference)


def letters(folder: Path, names: str) -> Group:
    return Group([1], [["abcd".index(name) + 1, 0] for name in names])


def test_a_reward_model_learns_what_is_equal(bandit: Path, collected: Path, run: Run, journal: Callable):
    config = RewardModelConfig(tie_threshold=LOG3, epochs=40, batch_size=3, optim=FAST)
    meta = reward_model.train(config, policy=bandit, preferences=collected, seed=0, run=run)
    model = load_scalar(run.out)
    (scores,) = score_groups(model, [letters(bandit, "bacd")], 99)
    b, a, c, d = (score * model.rule.deviation for score in scores)
    assert abs(c - d) < 0.1 and abs(a - c) < 0.1 and b - d > 3 and meta["pairs"] == 3
    assert journal(run)[-1][1]["train/loss"] < 0.6, "two ties at log 2 and one sure win: 2/3 log 2 = 0.46"


def test_ties_are_left_out_unless_asked_for(bandit: Path, collected: Path, run: Run):
    assert read_pairs(collected / "preferences.parquet", bandit, 99, run).tied_P is None
    pairs = read_pairs(collected / "preferences.parquet", bandit, 99, run, ties=True)
    assert pairs.tied_P is not None and pairs.tied_P.tolist() == [False, True, True] and len(pairs.groups) == 3
    (collected / "ties.parquet").unlink()
    with pytest.raises(ValueError, match=r"has no ties.parquet: collect with preferences.ties keep, or set it to 0"):
        dpo.train(DPOConfig(tie_threshold=1.0), policy=bandit, preferences=collected, seed=0, run=run)


def test_dpo_learns_what_is_equal(bandit: Path, collected: Path, run: Run):
    config = DPOConfig(tie_threshold=LOG3, beta=0.5, epochs=40, batch_size=3, optim=FAST)
    dpo.train(config, policy=bandit, preferences=collected, seed=0, run=run)
    group = letters(bandit, "bacd")
    b, a, c, d = (sequence_logps(load_policy(run.out), [group], 99) - sequence_logps(load_policy(bandit), [group], 99)).tolist()
    assert abs(c - d) < 0.3 and abs(a - c) < 0.3 and b - d > 3


@pytest.mark.parametrize(
    "config", [lambda: DPOConfig(loss="ipo", tie_threshold=1.0), lambda: RewardModelConfig(loss="k_wise", tie_threshold=1.0)]
)
def test_a_loss_that_knows_no_ties_is_refused(config: Callable):
    with pytest.raises(ValueError, match=r"tie_threshold 1\.0 with loss"):
        config()


def test_a_text_is_not_ranked_against_itself():
    """Given a rank twice by who saw it twice: ranks (0, 1, 2) of x, x and y order x over y only."""
    twice = Ranking("r", "toy", QUESTION, ("x", "x ", "y"), (0, 1, 2))
    assert ordered_pairs(twice) == [Pair(0, 2, 0.0), Pair(1, 2, 0.0)]
