"""Stage entry: a preference model with two arguments, from preference pairs.

Axes: ``P`` pairs, ``W`` numbers a completion.
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from data.templates import load_tokenizer
from models.calibration import REPORT_FILE, calibration_metrics, judge_probabilities, subsets
from models.configs.preference_model import PreferenceModelConfig
from models.losses.preference_model import preference_loss
from models.losses.sums import Sums
from models.parallel import shard
from models.preference_model import PreferenceModel, advantage, new_preference_model, save_preference_model
from models.preflight import check_completions_end
from models.rendering import eos_ids
from models.run import Run
from models.training.core import fit
from models.training.optimiser import Trainee
from models.training.order import updates_for
from models.training.pairs import Batch, PairAlgorithm, Pairs, read_pairs


class TwoArgumentPreference(PairAlgorithm):
    """Raise the probability that chosen beats rejected."""

    def __init__(self, model: PreferenceModel, pairs: Pairs, config: PreferenceModelConfig, seed: int, run: Run):
        super().__init__(pairs, config.batch_size, config.micro_batch_tokens, seed, run, "preference_model")
        self.model = model

    def loss(self, batch: Batch) -> tuple[Tensor, Sums]:
        numbers_P2W = self.model.read(batch.packed).view(-1, 2, self.model.head.out_features)
        return preference_loss(advantage(numbers_P2W[:, 0], numbers_P2W[:, 1]), batch.pairs)


def train(config: PreferenceModelConfig, *, policy: Path, preferences: Path, seed: int, run: Run) -> dict[str, Any]:
    """Train a head of two arguments on the backbone of ``policy``; measure it on held-out pairs where there are any."""
    pairs = read_pairs(preferences / "preferences.parquet", policy, config.max_tokens, run)
    check_completions_end(pairs.groups, eos_ids(policy, load_tokenizer(policy)))
    model = new_preference_model(policy, config.planes, seed, run.device)
    shard(model, run.device)
    updates = updates_for(len(pairs.groups), config.batch_size, config.epochs, config.max_updates)
    algorithm = TwoArgumentPreference(model, pairs, config, seed, run)
    loop = fit(run, algorithm, {"model": Trainee(model, config.optim)}, updates, config.checkpoint)
    held_out = preferences / "test_preferences.parquet"
    measured = _measure(model, held_out, policy, config, run, updates) if held_out.is_file() else {}
    save_preference_model(model, policy, run.out)
    return {"updates": updates, "pairs": len(pairs.groups), "skipped_updates": loop.skipped} | measured


def _measure(model: PreferenceModel, table: Path, policy: Path, config: PreferenceModelConfig, run: Run, updates: int) -> dict[str, Any]:
    held_out = read_pairs(table, policy, config.max_tokens, run)
    numbers_P2W = model.embed(held_out.groups, config.micro_batch_tokens).cpu().double().view(len(held_out.groups), 2, -1)
    p_P = advantage(numbers_P2W[:, 0], numbers_P2W[:, 1]).sigmoid()
    judged = judge_probabilities(p_P, subsets(held_out.groups, held_out.margin_P.tolist(), held_out.sources))
    (run.out / REPORT_FILE).write_text(json.dumps(judged, indent=1), encoding="utf-8")
    run.report(calibration_metrics(judged), updates)
    return {name: judged[name] for name in ("accuracy", "calibration_error", "brier")} | {"held_out_pairs": judged["pairs"]}
