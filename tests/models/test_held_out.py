"""A reward model of the held-out pairs: what it learns from, what measures it, and that the first one is as it was."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data.records import Message, Preference, Ranking, Tie, record_id
from data.tables import write_table
from models.configs.held_out_reward import HeldOutRewardConfig
from models.configs.lora import LoraSettings
from models.configs.optimisation import OptimConfig
from models.configs.reward_model import RewardModelConfig
from models.heads import RewardRule, load_rule, load_scalar
from models.held_out import other_part, require_apart, trained_prompts
from models.run import Run
from models.training import reward_model
from models.training.rankings import read_rankings

FAST = OptimConfig(learning_rate=1e-3)


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def pair(prompt: str, chosen: str = "good", rejected: str = "bad") -> Preference:
    return Preference(record_id(prompt, chosen, rejected), "toy", user(prompt), chosen, rejected)


def ranking(prompt: str) -> Ranking:
    return Ranking(record_id(prompt), "toy", user(prompt), ("good", "bad"), (0, 1))


@pytest.fixture
def preferences(tmp_path: Path) -> Path:
    """Eight prompts to train on and four held out, as preference collection leaves them."""
    folder = tmp_path / "preferences"
    folder.mkdir()
    write_table(folder / "preferences.parquet", [pair(f"trained {n}") for n in range(8)])
    write_table(folder / "test_preferences.parquet", [pair(f"held {n}") for n in range(4)])
    write_table(folder / "rankings.parquet", [ranking(f"trained {n}") for n in range(9)] + [ranking(f"held {n}") for n in range(4)])
    return folder


def trained(config: RewardModelConfig, policy: Path, preferences: Path, run: Run) -> dict[str, Any]:
    return reward_model.train(config, policy=policy, preferences=preferences, seed=0, run=run)


def test_it_learns_from_held_out_pairs_and_is_measured_on_the_others(base: Path, preferences: Path, run: Run):
    meta = trained(RewardModelConfig(pairs="test", batch_size=2, optim=FAST), base, preferences, run)
    assert meta["pairs"] == 4 and meta["updates"] == 2 and meta["held_out_pairs"] == 8
    assert load_scalar(run.out).rule.pairs == "test"


def test_the_first_one_is_as_it_was(base: Path, preferences: Path, run: Run):
    meta = trained(RewardModelConfig(batch_size=4, optim=FAST), base, preferences, run)
    assert meta["pairs"] == 8 and meta["held_out_pairs"] == 4 and load_rule(run.out).pairs == "train"


def test_the_two_are_different_models(base: Path, preferences: Path, new_run: Callable[..., Run]):
    runs = {part: new_run(part) for part in ("train", "test")}
    for part, run in runs.items():
        trained(RewardModelConfig.model_validate({"pairs": part, "batch_size": 2, "optim": FAST}), base, preferences, run)
    digests = {hashlib.sha256((run.out / "scalar_head.safetensors").read_bytes()).digest() for run in runs.values()}
    assert len(digests) == 2


def test_the_pairs_that_measure_it_are_limited(base: Path, preferences: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reward_model, "MEASURED_PAIRS", 3)
    assert trained(RewardModelConfig(pairs="test", batch_size=2, optim=FAST), base, preferences, run)["held_out_pairs"] == 3


def test_of_rankings_it_takes_those_of_held_out_prompts(base: Path, preferences: Path, run: Run):
    assert len(read_rankings(preferences, base, 999, run, part="test").groups) == 4
    assert len(read_rankings(preferences, base, 999, run).groups) == 9
    meta = trained(RewardModelConfig(pairs="test", loss="k_wise", batch_size=2, optim=FAST), base, preferences, run)
    assert meta["pairs"] == 4 and meta["held_out_pairs"] == 8
    write_table(preferences / "rankings.parquet", [ranking("trained 0")])
    with pytest.raises(ValueError, match=r"no ranking in .* is of a held-out prompt"):
        read_rankings(preferences, base, 999, run, part="test")


def test_nothing_held_out_is_an_error(base: Path, preferences: Path, run: Run):
    (preferences / "test_preferences.parquet").unlink()
    with pytest.raises(ValueError, match=r"has no test_preferences.parquet: hold out pairs \(preferences.test_share"):
        trained(RewardModelConfig(pairs="test"), base, preferences, run)


@pytest.mark.parametrize("kind", ["pair", "tie"])
def test_a_prompt_on_both_sides_is_an_error(kind: str, base: Path, preferences: Path, run: Run):
    """As prompts are compared between splits: case and white space aside."""
    if kind == "pair":
        write_table(preferences / "preferences.parquet", [pair("HELD  3"), pair("trained 0")])
    else:
        write_table(preferences / "ties.parquet", [Tie("t", "toy", user("held 3"), "a", "b")])
    with pytest.raises(ValueError, match=r"1 of 4 held-out prompts .* are trained on too, such as 'user: held 3'"):
        trained(RewardModelConfig(pairs="test"), base, preferences, run)


def test_which_prompts_were_trained_on(preferences: Path):
    assert trained_prompts(preferences, "test") == {f"user: held {n}" for n in range(4)}
    assert trained_prompts(preferences, "train") == {f"user: trained {n}" for n in range(9)}
    assert (other_part("train"), other_part("test")) == ("test", "train")
    require_apart(preferences)


def test_ties_are_never_held_out():
    with pytest.raises(ValidationError, match=r"tie_threshold 1\.0 with pairs test: no tie is held out"):
        RewardModelConfig(pairs="test", tie_threshold=1.0)


def test_an_older_reward_model_was_trained_on_the_training_pairs():
    assert RewardRule(0.0, 1.0, 5).pairs == "train"


def test_it_is_trained_as_the_first_one_but_for_what_is_its_own():
    first = RewardModelConfig(tie_threshold=1.0, batch_size=64, max_updates=3, lora=LoraSettings(rank=4), optim=FAST, max_tokens=99)
    own = HeldOutRewardConfig(train=True, batch_size=4, epochs=3).settings(first)
    assert (own.pairs, own.tie_threshold, own.batch_size, own.epochs, own.max_updates) == ("test", 0.0, 4, 3.0, 0)
    assert (own.lora, own.optim, own.max_tokens) == (first.lora, first.optim, first.max_tokens)
