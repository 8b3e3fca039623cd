"""Stage entry: what training against a reward did along the way. The snapshots of a policy answer the same held-out prompts.

Axes: ``K`` points, the first of which is the reference, ``P`` prompts, ``A`` answers.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.packing import Group
from data.records import Prompt
from data.tables import read_table
from data.verifiers import verify
from models.chunks import map_chunks
from models.comparison import cell
from models.configs.evaluation import EvaluateConfig
from models.configs.overoptimisation import OveroptimisationConfig
from models.evaluation import Evaluator
from models.overoptimisation_curve import Curve, Verdict, fit, points, standardised, verdict
from models.rendering import text_of
from models.rewards import reward_of
from models.run import Run
from models.seeds import derive_seed
from models.snapshots import read_snapshots

Rows = list[dict[str, Any]]
FORMS = {"reinforcement": "d (alpha - beta log d)", "best_of_n": "d (alpha - beta d)"}
SHOWN = {"reward": "reward trained on", "held_out_reward": "held-out reward", "score": "verifier's score"}


def measure(
    config: OveroptimisationConfig,
    *,
    policy: Path,
    reference: Path,
    data: Path,
    seed: int,
    run: Run,
    reward: Path | None = None,
    held_out_reward: Path | None = None,
) -> dict[str, Any]:
    """Let the reference, every snapshot and the policy itself answer, and write ``overoptimisation.json`` and ``overoptimisation.md``.

    Prompts and sampling noise are the same for all. ``reward`` is the reward model that the configuration may name; what
    ``held_out_reward`` says was not trained on; the verifier judges the prompts that name one.

    Raises:
        ValueError: the policy has no snapshots, or its reward cannot be loaded.
    """
    prompts = read_table(data / "test_prompts.parquet", Prompt)
    prompts = prompts[: config.prompts] if config.prompts else prompts
    folders = {0: reference} | read_snapshots(policy)
    way = Way(config, prompts, reference, reward, held_out_reward, seed, run)
    answered = [way.answers(step, folder, (k, len(folders))) for k, (step, folder) in enumerate(folders.items())]
    curve = curve_of(list(folders), answered, derive_seed(seed, "overoptimisation"), config.resamples)
    found, said = points(curve), verdict(curve)
    for point, rows in zip(found, answered, strict=True):
        run.report(_metrics(point, rows), point["step"])
    fits = _fits(curve, config.form)
    markdown = as_markdown(found, said, fits, len(prompts), config.samples_per_prompt)
    with_verifier = 0 if curve.score_KP is None else curve.score_KP.shape[1]
    content = {"points": found, **vars(said), **fits, "prompts": len(prompts), "prompts_with_verifier": with_verifier, "markdown": markdown}
    (run.out / "overoptimisation.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (run.out / "overoptimisation.md").write_text(markdown, encoding="utf-8")
    run.log(markdown)
    return {"recommended_step": said.recommended_step, "overoptimised": said.overoptimised, "points": len(found)}


class Way:
    """What is the same at every point of a policy's way: prompts, noise, and who measures."""

    def __init__(
        self,
        config: OveroptimisationConfig,
        prompts: Sequence[Prompt],
        reference: Path,
        reward: Path | None,
        held_out_reward: Path | None,
        seed: int,
        run: Run,
    ):
        self.config, self.prompts, self.reference, self.seed, self.run = config, prompts, reference, seed, run
        self.reward, self.held_out_reward = reward, held_out_reward
        self.asked = EvaluateConfig(
            judge="reward_model",  # the verifier is asked here, of the prompts that have one
            samples_per_prompt=config.samples_per_prompt,
            sampling=config.sampling,
            greedy=False,
            chunk_prompts=config.chunk_prompts,
            micro_batch_tokens=config.micro_batch_tokens,
        )

    def answers(self, step: int, folder: Path, part: tuple[int, int]) -> Rows:
        """One row a prompt, with everything measured; kept as soon as a point is done, and before that chunk by chunk."""

        def work(number: int, steps: Sequence[int]) -> Rows:
            evaluator = Evaluator(self.asked, folder, self.seed, self.run)
            rows = map_chunks(self.run, f"answers-{step:06d}", self.prompts, self.config.chunk_prompts, evaluator.answer, part)
            self._add_scores(evaluator, rows)
            return evaluator.measure(rows, self.reference, {"held_out_reward": self.held_out_reward}, f"{step:06d}-")

        return map_chunks(self.run, f"measured-{step:06d}", [step], 1, work, part)

    def _add_scores(self, evaluator: Evaluator, rows: Rows) -> None:
        """The reward trained on, and the verifier's score where the prompt has one."""
        groups = [Group(row["prompt"], [c["tokens"] for c in row["sampled"]]) for row in rows]
        rewarded = reward_of(self.config, evaluator.answerer.tokenizer, self.reference, self.reward, self.run.device)
        scored = rewarded(self.prompts, groups)
        if scored.failures:
            self.run.log(f"{scored.failures} answers could not be scored by the reward trained on")
        for prompt, row, scores in zip(self.prompts, rows, scored.reward_PG, strict=True):
            for answer, score in zip(row["sampled"], scores, strict=True):
                answer["reward"] = score
                if prompt.verifier != "none":
                    judged = verify(prompt, text_of(evaluator.answerer.tokenizer, answer["tokens"]))
                    answer |= {"score": judged.score, "failed": judged.error is not None}


