"""Nothing is lost for speed: the sampler is transformers' own distribution, and packed, shared, chunked, split training is padded training.

The other side of every comparison here is transformers' model with its own attention, on padded rows, and formulas written out.

Axes: ``B`` padded rows, ``T`` their tokens, ``V`` vocabulary.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chi2
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from data.packing import Group, pack
from models import attention, long_attention, vocabulary_head
from models.attention import NAME
from models.configs.dpo import DPOConfig
from models.configs.grpo import GRPOConfig
from models.configs.sampling import SamplingConfig
from models.configs.sft import SFTConfig
from models.generation import generate
from models.logprobs import token_logps
from models.run import Run
from models.training.core import Algorithm
from models.training.dpo import PreferenceOptimisation
from models.training.grpo import GRPO
from models.training.imitation import Imitation
from models.training.pairs import Pairs
from models.training.rollout import Rollout

Groups = Callable[..., list[Group]]
EXACT = {"rtol": 0.0, "atol": 1e-6}
P_VALUE = 1e-3  # a right sampler is below it with one seed in a thousand, and the seed is fixed


@pytest.fixture
def plain(base: Path) -> LlamaForCausalLM:
    """The weights of ``base`` as transformers runs them."""
    return LlamaForCausalLM.from_pretrained(base, dtype="auto", attn_implementation="sdpa").eval()


# The sampler


@pytest.mark.parametrize("max_rows", [256, 5])
def test_greedy_is_that_of_transformers_whatever_the_batch(policy: nn.Module, plain: LlamaForCausalLM, max_rows: int):
    """Prompts of 1 to 70 tokens, two samples of each, rows that end at different times, in one wave and in several."""
    noise = torch.Generator().manual_seed(3)
    prompts = [torch.randint(259, (n,), generator=noise).tolist() for n in (1, 2, 3, 17, 18, 33, 70, 5)]
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": 20, "pad_token_id": 0}

    def theirs(prompt: list[int], eos: list[int]) -> list[int]:
        ids = torch.tensor([prompt])
        return plain.generate(ids, attention_mask=torch.ones_like(ids), eos_token_id=eos or None, **settings)[0, len(prompt) :].tolist()

    endless = [theirs(prompt, []) for prompt in prompts]
    eos = [endless[1][2], endless[4][9], endless[6][15]]
    own = generate(policy, prompts, SamplingConfig(temperature=0, max_tokens=20, max_rows=max_rows), samples=2, eos_ids=eos, seed=0)
    wanted = [theirs(prompt, eos) for prompt in prompts]
    assert [[c.tokens for c in row] for row in own] == [[tokens, tokens] for tokens in wanted]
    assert [row[0].finished for row in own] == [tokens[-1] in eos for tokens in wanted]
    assert len({len(tokens) for tokens in wanted}) > 2 and max(map(len, wanted)) == 20, "some end early, at several lengths"


@pytest.fixture
def dice() -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """A policy over six tokens, for our sampler and as transformers runs it."""
    torch.manual_seed(1)
    sizes = {"vocab_size": 6, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ours = LlamaForCausalLM._from_config(LlamaConfig(**sizes), attn_implementation=NAME).eval().requires_grad_(False)
    for parameter in ours.parameters():
        parameter.copy_(torch.randn(parameter.shape) * 0.4 if parameter.ndim > 1 else parameter)
    plain = LlamaForCausalLM._from_config(LlamaConfig(**sizes), attn_implementation="sdpa").eval()
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def next_token(plain: LlamaForCausalLM, context: list[int], sampling: SamplingConfig) -> list[float]:
    """Probabilities of the next token, from the definitions of temperature, top-k and nucleus, token by token in plain Python."""
    z = (plain(torch.tensor([context])).logits[0, -1].detach().double() / sampling.temperature).softmax(-1).tolist()
    order = sorted(range(len(z)), key=lambda a: -z[a])[: sampling.top_k or None]
    mass, kept, total = sum(z[a] for a in order), [], 0.0
    for a in order:
        if total < sampling.top_p:
            kept.append(a)
        total += z[a] / mass
    return [z[a] / sum(z[b] for b in kept) if a in kept else 0.0 for a in range(len(z))]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.5, 4, 1.0), (1.0, 0, 0.7), (0.8, 5, 0.8)], ids=str
)
@torch.no_grad()
def test_two_tokens_are_sampled_as_often_as_the_exact_distribution_says(dice: Any, temperature: float, top_k: int, top_p: float):
    """All 36 pairs, from two prompts at once: the second token depends on the cache."""
    ours, plain = dice
    sampling, n = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, max_tokens=2, max_rows=10_000), 4000
    prompts = [[3, 1], [5, 5, 0, 2]]
    for prompt, rows in zip(prompts, generate(ours, prompts, sampling, samples=n, eos_ids=[], seed=0), strict=True):
        first = next_token(plain, prompt, sampling)
        p = torch.tensor([first[a] * q for a in range(6) for q in next_token(plain, [*prompt, a], sampling)], dtype=torch.float64)
        counts = torch.bincount(torch.tensor([6 * c.tokens[0] + c.tokens[1] for c in rows]), minlength=36).double()
        assert counts[p == 0].sum() == 0 and float(p.sum()) == pytest.approx(1)
        assert chi_square_p_value(counts, n * p) > P_VALUE


def chi_square_p_value(counts: Tensor, expected: Tensor) -> float:
    """Pearson's test; cells of which fewer than 5 are expected are one cell together, as the test needs."""
    rare = expected < 5
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]])
    some = wanted > 0
    statistic = ((observed - wanted)[some] ** 2 / wanted[some]).sum()
    return float(chi2.sf(float(statistic), int(some.sum()) - 1))


