"""Domain: a catalogue and who took what in which order; checked on the way in, split without leaks on the way out."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .catalog import Catalog
from .tables import clean_id, read_table

logger = logging.getLogger(__name__)

Protocol = Literal["leave-one-out", "global-time", "given"]
Stage = Literal["validation", "test"]
_SPLITS = {"training": 0, "train": 0, "validation": 1, "valid": 1, "val": 1, "test": 2, "testing": 2}
MAX_INTERACTION_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Sequences:
    """Many item sequences in one array: sequence u is `items[offsets[u] : offsets[u + 1]]`, oldest first."""

    items: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, user: int) -> np.ndarray:
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Number of items per sequence."""
        return np.diff(self.offsets)

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray | Sequence[int]]) -> "Sequences":
        """Packs a list of sequences."""
        lengths = np.fromiter((len(s) for s in sequences), np.int64, len(sequences))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        items = np.concatenate([np.asarray(s, np.int64) for s in sequences]) if len(sequences) else np.zeros(0, np.int64)
        return cls(items.astype(np.int64), offsets)


@dataclass(frozen=True)
class Cases:
    """What is asked in an evaluation: of each user the history that may be seen and the targets that follow it.

    `users` are rows of the domain; `histories` and `targets` run parallel to it.
    """

    users: np.ndarray
    histories: Sequences
    targets: Sequences

    def __len__(self) -> int:
        return len(self.users)

    def select(self, rows: np.ndarray) -> "Cases":
        """Returns the cases at the given rows."""
        return Cases(
            self.users[rows],
            Sequences.of([self.histories[r] for r in rows]),
            Sequences.of([self.targets[r] for r in rows]),
        )

    def sample(self, most: int | None, seed: int) -> "Cases":
        """Returns a seeded sample of at most `most` cases, in their order."""
        if most is None or most >= len(self):
            return self
        rows = np.sort(np.random.default_rng(seed).choice(len(self), most, replace=False))
        return self.select(rows)

    def asked(self, exclude_seen: bool = True) -> tuple["Cases", int]:
        """Returns the cases with distinct targets, and how many users have had all of theirs before.

        Args:
            exclude_seen: leave out targets that stand in the history, and the users who have no others.
        """
        kept, targets, repeats = [], [], 0
        for row in range(len(self)):
            own = self.targets[row]
            own = own[np.sort(np.unique(own, return_index=True)[1])]
            fresh = own[~np.isin(own, self.histories[row])]
            repeats += not len(fresh)
            own = fresh if exclude_seen else own
            if len(own):
                kept.append(row)
                targets.append(own)
        rows = np.array(kept, np.int64)
        return Cases(np.asarray(self.users)[rows], Sequences.of([self.histories[row] for row in kept]), Sequences.of(targets)), repeats


@dataclass(frozen=True)
class Split:
    """Training sequences, and cases for validation and test; nothing in `training` stands at or after a target."""

    training: Sequences
    validation: Cases
    test: Cases

    def cases(self, stage: Stage) -> Cases:
        """The cases of a stage."""
        return self.validation if stage == "validation" else self.test

    def popularity(self, size: int) -> np.ndarray:
        """How often each of `size` items occurs in training."""
        return np.bincount(self.training.items, minlength=size)


