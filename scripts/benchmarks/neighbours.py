"""Approximate grounding of a large catalogue against the exact form, on real item vectors.

Dims: B batch · V catalogue size · S width of the text vectors · W index width · K shown items.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from genrec_hub import Domain, SETRecModel, SETRecProcessor
from genrec_hub.domain import Sequences
from genrec_hub.grounding import NearIndex, near_index, top_k
from genrec_hub.recipes import Settings, train_setrec

from .timing import interleaved

SHARED = Path(os.environ.get("GENREC_SHARED") or Path(__file__).resolve().parents[3] / "shared" / "data")
TRAINED_ON = "amazon_videogames"
DOMAINS = (
    TRAINED_ON, "amazon14_beauty", "amazon14_toys", "amazon18_cds", "amazon18_industrial", "bookcrossing_books", "goodreads_books",
    "hm_fashion", "instacart_grocery", "lastfm_artists", "microlens_video", "movielens_small", "uci_onlineretail", "yelp_2019",
)  # fmt: skip
KEPT = Path(__file__).resolve().parents[2] / "artifacts" / "benchmark-setrec"
NOISE = 0.5
"""Length of the noise beside a unit vector: a copy has a cosine of .89 to its item. The nearest other of 12,000 real items has .53
(median), of 119,000 items .69: at ten times as many about .85 is to be expected."""


def trained(domain: Domain, users: int = 6000) -> SETRecModel:
    """A SETRec of the paper's autoencoder (512, 256, 128) without CF, three epochs on the text and histories of a domain; kept."""
    if (KEPT / "training.json").is_file():
        return SETRecModel.from_pretrained(KEPT).eval()
    few = Domain(domain.catalog, domain.users[:users], Sequences.of([domain.sequences[user][-12:] for user in range(users)]))
    blind = {"disable_tqdm": True, "eval_strategy": "no", "load_best_model_at_end": False}
    train_setrec(few, KEPT, Settings(epochs=3, every=3), cf=False, arguments=blind)
    return SETRecModel.from_pretrained(KEPT).eval()


def replicated(vectors: torch.Tensor, model: SETRecModel, size: int, seed: int = 0) -> torch.Tensor:
    """The index of the items, then of copies with noise until there are enough. Shape: (items, S) -> (V, W)."""
    generator = torch.Generator().manual_seed(seed)
    parts = [model.index(vectors).T]
    for _ in range(size // len(vectors)):
        noise = torch.randn(vectors.shape, generator=generator)
        parts.append(model.index(F.normalize(vectors + NOISE * F.normalize(noise, dim=1), dim=1)).T)
    return torch.cat(parts, 1)[:, :size].contiguous().T


def million(size: int, rounds: int, users: int = 8, asked: int = 128, shown: int = 20) -> dict[str, Any]:
    """Recall of the approximate top 20 against the exact one, and CPU seconds of both for a batch.

    Items are those of the shared domains, with noisy copies up to the size; queries are what a trained model generates for users'
    histories. How many lists are looked through is chosen on half of the users, recall and time are those of the other half.

    Raises:
        FileNotFoundError: without the shared domains.
        RuntimeError: when the lists do not reach the recall that `near_index` asks for.
    """
    if not (SHARED / TRAINED_ON / "items.parquet").is_file():
        raise FileNotFoundError(f"no shared domains in {SHARED}")
    bare = SETRecProcessor()
    domains = {
        name: Domain.from_folder(SHARED / name, check_order=False) for name in DOMAINS if (SHARED / name / "items.parquet").is_file()
    }
    real = torch.cat([bare.with_catalog(domain.catalog).features["semantic"] for domain in domains.values()])
    model, sequences = trained(domains[TRAINED_ON]), domains[TRAINED_ON].sequences
    drawn = np.random.default_rng(1).choice(len(sequences), asked, replace=False)
    with torch.inference_mode():
        queries = model.ground(model.recommend_tokens([sequences[user] for user in drawn], {"semantic": real}))
        index = replicated(real, model, size)
    near, held_out = near_index(index, queries[: asked // 2]), queries[asked // 2 :]
    if not isinstance(near, NearIndex):
        raise RuntimeError("The lists do not hold the best items: the index stays exact.")
    spent = interleaved(
        {"exact": lambda: top_k(held_out[:users], index, shown), "ours": lambda: near.top_k(held_out[:users], shown)}, rounds
    )
    note = f"{size:,} vectors {index.shape[1]} wide: {len(real):,} real items, the rest noisy copies of them (cosine .89)"
    note += f"; {near.probes} of {near.lists} lists"
    return {**spent, "recall": near.recall(held_out, top_k(held_out, index, shown)[1]), "note": note, "real": len(real)}
