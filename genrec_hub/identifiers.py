"""Textual identifiers of a catalogue: Algorithm 1 in rounds over all items, unique as text and as tokens, stable once given.

All items are asked at once and each takes its first candidate that is free, in the order of the item ids; only the losers go again, under a
higher diversity penalty, then longer. What is left after the last round gets words of its own that tell it apart, then a number.

Source: IDGenRec (arXiv 2403.19021) Algorithm 1.
Differs: the published code asks item by item in the order of the file, without an end, keeps case, allows one empty identifier and compares
texts alone; here the order of the file plays no part, and two identifiers differ in their tokens as well.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, count, islice
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .phrases import Described, clean_words, generator_text, own_words
from .processes import gathered, share

logger = logging.getLogger(__name__)

FILE = "identifiers.safetensors"
FORMAT_VERSION = 1
_KIND = "genrec-identifiers"
ROUNDS = 18
"""Penalties 1 to 9 at two lengths."""
LEAST_ASKED = 20_000
"""Texts that may be generated for the smallest catalogue before the rule takes over; larger ones have one and a half an item."""

_BASE = 8
"""Words of a candidate that is made unique by rule."""

Generate = Callable[[Sequence[str], float, int], list[list[str]]]
"""(texts, diversity penalty, least length L) -> the candidates of each text, best first. L counts the start token, as in the paper."""
Encode = Callable[[str], list[int]]
"""The tokenizer without special tokens."""


class Identifier(NamedTuple):
    """A textual identifier and its tokens, without special ones."""

    text: str
    tokens: tuple[int, ...]


class Identifiers(Sequence[Identifier]):
    """The identifiers of a catalogue; row r belongs to item r.

    Args:
        item_ids: the item that each belongs to.
        texts: the identifiers.
        tokens: their tokens, without special ones.
        generator: fingerprint of the generator and its tokenizer.
        version: 1 for a catalogue's first map; one more when another generator made it anew.
        catalog: fingerprint of the catalogue, "" when unknown.

    Raises:
        ValueError: three lists of different lengths, an empty identifier, or one that occurs twice, as text or as tokens.
    """

    def __init__(
        self,
        item_ids: Iterable[str],
        texts: Iterable[str],
        tokens: Iterable[Sequence[int]],
        *,
        generator: str,
        version: int = 1,
        catalog: str = "",
    ) -> None:
        self.item_ids, self.texts = list(item_ids), list(texts)
        self.fingerprint, self.version, self.catalog = generator, version, catalog
        sequences = list(tokens)
        self._offsets = _offsets(map(len, sequences))
        self._flat = np.fromiter((token for own in sequences for token in own), np.int32, int(self._offsets[-1]))
        if not len(self.item_ids) == len(self.texts) == len(sequences):
            raise ValueError(f"Got {len(self.item_ids)} item ids, {len(self.texts)} texts and {len(sequences)} token sequences.")
        _refuse_twice(self.item_ids)
        firsts: dict[str | bytes, int] = {}
        for row, (text, own) in enumerate(zip(self.texts, self.tokens, strict=True)):
            if not text or not len(own):
                raise ValueError(f"The identifier of item {self.item_ids[row]!r} is empty: every item needs a text of at least one token.")
            for key in (text, own.tobytes()):
                first = firsts.setdefault(key, row)
                if first != row:
                    what = "text" if key == text else "tokens"
                    raise ValueError(f"Items {self.item_ids[first]!r} and {self.item_ids[row]!r} have the same {what}: {text!r}.")

    @overload
    def __getitem__(self, row: int) -> Identifier: ...
    @overload
    def __getitem__(self, row: slice) -> list[Identifier]: ...
    def __getitem__(self, row: int | slice) -> Identifier | list[Identifier]:
        if isinstance(row, slice):
            return [self[own] for own in range(*row.indices(len(self)))]
        own = range(len(self))[row]
        return Identifier(self.texts[own], tuple(self._flat[self._offsets[own] : self._offsets[own + 1]].tolist()))

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"Identifiers({len(self)} items, version {self.version}, generator {self.fingerprint[:12]})"

    @property
    def tokens(self) -> list[NDArray[np.int32]]:
        """The tokens of each identifier, without special ones: views of one flat array."""
        return np.split(self._flat, self._offsets[1:-1]) if len(self._offsets) > 1 else []

    def save(self, folder: str | Path) -> Path:
        """Writes `identifiers.safetensors` into the folder and returns its path."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        arrays = {"tokens": self._flat, "token_offsets": self._offsets}
        for name, strings in (("text", self.texts), ("item_id", self.item_ids)):
            encoded = [string.encode() for string in strings]
            arrays |= {f"{name}s": np.frombuffer(b"".join(encoded), np.uint8), f"{name}_offsets": _offsets(map(len, encoded))}
        told = {"format_version": FORMAT_VERSION, "version": self.version, "generator": self.fingerprint, "catalog": self.catalog}
        path = Path(folder) / FILE
        # One entry: safetensors writes several in an order of its own, and equal identifiers should give equal files.
        save_file(arrays, path, metadata={_KIND: json.dumps(told)})
        return path

    @classmethod
    def load(cls, folder: str | Path) -> "Identifiers":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: when the folder holds no identifiers.
            ValueError: a file of another kind, of a newer format, or damaged.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no identifiers: {FILE} is missing; give the catalogue identifiers first.")
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            told = json.loads(metadata.get(_KIND, "null"))
        except (SafetensorError, json.JSONDecodeError) as error:
            raise _damaged(path, error) from None
        if told is None:
            raise ValueError(f"{path} holds no identifiers (it says {metadata}): is it another file under this name?")
        if told.get("format_version", 0) > FORMAT_VERSION:
            raise ValueError(f"{path} has format {told['format_version']}, this package reads up to {FORMAT_VERSION}: upgrade genrec_hub.")
        try:
            texts, item_ids = ([bytes(part).decode() for part in _parts(arrays, name)] for name in ("text", "item_id"))
            tokens = [own.tolist() for own in _parts(arrays, "token")]
            return cls(item_ids, texts, tokens, generator=told["generator"], version=told["version"], catalog=told["catalog"])
        except (KeyError, ValueError) as error:
            raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged ({error}): copy it again or give the catalogue identifiers anew.")


