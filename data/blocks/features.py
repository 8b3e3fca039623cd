"""Hashed n-grams of words and of characters: what a linear classifier and importance resampling see of a text.

Axes: ``W`` words, ``C`` characters, ``S`` n-grams.
"""

from zlib import crc32

import numpy as np

from data.blocks.clean import without_surrogates
from data.blocks.repetition import tokens_of

_STEP, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xFF51AFD7ED558CCD)
_HALF = np.uint64(32)


def word_ngram_buckets(text: str, longest: int, buckets: int) -> np.ndarray:
    """The buckets of all n-grams of 1 to ``longest`` words (lower case, signs are words): ``[S]`` int64. The same in every process."""
    words = without_surrogates(text).lower()
    hash_W = np.array([crc32(word.encode()) for word in tokens_of(words)], np.uint64)
    return _ngram_buckets(hash_W, 1, longest, buckets)


def character_ngram_buckets(text: str, shortest: int, longest: int, buckets: int) -> np.ndarray:
    """The buckets of all n-grams of ``shortest`` to ``longest`` characters (lower case, any white space one space): ``[S]`` int64."""
    even = f" {' '.join(without_surrogates(text).lower().split())} "
    code_C = np.frombuffer(even.encode("utf-32-le"), np.uint32).astype(np.uint64)
    return _ngram_buckets(code_C, shortest, longest, buckets)


def _ngram_buckets(hash_W: np.ndarray, shortest: int, longest: int, buckets: int) -> np.ndarray:
    """Bucket of n-gram w_1 .. w_n: mix(n + sum of C^(n - i) w_i) modulo the number of buckets, all modulo 2^64."""
    parts = []
    gram_S = np.zeros(len(hash_W), np.uint64)
    for n in range(1, min(longest, len(hash_W)) + 1):
        gram_S = gram_S[: len(hash_W) - n + 1] * _STEP + hash_W[n - 1 :]
        if n >= shortest:
            mixed_S = (gram_S + np.uint64(n)) * _MIX
            mixed_S ^= mixed_S >> _HALF
            mixed_S *= _STEP
            mixed_S ^= mixed_S >> _HALF
            parts.append((mixed_S % np.uint64(buckets)).astype(np.int64))
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