def curve_of(steps: Sequence[int], answered: Sequence[Rows], seed: int, resamples: int) -> Curve:
    """The answers of every point as quantities by prompt, rewards standardised."""

    def by_prompt(name: str) -> np.ndarray | None:
        values = [[[c[name] for c in row["sampled"]] for row in rows if name in row["sampled"][0]] for rows in answered]
        return np.array(values, dtype=np.float64) if values[0] else None

    def reward(name: str) -> np.ndarray | None:
        value_KPA = by_prompt(name)
        return None if value_KPA is None else standardised(value_KPA.mean(axis=2), value_KPA.reshape(len(value_KPA), -1))

    kl_KPA, reward_KP, score_KPA = by_prompt("kl_nats"), reward("reward"), by_prompt("score")
    assert kl_KPA is not None and reward_KP is not None
    score_KP = None if score_KPA is None else score_KPA.mean(axis=2)
    return Curve(list(steps), kl_KPA.mean(axis=2), reward_KP, reward("held_out_reward"), score_KP, seed, resamples)


def _fits(curve: Curve, form: str) -> dict[str, Any]:
    """Coefficients by quantity, and for those without an honest fit the reason."""
    series = {"reward": curve.reward_KP, "held_out_reward": curve.held_out_KP, "score": curve.score_KP}
    fitted = {name: fit(curve, value_KP, form) for name, value_KP in series.items() if value_KP is not None}
    return {
        "fits": {name: one for name, one in fitted.items() if not isinstance(one, str)},
        "not_fitted": {name: one for name, one in fitted.items() if isinstance(one, str)},
    }


def _metrics(point: dict[str, Any], rows: Rows) -> dict[str, float]:
    sampled = [c for row in rows for c in row["sampled"]]
    metrics = {
        "overoptimisation/kl_nats": point["kl_nats"],
        "overoptimisation/sqrt_kl": point["sqrt_kl"],
        "overoptimisation/completion_tokens": sum(c["n_tokens"] for c in sampled) / len(sampled),
    }
    failed = [c["failed"] for c in sampled if "failed" in c]
    if failed:
        metrics["overoptimisation/verifier_failures"] = float(sum(failed))
    for name in SHOWN:
        if point[name] is not None:
            metrics[f"overoptimisation/{name}"] = point[name]["mean"]
            metrics |= {f"overoptimisation/{name}_{end}": point[name][end] for end in ("low", "high")}
    return metrics


def as_markdown(found: Rows, said: Verdict, fits: dict[str, Any], prompts: int, samples: int) -> str:
    """The curve as a table, what it means, and how it was measured."""
    present = [name for name in SHOWN if found[0][name] is not None]
    lines = ["| step | KL, nats | sqrt KL | " + " | ".join(SHOWN[name] for name in present) + " |", "|" + "---|" * (3 + len(present))]
    for point in found:
        cells = [cell(point[name]) for name in present]
        lines.append(f"| {point['step']} | {point['kl_nats']:.3f} | {point['sqrt_kl']:.3f} | " + " | ".join(cells) + " |")
    note = (
        f"Step 0 is the reference. {prompts} held-out prompts, {samples} completions of each, the same noise at every step. Rewards are "
        "gains over the reference in standard deviations of its completions; brackets are 95 % paired-bootstrap intervals over prompts."
    )
    return "\n".join([said.message, "", *lines, "", *_fitted(fits["fits"]), note, ""])


def _fitted(fits: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each quantity that a form was fitted to."""
    return [
        f"{SHOWN[name]} = {FORMS[one['form']]}, d = sqrt KL: alpha {cell(one['alpha'])}, beta {cell(one['beta'])}, "
        f"{one['explained']:.2f} of the variance explained.\n"
        for name, one in fits.items()
    ]
