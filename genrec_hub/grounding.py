"""Generated tokens -> items: one matrix product against the catalogue, exact, in the smaller of two equal forms.

Dims: B batch · Q tokens of an identifier · D hidden size · V catalogue size · W index width · K shown items.

A slot's item vectors are affine in a small latent vector (64 CF numbers, the autoencoder's last hidden layer), so
`sum_k w_k q_k . z_i^k = (sum_k w_k A_k^T q_k) . h_i + constant of the user`: one product of width W = 64 + AE width instead of Q x D,
with the same ranking. Where Q x D is the smaller one, the tokens themselves are the index.

Source: SETRec section 3.3 (grounding heads), design decision 6.
"""

from collections.abc import Sequence

import torch

from . import processes


_BLOCK, _FEW = 32, 16_384


@torch.no_grad()
def top_k(
    queries: torch.Tensor,
    index: torch.Tensor,
    k: int,
    excluded: Sequence[Sequence[int]] | None = None,
    allowed: torch.Tensor | None = None,
    chunk: int = 32_768,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the k best items of each query, best first; equal scores go to the lower row.

    Args:
        queries: (B, W).
        index: (V, W); fastest when its columns are contiguous, as `SETRecModel.index` makes it.
        k: how many; fewer come back when fewer may be shown (then score -inf, row -1).
        excluded: rows that may not come, per query.
        allowed: (V,) true for rows that may come (a department); all when None.
        chunk: rows scored at a time, so that scores stay in the cache and memory stays bounded for large catalogues.

    Shape: -> scores (B, k), rows (B, k).
    """
    shut = [(user, row) for user, own in enumerate(excluded or ()) for row in own]
    users, gone = torch.tensor(shut, device=queries.device).unbind(1) if shut else (None, None)
    found = []
    for start in range(0, max(1, len(index)), chunk):
        scores = queries @ index[start : start + chunk].T
        if allowed is not None:
            scores.masked_fill_(~allowed[start : start + chunk], -torch.inf)
        if users is not None and gone is not None:
            inside = (gone >= start) & (gone < start + scores.shape[1])
            scores[users[inside], gone[inside] - start] = -torch.inf
        best, rows = _best(scores, min(k, scores.shape[1]))
        found.append((best, rows + start if start else rows))
    best, rows = found[0] if len(found) == 1 else merge([best for best, _ in found], [rows for _, rows in found], k)
    return best, rows.masked_fill(best == -torch.inf, -1)


def top_k_of_shares(
    queries: torch.Tensor,
    index: torch.Tensor,
    first: int,
    k: int,
    excluded: Sequence[Sequence[int]] | None = None,
    allowed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`top_k` of an index that is cut up over the processes: each ranks its own rows, and only the k best of each travel.

    Args:
        queries: (B, W), the same in every process.
        index: (V', W) the rows of this process.
        first: number of its first row in the whole catalogue.
        k: how many; where fewer may be shown, score -inf and row -1.
        excluded: rows of the whole catalogue that may not come, per query.
        allowed: (V',) true for rows of this process that may come.

    Shape: -> scores (B, k), rows (B, k), the same in every process.
    """
    own = None if excluded is None else [[row - first for row in rows if first <= row < first + len(index)] for rows in excluded]
    scores, rows = top_k(queries, index, k, own, allowed)
    shape = (processes.count(), len(queries), k)
    every, where = scores.new_zeros(shape), rows.new_zeros(shape)
    every[processes.number()], where[processes.number()] = -torch.inf, -1
    every[processes.number(), :, : scores.shape[1]] = scores
    where[processes.number(), :, : rows.shape[1]] = torch.where(rows < 0, rows, rows + first)
    return merge(list(processes.added(every)), list(processes.added(where)), k)


def merge(scores: Sequence[torch.Tensor], rows: Sequence[torch.Tensor], k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best of several lists (parts of a catalogue), equal scores by rising row. Shape: lists of (B, k') each -> (B, k) each."""
    every, places = torch.cat(list(scores), 1), torch.cat(list(rows), 1)
    rising = places.argsort(dim=1)
    every, places = every.gather(1, rising), places.gather(1, rising)
    order = every.argsort(dim=1, descending=True, stable=True)[:, :k]
    return every.gather(1, order), places.gather(1, order)


def _best(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best columns, best first, equal scores by rising column. Shape: (B, C) -> (B, k) each."""
    width = scores.shape[1]
    if width > _FEW and width > 2 * _BLOCK * k:
        best, columns = _best_of_blocks(scores, k + 1)
    elif width > k:
        best, columns = scores.topk(k + 1)
    else:
        best, columns = scores.sort(dim=1, descending=True, stable=True)
    if width > k and bool((best[:, :-1] > best[:, 1:]).all()):
        return best[:, :k], columns[:, :k]
    places = _lowest_of_the_best(scores, k)
    return merge([scores.gather(1, places)], [places], k)


def _best_of_blocks(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best columns (of equal scores any): they lie in the k blocks of the highest maxima, so most is read only once. Shape: as `_best`."""
    whole = scores.shape[1] // _BLOCK * _BLOCK
    blocks = scores[:, :whole].unflatten(1, (-1, _BLOCK))
    own = blocks.amax(2).topk(k, sorted=False).indices[:, :, None]
    columns = (own * _BLOCK + torch.arange(_BLOCK, device=own.device)).flatten(1)
    rest = torch.arange(whole, scores.shape[1], device=own.device).expand(len(scores), -1)
    columns = torch.cat([columns, rest], 1)
    best, places = scores.gather(1, columns).topk(k)
    return best, columns.gather(1, places)


def _lowest_of_the_best(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Columns of the k best scores, rising; of equal scores at the cut topk keeps any, this the lowest. Shape: (B, C) -> (B, k)."""
    best = scores.topk(k)
    cut = best.values[:, -1:]
    if bool(((scores >= cut).sum(1) == k).all()):
        return best.indices.sort(dim=1).values
    above, level = scores > cut, scores == cut
    kept = above | (level & (level.cumsum(1) <= k - above.sum(1, keepdim=True)))
    return kept.nonzero()[:, 1].view(len(scores), k)
