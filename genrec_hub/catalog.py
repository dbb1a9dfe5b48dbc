"""Item and Catalog: an ordered, fingerprinted set of items, read from and written to the files that people have."""

import csv
import hashlib
import io
import json
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from functools import cached_property
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .text import MAX_FIELD, MAX_TITLE, STOPWORDS, clean, departments, item_line, salient

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT_VERSION = 1
MAX_BYTES = 64 * 2**20
"""Largest catalogue file that is read unless the caller allows more."""
MAX_ROWS = 2_000_000

_SYNONYMS = {
    "item_id": ("item_id", "itemid", "id", "asin", "sku", "product_id", "article_id", "parent_asin"),
    "title": ("title", "name", "product_name", "product", "item_name", "item"),
    "brand": ("brand", "manufacturer", "author", "artist", "store", "maker"),
    "categories": ("categories", "category", "genres", "genre", "tags", "department"),
    "description": ("description", "desc", "details", "summary", "features"),
    "price": ("price", "cost"),
    "text": ("text",),
}


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that can be recommended. All fields are plain text; only `item_id` must be there.

    An empty title falls back to `text`, then to the id.
    """

    item_id: str
    title: str = ""
    brand: str = ""
    categories: str = ""
    description: str = ""
    price: str = ""
    text: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            limit = MAX_TITLE if field.name in ("item_id", "title", "brand", "price") else MAX_FIELD
            object.__setattr__(self, field.name, clean(getattr(self, field.name), limit))
        if not self.item_id:
            raise ValueError("An item has an empty item_id: give every item an id of its own.")
        if not self.title:
            object.__setattr__(self, "title", clean(self.text, MAX_TITLE) or self.item_id)

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
            values[field.name] = _as_text(value) or ""
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
        items: the items; ids must be unique.

    Raises:
        ValueError: when an id occurs twice; the sentence names the id and both places.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = tuple(items)
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
        return Catalog(self._items[row]) if isinstance(row, slice) else self._items[row]

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

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids, texts and order (64 hex digits)."""
        digest = hashlib.sha256(b"genrec_hub catalog 1\n")
        for item in self._items:
            digest.update(json.dumps(list(asdict(item).values()), ensure_ascii=False).encode() + b"\n")
        return digest.hexdigest()

    @cached_property
    def word_frequency(self) -> dict[str, int]:
        """Salient word -> number of items whose line holds it."""
        frequency: dict[str, int] = {}
        for line in self.lines:
            for word in salient(line):
                frequency[word] = frequency.get(word, 0) + 1
        return frequency

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
    def _index(self) -> "_TitleIndex":
        return _TitleIndex(self._items)

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

    def add(self, items: Iterable[Item]) -> "Catalog":
        """Returns a catalogue with the items appended; the rows of the old ones stay."""
        return Catalog((*self._items, *items))

    def to_table(self) -> pa.Table:
        """The catalogue as an Arrow table of strings."""
        return pa.table(
            {field.name: pa.array([getattr(item, field.name) for item in self._items], pa.string()) for field in fields(Item)}
        )

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
        return cls(item if isinstance(item, Item) else Item.from_dict(item) for item in items)

    @classmethod
    def from_file(cls, path: str | Path, max_bytes: int = MAX_BYTES) -> "Catalog":
        """Reads `items.{csv,tsv,jsonl,json,parquet}`.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: with one sentence on what is wrong in it, where, and how to mend it.
        """
        return cls.from_table(read_table(path, max_bytes), Path(path).name)

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
        card = {"format_version": FORMAT_VERSION, "items": len(self), "fingerprint": self.fingerprint}
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
        return catalog


def match_columns(names: Sequence[str]) -> dict[str, str]:
    """Returns field -> column for the columns that can be told by their name (`Name` and `product_name` are titles)."""
    plain = {re.sub(r"[\s\-]+", "_", name.strip().lower()): name for name in reversed(names)}
    found: dict[str, str] = {}
    for field, synonyms in _SYNONYMS.items():
        match = next((plain[s] for s in synonyms if s in plain and plain[s] not in found.values()), None)
        if match is not None:
            found[field] = match
    return found


