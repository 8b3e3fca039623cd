"""The losses of pairs and labels have the values that TRL's have on the same log-probabilities (where TRL is installed)."""

import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.configs.dpo import PairLossConfig
from models.configs.kto import KTOConfig
from models.losses.dpo import Side, dpo_loss, log_odds
from models.losses.kto import kto_loss, reference_point

pytest.importorskip("trl")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that its experimental interfaces may change
    CPOTrainer: Any = pytest.importorskip("trl.experimental.cpo").CPOTrainer
    ORPOTrainer: Any = pytest.importorskip("trl.experimental.orpo").ORPOTrainer
    DPOTrainer: Any = pytest.importorskip("trl.trainer.dpo_trainer").DPOTrainer
    KTOTrainer: Any = pytest.importorskip("trl.trainer.kto_trainer").KTOTrainer

P, T = 6, 9
CLOSE = {"rel": 1e-5, "abs": 1e-6}


def per_token(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities of completion tokens, 0 elsewhere, and their mask ``[rows, T]``."""
    noise = torch.Generator().manual_seed(seed)
    length = torch.randint(1, T, (rows, 1), generator=noise)
    mask = torch.arange(T) < length
    return torch.where(mask, -torch.rand(rows, T, generator=noise), 0.0), mask


class Anything(SimpleNamespace):
    """What a trainer looks at beside its loss: metrics and devices."""

    def __init__(self, **values: Any) -> None:
        accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x, gather=lambda x: x)
        super().__init__(
            accelerator=accelerator,
            model=SimpleNamespace(training=True),
            aux_loss_enabled=False,
            _metrics=defaultdict(lambda: defaultdict(list)),
            _total_train_tokens=0,
            _tp_size=1,
            precompute_ref_logps=True,
            **values,
        )


def outputs_of(logp: Tensor) -> Any:
    zeros = torch.zeros_like(logp)
    return lambda **_: SimpleNamespace(log_probs=logp, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def inputs_of(mask: Tensor) -> dict[str, Tensor]:
    completion = torch.cat([torch.zeros(len(mask), 1, dtype=torch.long), mask.long()], 1)
    return {"input_ids": torch.ones_like(completion), "attention_mask": torch.ones_like(completion), "completion_mask": completion}


def trl_dpo(logp: Tensor, mask: Tensor, ref: Tensor, **settings: Any) -> float:
    knobs = {"beta": 0.3, "label_smoothing": 0.0, "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 1.0} | settings
    trainer = Anything(**knobs, loss_weights=[1.0], ld_alpha=None, use_weighting=False)
    inputs = inputs_of(mask) | {"ref_chosen_logps": ref[:P], "ref_rejected_logps": ref[P:]}
    return float(DPOTrainer._compute_loss(trainer, outputs_of(logp), inputs, False))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"loss_types": ["sigmoid"]}),
        ({"length_normalised": True}, {"loss_types": ["sigmoid_norm"]}),
        ({"loss": "robust", "label_smoothing": 0.2}, {"loss_types": ["robust"], "label_smoothing": 0.2}),
        ({"loss": "ipo", "length_normalised": True}, {"loss_types": ["ipo"]}),
        ({"divergence": "forward_kl"}, {"loss_types": ["sigmoid"], "f_divergence_type": "forward_kl"}),
        ({"divergence": "js"}, {"loss_types": ["sigmoid"], "f_divergence_type": "js_divergence"}),
        (
            {"divergence": "alpha", "alpha": 0.3},
            {"loss_types": ["sigmoid"], "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
        ),
    ],
)
def test_losses_with_a_reference(ours: dict[str, Any], theirs: dict[str, Any]):
    logp, mask = per_token(2 * P, seed=1)
    ref = torch.where(mask, per_token(2 * P, seed=2)[0], 0.0).sum(1) - 0.5
    chosen, rejected = (Side(logp[i].sum(1), ref[i], mask[i].sum(1)) for i in (slice(0, P), slice(P, 2 * P)))
    loss, _ = dpo_loss(chosen, rejected, PairLossConfig(beta=0.3, **ours), P)
    assert float(loss) == pytest.approx(trl_dpo(logp, mask, ref, **theirs), **CLOSE)


def mean_sides() -> tuple[Side, Side, Tensor, Tensor]:
    (chosen, chosen_mask), (rejected, rejected_mask) = per_token(P, 3), per_token(P, 4)
    sides = Side(chosen.sum(1), None, chosen_mask.sum(1)), Side(rejected.sum(1), None, rejected_mask.sum(1))
    return *sides, chosen.sum(1) / chosen_mask.sum(1), rejected.sum(1) / rejected_mask.sum(1)


def test_simpo():
    chosen, rejected, chosen_mean, rejected_mean = mean_sides()
    trainer = Anything(beta=2.0, simpo_gamma=0.6, alpha=0.0, label_smoothing=0.0, loss_type="simpo")
    theirs = CPOTrainer.cpo_loss(trainer, chosen_mean, rejected_mean)[0].mean()
    ours, _ = dpo_loss(chosen, rejected, PairLossConfig(loss="simpo", beta=2.0, target_margin=0.6), P)
    assert float(ours) == pytest.approx(float(theirs), **CLOSE)


def test_orpo():
    """TRL adds its own mean of the likelihood over all tokens of the batch, prompts included: the odds ratio is compared alone."""
    chosen, rejected, chosen_mean, rejected_mean = mean_sides()
    losses, _, _, _, odds = ORPOTrainer.odds_ratio_loss(Anything(beta=0.3), chosen_mean, rejected_mean)
    knobs = PairLossConfig(loss="orpo", beta=0.3)
    likelihood = -float(chosen.mean_logp().mean())
    assert float(dpo_loss(chosen, rejected, knobs, P)[0]) - likelihood == pytest.approx(-float(losses.mean()), **CLOSE)
    assert float((log_odds(chosen, knobs) - log_odds(rejected, knobs)).mean()) == pytest.approx(float(odds), **CLOSE)


def test_kto():
    logp, mask = per_token(P, 5)
    ref, kl_logp, kl_ref = (per_token(P, seed)[0].sum(1) for seed in (6, 7, 8))
    kl_ref = kl_ref - 1.0  # so that the KL is not clamped
    desirable = torch.tensor([True, False, True, True, False, True])
    trainer = Anything(
        beta=0.3, desirable_weight=1.4, undesirable_weight=0.9, loss_type="kto", calculate_KL=True, _compute_kl_logps=lambda *_: kl_logp
    )
    inputs = inputs_of(mask) | {"label": desirable, "ref_logps": ref, "ref_KL_logps": kl_ref}
    theirs = KTOTrainer._compute_loss(trainer, outputs_of(logp), inputs, False)
    knobs = KTOConfig(beta=0.3, desirable_weight=1.4, undesirable_weight=0.9)
    z0 = reference_point(kl_logp, kl_ref)
    ours, _ = kto_loss(logp.sum(1), ref, desirable, z0, knobs, P)
    assert z0 > 0.1 and float(ours) == pytest.approx(float(theirs), **CLOSE)
