"""Which rows are equal, and which hang together: on arrays, without a Python object for each row.

Axes: ``N`` all rows, ``E`` edges (pairs of rows), ``C`` the rows of a chunk.
"""

import mmap
from collections.abc import Iterator

import numpy as np

CHUNK_ROWS = 1 << 15


def chunks(values_N: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The first row number and a copy of each chunk of rows; what was mapped from disk for it leaves this process's memory again."""
    for start in range(0, len(values_N), CHUNK_ROWS):
        chunk_C = np.array(values_N[start : start + CHUNK_ROWS])
        release(values_N)
        yield start, chunk_C


def release(values: np.ndarray) -> None:
    """Unmap the pages of a file that is mapped shared: they stay in the kernel's cache, and out of the resident set."""
    base = values
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    if isinstance(base, mmap.mmap) and getattr(values, "mode", "c") != "c":
        base.madvise(mmap.MADV_DONTNEED)


def first_equals(*keys_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows all of whose keys repeat an earlier row's, and the first row that has them: two arrays ``[E]``, by key, then by row.

    By hand: keys 7 5 7 7 5 give rows 4 2 3 with first rows 1 0 0.
    """
    order_N = np.lexsort(keys_N[::-1])
    new_N = np.zeros(len(order_N), bool)
    new_N[:1] = True
    for key_N in keys_N:
        sorted_N = key_N[order_N]
        new_N[1:] |= sorted_N[1:] != sorted_N[:-1]
    first_N = order_N[new_N][np.cumsum(new_N) - 1]
    return order_N[~new_N], first_N[~new_N]


class Clusters:
    """Rows joined by edges, as a forest in an array: the root of a cluster is its first row. 4 or 8 bytes a row."""

    def __init__(self, rows: int) -> None:
        self.root_N = np.arange(rows, dtype=np.int32 if rows < 2**31 else np.int64)

    def apart(self, left_E: np.ndarray, right_E: np.ndarray) -> np.ndarray:
        """For each edge whether its ends are in different clusters: ``[E]`` bool."""
        return self.root_N[left_E] != self.root_N[right_E]

    def join(self, left_E: np.ndarray, right_E: np.ndarray) -> None:
        """Join the clusters at both ends of each edge, hooking the later root below the earlier until nothing is apart."""
        while True:
            apart_E = self.apart(left_E, right_E)
            if not apart_E.any():
                return
            left_E, right_E = left_E[apart_E], right_E[apart_E]
            roots = self.root_N[left_E], self.root_N[right_E]
            np.minimum.at(self.root_N, np.maximum(*roots), np.minimum(*roots))
            self._flatten()

    def _flatten(self) -> None:
        while True:
            above_N = self.root_N[self.root_N]
            if np.array_equal(above_N, self.root_N):
                return
            self.root_N = above_N
