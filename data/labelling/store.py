"""A labelling task: items, who sees which, and what they said. Every label is one transaction.

Guarantees, also when two people work at once, a form is sent twice or the process is killed: a label that was acknowledged is on disk; of
one annotator's labels of one item exactly one stands, the last; an item is handed to no more annotators than it needs.
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data.labelling import assignment
from data.labelling.database import Database
from data.labelling.records import Answer, Given, Item, Settings, checked
from data.records import messages_from

CLAIM_S = 600.0  # an item shown to someone is kept for them this long, so that two do not label it where one is enough
RENEW_S = 60.0  # the claim is renewed when it is shown again after this long

# The labels that count towards what is wanted: no more of an item than its target.
_COUNTED = """
    SELECT COALESCE(SUM(MIN(given, target)), 0) FROM (
        SELECT i.target AS target, COUNT(*) AS given FROM items i JOIN labels l ON l.item = i.id AND l.superseded_at IS NULL
        WHERE NOT i.retired AND i.gold_ranks = '[]' GROUP BY i.id)
"""
_NEXT = """
    SELECT i.id FROM items i WHERE NOT i.retired AND (i.gold_ranks != '[]') = :gold
    AND NOT EXISTS (SELECT 1 FROM assignments a WHERE a.item = i.id AND a.annotator = :annotator)
    AND (:gold OR i.target > (SELECT COUNT(*) FROM labels l WHERE l.item = i.id AND l.superseded_at IS NULL)
        + (SELECT COUNT(*) FROM assignments a WHERE a.item = i.id AND a.shown_at > :since
           AND NOT EXISTS (SELECT 1 FROM labels l WHERE l.item = i.id AND l.annotator = a.annotator AND l.superseded_at IS NULL)
           AND NOT EXISTS (SELECT 1 FROM skips s WHERE s.item = i.id AND s.annotator = a.annotator)))
    ORDER BY i.number LIMIT 1
"""
_LIST = """
    SELECT a.position, a.item, a.shown, a.shown_at, l.ranks, l.grade, l.comment, s.item IS NOT NULL AS skipped
    FROM assignments a JOIN items i ON i.id = a.item
    LEFT JOIN labels l ON l.item = a.item AND l.annotator = a.annotator AND l.superseded_at IS NULL
    LEFT JOIN skips s ON s.item = a.item AND s.annotator = a.annotator
    WHERE a.annotator = ? AND NOT i.retired
