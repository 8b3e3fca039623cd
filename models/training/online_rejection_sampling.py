"""Stage entry: online rejection sampling. Sample from the policy as it is now, imitate the best, and again.

Axes: ``P`` prompts of a round, ``G`` samples of each.

Source: Dong et al. 2023 (RAFT), algorithm 1; the top-k over all prompts of a round is Touvron et al. 2023, section 3.2.3.
"""

import math
from pathlib import Path
from typing import Any

from data.packing import Group
from data.records import Prompt
from data.tables import read_table
from data.templates import load_tokenizer, render_prompt
from models.configs.online_rejection_sampling import OnlineRejectionSamplingConfig
from models.configs.sft import SFTConfig
from models.generation import generate
from models.loading import load_policy, save_policy
from models.rendering import eos_ids
from models.rewards import RewardFunction, reward_function
from models.run import Run
from models.seeds import derive_seed
from models.training.core import fit
from models.training.imitation import Batch, Imitation
from models.training.optimiser import Trainee
from models.training.order import batch_indices, permutation
from models.training.rejection_sampling import select


class OnlineImitation(Imitation):
    """Likelihood of the completions that the newest round kept."""

    sampling_s = 0.0

    def __init__(
        self,
        policy: Any,
        prompts: list[Prompt],
        tokenizer: Any,
        reward: RewardFunction,
        eos: list[int],
        config: OnlineRejectionSamplingConfig,
        seed: int,
        run: Run,
    ):
        learning = SFTConfig(normaliser=config.normaliser, micro_batch_tokens=config.micro_batch_tokens)
        super().__init__(policy, [], learning, seed, run.micro_batch_scale)
        self.prompts, self.reward, self.eos, self.rounds, self.run = prompts, reward, eos, config, run
        self.prompt_ids = [render_prompt(tokenizer, prompt.messages) for prompt in prompts]
        self.metrics: dict[str, float] = {}

    def batches(self, update: int) -> list[Batch]:
        number, inner = divmod(update, self.rounds.updates_per_round)
        if inner == 0:
            self.groups = self._sample(number)
        epoch, part = divmod(inner, self.rounds.minibatches)
        order = permutation(len(self.groups), self.seed, "kept", number, epoch)
        return self.cut([self.groups[i] for i in order[part :: self.rounds.minibatches]])

    def _sample(self, number: int) -> list[Group]:
        """The completions of a round that are kept, each as a group of its own."""
        config = self.rounds
        chosen = batch_indices(len(self.prompts), config.prompts_per_round, number, self.seed, "prompts")
        with self.sampling():
            sampled_PG = generate(
                self.policy,
                [self.prompt_ids[i] for i in chosen],
                config.sampling,
                samples=config.samples_per_prompt,
                eos_ids=self.eos,
                seed=derive_seed(self.seed, "round", number),
                on_step=self.run.stop_if_asked,
            )
        self.run.failpoint("rollout")
        groups = [Group(self.prompt_ids[i], [c.tokens for c in row]) for i, row in zip(chosen, sampled_PG, strict=True)]
        scored = self.reward([self.prompts[i] for i in chosen], groups)
        eligible_PG = [
            [score if c.finished or config.keep_unfinished else -math.inf for score, c in zip(scores, row, strict=True)]
            for scores, row in zip(scored.reward_PG, sampled_PG, strict=True)
        ]
        kept = select(eligible_PG, config.select, config.keep, config.min_score, derive_seed(self.seed, "control", number))
        everything = [s for row in scored.reward_PG for s in row]
        completions = [c for row in sampled_PG for c in row]
        self.metrics = {
            "train/reward": sum(everything) / len(everything),
            "train/reward_failures": scored.failures,
            "train/completion_tokens": sum(len(c.tokens) for c in completions) / len(completions),
            "train/finished": sum(c.finished for c in completions) / len(completions),
            "rejection_sampling/kept": len(kept),
        } | scored.metrics
        if kept:
            self.metrics["rejection_sampling/kept_score"] = sum(scored.reward_PG[p][g] for p, g in kept) / len(kept)
        return [Group(groups[p].prompt, [groups[p].completions[g]]) for p, g in kept]

    def extra_metrics(self, update: int) -> dict[str, float]:
        return self.metrics if update % self.rounds.updates_per_round == 0 else {}

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        kept = [{"prompt": list(g.prompt), "completion": list(g.completions[0])} for g in self.groups]
        return {}, {"kept": kept, "metrics": self.metrics}

    def load_state(self, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        self.groups = [Group(g["prompt"], [g["completion"]]) for g in state["kept"]]
        self.metrics = state["metrics"]


def train(
    config: OnlineRejectionSamplingConfig, *, policy: Path, data: Path, seed: int, run: Run, reward: Path | None = None
) -> dict[str, Any]:
    """Improve ``policy`` on the prompts of ``data``, one round of its own best completions after the other.

    A round of which nothing is kept is skipped, weights untouched; ``rejection_sampling/kept`` shows it.
    """
    tokenizer = load_tokenizer(policy)
    prompts = read_table(data / "prompts.parquet", Prompt)
    model = load_policy(policy, run.device, trainable=True)
    score = reward_function(config.reward, tokenizer, reward, run.device)
    algorithm = OnlineImitation(model, prompts, tokenizer, score, eos_ids(policy, tokenizer), config, seed, run)
    updates = config.rounds * config.updates_per_round
    loop = fit(run, algorithm, {"policy": Trainee(model, config.optim)}, updates, config.checkpoint)
    save_policy(model, policy, run.out)
    return {"updates": updates, "prompts": len(prompts), "skipped_updates": loop.skipped}
