"""LETTER: semantic codes that are pulled towards collaborative vectors and spread over their codebooks.

Source: Wang et al., Learnable Item Tokenization for Generative Recommendation, CIKM 2024 (arXiv 2405.07314), equations 2 to 5: RQ-VAE of
four levels of 256 codes, plus alpha x InfoNCE between an item's quantised vector and its CF vector, plus beta x a loss that keeps the codes
of a cluster near each other and apart from others.
Differs: CF vectors are those of the SASRec of the same split and pass a linear map; items that never occur in training have none and are
not aligned; both contrasts compare directions at a temperature (the authors' code: products without one), beside a reconstruction that is
summed over the vector's width (theirs: a mean), with alpha .1 and beta .001 (theirs .01 and .0001); clusters are plain, not constrained,
k-means, found once; equal codes get a further token that counts them (theirs: the last code is moved by Sinkhorn's algorithm); the
ranking-guided temperature of the decoder is left out.
"""

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import nn
from torch.nn import functional as F

from .codes import Code, numbered, with_levels
from .quantise import train_rqvae

WIDTH = 32
"""D of the code space."""


def letter(
    vectors: np.ndarray,
    cf: np.ndarray,
    known: np.ndarray,
    levels: int = 4,
    size: int = 256,
    alpha: float = 0.1,
    beta: float = 1e-3,
    groups: int = 10,
    temperature: float = 0.1,
    epochs: int = 60,
    seed: int = 0,
) -> list[Code]:
    """Gives every item its code.

    Args:
        vectors: (V, S) of the items' texts.
        cf: (V, C) collaborative vectors.
        known: (V,) true for items that have one.
        levels: M.
        size: K.
        alpha: weight of the alignment.
        beta: weight of the diversity.
        groups: clusters of a codebook.
        temperature: of both contrasts.
        epochs: passes over the items.
        seed: of everything random.

    Shape: -> V codes of as many tokens as levels, one more where another item has the same.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        align = nn.Linear(cf.shape[1], WIDTH)
    collaborative, there = torch.from_numpy(np.asarray(cf, np.float32)), torch.from_numpy(np.asarray(known, bool))
    clusters: list[torch.Tensor] = []

    def extra(rows: torch.Tensor, quantised: torch.Tensor, books: list[torch.Tensor]) -> torch.Tensor:
        if not clusters:
            clusters.extend(_clusters(book, groups, seed) for book in books)
        own = rows[there[rows]]
        ours = F.normalize(quantised[there[rows]], dim=1)
        theirs = F.normalize(align(collaborative[own]), dim=1)
        aligned = F.cross_entropy(ours @ theirs.T / temperature, torch.arange(len(own))) if len(own) > 1 else quantised.new_zeros(())
        return alpha * aligned + beta * sum(
            (_spread(book, of, temperature) for book, of in zip(books, clusters, strict=True)), start=aligned * 0
        )

    found = train_rqvae(vectors, levels, size, epochs=epochs, seed=seed, extra=extra, parameters=list(align.parameters()))
    return numbered(with_levels(found.tolist()), always=False)


def _clusters(book: torch.Tensor, groups: int, seed: int) -> torch.Tensor:
    """The cluster of each code. Shape: (K, D) -> (K,)."""
    return torch.from_numpy(KMeans(min(groups, len(book)), n_init=1, random_state=seed).fit_predict(book.detach().numpy()))


def _spread(book: torch.Tensor, cluster: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean over the codes of -log(likeness to the codes of its cluster / likeness to all others). Shape: (K, D), (K,) -> ()."""
    unit = F.normalize(book, dim=1)
    likeness = (unit @ unit.T / temperature).masked_fill(torch.eye(len(unit), dtype=torch.bool), -torch.inf)
    same = cluster[:, None] == cluster[None]
    fellows = same.sum(1) > 1
    inside = likeness.masked_fill(~same, -torch.inf)[fellows].logsumexp(1)
    return (likeness[fellows].logsumexp(1) - inside).mean() if bool(fellows.any()) else book.sum() * 0
