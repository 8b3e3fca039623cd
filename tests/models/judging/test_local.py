"""A local policy as judge."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from data.judgements import BETTER, SLIGHTLY_BETTER, SLIGHTLY_WORSE, TIE, WORSE
from data.records import Message
from data.templates import load_tokenizer, render_completion, render_prompt
from models.configs.ai_judge import AIJudgeConfig
from models.configs.base_model import ScratchConfig
from models.judging.loading import load_ai_judge
from models.judging.local import LocalJudge, verdict_of
from models.judging.pairwise import Pair
from models.judging.questions import Question, ask
from models.judging.verdicts import Answer
from models.run import Stopped
from models.scratch import make_scratch


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level model that can read a whole question."""
    folder = tmp_path_factory.mktemp("reader")
    model, tokenizer = make_scratch(ScratchConfig(hidden_size=32, intermediate_size=48, layers=2, max_position=8192), 0)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=noise))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("shares", "verdict", "share"),
    [
        ((0.6, 0.3, 0.1), SLIGHTLY_BETTER, 0.65),
        ((0.8, 0.1, 0.1), BETTER, 0.85),
        ((0.3, 0.6, 0.1), SLIGHTLY_WORSE, 0.35),
        ((0.05, 0.9, 0.05), WORSE, 0.075),
        ((0.3, 0.3, 0.4), TIE, 0.5),
        ((0.45, 0.45, 0.1), TIE, 0.5),
    ],
)
def test_the_most_likely_letter_decides(shares, verdict, share):
    answer = verdict_of([math.log(each) - 7 for each in shares], 0.75)
    assert answer.verdict == verdict and answer.share == pytest.approx(share)


def test_a_judge_that_gives_no_number_abstains():
    for logps in ([math.nan, 0.0, 0.0], [0.0, math.nan, 0.0], [-math.inf] * 3, [0.0, 0.0, math.inf]):
        assert verdict_of(logps, 0.75) == Answer(None, "unreadable answer"), logps


def test_probabilities_are_those_that_transformers_gives(reader, row, never):
    """One question at a time through the plain model, in the same words."""
    config = AIJudgeConfig(rubric="Better wins.")
    questions = [Question(row("x", "y").prompt, "one", "two and more"), Question(row("x", "y").prompt, "three", "four")]
    answers = LocalJudge(config, reader, "cpu")(questions, seed=0, tick=never)
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(reader, dtype=torch.float32).eval(), load_tokenizer(reader)
    for question, answer in zip(questions, answers, strict=True):
        asked = (Message("user", "\n\n".join(ask(config, question))),)
        letters = [render_completion(tokenizer, asked, letter)[0] for letter in "ABC"]
        with torch.no_grad():
            logits_V = plain(torch.tensor([render_prompt(tokenizer, asked)])).logits[0, -1]
        first, _, tie = logits_V[letters].softmax(-1).tolist()
        assert answer.share == pytest.approx(first + tie / 2, abs=1e-5)


def test_both_orders_are_read_and_the_mean_decides(reader, row, never):
    judge = load_ai_judge(
        AIJudgeConfig(rubric="Better wins.", both_orders="mean", grades=True), folder=reader, cache=Path("/none"), device="cpu"
    )
    candidates = row("one", "two and more")
    (judgement,) = judge([candidates], seed=0, tick=never)
    (duel,) = judge.compare([Pair(candidates.prompt, *candidates.completions, "p")], seed=0, tick=never)
    assert duel.shown is not None and duel.swapped is not None
    gap = duel.shown.share - duel.swapped.share  # type: ignore[operator]
    assert gap != 0 and judgement.ranks == ((0, 1) if gap > 0 else (1, 0)) and abs(judgement.grade) in (1, 2)
    (swapped,) = judge([row("two and more", "one")], seed=0, tick=never)
    assert swapped.grade == -judgement.grade
    assert judge.name == "ai:policy" and judge.costs == {}


def test_what_is_too_long_abstains(base, row, never):
    """A model that reads 256 tokens."""
    judge = load_ai_judge(AIJudgeConfig(), folder=base, cache=Path("/none"), device="cpu")
    (judgement,) = judge([row("one", "two")], seed=0, tick=never)
    assert judgement.abstained and judgement.reason == "too long for the judge (1)"


def test_written_answers_are_read_strictly(reader, row, never, monkeypatch):
    config = AIJudgeConfig(rubric="Better wins.", reasoning=True, max_tokens=4)
    judge = load_ai_judge(config, folder=reader, cache=Path("/none"), device="cpu", name="mine")
    (judgement,) = judge([row("one", "two")], seed=0, tick=never)
    assert judgement.reason == "unreadable answer (1)" and judgement.judge == "mine", "a random model writes no JSON"
    says = iter(['{"reasoning": "one is first", "verdict": "A_better"}', '{"reasoning": "again", "verdict": "B_slightly_better"}'])
    monkeypatch.setattr("models.judging.local.text_of", lambda *_: next(says))
    (judgement,) = judge([row("one", "two")], seed=0, tick=never)
    assert judgement.ranks == (0, 1)


def test_the_judge_stops_when_asked(reader, row):
    def stop():
        raise Stopped

    judge = load_ai_judge(AIJudgeConfig(rubric="Better wins."), folder=reader, cache=Path("/none"), device="cpu")
    with pytest.raises(Stopped):
        judge([row("one", "two")], seed=0, tick=stop)


def test_without_a_model_it_is_said():
    with pytest.raises(ValueError, match="needs a model"):
        load_ai_judge(AIJudgeConfig(), folder=None, cache=Path("/none"), device="cpu")
