"""The prompts that a suite puts to a policy, the same for every policy of a seed."""

from pathlib import Path

from data.drawing import drawn
from data.records import Messages
from data.suite_rows import AnsweredPrompt, answered_prompts, held_out_prompts
from models.configs.suites import PromptsConfig


def prompts_of(config: PromptsConfig, data: Path | None, suite: str, seed: int) -> list[AnsweredPrompt]:
    """The prompts that the settings of a suite name.

    Raises:
        ValueError: the held-out prompts are asked for and there is no data, or a row cannot be used.
    """
    if config.kind == "held_out":
        found = [AnsweredPrompt(prompt) for prompt in held_out_prompts(data, suite)]
    else:
        found = answered_prompts(config.read_from(config.kind, config.name))
    return drawn(found, config.rows, seed)


def readable(messages: Messages) -> str:
    """A conversation for people: the message itself where there is one only, else each behind its role."""
    return messages[0].content if len(messages) == 1 else "\n\n".join(f"{message.role}: {message.content}" for message in messages)
