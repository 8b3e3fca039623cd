"""Screening: each example is made ready and kept, or set aside with a reason. What is set aside is counted and written down."""

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING

from data.blocks.base import Row
from data.blocks.rows import RowStore
from data.blocks.tally import Sample, is_drawn, put
from data.configs import CurateConfig, SourceConfig
from data.forms import Example
from data.records import Message, Messages, canonical_json, normalised_text
from data.sources import BadRow
from data.splits import Candidate, tables_of
from data.templates import control_token_in, render_completion, render_document, render_prompt
from data.verifiers import final_number

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

# Good rows that are not needed: they say nothing against their source.
HARMLESS_REASONS = frozenset({"duplicate", "in_test_set"})
_LONGEST_DETAIL = 300  # characters, of a sample
_MARKED_ANSWER = re.compile(r"####|\\boxed")
_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")


@dataclass
class SourceTally:
    """What became of one source's rows. ``listing`` gets a JSON line for each that is set aside; blocks list theirs themselves."""

    name: str
    listing: IO[str]
    read: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    blocked: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)

    @property
    def bad(self) -> int:
        """Rows that cannot be used (duplicates and rows withheld for testing are not bad)."""
        return sum(count for reason, count in self.reasons.items() if reason not in HARMLESS_REASONS)

    def set_aside(self, file: str, line: int, fault: BadRow, *, listed: bool = True) -> None:
        """Note one row that is left out; counted only, unless ``listed``."""
        self.reasons[fault.reason] += 1
        self.first.setdefault(fault.reason, f"{file}:{line}: {fault.detail}")
        # The lot of the n-th row set aside of a source: samples of several sources together are a fair sample too.
        priority = random.Random(f"{self.name}:{self.reasons.total()}").random()
        if is_drawn(self.samples, priority):
            put(self.samples, Sample(priority, file, line, "", reason=fault.reason, detail=fault.detail[:_LONGEST_DETAIL]))
        if listed:
            entry = {"source": self.name, "file": file, "line": line, "reason": fault.reason, "detail": fault.detail}
            self.listing.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def check(self, max_bad_share: float) -> None:
        """Raise ValueError, worst reasons first, where more than ``max_bad_share`` of the rows are bad."""
        judged = self.read - sum(self.reasons[reason] for reason in HARMLESS_REASONS)
        if self.bad <= max_bad_share * judged:
            return
        worst = [(reason, count) for reason, count in self.reasons.most_common() if reason not in HARMLESS_REASONS]
        reasons = "; ".join(f"{reason} {count} (first {self.first[reason]})" for reason, count in worst[:3])
        raise ValueError(
            f"{self.bad} of {judged} rows of {self.name} cannot be used, more than max_bad_share={max_bad_share} allows: {reasons}. "
            "Mend the rows, the column mapping or the limits, or raise max_bad_share"
        )


