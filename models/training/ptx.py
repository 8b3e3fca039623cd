"""What PPO-ptx adds to PPO: every update also raises the likelihood of demonstrations.

Axes: ``S`` scored tokens of a micro-batch, ``C`` completions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from data.groups import demonstration_group, document_group
from data.packing import Group, Packed, pack, split_by_tokens
from data.records import Demonstration, Document
from data.tables import read_table
from data.templates import load_tokenizer
from models.configs.ppo import PPOConfig
from models.logprobs import token_logps
from models.losses.sft import sft_loss
from models.losses.sums import Sums
from models.rendering import drop_long
from models.run import Run
from models.training.order import batch_indices


@dataclass(frozen=True)
class DemonstrationBatch:
    """A micro-batch of demonstrations; ``tokens`` and ``sequences`` are those of the whole update."""

    packed: Packed
    tokens: int
    sequences: int


class Demonstrations:
    """gamma E_x log pi(x), the mean over demonstrated tokens, to be maximised beside PPO's objective.

    Source: Ouyang et al. 2022, equation 2, per token instead of per sequence, with documents or, in their place, demonstrations.
    """

    def __init__(self, policy: Any, groups: Sequence[Group], config: PPOConfig, max_tokens: int, seed: int):
        self.policy, self.groups, self.config, self.max_tokens, self.seed = policy, groups, config, max_tokens, seed

    def batches(self, update: int) -> list[DemonstrationBatch]:
        """The demonstrations of an update, in micro-batches."""
        chosen = batch_indices(len(self.groups), self.config.ptx_batch_size, update, self.seed, "ptx")
        parts = [pack(part) for part in split_by_tokens([self.groups[i] for i in chosen], self.max_tokens)]
        tokens = sum(len(packed.target_S) for packed in parts)
        return [DemonstrationBatch(packed.to(self.policy.device), tokens, len(chosen)) for packed in parts]

    def loss(self, batch: DemonstrationBatch) -> tuple[Tensor, Sums]:
        """-gamma sum_S log pi / tokens of the update."""
        packed = batch.packed
        logp_S, _ = token_logps(self.policy, packed)
        loss, sums = sft_loss(logp_S, packed.completion_S, packed.lengths_C(), "token_mean", batch.tokens, batch.sequences)
        return self.config.ptx_coefficient * loss, {"ppo/ptx_loss": sums["train/loss"]}


def read_demonstrations(config: PPOConfig, policy: Path, data: Path, run: Run) -> list[Group]:
    """The demonstrations (or documents) of a data artifact; those longer than a micro-batch are left out and counted.

    Raises:
        ValueError: it holds none.
    """
    table = data / f"{config.ptx_table}.parquet"
    if not table.is_file():
        named = config.ptx_table
        raise ValueError(f"ptx_coefficient needs {named}, and this data artifact has none: curate a source of them, or set it to 0")
    tokenizer = load_tokenizer(policy)
    if config.ptx_table == "documents":
        groups = [document_group(tokenizer, record.text) for record in read_table(table, Document)]
    else:
        groups = [demonstration_group(tokenizer, record.messages) for record in read_table(table, Demonstration)]
    return [groups[i] for i in drop_long(groups, config.micro_batch_tokens, run)]
