"""Tensors of a checkpoint that several ranks wrote, each its rows: safetensors and JSON, read back by any number of ranks.

    rank-00000.safetensors    the rows of rank 0, and what all ranks have alike
    pieces.json               {"policy/master/lm_head.weight": {"shape": [49152, 576],
                                                                "pieces": [{"file": "rank-00000.safetensors", "rows": [0, 24576]}, ...]}}

One rank alone writes `tensors.safetensors` without an index.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.files import fsync
from models.parallel import gather, rank, ranks, rows_of

WHOLE_FILE = "tensors.safetensors"
INDEX_FILE = "pieces.json"


@dataclass(frozen=True)
class Piece:
    """The rows of a tensor, from ``begin`` on, that this rank holds; ``shape`` is that of the whole."""

    rows: Tensor
    shape: tuple[int, ...]
    begin: int


def piece_of(p: Tensor, rows: Tensor) -> Tensor | Piece:
    """What belongs to the rows of ``p`` that this rank holds, such as its moments; itself where this rank holds all."""
    span = rows_of(p)
    return rows if span is None else Piece(rows, tuple(p.shape), span[0])


def own_rows(p: Tensor, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Of a saved tensor what belongs to the rows of ``p`` that this rank holds; scalars as they are."""
    span = rows_of(p)
    if isinstance(tensors, Saved) and span is not None:
        return tensors.rows(name, *span)
    whole = tensors[name]
    return whole if span is None or not whole.ndim else whole[slice(*span)]


# Writing


def write_tensors(folder: Path, tensors: Mapping[str, Tensor | Piece]) -> None:
    """Write this rank's tensors; the first rank also writes what is not in pieces, and the index once it knows everybody's."""
    if ranks() == 1:
        save_file({name: t.contiguous() for name, t in tensors.items() if isinstance(t, Tensor)}, folder / WHOLE_FILE)
        return
    own = {name: t for name, t in tensors.items() if rank() == 0 or isinstance(t, Piece)}
    file = folder / f"rank-{rank():05d}.safetensors"
    save_file({name: (t.rows if isinstance(t, Piece) else t).contiguous() for name, t in own.items()}, file)
    fsync(file)
    written = gather({name: _entry(t) for name, t in own.items()})
    if rank() == 0:
        (folder / INDEX_FILE).write_text(json.dumps(_index(written)), encoding="utf-8")


def _entry(t: Tensor | Piece) -> dict[str, Any]:
    if isinstance(t, Tensor):
        return {"shape": list(t.shape), "rows": [0, len(t) if t.ndim else 1]}
    return {"shape": list(t.shape), "rows": [t.begin, t.begin + len(t.rows)]}


def _index(written: list[dict[str, Any]]) -> dict[str, Any]:
    index: dict[str, Any] = {}
    for number, entries in enumerate(written):
        for name, entry in entries.items():
            found = index.setdefault(name, {"shape": entry["shape"], "pieces": []})
            found["pieces"].append({"file": f"rank-{number:05d}.safetensors", "rows": entry["rows"]})
    return index


# Reading


class Saved(Mapping[str, Tensor]):
    """Tensors of a checkpoint by name. Of those in pieces only the rows that are asked for are read.

    Raises:
        ValueError: the pieces of a tensor leave a gap.
    """

    def __init__(self, folder: Path, prefix: str = "", tensors: Mapping[str, Tensor] | None = None):
        self.folder, self.prefix = folder, prefix
        index = folder / INDEX_FILE
        self.index: dict[str, Any] = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
        self.whole = tensors if tensors is not None or self.index else load_file(folder / WHOLE_FILE)

    @property
    def names(self) -> list[str]:
        return list(self.index or self.whole or ())

    @property
    def written_by(self) -> int:
        """Ranks that wrote it."""
        return len({piece["file"] for entry in self.index.values() for piece in entry["pieces"]}) or 1

    def under(self, prefix: str) -> "Saved":
        """Those whose names begin with ``prefix``, without it."""
        return Saved(self.folder, self.prefix + prefix, self.whole)

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Some rows of a tensor; a scalar as it is."""
        if self.whole is not None and not self.index:
            whole = self.whole[self.prefix + name]
            return whole[begin:end] if whole.ndim else whole
        entry = self.index[self.prefix + name]
        if not entry["shape"]:
            return self._read(entry["pieces"][0], name, None)
        parts, at = [], begin
        for piece in sorted(entry["pieces"], key=lambda piece: piece["rows"]):
            first, last = piece["rows"]
            if first <= at < min(last, end):
                parts.append(self._read(piece, name, slice(at - first, min(last, end) - first)))
                at = min(last, end)
        if at < end:
            raise ValueError(f"{self.folder} has no rows {at} to {end} of {self.prefix + name}: its pieces are {entry['pieces']}")
        return torch.cat(parts) if parts else self._read(entry["pieces"][0], name, slice(0, 1))[:0]

    def _read(self, piece: Mapping[str, Any], name: str, rows: slice | None) -> Tensor:
        with safe_open(self.folder / piece["file"], "pt") as file:
            return file.get_tensor(self.prefix + name) if rows is None else file.get_slice(self.prefix + name)[rows]

    def __getitem__(self, name: str) -> Tensor:
        if not self.index:
            assert self.whole is not None
            return self.whole[self.prefix + name]
        if self.prefix + name not in self.index:
            raise KeyError(name)
        shape = self.index[self.prefix + name]["shape"]
        return self.rows(name, 0, shape[0] if shape else 1)

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self.prefix) for name in self.names if name.startswith(self.prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return f"{self.prefix}{name}" in (self.index or self.whole or ())