def read_table(path: str | Path, max_bytes: int = MAX_BYTES) -> pa.Table:
    """Reads a CSV, TSV, JSON, JSONL or Parquet file as an Arrow table; a byte-order mark is dropped, CSV columns are text.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is too large, empty, of an unknown kind or broken.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    size = path.stat().st_size
    if size > max_bytes:
        raise ValueError(f"{path.name} has {_megabytes(size)}, the limit is {_megabytes(max_bytes)}: split it or drop columns.")
    if size == 0:
        raise ValueError(f"{path.name} is empty.")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(path, 8 * max_bytes)
    if suffix not in (".csv", ".tsv", ".jsonl", ".json", ".ndjson"):
        raise ValueError(f"{path.name} is of an unknown kind: the endings known are .csv, .tsv, .jsonl, .json and .parquet.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None
    if not text.strip():
        raise ValueError(f"{path.name} is empty.")
    if "\0" in text[:200]:
        raise ValueError(f"{path.name} is not UTF-8 text (NUL at character {text.index(chr(0))}, perhaps UTF-16): save it as UTF-8.")
    return _read_delimited(text, path) if suffix in (".csv", ".tsv") else _read_json(text, path)


def _read_parquet(path: Path, most: int) -> pa.Table:
    try:
        file = pq.ParquetFile(path)
        unpacked = sum(file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups))
        table = file.read() if unpacked <= most else None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path.name} is not a readable Parquet file ({str(error).splitlines()[0][:80]}).") from None
    if table is None:
        raise ValueError(f"{path.name} unpacks to {_megabytes(unpacked)}, the limit is {_megabytes(most)}: split it or drop columns.")
    return table


def _read_delimited(text: str, path: Path) -> pa.Table:
    text = text.lstrip("\n")
    head = text.split("\n", 1)[0]
    delimiter = max("\t;,", key=head.count) if head else ","
    csv.field_size_limit(2**24)
    try:
        reader = csv.reader(io.StringIO(text), delimiter=delimiter)
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path.name} is not readable as CSV ({error}).") from None
    header = [name.strip() for name in rows[0][1]]
    if len(set(header)) != len(header):
        raise ValueError(f"{path.name} has two columns of one name in its first line ({', '.join(header)}): rename one.")
    body = [(number, row) for number, row in rows[1:] if any(row)]
    for number, row in body:
        if len(row) != len(header):
            raise ValueError(
                f"Line {number} of {path.name} has {len(row)} fields, the header has {len(header)}: quote fields that hold a {delimiter!r}."
            )
    return pa.table({name: pa.array([row[i] for _, row in body], pa.string()) for i, name in enumerate(header)})


def _read_json(text: str, path: Path) -> pa.Table:
    rows: list[object] = []
    number = 0
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            for line in text.split("\n"):
                number += 1
                if line.strip():
                    rows.append(json.loads(line))
    except (ValueError, RecursionError) as error:
        at, why = (error.lineno, error.msg) if isinstance(error, json.JSONDecodeError) else (1, str(error)[:80])
        raise ValueError(f"Line {number or at} of {path.name} is not valid JSON ({why}).") from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path.name} should hold one JSON object per line, with the keys item_id and title.")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _json_column([row.get(name) for row in rows]) for name in names})


def _json_column(values: list[object]) -> pa.Array:
    if any(isinstance(value, dict) or (isinstance(value, list) and any(isinstance(part, dict) for part in value)) for value in values):
        return pa.nulls(len(values), pa.struct([]))  # whoever needs this column says that it is nested
    texts = (_as_text(value) for value in values)
    return pa.array([text if text is None else text.encode("utf-8", "replace").decode() for text in texts], pa.string())


def _as_text(value: object) -> str | None:
    """A cell as text: parts of a list are joined, of a list of lists (Amazon's categories) the first is taken; NaN is nothing."""
    if isinstance(value, list | tuple):
        first = next((part for part in value if isinstance(part, list | tuple)), None)
        if first is not None:
            return _as_text(first)
        return " > ".join(str(part) for part in value if part not in (None, ""))
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if value is None or (isinstance(value, float) and value != value):
        return None
    return str(value)


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.0f} MB" if size >= 2**20 else f"{size:,} bytes"


def _key(title: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", title).casefold().split())


_SEARCH_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|[^\W_\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff][\w\u0900-\u0dff]*")
_MARKS = re.compile(r"[\u0300-\u036f'’]")
_LEAST = 0.2


def _search_words(text: str) -> list[str]:
    """Words as they are compared: lower case, no accents, no apostrophes; scripts without spaces by character."""
    text = text.casefold()
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text)
    return list(dict.fromkeys(_SEARCH_WORD.findall(_MARKS.sub("", text))))


