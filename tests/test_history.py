import json
import logging
import random
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec_hub.catalog import Catalog, Item
from genrec_hub.history import MAX_LINES, History

CATALOG = Catalog(
    [
        Item("a1", "CHI PRO Hair Dryer 1875W", "CHI"),
        Item("a2", "Renpure Originals Argan Oil Shampoo and Conditioner, 16 Ounce (Pack of 2)"),
        Item("a3", "Agadir Argan Oil Daily Moisturizing Shampoo, 12.4 Ounce"),
        Item("a4", "DermOrganic Argan Oil Sulfate-Free Colour Care Shampoo 12 oz."),
        Item("a5", "Toy Story (1995)"),
        Item("a6", "Toy Story 2 (1999)"),
        Item("a7", "Starbucks", "Reno"),
        Item("a8", "Starbucks", "Tucson"),
        Item("a9", "Starbucks", "Tempe"),
        Item("b1", "Starbucks", "Mesa"),
        Item("b2", "Starbucks", "Boise"),
        Item("b3", "1. FC Wunderland Scarf"),
        Item("b4", "אוזניות אלחוטיות שחורות"),
        Item("b5", "Green Tea"),
        Item("b6", "🎧"),
    ]
)


def only(line):
    history = History.read([line], CATALOG)
    assert len(history) == 1
    return history.matches[0]


def test_by_id():
    match = only("a3")
    assert (match.row, match.how, match.confidence, match.alternatives) == (2, "id", 1.0, ())
    assert match.item is CATALOG[2]


@pytest.mark.parametrize("line", ["chi pro hair dryer 1875w", "  CHI  PRO Hair\tDryer 1875W ", "<b>CHI PRO Hair Dryer 1875W</b>"])
def test_by_title(line):
    match = only(line)
    assert (match.row, match.how, match.confidence) == (0, "title", 1.0)


def test_of_equal_titles_the_first_and_the_others_as_alternatives():
    match = only("starbucks")
    assert (match.row, match.how, match.alternatives) == (6, "title", (7, 8, 9))


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ("CHI pro hair dryer", 0),
        ("chi pro hairdryer", 0),
        ("chi pro hair dyrer", 0),
        ("toy story", 4),
        ("toy story 2", 5),
        ("Agadir argan oil shampoo", 2),
        ("אוזניות אלחוטיות", 12),
    ],
)
def test_near_titles_are_taken(line, row):
    match = only(line)
    assert (match.row, match.how) == (row, "fuzzy")
    assert 0.6 < match.confidence < 1
    assert row not in match.alternatives
    assert len(match.alternatives) <= 3


def test_a_second_title_is_an_alternative():
    assert only("toy story").alternatives[0] == 5


@pytest.mark.parametrize(
    ("line", "alternatives"),
    [
        ("argan oil shampoo", {1, 2, 3}),  # three fit: none is forced
        ("green tea shampoo", None),  # two of three words are not the thing
        ("a birthday present for my aunt", set()),
        ("shampoo", {1, 2, 3}),
    ],
)
def test_poor_matches_stay_words(line, alternatives):
    match = only(line)
    assert (match.row, match.how) == (None, "text")
    assert match.item.title == line
    assert match.item.item_id.startswith("typed:")
    assert match.confidence < 0.75
    assert alternatives is None or set(match.alternatives) == alternatives


def test_typed_ids_are_stable_and_differ():
    first, again, other = (only(line).item.item_id for line in ("a lamp", "A  Lamp", "a lamb"))
    assert first == again != other


def test_text_is_split_into_lines_and_bullets_go():
    text = "- toy story\n\n* Starbucks\r\n3. green tea\n   \n• [x] a3\n12 unknown things\n[ ] a4"
    history = History.read(text.replace("• [x]", "•"), CATALOG)
    assert history.rows == [4, 6, 13, 2, None, 3]
    assert [item.title for item in history][4] == "12 unknown things"
    assert History.read("<ul><li>a1</li><li>a2</li></ul>a3<br/>a4", CATALOG).rows == [0, 1, 2, 3]


def test_a_title_that_looks_like_a_bullet_is_itself():
    assert only("1. FC Wunderland Scarf").how == "title"
    assert only("- a1").how == "id"
    both = Catalog([Item("1", "FC Scarf"), Item("2", "1. FC Scarf")])
    assert History.read("1. FC Scarf\n2. FC Scarf\n- 1. FC Scarf", both).rows == [1, 0, 1]


