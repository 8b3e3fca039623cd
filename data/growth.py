"""What has been added to a text file since it was last read."""

import hashlib
from collections.abc import Collection
from pathlib import Path

GROWING = (".jsonl", ".ndjson")  # a row is a line, so that rows can be appended


def lines_kept(path: Path, digests: Collection[str]) -> int:
    """How many lines a file of JSON lines had when the SHA-256 of its bytes was one of these, and lines were only appended since; 0: none.

    The longest such beginning counts.
    """
    if path.suffix.lower() not in GROWING:
        return 0
    digest, kept = hashlib.sha256(), 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = line.removesuffix(b"\n")
            digest.update(text)
            if digest.copy().hexdigest() in digests:  # its last line had no line break then
                kept = number
            digest.update(line[len(text) :])
            if digest.copy().hexdigest() in digests:
                kept = number
    return kept
