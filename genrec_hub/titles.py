"""Finds items by words of their titles: typos, missing words, other orders and accents are forgiven."""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from math import log

import numpy as np

from .text import STOPWORDS

_SEARCH_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|[^\W_\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff][\w\u0900-\u0dff]*")
_MARKS = re.compile(r"[\u0300-\u036f'\u2019]")
_LEAST = 0.2


def _search_words(text: str) -> list[str]:
    """Words as they are compared: lower case, no accents, no apostrophes; scripts without spaces by character."""
    text = text.casefold()
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text)
    return list(dict.fromkeys(_SEARCH_WORD.findall(_MARKS.sub("", text))))


class TitleIndex:
    """Word -> rows, for `Catalog.search`."""

    def __init__(self, items: Sequence[tuple[str, str]]) -> None:
        rows: dict[str, list[int]] = {}
        titles = [_search_words(title) for title, _ in items]
        for row, ((_, brand), title) in enumerate(zip(items, titles, strict=True)):
            for word in dict.fromkeys((*title, *_search_words(brand))) if brand else title:
                rows.setdefault(word, []).append(row)
        self.size, self.lengths = len(items), np.array([len(title) for title, _ in items])
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
        """Returns (row, similarity in 0..1) of the k nearest titles, best first."""
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
