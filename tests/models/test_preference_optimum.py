"""Preference optimisation reaches the optimum that its paper promises, on the bandit whose answers can be counted."""

import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.packing import Group
from data.records import Message, Preference
from data.tables import write_table
from models.configs.checkpointing import CheckpointConfig
from models.configs.dpo import DPOConfig
from models.configs.optimisation import OptimConfig
from models.loading import copy_tokenizer, load_policy
from models.logprobs import sequence_logps
from models.run import Run
from models.training import dpo

A = 1
ANSWERS = [2, 3, 4, 1]  # the letters b, c, d, a: token ids, each followed by the end
STRENGTH = torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)  # exp(reward)
REWARD = STRENGTH.log()
WIN = STRENGTH[:, None] / (STRENGTH[:, None] + STRENGTH)  # Bradley-Terry
COPIES = 45  # of each pair of answers: the counts of both labels are whole numbers then


@pytest.fixture(scope="module")
def rough(bandit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bandit with a policy far from uniform, so that the reference matters, and pairs labelled by Bradley-Terry in exact proportion."""
    folder = tmp_path_factory.mktemp("rough")
    model = load_policy(bandit)
    with torch.no_grad():
        model.get_output_embeddings().weight.copy_(torch.randn(5, 16, generator=torch.Generator().manual_seed(4)) * 0.12)
    model.save_pretrained(folder)
    copy_tokenizer(bandit, folder)
    shutil.copyfile(bandit / "prompts.parquet", folder / "prompts.parquet")
    assert all(round(COPIES * float(p)) == pytest.approx(COPIES * float(p)) for i, p in enumerate(WIN.flatten()) if i % 5)
    write_pairs(folder, WIN)
    return folder


def write_pairs(folder: Path, win: Tensor) -> None:
    """``COPIES`` pairs of every two answers, labelled in these proportions."""
    letters = ["<end>", *"abcd"]
    pairs = []
    for i, j in combinations(range(4), 2):
        for n in range(COPIES):
            w, l = (i, j) if n < round(COPIES * float(win[i, j])) else (j, i)  # noqa: E741
            pairs.append(Preference(f"{i}{j}{n}", "bandit", (Message("user", "a"),), letters[ANSWERS[w]], letters[ANSWERS[l]]))
    write_table(folder / "preferences.parquet", pairs)


def logps(folder: Path) -> Tensor:
    """Log-probabilities of the four answers."""
    return sequence_logps(load_policy(folder), [Group([A], [[token, 0] for token in ANSWERS])], 999).double()


def distance(p: Tensor, q: Tensor) -> float:
    """Total variation of two distributions over the four answers."""
    return float((p / p.sum() - q / q.sum()).abs().sum() / 2)


FULL = {
    "batch_size": 6 * COPIES,
    "epochs": 1000,
    "max_updates": 80,
    "optim": OptimConfig(learning_rate=3e-2, warmup_share=0, max_grad_norm=100),
    "checkpoint": CheckpointConfig(every_s=0),
}


def trained(config: DPOConfig, folder: Path, run: Run) -> Tensor:
    dpo.train(config, policy=folder, preferences=folder, seed=0, run=run)
    return logps(run.out)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_dpo_reaches_the_kl_regularised_optimum(rough: Path, run: Run, beta: float):
    """pi* = pi_ref exp(r / beta) / Z, from pairs alone."""
    before = logps(rough)
    optimum = (before + REWARD / beta).exp()
    after = trained(DPOConfig(beta=beta, **FULL), rough, run).exp()
    assert distance(optimum, before.exp()) > 0.1 and distance(optimum, STRENGTH ** (1 / beta)) > 0.1, "the test could fail"
    assert distance(after, optimum) < 0.02


def test_ipo_reaches_its_own_optimum(rough: Path, run: Run):
    """pi* = pi_ref exp(E_y' P(y beats y') / beta) / Z with y' uniform over the answers (Azar 2023)."""
    before, beta = logps(rough), 0.3
    optimum = (before + WIN.mean(1) / beta).exp()
    after = trained(DPOConfig(loss="ipo", beta=beta, **FULL), rough, run).exp()
    assert distance(optimum, before.exp()) > 0.1 and distance(optimum, (before + REWARD / beta).exp()) > 0.1
    assert distance(after, optimum) < 0.02


@pytest.mark.parametrize(
    ("knobs", "slope"),
    [({"divergence": "js"}, lambda u: (u / (1 + u)).log()), ({"divergence": "alpha", "alpha": 0.6}, lambda u: (1 - u**-0.6) / 0.6)],
)
def test_other_divergences_reach_theirs(rough: Path, run: Run, knobs: dict[str, Any], slope: Callable[[Tensor], Tensor]):
    """beta (f'(u_i) - f'(u_j)) = r_i - r_j for every two answers (Wang 2023, theorem 1)."""
    beta = 3.0
    before = logps(rough)
    after = trained(DPOConfig(beta=beta, **knobs, **FULL), rough, run)
    reward = beta * slope((after - before).exp())
    assert (reward - reward[3] - (REWARD - REWARD[3])).abs().max() < 0.1


def test_a_moving_reference_lets_the_policy_go_farther(rough: Path, new_run: Callable[..., Run]):
    """Each full synchronisation starts DPO anew from where it is: n of them are worth n times the reward."""
    before = logps(rough)
    config = DPOConfig(beta=4.0, reference_sync_every=40, **FULL)
    after = trained(config, rough, new_run("moved")).exp()
    once, twice = ((before + n * REWARD / 4.0).exp() for n in (1, 2))
    assert distance(once, twice) > 0.05
    assert distance(after, twice) < 0.02


@pytest.mark.parametrize("loss", ["conservative", "simpo", "orpo"])
def test_the_relatives_rank_the_answers_by_strength(rough: Path, run: Run, loss: str, journal: Callable):
    knobs = {"label_smoothing": 0.1} if loss == "conservative" else {}
    after = trained(DPOConfig(loss=loss, beta=2.0, **knobs, **FULL), rough, run)
    before = logps(rough)
    gained = after if loss in ("simpo", "orpo") else after - before
    assert gained.argsort(descending=True).tolist() == [0, 1, 2, 3]
    assert before.argsort(descending=True).tolist() != [0, 1, 2, 3]


def test_robust_dpo_sees_through_wrong_labels(rough: Path, new_run: Callable[..., Run], tmp_path: Path):
    """Every fifth label is flipped: plain DPO ends too near to the reference, robust DPO at the optimum of the true labels."""
    folder = Path(shutil.copytree(rough, tmp_path / "noisy"))
    write_pairs(folder, 0.8 * WIN + 0.2 * (1 - WIN))
    optimum = (logps(rough) + REWARD).exp()
    plain = trained(DPOConfig(beta=1.0, **FULL), folder, new_run("plain")).exp()
    robust = trained(DPOConfig(beta=1.0, loss="robust", label_smoothing=0.2, **FULL), folder, new_run("robust")).exp()
    assert distance(robust, optimum) < 0.03 < 0.1 < distance(plain, optimum)
