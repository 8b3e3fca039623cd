"""Suite entry: how often a judge prefers the policy's answers to those of a reference policy, or to reference texts."""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.intervals import wilson
from data.judgements import Candidates, Judging
from data.measures import Measure, Suite, mean, rate
from data.records import record_id
from data.suite_rows import AnsweredPrompt
from data.templates import load_tokenizer
from data.votes import says
from models.answering import ask
from models.configs.win_rate import WinRateConfig
from models.duels import higher_wins
from models.judging.chunked import in_chunks
from models.judging.pairwise import Duel, Pair, PairwiseJudge
from models.panel import Evidence, load_judging
from models.run import Run
from models.seeds import derive_seed
from models.suites.concluding import conclude
from models.suites.prompts import prompts_of, readable
from models.suites.win_rate_at_equal_length import RIDGE, win_rate_at_equal_length

LENGTH_NOTE = (
    "win_rate_length_controlled: logistic regression of wins on tanh(length difference in tokens / its standard deviation), read at "
    "difference 0 (Dubois et al. 2024), without the paper's term for the difficulty of each instruction, which needs many models; "
    f"verdicts are win, tie and loss; ridge {RIDGE}"
)


@dataclass(frozen=True, slots=True)
class Compared:
    """What became of a prompt: ``verdict`` 1 the policy wins, 0 a tie, -1 the reference wins, None where the judge does not say.

    ``consistent``: whether both orders named the same winner; None where no order was shown, or one of them has no answer.
    """

    verdict: int | None
    reason: str = ""
    consistent: bool | None = None


def measure(
    config: WinRateConfig,
    *,
    policy: Path,
    data: Path | None = None,
    reference: Path | None = None,
    reward: Path | None = None,
    judge_model: Path | None = None,
    answers: Path = Path("answers.sqlite"),
    seed: int,
    run: Run,
) -> dict[str, Any]:
    """Answer every prompt, compare, and write ``suite.json``: win_rate, win_rate_length_controlled, consistency, abstained.

    A comparison is worth 1, 1/2 (a tie, or an abstention: it is counted) or 0. A judge that compares sees both orders; one that scores
    each text on its own has none.

    Raises:
        ValueError: there is nothing to compare with, the judge cannot be loaded, or it abstains throughout.
    """
    items = prompts_of(config.prompts, data, config.name, seed)
    own, other = _texts(config, items, policy, reference, seed, run)
    candidates = [
        Candidates(record_id("duel", i.prompt.id, [a, b]), i.prompt.source, i.prompt.messages, (a, b), ("policy", "reference"), *_key(i))
        for i, a, b in zip(items, own, other, strict=True)
    ]
    judge = load_judging(config.judge, Evidence(reward, language_model=judge_model, answers=answers), run)
    compared, counts = judged(judge, candidates, config.chunk_prompts, derive_seed(seed, "win rate"), run)
    suite = suite_of(config, [item.prompt.id for item in items], candidates, compared, _lengths(policy, own, other), seed)
    return conclude(suite, run, counts)


def _key(item: AnsweredPrompt) -> tuple[Any, ...]:
    return item.prompt.answer, item.prompt.verifier, item.prompt.metadata


def _texts(
    config: WinRateConfig, items: Sequence[AnsweredPrompt], policy: Path, reference: Path | None, seed: int, run: Run
) -> tuple[list[str], list[str]]:
    """The policy's answers and those that they are compared with."""
    if config.against == "policy" and reference is None:
        raise ValueError("win_rate is against a policy, and the stage was given no reference: give it one, or use against = texts")
    without = next((item.prompt for item in items if not item.answer.strip()), None)
    if config.against == "texts" and without is not None:
        raise ValueError(f"{without.source} has no answer to {readable(without.messages)[:80]!r}: every row needs one, or against = policy")

    def written(folder: Path, name: str) -> list[str]:
        rows = ask(
            folder,
            items,
            lambda item: item.prompt.messages,
            config.sampling,
            purpose=f"suite {config.name}",
            samples=1,
            chunk=config.chunk_prompts,
            seed=seed,
            run=run,
            kept=name,
        )
        gc.collect()  # the next model's weights take its place
        return [row[0]["text"] for row in rows]

    own = written(policy, "answers")
    return own, [item.answer for item in items] if config.against == "texts" or reference is None else written(reference, "reference")