"""


@dataclass(frozen=True, slots=True)
class Place:
    """An item in an annotator's list: its position from 1, the order shown, and what they have said of it."""

    position: int
    item: str
    order: tuple[int, ...]
    answer: Answer | None
    skipped: bool

    @property
    def open(self) -> bool:
        """Whether it waits for its first answer and was not skipped."""
        return self.answer is None and not self.skipped


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one annotator (``own_...``) and all of them are. ``labels`` counts towards ``wanted``."""

    own_labels: int
    own_skips: int
    labels: int
    wanted: int

    @property
    def enough(self) -> bool:
        """Whether all labels that were wanted are in."""
        return self.labels >= self.wanted


class LabelStore:
    """A labelling task in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = Database(path)

    @property
    def name(self) -> str:
        """What the task is called: the name of its file."""
        return self.path.stem

    # What is asked

    def register(self, items: Sequence[Item], settings: Settings) -> None:
        """Set what is asked and how it is shared out. Labels and lists stay; items that are not named any more are set aside."""
        asked = [item.id for item in items if not item.gold_ranks]
        target = assignment.targets(asked, settings)
        number = {item: index for index, item in enumerate(assignment.shuffled([item.id for item in items], settings.seed))}
        rows = [_item_row(item, number[item.id], target.get(item.id, 0)) for item in items]
        with self.database.writing() as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('settings', ?)", (json.dumps(asdict(settings)),))
            connection.execute("UPDATE items SET retired = 1")
            connection.executemany(
                "INSERT INTO items (id, number, prompt, completions, gold_ranks, target) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) "
                "DO UPDATE SET number = excluded.number, gold_ranks = excluded.gold_ranks, target = excluded.target, retired = 0",
                rows,
            )

    def settings(self) -> Settings:
        """How the task is shared out."""
        with self.database.reading() as connection:
            return _settings(connection)

    def item(self, item_id: str) -> Item:
        """An item by its id. Raises KeyError."""
        with self.database.reading() as connection:
            row = connection.execute("SELECT * FROM items WHERE id = ?", (item_id,)).fetchone()
        if row is None:
            raise KeyError(item_id)
        return _item_of(row)

    def items(self) -> list[Item]:
        """All items that are asked now, those with a known answer too."""
        with self.database.reading() as connection:
            return [_item_of(row) for row in connection.execute("SELECT * FROM items WHERE NOT retired ORDER BY number")]

    # Who is asked

    def add_annotator(self, name: str, token_digest: str, *, by_link: bool) -> None:
        """Let whoever holds a token work as an annotator. A link replaces the links that this annotator had before."""
        now = time.time()
        with self.database.writing() as connection:
            connection.execute("INSERT OR IGNORE INTO annotators VALUES (?, ?)", (name, now))
            if by_link:
                connection.execute("DELETE FROM tokens WHERE annotator = ? AND by_link", (name,))
            connection.execute("INSERT OR REPLACE INTO tokens VALUES (?, ?, ?, ?)", (token_digest, name, by_link, now))

    def annotator_of(self, token_digest: str, *, links_only: bool) -> str | None:
        """Whose token it is; None if nobody's, or if only tokens of links count and it is not one."""
        with self.database.reading() as connection:
            row = connection.execute("SELECT annotator, by_link FROM tokens WHERE digest = ?", (token_digest,)).fetchone()
        return None if row is None or (links_only and not row["by_link"]) else row["annotator"]

    # The list of an annotator

    def places(self, annotator: str) -> list[Place]:
        """All that an annotator has seen, in order."""
        with self.database.reading() as connection:
            return [_place(row) for row in connection.execute(f"{_LIST} ORDER BY a.position", (annotator,))]

    def place(self, annotator: str, position: int) -> Place | None:
        """One place of the list, None where there is none. What is open there is kept for this annotator from now."""
        now = time.time()
        with self.database.reading() as connection:
            row = connection.execute(f"{_LIST} AND a.position = ?", (annotator, position)).fetchone()
        if row is not None and row["ranks"] is None and row["shown_at"] < now - RENEW_S:
            with self.database.writing() as connection:
                connection.execute("UPDATE assignments SET shown_at = ? WHERE annotator = ? AND position = ?", (now, annotator, position))
        return _place(row) if row is not None else None

    def next_open(self, annotator: str, after: int = 0) -> int | None:
        """Position of what to label next: what is open, else something new, else what was skipped (the next one after ``after``)."""
        found = _open_position(places := self.places(annotator))
        if found is None:
            with self.database.writing() as connection:
                places = [_place(row) for row in connection.execute(f"{_LIST} ORDER BY a.position", (annotator,))]
                found = _open_position(places) or _assign(connection, annotator)
        skipped = [place.position for place in places if place.answer is None and place.skipped]
        return found or next((position for position in skipped if position > after), skipped[0] if skipped else None)

    # What they say

    def label(self, annotator: str, position: int, answer: Answer, *, form: str, seconds: float = 0.0) -> bool:
        """Take an answer; returns whether it was new. A form sent twice with the same answer counts once; another answer replaces the last.

        Raises:
            KeyError: the annotator has no such place.
            ValueError: it is no answer to this item.
        """
        now = time.time()
        with self.database.writing() as connection:
            place = _place_at(connection, annotator, position)
            answer = checked(answer, len(place.order))
            content = (json.dumps(answer.ranks), answer.grade, answer.comment)
            sent = connection.execute(
                "SELECT ranks, grade, comment FROM labels WHERE form = ? AND item = ? AND annotator = ? ORDER BY id DESC LIMIT 1",
                (form, place.item, annotator),
            ).fetchone()
            if sent is not None and tuple(sent) == content:
                return False
            key = (place.item, annotator)
            connection.execute(
                "UPDATE labels SET superseded_at = ? WHERE item = ? AND annotator = ? AND superseded_at IS NULL", (now, *key)
            )
            connection.execute(
                "INSERT INTO labels (item, annotator, form, ranks, grade, comment, seconds, shown, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*key, form, *content, round(max(0.0, seconds), 1), json.dumps(place.order), now),
            )
            connection.execute("DELETE FROM skips WHERE item = ? AND annotator = ?", key)
        return True

    def skip(self, annotator: str, position: int) -> None:
        """Leave an item for later. One that is labelled stays labelled. Raises KeyError as ``label``."""
        with self.database.writing() as connection:
            place = _place_at(connection, annotator, position)
            if place.answer is None:
                connection.execute("INSERT OR IGNORE INTO skips VALUES (?, ?, ?)", (place.item, annotator, time.time()))

    # What is there

    def progress(self, annotator: str = "") -> Progress:
        """How far the task is, and this annotator."""
        own = "FROM labels l JOIN items i ON i.id = l.item WHERE l.annotator = ? AND l.superseded_at IS NULL AND NOT i.retired"
        with self.database.reading() as connection:
            labels = connection.execute(_COUNTED).fetchone()[0]
            labelled = connection.execute(f"SELECT COUNT(*) {own}", (annotator,)).fetchone()[0]
            skipped = connection.execute(
                "SELECT COUNT(*) FROM skips s JOIN items i ON i.id = s.item WHERE s.annotator = ? AND NOT i.retired", (annotator,)
            )
            return Progress(labelled, skipped.fetchone()[0], labels, _wanted(connection))

    def given(self) -> list[Given]:
        """Every answer that stands, and what was skipped and not labelled since, of the items asked now; sorted by item and annotator."""
        with self.database.reading() as connection:
            labels = connection.execute(
                "SELECT l.*, i.gold_ranks FROM labels l JOIN items i ON i.id = l.item WHERE l.superseded_at IS NULL AND NOT i.retired"
            ).fetchall()
            skips = connection.execute(
                "SELECT s.item, s.annotator, a.shown, i.gold_ranks FROM skips s JOIN items i ON i.id = s.item "
                "JOIN assignments a ON a.item = s.item AND a.annotator = s.annotator WHERE NOT i.retired"
            ).fetchall()
        found = [
            Given(
                row["item"], row["annotator"], _ints(row["ranks"]), row["grade"], row["comment"], _ints(row["shown"]), row["seconds"],
                _ints(row["gold_ranks"]),
            )
            for row in labels
        ]  # fmt: skip
        found += [
            Given(row["item"], row["annotator"], (), order=_ints(row["shown"]), gold_ranks=_ints(row["gold_ranks"])) for row in skips
        ]
        return sorted(found, key=lambda given: (given.item, given.annotator))

    def take_in(self, given: Iterable[Given]) -> int:
        """Labels that were given elsewhere, such as in an imported file; returns how many were new.

        Raises:
            ValueError: an answer does not fit its item, or there is no such item.
        """
        new = 0
        for row in given:
            with self.database.writing() as connection:
                connection.execute("INSERT OR IGNORE INTO annotators VALUES (?, ?)", (row.annotator, time.time()))
                item = connection.execute("SELECT * FROM items WHERE id = ? AND NOT retired", (row.item,)).fetchone()
                if item is None:
                    raise ValueError(f"there is no item {row.item!r} in {self.name}")
                order = row.order or tuple(range(len(json.loads(item["completions"]))))
                position = _append(connection, row.annotator, row.item, order)
            new += self.label(row.annotator, position, Answer(row.ranks, row.grade, row.comment), form="import", seconds=row.seconds)
        return new


