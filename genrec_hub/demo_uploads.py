"""Uploaded tables: read behind a wall, within limits, and gone from the disk as soon as they are read.

A file is parsed by a process of its own (`python -m genrec_hub.demo_uploads`) with a limit on memory and time. Whatever a hostile
file does to its reader, the server stays up and answers others meanwhile.
"""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Timer
from typing import Final
from weakref import WeakValueDictionary

import pyarrow as pa

from .catalog import Catalog
from .tables import as_text, match_columns, read_table

FILE_TYPES: Final = [".csv", ".tsv", ".jsonl", ".json", ".parquet"]
MAX_BYTES: Final = 20 * 2**20
MAX_TEXT: Final = 5 * MAX_BYTES
"""Characters that all cells may hold together."""
MAX_ROWS: Final = 20_000
MAX_COLUMNS: Final = 100
MAX_CELL: Final = 16_000
"""Characters of a cell that are kept; a catalogue keeps fewer."""
READER_SECONDS: Final = 60
GRACE: Final = 20.0
FIELDS: Final = ("item_id", "title", "brand", "categories", "description", "price", "text")

_LIMITS = (3 * 2**30, READER_SECONDS)
"""Bytes of memory and seconds of CPU time of the reader's process."""
_REFUSED = 3


@dataclass(frozen=True, eq=False)
class Upload:
    """A table that a visitor brought; all cells are text."""

    name: str
    table: pa.Table

    @property
    def guess(self) -> dict[str, str]:
        """Field -> column, as far as the names of the columns tell."""
        return match_columns(self.table.column_names)

    def catalog(self, columns: Mapping[str, str] | None = None) -> Catalog:
        """The catalogue in these columns (field -> column), or in the guessed ones; without an item_id the rows are numbered.

        Raises:
            ValueError: with one sentence on what is missing or wrong.
        """
        if columns is None:
            return Catalog.from_table(self.table, self.name)
        chosen = {field: column for field, column in columns.items() if field in FIELDS and column}
        picked = list(chosen.values())
        twice = next((column for column in picked if picked.count(column) > 1), None)
        if twice is not None:
            raise ValueError(f"The column {twice} is chosen twice: give every field a column of its own.")
        unknown = next((column for column in picked if column not in self.table.column_names), None)
        if unknown is not None:
            raise ValueError(f"{self.name} has no column {unknown}.")
        if not {"title", "text"} & chosen.keys():
            raise ValueError("The titles are missing: choose the column that holds them.")
        fields = {field: self.table.column(column) for field, column in chosen.items()}
        if "item_id" not in fields:
            fields["item_id"] = pa.chunked_array([[str(number) for number in range(1, self.table.num_rows + 1)]], pa.string())
        return Catalog.from_table(pa.table(fields), self.name)


_known: WeakValueDictionary[str, Upload] = WeakValueDictionary()
"""Uploads in use. Identical uploads share one path: whoever comes second finds the file gone, but its table here."""
_fresh: set[Upload] = set()
"""Uploads of the last `GRACE` seconds, which someone else may be about to ask for."""
_turns: WeakValueDictionary[str, "_Turn"] = WeakValueDictionary()
_giving = Lock()


def read_upload(path: str | None) -> Upload:
    """Reads an uploaded table and deletes the file, whatever came of it.

    Raises:
        ValueError: with one sentence on what is wrong with the file.
    """
    if not path:
        raise ValueError("There is no file: upload a catalogue as CSV, TSV, JSONL or Parquet.")
    file = Path(path)
    with _giving:
        turn = _turns.setdefault(path, _Turn())
    with turn.lock:
        known = _known.get(path)
        if known is not None and not file.exists():
            return known
        try:
            upload = Upload(file.name, _read_behind_wall(file))
        finally:
            _delete(file)
        _known[path] = upload
    _fresh.add(upload)
    forget = Timer(GRACE, _fresh.discard, (upload,))
    forget.daemon = True
    forget.start()
    return upload


class _Turn:
    """Readers of one path come one after the other."""

    def __init__(self) -> None:
        self.lock = Lock()


def _read_behind_wall(file: Path) -> pa.Table:
    if not file.is_file():
        raise ValueError("The upload is gone already: please upload the file again.")
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(file), *map(str, _LIMITS)],
            capture_output=True,
            timeout=READER_SECONDS,
            check=False,
            cwd=Path(__file__).parent.parent,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"{file.name} takes longer than {READER_SECONDS} s to read: upload a smaller or simpler file.") from None
    if done.returncode == _REFUSED:
        raise ValueError(done.stdout.decode("utf-8", "replace"))
    if done.returncode != 0:
        raise ValueError(f"{file.name} unpacks to more than this page can hold, or is damaged: upload a part of it, or drop columns.")
    return pa.ipc.open_stream(done.stdout).read_all()


def read_within_limits(file: Path) -> pa.Table:
    """Reads a file as a table of texts.

    Raises:
        ValueError: with one sentence on what is wrong with the file.
    """
    table = read_table(file, MAX_BYTES, max_rows=MAX_ROWS, max_columns=MAX_COLUMNS)
    if not table.num_rows:
        raise ValueError(f"{file.name} has no rows below its header.")
    columns: dict[str, pa.Array] = {}
    size = 0
    for name in table.column_names:
        column = table.column(name)
        if _is_nested(column.type):
            if name in match_columns(table.column_names).values():
                raise ValueError(f"Column {name} of {file.name} is nested ({str(column.type)[:60]}): flatten it to plain text.")
            continue
        texts = []
        for value in column:  # one cell at a time: a column of one long text, repeated, would be huge as a list
            text = as_text(value.as_py()) or ""
            size += len(text)
            if size > MAX_TEXT:
                raise ValueError(
                    f"{file.name} holds more than {MAX_TEXT // 2**20} million characters: drop columns or upload a part of it."
                )
            texts.append(text[:MAX_CELL])
        columns[name] = pa.array(texts, pa.string())
    return pa.table(columns)


def _is_nested(kind: pa.DataType) -> bool:
    while pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_struct(kind) or pa.types.is_map(kind))


def _delete(file: Path) -> None:
    file.unlink(missing_ok=True)
    if len(file.parent.name) == 64:  # the folder that Gradio named after the SHA-256 of the upload
        shutil.rmtree(file.parent, ignore_errors=True)


def _main(path: str, memory: int, seconds: int) -> int:
    """The reader's own process: the table goes to stdout as an Arrow stream, or one sentence with the exit code `_REFUSED`."""
    with suppress(ImportError, ValueError, OSError):  # Windows has no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    try:
        table = read_within_limits(Path(path))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    except ValueError as error:
        sys.stdout.buffer.write(str(error)[:600].encode())
        return _REFUSED
    sys.stdout.buffer.write(sink.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
