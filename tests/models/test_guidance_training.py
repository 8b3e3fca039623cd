"""What guides decoding learns what it should: losses by hand and against NumPy, fixed points on trees that can be enumerated."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from data.packing import Group, pack
from data.records import Demonstration, Message, Preference
from data.tables import write_table
from models.configs.guidance import PrefixValueConfig, TokenRewardConfig
from models.configs.optimisation import OptimConfig
from models.configs.reward_model import RewardModelConfig
from models.configs.sampling import SamplingConfig
from models.configs.sft import SFTConfig
from models.heads import load_scalar, load_token_reward, new_scalar, new_token_reward, save_scalar
from models.loading import load_policy, save_policy
from models.logprobs import hidden_states, token_logps
from models.losses.guidance import best_continuation_loss, prefix_bradley_terry_loss, prefix_value_loss
from models.losses.sums import merge
from models.run import Run
from models.training import prefix_value, reward_model, sft, token_reward
from models.training.pairs import Pairs
from models.training.reward_model import PrefixBradleyTerry, rule_of
from models.training.token_reward import ConstraintBatch, TokenReward

FAST = OptimConfig(learning_rate=1e-2, schedule="constant", warmup_share=0)
SETTLING = OptimConfig(learning_rate=5e-3, schedule="linear", final_rate_share=0.0)
P, T = 6, 5
LENGTHS = torch.tensor([5, 1, 3, 4, 2, 5])
MASK = torch.arange(T) < LENGTHS[:, None]


def doubles(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Losses


def test_prefix_bradley_terry_by_hand():
    chosen, rejected = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[0.0, 2.0, 9.0]])
    loss, sums = prefix_bradley_terry_loss(chosen, rejected, torch.tensor([[True, True, False]]), 1)
    assert float(loss) == pytest.approx((0.313262 + 0.693147) / 2, abs=1e-6)
    assert merge([sums])["reward_model/prefix_accuracy"] == 0.5 and merge([sums])["train/accuracy"] == 0


def test_prefix_value_by_hand():
    loss, _ = prefix_value_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]), 2)
    assert float(loss) == 0.125


def test_best_continuation_by_hand():
    loss, _ = best_continuation_loss(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0]), 2)
    assert float(loss) == 1.0


def test_the_best_continuation_is_a_target():
    score, best = doubles(3).requires_grad_(), doubles(3, seed=1).requires_grad_()
    best_continuation_loss(score, best, 3)[0].backward()
    assert best.grad is None
    torch.testing.assert_close(score.grad, (score - best).detach() / 3)


def test_losses_are_those_of_numpy():
    c, r = doubles(P, T), doubles(P, T, seed=1)
    gaps = (c - r).numpy()
    rows = [np.mean(np.log1p(np.exp(-gaps[p, :n]))) for p, n in enumerate(LENGTHS.tolist())]
    torch.testing.assert_close(float(prefix_bradley_terry_loss(c, r, MASK, P)[0]), float(np.mean(rows)))
    v, g = doubles(9), doubles(9, seed=1)
    wanted = 0.5 * float(((v - g).numpy() ** 2).mean())
    torch.testing.assert_close(float(prefix_value_loss(v, g, 9)[0]), wanted)
    torch.testing.assert_close(float(best_continuation_loss(v, g, 9)[0]), wanted)


def test_gradients():
    c, r = doubles(P, T).requires_grad_(), doubles(P, T, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: prefix_bradley_terry_loss(x, y, MASK, P)[0], (c, r))
    v, g = doubles(9).requires_grad_(), doubles(9, seed=1)
    assert torch.autograd.gradcheck(lambda x: prefix_value_loss(x, g, 9)[0], (v,))
    assert torch.autograd.gradcheck(lambda x: best_continuation_loss(x, g, 9)[0], (v,))


def test_micro_batches_and_permutations_change_nothing():
    c, r, order = doubles(P, T), doubles(P, T, seed=1), torch.tensor([3, 0, 5, 1, 4, 2])
    whole, sums = prefix_bradley_terry_loss(c, r, MASK, P)
    parts = [prefix_bradley_terry_loss(c[i], r[i], MASK[i], P) for i in order.split([2, 1, 3])]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole)
    assert merge([s for _, s in parts]) == pytest.approx(merge([sums]), rel=1e-6)
    v, g, shuffled = doubles(9), doubles(9, seed=1), torch.randperm(9)
    for loss in (prefix_value_loss, best_continuation_loss):
        cut = [loss(v[i], g[i], 9)[0] for i in shuffled.split([4, 5])]
        torch.testing.assert_close(sum(cut), loss(v, g, 9)[0])


# Prefixes of pairs (PARGS)


@torch.no_grad()
def test_every_prefix_is_read_and_an_ended_completion_stays_whole(base: Path, run: Run):
    """Against one plain sequence a prefix, in float64."""
    model = new_scalar(base, 0).double()
    groups = [Group([5, 6], [[7, 8, 9], [7]]), Group([4], [[3], [2, 1]]), Group([9], [[8, 7], [6, 5]])]
    pairs = Pairs(groups, torch.zeros(3), [""] * 3)
    algorithm = PrefixBradleyTerry(model, pairs, RewardModelConfig(loss="prefix_bradley_terry", batch_size=3), 0, run)
    (batch,) = algorithm.batches(0)
    loss, _ = algorithm.loss(batch)

    def score(prompt: Any, tokens: Any) -> float:
        return float(model.read(model.backbone(torch.tensor([[*prompt, *tokens]])).last_hidden_state[0, -1]))

    rows = []
    for group in groups:
        chosen, rejected = group.completions
        gaps = [
            score(group.prompt, chosen[: i + 1]) - score(group.prompt, rejected[: i + 1]) for i in range(max(map(len, group.completions)))
        ]
        rows.append(np.mean([math.log1p(math.exp(-gap)) for gap in gaps]))
    assert float(loss) == pytest.approx(float(np.mean(rows)), abs=1e-6)


def test_training_on_prefixes_ranks_them(base: Path, tables: Path, run: Run, journal: Callable):
    config = RewardModelConfig(loss="prefix_bradley_terry", epochs=8, batch_size=5, optim=FAST)
    meta = reward_model.train(config, policy=base, preferences=tables, seed=0, run=run)
    lines = journal(run)
    assert lines[-2][1]["reward_model/prefix_accuracy"] > 0.95 and meta["accuracy"] == 1.0
    assert lines[0][1]["train/loss"] > 3 * lines[-2][1]["train/loss"]


def test_margins_are_of_whole_completions():
    with pytest.raises(ValueError, match="for whole completions"):
        RewardModelConfig(loss="prefix_bradley_terry", use_margin=True)


# Values of prefixes (CD)


@pytest.fixture
def roomy(bandit: Path, tmp_path: Path) -> Path:
    """The bandit with room to tell all its completions apart."""
    folder = tmp_path / "roomy"
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 5}
    torch.manual_seed(0)
    tokens = {"eos_token_id": 0, "bos_token_id": None, "pad_token_id": None}
    save_policy(LlamaForCausalLM(LlamaConfig(**sizes, **tokens, initializer_range=0.15, tie_word_embeddings=False)), bandit, folder)
    return folder


def test_the_value_of_a_prefix_is_the_mean_reward_of_the_policys_completions(roomy: Path, bandit: Path, tmp_path: Path, run: Run):
    """Of two tokens; "aa" is left out, which looks to the model like "aaa"."""
    pairs = [[a, b] for a in range(2, 5) for b in range(5)]
    reward = new_scalar(roomy, 3)
    torch.nn.init.normal_(reward.head.weight, generator=torch.Generator().manual_seed(0))
    reward.rule = rule_of(reward, [Group([1], pairs)], 1, 999)
    save_scalar(reward, roomy, tmp_path)
    sampling = SamplingConfig(max_tokens=2, max_rows=1024)
    config = PrefixValueConfig(samples_per_prompt=1024, sampling=sampling, epochs=20, batch_size=128, optim=SETTLING)
    prefix_value.train(config, policy=roomy, data=bandit, reward=tmp_path, seed=0, run=run)
    packed = pack([Group([1], pairs), Group([1], [[0], [2], [3], [4]])])
    found, final = load_scalar(run.out).reward(packed), load_scalar(tmp_path).reward(packed)
    p_b = token_logps(load_policy(roomy), pack([Group([1], pairs)]))[0].view(3, 5, 2)[:, :, 1].exp()
    mean_a = (p_b * final[:15].view(3, 5)).sum(-1)
    assert float(found[15]) == pytest.approx(float(final[15]), abs=0.15), "the end token: nothing goes on"
    torch.testing.assert_close(found[16:], mean_a, rtol=0, atol=0.15)
    assert float((final[16:] - mean_a).abs().max()) > 0.5, "what the reward model itself says of a prefix is something else"


# The best continuation (FaRMA)

QUALITY = {"bb": 9.0, "bc": 0.0, "bd": 0.0, "cb": 5.0, "cc": 5.0, "cd": 5.0, "db": 2.0, "dc": 2.0, "dd": 2.0}
LETTER = {"b": 2, "c": 3, "d": 4}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pairs of two-letter answers. The best one begins with b, though c is the better first letter on average."""
    folder = tmp_path_factory.mktemp("tree")
    pairs = [
        Preference(f"{one}{other}", "tree", (Message("user", "a"),), one, other)
        for one, other in itertools.permutations(QUALITY, 2)
        if QUALITY[one] > QUALITY[other]
    ]
    write_table(folder / "preferences.parquet", pairs)
    answers = [Demonstration(text, "tree", (Message("user", "a"), Message("assistant", text))) for text in QUALITY]
    write_table(folder / "demonstrations.parquet", answers)
    return folder


