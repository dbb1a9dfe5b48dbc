"""Clean text, and one line of plain text for an item: the only view that any model has of an item's words."""

import html
import re
import unicodedata
from collections.abc import Iterable, Mapping
from math import log

try:
    from ftfy import fix_text as _fix_text
except ImportError:  # mojibake then stays as it is
    _fix_text = str  # type: ignore[assignment]


MAX_TITLE = 300
"""Characters of a title that are kept; a longer one is cut at a word."""
MAX_FIELD = 2_000
"""Characters of any other field (the paper's cut, SETRec section 4.1)."""

_TAG = re.compile(r"<(?:/?[a-zA-Z][^<>]{0,300}|!--.{0,300}?--)>", re.DOTALL)
_PLAIN = re.compile(r"(?:[!-%'-;=-~]+(?: [!-%'-;=-~]+)*)?")
_SPACE = re.compile(r"\s+")
_DOTS = re.compile(r"\.{2,}")
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W\d_]+)?")
_PATH = re.compile(r"\s*(?:>|\||/(?=\s)|;)\s*")

STOPWORDS = frozenset(
    "a an and are as at be but by for from has have in into is it its of off on or our per so than that the their then "  # noqa: SIM905
    "this to up was were will with you your de la le les des du un une et en der die das und mit für el los las del con "
    "para por oz ml inch inches pack count set size new edition vol".split()
)


def clean(text: object, limit: int = MAX_FIELD) -> str:
    """Returns plain text on one line: entities decoded, tags and control characters gone, spaces folded, cut to `limit` characters.

    Right-to-left text, accents and emoji stay. `None` and NaN give "".
    """
    if text is None or (isinstance(text, float) and text != text):
        return ""
    raw = str(text)[: 8 * limit]
    for _ in range(10):  # what one pass uncovers (&amp;amp;, <b<b>>) the next one cleans, so that clean(clean(x)) == clean(x)
        if len(raw) <= limit and _PLAIN.fullmatch(raw) and ".." not in raw:
            break
        before, raw = raw, _clean_once(raw, limit)
        if raw == before:
            break
    return raw


def _clean_once(raw: str, limit: int) -> str:
    raw = html.unescape(raw) if "&" in raw else raw
    raw = _TAG.sub(" ", raw) if "<" in raw else raw
    if not raw.isascii():
        raw = unicodedata.normalize("NFC", _fix_text(raw)).replace("\ufeff", "")
    raw = "".join(" " if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") else char for char in raw)
    raw = _SPACE.sub(" ", _DOTS.sub(".", raw)).strip()
    if len(raw) <= limit:
        return raw
    head = raw[:limit]
    return head[: head.rfind(" ")] if " " in head[limit // 2 :] else head


def departments(categories: str) -> list[str]:
    """Returns the parts of a category path ("Beauty > Hair Care" or "rock, indie"), widest first."""
    parts = _PATH.split(categories) if _PATH.search(categories) else categories.split(",")
    return [part.strip() for part in parts if part.strip()]


def item_line(item: Mapping[str, str]) -> str:
    """Returns the line of an item: title, brand, the parts of its categories that say something new, description.

    Field names and repeated category words are left out: an encoder with 48 tokens should spend them on the item.
    An item without a title, brand, categories or description is described by its `text`, failing that by its id.
    """
    title = item.get("title", "")
    fields = [title]
    said = {word.casefold() for word in words(title)}
    for part in [item.get("brand", ""), *reversed(departments(item.get("categories", "")))]:
        fresh = {word.casefold() for word in words(part)} - said
        if fresh:
            fields.append(part)
            said |= fresh
    fields.append(item.get("description", ""))
    line = ". ".join(field for field in (field.rstrip(". ") for field in fields) if field)
    return line or item.get("text", "") or item.get("item_id", "")


def words(text: str) -> list[str]:
    """Returns the words of a text in order, case kept, punctuation dropped."""
    return _WORD.findall(text)


def salient(text: str) -> list[str]:
    """Returns the lower-case words of a text that carry meaning: no stop words, no bare numbers, each once."""
    seen = dict.fromkeys(word.lower() for word in words(text))
    return [word for word in seen if len(word) > 2 and word not in STOPWORDS and not word.isdigit()]


def typical_words(chosen: Iterable[str], frequency: Mapping[str, int], total: int, most: int = 2) -> list[str]:
    """Returns the words that stand out in the `chosen` texts against a whole catalogue, most typical first.

    A word's weight is (chosen texts with it, the first ones counting more) x log(total / catalogue texts with it): tf-idf over texts.
    A word of one text alone says little of what the texts share, so it comes after those of several.

    Args:
        chosen: the texts near to something.
        frequency: word -> number of catalogue texts that hold it.
        total: number of texts in the catalogue.
        most: how many words at the most.
    """
    counts: dict[str, list[float]] = {}
    for rank, text in enumerate(chosen):
        for word in salient(text):
            counts.setdefault(word, []).append(1.0 / (1.0 + 0.15 * rank))
    rarity = {word: log((total + 1) / (frequency.get(word, 0) + 0.5)) for word in counts}
    weights = {word: sum(own) * rarity[word] * (1.0 if len(own) > 1 else 0.2) for word, own in counts.items()}
    return sorted(weights, key=lambda word: (-weights[word], word))[:most]