@pytest.mark.parametrize("nothing", ["", "  \n\n ", [], ["", " ", "\0", "<br>", "\u200b"], [None], [{}], iter(())])
def test_nothing_is_an_empty_history(nothing):
    history = History.read(nothing, CATALOG)
    assert len(history) == 0
    assert history.items == history.rows == list(history) == []
    assert not history


def test_empty_catalogue():
    history = History.read("toy story", Catalog([]))
    assert history.rows == [None]
    assert history.matches[0].alternatives == ()


def test_items_and_mappings():
    own = Item("x1", "Own thing", brand="Me")
    known = Item("a1", "A title of their own")
    history = History.read(
        [
            own,
            known,
            {"item_id": "a2"},
            {"item_id": "x2", "title": "T", "price": 3},
            {"title": "green  TEA"},
            {"title": "Lamp", "brand": "B"},
        ],
        CATALOG,
    )
    assert history.rows == [None, 0, 1, None, 13, None]
    assert history[0] is own
    assert history[1] is CATALOG[0]
    assert (history[3].title, history[3].price) == ("T", "3")
    assert history[5].item_id.startswith("typed:")
    assert (history[5].title, history[5].brand) == ("Lamp", "B")
    assert [match.how for match in history.matches] == ["text", "id", "id", "text", "title", "text"]
    assert History.read(own, CATALOG).items == History.read([own], CATALOG).items == [own]


def test_a_history_may_hold_an_item_twice_and_keeps_its_order():
    assert History.read(["a3", "a1", "a3", "Toy Story (1995)"], CATALOG).rows == [2, 0, 2, 4]


def test_more_lines_than_allowed_keep_the_last(caplog):
    with caplog.at_level(logging.WARNING, "genrec_hub.history"):
        history = History.read([f"thing {n}" for n in range(7)] + ["", "a1"], CATALOG, max_lines=3)
    assert [item.title for item in history] == ["thing 5", "thing 6", "CHI PRO Hair Dryer 1875W"]
    assert "8 lines: the last 3 are kept" in caplog.text
    assert len(History.read("\n".join(["a1"] * (MAX_LINES + 5)), CATALOG)) == MAX_LINES
    assert len(History.read("a1", CATALOG, max_lines=0)) == 0


def test_of_a_long_list_no_item_of_the_catalogue_is_lost():
    catalog = Catalog(Item(f"i{n}", f"Thing number {n}") for n in range(600))
    assert History.read(catalog.ids, catalog).rows == list(range(600))
    assert History.read(catalog.titles, catalog).rows == list(range(600))
    assert History.read(list(catalog), catalog).rows == list(range(600))
    mixed = ["i1", "- thing  number 2", "thnig number 3", Item("i4"), Item("own"), {"item_id": "i5"}, {"title": "Own"}, "thnig number 6"]
    assert History.read(mixed, catalog, max_lines=1).rows == [1, 2, 4, 5, 6]


@pytest.mark.parametrize("item_id", ["a..b", "A&amp;B", "<http://www.wikidata.org/entity/Q42>", "\uff21\ufb01", "x" * 500, "x  y", "7"])
def test_an_id_is_found_as_it_is(item_id):
    catalog = Catalog([Item("a.b", "a"), Item("A&B", "b"), Item(item_id, "c")])
    for line in (item_id, f" {item_id}\t", f"- {item_id}", {"item_id": item_id}, Item(item_id)):
        (match,) = History.read([line], catalog).matches
        assert (match.row, match.how) == (2, "id")
    assert History.read(f"* {item_id}\n<b>a.b</b>", catalog).rows == [2, 0]


def test_numbers_and_nothing_in_a_list():
    catalog = Catalog([Item("7", "Lamp")])
    assert History.read([7, 7.0, np.int64(7), np.float32("nan"), float("nan")], catalog).rows == [0, 0, 0]
    assert not History.read([{"title": np.float32("nan")}], catalog)