def scores_of_prefixes(model: Any, text: str) -> tuple[Tensor, Tensor]:
    """Scores of the prefixes of an answer, and of every token after them."""
    packed = pack([Group([1], [[*(LETTER[letter] for letter in text), 0]])])
    hidden_NE = hidden_states(model.backbone, packed)
    return model.chosen(hidden_NE[packed.source_S], packed.target_S), model.every(hidden_NE[packed.own_S])


def test_the_score_of_a_prefix_is_that_of_its_best_continuation(roomy: Path, tree: Path, new_run: Callable[..., Run], journal: Callable):
    sft_run, run = new_run("sft"), new_run("farma")
    sft.train(SFTConfig(epochs=40, batch_size=9, optim=SETTLING), base=roomy, data=tree, seed=0, run=sft_run)
    config = TokenRewardConfig(epochs=60, batch_size=30, optim=SETTLING, min_chance=0.05)
    token_reward.train(config, policy=sft_run.out, preferences=tree, seed=0, run=run)
    model = load_token_reward(run.out)
    final = {text: float(scores_of_prefixes(model, text)[0][-1]) for text in QUALITY}
    spread = float(torch.tensor(list(final.values())).std())
    for letter in "bcd":
        best = max(value for text, value in final.items() if text.startswith(letter))
        first, second = scores_of_prefixes(model, 2 * letter)[0][:2].tolist()
        assert first == pytest.approx(best, abs=0.15 * spread)
        assert second == pytest.approx(final[2 * letter], abs=0.15 * spread), "only the end may follow"
    first = {letter: float(scores_of_prefixes(model, 2 * letter)[0][0]) for letter in "bcd"}
    assert first["b"] > first["c"] > first["d"], "by the best completion, not by the average one"
    lines = [metrics for _, metrics in journal(run)]
    assert "train/loss" in lines[0] and "token_reward/constraint_loss" not in lines[0]
    assert "train/loss" not in lines[1] and "token_reward/constraint_loss" in lines[1]
    assert lines[-2]["train/accuracy"] == 1