def judged(judge: Judging, candidates: Sequence[Candidates], size: int, seed: int, run: Run) -> tuple[list[Compared], Mapping[str, float]]:
    """What the judge says of every pair, and the judge's own metrics.

    Raises:
        ValueError: it says nothing of any.
    """

    def work(chunk: Sequence[Candidates]) -> list[Any]:
        if not isinstance(judge, PairwiseJudge):
            judgements = judge(chunk, seed=seed, tick=run.stop_if_asked)
            return [asdict(_scored(c, says(j, 0, 1), j.reason)) for c, j in zip(chunk, judgements, strict=True)]
        pairs = [Pair(c.prompt, c.completions[0], c.completions[1], c.id) for c in chunk]
        return [asdict(_compared(duel)) for duel in judge.compare(pairs, seed=seed, tick=run.stop_if_asked)]

    rows, counts = in_chunks(run, "compared", judge, candidates, size, work)
    compared = [Compared(**row) for row in rows]
    if all(each.verdict is None for each in compared):
        raise ValueError(f"the judge abstained from all {len(compared)} comparisons ({compared[0].reason or 'no reason'}): ask another")
    return compared, {**counts, **(judge.costs if isinstance(judge, PairwiseJudge) else {})}


def _scored(candidates: Candidates, verdict: float | None, reason: str) -> Compared:
    """The same text twice is a tie: scores of a model differ in the last digits with what else was scored beside it."""
    same = candidates.completions[0] == candidates.completions[1]
    return Compared(None if verdict is None else 0 if same else _sign(verdict), reason)


def _compared(duel: Duel) -> Compared:
    verdict = None if duel.verdict is None else _sign(duel.verdict)
    answers = (duel.shown, duel.swapped)
    signs = [_sign(answer.verdict) for answer in answers if answer is not None and answer.verdict is not None]
    return Compared(verdict, duel.reason, signs[0] == -signs[1] if len(signs) == 2 else None)


def suite_of(
    config: WinRateConfig,
    ids: Sequence[str],
    candidates: Sequence[Candidates],
    compared: Sequence[Compared],
    lengths: Sequence[tuple[int, int]],
    seed: int,
) -> Suite:
    """The measures; ``lengths``: tokens of the policy's answer and of the other one."""
    wins = {name: higher_wins(each.verdict or 0) for name, each in zip(ids, compared, strict=True)}
    gaps = [a - b for a, b in lengths]
    drawn: dict[str, Any] = {"seed": derive_seed(seed, "win rate"), "resamples": config.resamples}
    controlled = win_rate_at_equal_length(list(wins.values()), gaps, **drawn)
    orders = [each.consistent for each in compared if each.consistent is not None]
    measures = [
        mean("win_rate", wins, **drawn),
        Measure("win_rate_length_controlled", controlled.mean, controlled.low, controlled.high),
        mean("length_difference_tokens", dict(zip(ids, map(float, gaps), strict=True)), better="neither", **drawn),
        rate("abstained", {name: float(each.verdict is None) for name, each in zip(ids, compared, strict=True)}, "lower"),
    ]
    if orders:
        interval = wilson(sum(orders), len(orders))
        measures.append(Measure("consistency", interval.mean, interval.low, interval.high))
    rows = [
        {"id": name, "prompt": readable(c.prompt), "answer": c.completions[0], "reference": c.completions[1]}
        | {"verdict": each.verdict, "reason": each.reason, "consistent": each.consistent, "n_tokens": own, "reference_tokens": other}
        for name, c, each, (own, other) in zip(ids, candidates, compared, lengths, strict=True)
    ]
    return Suite(config.name, "win_rate", measures, rows, _notes(config, compared, gaps, len(orders)))


def _notes(config: WinRateConfig, compared: Sequence[Compared], gaps: Sequence[int], asked: int) -> list[str]:
    abstained = sum(each.verdict is None for each in compared)
    notes = [f"judge: {config.judge.called}; against {config.against}; ties and abstentions ({abstained}) count half", LENGTH_NOTE]
    if asked:
        notes.append(f"consistency: of the {asked} pairs that the judge read in both orders; others were settled without it")
    elif config.judge.kind != "language_model":
        notes.append("the judge scores each answer on its own: there is no order that could matter")
    if min(gaps) > 0 or max(gaps) < 0:
        notes.append(f"every answer of one side is {'longer' if min(gaps) > 0 else 'shorter'}: the length-controlled rate is extrapolated")
    return notes


def _lengths(policy: Path, own: Sequence[str], other: Sequence[str]) -> list[tuple[int, int]]:
    """Tokens of both texts, by the policy's tokenizer."""
    tokenizer = load_tokenizer(policy)
    tokens = [[len(tokenizer.encode(text, add_special_tokens=False)) for text in texts] for texts in (own, other)]
    return list(zip(*tokens, strict=True))


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
