"""What a step of training reads: sequences cut to length, drawn in buckets of like length, padded; which candidates are a user's own.

Dims: B batch · L items of a sequence · C candidates.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .domain import Sequences
from .set_attention import pad_left


class TrainingSequences(Dataset):  # type: ignore[type-arg]
    """The sequences that have something to learn, cut to their last `most` items. An entry is an array of rows."""

    def __init__(self, sequences: Sequences, most: int, least: int = 2) -> None:
        self.sequences, self.most = sequences, most
        self.users = np.flatnonzero(sequences.lengths >= least)

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, row: int) -> np.ndarray:
        if row < 0:  # an empty place of the sampler
            return np.empty(0, np.int64)
        return self.sequences[self.users[row]][-self.most :]

    @property
    def lengths(self) -> np.ndarray:
        """Length of every entry."""
        return np.minimum(self.sequences.lengths[self.users], self.most)


class LengthBucketSampler(Sampler[int]):
    """Shuffles so that a batch holds sequences of similar length and of one domain; a function of seed and epoch alone.

    Of a single domain every sequence comes once an epoch. Of several, each is cut to whole batches, and to `quota` sequences.
    Processes take their batches in turn, so theirs are filled up with empty places (-1), and no sequence is seen twice.

    Args:
        lengths: length of every entry.
        batch: entries of a (global) batch.
        seed: of the order.
        domains: domain of every entry.
        quota: sequences of a domain in one epoch, at the most: another sample every epoch.
        window: batches that are sorted together.
        filled: whether the last batch is filled up with -1.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch: int,
        seed: int,
        domains: np.ndarray | None = None,
        quota: int | None = None,
        window: int = 50,
        filled: bool = False,
    ) -> None:
        self.filled = filled
        self.lengths, self.batch, self.seed, self.window, self.epoch = lengths, batch, seed, window, 0
        self.domains = np.zeros(len(lengths), np.int64) if domains is None else domains
        self.quota = len(lengths) if quota is None else quota

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at the start of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        counts = np.minimum(np.bincount(self.domains), self.quota)
        entries = int(counts.sum() if len(counts) == 1 else (counts // self.batch * self.batch).sum())
        return -(-entries // self.batch) * self.batch if self.filled else entries

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        single = int(self.domains.max(initial=0)) == 0
        whole, rest = [], []
        for domain in np.unique(self.domains):
            order = rng.permutation(np.flatnonzero(self.domains == domain))[: self.quota]
            span = self.batch * self.window
            for start in range(0, len(order), span):
                part = order[start : start + span]
                part = part if single else part[: len(part) // self.batch * self.batch]
                part = part[np.argsort(self.lengths[part], kind="stable")]
                batches = [part[at : at + self.batch] for at in range(0, len(part), self.batch)]
                whole += [batch for batch in batches if len(batch) == self.batch]
                rest += [batch for batch in batches if len(batch) < self.batch]
        for place in rng.permutation(len(whole)):
            yield from whole[place].tolist()
        for batch in rest:
            yield from batch.tolist()
            yield from [-1] * (self.batch - len(batch)) * self.filled


class EpochOrder(TrainerCallback):
    """Tells the sampler its epoch: where several processes resume within one, accelerate wraps it out of the Trainer's reach."""

    def __init__(self, sampler: LengthBucketSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The state holds the epochs that are done, with the part of the current one."""
        self.sampler.set_epoch(int(state.epoch or 0))


def collate(entries: list[np.ndarray], opening: bool = True) -> dict[str, torch.Tensor]:
    """Pads sequences on the left; the label of column c is the item in it, to be told from the columns before it.

    The Trainer counts these labels over all accumulated batches and processes, so an item that is no target has none.

    Args:
        entries: the sequences.
        opening: False leaves out the first item of each.

    Shape: B sequences -> items (B, L) with -1 for padding, labels (B, L) with -100.
    """
    items = pad_left(entries)
    known = (items >= 0).cumsum(1) > (0 if opening else 1)
    return {"items": items, "labels": items.masked_fill(~known, -100)}


def own_candidates(items: torch.Tensor, labels: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Marks each user's own items among the candidates; as negatives they would teach to push away what resembles the history.

    Shape: items (B, L) with -1 for padding, candidates (C,) sorted -> (B, C).
    """
    place = torch.searchsorted(candidates, items.contiguous()).clamp(max=len(candidates) - 1)
    user, column = (candidates[place] == items).nonzero(as_tuple=True)
    own = torch.zeros(len(items), len(candidates), dtype=torch.bool, device=items.device)
    own[user, place[user, column]] = True
    return own
