"""A language model as judge: the probability of yes against no, read at one position. Nothing is sampled and nothing is parsed."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.packing import Group, pack, split_by_tokens
from data.records import Message, Messages
from data.templates import load_tokenizer, render_completion, render_prompt
from models.loading import load_policy
from models.logprobs import token_logps

MAX_TOKENS = 8192  # of a forward pass


@dataclass
class LanguageJudge:
    """P(yes) / (P(yes) + P(no)) = sigmoid(log P(yes) - log P(no)) at the first token of the judge's answer.

    Source: Zheng et al. 2023 (MT-Bench) for the judge, Kadavath et al. 2022 for reading P(True) instead of a text.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    question: str
    yes_no: tuple[int, int]

    @torch.no_grad()
    def __call__(self, cases: Sequence[tuple[Messages, str]]) -> list[float | None]:
        """The score of each (conversation, reply), in [0, 1]; None where the question is longer than the judge can read."""
        prompts = [render_prompt(self.tokenizer, (Message("user", self.ask(*case)),)) for case in cases]
        longest = getattr(self.model.config, "max_position_embeddings", math.inf)
        readable = [i for i, prompt in enumerate(prompts) if len(prompt) < longest]
        scores: list[float | None] = [None] * len(cases)
        logps = [logp for part in split_by_tokens([self._group(prompts[i]) for i in readable], MAX_TOKENS) for logp in self._logps(part)]
        for i, (yes, no) in zip(readable, logps, strict=True):
            scores[i] = 1 / (1 + math.exp(min(no - yes, 700.0)))
        return scores

    def ask(self, messages: Messages, completion: str) -> str:
        """The question with conversation and reply filled in, each of their lines quoted. Braces in them stay as they are."""
        said = "\n".join(f"{m.role}: {m.content}" for m in messages)
        filling = {"{prompt}": _quoted(said), "{completion}": _quoted(completion)}
        return re.sub(r"\{prompt\}|\{completion\}", lambda found: filling[found.group()], self.question)

    def _group(self, prompt: list[int]) -> Group:
        return Group(prompt, [[token] for token in self.yes_no])

    def _logps(self, part: list[Group]) -> list[list[float]]:
        logp_S, _ = token_logps(self.model, pack(part).to(self.model.device))
        return logp_S.view(-1, 2).tolist()


def load_language_judge(folder: Path, question: str, yes: str, no: str, device: torch.device) -> LanguageJudge:
    """A frozen judge from a model folder.

    Raises:
        ValueError: its tokenizer begins both answers with the same token, so that they cannot be told apart at one position.
    """
    tokenizer = load_tokenizer(folder)
    waiting = (Message("user", question),)
    first, second = (render_completion(tokenizer, waiting, word)[0] for word in (yes, no))
    if first == second:
        raise ValueError(f"the judge in {folder} begins {yes!r} and {no!r} with the same token: choose words that differ from the first on")
    return LanguageJudge(load_policy(folder, device), tokenizer, question, (first, second))


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines()) or ">"
