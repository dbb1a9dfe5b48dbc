"""Full-ranking evaluation: one table in which every row answers the same users, ours and the baselines that it must beat.

Dims: B batch · L items in a history · V catalogue size · S width of the text vectors · n history items of a batch.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from tqdm.auto import tqdm

from . import metrics
from .catalog import Catalog
from .domain import Cases, Domain, Sequences, Split, Stage
from .domain import Protocol as SplitProtocol
from .modeling_sasrec import SASRecModel
from .semantic import TextEncoder, centred

TOP = 10
"""Length of the lists behind coverage and diversity."""
CELLS = 2**24
"""Scores that are held at once (64 MB of float32)."""
RECENCY, SHARPNESS = 0.3, 8.0
"""λ and τ of the text baselines, chosen on lastfm_artists and fixed."""
BINS = ((1, 5), (6, 20), (21, 100), (101, None))
"""Popularity groups: training count of the target, both ends included."""


@runtime_checkable
class Ranker(Protocol):
    """Scores the whole catalogue for a batch of histories."""

    def scores(self, histories: Sequence[np.ndarray]) -> torch.Tensor:
        """Returns a score per item, higher is better. Shape: B histories of rows, oldest first -> (B, V)."""
        ...


@runtime_checkable
class Rankable(Protocol):
    """Anything that makes a ranker of itself for a domain: a model with its processor, a pipeline."""

    def ranker(self, domain: Domain, split: Split | None, zero_shot: bool) -> Ranker:
        """Returns the ranker; in zero-shot runs `split` is None and the domain holds no interactions."""
        ...


def evaluate(
    model: Ranker | Rankable | None,
    domain: Domain,
    *,
    protocol: SplitProtocol = "leave-one-out",
    stage: Stage = "test",
    exclude_seen: bool = True,
    zero_shot: bool = False,
    baselines: bool = False,
    sasrec: str | Path | Ranker | None = None,
    max_users: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    bootstrap: int = 1000,
    split: Split | None = None,
    vectors: np.ndarray | None = None,
    command: str = "",
) -> dict[str, object]:
    """Returns the object that `genrec evaluate --json` prints: metrics, intervals, groups, and the baselines on the same users.

    Args:
        model: a ranker, something with a method `ranker`, or None for the baselines alone.
        domain: the catalogue and its interactions.
        protocol: how the interactions are split.
        stage: whose targets are asked for, "validation" or "test".
        exclude_seen: rank only items that the user has not had; targets that the user has had are dropped then.
        zero_shot: nothing of the interactions but each user's own history reaches the model.
        baselines: add the rows that need no training.
        sasrec: a saved `SASRecModel` of this catalogue, or a ranker; adds the row "sasrec".
        max_users: a seeded sample of the users, the same for every row.
        seed: of the sample and of the intervals.
        batch_size: histories that are scored at once, fewer when the catalogue is large.
        bootstrap: resamples per interval.
        split: the split, when it is at hand.
        vectors: (V, S) unit MiniLM vectors of `domain.catalog.lines`; computed (and cached) when not given.
        command: what was typed, kept in the result.

    Raises:
        ValueError: when nobody has a target, the model has no scores, or SASRec belongs to another catalogue.
    """
    start = time.perf_counter()
    split = split or domain.split(protocol)
    cases = split.cases(stage).sample(max_users, seed)
    if not len(cases):
        raise ValueError(f"No user has a {stage} target under {protocol}: leave-one-out needs users with at least 3 interactions.")
    asked, repeat_targets = _ask(cases, exclude_seen)
    counts = split.popularity(len(domain.catalog))
    trained = SASRecRanker.from_folder(sasrec, domain.catalog) if isinstance(sasrec, str | Path) else sasrec
    rankers: dict[str, Ranker] = {}
    if model is not None:
        rankers["model"] = _ranker_of(model, domain, split, zero_shot)
    if baselines or model is None:
        vectors = _vectors(domain.catalog) if vectors is None else vectors
        rankers |= baseline_rankers(split, vectors, repeat_last=not exclude_seen)
    if trained is not None:
        rankers["sasrec"] = trained
    size, several = len(domain.catalog), bool((asked.targets.lengths > 1).any())
    answers = rank(rankers, asked, size, exclude_seen, batch_size)
    if vectors is None:
        vectors = _vectors(domain.catalog, np.unique(np.concatenate([answer.lists.ravel() for answer in answers.values()])))
    tables = {name: _summary(answer, vectors, several) for name, answer in answers.items()}
    own = answers.get("model")
    groups = {} if own is None else {name: own.only(mask) for name, mask in _groups(own, counts).items()}
    return {
        "protocol": protocol,
        "zero_shot": zero_shot,
        "exclude_seen": exclude_seen,
        "repeat_targets": repeat_targets,
        "users": len(asked),
        "items": size,
        "seed": seed,
        "metrics": tables.pop("model", {}),
        "ci": {} if own is None else _intervals(metrics.per_user(own.ranks), bootstrap, seed),
        "baselines": tables,
        "groups": {name: {**_summary(group, vectors, several), "users": len(group.ranks)} for name, group in groups.items()},
        "seconds": round(time.perf_counter() - start, 2),
        "model": _name(model),
        "fingerprint": domain.catalog.fingerprint,
        "command": command,
    }


@dataclass(frozen=True)
class Answer:
    """What a ranker said: per user the targets, best first, their ranks, and the list of the first items."""

    targets: list[np.ndarray]
    ranks: list[np.ndarray]
    lists: np.ndarray

    def only(self, mask: np.ndarray) -> "Answer":
        """Returns the targets of the items in `mask` with the users that have one; ranks stay among all items. Shape: mask (V,)."""
        kept = [mask[own] for own in self.targets]
        rows = [row for row, keep in enumerate(kept) if keep.any()]
        return Answer([self.targets[r][kept[r]] for r in rows], [self.ranks[r][kept[r]] for r in rows], self.lists[rows])


@torch.no_grad()
def rank(rankers: Mapping[str, Ranker], cases: Cases, size: int, exclude_seen: bool = True, batch_size: int = 256) -> dict[str, Answer]:
    """Asks every ranker about every user; users with histories of like length share a batch.

    Items without a score (NaN or -inf) come last, tied, and never in a list.

    Args:
        rankers: name -> ranker.
        cases: histories and distinct targets; with `exclude_seen` no target stands in its history.
        size: items in the catalogue.
        exclude_seen: items of a history are not ranked.
        batch_size: histories at once, at the most.
    """
    users = len(cases)
    order = np.argsort(cases.histories.lengths, kind="stable")
    step = max(1, min(batch_size, CELLS // max(1, size)))
    best, ranks = ({name: [np.zeros(0, np.int64)] * users for name in rankers} for _ in range(2))
    lists = {name: np.full((users, TOP), -1, np.int64) for name in rankers}
    for start in tqdm(range(0, users, step), "evaluate", unit="batch", disable=None):
        batch = order[start : start + step]
        histories = [cases.histories[user] for user in batch]
        targets = [cases.targets[user] for user in batch]
        seen = [np.unique(history) for history in histories] if exclude_seen else None
        for name, ranker in rankers.items():
            given = ranker.scores(histories)
            if tuple(given.shape) != (len(batch), size):
                raise ValueError(
                    f"The ranker {name!r} gave scores of shape {tuple(given.shape)}, not {len(batch)} histories x {size} items."
                )
            scores = torch.nan_to_num(given.detach().float().cpu(), nan=-math.inf, posinf=math.inf, neginf=-math.inf)
            for row, (user, own) in enumerate(zip(batch, targets, strict=True)):
                best[name][user] = own[torch.argsort(scores[row, own], descending=True, stable=True).numpy()]
            for user, places in zip(batch, metrics.target_ranks(scores, targets, seen), strict=True):
                ranks[name][user] = places
            lists[name][batch, : min(TOP, size)] = _top(scores, seen)
    return {name: Answer(best[name], ranks[name], lists[name]) for name in rankers}


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

    @torch.inference_mode()
    def scores(self, histories: Sequence[np.ndarray]) -> torch.Tensor:
        """Shape: B histories -> (B, V); histories of like length run together."""
        scores = torch.zeros(len(histories), self.model.config.num_items)
        lengths = np.array([len(history) for history in histories])
        order = np.argsort(lengths, kind="stable")[int((lengths == 0).sum()) :]
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            read = [histories[row][-self.model.config.max_length :] for row in rows]
            ids = torch.zeros(len(rows), max(map(len, read)), dtype=torch.long)
            for place, history in zip(ids, read, strict=True):
                place[-len(history) :] = torch.as_tensor(np.asarray(history)) + 1
            states = self.model.encode(ids.to(self.model.device))[:, -1]
            scores[torch.as_tensor(rows)] = self.model.logits(states).float().cpu()
        return scores


def _ago(history: np.ndarray) -> torch.Tensor:
    return torch.arange(len(history) - 1, -1, -1)


def _fade(history: np.ndarray) -> torch.Tensor:
    return torch.exp(-RECENCY * _ago(history))


def _ask(cases: Cases, exclude_seen: bool) -> tuple[Cases, int]:
    """Keeps distinct targets, not seen before when seen items are excluded; counts the users who had seen all of theirs."""
    kept, targets, repeats = [], [], 0
    for row in range(len(cases)):
        own = cases.targets[row]
        own = own[np.sort(np.unique(own, return_index=True)[1])]
        fresh = own[~np.isin(own, cases.histories[row])]
        repeats += not len(fresh)
        own = fresh if exclude_seen else own
        if len(own):
            kept.append(row)
            targets.append(own)
    rows = np.array(kept, np.int64)
    return Cases(cases.users[rows], Sequences.of([cases.histories[row] for row in kept]), Sequences.of(targets)), repeats


def _ranker_of(model: Ranker | Rankable, domain: Domain, split: Split, zero_shot: bool) -> Ranker:
    if isinstance(model, Rankable):
        bare = Domain(domain.catalog, [], Sequences.of([]))
        return model.ranker(bare, None, True) if zero_shot else model.ranker(domain, split, False)
    if isinstance(model, Ranker):
        return model
    raise ValueError(f"A {type(model).__name__} can't be evaluated: it has neither scores(histories) nor ranker(domain, split, zero_shot).")


def _groups(answer: Answer, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Masks over the items: warm, cold, and bins of the training count; groups without a target are left out."""
    masks = {"warm": counts > 0, "cold": counts == 0}
    for low, high in BINS:
        masks[f"train count {low}-{high}" if high else f"train count {low}+"] = (counts >= low) & (counts <= (high or np.inf))
    asked = np.unique(Sequences.of(answer.targets).items)
    return {name: mask for name, mask in masks.items() if mask[asked].any()}