def _offsets(lengths: Iterable[int]) -> NDArray[np.int64]:
    """Where each part starts, and the end of the last. Shape: (V,) -> (V + 1,)."""
    return np.array([0, *accumulate(lengths)], np.int64)


def _parts(arrays: dict[str, NDArray[np.int64]], name: str) -> list[NDArray[np.int64]]:
    """The parts of a flat array; a ValueError when the offsets are none of it."""
    flat, offsets = arrays[f"{name}s"], arrays[f"{name}_offsets"]
    if flat.dtype.kind not in "iu" or offsets.dtype.kind not in "iu":
        raise ValueError(f"the {name}s or their offsets are no whole numbers")
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(flat) or (np.diff(offsets) < 0).any():
        raise ValueError(f"the {name}s do not fit their offsets")
    return np.split(flat, offsets[1:-1]) if len(offsets) > 1 else []


def _refuse_twice(item_ids: Iterable[str]) -> None:
    twice = next((item_id for item_id, number in Counter(item_ids).items() if number > 1), None)
    if twice is not None:
        raise ValueError(f"The item_id {twice!r} occurs twice: ids must be unique, remove one of the two.")


# Assigning


def schedule(rounds: int = ROUNDS) -> Iterator[tuple[float, int]]:
    """Yields (diversity penalty, least length L) of each round: penalties 1 to 9 at L = 1, then at 11, 21, ..."""
    return ((1.0 + turn % 9, 1 + 10 * (turn // 9)) for turn in range(rounds))


def assign_identifiers(
    items: Sequence[Described],
    generate: Generate,
    encode: Encode,
    *,
    generator: str,
    old: Identifiers | None = None,
    catalog: str = "",
    unknown: int | None = None,
    rounds: int = ROUNDS,
    most: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Identifiers:
    """Gives every item an identifier that no other has, as text and as tokens. The tokens are `encode(text)`.

    The result is a function of the items, `old` and `generate`; the order of the items plays no part, nor do batches as long as
    `generate` answers for each text alone. Several processes ask it for a share of the texts each, and all have the whole result.

    Args:
        items: the catalogue; item ids are unique.
        generate: candidates of many texts; called with the distinct texts of all open items, round after round.
        encode: the tokenizer.
        generator: fingerprint of generator and tokenizer.
        old: the identifiers so far. If the same generator made them, their items keep theirs and all of them stay taken, also those of
            items that are gone; another generator begins a new version.
        catalog: fingerprint of the catalogue, kept with the result.
        unknown: the tokenizer's unknown token; no identifier holds it.
        rounds: rounds of generation before words and numbers are appended by rule.
        most: texts that may be generated in all, None for 20,000 or one and a half an item, whichever is more. Rounds are whole: one that
            would go beyond is not begun, the first always is.
        progress: called with (items done, items) after every round.

    Raises:
        ValueError: an item id occurs twice, `generate` answers for another number of texts, or the tokenizer knows neither the words of
            an item nor any digit or letter.
    """
    order = sorted(range(len(items)), key=lambda row: items[row].item_id)
    _refuse_twice(items[row].item_id for row in order)
    keeps = old is not None and old.fingerprint == generator
    taken = _Taken(encode, unknown)
    found: dict[int, Identifier] = {}
    if old is not None and keeps:
        known = dict(zip(old.item_ids, old, strict=True))
        taken.keep(old)
        found = {row: known[items[row].item_id] for row in order if items[row].item_id in known}
    losers = [row for row in order if row not in found]
    texts = {row: generator_text(items[row]) for row in losers}
    first: dict[str, str] = {}
    asked, most = 0, max(LEAST_ASKED, 3 * len(losers) // 2) if most is None else most
    for penalty, length in schedule(rounds):
        distinct = list(dict.fromkeys(texts[row] for row in losers))
        if not distinct or (asked and asked + len(distinct) > most):
            break
        asked += len(distinct)
        part = share(len(distinct))
        answers = generate(distinct[part.start : part.stop], penalty, length)
        if len(answers) != len(part):
            raise ValueError(f"The generator was asked for the candidates of {len(part)} texts and answered for {len(answers)}.")
        answers = gathered(answers)
        candidates = {text: list(dict.fromkeys(map(clean_words, own))) for text, own in zip(distinct, answers, strict=True)}
        if not first:
            first = {text: next(filter(taken.known, own), "") for text, own in candidates.items()}
        found |= {row: own for row in losers if (own := taken.take(candidates[texts[row]])) is not None}
        losers = [row for row in losers if row not in found]
        if progress is not None:
            progress(len(found), len(items))
    if losers:
        logger.info("%d of %d items get words or numbers of their own after %d generated texts.", len(losers), len(items), asked)
        apart = _Apart(items, taken, {own.text: items[row] for row, own in found.items()})
        found |= {row: apart.identify(items[row], first.get(texts[row], "")) for row in losers}
        if progress is not None:
            progress(len(found), len(items))
    version = 1 if old is None else old.version + (not keeps)
    texts_of = [found[row].text for row in range(len(items))]
    tokens_of = [found[row].tokens for row in range(len(items))]
    item_ids = [item.item_id for item in items]
    return Identifiers(item_ids, texts_of, tokens_of, generator=generator, version=version, catalog=catalog)


class _Taken:
    """The identifiers that are given away; whether another is free is two look-ups, however many there are."""

    def __init__(self, encode: Encode, unknown: int | None) -> None:
        self._encode, self._unknown = encode, unknown
        self._texts: set[str] = set()
        self._tokens: set[tuple[int, ...]] = set()

    def keep(self, old: Iterable[Identifier]) -> None:
        for text, tokens in old:
            self._texts.add(text)
            self._tokens.add(tokens)

    def known(self, text: str) -> tuple[int, ...]:
        """The tokens of a text, () if it is empty or holds something that the tokenizer does not know."""
        tokens = tuple(self._encode(text)) if text else ()
        return () if self._unknown in tokens else tokens

    def take(self, candidates: Iterable[str]) -> Identifier | None:
        """Takes the first free candidate, if there is one."""
        for text in candidates:
            if text not in self._texts and (tokens := self.known(text)) and tokens not in self._tokens:
                self._texts.add(text)
                self._tokens.add(tokens)
                return Identifier(text, tokens)
        return None


class _Apart:
    """Tells items apart by their own words: one that the other does not have and that is rare, several, at last a number."""

    def __init__(self, items: Sequence[Described], taken: _Taken, holders: Mapping[str, Described]) -> None:
        self._items, self._taken, self._holders = items, taken, holders
        self._held: dict[str, dict[str, int]] = {}
        self._frequency = Counter(word for item in items for word in own_words(item))
        self._numbers: dict[str, Iterator[str]] = {}
        self._symbols = [symbol for symbol in "0123456789abcdefghijklmnopqrstuvwxyz" if taken.known(symbol)]

    def identify(self, item: Described, base: str) -> Identifier:
        """A free identifier that begins with `base`, cut, or with words of the item where that is empty."""
        own = own_words(item)
        if not base:
            usable = [word for word in own if self._taken.known(word)][:3]
            base = " ".join(usable) or clean_words(item.item_id)
            base = base if self._taken.known(base) else "item"
        base = " ".join(base.split()[:_BASE])
        if base in self._holders and base not in self._held:
            self._held[base] = own_words(self._holders[base])
        held, common = self._held.get(base, {}), len(self._items) // 100 + 3
        # The field comes before rarity, so that a rare word of the description is used only where the title has none.
        fresh = [word for word in own if word not in base.split()]
        fresh.sort(key=lambda word: (word in held, self._frequency[word] > common, own[word], word.isdigit(), self._frequency[word]))
        fresh = fresh[:12]
        single = (f"{base} {word}" for word in fresh)
        several = (" ".join([base, *fresh[:size]]) for size in range(2, 5))
        found = self._taken.take(clean_words(text) for text in (base, *single, *several) if text)
        return found or self._number(item, base)

    def _number(self, item: Described, base: str) -> Identifier:
        # Each number is tried once for a base, so that thousands of equal items cost no more than as many different ones.
        numbers = self._numbers.setdefault(base, self._count())
        found = self._taken.take(islice((f"{base} {number}".strip() for number in numbers), len(self._items) + 1_000))
        if found is None:
            raise ValueError(
                f"No identifier is left for item {item.item_id!r}: the tokenizer knows neither its words nor enough digits and letters "
                "to tell items apart; train it on texts that hold them."
            )
        return found

    def _count(self) -> Iterator[str]:
        """2, 3, ... in the digits that the tokenizer knows, in its letters where it knows no digits."""
        digits = [symbol for symbol in self._symbols if symbol.isdigit()]
        if len(digits) == 10:
            yield from map(str, count(2))
        letters = [symbol for symbol in self._symbols if symbol.isalpha()]
        for number in count() if letters else ():
            name, rest = "", number + 1
            while rest:
                rest, place = divmod(rest - 1, len(letters))
                name = letters[place] + name
            yield name
