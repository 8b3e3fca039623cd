"""The SQLite file of a labelling task: its tables, and how they are read and written.

The standard library's sqlite3 rather than SQLAlchemy: every statement is fixed, and what matters, when a transaction begins and what is
on disk when it ends, is then said here and nowhere else.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FORMAT = 1
PATIENCE_S = 30.0  # a writer waits this long for another one

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS items (
    id TEXT PRIMARY KEY, number INTEGER NOT NULL, prompt TEXT NOT NULL, completions TEXT NOT NULL, gold_ranks TEXT NOT NULL,
    target INTEGER NOT NULL, retired INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS items_by_number ON items (number);
CREATE TABLE IF NOT EXISTS annotators (name TEXT PRIMARY KEY, since REAL NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS tokens (
    digest TEXT PRIMARY KEY, annotator TEXT NOT NULL REFERENCES annotators (name), by_link INTEGER NOT NULL, since REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS assignments (
    annotator TEXT NOT NULL REFERENCES annotators (name), position INTEGER NOT NULL, item TEXT NOT NULL REFERENCES items (id),
    shown TEXT NOT NULL, shown_at REAL NOT NULL, PRIMARY KEY (annotator, position), UNIQUE (item, annotator)
) STRICT;
CREATE TABLE IF NOT EXISTS labels (
    id INTEGER PRIMARY KEY AUTOINCREMENT, item TEXT NOT NULL REFERENCES items (id), annotator TEXT NOT NULL REFERENCES annotators (name),
    form TEXT NOT NULL, ranks TEXT NOT NULL, grade INTEGER NOT NULL, comment TEXT NOT NULL, seconds REAL NOT NULL, shown TEXT NOT NULL,
    at REAL NOT NULL, superseded_at REAL
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS one_label_stands ON labels (item, annotator) WHERE superseded_at IS NULL;
CREATE INDEX IF NOT EXISTS labels_by_form ON labels (form);
CREATE TABLE IF NOT EXISTS skips (
    item TEXT NOT NULL REFERENCES items (id), annotator TEXT NOT NULL REFERENCES annotators (name), at REAL NOT NULL,
    PRIMARY KEY (item, annotator)
) STRICT;
CREATE TABLE IF NOT EXISTS runs (
    flow_run TEXT PRIMARY KEY, name TEXT NOT NULL, api TEXT NOT NULL, state TEXT NOT NULL, owner TEXT NOT NULL, at REAL NOT NULL
) STRICT;
"""


class Database:
    """The file. A connection for every operation: threads and processes share nothing but the file, and a kill leaves nothing open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._connection() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("BEGIN IMMEDIATE")
            found = connection.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, FORMAT):
                raise ValueError(f"{path} has format {found}, this version reads {FORMAT}: use the version that made it")
            for statement in _TABLES.split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={FORMAT}")
            connection.execute("COMMIT")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view of the file."""
        with self._connection() as connection:
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, alone among writers; on disk when the block has ended, undone if it raises."""
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self.path, timeout=PATIENCE_S, isolation_level=None)
        except sqlite3.OperationalError as error:
            raise ValueError(f"{self.path} cannot be opened as a labelling task: {error}") from error
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
            yield connection
        except sqlite3.DatabaseError as error:
            if "not a database" in str(error) or "malformed" in str(error):
                raise ValueError(f"{self.path} is not a labelling task: {error}") from error
            raise
        finally:
            connection.close()
