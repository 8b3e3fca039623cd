"""Requests to an endpoint: several at once, again after a fault, and each answer kept as soon as it is there."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from models.configs.ai_judge import AIJudgeConfig
from models.judging.answers import AnswerCache, Paid
from models.judging.budget import Budget
from models.judging.pace import Pace, backoff_s, retry_after_s
from models.judging.told import Told

LAST_ANSWERS_S = 10.0  # how long a judge that stops waits for what is under way, since it is paid for
_LOOK_EVERY_S = 0.2
_RETRYABLE = {408, 409, 425, 429, *range(500, 600)}
_REFUSED = {400, 413, 422}  # this one request is too long, or not to the server's liking
_HINTS = {
    401: "set the environment variable that api_key_variable names to a valid key",
    403: "the key may not use this model",
    404: "there is no such address, or no such model",
}


@dataclass
class Tally:
    """What asking took, in this process."""

    requests: int = 0
    retries: int = 0
    cached: int = 0
    refused: int = 0


class Fetch:
    """Some requests, by at most ``concurrency`` workers.

    Args:
        config: address and limits.
        headers: of every request; they hold the key and are written nowhere.
        missing: request bodies by key.
        tick: called often; it raises when the stage is to stop.
    """

    def __init__(
        self,
        config: AIJudgeConfig,
        headers: Mapping[str, str],
        missing: Mapping[str, bytes],
        cache: AnswerCache,
        budget: Budget,
        tally: Tally,
        tick: Callable[[], None],
    ) -> None:
        self.config, self.headers, self.cache, self.budget, self.tally, self.tick = config, headers, cache, budget, tally, tick
        self.queue = iter(missing.items())
        self.total = len(missing)
        self.address = config.url.rstrip("/") + "/chat/completions"
        self.pace = Pace(config.requests_per_minute)
        self.done: dict[str, Paid | None] = {}
        self.stopping = False
        self.refusal = ""

    async def answers(self) -> dict[str, Paid | None]:
        """The answers by key; None where the server refused a request.

        Raises:
            ValueError: it refused all of them, the key or the model; or the budget is spent.
            ConnectionError: it cannot be reached, or fails again and again.
        """
        async with httpx.AsyncClient(timeout=self.config.timeout_s, headers=self.headers) as client:
            workers = [asyncio.create_task(self._work(client)) for _ in range(min(self.config.concurrency, self.total))]
            try:
                await self._watch(workers)
            finally:
                await self._wind_up(workers)
        if self.refusal and not any(self.done.values()):
            raise ValueError(f"the judge's endpoint {self.config.url} refuses every request: {self.refusal}")
        return self.done

    async def _watch(self, workers: list["asyncio.Task[None]"]) -> None:
        told = Told()
        pending = set(workers)
        while pending:
            ended, pending = await asyncio.wait(pending, timeout=_LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            for worker in ended:
                worker.result()
            self.tick()
            told(len(self.done), self.total)

    async def _wind_up(self, workers: list["asyncio.Task[None]"]) -> None:
        """Nothing new is begun; what is under way may come in."""
        self.stopping = True
        _, late = await asyncio.wait(workers, timeout=LAST_ANSWERS_S)
        for worker in late:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, client: httpx.AsyncClient) -> None:
        for key, body in self.queue:
            while not self.stopping and not self.budget.reserve(body):
                await asyncio.sleep(_LOOK_EVERY_S / 4)
            if self.stopping:
                return
            try:
                paid = await self._request(client, body)
                if paid is not None:
                    self.cache.put(key, paid, self.budget.payer)
                self.done[key] = paid
            finally:
                self.budget.release(body)

    async def _request(self, client: httpx.AsyncClient, body: bytes) -> Paid | None:
        fault = ""
        for attempt in range(self.config.retries + 1):
            if attempt:
                await asyncio.sleep(backoff_s(attempt - 1))
            await self.pace.turn()
            if self.stopping:
                raise ConnectionError("the judge stops before it was answered")
            self.tally.requests += 1
            self.tally.retries += attempt > 0
            try:
                response = await client.post(self.address, content=body)
            except httpx.RequestError as error:
                fault = type(error).__name__
                continue
            if response.status_code == 200 and (paid := paid_answer(response, len(body), self.config.max_tokens)):
                return paid
            fault = f"HTTP {response.status_code}" + (" without an answer" if response.status_code == 200 else "")
            if response.status_code in _REFUSED:
                return self._refuse(response)
            if response.status_code != 200 and response.status_code not in _RETRYABLE:
                hint = _HINTS.get(response.status_code, "check url and model")
                raise ValueError(f"the judge's endpoint {self.config.url} answers {fault} for model {self.config.model!r}: {hint}")
            self.pace.hold(retry_after_s(response.headers))
        raise ConnectionError(f"the judge's endpoint {self.config.url} failed {self.config.retries + 1} times, the last time with {fault}")

    def _refuse(self, response: httpx.Response) -> None:
        self.tally.refused += 1
        self.refusal = f"HTTP {response.status_code}"


def paid_answer(response: httpx.Response, body_bytes: int, max_tokens: int) -> Paid | None:
    """Text and tokens of a response; None where it is no chat completion. Without a usage the highest possible one is assumed."""
    try:
        row = response.json()
        content = row["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    text = content if isinstance(content, str) else ""  # a refusal comes as null
    usage = row.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    text = text.encode("utf-8", "replace").decode()
    return Paid(text, _count(usage, "prompt_tokens", body_bytes), _count(usage, "completion_tokens", max_tokens))


def _count(usage: Mapping[str, Any], name: str, otherwise: int) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40 else otherwise
