"""Identifiers as files: written by the visitor's browser, so that the server keeps none; safe to open in a spreadsheet."""

import csv
import io
import json
from typing import Final

from .demo_models import IdentifiedItem

FORMULA: Final = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""What a spreadsheet takes for the beginning of a formula; the last four are full-width forms."""

SAVE: Final = """(name, text) => {
  if (!text) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "text/plain;charset=utf-8"}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}"""
"""Script that saves a text under a name."""


def as_csv(items: list[IdentifiedItem]) -> str:
    """One row per item, one column per token; no cell can be taken for a formula."""
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    width = max((len(_cells(item)) for item in items), default=0)
    in_words = bool(items) and "text" in items[0]["identifier"]
    writer.writerow(["item_id", "title", *(["identifier"] if in_words else [f"token {n + 1}" for n in range(width)])])
    for item in items:
        writer.writerow([harmless(cell) for cell in (item["item_id"], item["title"], *_cells(item))])
    return "\ufeff" + out.getvalue()  # the mark tells Excel that this is UTF-8


def as_jsonl(items: list[IdentifiedItem]) -> str:
    """One item a line, whole and unchanged."""
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def harmless(cell: str) -> str:
    """The cell, with an apostrophe before what could begin a formula."""
    return f"'{cell}" if cell.startswith(FORMULA) or cell.lstrip().startswith(FORMULA) else cell


def _cells(item: IdentifiedItem) -> list[str]:
    identifier = item["identifier"]
    if "text" in identifier:
        return [identifier["text"]]
    return [token["label"] if isinstance(token, dict) else token for token in identifier["tokens"]]
