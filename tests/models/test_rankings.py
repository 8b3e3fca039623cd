"""K-way rankings: the loss on hand values, against NumPy and by gradient; ties; what is refused; what is learned on a bandit."""

import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from data.packing import Group
from data.records import Message, Preference, Ranking
from data.tables import read_table, write_table
from models.configs.dpo import DPOConfig
from models.configs.kwise_dpo import KWiseDPOConfig
from models.configs.optimisation import OptimConfig
from models.configs.reward_model import RewardModelConfig
from models.heads import load_scalar, new_scalar
from models.loading import load_policy
from models.logprobs import sequence_logps
from models.losses.rankings import centring_penalty, k_wise_loss
from models.losses.reward_model import bradley_terry_loss
from models.losses.sums import merge
from models.preflight import check_completions_end
from models.rewards import score_groups
from models.run import Run
from models.training import dpo, kwise_dpo, reward_model
from models.training.pairs import read_pairs
from models.training.rankings import Pair, RankedBatch, RankingAlgorithm, Rankings, ordered_pairs, read_rankings

FAST = OptimConfig(learning_rate=3e-2, schedule="constant", warmup_share=0)
QUESTION = (Message("user", "a"),)
LETTERS = {"a": 1, "b": 2, "c": 3, "d": 4}


def ranked(*ranks: int, scores: tuple[float, ...] = (), texts: str = "bcda", name: str = "r") -> Ranking:
    return Ranking(name, "toy", QUESTION, tuple(texts[: len(ranks)]), ranks, scores)


def doubles(size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The loss


def columns(scores: torch.Tensor, ranks: list[int]) -> tuple[torch.Tensor, ...]:
    """Better, worse, margin and weight of the pairs of one ranking."""
    pairs = [(i, j) for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j]]
    better, worse = (scores[[p[side] for p in pairs]] for side in (0, 1))
    return better, worse, torch.zeros_like(better), torch.full_like(better, 1 / math.comb(len(ranks), 2))


def test_k_wise_by_hand():
    """s = (2, 1, 0): two gaps of 1 and one of 2, over C(3,2) = 3."""
    loss, sums = k_wise_loss(*columns(torch.tensor([2.0, 1.0, 0.0]), [0, 1, 2]), prompts=1)
    assert float(loss) == pytest.approx(0.251150, abs=1e-6)
    assert merge([sums]) == {"train/accuracy": 1.0}


def test_ties_make_no_pair_and_keep_the_denominator():
    """D > G > A = B: five pairs of six, over C(4,2) = 6; equal scores cost log 2 a pair."""
    better, worse, margin, weight = columns(torch.zeros(4), [0, 1, 2, 2])
    assert len(better) == 5 and float(k_wise_loss(better, worse, margin, weight, 1)[0]) == pytest.approx(5 / 6 * math.log(2))
    assert ordered_pairs(ranked(0, 1, 1)) == [Pair(0, 1, 0.0), Pair(0, 2, 0.0)]
    assert ordered_pairs(ranked(1, 0, scores=(0.25, 1.0))) == [Pair(1, 0, 0.75)]


def test_k_wise_against_numpy_and_by_gradient():
    scores, ranks = [doubles(4, 1), doubles(3, 2)], [[2, 0, 1, 1], [1, 0, 2]]
    wanted = 0.0
    for s, r in zip(scores, ranks, strict=True):
        gaps = [s[i] - s[j] if r[i] < r[j] else s[j] - s[i] for i, j in combinations(range(len(r)), 2) if r[i] != r[j]]
        wanted += sum(np.log1p(np.exp(-float(gap) + 0.5)) for gap in gaps) / math.comb(len(r), 2) / 5

    def loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        parts = [columns(s, r) for s, r in zip((first, second), ranks, strict=True)]
        better, worse, margin, weight = (torch.cat(column) for column in zip(*parts, strict=True))
        return k_wise_loss(better, worse, margin + 0.5, weight, prompts=5)[0]

    assert float(loss(*scores)) == pytest.approx(wanted, abs=1e-12)
    assert torch.autograd.gradcheck(loss, [s.requires_grad_() for s in scores])


def test_of_two_completions_it_is_bradley_terry():
    chosen, rejected, margin = doubles(6, 1), doubles(6, 2), doubles(6, 3).abs()
    loss, _ = k_wise_loss(chosen, rejected, margin, torch.ones(6), 9)
    torch.testing.assert_close(loss, bradley_terry_loss(chosen, rejected, margin, 9)[0], rtol=0, atol=1e-12)


def test_centring_by_hand():
    assert centring_penalty(torch.tensor([1.0, 1.0]), torch.tensor([0.5, -1.0])).tolist() == [2.25, 0.0]


