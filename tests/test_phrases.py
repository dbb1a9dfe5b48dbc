"""The words that identifiers are made of."""

import random
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import genrec_hub
from genrec_hub.catalog import Catalog, Item
from genrec_hub.phrases import MAX_WORDS, clean_words, generator_text, leading_words, own_words, salient_words

SHOP = Path(genrec_hub.__file__).with_name("shop.jsonl")
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Revlon IONIC hair-dryer, 1875W!", "revlon ionic hair dryer 1875w"),
        ("men's L\u2019Oréal 'n' rock", "mens loréal n rock"),
        ("snake_case __ x", "snake case x"),
        ("Straße ΟΔΟΣ", "strasse οδοσ"),
        ("ﬁne ＦＵＬＬ №5", "fine full no5"),
        ("हिन्दी की किताब", "हिन्दी की किताब"),
        ("ภาษาไทย", "ภาษาไทย"),
        ("Ꭰꮣ", "ꭰꮣ"),
        ("cafe\u0301", "café"),
        ("🎧 ❤️ 👍🏽", ""),
        ("\u0301 \u20e3", ""),
        ("", ""),
    ],
)
def test_clean_words(raw, expected):
    assert clean_words(raw) == expected


@given(texts)
@example("İstanbul")
@example("ǰΐẞ")
@example("a\u0345B")
def test_clean_words_is_stable_and_lower_case(text):
    once = clean_words(text)
    assert clean_words(once) == once == once.lower()
    assert once.split() == once.split(" ") or not once
    assert not any(char in once for char in "_-.,;:!?'\"<>/()")


def test_clean_words_cuts():
    assert len(clean_words("word " * 50).split()) == MAX_WORDS
    assert clean_words("a b c d", 2) == "a b"


def test_generator_text_names_no_field():
    item = Item("1", text="title: Lip Balm; brand: na; categories: Beauty, Lips; price: 3.99; description: soft; salesrank: Beauty 3")
    assert generator_text(item) == "Lip Balm. . Beauty, Lips. 3.99. soft. Beauty 3"
    full = Item("1", "Iron Kettle", "Okapi", "Kitchen > Tea", "For tea.", "9")
    assert generator_text(full) == "Iron Kettle. Okapi. Tea. Kitchen"
    assert generator_text(Item("id-7", "...")) == "id-7"
    assert generator_text(Item("id-7", "Note: all categories, any brand")) == "Note: all categories, any brand"


def test_own_words_say_their_field():
    item = Item("1", "Iron Kettle 2 l", "Okapi Iron", "Kitchen > Tea Things", "The kettle for every day")
    assert own_words(item) == {
        "iron": 0, "kettle": 0, "okapi": 1, "tea": 2, "things": 2, "kitchen": 2, "every": 3, "day": 3,
    }  # fmt: skip
    assert own_words(Item("1", "x" * 200)) == {"x" * 24: 0}


def test_phrases_of_the_sample_shop():
    items = list(Catalog.from_file(SHOP))
    phrases = dict(zip((item.title for item in items), salient_words(items), strict=True))
    assert phrases["Wet-Hair Detangling Brush, Sea Green"] == "hair brush tanglefin wet detangling"
    assert phrases["Clockmaker's Guild, Worker Placement Game"] == "game tinderpatch clockmakers guild"
    titled = dict(zip((item.title for item in items), salient_words(items, order="title"), strict=True))
    assert titled["Wet-Hair Detangling Brush, Sea Green"] == "wet hair detangling brush tanglefin"
    lengths = [len(phrase.split()) for phrase in phrases.values()]
    assert 3 <= min(lengths) <= max(lengths) <= 6
    assert len(set(phrases.values())) > 0.97 * len(items)
    # From the general to the particular: few first words, each of several items.
    firsts = [phrase.split()[0] for phrase in phrases.values()]
    assert sum(firsts.count(first) > 1 for first in firsts) > 0.8 * len(items)
    assert {*phrases.values()} == {clean_words(phrase) for phrase in phrases.values()}
    for item, phrase in zip(items, salient_words(items), strict=True):
        assert set(phrase.split()) <= set(own_words(item))


@pytest.mark.parametrize(
    ("item", "phrase"),
    [
        (Item("1", "Iron Kettle, 2 l", "Okapi Iron", "Kitchen > Tea Things"), "iron kettle okapi tea things kitchen"),
        (Item("1", "One Two Three Four Five Six", "Okapi", "Kitchen > Tea"), "one two three four okapi tea kitchen"),
        (Item("1", "Brushes with a Brush", "", ""), "brushes"),
        (Item("1", "12", "", ""), "12"),
        (Item("b-1", "🎧"), "b 1"),
        (Item("🎧"), "item"),
    ],
)
def test_leading_words_follow_the_text(item, phrase):
    assert leading_words(item) == phrase
    assert len(leading_words(item, 2).split()) <= 2


def test_phrases_do_not_depend_on_the_order_of_the_items():
    items = list(Catalog.from_file(SHOP))
    known = dict(zip(items, salient_words(items), strict=True))
    random.Random(3).shuffle(items)
    assert dict(zip(items, salient_words(items), strict=True)) == known


def test_phrases_keep_to_their_length():
    assert all(len(phrase.split()) <= 3 for phrase in salient_words(list(Catalog.from_file(SHOP)), most=3))


@pytest.mark.parametrize(
    ("item", "phrase"),
    [
        (Item("b-1", "🎧"), "b 1"),
        (Item("🎧"), "item"),
        (Item("1", "the of 12"), "the of 12"),
        (Item("1", "中文標題很長" * 10), ("中文標題很長" * 10)[:24]),
        (Item("1", "Kettle kettles KETTLE"), "kettle"),
    ],
)
def test_phrases_of_odd_items(item, phrase):
    assert salient_words([item]) == [phrase]


def test_no_phrases_of_nothing():
    assert salient_words([]) == []


@given(st.lists(st.tuples(texts, texts, texts), max_size=8))
def test_every_item_has_a_clean_phrase(fields):
    items = [Item(f"i{row}", *own) for row, own in enumerate(fields)]
    for order in ("general", "title"):
        for phrase in salient_words(items, order=order):
            assert phrase
            assert len(phrase.split()) <= 6
