"""Stage entry: prompts with right answers, by accuracy and pass@k."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.drawing import drawn
from data.measures import Measure, Suite, broken_down, mean, share
from data.records import Prompt
from data.suite_rows import held_out_prompts, prompts_of
from models.answering import ask
from models.best_of_n import picked_weights
from models.configs.verifiable import VerifiableConfig
from models.evaluation import task_of, verdict_of
from models.run import Run
from models.suites.concluding import conclude

Answers = Sequence[Sequence[Mapping[str, Any]]]


def verifiable(config: VerifiableConfig, *, policy: Path, seed: int, run: Run, data: Path | None = None) -> dict[str, Any]:
    """Sample every prompt and write ``suite.json``: accuracy and pass@k, each of all prompts, by task and by difficulty.

    Prompts and noise are the same for every policy of a seed.

    Raises:
        ValueError: the held-out prompts are asked for and there is no data, a prompt names no verifier, or the source cannot be used.
    """
    prompts = _prompts(config, data, seed)
    answers = ask(
        policy,
        prompts,
        lambda prompt: prompt.messages,
        config.sampling,
        purpose=f"suite {config.name}",
        samples=config.samples,
        chunk=config.chunk_prompts,
        seed=seed,
        run=run,
        judge=verdict_of,
    )
    rows = [
        {"id": prompt.id, "prompt": prompt.messages[-1].content, **task_of(prompt), "answer": prompt.answer, "sampled": row}
        for prompt, row in zip(prompts, answers, strict=True)
    ]
    return conclude(Suite(config.name, "verifiable", measures(prompts, answers, config, seed), rows, _notes(config, answers)), run)


def _prompts(config: VerifiableConfig, data: Path | None, seed: int) -> list[Prompt]:
    if config.ask == "source":
        return prompts_of(config.source, config.prompts, seed)
    prompts = held_out_prompts(data, config.name)
    unjudged = next((prompt.id for prompt in prompts if prompt.verifier == "none"), None)
    if unjudged is not None:
        raise ValueError(f"the suite {config.name} needs prompts with a verifier, and held-out prompt {unjudged} names none")
    return drawn(prompts, config.prompts, seed)


def measures(prompts: Sequence[Prompt], answers: Answers, config: VerifiableConfig, seed: int) -> list[Measure]:
    """Accuracy: the share of right samples, mean over prompts. pass@k: the chance that one of k samples is right, unbiased.

    pass@k = 1 - C(n - c, k) / C(n, k) for c right of n samples (Chen et al. 2021, equation 1). With one sample a prompt the interval is
    Wilson's; with several, by bootstrap over prompts, since samples of one prompt are not independent.
    """
    given: dict[str, Any] = {"seed": seed, "resamples": config.resamples}
    labels = {prompt.id: task_of(prompt) for prompt in prompts}
    right = {prompt.id: [float(answer["correct"]) for answer in row] for prompt, row in zip(prompts, answers, strict=True)}
    quantities = {"accuracy": {item: sum(own) / len(own) for item, own in right.items()}}
    quantities |= {f"pass_at_{k}": {item: pass_at(own, k) for item, own in right.items()} for k in config.pass_at}
    found = [measure for name, values in quantities.items() for measure in broken_down(name, values, labels, **given)]
    finished = {prompt.id: _mean_of(row, "finished") for prompt, row in zip(prompts, answers, strict=True)}
    lengths = {prompt.id: _mean_of(row, "n_tokens") for prompt, row in zip(prompts, answers, strict=True)}
    return [*found, share("finished", finished, **given), mean("completion_tokens", lengths, better="neither", **given)]


def pass_at(right: Sequence[float], k: int) -> float:
    """The chance that one of k samples is right, from n of which some are. By hand: 1 of 3 right, k = 2: 1 - C(2, 2) / C(3, 2) = 2/3."""
    return min(1.0, float(picked_weights(right, k) @ right))  # the weights add up to 1 but for rounding


def _mean_of(row: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(float(answer[key]) for answer in row) / len(row)


def _notes(config: VerifiableConfig, answers: Answers) -> list[str]:
    failed = sum(answer["failed"] for row in answers for answer in row)
    notes = [f"the verifier itself failed on {failed} answers, which count as wrong"] if failed else []
    if config.ask == "source" and config.source.kind == "reasoning_gym":
        notes.append("the prompts were generated anew: of a small task some may have been trained on, the held-out prompts were not")
    return notes