def _item_row(item: Item, number: int, target: int) -> tuple[str, int, str, str, str, int]:
    prompt = json.dumps([{"role": m.role, "content": m.content} for m in item.prompt])
    return item.id, number, prompt, json.dumps(item.completions), json.dumps(item.gold_ranks), target


def _item_of(row: sqlite3.Row) -> Item:
    texts = tuple(json.loads(row["completions"]))
    return Item(row["id"], messages_from(json.loads(row["prompt"])), texts, _ints(row["gold_ranks"]))


def _ints(text: str) -> tuple[int, ...]:
    return tuple(json.loads(text))


def _place(row: sqlite3.Row) -> Place:
    answer = None if row["ranks"] is None else Answer(_ints(row["ranks"]), row["grade"], row["comment"])
    return Place(row["position"], row["item"], _ints(row["shown"]), answer, bool(row["skipped"]))


def _open_position(places: Sequence[Place]) -> int | None:
    return next((place.position for place in places if place.open), None)


def _place_at(connection: sqlite3.Connection, annotator: str, position: int) -> Place:
    row = connection.execute(f"{_LIST} AND a.position = ?", (annotator, position)).fetchone()
    if row is None:
        raise KeyError(f"{annotator} has no item at {position}")
    return _place(row)


def _settings(connection: sqlite3.Connection) -> Settings:
    row = connection.execute("SELECT value FROM meta WHERE name = 'settings'").fetchone()
    return Settings(**json.loads(row["value"])) if row is not None else Settings()


def _wanted(connection: sqlite3.Connection) -> int:
    """Labels that are wanted: as set, but never more than the items can get."""
    whole = connection.execute("SELECT COALESCE(SUM(target), 0) FROM items WHERE NOT retired AND gold_ranks = '[]'").fetchone()[0]
    return min(_settings(connection).labels or whole, whole)


def _assign(connection: sqlite3.Connection, annotator: str) -> int | None:
    """Put a new item on an annotator's list; None if there is none for them. Items with a known answer come only beside others."""
    settings = _settings(connection)
    values = {"annotator": annotator, "since": time.time() - CLAIM_S, "gold": 0}
    asked = connection.execute(_NEXT, values).fetchone()
    if asked is None:
        return None
    position = _last_position(connection, annotator) + 1
    if assignment.is_gold_turn(settings, annotator, position):
        asked = connection.execute(_NEXT, {**values, "gold": 1}).fetchone() or asked
    k = len(json.loads(connection.execute("SELECT completions FROM items WHERE id = ?", (asked["id"],)).fetchone()[0]))
    return _append(connection, annotator, asked["id"], assignment.shown_order(settings.seed, annotator, asked["id"], k))


def _last_position(connection: sqlite3.Connection, annotator: str) -> int:
    return connection.execute("SELECT COALESCE(MAX(position), 0) FROM assignments WHERE annotator = ?", (annotator,)).fetchone()[0]


def _append(connection: sqlite3.Connection, annotator: str, item: str, order: tuple[int, ...]) -> int:
    """The position of an item in an annotator's list, at its end if it was not in it."""
    there = connection.execute("SELECT position FROM assignments WHERE annotator = ? AND item = ?", (annotator, item)).fetchone()
    if there is not None:
        return there["position"]
    position = _last_position(connection, annotator) + 1
    connection.execute("INSERT INTO assignments VALUES (?, ?, ?, ?, ?)", (annotator, position, item, json.dumps(order), time.time()))
    return position
