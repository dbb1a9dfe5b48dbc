"""Asks a ranker for a cell's users and writes down everything that a table says of it."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from genrec_hub.baselines import Ranker
from genrec_hub.domain import Split, Stage
from genrec_hub.evaluation import Answer, rank, report
from genrec_hub.metrics import bootstrap_interval, paired_difference, per_user

ROOMS = ("warm", "cold")
"""Groups in which the items of the group alone can be recommended, as in SETRec's Table 1."""
METRICS = ("Recall@5", "Recall@10", "NDCG@5", "NDCG@10")
ANSWERS = "answers.safetensors"


class Timed:
    """A ranker whose seconds are counted; those of the rooms are not."""

    def __init__(self, ranker: Ranker) -> None:
        self.ranker, self.seconds, self.cpu = ranker, 0.0, 0.0

    def scores(self, histories: Sequence[np.ndarray]) -> torch.Tensor:
        """Shape: B histories -> (B, V)."""
        wall, cpu = time.perf_counter(), time.process_time()
        scores = self.ranker.scores(histories)
        self.seconds += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu
        return scores

    def within(self, room: np.ndarray) -> Any:
        """See `pipeline.DomainRanker.within`; a ranker that does not search stays what it is."""
        there = self.ranker.within(room) if hasattr(self.ranker, "within") else self.ranker
        return self if there is self.ranker else there


def measure(
    ranker: Ranker, split: Split, stage: Stage, vectors: np.ndarray, folder: Path, bootstrap: int = 1000, users: int | None = None
) -> dict[str, Any]:
    """Ranks the targets of a stage and keeps the answer; seen items are left out, for every row alike.

    Args:
        ranker: what is asked.
        split: of the data.
        stage: whose targets.
        vectors: (V, S) of the items' texts.
        folder: where the ranks of all users are kept, for comparisons in pairs.
        bootstrap: resamples of an interval.
        users: a seeded sample of the users.

    Returns:
        `users`, `seconds` and `cpu_seconds` of all users, `groups` -> metric -> mean and interval.
    """
    cases, repeats = split.cases(stage).sample(users, 0).asked()
    counts = split.popularity(len(vectors))
    masks = {"warm": counts > 0, "cold": counts == 0}
    asked = np.unique(cases.targets.items)
    rooms = masks if masks["cold"][asked].any() else {}
    timed = Timed(ranker)
    answer = rank({"row": timed}, cases, len(vectors), True, rooms=rooms)["row"]
    groups: dict[str, Answer] = {"all": answer, **answer.among}
    keep(folder / ANSWERS, groups)
    shown = report({"model": answer}, counts, vectors, 2, 0)
    popular = {name: own for name, own in _mapping(shown["groups"]).items() if name.startswith("train count")}
    return {
        "users": len(cases),
        "repeat_targets": repeats,
        "items": len(vectors),
        "seconds": round(timed.seconds, 3),
        "cpu_seconds": round(timed.cpu, 3),
        "groups": {name: summary(own.ranks, bootstrap) for name, own in groups.items()},
        "popularity": {name: {"users": own["users"], "NDCG@10": own["NDCG@10"]} for name, own in popular.items()},
        "lists": {name: value for name, value in _mapping(shown["metrics"]).items() if name.startswith(("coverage", "diversity"))},
    }


def _mapping(value: object) -> dict[str, Any]:
    assert isinstance(value, dict)
    return value


def values_of(ranks: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The metrics of each user; a hit rate is the recall of one target. Shape: -> (users,) each."""
    return {name.replace("HR@", "Recall@"): own for name, own in per_user(ranks).items()}


def summary(ranks: Sequence[np.ndarray], bootstrap: int) -> dict[str, Any]:
    """Users of a group, and of each metric the mean and its 95 % interval over users."""
    found: dict[str, Any] = {"users": len(ranks)}
    for name, own in values_of(ranks).items():
        found[name] = {"mean": float(own.mean()), "ci": list(bootstrap_interval(own, bootstrap))}
    return found


def keep(path: Path, groups: Mapping[str, Answer]) -> None:
    """Writes the ranks of every group's users, whole or not at all."""
    arrays: dict[str, np.ndarray] = {}
    for name, answer in groups.items():
        arrays[f"{name}.ranks"] = np.concatenate([*answer.ranks, np.zeros(0, np.int64)])
        arrays[f"{name}.lengths"] = np.array([len(own) for own in answer.ranks], np.int64)
    half = path.with_suffix(".half")
    save_file(arrays, half)
    half.replace(path)


def kept(path: Path) -> dict[str, list[np.ndarray]]:
    """Reads what `keep` wrote: group -> the ranks of each user."""
    arrays = load_file(path)
    names = [name.removesuffix(".ranks") for name in arrays if name.endswith(".ranks")]
    return {name: np.split(arrays[f"{name}.ranks"], arrays[f"{name}.lengths"].cumsum()[:-1]) for name in names}


def compare(ours: Sequence[Path], theirs: Sequence[Path], bootstrap: int = 1000) -> dict[str, Any]:
    """Two rows on the same users, in pairs: per group and metric the difference, its interval, and whether it is beyond chance.

    A row of several seeds counts with the mean of each user over its seeds. Groups that hold other users in one row than in the other (warm
    ones, where an artefact has moved the targets) are left out.

    Args:
        ours: folders of a row's runs.
        theirs: folders of the other row's runs.
        bootstrap: resamples of users.
    """
    first, second = (_mean_values(folders) for folders in (ours, theirs))
    found: dict[str, Any] = {}
    for group in first.keys() & second.keys():
        if len(first[group]["NDCG@10"]) != len(second[group]["NDCG@10"]):
            continue
        for metric in ("Recall@10", "NDCG@10"):
            pair = paired_difference(first[group][metric], second[group][metric], bootstrap)
            low, high = pair["ci"]  # type: ignore[misc]
            pair["verdict"] = "better" if low > 0 else "worse" if high < 0 else "no difference shown"  # type: ignore[assignment]
            found.setdefault(group, {})[metric] = pair
    return found


def _mean_values(folders: Sequence[Path]) -> dict[str, dict[str, np.ndarray]]:
    runs = [{group: values_of(ranks) for group, ranks in kept(folder / ANSWERS).items()} for folder in folders]
    return {group: {name: np.mean([run[group][name] for run in runs], axis=0) for name in METRICS} for group in runs[0]}


def write_json(path: Path, value: object) -> None:
    """Writes a file whole or not at all; numbers that are none become null."""
    half = path.with_suffix(".half")
    half.write_text(json.dumps(_plain(value), indent=2) + "\n")
    half.replace(path)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
