"""An OpenAI-compatible endpoint as judge: what it answered once is not asked again."""

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from models.configs.ai_judge import AIJudgeConfig
from models.judging.answers import AnswerCache, Paid, request_key
from models.judging.budget import Budget
from models.judging.fetching import Fetch, Tally
from models.judging.questions import PAIRWISE, Form, Question
from models.judging.verdicts import UNREADABLE, Answer

REFUSED = "refused by the endpoint"


class Endpoint:
    """Asks questions of a server.

    Args:
        config: address, model, limits and prices.
        cache: answers that were paid for before.
        payer: on whose account answers go, such as a stage's key: its budget is that of all its attempts.
        form: what kind of question it is asked.

    Raises:
        ValueError: the environment variable of the key is not set, or holds what cannot be a key.
    """

    def __init__(self, config: AIJudgeConfig, cache: AnswerCache, payer: str, form: Form = PAIRWISE) -> None:
        self.config, self.cache, self.form = config, cache, form
        self.budget = Budget(config, cache, payer)
        self.tally = Tally()
        self._headers = {"Content-Type": "application/json"} | _authorisation(config.api_key_variable)

    def __call__(self, questions: Sequence[Question], *, seed: int, tick: Callable[[], None]) -> list[Answer]:
        """The answer to every question. The seed is not read: chance is the server's.

        Raises:
            BudgetSpent: another answer could cost more than ``max_cost`` leaves.
            ConnectionError: the server cannot be reached, or fails again and again.
            ValueError: it refuses the key, the model, or every request.
        """
        bodies = [self._body(question) for question in questions]
        keys = [request_key(self.config.url, self.config.model, body) for body in bodies]
        found = {key: self.cache.get(key) for key in keys}
        missing = {key: body for key, body in zip(keys, bodies, strict=True) if found[key] is None}
        self.tally.cached += len(found) - len(missing)
        if missing:
            fetch = Fetch(self.config, self._headers, missing, self.cache, self.budget, self.tally, tick)
            found |= asyncio.run(fetch.answers())
        return [self._answer(found[key]) for key in keys]

    @property
    def counts(self) -> dict[str, float]:
        """Requests of this process."""
        return {
            "judge/requests": self.tally.requests,
            "judge/retries": self.tally.retries,
            "judge/cached": self.tally.cached,
            "judge/refused": self.tally.refused,
        }

    @property
    def costs(self) -> dict[str, float]:
        """Tokens and cost of all attempts of the payer."""
        prompt_tokens, completion_tokens = self.cache.spent(self.budget.payer)
        return {
            "judge/prompt_tokens": prompt_tokens,
            "judge/completion_tokens": completion_tokens,
            "judge/cost": self.budget.price(prompt_tokens, completion_tokens),
        }

    def _body(self, question: Question) -> bytes:
        system, user = self.form.ask(self.config, question)
        row: dict[str, Any] = {
            "model": self.config.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
            "temperature": self.config.temperature,
            "max_tokens": self.config.max_tokens,
        }
        if self.config.answer_format == "json_object":
            row["response_format"] = {"type": "json_object"}
        elif self.config.answer_format == "json_schema":
            row["response_format"] = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": self.form.schema()}}
        return json.dumps(row, sort_keys=True).encode()

    def _answer(self, paid: Paid | None) -> Answer:
        if paid is None:
            return Answer(None, REFUSED)
        verdict = self.form.read(paid.text)
        return Answer(verdict, UNREADABLE if verdict is None else "")


def _authorisation(variable: str) -> dict[str, str]:
    """The header with the key; the key is never part of a message."""
    if not variable:
        return {}
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"the environment variable {variable}, which api_key_variable names, is not set where the stage runs")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"the environment variable {variable} holds no API key: there is a space, a line end or a letter outside ASCII in it"
        )
    return {"Authorization": f"Bearer {key}"}
