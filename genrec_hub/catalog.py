"""Item and Catalog: an ordered, fingerprinted set of items, read from and written to the files that people have."""

import csv
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as missing:  # said here because a checkpoint's own code is read where nothing was installed for it
    raise ModuleNotFoundError(
        f"Catalogues are kept in Arrow tables, which need {missing.name}: pip install pyarrow", name=missing.name
    ) from None

from .tables import MAX_BYTES, as_text, clean_id, match_columns, read_table
from .text import MAX_FIELD, MAX_TITLE, clean, departments, item_line, salient
from .titles import TitleIndex

if TYPE_CHECKING:
    try:  # noqa: SIM105 - a remote load asks for every import outside of `try`, those in this block too
        from datasets import Dataset
    except ModuleNotFoundError:
        pass

FORMAT_VERSION = 1
MAX_ROWS = 2_000_000
MAX_ID = 1_000
"""Characters of an id; a longer one is refused, for a cut one could be another's."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that can be recommended. All fields are plain text; only `item_id` must be there.

    The texts are cleaned, the id is kept as it is (`clean_id`). An empty title falls back to `text`, then to the id.
    """

    item_id: str
    title: str = ""
    brand: str = ""
    categories: str = ""
    description: str = ""
    price: str = ""
    text: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "item_id", clean_id(self.item_id))
        if not self.item_id:
            raise ValueError("An item has an empty item_id: give every item an id of its own.")
        if len(self.item_id) > MAX_ID:
            raise ValueError(
                f"An item_id has {len(self.item_id):,} characters ({self.item_id[:40]}...), the limit is {MAX_ID:,}: "
                "give the item a short key."
            )
        for field in fields(self)[1:]:
            limit = MAX_TITLE if field.name in ("title", "brand", "price") else MAX_FIELD
            object.__setattr__(self, field.name, clean(getattr(self, field.name), limit))
        if not self.title:
            object.__setattr__(self, "title", clean(self.text, MAX_TITLE) or clean(self.item_id, MAX_TITLE) or self.item_id)

    @property
    def line(self) -> str:
        """The one line of text that encoders read."""
        return item_line(asdict(self))

    @property
    def department(self) -> str:
        """The first part of the categories, "" when there are none."""
        return next(iter(departments(self.categories)), "")

    def to_dict(self) -> dict[str, str]:
        """The fields as a JSON-able dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, object]) -> "Item":
        """Makes an item from a mapping; unknown keys are ignored, lists are joined."""
        values = {}
        for field in fields(cls):
            value = row.get(field.name)
            if isinstance(value, Mapping):
                raise ValueError(f"The {field.name} of an item holds names and values ({str(value)[:40]}): flatten it to plain text.")
            values[field.name] = as_text(value) or ""
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One recommended item.

    Attributes:
        item: the item.
        score: the model's score, the sum of what the identifier's tokens contribute.
        rank: 1 is best.
        identifier: what the model generated for it, JSON-able.
        because: the history item that contributed most and its share, None when nothing did.
    """

    item: Item
    score: float
    rank: int
    identifier: dict[str, object]
    because: dict[str, object] | None = None

    def to_dict(self) -> dict[str, object]:
        """The recommendation as a JSON-able dict."""
        return {
            "item": self.item.to_dict(),
            "score": self.score,
            "rank": self.rank,
            "identifier": self.identifier,
            "because": self.because,
        }