class _TitleIndex:
    """Word -> rows, for `Catalog.search`."""

    def __init__(self, items: Sequence[Item]) -> None:
        rows: dict[str, list[int]] = {}
        titles = [_search_words(item.title) for item in items]
        for row, (item, title) in enumerate(zip(items, titles, strict=True)):
            for word in dict.fromkeys((*title, *_search_words(item.brand))) if item.brand else title:
                rows.setdefault(word, []).append(row)
        self.size, self.lengths = len(items), np.array([len(item.title) for item in items])
        self.rows = {word: np.array(own, np.int64) for word, own in rows.items()}
        self.in_title = {word: np.array([word in titles[row] for row in own], bool) for word, own in rows.items()}
        self.words = sorted(rows)
        self.by_length: dict[int, list[str]] = {}
        for word in self.words:
            self.by_length.setdefault(len(word), []).append(word)
        weight = {word: self.weight(word, numbers=0.3) for word in rows}
        self.title_weights = np.array([sum(map(weight.__getitem__, title)) or 1.0 for title in titles])
        self.near: dict[str, dict[str, float]] = {}

    def weight(self, word: str, numbers: float) -> float:
        """How much a word says: log(1 + items / items with it), less for numbers and filler."""
        rarity = log(1 + self.size / len(self.rows.get(word, (0,))))
        if any(char.isdigit() for char in word):
            return numbers * rarity
        return 0.3 * rarity if word in STOPWORDS or (len(word) == 1 and word.isascii()) else rarity

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        asked = self._respell(_search_words(query)[:64])
        total, said, heard = 1e-9, np.zeros(self.size), np.zeros(self.size)
        for word in asked:
            best, gain = np.zeros(self.size), np.zeros(self.size)
            variants = self.variants(word)
            for other, similarity in variants.items():
                rows, in_title = self.rows[other], self.in_title[other]
                better = best[rows] < similarity
                rows, in_title = rows[better], in_title[better]
                best[rows] = similarity
                gain[rows] = in_title * (similarity * self.weight(other, numbers=0.3))
            if word in self.rows or not variants:
                weight = self.weight(word, numbers=0.7 if word in self.rows else 0.3)
            else:
                weight = max(self.weight(other, numbers=0.7) for other in variants)
            total += weight
            said += weight * best
            heard += gain
        share = said / total
        scores = share**2 * (1 + np.minimum(heard / self.title_weights, 1)) / 2
        near = np.flatnonzero(scores >= _LEAST)
        order = near[np.lexsort((near, self.lengths[near], -scores[near].round(9)))][:k]
        return [(int(row), float(scores[row])) for row in order]

    def variants(self, word: str) -> dict[str, float]:
        """The catalogue's words that a typed word may stand for, with their similarity: itself, misspelt, its beginning."""
        if word not in self.near:
            if len(self.near) > 20_000:
                self.near.clear()
            found = dict(self._misspelt(word))
            if len(word) >= 3:
                start = bisect_left(self.words, word)
                for other in self.words[start : start + 50]:
                    if not other.startswith(word):
                        break
                    found[other] = max(found.get(other, 0.0), 0.5, len(word) / len(other) - 0.05)
            if word in self.rows:
                found[word] = 1.0
            self.near[word] = found
        return self.near[word]

    def _misspelt(self, word: str) -> Iterator[tuple[str, float]]:
        if len(word) < 3 or any(char.isdigit() for char in word):
            return
        try:
            from rapidfuzz.distance import OSA
            from rapidfuzz.process import extract
        except ImportError:
            return
        most = 1 if len(word) < 7 else 2
        shortest = len(word) - most if len(word) > 3 else 4  # of three letters only one may be missing: cat is no car
        for length in range(shortest, len(word) + most + 1):
            for other, distance, _ in extract(word, self.by_length.get(length, ()), scorer=OSA.distance, score_cutoff=most, limit=10):
                yield other, 1 - 0.9 * distance / max(len(word), len(other))

    def _respell(self, asked: list[str]) -> list[str]:
        """Joins `mc donalds` and parts `hairdryer` where only the other spelling is known."""
        out: list[str] = []
        for word in asked:
            if out and (word not in self.rows or out[-1] not in self.rows) and out[-1] + word in self.rows:
                out[-1] += word
            else:
                out += self._parts(word)
        return list(dict.fromkeys(out))

    def _parts(self, word: str) -> list[str]:
        if word in self.rows or any(self._misspelt(word)):
            return [word]
        cuts = (cut for cut in range(3, len(word) - 2) if word[:cut] in self.rows and word[cut:] in self.rows)
        cut = next(cuts, 0)
        return [word[:cut], word[cut:]] if cut else [word]
