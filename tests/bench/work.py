"""What is done in each comparison, and on which data: seeded texts of the lengths that real sets have, the same for every side.

Texts are words that the tokenizer knows as one token each: what a step costs depends on lengths, not on meaning, and no file has to be
there. Lengths are log-normal, as those of human preference sets are.
"""

import random
from dataclasses import dataclass
from pathlib import Path

from data.records import Demonstration, Message, Preference, Prompt
from data.templates import load_tokenizer

SEED = 0
LAPS = 64  # examples are made for so many laps; more than any run takes


@dataclass(frozen=True)
class Work:
    """One comparison: examples a lap, tokens of prompt and completion (median), most tokens that are sampled."""

    unit: str
    batch: int
    prompt_tokens: int
    completion_tokens: int
    samples: int = 1
    max_tokens: int = 0


WORKS = {
    "sft": Work("tokens", batch=8, prompt_tokens=40, completion_tokens=70),
    "reward_model": Work("pairs", batch=8, prompt_tokens=40, completion_tokens=70),
    "dpo": Work("pairs", batch=8, prompt_tokens=40, completion_tokens=70),
    "grpo": Work("steps", batch=4, prompt_tokens=80, completion_tokens=0, samples=8, max_tokens=64),
    "ppo": Work("steps", batch=32, prompt_tokens=80, completion_tokens=0, samples=1, max_tokens=64),
    "generate-32": Work("tokens", batch=4, prompt_tokens=80, completion_tokens=0, samples=8, max_tokens=64),
    "generate-128": Work("tokens", batch=16, prompt_tokens=80, completion_tokens=0, samples=8, max_tokens=64),
}


# What the peers need to stay within 24 GiB, beside this project's side: 32 completions in one pass took 19 GiB and then all of it, and
# PPO's, with four models in float32, 17 GiB in passes of 8.
FITTING = {"grpo": "passes", "ppo": "passes"}


class Writer:
    """Seeded texts of a wanted number of tokens."""

    def __init__(self, model: Path, seed: int = SEED) -> None:
        tokenizer = load_tokenizer(model)
        vocabulary = sorted(tokenizer.get_vocab())
        self.words = [token[1:] for token in vocabulary if token[0] == "Ġ" and len(token) > 4 and token.isalpha() and token[1:].isascii()]
        self.draw = random.Random(seed)

    def text(self, median_tokens: int, spread: float = 0.5) -> str:
        """Words, about as many as tokens; ``spread`` is the deviation of the length's logarithm."""
        count = max(4, round(self.draw.lognormvariate(0.0, spread) * median_tokens))
        return " ".join(self.draw.choice(self.words) for _ in range(count))

    def demonstrations(self, work: Work) -> list[Demonstration]:
        """Examples of fine-tuning."""
        return [
            Demonstration(str(i), "bench", (*self._asked(work), Message("assistant", self.text(work.completion_tokens))))
            for i in range(work.batch * LAPS)
        ]

    def preferences(self, work: Work) -> list[Preference]:
        """Pairs."""
        return [
            Preference(str(i), "bench", self._asked(work), self.text(work.completion_tokens), self.text(work.completion_tokens))
            for i in range(work.batch * LAPS)
        ]

    def prompts(self, work: Work) -> list[Prompt]:
        """Requests to answer."""
        return [Prompt(str(i), "bench", self._asked(work)) for i in range(work.batch * LAPS)]

    def _asked(self, work: Work) -> tuple[Message, ...]:
        return (Message("user", self.text(work.prompt_tokens)),)


def share_of_e(text: str) -> float:
    """A reward that costs nothing and differs between completions: the share of the letter e."""
    return text.count("e") / max(1, len(text))


def reward_of_prompt(prompt: Prompt, completion: str) -> float:
    """The same reward in the form of this project's callables."""
    return share_of_e(completion)


def plain(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    """Messages as the dictionaries that other libraries take."""
    return [{"role": m.role, "content": m.content} for m in messages]