class Screen:
    """Keeps or refuses examples; sets down what it kept, and remembers enough of it that nothing is kept twice."""

    def __init__(self, config: CurateConfig, tokenizer: "Tokenizer", store: RowStore) -> None:
        if found := control_token_in(tokenizer, config.system_prompt + "".join(source.instruction for source in config.sources)):
            raise ValueError(
                f"system_prompt and instruction are text; {found!r} is a control token of the base model's tokenizer: leave it out"
            )
        self.config, self.tokenizer, self.store = config, tokenizer, store
        self._kept: set[bytes] = set()
        self._prompts: set[bytes] = set()
        self._invents = any(source.kind == "reasoning_gym" for source in config.sources)

    def keep(self, row: Row) -> Candidate:
        """The candidate of an example that is ready for use; the example itself is in the store as it came.

        Raises:
            BadRow: it is not; with the reason.
        """
        source = self.config.sources[row.source]
        _refuse_emptied(row.example)
        self._refuse_control_tokens(row.example)
        example = prepared(row.example, source, self.config.system_prompt)
        key = _digest(normalised_text(example.prompt or (Message("user", example.completion or ""),)))
        # Held-out rows are compared among themselves: a training row must not push its twin out of the test set.
        said = canonical_json([source.role == "test", example.answers(), example.desirable])
        identity = _digest(said, key)
        repeats = key in self._prompts if source.kind == "reasoning_gym" else identity in self._kept
        if repeats:
            raise BadRow("duplicate", "an earlier row says the same")
        prompt_tokens, completion_tokens = self._lengths(example, source)
        self._kept.add(identity)
        if self._invents:  # an invented question must be none of those read
            self._prompts.add(key)
        place = self.store.add(row)
        return Candidate(place, tables_of(example), row.source, key, row.file, row.line, prompt_tokens, completion_tokens)

    def _refuse_control_tokens(self, example: Example) -> None:
        named: Iterable[tuple[str, str]] = [
            *((f"the {message.role}'s turn", message.content) for message in example.prompt),
            *(("an answer", text) for text in example.answers()),
        ]
        for where, text in named:
            if found := control_token_in(self.tokenizer, text):
                raise BadRow("control_token", f"{where} holds {found!r}")

    def _lengths(self, example: Example, source: SourceConfig) -> tuple[int, int]:
        """Tokens of the prompt and of the longest answer, within the limits.

        A prompt that is only asked in tests is kept however long its reference answer is: leaving out the hard ones would flatter.
        """
        config = self.config
        if not example.prompt:
            length = len(render_document(self.tokenizer, example.completion or ""))
            _within("a document", length, config.min_completion_tokens, config.max_completion_tokens)
            return 0, length
        try:
            prompt_tokens = len(render_prompt(self.tokenizer, example.prompt))
            _within("the prompt", prompt_tokens, 0, config.max_prompt_tokens)
            lengths = [len(render_completion(self.tokenizer, example.prompt, text)) for text in example.answers()]
        except BadRow:
            raise
        except ValueError as error:
            raise BadRow("template", str(error)) from error
        only_asked = source.role == "test" and not config.test_preferences
        for length in () if only_asked else lengths:
            _within("an answer", length, config.min_completion_tokens, config.max_completion_tokens)
        return prompt_tokens, max(lengths, default=0)


def _refuse_emptied(example: Example) -> None:
    """What a form would not have let pass, a block may have made by cutting."""
    if not all(text.strip() for text in (*(message.content for message in example.prompt), *example.answers())):
        raise BadRow("empty", "blocks left nothing of a turn or an answer")
    if example.chosen is not None and example.rejected is not None and example.chosen.strip() == example.rejected.strip():
        raise BadRow("chosen_equals_rejected", "blocks left the same text of both answers")


def _digest(text: str, more: bytes = b"") -> bytes:
    """Sixteen bytes that name a text: of a million texts two share them with a probability of 1e-27."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass") + more, digest_size=16).digest()


def prepared(example: Example, source: SourceConfig, system_prompt: str) -> Example:
    """An example as it will be used: system prompt, instruction, cleaned completion, and the answer its verifier compares with."""
    prompt = example.prompt
    if not prompt:
        return example
    if system_prompt and prompt[0].role != "system":
        prompt = (Message("system", system_prompt), *prompt)
    if source.instruction:
        prompt = _instructed(prompt, source.instruction)
    completion = example.completion
    if source.remove_calculator_marks and completion is not None:
        completion = _CALCULATOR_MARK.sub("", completion)
    answer = _reference_answer(example, source)
    return replace(example, prompt=prompt, completion=completion, answer=answer)


def _instructed(prompt: Messages, instruction: str) -> Messages:
    last = max(index for index, message in enumerate(prompt) if message.role == "user")
    asked = replace(prompt[last], content=f"{prompt[last].content}\n{instruction}")
    return (*prompt[:last], asked, *prompt[last + 1 :])


def _reference_answer(example: Example, source: SourceConfig) -> str | None:
    """The row's own answer, or else, where a verifier must compare with one, what its completion ends on."""
    verifier = source.verifier_name
    if verifier == "none" or verifier == "reasoning_gym":
        return example.answer
    answer = example.answer if example.answer is not None else example.completion
    if answer is None:
        raise BadRow("no_answer", f"verifier={verifier!r} needs an answer or completion column to compare with")
    if verifier == "number":
        if (number := final_number(answer)) is None:
            raise BadRow("no_answer", f"verifier='number' finds no number in the answer {answer[-80:]!r}")
        return number
    if verifier == "math" and example.answer is None and not _MARKED_ANSWER.search(answer):
        raise BadRow("no_answer", f"verifier='math' finds neither #### nor \\boxed in {answer[-80:]!r}: map an answer column")
    return answer


def _within(what: str, length: int, least: int, most: int) -> None:
    if most and length > most:
        raise BadRow("too_long", f"{what} is {length} tokens long, the limit is {most}")
    if length < least:
        raise BadRow("too_short", f"{what} is {length} tokens long, the least is {least}")