class Catalog(Sequence[Item]):
    """An ordered set of items with unique ids.

    Order matters (row r of every feature matrix is item r), so it is part of the fingerprint.

    Args:
        items: the items, or mappings with their fields (`item_id`, `title`, ...); ids must be unique.
        license: the terms of the items' texts, as an identifier (cc-by-4.0) or in words; "" = the caller's own. No part of the fingerprint.

    Raises:
        ValueError: when an id occurs twice; the sentence names the id and both places.
    """

    def __init__(self, items: Iterable[Item | Mapping[str, object]], license: str = "") -> None:
        self._items = tuple(Item.from_dict(item) if isinstance(item, Mapping) else item for item in items)
        self.license = license
        self._rows: dict[str, int] = {}
        for row, item in enumerate(self._items):
            first = self._rows.setdefault(item.item_id, row)
            if first != row:
                raise ValueError(
                    f"The item_id {item.item_id!r} occurs twice (items {first + 1} and {row + 1}): "
                    "ids must be unique, remove one of the two."
                )

    @overload
    def __getitem__(self, row: int) -> Item: ...
    @overload
    def __getitem__(self, row: slice) -> "Catalog": ...
    def __getitem__(self, row: int | slice) -> "Item | Catalog":
        return Catalog(self._items[row], self.license) if isinstance(row, slice) else self._items[row]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __contains__(self, item: object) -> bool:
        return (item.item_id if isinstance(item, Item) else item) in self._rows

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Catalog) and self._items == other._items

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Catalog({len(self)} items, fingerprint {self.fingerprint[:12]})"

    @property
    def ids(self) -> list[str]:
        """The item ids in order."""
        return list(self._rows)

    @property
    def titles(self) -> list[str]:
        """The titles in order."""
        return [item.title for item in self._items]

    @cached_property
    def lines(self) -> list[str]:
        """The encoder's line of every item, in order."""
        return [item.line for item in self._items]

    @cached_property
    def departments(self) -> list[str]:
        """The distinct departments, alphabetically."""
        return sorted({item.department for item in self._items} - {""})

    def in_department(self, department: str | None) -> np.ndarray | None:
        """Which items are of a department, None when no department is named. Shape: -> (V,) of truth values.

        Raises:
            ValueError: when no item is; the sentence names the departments there are.
        """
        if not department:
            return None
        mask = np.array([item.department.casefold() == department.casefold() for item in self._items], bool)
        if not mask.any():
            raise ValueError(f"No item is of the department {department!r}; there are: {', '.join(self.departments[:20]) or 'none'}.")
        return mask

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids, texts and order (64 hex digits)."""
        digest = hashlib.sha256(b"genrec_hub catalog 1\n")
        for item in self._items:
            digest.update(json.dumps(list(asdict(item).values()), ensure_ascii=False).encode() + b"\n")
        return digest.hexdigest()

    @cached_property
    def labels(self) -> list[str]:
        """What labels of tokens are made of: title and narrowest category of each item, without its brand."""
        brands = [set(salient(item.brand)) for item in self._items]
        texts = [f"{item.title}. {(departments(item.categories) or [''])[-1]}" for item in self._items]
        return [" ".join(word for word in salient(text) if word not in brand) for text, brand in zip(texts, brands, strict=True)]

    @cached_property
    def label_frequency(self) -> dict[str, int]:
        """Word -> number of items whose label text holds it."""
        return Counter(word for text in self.labels for word in text.split())

    def row(self, item_id: str) -> int:
        """Returns the row of an id.

        Raises:
            KeyError: when no item has it; the sentence offers the nearest ids.
        """
        try:
            return self._rows[item_id]
        except KeyError:
            near = get_close_matches(item_id, list(self._rows)[:20_000], n=3)
            hint = f"; did you mean {', '.join(map(repr, near))}?" if near else ""
            raise KeyError(f"No item {item_id!r} in the catalogue of {len(self)} items{hint}") from None

    def find(self, item_id: str) -> int | None:
        """Returns the row of an id, None when no item has it."""
        return self._rows.get(item_id)

    def rows_by_title(self, title: str) -> list[int]:
        """Returns the rows whose title equals `title`, case and spacing aside."""
        return self._titles.get(_key(title), [])

    @cached_property
    def _titles(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for row, item in enumerate(self._items):
            rows.setdefault(_key(item.title), []).append(row)
        return rows

    @cached_property
    def _index(self) -> TitleIndex:
        return TitleIndex([(item.title, item.brand) for item in self._items])

    def search(self, query: str, k: int = 10) -> list[tuple[int, float]]:
        """Finds items by the words of their title and brand: typos, missing words and other orders are forgiven.

        The similarity is q^2 (1 + t) / 2, where q is the share of the query that the item says, t the share of the title
        that the query says; rare words weigh more, numbers and filler less (tf-idf). All words found, half of the title
        said: 0.75. A few words that many long titles share stay near 0.6.

        Args:
            query: words of a title.
            k: how many at the most.

        Returns:
            (row, similarity in 0..1) pairs, best first; empty when nothing is near.
        """
        return self._index.search(query, k) if self._items else []

    def add(self, items: Iterable[Item | Mapping[str, object]]) -> "Catalog":
        """Returns a catalogue with the items appended; the rows of the old ones stay."""
        return Catalog((*self._items, *items), self.license)

    def to_table(self) -> pa.Table:
        """The catalogue as an Arrow table of strings."""
        return pa.table({field.name: pa.array([getattr(item, field.name) for item in self._items], pa.string()) for field in fields(Item)})

    @classmethod
    def from_table(cls, table: pa.Table, where: str = "the table") -> "Catalog":
        """Makes a catalogue from an Arrow table; column names are matched loosely (id, asin, name, category...).

        Raises:
            ValueError: when the id column is missing, an id is empty or occurs twice, or a column is nested.
        """
        columns = match_columns(table.column_names)
        if "item_id" not in columns:
            raise ValueError(
                f"{where} has no column item_id (it has: {', '.join(table.column_names[:12]) or 'none'}): "
                "rename the column of the ids to item_id and the column of the names to title."
            )
        if "title" not in columns and "text" not in columns:
            raise ValueError(
                f"{where} has no column title (it has: {', '.join(table.column_names[:12])}): rename the column of the names to title."
            )
        for name in columns.values():
            kind = table.schema.field(name).type
            while pa.types.is_list(kind) or pa.types.is_large_list(kind):
                kind = kind.value_type
            if pa.types.is_struct(kind) or pa.types.is_map(kind):
                raise ValueError(f"Column {name} of {where} is nested ({kind}): flatten it to plain text.")
        if table.num_rows > MAX_ROWS:
            raise ValueError(f"{where} has {table.num_rows:,} rows; the limit is {MAX_ROWS:,}: split it.")
        data = {field: table.column(name).to_pylist() for field, name in columns.items()}
        items = []
        for row in range(table.num_rows):
            try:
                items.append(Item.from_dict({field: values[row] for field, values in data.items()}))
            except ValueError as error:
                raise ValueError(f"Row {row + 1} of {where}: {error}") from None
        try:
            return cls(items)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    @classmethod
    def from_items(cls, items: Iterable[Item | Mapping[str, object]]) -> "Catalog":
        """Makes a catalogue from items or mappings."""
        return cls(items)

    @classmethod
    def from_file(cls, path: str | Path, max_bytes: int = MAX_BYTES) -> "Catalog":
        """Reads `items.{csv,tsv,jsonl,json,parquet}`; an `info.json` beside it may name the `license`.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: with one sentence on what is wrong in it, where, and how to mend it.
        """
        catalog = cls.from_table(read_table(path, max_bytes), Path(path).name)
        catalog.license = _license_beside(Path(path))
        return catalog

    @classmethod
    def from_dataset(cls, dataset: "Dataset") -> "Catalog":
        """Makes a catalogue from a `datasets.Dataset`."""
        return cls.from_table(dataset.with_format("arrow")[:], "the dataset")

    def to_file(self, path: str | Path) -> None:
        """Writes the catalogue as CSV, JSONL or Parquet, by the ending of `path`."""
        path = Path(path)
        table = self.to_table()
        if path.suffix == ".parquet":
            pq.write_table(table, path, compression="zstd")
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()), encoding="utf-8")
        elif path.suffix == ".csv":
            with path.open("w", encoding="utf-8", newline="") as handle:
                writer = csv.DictWriter(handle, table.column_names)
                writer.writeheader()
                writer.writerows(table.to_pylist())
        else:
            raise ValueError(f"Can't write a catalogue as {path.name!r}: the endings known are .csv, .jsonl and .parquet.")

    def save(self, folder: str | Path) -> None:
        """Writes `items.parquet` and `catalog.json` (version, size, fingerprint) into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.to_file(folder / "items.parquet")
        card = {"format_version": FORMAT_VERSION, "items": len(self), "fingerprint": self.fingerprint, "license": self.license}
        (folder / "catalog.json").write_text(json.dumps(card, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "Catalog":
        """Reads what `save` wrote.

        Raises:
            ValueError: when the format is newer than this package, or the items do not match the fingerprint.
        """
        folder = Path(folder)
        try:
            card = json.loads((folder / "catalog.json").read_text())
        except FileNotFoundError:
            raise FileNotFoundError(f"There is no catalogue in {folder}: catalog.json is missing.") from None
        if card.get("format_version", 0) > FORMAT_VERSION:
            raise ValueError(
                f"The catalogue in {folder} has format {card['format_version']}, this package reads up to {FORMAT_VERSION}: "
                "upgrade genrec_hub."
            )
        catalog = cls.from_file(folder / "items.parquet", max_bytes=2**40)
        if catalog.fingerprint != card.get("fingerprint"):
            raise ValueError(
                f"The items in {folder} are not those of its catalog.json (fingerprint {catalog.fingerprint[:12]}, expected "
                f"{str(card.get('fingerprint'))[:12]}): the file was changed or damaged; copy the folder again or save the catalogue anew."
            )
        catalog.license = str(card.get("license", ""))
        return catalog


def _license_beside(path: Path) -> str:
    """What `info.json` in a domain's folder says of the terms, "" when there is none."""
    info = path.with_name("info.json")
    if not info.is_file():
        return ""
    try:
        facts = json.loads(info.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{info} is no JSON ({error}): mend or delete it.") from None
    return clean(facts.get("license") or facts.get("licence")) if isinstance(facts, dict) else ""


def _key(title: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", title).casefold().split())
