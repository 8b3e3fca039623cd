"""When a group's prompt and completions are attended to apart, by hand, and that half precision stays near the exact numbers either way."""

import pytest
import torch
from torch import Tensor

from data.packing import Group, Packed, pack
from models import attention
from models.attention import PackedLayout, _similar_trees, _Tree, scores_apart


def tree(prompt: int, *completions: int) -> _Tree:
    return _Tree(0, prompt, completions)


def test_scores_by_hand():
    """4 + 2 x 3 x 5; of two such groups in one pair of buckets, prompts padded to 4 and completions to 3: 2 x (16 + 2 x 3 x 7)."""
    assert scores_apart([tree(2, 1, 3)]) == 34
    assert scores_apart([tree(2, 1, 3), tree(4, 2, 2)]) == 116


@pytest.mark.parametrize(
    ("group", "worth"),
    [
        (tree(100, *[64] * 8), True),  # 93,968 of 374,544
        (tree(100, 100), False),  # 30,000 of 40,000: one completion sees all
        (tree(60, 80, 80), True),  # 26,000 of 48,400
        (tree(10, 10, 200), False),  # 84,100 of 48,400: the short one is padded to the long one
        (tree(200, *[64] * 8), False),  # a completion and its prompt are too long to keep their scores
        (tree(100), False),  # nothing but a prompt
    ],
)
def test_what_is_worth_cutting_by_hand(group: _Tree, worth: bool):
    assert group.is_worth_cutting == worth


def test_groups_share_a_bucket_while_little_is_padded():
    trees = dict(enumerate([tree(60, 64, 64), tree(64, 60, 66), tree(60, 64, 64, 64), tree(8, 9, 9), tree(60, 60, 60)]))
    found = [[(t.prompt, len(t.completions)) for t in bucket] for bucket in _similar_trees(trees)]
    assert found == [[(8, 2)], [(60, 2), (60, 2), (64, 2)], [(60, 3)]]


def dense(packed: Packed, q_NHD: Tensor, k_NJD: Tensor, v_NJD: Tensor, scaling: float) -> Tensor:
    """Every token with every token, masked, in float64: ``[N, H, D]``."""
    shared = q_NHD.shape[1] // k_NJD.shape[1]
    q, k, v = (x.double().transpose(0, 1) for x in (q_NHD, k_NJD.repeat_interleave(shared, 1), v_NJD.repeat_interleave(shared, 1)))
    group_N, branch_N, place_N = packed.group_N, packed.branch_N, torch.arange(len(packed.group_N))
    seen_NN = (group_N[:, None] == group_N) & (place_N[:, None] >= place_N) & ((branch_N == 0) | (branch_N[:, None] == branch_N))
    return ((q @ k.transpose(1, 2) * scaling).masked_fill(~seen_NN, -torch.inf).softmax(-1) @ v).transpose(0, 1)


@pytest.mark.parametrize("share", [0.0, 9.0], ids=["whole", "apart"])
def test_half_precision_stays_near_double(share: float, monkeypatch: pytest.MonkeyPatch):
    """Six query heads on two, three groups in two buckets: outputs and gradients are off by a few roundings of bfloat16, 2^-8 each."""
    monkeypatch.setattr(attention, "CUTTING_SHARE", share)
    packed = pack([Group([1] * 9, [[1] * 7, [1] * 4]), Group([1] * 5, [[1] * 6, [1] * 5]), Group([1] * 3, [[1] * 2] * 3)])
    layout = PackedLayout(packed)
    assert {bucket.prompts is not None for bucket in layout.short} == ({True, False} if share else {False})
    noise = torch.Generator().manual_seed(0)
    own = [torch.randn(len(packed.group_N), heads, 8, generator=noise).bfloat16().requires_grad_() for heads in (6, 2, 2)]
    exact = [x.detach().double().requires_grad_() for x in own]
    out_NHD = layout.attend(0, *(x.transpose(0, 1)[None] for x in own), 8**-0.5)[0]
    wanted_NHD = dense(packed, *exact, 8**-0.5)
    weight_NHD = torch.randn(wanted_NHD.shape, generator=noise).bfloat16()
    out_NHD.backward(weight_NHD)
    wanted_NHD.backward(weight_NHD.double())
    assert (out_NHD - wanted_NHD).abs().max() < 4 * 2**-8 * wanted_NHD.abs().max()
    for x, y in zip(own, exact, strict=True):
        assert x.grad is not None and y.grad is not None
        assert (x.grad - y.grad).abs().max() < 6 * 2**-8 * y.grad.abs().max()