@torch.no_grad()
@pytest.mark.parametrize("min_chance", [0.0, 0.004, 0.9])
def test_the_constraint_compares_each_inner_prefix_with_its_continuations(base: Path, run: Run, min_chance: float):
    """Against one plain sequence a prefix, in float64. Above 0.9 only the token of the data is left."""
    model, policy = new_token_reward(base).double(), load_policy(base).double()
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    groups = [Group([5, 6], [[7, 8, 9], [7]]), Group([4], [[3], [2, 1]])]
    config = TokenRewardConfig(batch_size=2, min_chance=min_chance)
    algorithm = TokenReward(model, policy, Pairs(groups, torch.zeros(2), [""] * 2), config, 0, run)
    (batch,) = algorithm.batches(1)
    loss, _ = algorithm.loss(batch)

    def best(tokens: list[int], given: int) -> float:
        score_V = model.every(model.backbone(torch.tensor([tokens])).last_hidden_state[0, -1])
        p_V = policy(torch.tensor([tokens])).logits[0, -1].softmax(-1)
        return max(float(s) for token, (s, p) in enumerate(zip(score_V, p_V, strict=True)) if p >= min_chance or token == given)

    errors = []
    for group in groups:
        for completion in group.completions:
            for i in range(len(completion) - 1):
                before = [*group.prompt, *completion[:i]]
                own = model.every(model.backbone(torch.tensor([before])).last_hidden_state[0, -1])[completion[i]]
                errors.append(float(own) - best([*before, completion[i]], completion[i + 1]))
    assert float(loss) == pytest.approx(sum(0.5 * e**2 for e in errors) / len(errors), rel=1e-6) and len(errors) == 3


def test_both_losses_see_the_same_pairs_in_turn(base: Path, run: Run):
    pairs = Pairs([Group([i], [[7, 8], [9]]) for i in range(1, 9)], torch.zeros(8), [""] * 8)
    algorithm = TokenReward(new_token_reward(base), None, pairs, TokenRewardConfig(batch_size=3, min_chance=0), 0, run)
    seen = [[batch.index_P.tolist() for batch in algorithm.batches(update)] for update in range(6)]
    assert seen[0::2] == seen[1::2] and seen[0] != seen[2] != seen[4]
    assert [isinstance(algorithm.batches(u)[0], ConstraintBatch) for u in range(4)] == [False, True, False, True]
