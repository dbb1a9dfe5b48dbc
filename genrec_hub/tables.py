"""Tables in the files that people have: CSV, TSV, JSON, JSONL, Parquet -> Arrow, with one sentence for each fault."""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

MAX_BYTES = 64 * 2**20
"""Largest file that is read unless the caller allows more."""
MAX_COLUMNS = 2_000
"""A wider table is no catalogue; one that grows a column with every row would fill the memory."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff]+")
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


def read_table(path: str | Path, max_bytes: int = MAX_BYTES, max_rows: int | None = None, max_columns: int = MAX_COLUMNS) -> pa.Table:
    """Reads a CSV, TSV, JSON, JSONL or Parquet file as an Arrow table; a byte-order mark is dropped, CSV columns are text.

    Args:
        path: the file.
        max_bytes: of the file; a Parquet file may unpack to eight times as much.
        max_rows: None for any number.
        max_columns: more are refused.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is too large, too long, too wide, empty, of an unknown kind or broken.
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
        return _read_parquet(path, 8 * max_bytes, max_rows, max_columns)
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
    return (_read_delimited if suffix in (".csv", ".tsv") else _read_json)(text, path, max_rows, max_columns)


def _check_size(path: Path, rows: int, columns: int, max_rows: int | None, max_columns: int) -> None:
    if max_rows is not None and rows > max_rows:
        raise ValueError(f"{path.name} has {rows:,} rows, the limit is {max_rows:,}: upload a part of it.")
    if columns > max_columns:
        raise ValueError(f"{path.name} has {columns:,} columns, the limit is {max_columns:,}: drop columns.")


def _read_parquet(path: Path, most: int, max_rows: int | None, max_columns: int) -> pa.Table:
    try:
        # A text that every row repeats is stored once and stays that way; written out it could fill the memory.
        texts = [field.name for field in pq.read_schema(path) if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
        file = pq.ParquetFile(path, read_dictionary=texts if max_rows is not None else None)
        _check_size(path, file.metadata.num_rows, len(file.schema_arrow.names), max_rows, max_columns)
        unpacked = sum(file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups))
        table = file.read() if unpacked <= most else None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path.name} is not a readable Parquet file ({str(error).splitlines()[0][:80]}).") from None
    if table is None:
        raise ValueError(f"{path.name} unpacks to {_megabytes(unpacked)}, the limit is {_megabytes(most)}: split it or drop columns.")
    return table


def _read_delimited(text: str, path: Path, max_rows: int | None, max_columns: int) -> pa.Table:
    text = text.lstrip("\n")
    head = text.split("\n", 1)[0]
    delimiter = max("\t;,", key=head.count) if head else ","
    csv.field_size_limit(2**24)
    try:
        reader = csv.reader(io.StringIO(text), delimiter=delimiter)
        rows = list(islice(((reader.line_num, row) for row in reader), None if max_rows is None else max_rows + 2))
        _check_size(path, len(rows) - 1 + sum(1 for _ in reader), len(rows[0][1]), max_rows, max_columns)
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


def _read_json(text: str, path: Path, max_rows: int | None, max_columns: int) -> pa.Table:
    rows: list[object] = []
    number = 0
    is_list = text.lstrip().startswith("[")
    if not is_list:
        _check_size(path, sum(1 for line in text.split("\n") if line.strip()), 0, max_rows, max_columns)
    try:
        if is_list:
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
    _check_size(path, len(rows), len(names), max_rows, max_columns)
    return pa.table({name: _json_column([row.get(name) for row in objects]) for name in names})


def _json_column(values: list[object]) -> pa.Array:
    if any(isinstance(value, dict) or (isinstance(value, list) and any(isinstance(part, dict) for part in value)) for value in values):
        return pa.nulls(len(values), pa.struct([]))  # whoever needs this column says that it is nested
    texts = (as_text(value) for value in values)
    return pa.array([text if text is None else text.encode("utf-8", "replace").decode() for text in texts], pa.string())


def as_text(value: object) -> str | None:
    """A cell as text: parts of a list are joined, of a list of lists (Amazon's categories) the first is taken; NaN, NaT and NA are nothing.

    Arrays count as lists. A whole float is written as the integer it is: a column of integers with a gap is one of floats to pandas.
    """
    value = _plain(value)
    if isinstance(value, list | tuple):
        parts = [_plain(part) for part in value]
        first = next((part for part in parts if isinstance(part, list | tuple)), None)
        return as_text(first) if first is not None else " > ".join(text for text in map(as_text, parts) if text)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if value is None or (value == value) is not True:
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:  # further up the neighbours of an integer are lost
        return str(int(value))
    return str(value)


def _plain(value: object) -> object:
    """An array as a list, a scalar of NumPy as one of Python."""
    return value.tolist() if hasattr(value, "tolist") else value


def clean_id(value: object) -> str:
    """An id as it is compared, wherever it stands: without control characters and surrounding spaces, composed (NFC); None and NaN are "".

    Nothing else is mended, for a key is no prose: `x..1` and `x.1`, `A&amp;B` and `A&B` are different ids.
    """
    text = _CONTROL.sub("", as_text(value) or "")
    return unicodedata.normalize("NFC", text).strip()


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.0f} MB" if size >= 2**20 else f"{size:,} bytes"