def _top(scores: torch.Tensor, seen: Sequence[np.ndarray] | None) -> np.ndarray:
    """The first items of each list, -1 where no scored item is left; changes `scores`. Shape: (B, V) -> (B, min(TOP, V))."""
    for row, own in enumerate(seen or ()):
        scores[row, torch.as_tensor(own)] = -math.inf
    values, rows = scores.topk(min(TOP, scores.shape[1]), dim=1)
    return rows.masked_fill(values == -math.inf, -1).numpy()


def _diversity(lists: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Intra-list diversity per user, NaN where a list has no pair. Shape: lists (users, TOP), vectors (V, S) -> (users,)."""
    out, lengths = np.full(len(lists), np.nan), (lists >= 0).sum(1)
    for length in np.unique(lengths[lengths > 1]):
        out[lengths == length] = metrics.diversity(lists[lengths == length, :length], vectors)
    return out


def _vectors(catalog: Catalog, rows: np.ndarray | None = None) -> np.ndarray:
    """MiniLM vectors of the lines, zeros outside `rows` when only those are needed. Shape: -> (V, S)."""
    rows = np.arange(len(catalog)) if rows is None else rows[rows >= 0]
    with tqdm(desc="encode the catalogue", unit=" lines", disable=None) as bar:
        found = TextEncoder().encode([catalog.lines[row] for row in rows], lambda done, _: bar.update(done - bar.n) and None)
    vectors = np.zeros((len(catalog), found.shape[1]), np.float32)
    vectors[rows] = found
    return vectors


def _summary(answer: Answer, vectors: np.ndarray, several: bool) -> dict[str, float | None]:
    """Means over the users; hits are called Recall when users have `several` targets, even if each has one in this group."""
    values = metrics.per_user(answer.ranks)
    means = {name.replace("HR@", "Recall@") if several else name: float(own.mean()) if len(own) else None for name, own in values.items()}
    spread = _diversity(answer.lists, vectors)
    known = spread[~np.isnan(spread)]
    means[f"coverage@{TOP}"] = metrics.coverage(answer.lists, len(vectors)) if len(answer.lists) else None
    return {**means, f"diversity@{TOP}": float(known.mean()) if len(known) else None}


def _intervals(values: Mapping[str, np.ndarray], samples: int, seed: int) -> dict[str, list[float | None]]:
    pairs = {name: metrics.bootstrap_interval(own, samples, seed) for name, own in values.items()}
    return {name: [None if math.isnan(bound) else bound for bound in pair] for name, pair in pairs.items()}


def _name(model: object) -> str | None:
    if model is None:
        return None
    inner = getattr(model, "model", model)
    return str(getattr(inner, "name_or_path", "") or getattr(model, "name", "") or type(model).__name__)
