"""The markup around an uploaded table: its first rows, how far its indexing is, and what came of it."""

from collections.abc import Sequence
from html import escape
from typing import Final

from .demo_uploads import Upload

FIELD_LABELS: Final = {
    "item_id": "Id",
    "title": "Title",
    "brand": "Brand",
    "categories": "Categories",
    "description": "Description",
    "price": "Price",
    "text": "Other text",
}
ROWS: Final = 5
LETTERS: Final = 80
WIDTH: Final = 12
"""Columns that are shown."""


def preview(upload: Upload) -> str:
    """The first rows of a table as it came."""
    names, table = upload.table.column_names[:WIDTH], upload.table
    guessed = {column: field for field, column in upload.guess.items()}
    head = "".join(
        f'<th scope="col" dir="auto">{escape(name[:LETTERS])}'
        + (f"<small>{FIELD_LABELS[guessed[name]].lower()}</small>" if name in guessed else "")
        + "</th>"
        for name in names
    )
    rows = []
    for row in table.slice(0, ROWS).select(names).to_pylist():
        cells = (row[name] or "" for name in names)
        rows.append("".join(f'<td dir="auto">{escape(cell[:LETTERS])}{"…" if len(cell) > LETTERS else ""}</td>' for cell in cells))
    body = "".join(f"<tr>{cells}</tr>" for cells in rows)
    hidden = len(table.column_names) - len(names)
    more = f" · {hidden} more column{'s' if hidden > 1 else ''}" if hidden else ""
    size = f"{table.num_rows:,} row{'s' if table.num_rows != 1 else ''}, {len(table.column_names)} columns"
    return (
        f'<p class="gh-note"><bdi>{escape(upload.name)}</bdi>: {size}{more}</p>'
        '<div class="gh-scroll" tabindex="0" role="region" aria-label="First rows of your file">'
        f'<table class="gh-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def refusal(kinds: Sequence[str], most: int) -> str:
    """Where the page itself refuses a file before it travels (demo.js): of another kind, or too large."""
    return f'<p role="alert" data-kinds="{escape(" ".join(kinds))}" data-bytes="{most}"></p>'


def progress(done: int, total: int, left: float | None) -> str:
    """How far an indexing is; `left` in seconds."""
    share = done / total if total else 1.0
    remaining = "" if left is None else f", about {left:,.0f} s left"
    said = f"{done:,} of {total:,} texts read{remaining}"
    return (
        '<div class="gh-notice gh-progress"><strong>Reading every item</strong>'
        f'<div class="gh-bar" role="progressbar" aria-label="Indexing" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{round(100 * share)}" '
        f'aria-valuetext="{escape(said)}"><i style="width:{share:.1%}"></i></div><p>{escape(said)}</p></div>'
    )


def summary(name: str, items: int, departments: int, seconds: float) -> str:
    """What an indexed catalogue holds."""
    shelves = f" in {departments:,} department{'s' if departments != 1 else ''}" if departments else ""
    plural = "s" if items != 1 else ""
    return (
        f'<div class="gh-notice gh-done" role="status"><strong><bdi>{escape(name)}</bdi> is ready</strong>'
        f"<p>{items:,} item{plural}{shelves}, indexed in {seconds:.1f} s. Only this browser session can use it; "
        "the file is deleted already.</p></div>"
    )
