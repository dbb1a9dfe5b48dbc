"""Generated tokens -> items: one matrix product against the catalogue, exact, in the smaller of two equal forms.

Dims: B batch · Q tokens of an identifier · D hidden size · V catalogue size · W index width · K shown items.

A slot's item vectors are affine in a small latent vector (64 CF numbers, the autoencoder's last hidden layer), so
`sum_k w_k q_k . z_i^k = (sum_k w_k A_k^T q_k) . h_i + constant of the user`: one product of width W = 64 + AE width instead of Q x D,
with the same ranking. Where Q x D is the smaller one, the tokens themselves are the index. Above a million items or so, `NearIndex` looks
through a part of them only; processes may hold a share each (`top_k_of_shares`).

Source: SETRec section 3.3 (grounding heads), design decision 6.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch

from .processes import added
from .processes import count as process_count
from .processes import number as process_number
from .products import table_product

logger = logging.getLogger(__name__)

LARGE = 500_000
"""Items from which on a pipeline looks through the nearest lists only."""
RECALL = 0.99
"""Share of the exact best items that looking through a part of the lists has to find."""
_BLOCK, _FEW = 32, 16_384


@torch.no_grad()
def top_k(
    queries: torch.Tensor,
    index: "torch.Tensor | NearIndex",
    k: int,
    excluded: Sequence[Sequence[int]] | None = None,
    allowed: torch.Tensor | None = None,
    chunk: int = 32_768,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the k best items of each query, best first; equal scores go to the lower row.

    Args:
        queries: (B, W).
        index: (V, W); fastest when its columns are contiguous, as `SETRecModel.index` makes it. A `NearIndex` answers by itself.
        k: how many; fewer come back when fewer may be shown (then score -inf, row -1).
        excluded: rows that may not come, per query.
        allowed: (V,) true for rows that may come (a department); all when None.
        chunk: rows scored at a time, so that scores stay in the cache and memory stays bounded for large catalogues.

    Shape: -> scores (B, k), rows (B, k).
    """
    if isinstance(index, NearIndex):
        return index.top_k(queries, k, excluded, allowed)
    shut = [(user, row) for user, own in enumerate(excluded or ()) for row in own]
    users, gone = torch.tensor(shut, device=queries.device).unbind(1) if shut else (None, None)
    found = []
    for start in range(0, max(1, len(index)), chunk):
        scores = table_product(queries, index[start : start + chunk])
        if allowed is not None:
            scores.masked_fill_(~allowed[start : start + chunk].to(scores.device), -torch.inf)
        if users is not None and gone is not None:
            inside = (gone >= start) & (gone < start + scores.shape[1])
            scores[users[inside], gone[inside] - start] = -torch.inf
        best, rows = _best(scores, min(k, scores.shape[1]))
        found.append((best, rows + start if start else rows))
    best, rows = found[0] if len(found) == 1 else merge([best for best, _ in found], [rows for _, rows in found], k)
    return best, rows if users is None and allowed is None else rows.masked_fill(best == -torch.inf, -1)


