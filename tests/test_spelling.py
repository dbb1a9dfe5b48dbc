"""Spelling vectors: equal to scikit-learn's TF-IDF of character n-grams up to the projection, and to a loop over n-grams exactly."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from genrec_hub import spelling
from genrec_hub.spelling import BUCKETS, rarity, spell

TEXTS = [
    "Argan oil shampoo, 300 ml",
    "Argan Oil Conditioner",
    "ARGAN OIL SHAMPOO 300ML",
    "Harry Potter and the Goblet of Fire",
    "Harry Potter and the Chamber of Secrets",
    "Ionic hair dryer 2000W",
    "SUPCO SPP6 relay",
    "Crème brûlée torch",
    "日本のお茶",
    "a",
    "...",
    "",
]


def counted(text: str) -> dict[tuple[int, str], int]:
    words = "".join(letter if letter.isalnum() else " " for letter in text.casefold()).split()
    out: dict[tuple[int, str], int] = {}
    for word in words:
        for size in spelling.SIZES:
            for start in range(len(word) + 2 - size + 1):
                gram = (size, f" {word} "[start : start + size])
                out[gram] = out.get(gram, 0) + 1
    return out


def test_n_grams_equal_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spelling, "BUCKETS", 2**40)  # no two n-grams share a bucket
    row, bucket, count = spelling._counts(TEXTS)
    assert len(set(zip(row.tolist(), bucket.tolist(), strict=True))) == len(row)
    home: dict[tuple[int, str], set[int]] = {}
    for number, text in enumerate(TEXTS):
        mine, found = counted(text), dict(zip(bucket[row == number].tolist(), count[row == number].tolist(), strict=True))
        assert sorted(found.values()) == sorted(mine.values()), text
        for gram, times in mine.items():
            holders = {place for place, seen in found.items() if seen == times}
            home[gram] = home.get(gram, holders) & holders
    assert all(home.values())  # every n-gram has a bucket that holds it wherever it occurs, as often as it occurs


def test_cosines_are_those_of_tf_idf() -> None:
    ours = spell(TEXTS, rarity(TEXTS), 8192)
    theirs = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True).fit_transform(
        " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split()) for text in TEXTS
    )
    want = (theirs @ theirs.T).toarray()
    assert np.abs(ours @ ours.T - want).max() < 0.06
    assert want[0, 2] > 0.5 > want[0, 3]


def test_rare_n_grams_weigh_more() -> None:
    weights, (_, bucket, _) = rarity(TEXTS), spelling._counts(TEXTS)
    documents = np.bincount(bucket, minlength=BUCKETS)
    assert documents.max() == 4  # "er " of "shampoo, 300 ml" and the like
    assert weights[documents == 3] == pytest.approx(np.log((1 + len(TEXTS)) / 4) + 1)
    assert weights[documents == 0] == pytest.approx(np.log(1 + len(TEXTS)) + 1)


def test_a_text_is_spelled_alone() -> None:
    weights = rarity(TEXTS)
    together = spell(TEXTS, weights, 64)
    assert together.dtype == np.float32
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_array_equal(spell([text], weights, 64)[0], vector)
    lengths = np.linalg.norm(together, axis=1)
    assert lengths[:10] == pytest.approx(1)
    assert not lengths[10:].any()  # no letter, no digit
    assert spell([], weights, 64).shape == (0, 64)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rarity(TEXTS), spell(TEXTS, rarity(TEXTS), 64)
    monkeypatch.setattr(spelling, "CHUNK", 5)
    np.testing.assert_array_equal(rarity(TEXTS), whole[0])
    np.testing.assert_array_equal(spell(TEXTS, whole[0], 64), whole[1])
