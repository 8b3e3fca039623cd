"""The losses of GRPO and its variants beside those of TRL, where that is installed (it is no dependency): values and gradients."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.losses.grpo import VARIANTS, Sizes
from models.losses.kl import k3

pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's own, at import

LENGTHS = [4, 1, 3, 2]
MASK = torch.arange(4) < torch.tensor(LENGTHS)[:, None]
LOW, HIGH, BETA, LONGEST = 0.1, 0.25, 0.3, 6
ROUND_TOKENS = 24  # of a round of two updates, of which this one has 10


def doubles(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_trl(loss_type: str, logp_CT: Tensor, entropy_CT: Tensor, inputs: dict[str, Any], beta: float) -> Tensor:
    """TRL's ``_compute_loss`` over given log-probabilities: the trainer around it only counts and collects."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    itself: Any = SimpleNamespace(
        loss_type="grpo" if loss_type == "gspo" else loss_type,
        importance_sampling_level="sequence" if loss_type == "gspo" else "token",
        epsilon_low=LOW,
        epsilon_high=1 + HIGH if loss_type == "cispo" else HIGH,  # there it is the bound itself, not its distance from 1
        beta=beta,
        _entropy_bonus_enabled=False,
        use_adaptive_entropy=False,
        max_completion_length=LONGEST,
        current_gradient_accumulation_steps=1,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_vllm="importance_sampling_ratio" in inputs,
        vllm_importance_sampling_correction=True,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=2),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=True),
        model=SimpleNamespace(training=True),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp_CT, entropy_CT, None),
    )
    tokens = torch.zeros(len(LENGTHS), 1, dtype=torch.long)
    masks = {"prompt_mask": torch.ones_like(tokens), "completion_mask": MASK.long(), "completion_ids": torch.zeros_like(MASK).long()}
    return GRPOTrainer._compute_loss(itself, None, {"prompt_ids": tokens, **masks, **inputs})


@pytest.mark.parametrize("beta", [0.0, BETA])
@pytest.mark.parametrize("name", VARIANTS)
def test_values_and_gradients_are_those_of_trl(name: str, beta: float):
    """bnpo and the rest of TRL's local means are compared over a batch that is one micro-batch, where TRL's are what they are here."""
    logp, old, ref = (doubles(4, 4, seed=seed).mul(0.3).sub(1) for seed in (1, 2, 3))
    advantage, weight = doubles(4, seed=4), doubles(4, 4, seed=5).exp().clamp(max=2)
    logp.requires_grad_()
    inputs = {"advantages": advantage, "old_per_token_logps": old, "ref_per_token_logps": ref, "importance_sampling_ratio": weight}
    theirs = of_trl(name, logp, doubles(4, 4, seed=6), inputs | {"num_items_in_batch": torch.tensor(ROUND_TOKENS)}, beta)
    (their_gradient,) = torch.autograd.grad(theirs, logp)

    variant = VARIANTS[name]
    loss_CT, _ = variant.surrogate(logp, old, advantage[:, None].expand(4, 4), MASK, LOW, HIGH)
    loss_CT = loss_CT * weight + beta * torch.where(MASK, k3(logp, ref), 0.0)
    ours = variant.reduce(loss_CT, MASK, Sizes(4, sum(LENGTHS), ROUND_TOKENS / 2, LONGEST))
    (our_gradient,) = torch.autograd.grad(ours, logp)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=0, atol=1e-12)
    assert float(our_gradient.abs().max()) > 0
