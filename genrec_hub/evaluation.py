"""Full-ranking evaluation: one table in which every row answers the same users, ours and the baselines that it must beat.

Dims: B batch · L items in a history · V catalogue size · S width of the text vectors · n history items of a batch.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from tqdm.auto import tqdm

from . import metrics, processes
from .baselines import CELLS, Ranker, SASRecRanker, baseline_rankers
from .catalog import Catalog
from .checkpoint import refuse_other_protocol
from .domain import Cases, Domain, Sequences, Split, Stage
from .domain import Protocol as SplitProtocol
from .semantic import TextEncoder

TOP = 10
"""Length of the lists behind coverage and diversity."""
BINS = ((1, 5), (6, 20), (21, 100), (101, None))
"""Popularity groups: training count of the target, both ends included."""


@runtime_checkable
class Rankable(Protocol):
    """Anything that makes a ranker of itself for a domain: a model with its processor, a pipeline."""

    def ranker(self, domain: Domain, split: Split | None, zero_shot: bool, exclude_seen: bool) -> Ranker:
        """Returns the ranker; in zero-shot runs `split` is None and the domain holds no interactions.

        With `exclude_seen` a model that searches need not find what a history holds.
        """
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
        ValueError: when nobody has a target, the model has no scores, SASRec belongs to another catalogue, or one of them was trained on
            this one under another protocol.
    """
    start = time.perf_counter()
    folders = [] if zero_shot else [getattr(getattr(model, "model", model), "checkpoint_folder", None)]
    for folder in [*folders, sasrec if isinstance(sasrec, str | Path) else None]:
        refuse_other_protocol(folder, domain.catalog.fingerprint, protocol)
    split = split or domain.split(protocol)
    asked, repeat_targets = split.cases(stage).sample(max_users, seed).asked(exclude_seen)
    if not len(asked) and not repeat_targets:
        why = ": it needs users with at least 3 interactions" if protocol == "leave-one-out" else ""
        raise ValueError(f"No user has a {stage} target under {protocol}{why}.")
    trained = SASRecRanker.from_folder(sasrec, domain.catalog) if isinstance(sasrec, str | Path) else sasrec
    rankers: dict[str, Ranker] = {}
    if model is not None:
        rankers["model"] = ranker_of(model, domain, split, zero_shot, exclude_seen)
    if baselines or model is None:
        vectors = text_vectors(domain.catalog) if vectors is None else vectors
        rankers |= baseline_rankers(split, vectors, repeat_last=not exclude_seen)
    if trained is not None:
        rankers["sasrec"] = trained
    counts = split.popularity(len(domain.catalog))
    rooms = {"warm": counts > 0, "cold": counts == 0}
    asked_cold = rooms["cold"][np.unique(asked.targets.items)].any()
    answers = rank(rankers, asked, len(domain.catalog), exclude_seen, batch_size, rooms if asked_cold else {})
    if vectors is None:
        named = [part.lists.ravel() for answer in answers.values() for part in (answer, *answer.among.values())]
        vectors = text_vectors(domain.catalog, np.unique(np.concatenate(named)))
    return {
        "protocol": protocol,
        **({} if stage == "test" else {"stage": stage}),
        "zero_shot": zero_shot,
        "exclude_seen": exclude_seen,
        "repeat_targets": repeat_targets,
        "users": len(asked),
        "items": len(domain.catalog),
        "seed": seed,
        **report(answers, counts, vectors, bootstrap, seed),
        "seconds": round(time.perf_counter() - start, 2),
        "model": _name(model),
        "fingerprint": domain.catalog.fingerprint,
        "command": command,
    }


@dataclass(frozen=True)
class Answer:
    """What a ranker said: per user the targets, best first, their ranks, and the list of the first items.

    `among` holds what it says of the users with a target in a room of the catalogue when nothing outside that room can be recommended.
    """

    targets: list[np.ndarray]
    ranks: list[np.ndarray]
    lists: np.ndarray
    among: Mapping[str, "Answer"] = field(default_factory=dict)

    def only(self, mask: np.ndarray) -> "Answer":
        """Returns the targets of the items in `mask` with the users that have one; ranks stay among all items. Shape: mask (V,)."""
        kept = [mask[own] for own in self.targets]
        rows = [row for row, keep in enumerate(kept) if keep.any()]
        return Answer([self.targets[r][kept[r]] for r in rows], [self.ranks[r][kept[r]] for r in rows], self.lists[rows])