class Domain:
    """A catalogue with the interactions of its users.

    Args:
        catalog: the items.
        users: the user ids.
        sequences: rows of the catalogue per user, oldest first.
        times: Unix seconds per interaction, parallel to `sequences.items`; None when only the order is known.
        given: 0 training, 1 validation, 2 test per interaction; None when the source has no official split.
            Then `given_fault` says what is wrong with its column `split`, if it has one.
        name: of the data, for reports; that of the folder when it is read from files.
    """

    def __init__(
        self,
        catalog: Catalog,
        users: Sequence[str],
        sequences: Sequences,
        times: np.ndarray | None = None,
        given: np.ndarray | None = None,
        name: str = "",
    ) -> None:
        self.catalog, self.users, self.sequences, self.times, self.given = catalog, list(users), sequences, times, given
        self.name, self.given_fault = name, ""

    def __len__(self) -> int:
        return len(self.sequences)

    def __repr__(self) -> str:
        return f"Domain({len(self)} users, {len(self.catalog)} items, {len(self.sequences.items)} interactions)"

    @classmethod
    def from_folder(cls, folder: str | Path, check_order: bool = True) -> "Domain":
        """Reads `items.*` and `interactions.*` from a folder."""
        return cls.from_files(*files_of(folder), check_order)

    @classmethod
    def from_files(cls, items: str | Path, interactions: str | Path, check_order: bool = True) -> "Domain":
        """Reads a catalogue file and an interactions file (`user_id, item_id` and `timestamp` or `position`).

        Args:
            items: `items.{csv,jsonl,parquet}`.
            interactions: `interactions.{csv,jsonl,parquet}`.
            check_order: refuse histories that are sorted by item id instead of by time.

        Raises:
            FileNotFoundError: when a file is not there.
            ValueError: with one sentence on what is wrong, where, and how to mend it.
        """
        catalog = Catalog.from_file(items, max_bytes=MAX_INTERACTION_BYTES)
        table = read_table(interactions, MAX_INTERACTION_BYTES)
        domain = cls.from_table(catalog, table, Path(interactions).name, check_order)
        domain.name = Path(items).resolve().parent.name
        return domain

    @classmethod
    def from_table(cls, catalog: Catalog, table: pa.Table, where: str = "the table", check_order: bool = True) -> "Domain":
        """Makes a domain from an Arrow table of interactions; see `from_files`."""
        names = table.column_names
        for name in ("user_id", "item_id"):
            if name not in names:
                raise ValueError(f"{where} has no column {name} (it has: {', '.join(names[:12])}): rename the column of the {name[:4]}s.")
        clock = "timestamp" if "timestamp" in names else "position"
        if clock not in names:
            raise ValueError(
                f"{where} has neither timestamp nor position (it has: {', '.join(names[:12])}): add the Unix time of each interaction, "
                "or its place in the user's history, else nobody can tell what came first."
            )
        if table.num_rows == 0:
            raise ValueError(f"{where} has no rows.")
        rows = _item_rows(catalog, table.column("item_id"), where)
        codes, names_of_users = _user_codes(table.column("user_id"), where)
        time = _numbers(table, clock, where)
        keys = [time, codes]
        if clock == "timestamp" and "position" in names:
            keys = [_numbers(table, "position", where), time, codes]
        order = np.lexsort(keys)
        moved = int((order != np.arange(len(order))).sum())
        if moved and np.any(np.diff(np.argsort(order)[np.argsort(codes, kind="stable")]) < 0):
            logger.warning("%s is not in time order within its users: sorted by user and %s.", where, clock)
        codes, rows, time = codes[order], rows[order], time[order]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(names_of_users)))]).astype(np.int64)
        if clock == "position":
            again = np.flatnonzero((np.diff(time) == 0) & (np.diff(codes) == 0))
            if len(again):
                user = names_of_users[codes[again[0]]]
                raise ValueError(
                    f"{where}: user {user!r} has two interactions at position {time[again[0]]:g}: number each history 0, 1, 2, ..."
                )
        sequences = Sequences(rows, offsets)
        if check_order:
            refuse_key_sorted(sequences, catalog.ids, where)
        domain = cls(catalog, names_of_users, sequences, time if clock == "timestamp" else None)
        if "split" in names:
            domain.given, domain.given_fault = _given(table, where, order)
        return domain

    def split(self, protocol: Protocol = "leave-one-out") -> Split:
        """Splits by a protocol; see `leave_one_out`, `global_time` and `given_split`."""
        if protocol == "leave-one-out":
            return self.leave_one_out()
        if protocol == "global-time":
            return self.global_time()
        if protocol == "given":
            return self.given_split()
        raise ValueError(f"Unknown protocol {protocol!r}: it is one of leave-one-out, global-time and given.")

    def leave_one_out(self) -> Split:
        """The last item of a user is the test target, the one before it the validation target (at least 3 items; else training only)."""
        sequences = [self.sequences[u] for u in range(len(self))]
        asked = np.array([u for u, s in enumerate(sequences) if len(s) >= 3], np.int64)
        training = [s[:-2] if len(s) >= 3 else s for s in sequences]
        return Split(
            Sequences.of(training),
            Cases(asked, Sequences.of([sequences[u][:-2] for u in asked]), Sequences.of([sequences[u][-2:-1] for u in asked])),
            Cases(asked, Sequences.of([sequences[u][:-1] for u in asked]), Sequences.of([sequences[u][-1:] for u in asked])),
        )

    def global_time(self, validation: float = 0.1, test: float = 0.1) -> Split:
        """Two moments cut all histories: what lies after the second is test, between the two validation, before the first training.

        Args:
            validation: share of the interactions in the middle.
            test: share of the interactions at the end.

        Raises:
            ValueError: when only positions are known: positions of different users can't be compared.
        """
        if self.times is None:
            raise ValueError(
                "The interactions have a position but no timestamp, so a global-time split would compare places in different histories: "
                "add a timestamp column or use the leave-one-out protocol."
            )
        ordered = np.sort(self.times)
        first, second = (ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (1 - validation - test, 1 - test))
        return self._split_by(np.where(self.times >= second, 2, np.where(self.times >= first, 1, 0)))

    def given_split(self) -> Split:
        """The split of the source's own `split` column.

        Raises:
            ValueError: when there is no such column, or it holds something else.
        """
        if self.given is None:
            raise ValueError(
                self.given_fault
                or "The interactions have no column split (training, validation, test): add it or use the leave-one-out protocol."
            )
        return self._split_by(self.given)

    def _split_by(self, part: np.ndarray) -> Split:
        sequences = [self.sequences[u] for u in range(len(self))]
        parts = [part[self.sequences.offsets[u] : self.sequences.offsets[u + 1]] for u in range(len(self))]
        for user, own in enumerate(parts):
            if np.any(np.diff(own) < 0):
                raise ValueError(
                    f"User {self.users[user]!r} has a training interaction after a later part of the split: "
                    "the split leaks; mend its column split."
                )

        def cases(stage: int) -> Cases:
            asked = [u for u, own in enumerate(parts) if (own < stage).any() and (own == stage).any()]
            return Cases(
                np.array(asked, np.int64),
                Sequences.of([sequences[u][parts[u] < stage] for u in asked]),
                Sequences.of([sequences[u][parts[u] == stage] for u in asked]),
            )

        return Split(Sequences.of([s[own == 0] for s, own in zip(sequences, parts, strict=True)]), cases(1), cases(2))

    def k_core(self, k: int = 5) -> "Domain":
        """Drops users and items with fewer than `k` interactions until none is left to drop."""
        users = np.repeat(np.arange(len(self)), self.sequences.lengths)
        items, keep = self.sequences.items, np.ones(len(self.sequences.items), bool)
        while True:
            few = (np.bincount(users[keep], minlength=len(self)) < k)[users]
            few |= (np.bincount(items[keep], minlength=len(self.catalog)) < k)[items]
            if not (few & keep).any():
                break
            keep &= ~few
        left_items, left_users = np.unique(items[keep]), np.unique(users[keep])
        new_row = np.full(len(self.catalog), -1, np.int64)
        new_row[left_items] = np.arange(len(left_items))
        counts = np.bincount(users[keep], minlength=len(self))[left_users]
        return Domain(
            Catalog((self.catalog[int(row)] for row in left_items), self.catalog.license),
            [self.users[u] for u in left_users],
            Sequences(new_row[items[keep]], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)),
            None if self.times is None else self.times[keep],
            None if self.given is None else self.given[keep],
            self.name,
        )

    def save(self, folder: str | Path) -> None:
        """Writes `items.parquet` and `interactions.parquet`."""
        import pyarrow.parquet as pq

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.catalog.to_file(folder / "items.parquet")
        if self.catalog.license:
            (folder / "info.json").write_text(json.dumps({"license": self.catalog.license}) + "\n", encoding="utf-8")
        lengths = self.sequences.lengths
        users = np.repeat(np.arange(len(self)), lengths)
        position = np.arange(len(users)) - np.repeat(self.sequences.offsets[:-1], lengths)
        columns = {
            "user_id": pa.array(self.users, pa.string()).take(pa.array(users)),
            "item_id": pa.array(self.catalog.ids, pa.string()).take(pa.array(self.sequences.items)),
            "position": pa.array(position, pa.int32()),
        }
        if self.times is not None:
            columns["timestamp"] = pa.array(self.times)
        if self.given is not None:
            columns["split"] = pa.array(["training", "validation", "test"], pa.string()).take(pa.array(self.given))
        pq.write_table(pa.table(columns), folder / "interactions.parquet", compression="zstd")