@pytest.mark.parametrize(
    "line",
    [
        "x" * 10_000,
        "word " * 2_000,
        "<b" * 5_000,
        "&amp;" * 2_000,
        "🎧🎧🎧",
        "\0chi\0pro\0",
        "'; DROP TABLE items; --",
        "\u202eevil\u202c",
        "\ud800",
        "?!",
        "漢字" * 500,
    ],
    ids=range(11),
)
def test_hostile_lines(line):
    start = time.process_time()
    for history in (History.read(line, CATALOG), History.read([line], CATALOG)):
        assert len(history) <= 1
        json.dumps([match.to_dict() for match in history.matches], ensure_ascii=False).encode()
        assert all(len(match.line) <= 300 for match in history.matches)
    assert time.process_time() - start < 2


def test_emoji_title():
    assert only("🎧").how == "title"
    assert only("🎸").how == "text"


@given(st.lists(st.one_of(st.text(max_size=30), st.sampled_from(CATALOG.titles + CATALOG.ids)), max_size=8))
def test_reading_never_fails_and_stays_parallel(lines):
    history = History.read(lines, CATALOG)
    assert len(history.matches) == len(history.rows) == len(history.items) <= len(lines)
    for match, row, item in zip(history.matches, history.rows, history, strict=True):
        assert (row is None) == item.item_id.startswith("typed:") == (match.how == "text")
        assert row is None or CATALOG[row] is item
        assert 0 <= match.confidence <= 1
        assert row not in match.alternatives
        assert len(set(match.alternatives)) == len(match.alternatives) <= 3
    assert History.read(lines, CATALOG) == history


def test_every_title_and_id_is_found_again():
    assert History.read(CATALOG.ids, CATALOG).rows == list(range(len(CATALOG)))
    first = {title: row for row, title in reversed(list(enumerate(CATALOG.titles)))}
    assert History.read(CATALOG.titles, CATALOG).rows == [first[title] for title in CATALOG.titles]


def test_slices_and_dict():
    history = History.read("a1\ntoy story\nlamp of mine", CATALOG)
    assert history[1:].rows == [4, None]
    assert history[-1].title == "lamp of mine"
    told = history.matches[1].to_dict()
    assert told["item"] == CATALOG[4].to_dict()
    assert list(told) == ["line", "item", "row", "how", "confidence", "alternatives"]
    assert "3 items, 2 of the catalogue" in repr(history)


# The thresholds, on real titles.


def _misspell(title, rng):
    typed = title.lower().split()
    place = rng.choice([i for i, word in enumerate(typed) if len(word) >= 5 and word.isalpha()] or [0])
    word = typed[place]
    if len(word) >= 5 and word.isalpha():
        cut = rng.randrange(1, len(word) - 1)
        typed[place] = word[:cut] + word[cut + 1 :]
    return " ".join(typed)


@pytest.mark.parametrize("domain", ["amazon14_beauty", "movielens_small"])
def test_thresholds_on_real_titles(domain, shared):
    """A misspelt title is taken and right; a title that the catalogue does not hold is seldom taken for another one."""
    path = shared / domain / "items.parquet"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    rng, catalog = random.Random(0), Catalog.from_file(path)
    held = set(rng.sample(range(len(catalog)), len(catalog) // 10))
    rest = Catalog(item for row, item in enumerate(catalog) if row not in held)
    asked = rng.sample(range(len(rest)), 150)
    read = History.read([_misspell(rest[row].title, rng) for row in asked], rest)
    taken = [(match.item.title, rest[row].title) for match, row in zip(read.matches, asked, strict=True) if match.row is not None]
    assert len(taken) >= 0.9 * len(asked)
    assert sum(got == wanted for got, wanted in taken) >= 0.98 * len(taken)
    strangers = History.read([catalog[row].title for row in sorted(held)[:150]], rest)
    assert sum(match.how == "fuzzy" for match in strangers.matches) <= 0.25 * len(strangers)


def test_fifty_lines_against_twenty_thousand_titles_are_quick():
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghijklmnoprstu", k=rng.randint(4, 9))) for _ in range(15_000)]
    catalog = Catalog(Item(str(n), " ".join(rng.choices(vocabulary, k=9))) for n in range(20_000))
    lines = [_misspell(catalog[rng.randrange(20_000)].title, rng) for _ in range(50)]
    catalog.search("warm up")
    start = time.process_time()
    History.read(lines, catalog)
    assert time.process_time() - start < 2.0  # 0.2 s on an idle core; the room is for busy machines
