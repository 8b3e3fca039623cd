"""A stage that is killed anywhere and run again ends with the same bytes and the same metric history, as if nothing had happened."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from models.configs.best_of_n import BestOfNConfig
from models.configs.checkpointing import CheckpointConfig
from models.configs.dpo import DPOConfig
from models.configs.evaluation import EvaluateConfig
from models.configs.grpo import GRPOConfig
from models.configs.guidance import PrefixValueConfig, TokenRewardConfig
from models.configs.kto import KTOConfig
from models.configs.kwise_dpo import KWiseDPOConfig
from models.configs.lora import LoraSettings
from models.configs.nash_md import NashMDConfig
from models.configs.online_dpo import OnlineDPOConfig
from models.configs.online_rejection_sampling import OnlineRejectionSamplingConfig
from models.configs.optimisation import OptimConfig
from models.configs.ppo import PPOConfig
from models.configs.preference_model import PreferenceModelConfig
from models.configs.preferences import JudgeConfig, PreferencesConfig, WriterConfig
from models.configs.reinforce import ActorCriticConfig, ReinforceConfig
from models.configs.rejection_sampling import RejectionSamplingConfig
from models.configs.reward_model import RewardModelConfig
from models.configs.sampling import SamplingConfig
from models.configs.sft import SFTConfig

EVERY_UPDATE = CheckpointConfig(every_s=0, every_updates=1)
EVERY_OTHER = CheckpointConfig(every_s=0, every_updates=2)
FAST = OptimConfig(learning_rate=1e-2)
SHORT = SamplingConfig(max_tokens=6)
ADAPTERS = LoraSettings(rank=2)


@dataclass(frozen=True)
class Case:
    """A stage and the deaths it dies in turn, each with the step of the checkpoint that is there afterwards.

    ``stop:2`` is SIGTERM at the second word of progress (before the first update has ended there is nothing to save); the others are
    SIGKILL at that passage of that failpoint, counted from the start of the attempt.
    """

    entry: str
    config: BaseModel
    inputs: dict[str, Any]  # fixture by name, also nested
    deaths: list[tuple[str, int | None]]


PREFERENCES = {"policy": "base", "preferences": "tables"}
HALF = {"policy": "half", "preferences": "tables"}  # bfloat16 weights, float32 masters
ON_POLICY = {"policy": "base", "data": "tables", "reward": "reward_folder"}
BATCHES = {"batch_size": 4, "micro_batch_tokens": 60, "optim": FAST}
ROUNDS = {"prompts_per_iteration": 4, "sampling": SHORT, "optim": FAST, "micro_batch_tokens": 60, "missing_eos_penalty": 0.5}

CASES = {
    "sft": Case(
        "models.training.sft:train",
        SFTConfig(epochs=2, checkpoint=EVERY_UPDATE, **BATCHES),
        {"base": "base", "data": "tables"},
        [("stop:2", 2), ("step:2", 3), ("save:1", 3), ("saved:1", 4)],
    ),
    # Saved every other update: what was reported after a checkpoint is reported again.
    "reward_model": Case(
        "models.training.reward_model:train",
        RewardModelConfig(epochs=2, use_margin=True, checkpoint=EVERY_OTHER, **BATCHES),
        PREFERENCES,
        [("step:2", None), ("step:4", 2), ("stop:2", 4)],
    ),
    "dpo": Case("models.training.dpo:train", DPOConfig(epochs=2, checkpoint=EVERY_OTHER, **BATCHES), HALF, [("stop:3", 3), ("step:2", 4)]),
    # Saved right before the reference moves, and in the middle between two moves.
    "dpo, moving reference": Case(
        "models.training.dpo:train",
        DPOConfig(epochs=2, reference_sync_every=2, reference_sync_share=0.3, checkpoint=EVERY_UPDATE, **BATCHES),
        HALF,
        [("step:3", 2), ("saved:1", 3), ("stop:1", 4)],
    ),
    "kto": Case(
        "models.training.kto:train",
        KTOConfig(epochs=2, desirable_weight=2.0, checkpoint=EVERY_OTHER, **BATCHES),
        {"policy": "half", "labels": "tables"},
        [("stop:3", 3), ("step:2", 4)],
    ),
    "reward_model, k_wise": Case(
        "models.training.reward_model:train",
        RewardModelConfig(loss="k_wise", centring_coefficient=0.1, epochs=2, checkpoint=EVERY_OTHER, **BATCHES),
        PREFERENCES,
        [("step:2", None), ("stop:2", 2)],
    ),
    "preference_model": Case(
        "models.training.preference_model:train",
        PreferenceModelConfig(epochs=2, checkpoint=EVERY_OTHER, **BATCHES),
        PREFERENCES,
        [("step:2", None), ("stop:3", 3)],
    ),
    "kwise_dpo": Case(
        "models.training.kwise_dpo:train",
        KWiseDPOConfig(epochs=2, checkpoint=EVERY_OTHER, **BATCHES),
        HALF,
        [("step:2", None), ("stop:2", 2)],
    ),
    "reward_model, prefixes": Case(
        "models.training.reward_model:train",
        RewardModelConfig(epochs=2, loss="prefix_bradley_terry", checkpoint=EVERY_UPDATE, **BATCHES),
        PREFERENCES,
        [("step:2", 1), ("stop:1", 2), ("save:2", 3)],
    ),
    "prefix_value": Case(
        "models.training.prefix_value:train",
        PrefixValueConfig(samples_per_prompt=2, sampling=SHORT, chunk_prompts=2, checkpoint=EVERY_UPDATE, **BATCHES),
        ON_POLICY,
        [("chunk:2", None), ("step:2", 1), ("stop:2", 2)],  # the first word of progress is of the sampling, which was kept
    ),
    # Dies between the two losses of a batch, and after both.
    "token_reward": Case(
        "models.training.token_reward:train",
        TokenRewardConfig(checkpoint=EVERY_UPDATE, **BATCHES),
        PREFERENCES,
        [("step:2", 1), ("stop:2", 3), ("saved:1", 4)],
    ),
    "rejection_sampling": Case(
        "models.training.rejection_sampling:train",
        RejectionSamplingConfig(epochs=2, checkpoint=EVERY_UPDATE, **BATCHES),
        {**PREFERENCES, "reward": "reward_folder"},
        [("stop:2", 2), ("step:2", 3)],
    ),
    # Two updates a round: dies between the updates of the first, while it samples the second, in a save.
    "online_rejection_sampling": Case(
        "models.training.online_rejection_sampling:train",
        OnlineRejectionSamplingConfig(
            rounds=3,
            prompts_per_round=4,
            samples_per_prompt=3,
            keep_unfinished=True,
            minibatches=2,
            sampling=SHORT,
            optim=FAST,
            micro_batch_tokens=60,
            checkpoint=EVERY_UPDATE,
        ),
        ON_POLICY,
        [("step:2", 1), ("rollout:1", 2), ("save:2", 3), ("stop:1", 4)],
    ),
    # Four updates a round: dies between the updates of the first, in a save, while it samples the second, between the updates of that.
    "ppo": Case(
        "models.training.ppo:train",
        PPOConfig(iterations=2, epochs=2, minibatches=2, samples_per_prompt=2, value_optim=FAST, checkpoint=EVERY_UPDATE, **ROUNDS),
        ON_POLICY,
        [("stop:1", 1), ("step:2", 2), ("save:1", 2), ("rollout:1", 4), ("saved:2", 6)],
    ),
    "ppo with demonstrations, its KL led to a target": Case(
        "models.training.ppo:train",
        PPOConfig(iterations=3, epochs=1, samples_per_prompt=2, kl_target_nats=0.5, ptx_coefficient=1.0, checkpoint=EVERY_UPDATE, **ROUNDS),
        ON_POLICY,
        [("step:2", 1), ("rollout:2", 2)],
    ),
    "grpo": Case(
        "models.training.grpo:train",
        GRPOConfig(iterations=4, samples_per_prompt=3, reward="reward_model", checkpoint=EVERY_UPDATE, **ROUNDS),
        ON_POLICY,
        [("rollout:2", 1), ("step:2", 2), ("stop:1", 3)],
    ),
    "grpo, two updates a round": Case(
        "models.training.grpo:train",
        GRPOConfig(iterations=3, minibatches=2, samples_per_prompt=3, reward="reward_model", checkpoint=EVERY_UPDATE, **ROUNDS),
        ON_POLICY | {"policy": "half"},
        [("step:2", 1), ("rollout:1", 2), ("stop:1", 3)],
    ),
    "dapo, prompts without spread are replaced": Case(
        "models.training.grpo:train",
        GRPOConfig(
            iterations=3,
            minibatches=2,
            samples_per_prompt=2,
            loss="dapo",
            importance_cap=2.0,
            dynamic_sampling_rounds=2,
            overlong_buffer_tokens=3,
            entropy_coefficient=0.01,
            checkpoint=EVERY_UPDATE,
            **ROUNDS,
        ),
        {"policy": "base", "data": "tables"},
        [("step:2", 1), ("rollout:2", 2), ("stop:1", 3)],
    ),
    "reinforce, moving average": Case(
        "models.training.reinforce:train",
        ReinforceConfig(iterations=4, samples_per_prompt=3, baseline="moving_average", checkpoint=EVERY_UPDATE, **ROUNDS),
        ON_POLICY,
        [("rollout:2", 1), ("step:2", 2), ("stop:1", 3)],
    ),
    "actor_critic": Case(
        "models.training.actor_critic:train",
        ActorCriticConfig(iterations=3, samples_per_prompt=2, value_optim=FAST, checkpoint=EVERY_UPDATE, **ROUNDS),
        ON_POLICY,
        [("rollout:2", 1), ("save:1", 1), ("step:2", 2)],
    ),
    # Two updates a round: dies between them, while it samples, and in a save.
    "online_dpo": Case(
        "models.training.online_dpo:train",
        OnlineDPOConfig(iterations=3, minibatches=2, samples_per_prompt=3, checkpoint=EVERY_UPDATE, **ROUNDS),
        ON_POLICY | {"policy": "half"},
        [("step:2", 1), ("rollout:1", 2), ("save:1", 2), ("stop:1", 3)],
    ),
    # Two updates a round; the reference moves at every round's begin, and once is saved right before.
    "nash_md": Case(
        "models.training.nash_md:train",
        NashMDConfig(
            iterations=3,
            minibatches=2,
            reference_sync_every=1,
            reference_sync_share=0.4,
            kl_coefficient=0.1,
            checkpoint=EVERY_UPDATE,
            **ROUNDS,
        ),
        ON_POLICY | {"policy": "half"},
        [("step:2", 1), ("rollout:1", 2), ("save:1", 2), ("stop:1", 3)],
    ),
    "grpo, adapters": Case(
        "models.training.grpo:train",
        GRPOConfig(
            iterations=3, minibatches=2, samples_per_prompt=3, reward="reward_model", lora=ADAPTERS, checkpoint=EVERY_UPDATE, **ROUNDS
        ),
        ON_POLICY | {"policy": "half"},
        [("step:2", 1), ("rollout:1", 2), ("stop:1", 3)],
    ),
    "preferences": Case(
        "models.preferences:collect",
        PreferencesConfig(
            samples_per_prompt=3,
            sampling=SHORT,
            writers=[WriterConfig(temperatures=[1.0, 0.5])],
            judges=[JudgeConfig(kind="callable", callable="interrupted:judge"), JudgeConfig(kind="reward_model")],
            chunk_prompts=2,
        ),
        {"policies": {"policy": "base"}, "data": "tables", "reward": "reward_folder"},
        [("stop:4", None), ("chunk:7", None)],
    ),
    "best_of_n": Case(
        "models.best_of_n:best_of_n",
        BestOfNConfig(samples=3, sampling=SHORT, chunk_prompts=2, resamples=100),
        {"policy": "base", "data": "tables", "reward": "reward_folder"},
        [("chunk:2", None), ("stop:2", None)],
    ),
    "evaluation": Case(
        "models.evaluation:evaluate",
        EvaluateConfig(samples_per_prompt=2, sampling=SHORT, chunk_prompts=2),
        {"policy": "other", "reference": "base", "data": "tables", "reward": "reward_folder"},
        [("chunk:2", None), ("stop:2", None)],
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def start(case: Case, request: pytest.FixtureRequest, stage_process: Callable[..., Any], tmp_path: Path) -> Callable[[str], Any]:
    def found(names: Any) -> Any:
        return request.getfixturevalue(names) if isinstance(names, str) else {name: found(own) for name, own in names.items()}

    inputs = {name: found(names) for name, names in case.inputs.items()}
    return lambda name: stage_process(tmp_path / name, case.entry, case.config, inputs)


def die(stage: Any, how: str) -> int | None:
    """End an attempt in the middle; the step of the newest checkpoint afterwards."""
    if how.startswith("stop:"):
        stage.stop(int(how.removeprefix("stop:")))
    else:
        stage.kill(how)
    return max(stage.saved_steps(), default=None)


def test_the_same_bytes_and_metrics_after_every_kind_of_death(case: Case, start: Callable[[str], Any]) -> None:
    undisturbed, troubled = start("undisturbed"), start("troubled")
    wanted = undisturbed.run()
    assert wanted.resumed_step is None
    assert [(how, die(troubled, how)) for how, _ in case.deaths] == case.deaths
    result = troubled.run()
    assert result.resumed_step == case.deaths[-1][1]
    assert result.meta == wanted.meta
    assert troubled.digests() == undisturbed.digests()
    assert troubled.history() == undisturbed.history()
    norms = [metrics["train/grad_norm"] for _, metrics in undisturbed.history() if "train/grad_norm" in metrics]
    assert all(norms), "a stage that learns nothing would pass"
