"""Tables in the files that people have: CSV, TSV, JSON, JSONL, Parquet -> Arrow, with one sentence for each fault."""

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

MAX_BYTES = 64 * 2**20
"""Largest file that is read unless the caller allows more."""

_SYNONYMS = {
    "item_id": ("item_id", "itemid", "id", "asin", "sku", "product_id", "article_id", "parent_asin"),
    "title": ("title", "name", "product_name", "product", "item_name", "item"),
    "brand": ("brand", "manufacturer", "author", "artist", "store", "maker"),
    "categories": ("categories", "category", "genres", "genre", "tags", "department"),
    "description": ("description", "desc", "details", "summary", "features"),
    "price": ("price", "cost"),
    "text": ("text",),
}


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
    objects = [row for row in rows if isinstance(row, dict)]
    if not rows or len(objects) != len(rows):
        raise ValueError(f"{path.name} should hold one JSON object per line, with the keys item_id and title.")
    names = list(dict.fromkeys(name for row in objects for name in row))
    return pa.table({name: _json_column([row.get(name) for row in objects]) for name in names})


def _json_column(values: list[object]) -> pa.Array:
    if any(isinstance(value, dict) or (isinstance(value, list) and any(isinstance(part, dict) for part in value)) for value in values):
        return pa.nulls(len(values), pa.struct([]))  # whoever needs this column says that it is nested
    texts = (as_text(value) for value in values)
    return pa.array([text if text is None else text.encode("utf-8", "replace").decode() for text in texts], pa.string())


def as_text(value: object) -> str | None:
    """A cell as text: parts of a list are joined, of a list of lists (Amazon's categories) the first is taken; NaN is nothing."""
    if isinstance(value, list | tuple):
        first = next((part for part in value if isinstance(part, list | tuple)), None)
        if first is not None:
            return as_text(first)
        return " > ".join(str(part) for part in value if part not in (None, ""))
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if value is None or (isinstance(value, float) and value != value):
        return None
    return str(value)


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.0f} MB" if size >= 2**20 else f"{size:,} bytes"