def test_chi_square_by_hand():
    """10 and 20 where 15 and 15 were expected: 25/15 + 25/15 = 10/3 with one degree of freedom, p = 0.0679; rare cells are pooled."""
    assert chi_square_p_value(torch.tensor([10.0, 20.0]), torch.tensor([15.0, 15.0])) == pytest.approx(0.0679, abs=1e-4)
    pooled = chi_square_p_value(torch.tensor([10.0, 12.0, 8.0]), torch.tensor([23.0, 4.0, 3.0]))
    assert pooled == pytest.approx(float(chi2.sf(169 / 23 + 169 / 7, 1)))


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.3, 20, 0.9)], ids=str)
@torch.no_grad()
def test_sampled_logps_are_those_of_trainer_and_transformers(
    policy: nn.Module, plain: LlamaForCausalLM, temperature: float, top_k: int, top_p: float
):
    """At the sampling temperature and before truncation, in float32: what a ratio of policies needs."""
    prompts = [[5, 6, 7], [8], list(range(9, 60)), [200, 100]]
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, max_tokens=12)
    rows = generate(policy, prompts, sampling, samples=4, eos_ids=list(range(0, 259, 9)), seed=2)
    groups = [Group(prompt, [c.tokens for c in row]) for prompt, row in zip(prompts, rows, strict=True)]
    own = torch.tensor([logp for row in rows for c in row for logp in c.logps])
    torch.testing.assert_close(own, token_logps(policy, pack(groups), temperature)[0], rtol=0, atol=1e-5)
    for prompt, row in zip(prompts, rows, strict=True):
        for c in row:
            logp_TV = (plain(torch.tensor([[*prompt, *c.tokens]])).logits[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1)
            theirs = logp_TV.gather(-1, torch.tensor([c.tokens]).T)[:, 0]
            torch.testing.assert_close(torch.tensor(c.logps), theirs, rtol=0, atol=1e-5)


# Training


def padded_logps(model: nn.Module, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """Of every completion, each behind its own copy of the prompt in a padded batch: ``[B, T]`` and the mask of completion tokens."""
    rows = [([*g.prompt, *c], len(g.prompt)) for g in groups for c in g.completions]
    width = max(len(ids) for ids, _ in rows)
    ids_BT = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    real_BT = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows])
    mask_BT = torch.tensor([[start <= t < len(ids) for t in range(1, width)] for ids, start in rows])
    logp_BTV = model(ids_BT, attention_mask=real_BT).logits[:, :-1].log_softmax(-1)
    logp_BT = logp_BTV.gather(-1, ids_BT[:, 1:, None])[..., 0]
    return torch.where(mask_BT, logp_BT, 0.0), mask_BT


