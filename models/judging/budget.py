"""What asking costs, and a ceiling that holds with many requests under way."""

from models.configs.ai_judge import AIJudgeConfig
from models.judging.answers import AnswerCache


class BudgetSpent(ValueError):
    """The judge's budget does not allow another question."""


class Budget:
    """The account of one payer, such as a stage's key: what its attempts have paid, all together."""

    def __init__(self, config: AIJudgeConfig, cache: AnswerCache, payer: str) -> None:
        self.config, self.cache, self.payer = config, cache, payer
        self._set_aside = 0.0

    def price(self, prompt_tokens: int, completion_tokens: int) -> float:
        """By hand, at 2 and 10 a million: 1,500 and 200 tokens cost 0.003 + 0.002 = 0.005."""
        return (prompt_tokens * self.config.price_in + completion_tokens * self.config.price_out) / 1e6

    def spent(self) -> float:
        """Paid so far."""
        return self.price(*self.cache.spent(self.payer))

    def most(self, body: bytes) -> float:
        """The most that a request can cost: a token is at least a byte."""
        return self.price(len(body), self.config.max_tokens)

    def reserve(self, body: bytes) -> bool:
        """Set the highest price of one more request aside; False where others under way have to come in first.

        Raises:
            BudgetSpent: what is left does not cover it.
        """
        if not self.config.max_cost:
            return True
        if self.spent() + self._set_aside + self.most(body) <= self.config.max_cost:
            self._set_aside += self.most(body)
            return True
        if self._set_aside:
            return False
        raise BudgetSpent(
            f"the judge has spent {self.spent():.6g} of max_cost {self.config.max_cost:g}, and its next question may cost "
            f"{self.most(body):.6g}. What is paid for is kept: raise max_cost and run again, or ask fewer questions"
        )

    def release(self, body: bytes) -> None:
        """The request is over: what it cost is in the cache, the rest is free again."""
        left = self._set_aside - self.most(body) if self.config.max_cost else 0.0
        self._set_aside = left if left > 1e-12 else 0.0
