"""Approximate grounding of a large catalogue against the exact form, on real item vectors.

Dims: B batch · V catalogue size · W index width · K shown items.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genrec_hub import Catalog, load
from genrec_hub.grounding import NearIndex, top_k

from .timing import interleaved

SHARED = Path(os.environ.get("GENREC_SHARED") or Path(__file__).resolve().parents[3] / "shared" / "data")
DOMAINS = (
    "amazon14_beauty", "amazon14_sports", "amazon18_cds", "amazon_videogames", "bookcrossing_books", "goodreads_books",
    "hm_fashion", "lastfm_artists", "microlens_video",
)  # fmt: skip
NOISE = 0.5
"""Length of the noise beside a unit vector: a copy has a cosine of about .89 to its item, as near items of one shop have."""


def real_vectors(most: int | None = None) -> np.ndarray:
    """Unit vectors of the items of the shared domains, by the encoder's cache. Shape: -> (items, S).

    Raises:
        FileNotFoundError: without the shared domains.
    """
    folders = [SHARED / name for name in DOMAINS if (SHARED / name / "items.parquet").is_file()]
    if not folders:
        raise FileNotFoundError(f"no shared domains in {SHARED}")
    encoder = load().processor.encoder
    lines = [line for folder in folders for line in Catalog.from_file(folder / "items.parquet").lines]
    return encoder.encode(lines[:most])


def replicated(vectors: np.ndarray, size: int, seed: int = 0) -> torch.Tensor:
    """The vectors themselves, then copies with noise until there are enough. Shape: (items, S) -> (V, S)."""
    rng = np.random.default_rng(seed)
    out = np.empty((size, vectors.shape[1]), np.float32)
    for start in range(0, size, len(vectors)):
        part = out[start : start + len(vectors)]
        part[:] = vectors[: len(part)]
        if start:
            noise = rng.standard_normal(part.shape, np.float32)
            part += NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)
            part /= np.linalg.norm(part, axis=1, keepdims=True)
    return torch.from_numpy(out)


def million(size: int, rounds: int, users: int = 8, asked: int = 64, shown: int = 20) -> dict[str, Any]:
    """Recall of the approximate top 20 against the exact one, and CPU seconds of both for a batch.

    Items are real ones with noisy copies up to the size; queries are what the embedded model generates for histories of real items.
    """
    real = real_vectors()
    model = load().model
    rng = np.random.default_rng(1)
    features = {"semantic": torch.from_numpy(real)}
    histories = []
    for _ in range(asked):  # a history: a real item and some of its hundred nearest
        row = int(rng.integers(len(real)))
        near = np.argsort(-(real @ real[row]))[:100]
        histories.append(np.append(rng.choice(near, 5, replace=False), row))
    with torch.inference_mode():
        queries = model.ground(model.recommend_tokens(histories, features))
        index = model.index(replicated(real, size))
    near_index = NearIndex(index)
    exact = top_k(queries, index, shown)[1]
    found = near_index.top_k(queries, shown)[1]
    recall = np.mean([len(set(a) & set(b)) / shown for a, b in zip(exact.tolist(), found.tolist(), strict=True)])
    spent = interleaved(
        {"exact": lambda: top_k(queries[:users], index, shown), "ours": lambda: near_index.top_k(queries[:users], shown)}, rounds
    )
    note = f"top {shown} of {size:,} vectors {index.shape[1]} wide: {len(real):,} real items, the rest noisy copies (cosine about .89)"
    return {**spent, "recall": float(recall), "note": note, "real": len(real)}
