"""Uploaded catalogues: read within limits, and deleted from the disk as soon as they are read."""

import shutil
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from .catalog import Catalog

FILE_TYPES: Final = [".csv", ".tsv", ".jsonl", ".json", ".parquet"]
MAX_BYTES: Final = 20 * 2**20
MAX_UNPACKED_BYTES: Final = 10 * MAX_BYTES
"""What a Parquet file may say that it holds before it is read."""
MAX_ROWS: Final = 20_000

_arriving: WeakValueDictionary[str, Catalog] = WeakValueDictionary()
"""Uploads in use. Two identical uploads share one path: whoever comes second finds the file gone, but its catalogue here."""


def read_upload(path: str | None) -> Catalog:
    """Reads an uploaded catalogue and deletes the file, whatever came of it.

    Raises:
        ValueError: with one sentence on what is wrong with the file.
    """
    if not path:
        raise ValueError("There is no file: upload a catalogue as CSV, TSV, JSONL or Parquet.")
    file = Path(path)
    known = _arriving.get(path)
    if known is not None and not file.exists():
        return known
    try:
        if file.suffix.lower() == ".parquet":
            _check_parquet(file)
        catalog = Catalog.from_file(file, max_bytes=MAX_BYTES)
    except FileNotFoundError:
        raise ValueError("The upload is gone already: please upload the file again.") from None
    finally:
        _delete(file)
    if not len(catalog):
        raise ValueError(f"{file.name} has no rows below its header.")
    if len(catalog) > MAX_ROWS:
        raise ValueError(_too_many(file, len(catalog)))
    _arriving[path] = catalog
    return catalog


def _check_parquet(file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        meta = pq.read_metadata(file)
    except (pa.ArrowException, OSError):
        return  # Catalog.from_file says what is wrong
    if meta.num_rows > MAX_ROWS:
        raise ValueError(_too_many(file, meta.num_rows))
    size = sum(meta.row_group(group).total_byte_size for group in range(meta.num_row_groups))
    if size > MAX_UNPACKED_BYTES:
        raise ValueError(f"{file.name} unpacks to {size / 2**20:,.0f} MB, the limit is {MAX_UNPACKED_BYTES / 2**20:.0f} MB: drop columns.")


def _too_many(file: Path, rows: int) -> str:
    return f"{file.name} has {rows:,} rows, the limit of this page is {MAX_ROWS:,}: upload a part of it."


def _delete(file: Path) -> None:
    file.unlink(missing_ok=True)
    if len(file.parent.name) == 64:  # the folder that Gradio named after the SHA-256 of the upload
        shutil.rmtree(file.parent, ignore_errors=True)
