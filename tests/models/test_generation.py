"""The sampler: greedy as transformers does it, samples from the distribution that is trained on, rows that leave when they end."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from data.packing import Group, pack
from models import generation
from models.attention import NAME
from models.configs.sampling import SamplingConfig
from models.generation import Completion, Guide, generate, sample_tokens, truncate
from models.kv_cache import DecodeLayout
from models.logprobs import token_logps

GREEDY = SamplingConfig(temperature=0, max_tokens=14)
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15, 16], [200, 100]]
NEVER: list[int] = []


@pytest.fixture
def plain(base: Path) -> LlamaForCausalLM:
    """The same weights as transformers runs them."""
    return LlamaForCausalLM.from_pretrained(base, dtype="auto", attn_implementation="sdpa").eval()


@pytest.fixture
def dice() -> LlamaForCausalLM:
    """A policy over six tokens."""
    torch.manual_seed(1)
    shape = LlamaConfig(vocab_size=6, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM._from_config(shape, attn_implementation=NAME).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape) * 0.4 if parameter.ndim > 1 else parameter)
    return model


def tokens(results: Sequence[Sequence[Completion]]) -> list[list[list[int]]]:
    return [[completion.tokens for completion in row] for row in results]


def ends_of(results: list[list[list[int]]]) -> list[int]:
    """Tokens at which some of these completions end early, and others not."""
    return [results[0][0][4], results[2][0][9]]


# Greedy


def test_greedy_is_that_of_transformers_token_for_token(policy: nn.Module, plain: LlamaForCausalLM):
    endless = tokens(generate(policy, PROMPTS, GREEDY, samples=1, eos_ids=NEVER, seed=0))
    eos = ends_of(endless)
    own = generate(policy, PROMPTS, GREEDY, samples=1, eos_ids=eos, seed=0)
    for prompt, (completion,) in zip(PROMPTS, own, strict=True):
        ids = torch.tensor([prompt])
        settings = {"do_sample": False, "max_new_tokens": GREEDY.max_tokens, "eos_token_id": eos, "pad_token_id": 0}
        wanted = plain.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist()
        assert completion.tokens == wanted
        assert completion.finished == (wanted[-1] in eos)
    lengths = [len(row[0].tokens) for row in own]
    assert lengths[0] <= 5 and max(lengths) == GREEDY.max_tokens, "some end early, some do not"


@pytest.mark.parametrize("share", [0.0, 0.8, 1.0])
def test_rows_that_end_leave_without_changing_others(policy: nn.Module, monkeypatch: pytest.MonkeyPatch, share: float):
    eos = ends_of(tokens(generate(policy, PROMPTS, GREEDY, samples=1, eos_ids=NEVER, seed=0)))
    alone = [tokens(generate(policy, [prompt], GREEDY, samples=1, eos_ids=eos, seed=0))[0] for prompt in PROMPTS]
    widths = []
    decoder_of = generation.decoder_of

    def counting(policy, max_tokens):
        step = decoder_of(policy, max_tokens)
        call = type(step).__call__
        monkeypatch.setattr(type(step), "__call__", lambda own, token_R, cache: widths.append(len(token_R)) or call(own, token_R, cache))
        return step

    monkeypatch.setattr(generation, "decoder_of", counting)
    monkeypatch.setattr(generation, "KEEP_SHARE", share)
    assert tokens(generate(policy, PROMPTS, GREEDY, samples=1, eos_ids=eos, seed=0)) == alone
    assert (widths[-1] < len(PROMPTS)) == (share > 0), "ended rows are still computed only if they may not leave"


def test_waves_of_rows_change_no_greedy_answer(policy: nn.Module):
    whole = tokens(generate(policy, PROMPTS, GREEDY, samples=2, eos_ids=NEVER, seed=0))
    few = tokens(generate(policy, PROMPTS, GREEDY.model_copy(update={"max_rows": 3}), samples=2, eos_ids=NEVER, seed=0))
    assert few == whole and all(row[0] == row[1] for row in whole)


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5])
def test_waiting_prompts_enter_without_changing_others(policy: nn.Module, monkeypatch: pytest.MonkeyPatch, share: float):
    prompts = [[5 + i, 9, *range(20 + i, 20 + 2 * i)] for i in range(12)]
    eos = list(range(0, 259, 7))
    one = SamplingConfig(max_tokens=24, max_rows=1, temperature=0.0)
    alone = [generate(policy, [prompt], one, samples=1, eos_ids=eos, seed=0)[0] for prompt in prompts]
    lengths = [len(row[0].tokens) for row in alone]
    assert min(lengths) < max(lengths), "rows of several lengths"
    entered: list[int] = []
    join = DecodeLayout.join

    def counting(own: DecodeLayout, other: DecodeLayout) -> None:
        entered.append(len(own.own_R))
        join(own, other)
        assert len(own.own_R) <= 4

    monkeypatch.setattr(DecodeLayout, "join", counting)
    monkeypatch.setattr(generation, "REFILL_SHARE", share)
    sampling = SamplingConfig(max_tokens=24, max_rows=4, temperature=0.0)
    assert tokens(generate(policy, prompts, sampling, samples=1, eos_ids=eos, seed=0)) == tokens(alone)
    assert entered and min(entered) >= 1, "prompts enter while others go on"


def test_logps_of_rows_that_entered_late_are_those_of_the_trainer(policy: nn.Module):
    prompts = [[5 + i, 9, *range(20 + i, 20 + 2 * i)] for i in range(9)]
    sampling = SamplingConfig(max_tokens=20, max_rows=6)
    rows = generate(policy, prompts, sampling, samples=2, eos_ids=list(range(0, 259, 9)), seed=1)
    packed = pack([Group(prompt, [c.tokens for c in row]) for prompt, row in zip(prompts, rows, strict=True)])
    wanted, _ = token_logps(policy, packed)
    own = torch.tensor([logp for row in rows for c in row for logp in c.logps])
    torch.testing.assert_close(own, wanted, rtol=0, atol=1e-5)


def test_the_longest_completion_is_a_limit(policy: nn.Module):
    one = generate(policy, PROMPTS, SamplingConfig(max_tokens=1), samples=3, eos_ids=NEVER, seed=0)
    assert {len(c.tokens) for row in one for c in row} == {1} and not any(c.finished for row in one for c in row)


# What is sampled is what is trained on


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_returned_logps_are_those_of_the_trainer(policy: nn.Module, temperature: float):
    sampling = SamplingConfig(temperature=temperature, max_tokens=10)
    rows = generate(policy, PROMPTS, sampling, samples=5, eos_ids=list(range(0, 259, 9)), seed=1)
    assert len({len(c.tokens) for row in rows for c in row}) > 2, "rows of several lengths"
    packed = pack([Group(prompt, [c.tokens for c in row]) for prompt, row in zip(PROMPTS, rows, strict=True)])
    wanted, _ = token_logps(policy, packed, temperature)
    own = torch.tensor([logp for row in rows for c in row for logp in c.logps])
    torch.testing.assert_close(own, wanted, rtol=0, atol=1e-5)


def test_greedy_logps_are_at_temperature_1(policy: nn.Module):
    ((completion,),) = generate(policy, PROMPTS[:1], GREEDY, samples=1, eos_ids=NEVER, seed=0)
    wanted, _ = token_logps(policy, pack([Group(PROMPTS[0], [completion.tokens])]))
    torch.testing.assert_close(torch.tensor(completion.logps), wanted, rtol=0, atol=1e-5)


def chi_square(counts: Tensor, expected: Tensor) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


# 99.9 % quantiles: a right sampler fails one seed in a thousand, and the seed is fixed.
CHI_SQUARE_5, CHI_SQUARE_35 = 20.5, 66.6


def test_pairs_of_tokens_come_as_often_as_the_policy_says(dice: LlamaForCausalLM):
    """The joint distribution of two tokens: 36 cells, so that the step after the first is tested too."""
    n = 6000
    prompt = [3, 1]
    (rows,) = generate(dice, [prompt], SamplingConfig(max_tokens=2, max_rows=n), samples=n, eos_ids=NEVER, seed=0)
    counts = torch.bincount(torch.tensor([6 * c.tokens[0] + c.tokens[1] for c in rows]), minlength=36).double()
    packed = pack([Group(prompt, [[a, b] for a in range(6) for b in range(6)])])
    p = packed.sum_by_completion(token_logps(dice, packed)[0]).exp().double()
    assert float(p.sum()) == pytest.approx(1, abs=1e-4) and p.max() > 2 * p.min()
    assert chi_square(counts, n * p) < CHI_SQUARE_35


@pytest.mark.parametrize(
    ("sampling", "masses"),
    [
        (SamplingConfig(), [1, 2, 3, 4, 0.5, 0.5]),
        (SamplingConfig(temperature=0.5), [1, 4, 9, 16, 0.25, 0.25]),
        (SamplingConfig(top_k=3), [0, 2, 3, 4, 0, 0]),
        (SamplingConfig(top_p=0.6), [0, 0, 3, 4, 0, 0]),
    ],
)
def test_one_token_comes_as_often_as_its_mass(sampling: SamplingConfig, masses: list[float]):
    n = 20_000
    logits = torch.tensor([1, 2, 3, 4, 0.5, 0.5]).log().expand(n, 6)
    token_R, _ = sample_tokens(logits, sampling, torch.Generator().manual_seed(0))
    counts = torch.bincount(token_R, minlength=6).double()
    p = torch.tensor(masses, dtype=torch.float64)
    assert counts[p == 0].sum() == 0
    assert chi_square(counts[p > 0], n * p[p > 0] / p.sum()) < CHI_SQUARE_5


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (0.4, 1), (0.6, 4), (1.0, 4)])
def test_a_token_without_mass_is_never_drawn(monkeypatch: pytest.MonkeyPatch, uniform: float, token: int):
    """Not even at the ends of the uniform number (1 by rounding): the first, the last and the middle tokens have no mass."""
    monkeypatch.setattr(generation.torch, "rand", lambda n, **_: torch.full((n,), uniform, dtype=torch.float64))
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, -math.inf, 0.0, -math.inf]])
    assert sample_tokens(logits, SamplingConfig(), torch.Generator())[0].tolist() == [token]


def test_logps_are_before_truncation():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    token_R, logp_R = sample_tokens(logits, SamplingConfig(top_k=1), torch.Generator().manual_seed(0))
    assert token_R.tolist() == [0] and logp_R.exp().tolist() == pytest.approx([0.5])


# Truncation, by hand


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 1.0, [0.1, 0.4, 0.2, 0.3]),
        (2, 1.0, [0, 0.4, 0, 0.3]),
        (9, 1.0, [0.1, 0.4, 0.2, 0.3]),
        (0, 0.3, [0, 0.4, 0, 0]),  # the most likely one alone holds 0.3
        (0, 0.65, [0, 0.4, 0, 0.3]),
        (0, 0.75, [0, 0.4, 0.2, 0.3]),  # 0.7 is not enough: the third is needed
        (2, 0.5, [0, 0.4, 0, 0]),  # of the two that are left it holds 4/7
        (2, 0.6, [0, 0.4, 0, 0.3]),
    ],
)
def test_truncation_by_hand(top_k: int, top_p: float, kept: list[float]):
    logp = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    assert truncate(logp, top_k, top_p).exp()[0].tolist() == pytest.approx(kept)


def test_each_row_is_truncated_on_its_own():
    logp = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.2, 0.6, 0.2]]).log()
    assert truncate(logp, 0, 0.5).isfinite().tolist() == [[True, False, False], [False, False, True], [False, True, False]]


# Seeds and callbacks


def test_a_seed_gives_one_result_and_another_another(policy: nn.Module):
    sampling = SamplingConfig(max_tokens=8)
    one, again, other = (tokens(generate(policy, PROMPTS, sampling, samples=3, eos_ids=[2], seed=seed)) for seed in (1, 1, 2))
    assert one == again != other
    assert len({tuple(c) for c in one[0]}) == 3, "samples of one prompt differ"


def test_waves_have_noise_of_their_own(policy: nn.Module):
    twice = [PROMPTS[0], PROMPTS[0]]
    first, second = tokens(generate(policy, twice, SamplingConfig(max_tokens=8, max_rows=3), samples=3, eos_ids=NEVER, seed=0))
    assert first != second


def test_on_step_may_raise_and_is_asked_before_each_token(policy: nn.Module):
    class Enough(Exception):
        pass

    steps = iter(range(3))

    def step() -> None:
        if next(steps, None) is None:
            raise Enough

    seen: list[list[int]] = []
    with pytest.raises(Enough):
        generate(policy, PROMPTS, GREEDY, samples=1, eos_ids=NEVER, seed=0, on_step=step, on_tokens=seen.append)
    assert len(seen) == 3


def test_streamed_tokens_are_the_result(policy: nn.Module):
    seen: list[list[int]] = []
    ((completion,),) = generate(policy, PROMPTS[:1], GREEDY, samples=1, eos_ids=NEVER, seed=0, on_tokens=seen.append)
    assert [token for (token,) in seen] == completion.tokens


def test_no_prompt_gives_no_completion(policy: nn.Module):
    assert generate(policy, [], GREEDY, samples=2, eos_ids=NEVER, seed=0) == []


def test_an_empty_prompt_is_refused(policy: nn.Module):
    with pytest.raises(ValueError, match="0 prompt tokens"):
        generate(policy, [[1], []], GREEDY, samples=1, eos_ids=NEVER, seed=0)


# A guide


class Sharpened(Guide):
    """Multiplies the logits, as a temperature would; notes what it is told."""

    def __init__(self, factor: float) -> None:
        self.factor, self.rows, self.told = factor, 0, []

    def begin(self, prompts, samples, max_tokens):
        self.rows = len(prompts) * samples

    def adjust(self, logits_RV):
        assert len(logits_RV) == self.rows
        return logits_RV * self.factor

    def advance(self, token_R):
        assert len(token_R) == self.rows
        self.told.append(token_R.tolist())

    def select(self, keep_R):
        self.rows = len(keep_R)


def test_a_guide_changes_what_is_sampled_and_follows_the_rows(policy):
    prompts, arguments = [[5, 6, 7], [8]], {"samples": 3, "eos_ids": list(range(0, 259, 3)), "seed": 1}
    guided = Sharpened(2.0)
    found = generate(policy, prompts, SamplingConfig(max_tokens=6), guide=guided, **arguments)
    wanted = generate(policy, prompts, SamplingConfig(max_tokens=6, temperature=0.5), **arguments)
    assert [[c.tokens for c in row] for row in found] == [[c.tokens for c in row] for row in wanted]
    assert found != generate(policy, prompts, SamplingConfig(max_tokens=6), **arguments)
    assert guided.rows < 6 and guided.told, "rows have left, and the others went on"
