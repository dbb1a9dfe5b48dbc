"""Ranking metrics from the ranks of the targets; each with its formula and source, each checked against brute force.

Ranks are 1-based places among the whole catalogue. A user has one target (leave-one-out) or several.
"""

from collections.abc import Sequence

import numpy as np
import torch

CUTOFFS = (5, 10)


def target_ranks(scores: torch.Tensor, targets: Sequence[np.ndarray], excluded: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
    """Returns the ranks of the targets of each user among all items; ties count against the target.

    A target's rank is 1 + the number of other items that score at least as high; of two tied targets of one user the later one loses.
    Excluded items (seen before) are not ranked, unless they are targets. A target named twice counts once; one without a score
    (NaN) comes last.

    Args:
        scores: (B, V), higher is better.
        targets: rows of the targets per user.
        excluded: rows per user that may not be recommended.

    Shape: scores (B, V) -> B arrays of ranks, each sorted upwards.
    """
    ranks = []
    for row, named in enumerate(targets):
        line, own = scores[row], np.unique(named)
        index = torch.as_tensor(own, dtype=torch.long)
        values = line[index]
        at_least = (line[None, :] >= values[:, None]).sum(1)
        if excluded is not None and len(excluded[row]):
            shut = np.setdiff1d(excluded[row], own)
            at_least -= (line[torch.as_tensor(shut)][None, :] >= values[:, None]).sum(1)
        tied_later = torch.triu(values[None, :] == values[:, None], 1).sum(1)
        nan = torch.isnan(values)
        at_least = torch.where(nan, torch.full_like(at_least, len(line)), at_least - tied_later)
        ranks.append(np.sort(at_least.cpu().numpy()))
    return ranks


def hit_rate(ranks: Sequence[np.ndarray], k: int) -> np.ndarray:
    """Per user: targets in the top k / targets. With one target this is the hit rate HR@k, with several Recall@k.

    Source: SETRec's evaluation, |hits| / |GT|.
    """
    return np.array([float(np.mean(own <= k)) for own in ranks])


def ndcg(ranks: Sequence[np.ndarray], k: int) -> np.ndarray:
    """Per user: sum over targets with rank r <= k of 1/log2(r + 1), over the same sum for ranks 1 .. min(k, targets).

    Source: Järvelin and Kekäläinen 2002, binary gains.
    """
    ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))
    return np.array([float((1 / np.log2(own[own <= k] + 1)).sum() / ideal[min(k, len(own)) - 1]) for own in ranks])


def reciprocal_rank(ranks: Sequence[np.ndarray]) -> np.ndarray:
    """Per user: 1 / the best rank of a target, without cut-off. Source: Voorhees 1999."""
    return np.array([1 / float(own.min()) for own in ranks])


def coverage(lists: np.ndarray, size: int) -> float:
    """Distinct items in all lists / catalogue size. Shape: lists (users, k) of rows -> a number in 0..1."""
    return len(np.unique(lists[lists >= 0])) / max(1, size)


def diversity(lists: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Per user: 1 - mean cosine over the pairs of a list (intra-list diversity, Ziegler et al. 2005); 0 without a pair.

    Shape: lists (users, k) of rows (-1: no item), vectors (V, S) of unit length -> (users,).
    """
    out = np.zeros(len(lists))
    for start in range(0, len(lists), 4096):
        chosen = lists[start : start + 4096]
        own = vectors[chosen] * (chosen >= 0)[..., None]
        pairs = (chosen >= 0).sum(1) * ((chosen >= 0).sum(1) - 1)
        total = np.square(own.sum(1)).sum(1) - np.square(own).sum((1, 2))
        out[start : start + 4096] = np.where(pairs > 0, 1 - total / np.maximum(pairs, 1), 0.0)
    return out


def per_user(ranks: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """All rank metrics per user; `HR@k`, or `Recall@k` where a user has several targets."""
    name = "Recall" if any(len(own) > 1 for own in ranks) else "HR"
    table = {f"{name}@{k}": hit_rate(ranks, k) for k in CUTOFFS}
    table |= {f"NDCG@{k}": ndcg(ranks, k) for k in CUTOFFS}
    table["MRR"] = reciprocal_rank(ranks)
    return table


def bootstrap_interval(values: np.ndarray, samples: int = 1000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over users (Efron 1979)."""
    if len(values) == 0:
        return (float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    means = np.array([values[rng.integers(0, len(values), len(values))].mean() for _ in range(samples)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return (float(low), float(high))


def paired_difference(
    ours: np.ndarray, theirs: np.ndarray, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, float | list[float] | None]:
    """Compares two rows on the same users: difference and ratio of the means, each with a percentile interval over resampled users.

    A resample draws users, so both rows rise and fall together with the users that are easy: the interval is narrower than those of
    the rows. No ratio where theirs may be 0. Source: Efron 1979; Sakai, SIGIR 2006, for paired bootstrap of ranking metrics.

    Shape: ours (users,), theirs (users,), parallel.
    """
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(f"Rows of {len(ours)} and {len(theirs)} users can't be compared in pairs: both should answer the same users.")
    rng = np.random.default_rng(seed)
    means = np.empty((samples, 2))
    for sample in range(samples):
        users = rng.integers(0, len(ours), len(ours))
        means[sample] = ours[users].mean(), theirs[users].mean()

    bounds = [(1 - level) / 2, (1 + level) / 2]
    known = bool((means[:, 1] > 0).all())
    return {
        "difference": float(ours.mean() - theirs.mean()),
        "ci": [float(bound) for bound in np.quantile(means[:, 0] - means[:, 1], bounds)],
        "ratio": float(ours.mean() / theirs.mean()) if known else None,
        "ratio_ci": [float(bound) for bound in np.quantile(means[:, 0] / means[:, 1], bounds)] if known else None,
    }
