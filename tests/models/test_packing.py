"""Packing, prompt sharing, micro-batches, order and padding change nothing: not a log-probability, not a gradient."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from data.packing import Group, pack, split_by_tokens
from models import attention, long_attention
from models.logprobs import token_logps

EXACT = {"rtol": 0.0, "atol": 1e-10}
Groups = Callable[..., list[Group]]


def plain_logps(model: nn.Module, groups: Sequence[Group]) -> list[Tensor]:
    """Log-probabilities of every completion, each in a forward pass of its own: transformers' model, nothing of ours."""
    found = []
    for group in groups:
        for completion in group.completions:
            logits = model(torch.tensor([[*group.prompt, *completion]])).logits[0, len(group.prompt) - 1 : -1]
            found.append(logits.log_softmax(-1).gather(-1, torch.tensor([completion]).T)[:, 0])
    return found


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def by_completion(logp_S: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    return list(logp_S.split(list(lengths)))


# What a packed batch is, by hand


def test_a_group_by_hand():
    packed = pack([Group([10, 11], [[20, 21], [30]])])
    assert packed.input_ids_N.tolist() == [10, 11, 20, 21, 30]
    assert packed.position_N.tolist() == [0, 1, 2, 3, 2], "each completion goes on where the prompt ended"
    assert packed.branch_N.tolist() == [0, 0, 1, 1, 2]
    assert packed.source_S.tolist() == [1, 2, 1], "first tokens are predicted from the prompt's last"
    assert packed.target_S.tolist() == [20, 21, 30]
    assert (packed.completion_S.tolist(), packed.offset_S.tolist()) == ([0, 0, 1], [0, 1, 0])
    assert packed.last_C.tolist() == [3, 4]


def test_groups_follow_each_other_by_hand():
    packed = pack([Group([1], [[2, 3]]), Group([4, 5], [[6], [7]])])
    assert packed.group_N.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert packed.group_starts_K.tolist() == [0, 3, 7]
    assert packed.position_N.tolist() == [0, 1, 2, 0, 1, 2, 2]
    assert packed.source_S.tolist() == [0, 1, 4, 4]
    assert packed.completion_S.tolist() == [0, 0, 1, 2]
    assert packed.lengths_C().tolist() == [2, 1, 1]


def test_only_scored_tokens_are_sources_and_they_keep_their_offsets():
    packed = pack([Group([1], [[2, 3, 4], [5, 6]], scored=[[False, True, True], [True, False]])])
    assert packed.target_S.tolist() == [3, 4, 5]
    assert packed.source_S.tolist() == [1, 2, 0]
    assert packed.offset_S.tolist() == [1, 2, 0]
    assert packed.input_ids_N.tolist() == [1, 2, 3, 4, 5, 6], "unscored tokens are still context"


def test_values_find_their_completions():
    packed = pack([Group([1], [[2, 3, 4], [5, 6]], scored=[[False, True, True], [True, False]])])
    values_S = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    assert packed.unflatten(values_S, 4, fill=-1.0).tolist() == [[-1.0, 1.0, 2.0, -1.0], [4.0, -1.0, -1.0, -1.0]]
    assert packed.sum_by_completion(values_S).tolist() == [3.0, 4.0]
    (packed.unflatten(values_S, 4).sum() + 10 * packed.sum_by_completion(values_S)[1]).backward()
    assert values_S.grad is not None and values_S.grad.tolist() == [1.0, 1.0, 11.0]


@pytest.mark.parametrize(("group", "said"), [(Group([], [[1]]), "0 prompt tokens"), (Group([1], [[2], []]), r"\[1, 0\] tokens")])
def test_a_group_without_a_prompt_or_a_completion_token_is_refused(group, said):
    with pytest.raises(ValueError, match=rf"group 1 has .*{said}"):
        pack([Group([1], [[2]]), group])


def test_split_by_tokens_by_hand():
    groups = [Group([1], [[1] * n]) for n in (2, 3, 9, 1, 1)]
    sizes = [[group.n_tokens for group in part] for part in split_by_tokens(groups, 7)]
    assert sizes == [[3, 4], [10], [2, 2]], "cut in order; a longer group stands alone"
    assert list(split_by_tokens([], 7)) == []


# Nothing that packing does changes a number


@pytest.fixture(params=["short", "apart", "long"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways in which attention is computed."""
    if request.param == "apart":
        monkeypatch.setattr(attention, "CUTTING_SHARE", 1.5)  # of most groups prompt and completions
    if request.param == "long":
        monkeypatch.setattr(attention, "SHORT_TOKENS", 8)  # so that some groups are on either side
        monkeypatch.setattr(long_attention, "BLOCK_TOKENS", 4)


@pytest.mark.usefixtures("kernel")
def test_packed_groups_equal_one_sequence_at_a_time(policy64: nn.Module, plain64: nn.Module, random_groups: Groups):
    """Groups of several lengths, so that there are several buckets, padded within, and completions that share a prompt."""
    groups = random_groups(7, completions=3)
    wanted = plain_logps(plain64, groups)
    logp_S, _ = token_logps(policy64, pack(groups))
    torch.testing.assert_close(logp_S, torch.cat(wanted), **EXACT)

    weight_S = torch.linspace(-1, 2, len(logp_S), dtype=torch.float64)
    own = gradients(policy64, (weight_S * logp_S).sum())
    plain = gradients(plain64, (weight_S * torch.cat(wanted)).sum())
    assert own.keys() == plain.keys() and len(own) == len(list(policy64.parameters()))
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, plain[name], msg=lambda m, name=name: f"{name}: {m}", **EXACT)


def test_a_shared_prompt_equals_a_prompt_for_each_completion(policy64: nn.Module, random_groups: Groups):
    groups = random_groups(4, completions=3, seed=1)
    alone = [Group(group.prompt, [completion]) for group in groups for completion in group.completions]
    shared_S, apart_S = (token_logps(policy64, pack(some))[0] for some in (groups, alone))
    torch.testing.assert_close(shared_S, apart_S, **EXACT)


def test_a_completion_does_not_see_its_siblings_or_other_groups(policy64: nn.Module, random_groups: Groups):
    first, second = random_groups(2, completions=2, seed=2)
    before_S, _ = token_logps(policy64, pack([first, second]))
    changed = Group(first.prompt, [first.completions[0], [5] * len(first.completions[1])])
    other = Group([7] * len(second.prompt), [[8] * len(c) for c in second.completions])
    after_S, _ = token_logps(policy64, pack([changed, other]))
    kept = len(first.completions[0])
    torch.testing.assert_close(after_S[:kept], before_S[:kept], **EXACT)
    assert not torch.isclose(after_S[kept:], before_S[kept:]).any(), "what did change shows"


def test_order_of_groups_changes_nothing(policy64: nn.Module, random_groups: Groups):
    groups = random_groups(5, completions=2, seed=3)
    order = [3, 0, 4, 1, 2]
    lengths = [len(c) for group in groups for c in group.completions]
    straight = by_completion(token_logps(policy64, pack(groups))[0], lengths)
    mixed = [groups[i] for i in order]
    permuted = by_completion(token_logps(policy64, pack(mixed))[0], [len(c) for group in mixed for c in group.completions])
    for place, k in enumerate(order):
        for b in range(2):
            torch.testing.assert_close(permuted[2 * place + b], straight[2 * k + b], **EXACT)


@pytest.mark.parametrize("max_tokens", [1, 20, 40])
def test_micro_batches_add_up_to_the_whole(policy64: nn.Module, random_groups: Groups, max_tokens: int):
    groups = random_groups(6, completions=2, seed=4)
    whole_S, _ = token_logps(policy64, pack(groups))
    whole = gradients(policy64, whole_S.pow(2).sum())
    policy64.zero_grad()
    parts = []
    for part in split_by_tokens(groups, max_tokens):
        logp_S, _ = token_logps(policy64, pack(part))
        logp_S.pow(2).sum().backward()
        parts.append(logp_S)
    assert len(parts) > 1
    torch.testing.assert_close(torch.cat(parts), whole_S, **EXACT)
    for name, p in policy64.named_parameters():
        torch.testing.assert_close(p.grad, whole[name], **EXACT)


def test_buckets_hold_similar_lengths_and_every_group_once(random_groups: Groups):
    groups = random_groups(40, completions=1, seed=5)
    packed = pack(groups)
    lengths = packed.group_starts_K.diff()
    buckets = attention._similar_lengths(dict(enumerate(lengths.tolist())))
    assert sorted(k for bucket in buckets for k in bucket) == list(range(40))
    assert all(lengths[bucket].max() <= attention.BUCKET_RATIO * lengths[bucket].min() for bucket in buckets)
    assert 1 < len(buckets) < 40