def from_left(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Values of completion tokens, moved to the left of each row."""
    order_BT = (~mask_BT).long().argsort(dim=1, stable=True)
    return values_BT.gather(1, order_BT)[:, : int(mask_BT.sum(1).max())]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trained(algorithm: Algorithm, policy: nn.Module, batches: list[Any]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of an update, micro-batch by micro-batch as the loop does it."""
    total = 0.0
    for batch in batches:
        loss, _ = algorithm.loss(batch)
        loss.backward()
        total += float(loss.detach())
    return total, gradients(policy)


@pytest.fixture(params=["short", "apart", "long"])
def paths(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways of attention, and a head in blocks of a few columns."""
    monkeypatch.setattr(vocabulary_head, "BLOCK_LOGITS", 1)
    monkeypatch.setattr(vocabulary_head, "BLOCK_COLUMNS", 70)
    if request.param == "apart":
        monkeypatch.setattr(attention, "CUTTING_SHARE", 1.5)  # of most groups prompt and completions
    if request.param == "long":
        monkeypatch.setattr(attention, "SHORT_TOKENS", 8)  # so that some groups are on either side
        monkeypatch.setattr(long_attention, "BLOCK_TOKENS", 4)


def same(own: tuple[float, dict[str, Tensor]], loss: Tensor, plain64: nn.Module) -> None:
    loss.backward()
    wanted = gradients(plain64)
    assert own[0] == pytest.approx(float(loss.detach()), rel=0, abs=1e-6)
    assert own[1].keys() == wanted.keys() and len(wanted) == len(list(plain64.parameters()))
    assert max(float(g.abs().max()) for g in wanted.values()) > 1e-2, "gradients that a mistake would show in"
    for name, gradient in own[1].items():
        torch.testing.assert_close(gradient, wanted[name], msg=lambda m, name=name: f"{name}: {m}", **EXACT)


@pytest.mark.usefixtures("paths")
@pytest.mark.parametrize("micro_batch_tokens", [16, 4096])
@pytest.mark.parametrize("normaliser", ["token_mean", "sequence_mean"])
def test_sft_is_padded_sft(policy64: Any, plain64: Any, random_groups: Groups, normaliser: Any, micro_batch_tokens: int):
    groups = random_groups(8, completions=1)
    config = SFTConfig(batch_size=8, normaliser=normaliser, micro_batch_tokens=micro_batch_tokens)
    algorithm = Imitation(policy64, groups, config, 0, 1.0)
    batches = algorithm.batches(0)
    assert (len(batches) > 1) == (micro_batch_tokens < 100)
    logp_BT, mask_BT = padded_logps(plain64, groups)
    loss = -logp_BT.sum() / mask_BT.sum() if normaliser == "token_mean" else -(logp_BT.sum(1) / mask_BT.sum(1)).mean()
    same(trained(algorithm, policy64, batches), loss, plain64)


@pytest.mark.usefixtures("paths")
@pytest.mark.parametrize("micro_batch_tokens", [30, 4096])
def test_dpo_on_shared_prompts_is_padded_dpo(policy64: Any, plain64: Any, random_groups: Groups, run: Run, micro_batch_tokens: int):
    """-mean log sigmoid(beta (log-ratio of chosen - log-ratio of rejected)); the pair shares one prompt in ours, has two in the other."""
    groups = random_groups(6, completions=2, seed=1)
    ref_P2 = -20 * torch.rand(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    config = DPOConfig(batch_size=6, beta=0.3, micro_batch_tokens=micro_batch_tokens)
    algorithm = PreferenceOptimisation(policy64, Pairs(groups, torch.zeros(6), ["toy"] * 6), config, 0, run)
    algorithm.ref_logp_P2 = ref_P2
    batches = algorithm.batches(0)
    assert (len(batches) > 1) == (micro_batch_tokens < 100)
    logp_BT, _ = padded_logps(plain64, groups)
    ratio_P2 = logp_BT.sum(1).view(-1, 2) - ref_P2
    loss = -F.logsigmoid(0.3 * (ratio_P2[:, 0] - ratio_P2[:, 1])).mean()
    same(trained(algorithm, policy64, batches), loss, plain64)


class Prompted:
    """A tokenizer that no test here asks for anything."""


@pytest.mark.usefixtures("paths")
@pytest.mark.parametrize("micro_batch_tokens", [40, 4096])
@pytest.mark.parametrize("variant", ["grpo", "dapo", "bnpo"])
def test_grpo_on_shared_prompts_is_padded_grpo(
    policy64: Any, plain64: Any, random_groups: Groups, run: Run, variant: Any, micro_batch_tokens: int
):
    """-min(r A, clip(r) A) + beta k3, over sequences' means or over all tokens; four samples share one prompt in ours."""
    groups = random_groups(5, completions=4, seed=2)
    logp_BT, mask_BT = padded_logps(plain64, groups)
    logp_CT, mask_CT = from_left(logp_BT, mask_BT), from_left(mask_BT, mask_BT)
    noise = torch.Generator().manual_seed(0)
    old_CT, ref_CT = (logp_CT.detach() + 0.3 * torch.randn(logp_CT.shape, generator=noise).double() for _ in range(2))
    advantage_C = torch.randn(20, generator=noise, dtype=torch.float64)

    config = GRPOConfig(
        loss=variant, prompts_per_iteration=4, epochs=2, clip=0.2, clip_high=0.25, kl_coefficient=0.1, kl_estimator="k3", importance_cap=0.0
    )
    config = config.model_copy(update={"micro_batch_tokens": micro_batch_tokens})
    algorithm = GRPO(policy64, [], Prompted(), None, [2], config, 0, run)  # type: ignore[arg-type]
    algorithm.reference = object()
    algorithm.rollout = Rollout(groups, {"mask": mask_CT, "old_logp": old_CT, "ref_logp": ref_CT, "advantage": advantage_C})
    batches = algorithm._cut(range(5))
    assert (len(batches) > 1) == (micro_batch_tokens < 100)

    ratio_CT = (logp_CT - old_CT).exp()
    gain_CT = torch.minimum(ratio_CT * advantage_C[:, None], ratio_CT.clamp(0.8, 1.25) * advantage_C[:, None])
    gap_CT = ref_CT - logp_CT
    each_CT = torch.where(mask_CT, -gain_CT + 0.1 * (gap_CT.exp() - gap_CT - 1), 0.0)
    loss = (each_CT.sum(1) / mask_CT.sum(1)).mean() if variant == "grpo" else each_CT.sum() / mask_CT.sum()
    same(trained(algorithm, policy64, batches), loss, plain64)


def test_lengths_here_are_ragged(random_groups: Groups):
    """Else padding would have nothing to hide."""
    sizes = [g.n_tokens for g in random_groups(8, completions=1)]
    assert any(a != b for a, b in pairwise(sizes)) and max(sizes) > 1.25 * min(sizes)