def files_of(folder: str | Path) -> tuple[Path, Path]:
    """The catalogue and the interactions of a domain's folder, in whatever form they are; Parquet where there are none."""
    found = []
    for stem in ("items", "interactions"):
        paths = [Path(folder) / f"{stem}{ending}" for ending in (".parquet", ".jsonl", ".csv")]
        found.append(next((path for path in paths if path.is_file()), paths[0]))
    return found[0], found[1]


def refuse_key_sorted(sequences: Sequences, ids: Sequence[str], where: str = "the interactions") -> None:
    """Refuses histories in the order of their item ids: then the last item is the largest id, not the latest (IDGenRec issue 3).

    Looks at users with at least four distinct items; by chance 1 in 24 of the shortest is sorted, so four in five is never chance.

    Raises:
        ValueError: when four of five such histories (and at least 20) are sorted by id, up or down.
    """
    numbers = all(name.isdecimal() and len(name) < 19 for name in ids)
    rank = np.argsort(np.argsort(np.array([int(name) for name in ids] if numbers else ids)))
    looked = ascending = descending = 0
    for user in range(len(sequences)):
        keys = rank[sequences[user]]
        if len(set(keys.tolist())) >= 4:
            looked += 1
            steps = np.diff(keys)
            ascending += bool((steps >= 0).all())
            descending += bool((steps <= 0).all())
    if max(ascending, descending) >= max(20, 0.8 * looked):
        raise ValueError(
            f"{where}: {max(ascending, descending):,} of {looked:,} histories are sorted by item_id, so their order "
            "is not the order in time and the last item is no fair target: order them by the time of purchase."
        )


