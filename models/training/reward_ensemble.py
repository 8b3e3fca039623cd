"""Stage entry: trained reward models become one ensemble.

Axes: ``M`` members, ``C`` completions, ``P`` pairs.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.files import sha256_of
from models.calibration import REPORT_FILE, calibration_metrics, judge_probabilities, subsets
from models.configs.ensembles import EnsembleConfig
from models.ensembles import ENSEMBLE_FILE, Ensemble, aggregate_scores, load_reward
from models.heads import HEAD_FILE
from models.loading import copy_tokenizer
from models.run import Run
from models.training.pairs import read_pairs


def combine(config: EnsembleConfig, *, members: Sequence[Path], seed: int, run: Run, preferences: Path | None = None) -> dict[str, Any]:
    """Put trained reward models into one folder; measure the ensemble on held-out pairs where there are any.

    Raises:
        ValueError: fewer than two members, one that is no reward model, two that are the same, or members of different tokenizers.
    """
    _check(members)
    for number, member in enumerate(members):
        _copy(member, run.out / f"member-{number}")
    copy_tokenizer(members[0], run.out)
    names = [f"member-{number}" for number in range(len(members))]
    saved = {"members": names, "aggregate": config.aggregate, "coefficient": config.coefficient}
    (run.out / ENSEMBLE_FILE).write_text(json.dumps(saved), encoding="utf-8")
    held_out = preferences / "test_preferences.parquet" if preferences is not None else None
    measured = _measure(config, members[0], held_out, run) if held_out is not None and held_out.is_file() else {}
    return {"members": len(members)} | measured


def _check(members: Sequence[Path]) -> None:
    if len(members) < 2:
        raise ValueError(f"an ensemble of {len(members)} has no spread: give at least two reward models, or use the one there is")
    missing = [folder for folder in members if not (folder / HEAD_FILE).is_file()]
    if missing:
        raise ValueError(f"{missing[0]} has no {HEAD_FILE}: members are artifacts of the reward_model stage")
    heads = [sha256_of(folder / HEAD_FILE) for folder in members]
    same = next((i for i, digest in enumerate(heads) if digest in heads[:i]), None)
    if same is not None:
        raise ValueError(
            f"members {heads.index(heads[same])} and {same} are the same model and cannot disagree: train each with its own seed"
        )
    if len({sha256_of(folder / "tokenizer.json") for folder in members}) > 1:
        raise ValueError("the members have different tokenizers, and all score the same tokens: train them on one policy's tokenizer")


def _copy(member: Path, target: Path) -> None:
    """Contents only: the permissions of stored artifacts forbid writing."""
    target.mkdir()
    for path in sorted(p for p in member.iterdir() if p.is_file()):
        shutil.copyfile(path, target / path.name)


def _measure(config: EnsembleConfig, tokenizer: Path, table: Path, run: Run) -> dict[str, Any]:
    """Accuracy and calibration of the mean of the members' probabilities, and how much the members disagree."""
    held_out = read_pairs(table, tokenizer, config.max_tokens, run)
    ensemble = load_reward(run.out, run.device)
    assert isinstance(ensemble, Ensemble)
    score_MC = ensemble.member_scores(held_out.groups, config.micro_batch_tokens).cpu().double()
    judged = judge_probabilities(ensemble.probabilities(score_MC), subsets(held_out.groups, held_out.margin_P.tolist(), held_out.sources))
    aggregated_P2 = aggregate_scores(score_MC, config.aggregate, config.coefficient).view(-1, 2)
    judged["accuracy_aggregated"] = float((aggregated_P2[:, 0] > aggregated_P2[:, 1]).double().mean())
    judged["disagreement"] = float(score_MC.std(0, correction=0).mean())
    (run.out / REPORT_FILE).write_text(json.dumps(judged, indent=1), encoding="utf-8")
    run.report(calibration_metrics(judged) | {"eval/reward_disagreement": judged["disagreement"]}, 0)
    return {name: judged[name] for name in ("accuracy", "accuracy_aggregated", "calibration_error", "brier", "disagreement")}
