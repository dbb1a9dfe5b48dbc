"""The rows that every table carries: popularity, item-kNN, text-kNN on frozen MiniLM, repeat-last, SASRec.

Dims: B batch · V catalogue size · S width of the text vectors · n history items of a batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from .catalog import Catalog
from .domain import Sequences, Split
from .modeling_sasrec import SASRecModel
from .semantic import centred

CELLS = 2**24
"""Scores that are held at once (64 MB of float32)."""
RECENCY, SHARPNESS = 0.3, 8.0
"""λ and τ of the text baselines, chosen on lastfm_artists and fixed."""


@runtime_checkable
class Ranker(Protocol):
    """Scores the whole catalogue for a batch of histories."""

    def scores(self, histories: Sequence[np.ndarray]) -> torch.Tensor:
        """Returns a score per item, higher is better. Shape: B histories of rows, oldest first -> (B, V)."""
        ...


def baseline_rankers(split: Split, vectors: np.ndarray, repeat_last: bool = False) -> dict[str, Ranker]:
    """Returns the rankers that need no training, by name. Shape: vectors (V, S), as the encoder gives them."""
    counts = split.popularity(len(vectors))
    text = TextNeighbours(centred(np.asarray(vectors, np.float32)))
    rankers: dict[str, Ranker] = {"popularity": Popularity(counts), "item-knn": ItemKNN(split.training, len(vectors))}
    rankers |= {f"text-knn-{how}": TextKNN(text, how) for how in TextNeighbours.HOWS}
    return rankers | ({"repeat-last": RepeatLast(counts)} if repeat_last else {})


class Popularity:
    """Scores an item by its count in training, whatever the history. Shape: counts (V,)."""

    def __init__(self, counts: np.ndarray) -> None:
        self.counts = torch.as_tensor(counts, dtype=torch.float32)

    def scores(self, histories: Sequence[np.ndarray]) -> torch.Tensor:
        """Shape: B histories -> (B, V)."""
        return self.counts.expand(len(histories), -1)


class RepeatLast(Popularity):
    """Ranks the last item first, then the earlier items by recency, then the rest by popularity."""

    def scores(self, histories: Sequence[np.ndarray]) -> torch.Tensor:
        """Shape: B histories -> (B, V)."""
        scores = (self.counts / (self.counts.max() + 1)).repeat(len(histories), 1)
        for row, history in enumerate(histories):
            for place, item in enumerate(history, 1):
                scores[row, int(item)] = place
        return scores


class ItemKNN:
    """Co-occurrence item-kNN: the similarities of the last 20 history items to each item, summed.

    The similarity of i and j is the number of users with both among their last 50 training items, over sqrt(count of i x count of j);
    that of an item to itself is 0.

    Source: Sarwar et al., Item-based collaborative filtering, WWW 2001, on sets of items per user; counts are of interactions.

    Args:
        training: the training sequences.
        size: items in the catalogue.
        window: last training items of a user that are paired.
        last: last history items that vote.
    """

    def __init__(self, training: Sequences, size: int, window: int = 50, last: int = 20) -> None:
        from scipy.sparse import csr_matrix, diags

        packed = Sequences.of([np.unique(training[user][-window:]) for user in range(len(training))])
        taken = csr_matrix((np.ones(len(packed.items), np.float32), packed.items, packed.offsets), shape=(len(packed), size))
        both = (taken.T @ taken).tocsr()
        both.setdiag(0)
        scale = diags(1 / np.sqrt(np.maximum(np.bincount(training.items, minlength=size), 1)).astype(np.float32))
        self.similar = (scale @ both @ scale).tocsr()
        self.last = last

    def scores(self, histories: Sequence[np.ndarray]) -> torch.Tensor:
        """Shape: B histories -> (B, V)."""
        from scipy.sparse import csr_matrix

        recent = Sequences.of([history[-self.last :] for history in histories])
        shape = (len(histories), self.similar.shape[0])
        votes = csr_matrix((np.ones(len(recent.items), np.float32), recent.items, recent.offsets), shape=shape)
        return torch.from_numpy((votes @ self.similar).toarray())


class TextNeighbours:
    """Scores of all items from the text of a history, aggregated in five ways; the five share one pass over a batch.

    With v_j the history's vectors, v_i an item's, cos their product and ago = 0 for the last item: `last` cos(v_last, v_i), `mean` the mean
    of the cosines, `max` the largest, `recent` Σ exp(-λ ago) cos, `soft` logsumexp(τ cos - λ ago).

    Args:
        vectors: centred unit vectors of the catalogue. Shape: (V, S).
    """

    HOWS = ("last", "mean", "max", "recent", "soft")

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = torch.as_tensor(vectors, dtype=torch.float32)
        self._batch: Sequence[np.ndarray] = ()
        self._known: dict[str, torch.Tensor] = {}

    def scores(self, histories: Sequence[np.ndarray], how: str) -> torch.Tensor:
        """Returns the scores of one aggregation; an empty history scores 0 everywhere. Shape: B histories -> (B, V)."""
        if histories is not self._batch:
            self._batch, self._known = histories, {}
        if how not in self._known:
            self._known |= self._nearest(histories) if how in ("max", "soft") else {how: self._pooled(histories, how)}
        return self._known[how]

    def _pooled(self, histories: Sequence[np.ndarray], how: str) -> torch.Tensor:
        """A weighted sum of cosines is the cosine with the weighted sum. Shape: -> (B, V)."""
        sums = torch.zeros(len(histories), self.vectors.shape[1])
        for row, history in enumerate(histories):
            if len(history):
                weights = {"last": _ago(history) == 0, "mean": torch.full((len(history),), 1 / len(history))}.get(how, _fade(history))
                sums[row] = weights.float() @ self.vectors[torch.as_tensor(history)]
        return sums @ self.vectors.T

    def _nearest(self, histories: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """`max` and `soft` from blocks of (n, V) cosines; cosines are at most 1, so exp(τ cos) needs no shift. Shape: -> (B, V) each."""
        size, packed = len(self.vectors), Sequences.of(histories)
        flat, users = torch.as_tensor(packed.items), torch.as_tensor(np.repeat(np.arange(len(packed)), packed.lengths))
        fade = torch.cat([*map(_fade, histories), torch.zeros(0)])
        nearest, soft = torch.full((len(histories), size), -math.inf), torch.zeros(len(histories), size)
        step = max(1, CELLS // size)
        for start in range(0, len(flat), step):
            block = slice(start, start + step)
            cosines = self.vectors[flat[block]] @ self.vectors.T
            present, lengths = torch.unique_consecutive(users[block], return_counts=True)
            spans = list(
                zip(present.tolist(), torch.split(cosines, lengths.tolist()), torch.split(fade[block], lengths.tolist()), strict=True)
            )
            for user, own, _ in spans:
                torch.maximum(nearest[user], own.amax(0), out=nearest[user])
            cosines.mul_(SHARPNESS).exp_()
            for user, own, weights in spans:
                soft[user] += weights @ own
        empty = torch.as_tensor(packed.lengths == 0)[:, None]
        return {"max": nearest.masked_fill(empty, 0), "soft": soft.log().masked_fill(empty, 0)}


@dataclass(frozen=True)
class TextKNN:
    """One aggregation of `TextNeighbours` as a ranker."""

    text: TextNeighbours
    how: str

    def scores(self, histories: Sequence[np.ndarray]) -> torch.Tensor:
        """Shape: B histories -> (B, V)."""
        return self.text.scores(histories, self.how)


class SASRecRanker:
    """A trained SASRec as a ranker; an empty history scores 0 everywhere."""

    def __init__(self, model: SASRecModel, batch_size: int = 64) -> None:
        self.model, self.batch_size = model, batch_size
        self.model.train(False)

    @classmethod
    def from_folder(cls, folder: str | Path, catalog: Catalog) -> "SASRecRanker":
        """Loads a saved model; ValueError when it was trained on another catalogue."""
        if not (Path(folder) / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no config.json: give the folder of a saved SASRec model (genrec train sasrec).")
        model = SASRecModel.from_pretrained(folder)
        if model.config.catalog_fingerprint != catalog.fingerprint:
            raise ValueError(
                f"The SASRec of {folder} belongs to the catalogue {model.config.catalog_fingerprint[:12] or 'unknown'}, not to this one "
                f"({catalog.fingerprint[:12]}): train one on these items with genrec train sasrec."
            )
        return cls(model)

    def scores(self, histories: Sequence[np.ndarray]) -> torch.Tensor:
        """Shape: B histories -> (B, V)."""
        return self.model.score(histories, self.batch_size)


def _ago(history: np.ndarray) -> torch.Tensor:
    return torch.arange(len(history) - 1, -1, -1)


def _fade(history: np.ndarray) -> torch.Tensor:
    return torch.exp(-RECENCY * _ago(history))