def _encoded(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """The ids of a column as numbers, and what they stand for in order of appearance: "" where there is none."""
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    found = pc.dictionary_encode(column, null_encoding="encode").combine_chunks()
    ids = list(map(clean_id, found.dictionary.to_pylist()))
    numbers = {name: number for number, name in enumerate(dict.fromkeys(ids))}
    codes: np.ndarray = np.array([numbers[name] for name in ids], np.int64)[found.indices.to_numpy()]
    return codes, list(numbers)


def _user_codes(column: pa.ChunkedArray, where: str) -> tuple[np.ndarray, list[str]]:
    codes, names = _encoded(column)
    if "" in names:
        empty = int(np.argmax(codes == names.index("")))
        raise ValueError(f"{where}: column user_id is empty in row {empty + 1}: fill it or drop the row.")
    return codes, names


def _item_rows(catalog: Catalog, column: pa.ChunkedArray, where: str) -> np.ndarray:
    codes, names = _encoded(column)
    known = {item_id: row for row, item_id in enumerate(catalog.ids)}
    table = np.array([known.get(name, -1) for name in names], np.int64)
    rows: np.ndarray = table[codes]
    bad = np.flatnonzero(rows < 0)
    if len(bad):
        name = column[int(bad[0])].as_py()
        raise ValueError(
            f"{where} names {len(np.unique(codes[bad])):,} item_id that the catalogue does not have "
            f"(first: {name!r} in row {bad[0] + 1}): "
            "add these items to the items file or drop their interactions."
        )
    return rows


def _numbers(table: pa.Table, name: str, where: str) -> np.ndarray:
    column = table.column(name)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        column = pc.divide(pc.cast(pc.cast(pc.cast(column, pa.timestamp("us"), safe=False), pa.int64()), pa.float64()), 1e6)
    try:
        values: np.ndarray = pc.cast(column, pa.float64(), safe=False).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        need = "give Unix seconds" if name == "timestamp" else "number each history 0, 1, 2, ..."
        raise ValueError(f"{where}: column {name} should hold numbers ({str(error)[:80]}); {need}.") from None
    empty = np.flatnonzero(~np.isfinite(values))
    if len(empty):
        raise ValueError(f"{where}: column {name} is empty in row {empty[0] + 1}: fill it or drop the row.")
    return values


def _given(table: pa.Table, where: str, order: np.ndarray) -> tuple[np.ndarray | None, str]:
    """The split of the source, or what is wrong with it: that matters to those alone who ask for it."""
    names = [str(name or "").strip().lower() for name in table.column("split").to_pylist()]
    unknown = sorted({name for name in names if name not in _SPLITS})
    if not unknown:
        return np.array([_SPLITS[name] for name in names], np.int64)[order], ""
    if not any(names):
        return None, ""
    return None, f"{where}: column split holds {', '.join(map(repr, unknown[:3]))}; it should hold training, validation or test."
