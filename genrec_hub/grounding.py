"""Generated tokens -> items: one matrix product against the catalogue, exact, in the smaller of two equal forms.

Dims: B batch · Q tokens of an identifier · D hidden size · V catalogue size · W index width · K shown items.

A slot's item vectors are affine in a small latent vector (64 CF numbers, the autoencoder's last hidden layer), so
`sum_k w_k q_k . z_i^k = (sum_k w_k A_k^T q_k) . h_i + constant of the user`: one product of width W = 64 + AE width instead of Q x D,
with the same ranking. Where Q x D is the smaller one, the tokens themselves are the index.

Source: SETRec section 3.3 (grounding heads), design decision 6.
"""

from collections.abc import Sequence

import torch


def top_k(
    queries: torch.Tensor,
    index: torch.Tensor,
    k: int,
    excluded: Sequence[Sequence[int]] | None = None,
    allowed: torch.Tensor | None = None,
    chunk: int = 262_144,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the k best items of each query, best first; equal scores go to the lower row.

    Args:
        queries: (B, W).
        index: (V, W).
        k: how many; fewer come back when fewer may be shown (then score -inf, row -1).
        excluded: rows that may not come, per query.
        allowed: (V,) true for rows that may come (a department); all when None.
        chunk: rows scored at a time, so that memory stays bounded for large catalogues.

    Shape: -> scores (B, k), rows (B, k).
    """
    best_scores = queries.new_full((len(queries), 0), 0.0)
    best_rows = torch.zeros((len(queries), 0), dtype=torch.long, device=queries.device)
    for start in range(0, len(index), chunk):
        part = queries @ index[start : start + chunk].T
        if allowed is not None:
            part = part.masked_fill(~allowed[start : start + chunk], -torch.inf)
        for row, own in enumerate(excluded or ()):
            inside = [r - start for r in own if start <= r < start + part.shape[1]]
            part[row, inside] = -torch.inf
        rows = _lowest_of_the_best(part, min(k, part.shape[1]))
        merged, rows = torch.cat([best_scores, part.gather(1, rows)], 1), torch.cat([best_rows, rows + start], 1)
        # Among equal scores rows rise from left to right, and a stable sort keeps that.
        order = merged.argsort(dim=1, descending=True, stable=True)[:, :k]
        best_scores, best_rows = merged.gather(1, order), rows.gather(1, order)
    best_rows = best_rows.masked_fill(best_scores == -torch.inf, -1)
    return best_scores, best_rows


def _lowest_of_the_best(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Columns of the k best scores, rising; of equal scores at the cut topk keeps any, this the lowest. Shape: (B, C) -> (B, k)."""
    best = scores.topk(k)
    cut = best.values[:, -1:]
    if bool(((scores >= cut).sum(1) == k).all()):
        return best.indices.sort(dim=1).values
    above, level = scores > cut, scores == cut
    kept = above | (level & (level.cumsum(1) <= k - above.sum(1, keepdim=True)))
    return kept.nonzero()[:, 1].view(len(scores), k)
