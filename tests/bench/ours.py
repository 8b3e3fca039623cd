"""This project's side: the stages' own loops, unchanged, with a gate where they report an update."""

from pathlib import Path
from typing import Any

import torch

from data.records import Demonstration, Preference, Prompt
from data.tables import write_table
from data.templates import load_tokenizer, render_prompt
from models.configs.checkpointing import CheckpointConfig
from models.configs.dpo import DPOConfig
from models.configs.grpo import GRPOConfig
from models.configs.optimisation import OptimConfig
from models.configs.ppo import PPOConfig
from models.configs.reward_model import RewardModelConfig
from models.configs.rewards import RewardComponent
from models.configs.sampling import SamplingConfig
from models.configs.sft import SFTConfig
from models.generation import generate
from models.heads import new_scalar, save_scalar
from models.loading import load_policy
from models.logprobs import sequence_logps
from models.rendering import eos_ids
from models.run import Run
from models.training import dpo, grpo, ppo, reward_model, sft
from models.training.pairs import Batch
from models.worker import prepare_numerics
from tests.bench.gate import Gate
from tests.bench.work import SEED, WORKS, Work, Writer

NEVER = CheckpointConfig(every_s=0, every_updates=0)
PASS_TOKENS = 1280  # of PPO: about 8 completions
GROUP_PASS_TOKENS = 700  # of GRPO: the same 8 completions, a group, with their prompt once
OPTIM = OptimConfig(learning_rate=1e-6, schedule="constant", warmup_share=0)


class GatedRun(Run):
    """Waits at the gate before the first update and after each."""

    def __init__(self, gate: Gate, folder: Path):
        out, checkpoints = folder / "out", folder / "checkpoints"
        for path in (out, checkpoints):
            path.mkdir(parents=True)
        super().__init__(out, checkpoints, "bench")
        self.gate = gate
        self._waited = False

    def stop_if_asked(self) -> None:
        """The loop looks here when its model is loaded, before the first update."""
        super().stop_if_asked()
        if not self._waited:
            self._waited = True
            self.gate.lap()

    def report(self, metrics: Any, step: int) -> None:
        """The loop comes here when an update is done."""
        super().report(metrics, step)
        tokens = metrics["time/tokens_per_s"] * metrics["time/step_s"]
        self.gate.lap(tokens=tokens, completion_tokens=metrics.get("train/completion_tokens", 0.0))


def main(name: str, model: Path, folder: Path) -> None:
    """Run one comparison's laps, or the cases of ``scaling``, until the driver is done."""
    gate = Gate()
    prepare_numerics(SEED)
    if name == "scaling":
        from tests.bench import scaling

        scaling.serve(gate, model, folder)
    work, writer = WORKS[name], Writer(model)
    if name.startswith("generate"):
        _generate(gate, work, writer, model)
    run = GatedRun(gate, folder)
    globals()[f"_{name}"](work, writer, model, run)


def _sft(work: Work, writer: Writer, model: Path, run: GatedRun) -> None:
    write_table(run.checkpoints / "demonstrations.parquet", writer.demonstrations(work), Demonstration)
    config = SFTConfig(batch_size=work.batch, epochs=9, optim=OPTIM, checkpoint=NEVER)
    run.gate.settings = config.model_dump(mode="json")
    sft.train(config, base=model, data=run.checkpoints, seed=SEED, run=run)


def _reward_model(work: Work, writer: Writer, model: Path, run: GatedRun) -> None:
    write_table(run.checkpoints / "preferences.parquet", writer.preferences(work), Preference)
    config = RewardModelConfig(batch_size=work.batch, epochs=9, optim=OPTIM, checkpoint=NEVER)
    run.gate.settings = config.model_dump(mode="json")
    reward_model.train(config, policy=model, preferences=run.checkpoints, seed=SEED, run=run)


class _DPOWithItsReference(dpo.PreferenceOptimisation):
    """Computes the reference of an update's pairs in that update, so that its cost is in the lap; the stage does it once, before."""

    def batches(self, update: int) -> list[Batch]:
        batches = super().batches(update)
        chosen = torch.cat([batch.index_P for batch in batches])
        assert self.ref_logp_P2 is not None
        self.ref_logp_P2[chosen] = sequence_logps(self.policy, [self.pairs.groups[i] for i in chosen.tolist()], self.max_tokens).view(-1, 2)
        return batches


def _dpo(work: Work, writer: Writer, model: Path, run: GatedRun) -> None:
    write_table(run.checkpoints / "preferences.parquet", writer.preferences(work), Preference)
    config = DPOConfig(batch_size=work.batch, epochs=9, optim=OPTIM, checkpoint=NEVER)
    dpo.PreferenceOptimisation = _DPOWithItsReference
    dpo.sequence_logps = lambda policy, groups, max_tokens: torch.zeros(2 * len(groups))
    run.gate.settings = config.model_dump(mode="json")
    dpo.train(config, policy=model, preferences=run.checkpoints, seed=SEED, run=run)


def _grpo(work: Work, writer: Writer, model: Path, run: GatedRun) -> None:
    write_table(run.checkpoints / "prompts.parquet", writer.prompts(work), Prompt)
    config = GRPOConfig(
        loss="dapo",
        reward="weighted",
        rewards=(RewardComponent(name="e", source="callable", callable="tests.bench.work:reward_of_prompt"),),
        iterations=10_000,
        prompts_per_iteration=work.batch,
        samples_per_prompt=work.samples,
        kl_coefficient=0.0,
        sampling=SamplingConfig(max_tokens=work.max_tokens),
        optim=OPTIM,
        checkpoint=NEVER,
        micro_batch_tokens=GROUP_PASS_TOKENS,
    )
    run.gate.settings = config.model_dump(mode="json")
    grpo.train(config, policy=model, data=run.checkpoints, reward=None, seed=SEED, run=run)


def _ppo(work: Work, writer: Writer, model: Path, run: GatedRun) -> None:
    write_table(run.checkpoints / "prompts.parquet", writer.prompts(work), Prompt)
    reward = run.checkpoints / "reward"
    reward.mkdir()
    save_scalar(new_scalar(model, SEED), model, reward)
    config = PPOConfig(
        iterations=10_000,
        prompts_per_iteration=work.batch,
        samples_per_prompt=work.samples,
        epochs=1,
        sampling=SamplingConfig(max_tokens=work.max_tokens),
        optim=OPTIM,
        value_optim=OPTIM,
        checkpoint=NEVER,
        micro_batch_tokens=PASS_TOKENS,
    )
    run.gate.settings = config.model_dump(mode="json")
    ppo.train(config, policy=model, data=run.checkpoints, reward=reward, seed=SEED, run=run)


def _generate(gate: Gate, work: Work, writer: Writer, model: Path) -> None:
    policy, tokenizer = load_policy(model, "cuda" if torch.cuda.is_available() else "cpu"), load_tokenizer(model)
    prompts = [render_prompt(tokenizer, prompt.messages) for prompt in writer.prompts(work)]
    sampling = SamplingConfig(max_tokens=work.max_tokens, max_rows=work.batch * work.samples)
    eos, lap, tokens = eos_ids(model, tokenizer), 0, 0
    gate.settings = sampling.model_dump(mode="json") | {"samples": work.samples, "dtype": str(policy.dtype)}
    while True:
        gate.lap(tokens=tokens)
        begin = lap * work.batch % len(prompts)
        drawn = generate(policy, prompts[begin : begin + work.batch], sampling, samples=work.samples, eos_ids=eos, seed=lap)
        tokens = sum(len(completion.tokens) for row in drawn for completion in row)
        lap += 1
