"""Typed lines -> Items: an exact id, an exact title, a near title with its confidence, or the words as they are."""

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, overload

from .catalog import Catalog, Item
from .tables import as_text, clean_id
from .text import MAX_TITLE, clean

logger = logging.getLogger(__name__)

MAX_LINES = 500
"""Lines that are read word by word unless the caller allows more; of a longer history the last ones are."""
SURE = 0.75
"""A similarity from which the best title is taken, whatever the second best.

`Catalog.search` gives 0.75 when all words of the line are found and they make up half of what the title says. Tried with `LIKELY` and
`CLEAR` on 300 titles each of beauty, toys, films, library books and the sample shop: of misspelt titles 88-100 % are taken, of those
99.7 % or more are right; with every fourth word gone 89-98 % and 97 % or more. Of titles that the catalogue lacks 2-14 % are taken,
nearly all for another size or edition of the same thing. `tests/test_history.py` repeats the trial.
"""
LIKELY = 0.62
"""A similarity from which the best title is taken when the second best is `CLEAR` behind: the words fit one item only."""
CLEAR = 0.12
MOST_ALTERNATIVES = 3

_BREAK = re.compile(r"<(?:br|/li|/p|/tr|/div)\b[^<>]{0,100}>", re.IGNORECASE)
_BULLET = re.compile(r"^(?:[-*+•‣◦▪·\u2013\u2014]+|\d{1,4}[.)]|\[[ xX]?\])\s+")

How = Literal["id", "title", "fuzzy", "text"]


@dataclass(frozen=True)
class Match:
    """What one line of a history was read as.

    Attributes:
        line: the line as typed, cleaned and cut.
        item: the catalogue's item, or an ad-hoc one (id `typed:<hash>`) made of the line.
        row: the item's row in the catalogue, None for an ad-hoc item.
        how: by its exact id, its exact title, a near title, or as free text.
        confidence: 1.0 for an id or a title; the similarity for a near title; for free text that of the title refused (0.0 without one).
        alternatives: rows for "did you mean", best first, without the chosen one.
    """

    line: str
    item: Item
    row: int | None
    how: How
    confidence: float
    alternatives: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """The match as a JSON-able dict."""
        return {
            "line": self.line,
            "item": self.item.to_dict(),
            "row": self.row,
            "how": self.how,
            "confidence": round(self.confidence, 4),
            "alternatives": list(self.alternatives),
        }


class History(Sequence[Item]):
    """A user's items in time order, each with the way it was found.

    Args:
        matches: one per item, oldest first.
    """

    def __init__(self, matches: Iterable[Match] = ()) -> None:
        self.matches = tuple(matches)

    @property
    def items(self) -> list[Item]:
        """The items, oldest first."""
        return [match.item for match in self.matches]

    @property
    def rows(self) -> list[int | None]:
        """The row of each item in the catalogue, None where it is not of the catalogue."""
        return [match.row for match in self.matches]

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> "History": ...
    def __getitem__(self, place: int | slice) -> "Item | History":
        return History(self.matches[place]) if isinstance(place, slice) else self.matches[place].item

    def __len__(self) -> int:
        return len(self.matches)

    def __iter__(self) -> Iterator[Item]:
        return (match.item for match in self.matches)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, History) and self.matches == other.matches

    def __hash__(self) -> int:
        return hash(self.matches)

    def __repr__(self) -> str:
        known = sum(match.row is not None for match in self.matches)
        return f"History({len(self)} items, {known} of the catalogue)"

    @classmethod
    def read(
        cls,
        lines: str | Iterable[str | Item | Mapping[str, object]],
        catalog: Catalog,
        max_lines: int = MAX_LINES,
    ) -> "History":
        """Reads a history: one item per line, in a person's own words.

        Args:
            lines: a text (one item per line; bullets and blank lines are dropped), or ids, titles, `Item`s and mappings, oldest first.
            catalog: where the items are looked up.
            max_lines: of a longer text the last lines are kept; of a longer list also those earlier ones that are an id or a title of
                the catalogue to the letter, so that nothing of it is recommended as unseen.

        Returns:
            One match per line that says anything; an empty history is empty, never an error.
        """
        if isinstance(lines, Item | Mapping):
            lines = [lines]
        listed = not isinstance(lines, str)
        given = _BREAK.sub("\n", lines).splitlines() if isinstance(lines, str) else lines
        entries = [entry if isinstance(entry, Item | Mapping) else (as_text(entry) or "")[: 8 * MAX_TITLE] for entry in given]
        entries = [entry for entry in entries if not isinstance(entry, str) or _says_something(entry)]
        earlier = max(0, len(entries) - max_lines)
        matches = [_read_known(entry, catalog) for entry in entries[:earlier]] if listed else []
        if earlier:
            further = f", and {sum(match is not None for match in matches)} earlier ones of the catalogue" if listed else ""
            logger.warning("The history has %d lines: the last %d are kept%s.", len(entries), max_lines, further)
        known: dict[str, Match | None] = {}
        for entry in entries[earlier:]:
            if not isinstance(entry, str):
                matches.append(_read_item(entry, catalog))
                continue
            if entry not in known:
                known[entry] = _read_line(entry, catalog)
            matches.append(known[entry])
        return cls(match for match in matches if match is not None)


