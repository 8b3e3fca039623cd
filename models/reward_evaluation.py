"""Stage entry: how far a reward model can be trusted.

    reward_evaluation.json    {"pairs", "parts", "measures": [Measure], "reliability": [bin], "margin_by_length": [bin], "people": [set],
                               "best_of_n": the curve or null, "notes": [text], "markdown"}

Axes: ``P`` pairs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from data.groups import pair_group
from data.judge_sets import load_judge_set
from data.judgements import Judgement
from data.measures import Measure, interval_metrics
from data.packing import Group
from data.pair_sets import SubsetPair, read_pair_set
from data.people_pairs import PeoplePair, of_labels, of_set
from data.records import Preference, normalised_text
from data.tables import read_table
from data.templates import load_tokenizer
from models.best_of_n import best_of_n
from models.calibration import calibration_metrics, judge_probabilities, reliability, subsets
from models.chunks import map_chunks
from models.compared import Comparer, compare_completions, load_comparer, parts_of
from models.configs.evaluate_reward import EvaluateRewardConfig
from models.held_out import TABLES, other_part, trained_prompts
from models.judge_accuracy import drawn
from models.people_agreement import agreement_measures
from models.preference_model import PreferenceModel
from models.reward_measures import Array, JudgedPairs, Knobs, margin_by_length, margin_thirds, measures_of
from models.reward_report import markdown_of
from models.run import Run
from models.seeds import derive_seed

P = TypeVar("P", SubsetPair, PeoplePair)


def evaluate(
    config: EvaluateRewardConfig,
    *,
    reward: Path,
    seed: int,
    run: Run,
    preferences: Path | None = None,
    labels: Path | None = None,
    policy: Path | None = None,
    data: Path | None = None,
) -> dict[str, Any]:
    """Measure a reward model, an ensemble or a preference model, and write ``reward_evaluation.json`` and ``reward_evaluation.md``.

    Pairs are those of the preferences that it was not trained on, and those of ``sets``; agreement is with the people of ``people`` and of
    ``labels``. What has a prompt that it was trained on is left out of all, and counted. With a policy and its data the best-of-n curve of
    the policy's answers is added.

    Raises:
        ValueError: a reward is not finite, or only one of policy and data is there.
    """
    if (policy is None) != (data is None):
        raise ValueError(f"the best-of-n curve needs a policy and its data, and got policy {policy} and data {data}: give both or neither")
    evaluation = Evaluation(config, reward, preferences, seed, run)
    if policy is not None and isinstance(evaluation.model, PreferenceModel):
        raise ValueError(f"{reward} is a preference model, which picks none of n answers: give no policy, or a reward model")
    content = evaluation.on_pairs() | {"people": [], "best_of_n": None, "parts": sorted(evaluation.parts), "notes": evaluation.notes}
    measures: list[Measure] = content["measures"]
    for name, pairs in evaluation.people(labels).items():
        told, found = evaluation.on_people(name, pairs)
        content["people"].append(told)
        measures += found
    if not measures:
        content["notes"].append("Nothing was measured: no pair is held out, and no set, people or labels are given.")
    run.report(content.pop("metrics") | metrics_of(measures), 0)
    del evaluation
    if policy is not None and data is not None:
        best_of_n(config.best_of_n, policy=policy, data=data, reward=reward, seed=derive_seed(seed, "best of n"), run=run)
        content["best_of_n"] = json.loads((run.out / "best_of_n.json").read_text(encoding="utf-8"))["curve"]
    content |= {"measures": [asdict(measure) for measure in measures], "markdown": markdown_of(content)}
    (run.out / "reward_evaluation.json").write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    (run.out / "reward_evaluation.md").write_text(content["markdown"], encoding="utf-8", errors="backslashreplace")
    run.log(content["markdown"].partition("\n## ")[0])
    return {"pairs": content["pairs"]} | {measure.name: measure.mean for measure in measures if "/" not in measure.name}


class Evaluation:
    """A model of preferences with what it takes to measure it, and the prompts that it has learned from."""

    def __init__(self, config: EvaluateRewardConfig, reward: Path, preferences: Path | None, seed: int, run: Run):
        self.config, self.preferences, self.seed, self.run = config, preferences, seed, run
        self.model: Comparer = load_comparer(reward, run.device)
        self.tokenizer = load_tokenizer(reward)
        self.parts = parts_of(self.model)
        self.seen = {prompt for part in self.parts for prompt in trained_prompts(preferences, part)} if preferences else set()
        self.notes: list[str] = []

    # Pairs

    def on_pairs(self) -> dict[str, Any]:
        """Measures on held-out pairs, what their plots show, and the metrics that reward-model training reports too."""
        pairs, groups = self._rendered(self._pairs(), "held-out pairs")
        if not pairs:
            return {"pairs": 0, "measures": [], "metrics": {}, "reliability": [], "margin_by_length": []}
        margin_P, p_P = self._compared("pairs", groups)
        records = [one.pair for one in pairs]
        named = subsets(groups, [row.margin for row in records], [row.source for row in records])
        judged = JudgedPairs(
            [row.id for row in records],
            [normalised_text(row.prompt) for row in records],
            margin_P,
            p_P,
            np.asarray([len(g.completions[0]) - len(g.completions[1]) for g in groups], dtype=np.float64),
            members_of(named, pairs),
        )
        knobs = Knobs(self.config.bins, self.config.length_bins, self.config.resamples, self.seed)
        measures = measures_of(judged, knobs)
        return {
            "pairs": len(pairs),
            "measures": measures,
            "metrics": calibration_metrics(judge_probabilities(torch.from_numpy(p_P), named)),
            "reliability": reliability(torch.from_numpy(p_P), self.config.bins),
            "margin_by_length": margin_by_length(judged, knobs),
        }

    def _pairs(self) -> list[SubsetPair]:
        """Held-out pairs of the preferences and of the sets, each once. What was trained on both parts has none of the preferences."""
        found: dict[str, SubsetPair] = {}
        if self.preferences is not None and len(self.parts) == 1:
            table = self.preferences / TABLES[other_part(*self.parts)]
            found |= {row.id: SubsetPair(row) for row in (read_table(table, Preference) if table.is_file() else [])}
        for source in self.config.sets:
            pairs, bad = read_pair_set(source)
            found |= {one.pair.id: one for one in pairs}
            self._note(f"rows of {source.place} left out", dict(bad))
        return list(found.values())

    # People

    def people(self, labels: Path | None) -> dict[str, list[PeoplePair]]:
        """The pairs of every set that people compared, by the name of the set."""
        found: dict[str, list[PeoplePair]] = {}
        for number, source in enumerate(self.config.people):
            rows = load_judge_set(source.kind, Path(source.path))
            name = source.kind if source.kind not in found else f"{source.kind} {number + 1}"
            found[name] = of_set(drawn(rows, source.rows, derive_seed(self.seed, "people", number)))
        if labels is not None:
            found["labels"] = of_labels(read_table(labels / "judgements.parquet", Judgement))
        return found

    def on_people(self, name: str, given: Sequence[PeoplePair]) -> tuple[dict[str, Any], list[Measure]]:
        """How much of one set was used, and the agreement with its people."""
        pairs, groups = self._rendered(given, f"pairs of {name}")
        told = {"people": name, "pairs": len(pairs), "votes": sum(len(one.votes) for one in pairs)}
        if not pairs:
            return told, []
        margin_P, _ = self._compared(f"people-{name}", groups)
        verdicts, seed = np.sign(margin_P).astype(int).tolist(), derive_seed(self.seed, "agreement", name)
        return told, agreement_measures(pairs, verdicts, name, seed=seed, resamples=self.config.resamples)

    # Both

    def _rendered(self, given: Sequence[P], where: str) -> tuple[list[P], list[Group]]:
        """Those whose prompt the model has not learned from and that are not too long, with their tokens."""
        unseen = [one for one in given if normalised_text(one.pair.prompt) not in self.seen]
        groups = [pair_group(self.tokenizer, one.pair) for one in unseen]
        fits = [group.n_tokens <= self.config.max_tokens for group in groups]
        long = f"longer than {self.config.max_tokens} tokens"
        self._note(f"{where} left out", {"of a prompt trained on": len(given) - len(unseen), long: fits.count(False)})
        return [one for one, fit in zip(unseen, fits, strict=True) if fit], [group for group, fit in zip(groups, fits, strict=True) if fit]

    def _compared(self, name: str, groups: Sequence[Group]) -> tuple[Array, Array]:
        """Margin and probability of every pair, chunk by chunk."""

        def compare(number: int, chunk: Sequence[Group]) -> list[list[float]]:
            found = compare_completions(self.model, chunk, self.config.micro_batch_tokens)
            return torch.stack([found.margin_P, found.p_P], 1).tolist()

        rows = np.asarray(map_chunks(self.run, name, groups, self.config.chunk_pairs, compare), dtype=np.float64)
        if not np.isfinite(rows).all():
            raise ValueError(
                f"the reward model gives {int((~np.isfinite(rows)).any(1).sum())} of {len(rows)} pairs no finite reward: it is damaged"
            )
        return rows[:, 0], rows[:, 1]

    def _note(self, what: str, counts: Mapping[str, int]) -> None:
        told = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
        if told:
            self.notes.append(f"{what}: {told}")


def members_of(named: Mapping[str, list[bool]], pairs: Sequence[SubsetPair]) -> dict[str, list[bool]]:
    """Which pairs are in which subset: by source, longer side and margin, by thirds of the margin, and by what the data calls a subset.

    A source or a margin that all pairs have is no subset.
    """
    found = {name.replace(":", "=", 1): member for name, member in named.items()}
    found |= margin_thirds([one.pair.margin for one in pairs])
    found |= {f"subset={name}": [one.subset == name for one in pairs] for name in sorted({one.subset for one in pairs} - {""})}
    return {name: member for name, member in found.items() if name.startswith("length=") or not all(member)}


def metrics_of(measures: Sequence[Measure]) -> dict[str, float]:
    """What the stage reports: every measure with the ends of its interval."""
    return interval_metrics({f"reward_evaluation/{one.name}": one for one in measures})
