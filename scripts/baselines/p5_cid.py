"""P5-CID: codes from a hierarchy of clusters of items that are bought together.

Source: Hua et al., How to Index Item IDs for Recommendation Foundation Models, SIGIR-AP 2023 (arXiv 2305.06569) section 4.3: spectral
clustering of the co-occurrence graph into 20 clusters, again within a cluster of more than 500 items; the last token numbers the items of a
leaf. As in the authors' code, co-occurrence is counted in training histories alone.
Differs: items that never occur there have no neighbours and form clusters of their own.
"""

import numpy as np
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import eigsh
from sklearn.cluster import KMeans

from genrec_hub.domain import Sequences

from .codes import Code


def p5_cid(training: Sequences, size: int, clusters: int = 20, leaf: int = 500, seed: int = 0) -> list[Code]:
    """Gives every item its code: the clusters from the largest to the leaf, then its number there.

    Args:
        training: the training histories.
        size: items in the catalogue.
        clusters: of one clustering.
        leaf: items of a cluster that is not divided any more.
        seed: of the clusterings.
    """
    packed = Sequences.of([np.unique(training[user]) for user in range(len(training))])
    taken = csr_matrix((np.ones(len(packed.items), np.float32), packed.items, packed.offsets), shape=(len(packed), size))
    together = (taken.T @ taken).tocsr()
    together.setdiag(0)
    together.eliminate_zeros()
    codes: list[Code] = [()] * size
    open_ = [(np.arange(size), ())]
    while open_:
        items, path = open_.pop()
        parts = _divided(together[items][:, items], clusters, seed) if len(items) > leaf else []
        if len(parts) < 2:
            for number, item in enumerate(items):
                codes[item] = (*path, f"n{number}")
        open_ += [(items[part], (*path, f"{chr(ord('a') + len(path))}{number}")) for number, part in enumerate(parts) if len(parts) > 1]
    return codes


def _divided(graph: csr_matrix, clusters: int, seed: int) -> list[np.ndarray]:
    """Normalised spectral clustering (Ng, Jordan and Weiss 2001); items without neighbours are a cluster of their own.

    Shape: graph (n, n) -> the rows of each cluster.
    """
    degree = np.asarray(graph.sum(1)).ravel()
    linked, alone = np.flatnonzero(degree > 0), np.flatnonzero(degree == 0)
    groups = [alone] if len(alone) else []
    if len(linked) <= clusters + 1:
        return [*groups, linked] if len(linked) else groups
    scale = diags(1 / np.sqrt(degree[linked]))
    start = np.random.default_rng(seed).normal(size=len(linked))
    vectors = eigsh(scale @ graph[linked][:, linked] @ scale, clusters, which="LA", v0=start)[1]
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    labels = KMeans(clusters, n_init=3, random_state=seed).fit_predict(vectors)
    return [linked[labels == number] for number in np.unique(labels)] + groups
