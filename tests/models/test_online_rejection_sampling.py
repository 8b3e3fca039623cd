"""The random control of rejection sampling, and online rounds: what is kept, what is refused, what is learned."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.packing import Group, pack
from data.records import Prompt
from data.tables import read_table
from data.templates import load_tokenizer
from models.configs.online_rejection_sampling import OnlineRejectionSamplingConfig
from models.configs.optimisation import OptimConfig
from models.configs.rejection_sampling import RejectionSamplingConfig
from models.configs.sampling import SamplingConfig
from models.loading import load_policy
from models.logprobs import token_logps
from models.rewards import Scored
from models.run import Run
from models.training import online_rejection_sampling, rejection_sampling
from models.training.online_rejection_sampling import OnlineImitation
from models.training.rejection_sampling import select

SCORES = [[0.7, 0.3, 0.5, 0.2], [0.4, 0.8, 0.6, 0.5], [0.9, 0.3, 0.4, 0.7], [0.2, 0.5, 0.8, 0.6], [0.5, 0.4, 0.3, 0.6]]
NO_LIMIT = -1e6
FAST = OptimConfig(learning_rate=3e-2, schedule="constant", warmup_share=0)
A, B = 1, 2


# The control


@pytest.mark.parametrize(("keep", "min_score"), [(0, NO_LIMIT), (3, NO_LIMIT), (0, 0.75)])
def test_the_control_keeps_as_many_of_the_same_prompts(keep: int, min_score: float):
    best = select(SCORES, "top_per_prompt", keep, min_score)
    for seed in range(5):
        control = select(SCORES, "random", keep, min_score, seed)
        assert [p for p, _ in control] == [p for p, _ in best]
        assert control == select(SCORES, "random", keep, min_score, seed)


def test_the_control_chooses_evenly_and_never_what_has_no_score():
    counts = Counter(select([[9.0, 0.0, math.nan, 1.0]], "random", 0, NO_LIMIT, seed)[0][1] for seed in range(900))
    assert set(counts) == {0, 1, 3} and all(240 < n < 360 for n in counts.values())
    rows = select([[1.0, 0.0]] * 200, "random", 0, NO_LIMIT, 0)
    assert 70 < sum(g for _, g in rows) < 130, "each prompt draws for itself"


def test_the_control_is_imitated(base: Path, tables: Path, new_run: Callable[..., Run]):
    kept = {}
    for rule in ("top_per_prompt", "random"):
        run = new_run(rule)
        config = RejectionSamplingConfig(score="judge", select=rule, max_updates=1)
        meta = rejection_sampling.train(config, policy=base, preferences=tables, reward=Path("none"), seed=0, run=run)
        kept[rule] = meta["kept"], load_policy(run.out).state_dict()
    assert kept["random"][0] == kept["top_per_prompt"][0] == 8
    assert not all(torch.equal(kept["random"][1][name], t) for name, t in kept["top_per_prompt"][1].items())


# Online


def config(**settings: Any) -> OnlineRejectionSamplingConfig:
    common = {
        "prompts_per_round": 4,
        "samples_per_prompt": 8,
        "reward": "verifier",
        "optim": FAST,
        "sampling": SamplingConfig(max_tokens=2),
    }
    return OnlineRejectionSamplingConfig(**(common | settings))


def chances(folder: Path) -> list[float]:
    logp_S, _ = token_logps(load_policy(folder), pack([Group([A], [[token] for token in range(5)])]))
    return logp_S.exp().tolist()


def test_rounds_move_the_policy_to_what_the_verifier_rewards(bandit: Path, run: Run, journal: Callable):
    settings = config(rounds=15, min_score=0.5)
    online_rejection_sampling.train(settings, policy=bandit, data=bandit, seed=0, run=run)
    assert chances(run.out)[B] > 0.8
    logp_S, _ = token_logps(load_policy(run.out), pack([Group([A], [[B, 0]])]))
    assert float(logp_S[1].exp()) > 0.8, "it ends, since only finished completions are imitated"
    lines = journal(run)
    assert lines[-1][1]["train/reward"] > 0.6 > 0.4 > lines[0][1]["train/reward"]
    assert all(metrics["rejection_sampling/kept_score"] == 1 for _, metrics in lines if metrics["rejection_sampling/kept"])


def test_the_random_control_learns_nothing_of_the_reward(bandit: Path, run: Run, journal: Callable):
    """Imitating oneself at random: the share of right answers drifts, and is not raised."""
    settings = config(rounds=10, select="random", keep_unfinished=True, optim=OptimConfig(learning_rate=3e-3, schedule="constant"))
    online_rejection_sampling.train(settings, policy=bandit, data=bandit, seed=0, run=run)
    assert chances(run.out)[B] < 0.4


class Scripted:
    """Scores by a table, in the order of the completions."""

    def __init__(self, rows: list[list[float]]):
        self.rows = rows

    def __call__(self, prompts: Any, groups: Any) -> Any:

        return Scored(self.rows)


def algorithm(bandit: Path, run: Run, settings: OnlineRejectionSamplingConfig, rows: list[list[float]]) -> OnlineImitation:

    prompts = read_table(bandit / "prompts.parquet", Prompt)
    policy = load_policy(bandit, trainable=True)
    return OnlineImitation(policy, prompts, load_tokenizer(bandit), Scripted(rows), [0], settings, 0, run)  # type: ignore[arg-type]


def test_unfinished_completions_are_kept_only_where_they_are_asked_for(bandit: Path, run: Run):
    """At two tokens at most, some completions have no end."""
    rows = [[float(g) for g in range(8)]] * 4
    strict = algorithm(bandit, run, config(), rows)
    strict.batches(0)
    assert strict.groups and all(group.completions[0][-1] == 0 for group in strict.groups)
    lenient = algorithm(bandit, run, config(keep_unfinished=True), rows)
    lenient.batches(0)
    assert len(lenient.groups) == 4 and lenient.metrics["rejection_sampling/kept_score"] == 7
    assert lenient.metrics["train/reward"] == 3.5


def test_the_minibatches_of_a_round_see_each_kept_completion_once_an_epoch(bandit: Path, run: Run):
    rows = [[1.0] * 8] * 4
    own = algorithm(bandit, run, config(epochs=2, minibatches=3, keep_unfinished=True, select="top_k_overall", keep=7), rows)
    updates = [own.batches(update) for update in range(6)]
    assert [sum(batch.packed.n_completions for batch in batches) for batches in updates] == [3, 2, 2] * 2
    assert [batches[0].sequences for batches in updates] == [3, 2, 2] * 2
    assert own.extra_metrics(0) == own.metrics and own.extra_metrics(3) == {}


def test_each_round_samples_anew(bandit: Path, run: Run):
    own = algorithm(bandit, run, config(keep_unfinished=True, select="top_k_overall", keep=32), [[1.0] * 8] * 4)
    drawn = []
    for update in (0, 1, 0):
        own.batches(update)
        drawn.append([list(group.completions[0]) for group in own.groups])
    assert drawn[0] == drawn[2] != drawn[1]


def test_a_round_without_anything_good_changes_nothing(bandit: Path, run: Run, journal: Callable):
    settings = config(rounds=2, min_score=2.0)
    online_rejection_sampling.train(settings, policy=bandit, data=bandit, seed=0, run=run)
    assert chances(run.out) == chances(bandit)
    assert [metrics["rejection_sampling/kept"] for _, metrics in journal(run)] == [0, 0]


def test_greedy_sampling_and_a_missing_reward_model_are_refused(bandit: Path, run: Run):
    with pytest.raises(ValueError, match="temperature 0 is greedy: all samples of a prompt are equal"):
        config(sampling=SamplingConfig(temperature=0))
    with pytest.raises(ValueError, match="needs the artifact of a reward_model stage"):
        online_rejection_sampling.train(config(reward="reward_model"), policy=bandit, data=bandit, seed=0, run=run)
