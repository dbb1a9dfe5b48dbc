"""The words that identifiers are made of: clean words, the text that a generator reads, and a short phrase for each item of a catalogue."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from math import log
from typing import Literal, Protocol

from .text import STOPWORDS, departments, item_line

MAX_WORDS = 20
"""Words of an identifier that are kept: what the second length of Algorithm 1 can generate."""
MAX_LETTERS = 24
"""Letters of a word that is taken from an item by rule; scripts without spaces make whole titles one word."""

_WORD = re.compile(r"[^\W_]+")
_APOSTROPHE = re.compile(r"(?<=\w)['\u2019](?=\w)")
_FIELD = re.compile(r"(?:^|[;,.])\s*(?:title|name|brand|categor(?:y|ies)|price|description|sales ?rank)\s*:\s*(?:na\b)?", re.IGNORECASE)

Order = Literal["general", "title"]


class Described(Protocol):
    """What is read of an item, a `catalog.Item` for instance: the catalogue itself needs pyarrow, which no modelling file may import."""

    @property
    def item_id(self) -> str: ...  # noqa: D102
    @property
    def title(self) -> str: ...  # noqa: D102
    @property
    def brand(self) -> str: ...  # noqa: D102
    @property
    def categories(self) -> str: ...  # noqa: D102
    @property
    def description(self) -> str: ...  # noqa: D102
    @property
    def line(self) -> str: ...  # noqa: D102


def clean_words(text: str, most: int = MAX_WORDS) -> str:
    r"""Returns the words of a text in lower case, joined by single spaces; punctuation goes.

    Source: IDGenRec's released code, which joins what `\b\w+\b` finds.
    Differs: that tears "men's" apart, and every word of Devanagari or Thai at a vowel sign; here apostrophes within a word vanish ("mens")
    and combining marks stay with their letter. Compatibility forms (full-width letters, ligatures) become plain ones.
    """
    if text.isascii():
        return " ".join(found[0] for found in islice(_WORD.finditer(_APOSTROPHE.sub("", text.lower())), most))
    # Twice, because unfolding brings forth new capitals; lower() because Cherokee folds upwards.
    for _ in range(2):
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", text).casefold().lower())
    text = _APOSTROPHE.sub("", text)
    text = "".join(char if char.isalnum() or unicodedata.category(char)[0] == "M" else " " for char in text)
    return " ".join(islice((word for word in text.split() if _WORD.search(word)), most))


def generator_text(item: Described) -> str:
    """Returns what the generator reads of an item: title, brand and categories (`text.item_line`), whatever else there is without them.

    Differs: the paper's text has the description too, whose words tell less of what an item is, and the names of fields, which leak into
    identifiers.
    """
    said = {"title": item.title, "brand": item.brand, "categories": item.categories}
    line = item_line(said) if any(said.values()) else item.line
    return _FIELD.sub(". ", line).strip(" .;") or item.item_id


def own_words(item: Described) -> dict[str, int]:
    """Returns word -> the field that says it first: 0 title, 1 brand, 2 categories from the narrowest, 3 description.

    No stop words, no single letters.
    """
    fields = (item.title, item.brand, " ".join(reversed(departments(item.categories))), item.description)
    found: dict[str, int] = {}
    for number, field in enumerate(fields):
        for word in _words(field):
            found.setdefault(word, number)
    return found


def salient_words(items: Sequence[Described], most: int = 6, order: Order = "general") -> list[str]:
    """Returns a short phrase for each item from its own words: what it is, who makes it, and what tells it apart.

    What it is: two words of the title that its categories say too, the narrowest category that enough items share first; where there are
    none, two words that many titles say, else the category itself. Then the first word of the brand (where no brand is given, the first
    word of the title, if other titles begin with it), then the words of the title by inverse document frequency, two at the least, until
    the phrase tells 2 log V (enough for V phrases of independent words to differ). What has fewer than four words is filled from the
    categories.
    Deterministic; items may share a phrase.

    Args:
        items: the catalogue; frequencies are counted over it.
        most: words of a phrase at the most.
        order: "general" from the kind to the particular, which makes a prefix tree of few broad branches; "title" as the title has them,
            after those that only the categories have.
    """
    phrases = _Phrases(items, most, order)
    return [
        phrases.phrase(row) or clean_words(item.line, most) or clean_words(item.item_id, most) or "item" for row, item in enumerate(items)
    ]


def leading_words(item: Described, most: int = 7) -> str:
    """Returns a short phrase of an item's own words: how its title begins, who makes it, what kind it is, then the rest of the title.

    Nothing is counted, so that a small generator can learn to write it of catalogues that it never saw; `salient_words` asks for
    frequencies that no text shows.
    """
    title, maker = _salient(item.title) or _words(item.title), _salient(item.brand)
    kind = [word for part in reversed(departments(item.categories)) for word in _words(part)]
    words = _apart(list(dict.fromkeys((*title[:4], *maker[:1], *kind[:3], *title[4:], *maker[1:], *kind[3:]))))
    return " ".join(words[:most]) or clean_words(item.line, most) or clean_words(item.item_id, most) or "item"


class _Phrases:
    def __init__(self, items: Sequence[Described], most: int, order: Order) -> None:
        self._most, self._order = most, order
        self._titles = [_apart(_salient(f"{item.title} {item.brand}")) for item in items]
        self._brands = [_salient(item.brand)[:1] for item in items]
        self._paths = [list(filter(None, (tuple(_salient(part)) for part in departments(item.categories)))) for item in items]
        self._parts = Counter(part for path in self._paths for part in set(path))
        texts = zip(self._titles, self._paths, strict=True)
        self._words = Counter(stem for title, path in texts for stem in {_stem(word) for part in (title, *path) for word in part})
        self._firsts = Counter(title[0] for title in self._titles if title)
        self._enough = max(8, len(items) // 200)
        self._target = 2 * log(len(items) + 1)

    def phrase(self, row: int) -> str:
        title, parts = self._titles[row], sorted(self._paths[row], key=self._breadth)
        kind = self._kind(title, parts)[: self._most]
        maker = self._brands[row] or [word for word in title[:1] if self._firsts[word] > 2 and not _has_digit(word)]
        rest = [word for word in title if word not in kind]
        own: list[str] = []
        for word in sorted(rest, key=lambda word: (word not in maker, -self._bits(word))):
            chosen = [*kind, *own]
            enough = len(set(own) - set(maker)) >= 2 and len(chosen) >= 3
            if len(chosen) == self._most or (enough and sum(map(self._bits, chosen)) >= self._target):
                break
            own.append(word)
        wider: list[str] = []
        for part in parts:
            said = set(map(_stem, (*kind, *wider, *own)))
            wider += [word for word in part if _stem(word) not in said][: max(0, min(4, self._most) - len(said))]
        if self._order == "title":
            placed = sorted((*kind, *own), key=lambda word: title.index(word) if word in title else -1)
            return " ".join((*wider, *placed))
        own.sort(key=lambda word: (word not in maker, -self._words[_stem(word)]))
        return " ".join((*kind, *wider, *own))

    def _kind(self, title: list[str], parts: list[tuple[str, ...]]) -> list[str]:
        """At most two words, in the order of the title or of the category that they come from."""
        named: list[str] = []
        for part in parts:
            said = set(map(_stem, part))
            named += [word for word in title if _stem(word) in said and word not in named]
            if len(named) >= 2:
                break
        if not named:
            # The first word of a title is rather a brand.
            common = [word for word in title[1:] if self._words[_stem(word)] >= self._enough and not _has_digit(word)]
            named = sorted(common, key=lambda word: self._words[_stem(word)])[:2]
            if len(named) < 2:
                return [word for part in parts[:1] for word in part[-2:]]
        return sorted(named[:2], key=title.index)

    def _breadth(self, part: tuple[str, ...]) -> tuple[bool, int]:
        """Sorts the parts of a category: the rarest that enough items share first, then the rare ones, the commonest of them first."""
        count = self._parts[part]
        return (False, count) if count >= self._enough else (True, -count)

    def _bits(self, word: str) -> float:
        """What a word tells, log(V / items with it): a word of one item counts as one of two, as nobody could learn it."""
        bits = log((len(self._titles) + 1) / max(self._words[_stem(word)], 2))
        return bits / 2 if _has_digit(word) else bits


def _words(text: str) -> list[str]:
    """The words of a text, cut, without field names, stop words and single letters, each once."""
    found = dict.fromkeys(word[:MAX_LETTERS] for word in clean_words(_FIELD.sub(" ", text), 60).split())
    return [word for word in found if len(word) > 1 and word not in STOPWORDS]


def _salient(text: str) -> list[str]:
    return [word for word in _words(text) if not word.isdigit()]


def _apart(words: list[str]) -> list[str]:
    """The words without those that differ from an earlier one in their plural alone."""
    first: dict[str, str] = {}
    for word in words:
        first.setdefault(_stem(word), word)
    return list(first.values())


def _has_digit(word: str) -> bool:
    return any(char.isdigit() for char in word)


def _stem(word: str) -> str:
    """A word without the ending of a plural: the category of brushes names the kind of a brush."""
    if len(word) < 4 or not word.endswith("s") or word.endswith("ss"):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("shes", "ches", "xes", "sses")) else word[:-1]