def top_k_of_shares(
    queries: torch.Tensor,
    index: torch.Tensor,
    first: int,
    k: int,
    excluded: Sequence[Sequence[int]] | None = None,
    allowed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`top_k` of an index that is cut up over processes: each ranks its own rows, and only the k best of each travel.

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
    shape = (process_count(), len(queries), k)
    every, where = scores.new_zeros(shape), rows.new_zeros(shape)
    every[process_number()], where[process_number()] = -torch.inf, -1
    every[process_number(), :, : scores.shape[1]] = scores
    where[process_number(), :, : rows.shape[1]] = torch.where(rows < 0, rows, rows + first)
    return merge(list(added(every)), list(added(where)), k)


def merge(scores: Sequence[torch.Tensor], rows: Sequence[torch.Tensor], k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best of several lists (parts of a catalogue), equal scores by rising row. Shape: lists of (B, k') each -> (B, k) each."""
    every, places = torch.cat(list(scores), 1), torch.cat(list(rows), 1)
    rising = places.argsort(dim=1)
    every, places = every.gather(1, rising), places.gather(1, rising)
    order = every.argsort(dim=1, descending=True, stable=True)[:, :k]
    return every.gather(1, order), places.gather(1, order)


class NearIndex:
    """An index of many items of which a query looks through a part (faiss), in three steps that grow finer and shorter.

    The lists nearest to the query, by the directions in which items differ most; in them the best candidates, by four bits a direction;
    of these the best by their exact scores. So what comes back has exact scores in exact order, and items may be missing.

    Args:
        index: (V, W) as for `top_k`.
        lists: how many lists; about 2 sqrt(V) when None.
        probes: lists that a query looks through; an eighth of them when None.
        candidates: items that are scored exactly, for a query.
        directions: that are looked at; a quarter of W, but 32 at the least, when None.
        seed: of the sample on which directions and lists are learnt.

    Source: inverted lists with 4-bit product quantisation (Andre et al. 2017) and re-ranking, as in faiss.
    """

    def __init__(
        self,
        index: torch.Tensor,
        lists: int | None = None,
        probes: int | None = None,
        candidates: int = 400,
        directions: int | None = None,
        seed: int = 0,
    ) -> None:
        try:
            import faiss
        except ImportError as error:
            raise ImportError("Approximate grounding needs faiss: pip install 'genrec_hub[ann]'") from error
        size, width = index.shape
        self.index, self.candidates = index, candidates
        self.lists = lists = max(1, min(lists or int(2 * size**0.5), size))
        narrow = min(width, directions or max(32, width // 4))
        sample = index[torch.randperm(size, generator=torch.Generator().manual_seed(seed))[: max(1024, 50 * lists)]]
        moved = sample - sample.mean(0)
        axes = torch.linalg.eigh((moved.T @ moved).double()).eigenvectors[:, -narrow:].T.float().contiguous()
        project = faiss.LinearTransform(width, narrow, False)
        faiss.copy_array_to_vector(axes.cpu().numpy().ravel(), project.A)
        project.is_trained = True
        coarse = faiss.IndexFlatIP(narrow)
        self._lists = faiss.IndexIVFPQFastScan(coarse, narrow, lists, narrow, 4, faiss.METRIC_INNER_PRODUCT)
        self._lists.by_residual = True
        self._lists.cp.seed, self._lists.cp.niter, self._lists.cp.max_points_per_centroid = seed + 1, 10, 50
        narrowed = faiss.IndexPreTransform(project, self._lists)
        self._faiss = faiss.IndexRefineFlat(narrowed)
        self._parts = (project, coarse, narrowed)  # faiss does not hold them
        self._parameters: Any = faiss.IndexRefineSearchParameters
        narrowed.train(sample.contiguous().cpu().numpy())
        self._faiss.is_trained = True
        for start in range(0, size, 65_536):
            self._faiss.add(index[start : start + 65_536].contiguous().cpu().numpy())
        self.probes = probes or max(1, lists // 8)

    @property
    def probes(self) -> int:
        """Lists that a query looks through."""
        return int(self._lists.nprobe)

    @probes.setter
    def probes(self, value: int) -> None:
        self._lists.nprobe = min(value, self.lists)

    def top_k(
        self, queries: torch.Tensor, k: int, excluded: Sequence[Sequence[int]] | None = None, allowed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The k best items that were looked at; arguments and shapes as those of the function `top_k`.

        Users whose lists hold too few items that may come, and all under a mask, are answered by the exact form.
        """
        most = max(map(len, excluded), default=0) if excluded else 0
        if allowed is not None or k + most > len(self.index):
            return top_k(queries, self.index, k, excluded, allowed)
        # One more than asked for shows whether equal scores are cut.
        asked = min(k + most + 1, len(self.index))
        fine = self._parameters(k_factor=max(1.0, self.candidates / asked))
        near, rows = self._faiss.search(queries.contiguous().cpu().numpy(), asked, params=fine)
        found = torch.from_numpy(rows).to(queries.device)
        scores = torch.from_numpy(near).to(queries.device).masked_fill(found < 0, -torch.inf)
        for user, own in enumerate(excluded or ()):
            scores[user] = scores[user].masked_fill(torch.isin(found[user], torch.as_tensor(own, device=found.device)), -torch.inf)
        best, places = merge([scores], [found], k)
        for user in (best[:, -1] == -torch.inf).nonzero()[:, 0].tolist():
            shut = None if excluded is None else excluded[user : user + 1]
            best[user : user + 1], places[user : user + 1] = top_k(queries[user : user + 1], self.index, k, shut)
        return best, places

    def recall(self, queries: torch.Tensor, exact: torch.Tensor) -> float:
        """The share of the exact k best items that is found. Shape: queries (B, W), exact rows (B, k) -> ()."""
        found = self.top_k(queries, exact.shape[1])[1]
        return float((exact[:, :, None] == found[:, None, :]).any(2).float().mean())


def near_index(index: torch.Tensor, queries: torch.Tensor | None = None, least: int = LARGE) -> torch.Tensor | NearIndex:
    """A `NearIndex` where there are more than `least` items and faiss is installed, else the index as it is.

    Args:
        index: (V, W) as for `top_k`.
        queries: (B, W) queries as they will come: as few lists are looked through as find `RECALL` of their exact best items. Where a
            quarter of the lists does not, items lie too evenly for lists, and the index stays exact.
        least: items up to which the exact form is fast enough.
    """
    if len(index) <= least:
        return index
    try:
        near = NearIndex(index)
    except ImportError as error:
        logger.warning("%d items are ranked exactly, which takes long. %s", len(index), error)
        return index
    if queries is None:
        return near
    near.probes, exact = max(1, near.lists // 32), top_k(queries, index, 20)[1]
    while (recall := near.recall(queries, exact)) < RECALL:
        if near.probes * 4 >= near.lists:
            logger.warning(
                "%d items are ranked exactly: a quarter of their lists holds only %.0f %% of the best.", len(index), 100 * recall
            )
            return index
        near.probes += near.probes // 4 + 1
    return near


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
    """The k best columns (of equal scores any), which lie in the k blocks of the highest maxima. Shapes as above."""
    whole = scores.shape[1] // _BLOCK * _BLOCK
    blocks = (scores if whole == scores.shape[1] else scores[:, :whole]).unflatten(1, (-1, _BLOCK))
    own = blocks.amax(2).topk(k, sorted=False).indices[:, :, None]
    columns = (own * _BLOCK + torch.arange(_BLOCK, device=own.device)).flatten(1)
    if whole < scores.shape[1]:
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
