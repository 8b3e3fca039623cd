"""The records that flow between stages: what a row of each table is.

Every record is frozen, compares by value and maps to one flat row (``to_row`` / ``from_row``), which is what ``data.tables`` writes.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """What every record has: an id derived from its content, and the source it came from."""

    id: str
    source: str

    def to_row(self) -> dict[str, Any]:
        """The record as plain values; nested metadata becomes canonical JSON, which Arrow can hold whatever its shape."""
        row = asdict(self)
        if "metadata" in row:
            row["metadata"] = canonical_json(row["metadata"])
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The record of one row, as ``to_row`` wrote it. Raises ValueError where a field is missing."""
        missing = [f.name for f in fields(cls) if f.name not in row]
        if missing:
            raise ValueError(f"a {cls.__name__} row lacks {missing}; it has {sorted(row)}. Read the table with its own record type")
        return cls(**{f.name: _from_plain(f.name, row[f.name]) for f in fields(cls)})


@dataclass(frozen=True, slots=True)
class Prompt(Record):
    """A conversation that waits for an answer, with what a verifier needs to judge one.

    ``verifier`` is a name of ``data.verifiers``; ``metadata`` is that verifier's own: for reasoning_gym the task, the question and
    the entry's metadata.
    """

    messages: Messages
    answer: str | None = None
    verifier: str = "none"
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Demonstration(Record):
    """A conversation to imitate; its last message is the assistant's."""

    messages: Messages


@dataclass(frozen=True, slots=True)
class Preference(Record):
    """Of two answers to one conversation, the better and the worse.

    ``margin``: how much better, in the judge's own unit; 0 where unknown.
    """

    prompt: Messages
    chosen: str
    rejected: str
    margin: float = 0.0


@dataclass(frozen=True, slots=True)
class Tie(Record):
    """Two different answers to one conversation, neither of which is better."""

    prompt: Messages
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class Label(Record):
    """One answer and whether it is desirable (unpaired feedback)."""

    prompt: Messages
    completion: str
    desirable: bool


@dataclass(frozen=True, slots=True)
class Ranking(Record):
    """K answers to one conversation with their ranks: 0 is best, ties share a rank. ``scores`` is empty where only ranks are known."""

    prompt: Messages
    completions: tuple[str, ...]
    ranks: tuple[int, ...]
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Document(Record):
    """A plain text that answers nothing, such as a page of a pretraining corpus."""

    text: str


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: one value, one text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def record_id(*parts: Any) -> str:
    """Sixteen hex digits that name a content: the same parts give the same id in every run."""
    plain = [[asdict(m) for m in part] if _is_messages(part) else part for part in parts]
    return hashlib.sha256(canonical_json(plain).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def messages_from(rows: Iterable[Mapping[str, str]]) -> Messages:
    """Messages of plain ``{"role", "content"}`` mappings."""
    return tuple(Message(row["role"], row["content"]) for row in rows)


def folded(text: str) -> str:
    """A text as compared: compatibility forms, case and white space folded."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def normalised_text(messages: Sequence[Message]) -> str:
    """A prompt's text as compared between splits: compatibility forms folded, case and white space ignored, system messages left out."""
    turns = (f"{m.role}: {m.content}" for m in messages if m.role != "system")
    return folded("\n".join(turns))


def _is_messages(part: Any) -> bool:
    return isinstance(part, tuple | list) and bool(part) and all(isinstance(m, Message) for m in part)


def _from_plain(name: str, value: Any) -> Any:
    if name in ("messages", "prompt"):
        return messages_from(value)
    if name == "metadata":
        return json.loads(value)
    return tuple(value) if isinstance(value, list) else value
