"""Text -> spelling vectors: hashed character n-grams, weighted by how rare they are in the catalogue, projected to a fixed width.

A sentence encoder knows what words mean; brands, series, authors and model numbers it has hardly seen. Titles that share them share
n-grams. The vectors are a fixed function of the text and of the rarities of the catalogue, so they need no training and no vocabulary.

Source: TF-IDF (Salton and Buckley 1988) on character n-grams inside words, as scikit-learn's `char_wb`; feature hashing (Weinberger et
al. 2009) and sparse random projections (Li, Hastie and Church 2006), which keep cosines up to about 1 / sqrt(width).

Dims: V texts · S width of the vectors · n n-grams.
"""

from collections.abc import Sequence

import numpy as np

BUCKETS = 2**17
"""Hash buckets of n-grams."""
SIZES = (3, 4, 5)
"""Characters of an n-gram, the space before and after a word included."""
SPREAD = 8
"""Entries of a vector that a bucket adds to."""
CHUNK = 4096
"""Texts that are counted at once."""

_ODD = np.uint64(0x9E3779B97F4A7C15)


def rarity(texts: Sequence[str]) -> np.ndarray:
    """Inverse document frequency of every bucket among the texts, log((1 + V) / (1 + texts with it)) + 1. Shape: V texts -> (BUCKETS,)."""
    found = np.zeros(BUCKETS, np.int64)
    for start in range(0, len(texts), CHUNK):
        _, bucket, _ = _counts(texts[start : start + CHUNK])
        found += np.bincount(bucket, minlength=BUCKETS)
    return (np.log((1 + len(texts)) / (1 + found)) + 1).astype(np.float32)


def spell(texts: Sequence[str], weights: np.ndarray, width: int) -> np.ndarray:
    """Returns unit vectors, zeros for a text without letters or digits. Shape: V texts, weights (BUCKETS,) -> (V, S)."""
    out = np.zeros((len(texts), width), np.float32)
    for start in range(0, len(texts), CHUNK):
        part = texts[start : start + CHUNK]
        row, bucket, count = _counts(part)
        value = (1 + np.log(count)) * weights[bucket]
        total = np.zeros(len(part) * width)
        for turn in range(SPREAD):
            mixed = _mix(bucket.astype(np.uint64) * np.uint64(SPREAD) + np.uint64(turn + 1))
            sign = np.where(mixed & np.uint64(1), 1.0, -1.0)
            place = row * width + ((mixed >> np.uint64(33)) % np.uint64(width)).astype(np.int64)
            total += np.bincount(place, value * sign, len(total))
        out[start : start + len(part)] = total.reshape(len(part), width)
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)


def _counts(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often each text holds each bucket. Shape: V texts -> rows (n,), buckets (n,), counts (n,), sorted, each pair once."""
    words = [" " + " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split()) + " " for text in texts]
    letters = np.frombuffer("".join(words).encode("utf-32-le"), np.uint32).astype(np.uint64)
    owner = np.repeat(np.arange(len(words)), [len(own) for own in words])
    blank = letters == ord(" ")
    pairs = []
    for size in SIZES:
        count = len(letters) - size + 1
        if count < 1:
            continue
        code = np.full(count, size, np.uint64)
        inside = owner[:count] == owner[size - 1 :]
        for place in range(size):
            here = slice(place, place + count)
            code = _mix(code + letters[here])
            if 0 < place < size - 1:
                inside &= ~blank[here]
        bucket = (code[inside] % np.uint64(BUCKETS)).astype(np.int64)
        pairs.append(owner[:count][inside] * BUCKETS + bucket)
    keys, counts = np.unique(np.concatenate([np.zeros(0, np.int64), *pairs]), return_counts=True)
    return keys // BUCKETS, keys % BUCKETS, counts


def _mix(values: np.ndarray) -> np.ndarray:
    """Scrambles 64-bit integers (the finaliser of splitmix64)."""
    values = values * _ODD
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
