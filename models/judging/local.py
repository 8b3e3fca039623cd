"""A local policy as judge: the probabilities of A, B and C at one position, or a written answer that is read strictly."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.judgements import BETTER, SLIGHTLY_BETTER, SLIGHTLY_WORSE, TIE, WORSE
from data.packing import Group, pack, split_by_tokens
from data.records import Message
from data.templates import load_tokenizer, render_completion, render_prompt
from models.configs.ai_judge import AIJudgeConfig
from models.configs.sampling import SamplingConfig
from models.generation import generate
from models.judging.questions import LETTERS, PAIRWISE, Form, Question
from models.judging.told import Told
from models.judging.verdicts import UNREADABLE, Answer
from models.loading import load_policy
from models.logprobs import token_logps
from models.rendering import eos_ids, text_of
from models.seeds import derive_seed

TOO_LONG = "too long for the judge"
AT_ONCE = 16  # answers written together: questions are long


class LocalJudge:
    """Asks questions of a model that runs here.

    Raises:
        ValueError: its tokenizer begins two of the answers with the same token, so that they cannot be told apart at one position.
    """

    def __init__(self, config: AIJudgeConfig, folder: Path, device: torch.device | str, form: Form = PAIRWISE) -> None:
        self.config, self.form = config, form
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(folder)
        self.letters = () if config.reasoning else _letter_ids(self.tokenizer, folder)
        self.model: PreTrainedModel = load_policy(folder, device)
        self.ends = eos_ids(folder, self.tokenizer)
        self.longest = getattr(self.model.config, "max_position_embeddings", math.inf)

    @property
    def counts(self) -> dict[str, float]:
        """Nothing is requested."""
        return {}

    @property
    def costs(self) -> dict[str, float]:
        """Nothing is paid."""
        return {}

    def __call__(self, questions: Sequence[Question], *, seed: int, tick: Callable[[], None]) -> list[Answer]:
        """The answer to every question; none where it is longer than the model can read."""
        prompts = [render_prompt(self.tokenizer, (Message("user", "\n\n".join(self.form.ask(self.config, q))),)) for q in questions]
        room = self.config.max_tokens if self.config.reasoning else 1
        readable = [i for i, prompt in enumerate(prompts) if len(prompt) + room <= self.longest]
        answers = [Answer(None, TOO_LONG)] * len(questions)
        told = (self._written if self.config.reasoning else self._read)([prompts[i] for i in readable], seed, tick)
        for i, answer in zip(readable, told, strict=True):
            answers[i] = answer
        return answers

    @torch.no_grad()
    def _read(self, prompts: list[list[int]], seed: int, tick: Callable[[], None]) -> list[Answer]:
        groups = [Group(prompt, [[token] for token in self.letters]) for prompt in prompts]
        answers: list[Answer] = []
        told = Told()
        for part in split_by_tokens(groups, self.config.micro_batch_tokens):
            tick()
            logp_S, _ = token_logps(self.model, pack(part).to(self.model.device))
            answers += [verdict_of(row, self.config.clear_share) for row in logp_S.view(-1, len(LETTERS)).tolist()]
            told(len(answers), len(prompts))
        return answers

    def _written(self, prompts: list[list[int]], seed: int, tick: Callable[[], None]) -> list[Answer]:
        sampling = SamplingConfig(temperature=self.config.temperature, max_tokens=self.config.max_tokens, max_rows=AT_ONCE)
        answers: list[Answer] = []
        told = Told()
        for begin in range(0, len(prompts), AT_ONCE):
            part = prompts[begin : begin + AT_ONCE]
            rows = generate(self.model, part, sampling, samples=1, eos_ids=self.ends, seed=derive_seed(seed, "judge", part), on_step=tick)
            verdicts = [self.form.read(text_of(self.tokenizer, row[0].tokens)) for row in rows]
            answers += [Answer(verdict, UNREADABLE if verdict is None else "") for verdict in verdicts]
            told(len(answers), len(prompts))
        return answers


def verdict_of(logps: Sequence[float], clear_share: float) -> Answer:
    """The most likely of A, B and C; better where its probability among the three is at least ``clear_share``, else slightly better.

    By hand: probabilities .6, .3, .1 of A, B, C: A slightly better at a clear share of .75, and a share of .6 + .1 / 2 = .65.
    """
    top = max(logps)
    if not math.isfinite(top) or any(map(math.isnan, logps)):
        return Answer(None, UNREADABLE)
    mass = [math.exp(logp - top) for logp in logps]
    first, second, tie = (each / sum(mass) for each in mass)
    share = first + tie / 2
    if tie >= max(first, second) or first == second:
        return Answer(TIE, share=share)
    if first > second:
        return Answer(BETTER if first >= clear_share else SLIGHTLY_BETTER, share=share)
    return Answer(WORSE if second >= clear_share else SLIGHTLY_WORSE, share=share)


def _letter_ids(tokenizer: PreTrainedTokenizerBase, folder: Path) -> tuple[int, ...]:
    waiting = (Message("user", "A or B?"),)
    ids = tuple(render_completion(tokenizer, waiting, letter)[0] for letter in LETTERS)
    if len(set(ids)) < len(ids):
        raise ValueError(f"the judge in {folder} does not begin A, B and C with different tokens: use reasoning = true, or another model")
    return ids
