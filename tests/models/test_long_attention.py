"""Which keys a block of queries multiplies, by hand, and that its numbers are those of a plain softmax."""

import pytest
import torch

from models import long_attention
from models.long_attention import blocks


def seen(branches: list[int]) -> list[tuple[int, int, int, int]]:
    return [(b.start, b.end, b.prompt, b.first) for b in blocks(torch.tensor(branches))]


def test_blocks_by_hand(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(long_attention, "BLOCK_TOKENS", 4)
    assert seen([0, 0]) == [(0, 2, 2, 0)]
    assert seen([0] * 6) == [(0, 4, 4, 0), (4, 6, 6, 0)], "of what is before a block all is seen"
    assert seen([0, 0, 1, 1, 2, 2, 3]) == [(0, 2, 2, 0), (2, 6, 2, 2), (6, 7, 2, 6)], "several completions, then one more"
    assert seen([0, *[1] * 6, 2, 3]) == [(0, 1, 1, 0), (1, 5, 1, 1), (5, 7, 1, 1), (7, 9, 1, 7)]


def test_every_query_sees_the_prompt_and_its_own_completion_until_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(long_attention, "BLOCK_TOKENS", 3)
    branch_L = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 3, 3, 4, 4, 4])
    wanted_LL = torch.ones(15, 15).tril().bool() & ((branch_L == 0) | (branch_L[:, None] == branch_L))
    for block in blocks(branch_L):
        key_S = block.keys(torch.arange(15)[None, :, None])[0, :, 0]
        seen_LS = torch.ones(block.end - block.start, len(key_S)).bool()
        seen_LS[:, len(key_S) - block.mask_LM.shape[1] :] &= block.mask_LM
        found_LL = torch.zeros(block.end - block.start, 15).bool()
        found_LL[:, key_S] = seen_LS
        assert torch.equal(found_LL, wanted_LL[block.start : block.end])


def test_half_precision_stays_near_double(monkeypatch: pytest.MonkeyPatch):
    """Six query heads on two, 40 tokens in blocks of 16: the output is off by at most a rounding of bfloat16, 2^-8 of it."""
    monkeypatch.setattr(long_attention, "BLOCK_TOKENS", 16)
    noise = torch.Generator().manual_seed(0)
    q_LHD, k_LJD, v_LJD = (torch.randn(40, heads, 8, generator=noise).bfloat16() for heads in (6, 2, 2))
    cut = blocks(torch.zeros(40, dtype=torch.long))
    own_LHD = long_attention.long_attention(q_LHD, k_LJD, v_LJD, cut, [b.bias(3, torch.bfloat16) for b in cut], 8**-0.5)
    q, k, v = (x.double().transpose(0, 1) for x in (q_LHD, k_LJD.repeat_interleave(3, 1), v_LJD.repeat_interleave(3, 1)))
    scores_HLL = (q @ k.transpose(1, 2) * 8**-0.5).masked_fill(~torch.ones(40, 40).tril().bool(), -torch.inf)
    exact_LHD = (scores_HLL.softmax(-1) @ v).transpose(0, 1)
    assert (own_LHD - exact_LHD).abs().max() < 4 * 2**-8 * exact_LHD.abs().max()