def _says_something(entry: str) -> bool:
    return any(char.isprintable() and not char.isspace() for char in entry)


def _read_known(entry: str | Item | Mapping[str, object], catalog: Catalog) -> Match | None:
    """A match with the catalogue that needs no search."""
    if isinstance(entry, str):
        return _exact_line(entry, catalog)
    found = _read_item(entry, catalog)
    return found if found is not None and found.row is not None else None


def _exact_line(line: str, catalog: Catalog) -> Match | None:
    """The item whose id or title a line is, as a whole or without its bullet."""
    item_id, text = clean_id(line), clean(line, MAX_TITLE)
    return _exact(text, catalog, item_id) or _exact(_BULLET.sub("", text), catalog, _BULLET.sub("", item_id))


def _read_line(entry: str, catalog: Catalog) -> Match | None:
    found = _exact_line(entry, catalog)
    line = clean(entry, MAX_TITLE)
    if found is not None or not line:
        return found
    bare = _BULLET.sub("", line) or line
    near = catalog.search(bare, MOST_ALTERNATIVES + 1)
    best, runner_up = (near[0][1] if near else 0.0), (near[1][1] if len(near) > 1 else 0.0)
    if best >= SURE or (best >= LIKELY and best - runner_up >= CLEAR):
        row = near[0][0]
        return Match(bare, catalog[row], row, "fuzzy", min(best, 1.0), tuple(other for other, _ in near[1:]))
    return Match(bare, Item(_typed_id(bare), title=bare), None, "text", best, tuple(row for row, _ in near[:MOST_ALTERNATIVES]))


def _exact(text: str, catalog: Catalog, item_id: str = "") -> Match | None:
    """The item with this id (which cleaning would spoil where it looks like markup), with the text as its id, or as its title."""
    for typed in (item_id, text):
        row = catalog.find(typed)
        if row is not None:
            return Match(typed, catalog[row], row, "id", 1.0)
    rows = catalog.rows_by_title(text)
    if rows:
        return Match(text, catalog[rows[0]], rows[0], "title", 1.0, tuple(rows[1 : 1 + MOST_ALTERNATIVES]))
    return None


def _read_item(entry: Item | Mapping[str, object], catalog: Catalog) -> Match | None:
    if isinstance(entry, Item):
        item = entry
    else:
        fields = {name: value for name, value in entry.items() if name != "item_id"}
        item_id = clean_id(entry.get("item_id"))
        item = Item.from_dict({**fields, "item_id": item_id or "typed:"})
        if not item_id:
            words = next(
                (text for text in (clean(as_text(entry.get("title")), MAX_TITLE), item.brand, item.description, item.text) if text), ""
            )
            if not words:
                return None
            found = _exact(words, catalog)
            if found is not None:
                return found
            item = Item.from_dict({**fields, "item_id": _typed_id(item.line), "title": words})
    row = catalog.find(item.item_id)
    if row is not None:
        return Match(item.title, catalog[row], row, "id", 1.0)
    return Match(item.title, item, None, "text", 0.0)


def _typed_id(line: str) -> str:
    return f"typed:{hashlib.sha256(line.casefold().encode()).hexdigest()[:12]}"
