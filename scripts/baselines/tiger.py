"""TIGER: an item is a sequence of semantic codes, from coarse to fine.

Source: Rajput et al., Recommender Systems with Generative Retrieval, NeurIPS 2023 (arXiv 2305.05065): three codes of 256 from the item's
text, and a fourth that tells items with equal codes apart.
Differs: residual k-means on MiniLM vectors unless `quantiser="rq-vae"` (GRID, arXiv 2507.22224, finds it as good); no user token; the
decoder of `codes`.
"""

import numpy as np

from .codes import Code, numbered, with_levels
from .quantise import residual_kmeans, train_rqvae


def tiger(vectors: np.ndarray, levels: int = 3, size: int = 256, quantiser: str = "k-means", seed: int = 0) -> list[Code]:
    """Gives every item its code. Shape: vectors (V, S) of the items' texts -> V codes of levels + 1 tokens."""
    if quantiser not in ("k-means", "rq-vae"):
        raise ValueError(f"TIGER's quantiser is {quantiser!r}: it should be k-means or rq-vae.")
    find = residual_kmeans(vectors, levels, size, seed)[0] if quantiser == "k-means" else train_rqvae(vectors, levels, size, seed=seed)
    return numbered(with_levels(find.tolist()))
