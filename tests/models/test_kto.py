"""KTO: its loss, the mismatched completions that rewards are measured from, its labels, and what it learns."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.packing import Group, pack
from data.records import Label, Message, Prompt, Ranking
from data.tables import read_table, write_table
from models.configs.kto import KTOConfig
from models.configs.optimisation import OptimConfig
from models.configs.preferences import JudgeConfig, PreferencesConfig
from models.configs.sampling import SamplingConfig
from models.loading import load_policy
from models.logprobs import sequence_logps, token_logps
from models.losses.kto import kto_loss, reference_point
from models.losses.sums import merge
from models.preferences import collect, labels_of
from models.run import Run
from models.training import kto
from models.training.kto import KahnemanTversky, mismatch, read_labels

C = 6
DESIRABLE = torch.tensor([True, False, True, True, False, True])
KNOBS = KTOConfig(beta=0.3, desirable_weight=1.5, undesirable_weight=0.8)


def doubles(seed: int) -> Tensor:
    return 5 * torch.randn(C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The loss


@pytest.mark.parametrize(("desirable", "wanted"), [(True, 0.268941), (False, 0.731059)])
def test_by_hand(desirable: bool, wanted: float):
    """beta 0.1, z0 = 1, a log-ratio of 11: 1 - sigmoid(1) and sigmoid(1); slopes -+ beta sigmoid(1) sigmoid(-1)."""
    logp = torch.tensor([-4.0], dtype=torch.float64, requires_grad=True)
    loss, sums = kto_loss(logp, torch.tensor([-15.0]), torch.tensor([desirable]), 1.0, KTOConfig(beta=0.1), 1)
    assert float(loss.detach()) == pytest.approx(wanted, abs=1e-6)
    loss.backward()
    assert logp.grad is not None
    assert float(logp.grad) == pytest.approx((-1 if desirable else 1) * 0.1 * 0.731059 * 0.268941, abs=1e-7)
    metrics, kind = merge([sums]), "desirable" if desirable else "undesirable"
    assert metrics[f"kto/{kind}_reward"] == pytest.approx(1.1) and metrics["kto/kl_nats"] == 1
    assert metrics[f"kto/{kind}_logp_nats"] == -4 and len([name for name in metrics if name.endswith("_reward")]) == 1


def test_against_numpy_and_by_gradient():
    logp, ref = doubles(1), doubles(2)
    loss, _ = kto_loss(logp, ref, DESIRABLE, 0.7, KNOBS, 11)
    value = 1 / (1 + np.exp(-0.3 * (logp - ref - 0.7).numpy()))
    wanted = np.where(DESIRABLE.numpy(), 1.5 * (1 - value), 0.8 * value)
    assert float(loss) == pytest.approx(wanted.sum() / 11, abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: kto_loss(x, ref, DESIRABLE, 0.7, KNOBS, 11)[0], logp.clone().requires_grad_())


def test_in_micro_batches_and_in_another_order():
    logp, ref = doubles(1), doubles(2)
    whole, sums = kto_loss(logp, ref, DESIRABLE, 0.7, KNOBS, C)
    parts = [kto_loss(logp[rows], ref[rows], DESIRABLE[rows], 0.7, KNOBS, C) for rows in ([4], [3, 0, 5, 2, 1])]
    assert float(parts[0][0] + parts[1][0]) == pytest.approx(float(whole), abs=1e-12)
    assert merge(part for _, part in parts) == pytest.approx(merge([sums]), rel=1e-6)


@pytest.mark.parametrize("far", [-1e4, 1e4])
def test_saturation_is_finite(far: float):
    logp = torch.tensor([far], requires_grad=True)
    loss, _ = kto_loss(logp, torch.zeros(1), torch.tensor([True]), 0.0, KTOConfig(), 1)
    loss.backward()
    assert float(loss.detach()) == (1.0 if far < 0 else 0.0) and logp.grad is not None and float(logp.grad) == 0


def test_reference_point_by_hand():
    zero = torch.zeros(2)
    assert reference_point(torch.tensor([3.0, -1.0]), zero) == 1.0
    assert reference_point(torch.tensor([-3.0, 1.0]), zero) == 0.0, "a KL is never negative"


# Mismatched completions


def test_mismatched_completions_are_those_of_other_prompts():
    groups = [Group([1], [[7]]), Group([1], [[8]]), Group([2], [[9]])]
    assert [(list(g.prompt), list(g.completions[0])) for g in mismatch(groups)] == [([1], [9]), ([1], [9]), ([2], [7])]
    assert [list(g.completions[0]) for g in mismatch(groups[:2])] == [[8], [7]], "nothing else is there"


def test_rewards_are_measured_from_the_whole_update_whatever_the_micro_batches(base: Path, other: Path, run: Run):
    """z0 is an estimate of the batch: the same in every micro-batch, of the policy as it is now against the reference as it was."""
    texts = [Label(f"l{i}", "toy", (Message("user", f"{i % 4}?"),), "yes" * (i + 1), i % 2 == 0) for i in range(8)]
    write_table(run.out / "labels.parquet", texts)
    config = KTOConfig(batch_size=6, micro_batch_tokens=40)
    algorithm = KahnemanTversky(load_policy(base), read_labels(run.out / "labels.parquet", base, 1024, run), config, 0, run)
    algorithm.freeze_reference(2)
    algorithm.policy = load_policy(other)
    for update in range(2):
        batches = algorithm.batches(update)
        gains = [
            float(sequence_logps(load_policy(other), [g], 99) - sequence_logps(load_policy(base), [g], 99))
            for g in algorithm.mismatched(update)
        ]
        assert len(batches) > 1 and len(gains) == 6 == sum(len(b.index_C) for b in batches)
        assert len({b.kl_nats for b in batches}) == 1 and 0 < batches[0].kl_nats == pytest.approx(sum(gains) / 6, abs=1e-4)


# Labels


PROMPT = Prompt("p", "toy", (Message("user", "?"),), "1", "number")


def test_labels_by_hand():
    """Threshold 0.5: 0.5 is enough, no text is there twice, what could not be judged has no label."""
    ranking = Ranking("r", "toy", PROMPT.messages, ("x", "y", "x", "z", "w"), (2, 0, 1, 2, 1))
    labels = labels_of(ranking, [0.0, 1.0, 0.5, 0.0, 0.5], [False, False, False, True, False], 0.5)
    assert [(label.completion, label.desirable) for label in labels] == [("x", False), ("y", True), ("w", True)]
    assert len({label.id for label in labels}) == 3 and labels[0].prompt == PROMPT.messages


def test_collected_labels_leave_held_out_prompts_alone(base: Path, tables: Path, run: Run, tmp_path: Path, monkeypatch: Any):
    (tmp_path / "judge_of_length.py").write_text("def judge(prompt, text):\n    return len(text.encode()) % 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = PreferencesConfig(
        samples_per_prompt=4,
        sampling=SamplingConfig(max_tokens=6),
        judges=[JudgeConfig(kind="callable", callable="judge_of_length:judge")],
        test_share=1 / 3,
    )
    meta = collect(config, policies={"base": base}, data=tables, seed=1, run=run)
    labels = read_table(run.out / "labels.parquet", Label)
    prompts = [p.messages for p in read_table(tables / "prompts.parquet", Prompt)]
    assert {label.prompt for label in labels} == set(prompts[:4]), "two of six are held out"
    assert all(label.desirable == (len(label.completion.encode()) % 2 == 1) for label in labels)
    assert (meta["labels"], meta["desirable_labels"]) == (len(labels), sum(label.desirable for label in labels))
    assert 0 < meta["desirable_labels"] < meta["labels"]
    read_labels(run.out / "labels.parquet", base, 1024, run)


@pytest.mark.parametrize("desirable", [True, False])
def test_labels_of_one_kind_are_refused(base: Path, run: Run, desirable: bool):
    write_table(run.out / "labels.parquet", [Label("l", "toy", PROMPT.messages, "1", desirable)])
    with pytest.raises(ValueError, match=f"are {'' if desirable else 'un'}desirable: KTO needs both kinds"):
        read_labels(run.out / "labels.parquet", base, 1024, run)


# Learning


def test_it_moves_probability_to_the_desirable(bandit: Path, run: Run, journal: Callable, tmp_path: Path):
    """b and d are good, c is bad, nothing is said of a."""
    said = {"b": True, "c": False, "d": True}
    write_table(tmp_path / "labels.parquet", [Label(text, "bandit", (Message("user", "a"),), text, good) for text, good in said.items()])
    fast = OptimConfig(learning_rate=3e-2, schedule="constant", warmup_share=0)
    config = KTOConfig(beta=0.5, batch_size=3, epochs=25, optim=fast)
    meta = kto.train(config, policy=bandit, labels=tmp_path, seed=0, run=run)
    assert (meta["desirable"], meta["undesirable"]) == (2, 1)
    answers = pack([Group([1], [[token, 0] for token in range(1, 5)])])
    before, after = (answers.sum_by_completion(token_logps(load_policy(f), answers)[0]).exp() for f in (bandit, run.out))
    gain = (after / before).tolist()
    assert min(gain[1], gain[3]) > 3 and gain[2] < 0.5
    lines = [metrics for _, metrics in journal(run)]
    assert lines[0]["kto/desirable_reward"] == pytest.approx(0, abs=1e-6) and lines[0]["kto/kl_nats"] == pytest.approx(0, abs=1e-6)
    assert lines[0]["train/loss"] == pytest.approx(0.5), "the reference is the policy as it came in"
    assert lines[-1]["kto/desirable_reward"] > 0.5 > 0 > lines[-1]["kto/undesirable_reward"]
    assert max(line["kto/kl_nats"] for line in lines) > 0 and all(math.isfinite(line["train/loss"]) for line in lines)