# Batches


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_a_ranking_goes_through_one_forward_pass_and_finds_its_rows(run: Run, scale: float):
    groups = [Group([1], [[2, 0], [3, 0], [4, 0]]), Group([1, 2], [[3, 0], [4, 4, 0]])]
    rankings = Rankings(groups, [[Pair(2, 0, 0.0), Pair(1, 0, 0.0)], [Pair(1, 0, 2.0)]], [0, 3], True)
    run.micro_batch_scale = scale
    batches = RankingAlgorithm(rankings, 2, 100, seed=0, run=run, tag="test").batches(0)
    assert len(batches) == (1 if scale == 1 else 2) and all(batch.prompts == 2 for batch in batches)
    starts = {2: (0, 0), 3: (0, 1), 4: (0, 2)}
    seen = set()
    for batch in batches:
        last_C = batch.packed.last_C
        first_token_C = batch.packed.input_ids_N[last_C - 1].tolist()
        for better, worse, margin, weight in zip(batch.better_M, batch.worse_M, batch.margin_M, batch.weight_M, strict=True):
            rows = int(batch.row_C[better]), int(batch.row_C[worse])
            seen.add((*rows, float(margin), round(1 / float(weight))))
            if max(rows) < 3:
                assert [starts[first_token_C[int(i)]][1] for i in (better, worse)] == list(rows)
    assert seen == {(2, 0, 0.0, 3), (1, 0, 0.0, 3), (4, 3, 2.0, 1)}


# What is refused


def test_rankings_in_a_pairwise_loss_and_pairs_in_a_k_wise_loss_are_refused(bandit: Path, run: Run, tmp_path: Path):
    write_table(tmp_path / "rankings.parquet", [ranked(0, 1, 2)])
    refused = r"holds rankings .* no preferences\.parquet: use the K-wise loss \(reward_model loss k_wise, or the stage kwise_dpo\)"
    with pytest.raises(ValueError, match=refused):
        read_pairs(tmp_path / "preferences.parquet", bandit, 99, run)
    with pytest.raises(ValueError, match=refused):
        reward_model.train(RewardModelConfig(), policy=bandit, preferences=tmp_path, seed=0, run=run)
    with pytest.raises(ValueError, match=r"holds pairs .* no rankings: use the pairwise loss"):
        kwise_dpo.train(KWiseDPOConfig(), policy=bandit, preferences=bandit, seed=0, run=run)


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([ranked(0)], "ranking r has 1 completion: a ranking orders at least two"),
        ([ranked(0, 0), ranked(1, 1, 1)], "all 2 rankings .* are ties from end to end"),
    ],
)
def test_rankings_that_order_nothing_are_refused(bandit: Path, run: Run, tmp_path: Path, rows: list[Ranking], fault: str):
    write_table(tmp_path / "rankings.parquet", rows)
    with pytest.raises(ValueError, match=fault):
        read_rankings(tmp_path, bandit, 99, run)


def test_ties_among_others_are_left_out_and_margins_need_scores(bandit: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture):
    write_table(tmp_path / "rankings.parquet", [ranked(0, 0), ranked(0, 1)])
    rankings = read_rankings(tmp_path, bandit, 99, run)
    assert len(rankings.groups) == 1 and "1 of 2 rankings have all completions tied" in capsys.readouterr().out
    config = RewardModelConfig(loss="k_wise", use_margin=True)
    with pytest.raises(ValueError, match="use_margin needs scores, and these rankings have ranks only"):
        reward_model.train(config, policy=bandit, preferences=tmp_path, seed=0, run=run)


def test_a_completion_without_its_end_is_refused():
    check_completions_end([Group([1], [[2, 0]])], [0])
    with pytest.raises(ValueError, match=r"a completion of example 1 ends in token 3, not in an end-of-turn token \(\[0\]\)"):
        check_completions_end([Group([1], [[2, 0]]), Group([1], [[2, 0], [3]])], [0])


@pytest.mark.parametrize("loss", ["bradley_terry", "k_wise"])
def test_a_reward_model_is_not_trained_where_no_sampled_completion_ends(
    bandit: Path, strengths: Path, run: Run, monkeypatch: pytest.MonkeyPatch, loss: Literal["bradley_terry", "k_wise"]
):
    write_table(strengths / "preferences.parquet", [Preference("c", "toy", QUESTION, "b", "c")])
    monkeypatch.setattr(reward_model, "eos_ids", lambda folder, tokenizer: [4])
    with pytest.raises(ValueError, match=r"ends in token 0, not in an end-of-turn token \(\[4\]\)"):
        reward_model.train(RewardModelConfig(loss=loss), policy=bandit, preferences=strengths, seed=0, run=run)


