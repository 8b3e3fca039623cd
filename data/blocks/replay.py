"""Replay: of the rows that an earlier training has been offered, a share drawn by seed stays beside all new ones.

Training on what is new alone forgets what was learned; a share of the old data against it is known as rehearsal or experience replay
(Scialom et al. 2022 use 1 %, Ibrahim et al. 2024 5 to 50 %). Which rows are old is told by file and line, before any block edits them.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from data.blocks.base import Decision, Row
from data.blocks.settings import BlockSettings

ALL = -1


class ReplaySettings(BlockSettings):
    """Which rows are old, and how many of them stay."""

    share: float = Field(default=0.3, ge=0, le=1, description="Share of the old rows that stays, drawn by seed.")
    old: dict[str, int] = Field(
        default_factory=dict,
        description="Of each file (or hub set, as hub:NAME[SPLIT]) how many lines from its start are old; -1: all of them. Others are new.",
    )


class Replay:
    """Survey: all new rows stay, and ``round(share x old rows)`` of the old ones. One byte a row.

    By hand: 10 old rows, 3 new ones and a share of 0.3 leave 3 + 3 rows.
    """

    name = "replay"
    values = np.dtype(np.uint8)

    def __init__(self, settings: ReplaySettings) -> None:
        self.settings = settings

    def describe(self, rows: Sequence[Row]) -> np.ndarray:
        """1 for an old row, 0 for a new one."""
        return np.array([self._is_old(row) for row in rows], np.uint8)

    def _is_old(self, row: Row) -> bool:
        lines = self.settings.old.get(row.file, 0)
        return lines == ALL or row.line <= lines

    def decide(self, values: np.ndarray, seed: int) -> Decision:
        """Draw the old rows that stay."""
        keep_N = np.ones(len(values), bool)
        old_E = np.flatnonzero(values)
        stay = round(self.settings.share * len(old_E))
        keep_N[np.random.default_rng(seed).permutation(old_E)[stay:]] = False
        words = f"an old row, of which a share of {self.settings.share:g} was drawn"
        return Decision(keep_N, "old_not_drawn", dict.fromkeys(np.flatnonzero(~keep_N).tolist(), words))
