"""Approximate grounding of a large catalogue against the exact form, on real item vectors.

Dims: B batch · V catalogue size · S width of the text vectors · W index width · K shown items.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from genrec_hub import Domain, SETRecModel, SETRecProcessor, load
from genrec_hub.grounding import NearIndex, near_index, top_k

from .timing import interleaved

SHARED = Path(os.environ.get("GENREC_SHARED") or Path(__file__).resolve().parents[3] / "shared" / "data")
DOMAINS = (
    "amazon_videogames", "amazon14_beauty", "amazon14_toys", "amazon18_cds", "amazon18_industrial", "bookcrossing_books", "goodreads_books",
    "hm_fashion", "instacart_grocery", "lastfm_artists", "microlens_video", "movielens_small", "uci_onlineretail", "yelp_2019",
)  # fmt: skip
NOISE = 0.5
"""Length of the noise beside a unit vector: a copy has a cosine of .89 to its item. The nearest other of 12,000 real items has .53
(median), of 119,000 items .69: at ten times as many about .85 is to be expected."""


def replicated(vectors: torch.Tensor, model: SETRecModel, size: int, seed: int = 0) -> torch.Tensor:
    """Latent vectors of the items, then of copies with noise until there are enough. Shape: (items, S) -> (V, W)."""
    generator = torch.Generator().manual_seed(seed)
    parts = [model.semantic.latent(vectors).T]
    for _ in range(size // len(vectors)):
        noise = torch.randn(vectors.shape, generator=generator)
        parts.append(model.semantic.latent(F.normalize(vectors + NOISE * F.normalize(noise, dim=1), dim=1)).T)
    return torch.cat(parts, 1)[:, :size].contiguous().T


def million(size: int, rounds: int, checkpoint: str, users: int = 8, asked: int = 128, shown: int = 20) -> dict[str, Any]:
    """Recall of the approximate top 20 against the exact one, and CPU seconds of both for a batch.

    Items are those of the shared domains, with noisy copies up to the size; queries are what a trained SETRec generates for histories of
    its own domain (last items left out). Items of other domains have no CF vectors, so the semantic columns alone are searched. How many
    lists are looked through is chosen on half of the users, recall and time are those of the other half.

    Raises:
        FileNotFoundError: without the shared domain that the checkpoint was trained on.
        RuntimeError: when the lists do not reach the recall that `near_index` asks for.
    """
    bare, pipe = SETRecProcessor(), load(checkpoint)
    domains = [Domain.from_folder(SHARED / name, check_order=False) for name in DOMAINS if (SHARED / name / "items.parquet").is_file()]
    own = [domain.sequences for domain in domains if domain.catalog.fingerprint == pipe.catalog.fingerprint]
    if not own:
        raise FileNotFoundError(f"{SHARED} has no domain with the catalogue of {checkpoint}.")
    drawn = np.random.default_rng(1).choice(len(own[0]), asked, replace=False)
    with torch.inference_mode():
        real = torch.cat([bare.with_catalog(domain.catalog).features["semantic"] for domain in domains])
        index = replicated(real, pipe.model, size)
        tokens = pipe.model.recommend_tokens([own[0][user][:-1] for user in drawn], pipe.processor.features)
        queries = pipe.model.ground(tokens)[:, -index.shape[1] :].contiguous()
    near, held_out = near_index(index, queries[: asked // 2]), queries[asked // 2 :]
    if not isinstance(near, NearIndex):
        raise RuntimeError("The lists do not hold the best items: the index stays exact.")
    spent = interleaved(
        {"exact": lambda: top_k(held_out[:users], index, shown), "ours": lambda: near.top_k(held_out[:users], shown)}, rounds
    )
    note = f"{size:,} vectors {index.shape[1]} wide: {len(real):,} real items, the rest noisy copies of them (cosine .89)"
    note += f"; {near.probes} of {near.lists} lists"
    return {**spent, "recall": near.recall(held_out, top_k(held_out, index, shown)[1]), "note": note, "real": len(real)}