@torch.no_grad()
def rank(
    rankers: Mapping[str, Ranker],
    cases: Cases,
    size: int,
    exclude_seen: bool = True,
    batch_size: int = 256,
    rooms: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> dict[str, Answer]:
    """Asks every ranker about every user; users with histories of like length share a batch.

    Items without a score (NaN or -inf) come last, tied, and never in a list.

    Args:
        rankers: name -> ranker.
        cases: histories and distinct targets; with `exclude_seen` no target stands in its history.
        size: items in the catalogue.
        exclude_seen: items of a history are not ranked.
        batch_size: histories at once, at the most.
        rooms: name -> (V,) true for the items of a room; each is also ranked by itself, with the targets that lie in it. Source: SETRec's
            warm and cold rows, in which the other items' scores are set to -1e16.

    With several processes each answers its share, and all have the whole answer.
    """
    users = len(cases)
    order = np.argsort(cases.histories.lengths, kind="stable")
    step = max(1, min(batch_size, CELLS // max(1, size)))
    sheets = {name: {room: _Sheet(users) for room in ("", *rooms)} for name in rankers}
    starts = range(0, users, step)
    for start in tqdm([starts[place] for place in processes.share(len(starts))], "evaluate", unit="batch", disable=None):
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
            for room, inside in rooms.items():
                looked = _within(ranker, inside, histories, targets, scores)
                shut = looked.masked_fill(torch.from_numpy(~inside), -math.inf)
                sheets[name][room].fill(batch, shut, [own[inside[own]] for own in targets], seen)
            sheets[name][""].fill(batch, scores, targets, seen)
    return {name: own.pop("").answer({room: sheet.answer() for room, sheet in own.items()}) for name, own in sheets.items()}


def _within(
    ranker: Ranker, inside: np.ndarray, histories: Sequence[np.ndarray], targets: Sequence[np.ndarray], scores: torch.Tensor
) -> torch.Tensor:
    """The scores of a room's items: a ranker that searches looks again, in the room alone, for the users with a target there.

    Shape: inside (V,), B histories, scores (B, V) -> (B, V).
    """
    asked = [row for row, own in enumerate(targets) if inside[own].any()]
    if not hasattr(ranker, "within") or not asked:
        return scores
    there = ranker.within(inside)
    if there is ranker:
        return scores
    found = torch.full_like(scores, -math.inf)
    found[asked] = torch.nan_to_num(there.scores([histories[row] for row in asked]).float().cpu(), nan=-math.inf, neginf=-math.inf)
    return found


class _Sheet:
    """Collects an `Answer` batch by batch; users without a target are left out of it."""

    def __init__(self, users: int) -> None:
        self.best, self.ranks = ([np.zeros(0, np.int64)] * users for _ in range(2))
        self.lists = np.full((users, TOP), -1, np.int64)
        self.filled: list[int] = []

    def fill(self, batch: np.ndarray, scores: torch.Tensor, targets: Sequence[np.ndarray], seen: Sequence[np.ndarray] | None) -> None:
        """Takes the answers to a batch of users in; changes `scores`. Shape: batch (B,), scores (B, V)."""
        self.filled += batch.tolist()
        for row, (user, own) in enumerate(zip(batch, targets, strict=True)):
            self.best[user] = own[torch.argsort(scores[row, own], descending=True, stable=True).numpy()]
        for user, places in zip(batch, metrics.target_ranks(scores, targets, seen), strict=True):
            self.ranks[user] = places
        self.lists[batch, : min(TOP, scores.shape[1])] = _top(scores, seen)

    def answer(self, among: Mapping[str, Answer] = MappingProxyType({})) -> Answer:
        """What was collected, by all processes."""
        if processes.count() > 1:
            own = [(user, self.best[user].tolist(), self.ranks[user].tolist(), self.lists[user].tolist()) for user in self.filled]
            for user, best, ranks, shown in processes.gathered(own):
                self.best[user], self.ranks[user], self.lists[user] = np.array(best, np.int64), np.array(ranks, np.int64), shown
        rows = [row for row, own in enumerate(self.ranks) if len(own)]
        return Answer([self.best[row] for row in rows], [self.ranks[row] for row in rows], self.lists[rows], among)


def ranker_of(model: Ranker | Rankable, domain: Domain, split: Split, zero_shot: bool, exclude_seen: bool) -> Ranker:
    """What scores a domain: the model itself, or what it makes of itself; zero-shot it is shown nothing but the catalogue."""
    if isinstance(model, Rankable):
        bare = Domain(domain.catalog, [], Sequences.of([]))
        return model.ranker(bare, None, True, exclude_seen) if zero_shot else model.ranker(domain, split, False, exclude_seen)
    if isinstance(model, Ranker):
        return model
    raise ValueError(f"A {type(model).__name__} can't be evaluated: it has neither scores(histories) nor ranker(domain, split, zero_shot).")


def report(
    answers: Mapping[str, Answer], counts: np.ndarray, vectors: np.ndarray, bootstrap: int = 1000, seed: int = 0
) -> dict[str, object]:
    """Returns what a table shows: `metrics` and `ci` of the row "model", `baselines` of the others, `groups` of targets with both.

    Args:
        answers: row -> answers of the same users.
        counts: (V,) how often each item occurs in training.
        vectors: (V, S) unit vectors for the diversity of the lists.
        bootstrap: resamples per interval.
        seed: of the intervals.
    """
    several = any(len(own) > 1 for answer in answers.values() for own in answer.targets)
    tables = {name: _summary(answer, vectors, several) for name, answer in answers.items()}
    groups: dict[str, dict[str, Any]] = {}
    for name, answer in answers.items():
        for group, part in _parts(answer, counts).items():
            row = groups.setdefault(group, {"users": len(part.ranks), "baselines": {}})
            summary = _summary(part, vectors, several)
            row.update(summary if name == "model" else {"baselines": {**row["baselines"], name: summary}})
    own = answers.get("model")
    return {
        "metrics": tables.pop("model", {}),
        "ci": {} if own is None else _intervals(metrics.per_user(own.ranks), bootstrap, seed),
        "baselines": tables,
        "groups": groups,
    }


def _parts(answer: Answer, counts: np.ndarray) -> dict[str, Answer]:
    """The answer by groups of its targets: warm, cold, bins of the training count, ranked among all items; then each room by itself."""
    masks = {"warm": counts > 0, "cold": counts == 0}
    for low, high in BINS:
        masks[f"train count {low}-{high}" if high else f"train count {low}+"] = (counts >= low) & (counts <= (high or np.inf))
    asked = np.unique(Sequences.of(answer.targets).items)
    parts = {name: answer.only(mask) for name, mask in masks.items() if mask[asked].any()}
    return parts | {f"{room} among {room}": part for room, part in answer.among.items() if part.ranks}


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


def text_vectors(catalog: Catalog, rows: np.ndarray | None = None) -> np.ndarray:
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