def test_rankings_of_held_out_prompts_are_not_trained_on(bandit: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Collection writes the rankings of all prompts, and holds out the pairs of some."""
    elsewhere = Ranking("held", "toy", (Message("user", "b"),), ("c", "d"), (0, 1))
    write_table(tmp_path / "rankings.parquet", [ranked(0, 1), elsewhere])
    write_table(tmp_path / "test_preferences.parquet", [Preference("p", "toy", elsewhere.prompt, "c", "d")])
    rankings = read_rankings(tmp_path, bandit, 99, run)
    assert [list(group.prompt) for group in rankings.groups] == [[1]]
    assert "1 of 2 rankings are of prompts whose pairs are held out" in capsys.readouterr().out


# What is learned


@pytest.fixture
def strengths(tmp_path: Path) -> Path:
    """Rankings of the four letters by judges who agree on d > b > c > a, two of whom see ties or fewer letters."""
    rows = [
        ranked(1, 2, 0, 3, name="r0"),
        ranked(1, 2, 0, 2, name="r1"),
        ranked(1, 2, 0, name="r2"),
        Ranking("r3", "toy", QUESTION, ("c", "a"), (0, 1)),
    ]
    write_table(tmp_path / "rankings.parquet", rows)
    return tmp_path


def test_a_k_wise_reward_model_recovers_the_order_of_strengths(bandit: Path, strengths: Path, run: Run, journal: Callable):
    config = RewardModelConfig(loss="k_wise", epochs=12, batch_size=4, optim=FAST)
    meta = reward_model.train(config, policy=bandit, preferences=strengths, seed=0, run=run)
    (scores,) = score_groups(load_scalar(run.out), [Group([1], [[LETTERS[x], 0] for x in "dbca"])], 99)
    assert scores == sorted(scores, reverse=True) and min(np.diff(scores[::-1])) > 0.1
    assert meta["pairs"] == 6 + 5 + 3 + 1
    lines = journal(run)
    assert lines[-1][1]["train/loss"] < lines[0][1]["train/loss"] / 4 and lines[-1][1]["train/accuracy"] == 1


@pytest.mark.parametrize("loss", ["bradley_terry", "k_wise"])
def test_centring_alone_moves_the_mean_of_the_rewards(base: Path, tables: Path, run: Run, loss: Literal["bradley_terry", "k_wise"]):
    """The bias of the head: no gradient from the comparisons, 4 c (r_w + r_l) of each pair from the penalty."""
    parts = {}
    for coefficient in (0.0, 0.25):
        model = new_scalar(base, 0)
        config = RewardModelConfig(loss=loss, centring_coefficient=coefficient, batch_size=6)
        algorithm, _, _ = reward_model._algorithm(config, model, base, tables, 0, run)
        (batch,) = algorithm.batches(0)
        value, sums = algorithm.loss(batch)
        value.backward()
        assert merge([sums])["train/loss"] == pytest.approx(float(value.detach()), abs=1e-6)
        parts[coefficient] = float(model.head.bias.grad), merge([sums])
    score_C = model.at_ends(batch.packed).detach()
    if isinstance(batch, RankedBatch):
        total_M = 2 * score_C.new_tensor([float(score_C[i] + score_C[j]) for i, j in zip(batch.better_M, batch.worse_M, strict=True)])
        wanted = float((total_M * 0.5 * batch.weight_M).sum()) / batch.prompts
        penalty = float((0.25 * (total_M / 2) ** 2 * batch.weight_M).sum()) / batch.prompts
    else:
        wanted, penalty = float(score_C.view(-1, 2).sum(-1).mean()), float((0.25 * score_C.view(-1, 2).sum(-1) ** 2).mean())
    assert parts[0.0][0] == pytest.approx(0, abs=1e-6) and parts[0.25][0] == pytest.approx(wanted, abs=1e-5)
    assert "reward_model/centring_loss" not in parts[0.0][1]
    assert parts[0.25][1]["reward_model/centring_loss"] == pytest.approx(penalty, abs=1e-6)
    assert parts[0.25][1]["train/loss"] == pytest.approx(parts[0.0][1]["train/loss"] + penalty, abs=1e-6)


def test_k_wise_dpo_orders_the_policy(bandit: Path, strengths: Path, run: Run, journal: Callable):
    config = KWiseDPOConfig(beta=0.5, epochs=12, batch_size=4, optim=FAST)
    kwise_dpo.train(config, policy=bandit, preferences=strengths, seed=0, run=run)
    group = Group([1], [[LETTERS[x], 0] for x in "dbca"])
    gains = (sequence_logps(load_policy(run.out), [group], 99) - sequence_logps(load_policy(bandit), [group], 99)).tolist()
    assert gains == sorted(gains, reverse=True) and gains[0] - gains[-1] > 2
    margins = [metrics["dpo/margin"] for _, metrics in journal(run)]
    assert margins[0] == pytest.approx(0, abs=1e-6) and margins[-1] > 1


def test_k_wise_dpo_on_two_completions_is_dpo(bandit: Path, new_run: Callable[..., Run], tmp_path: Path):
    write_table(tmp_path / "rankings.parquet", [ranked(0, 1)])
    write_table(tmp_path / "preferences.parquet", [Preference("c", "toy", QUESTION, "b", "c")])
    assert read_table(tmp_path / "rankings.parquet", Ranking)[0].completions == ("b", "c")
    pairs, rankings = new_run("pairs"), new_run("rankings")
    dpo.train(DPOConfig(epochs=4, batch_size=1, optim=FAST), policy=bandit, preferences=tmp_path, seed=0, run=pairs)
    kwise_dpo.train(KWiseDPOConfig(epochs=4, batch_size=1, optim=FAST), policy=bandit, preferences=tmp_path, seed=0, run=rankings)
    wanted = load_policy(pairs.out).state_dict()
    for name, own in load_policy(rankings.out).state_dict().items():
        torch.testing.assert_close(own, wanted[name], rtol=0, atol=1e-6)
