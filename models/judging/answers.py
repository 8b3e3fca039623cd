"""Answers that were paid for, by the digest of what was asked: nothing is paid twice, in this run, in another, or after a kill."""

import hashlib
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

_TABLE = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, text TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    payer TEXT NOT NULL, time REAL NOT NULL
)"""
_INDEX = "CREATE INDEX IF NOT EXISTS payers ON answers (payer)"


@dataclass(frozen=True, slots=True)
class Paid:
    """An answer and what it took."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class AnswerCache:
    """A table of answers in one SQLite file; each is on disk before the next is asked for. Processes may share the file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._connection.execute(_TABLE)
            self._connection.execute(_INDEX)
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path} is not a cache of a judge's answers ({error}): move it away, and they are asked again") from error

    def get(self, key: str) -> Paid | None:
        """The answer, if it was paid for."""
        row = self._connection.execute("SELECT text, prompt_tokens, completion_tokens FROM answers WHERE key = ?", (key,)).fetchone()
        return Paid(*row) if row else None

    def put(self, key: str, paid: Paid, payer: str) -> None:
        """Keep an answer, durably; the first one stays."""
        row = (key, paid.text, paid.prompt_tokens, paid.completion_tokens, payer, time.time())
        self._connection.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?)", row)

    def spent(self, payer: str) -> tuple[int, int]:
        """Prompt and answer tokens that this payer has paid for."""
        query = "SELECT COALESCE(SUM(prompt_tokens), 0), COALESCE(SUM(completion_tokens), 0) FROM answers WHERE payer = ?"
        return self._connection.execute(query, (payer,)).fetchone()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def request_key(url: str, model: str, body: bytes) -> str:
    """sha256 of endpoint, model and request body: never of a key or a header."""
    digest = hashlib.sha256()
    for part in (url.encode(), model.encode(), body):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
