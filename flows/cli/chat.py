"""`posttrain chat`: a conversation with a policy, token by token. What a policy says is text of unknown origin and is shown as such."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.cli.policies import resolve
from flows.cli.terminal import complain, err, out, plain, write
from tasks import registry
from tasks.store import ArtifactInvalid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from data.records import Message

COMMANDS = "/reset starts anew, /quit or Ctrl-D ends, Ctrl-C stops an answer."
_UNFINISHED = "\ufffd"  # what a decoder puts where the bytes of a character are still to come


class ChatSettings(NamedTuple):
    """How to answer."""

    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 256
    system: str | None = None
    seed: int = 0


def chat(name: str, settings: ChatSettings) -> int:
    """Talk until the input ends. Standard input may be a file or a pipe: then only the answers are printed."""
    with registry.in_use():
        try:
            named = resolve(name)
        except ArtifactInvalid as error:
            complain(str(error))
            return 1
        if not (named.folder / "config.json").is_file():
            raise ValueError(f"{named.title} is not a policy: it has no config.json.")
        with err.status(f"Loading {named.title}"):
            speaker = Speaker(named.folder, settings)
    if sys.stdin.isatty():
        out.print(f"{named.title}. {COMMANDS}", soft_wrap=True)
    _converse(speaker)
    return 0


def _converse(speaker: Speaker) -> None:
    for line in _lines():
        if line in ("/quit", "/exit"):
            return
        if line == "/reset":
            speaker.reset()
        elif line.startswith("/"):
            complain(f"there is no {line.split()[0]}. {COMMANDS}")
        elif line:
            with suppress(KeyboardInterrupt):  # stops this answer, not the chat
                speaker.answer(line, write)
            write("\n")


def _lines() -> Iterator[str]:
    """What the user types, until the end of the input."""
    prompt = "> " if sys.stdin.isatty() else ""
    if prompt:
        with suppress(ImportError):
            import readline  # noqa: F401 - gives `input` editing and history
    while True:
        try:
            yield input(prompt).strip()
        except EOFError:
            return


class Speaker:
    """A policy with its tokenizer and what was said so far."""

    def __init__(self, folder: Path, settings: ChatSettings) -> None:
        import torch
        from transformers.utils.logging import disable_progress_bar

        from data.templates import load_tokenizer
        from models.loading import load_policy
        from models.rendering import eos_ids

        disable_progress_bar()
        self.settings = settings
        self.tokenizer = load_tokenizer(folder)
        self.model: Any = load_policy(folder, "cuda" if torch.cuda.is_available() else "cpu")
        self.ends = eos_ids(folder, self.tokenizer)
        self.room = int(getattr(self.model.config, "max_position_embeddings", 2048))
        self.turns = 0
        self.messages: list[Message] = []
        self.reset()

    def reset(self) -> None:
        """Forget the conversation."""
        from data.records import Message

        self.messages = [Message("system", self.settings.system)] if self.settings.system else []

    def answer(self, text: str, say: Callable[[str], None]) -> None:
        """Say something and hear the answer piece by piece; one that is interrupted is remembered as far as it went."""
        from data.records import Message

        self.messages.append(Message("user", text))
        answer = _Answer(self.tokenizer, say)
        try:
            self._generate(self._prompt(), answer.hear)
        finally:
            self.messages.append(Message("assistant", answer.said))

    def _prompt(self) -> list[int]:
        """Ids of the conversation; its oldest turns are forgotten where it is too long for the model."""
        from data.templates import render_prompt

        first = 1 if self.settings.system else 0
        while True:
            ids = render_prompt(self.tokenizer, self.messages)
            if len(ids) + self.settings.max_tokens <= self.room:
                return ids
            if len(self.messages) - first < 3:
                answer = self.settings.max_tokens
                raise ValueError(f"{len(ids)} tokens and an answer of {answer} are more than the {self.room} that the model takes.")
            del self.messages[first : first + 2]

    def _generate(self, prompt: list[int], hear: Callable[[list[int]], None]) -> None:
        from models.configs.sampling import SamplingConfig
        from models.generation import generate

        settings = self.settings
        sampling = SamplingConfig.model_validate(
            {"temperature": settings.temperature, "top_p": settings.top_p, "max_tokens": settings.max_tokens}
        )
        self.turns += 1
        seed = self.settings.seed + self.turns
        generate(self.model, [prompt], sampling, samples=1, eos_ids=self.ends, seed=seed, on_tokens=hear)


class _Answer:
    """Turns tokens into text as they come, without what a terminal would act on. A character is said when its last token is there."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]) -> None:
        self.tokenizer = tokenizer
        self.say = say
        self.tokens: list[int] = []
        self.said = ""
        self._shown = ""

    def hear(self, tokens: list[int]) -> None:
        self.tokens += tokens
        self.said = str(self.tokenizer.decode(self.tokens, skip_special_tokens=True)).removesuffix(_UNFINISHED)
        shown = plain(self.said)
        if len(shown) > len(self._shown) and shown.startswith(self._shown):
            piece, self._shown = shown[len(self._shown) :], shown
            self.say(piece)
