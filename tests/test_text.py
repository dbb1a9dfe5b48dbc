import subprocess
import sys
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from genrec_hub.text import clean, departments, item_line, salient, typical_words, words

pieces = st.sampled_from(
    [
        "&amp;",
        "&lt;b&gt;",
        "<b>",
        "</",
        "<",
        ">",
        "..",
        ".",
        " ",
        "\t",
        "\0",
        "\u2028",
        "Ã©",
        "é",
        "e\u0301",
        "🎧",
        "עברית",
        "\ufeff",
        "&#0;",
        "&",
        "amp;",
        "＜",
        "\ud800",
        "a",
        "Z9",
    ]
)
texts = st.one_of(st.text(max_size=60), st.lists(pieces, max_size=25).map("".join))


@given(texts, st.integers(1, 40))
@example("&amp;amp;amp;amp;lt;b&gt;", 40)
@example("<b<b<b>>>x", 40)
@example("one two three", 7)
def test_clean_is_idempotent_and_plain(text, limit):
    once = clean(text, limit)
    assert clean(once, limit) == once
    assert len(once) <= limit
    assert once == once.strip()
    assert "  " not in once
    assert not any(char in once for char in "\0\n\t\r\u2028\ud800")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (None, ""),
        (float("nan"), ""),
        (12, "12"),
        ("Tom &amp;amp; Jerry", "Tom & Jerry"),
        ("<p>Big <b>Bag</b></p>", "Big Bag"),
        ("a\0b\tc\r\nd", "a b c d"),
        ("wait.... what", "wait. what"),
        ("cafe\u0301", "café"),
        ("I <3 tea", "I <3 tea"),
        ("אוזניות אלחוטיות", "אוזניות אלחוטיות"),
        ("🎧 head\u200dphones", "🎧 head\u200dphones"),
        ("\ufefftitle", "title"),
        ("plain title 12", "plain title 12"),
    ],
)
def test_clean(raw, expected):
    assert clean(raw) == expected


def test_clean_mends_mojibake():
    assert clean("caf\u00c3\u00a9") == "café"


def test_clean_cuts_at_a_word():
    assert clean("hello wonderful world", 18) == "hello wonderful"
    assert clean("x" * 50, 18) == "x" * 18
    assert clean("ab " + "x" * 50, 18) == "ab " + "x" * 15


@pytest.mark.parametrize(
    "hostile", ["<b" * 500_000 + ">" * 500_000, "&amp;" * 300_000, "&" * 10**6, "<!--" * 10**5, "é" * 10**6], ids=range(5)
)
def test_clean_is_quick_on_hostile_text(hostile):
    start = time.process_time()
    clean(hostile)
    assert time.process_time() - start < 1.0


def test_works_without_optional_packages():
    """Remote code must load where ftfy and rapidfuzz are not installed; search then forgives no typos but still finds words."""
    code = (
        "import sys; sys.modules['ftfy'] = None; sys.modules['rapidfuzz'] = None\n"
        "from genrec_hub.catalog import Catalog, Item\n"
        "from genrec_hub.history import History\n"
        "from genrec_hub.text import clean\n"
        "c = Catalog([Item('1', 'Café Press'), Item('2', 'Iron Kettle 2 l')])\n"
        "assert clean('caf\\u00e9 <b>x</b>') == 'caf\\u00e9 x'\n"
        "assert History.read('iron kettle\\ncafe press', c).rows == [1, 0]\n"
        "assert c.search('kettel') == []\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_item_line_says_each_word_once():
    item = {"item_id": "1", "title": "Red Hair Dryer", "brand": "Red", "categories": "Beauty > Hair > Dryer", "description": "Quiet."}
    assert item_line(item) == "Red Hair Dryer. Beauty. Quiet"
    assert item_line({"item_id": "7", "title": "", "text": ""}) == "7"
    assert item_line({"item_id": "7", "text": "some text"}) == "some text"
    assert item_line({"item_id": "7", "title": "...", "description": "loud"}) == "loud"


def test_departments():
    assert departments("Beauty > Hair Care | Oils") == ["Beauty", "Hair Care", "Oils"]
    assert departments("rock, indie") == ["rock", "indie"]
    assert departments("AC/DC fans") == ["AC/DC fans"]
    assert departments("") == []


def test_words_and_salient():
    assert words("L'Oréal—hair dryer, 2x!") == ["L'Oréal", "hair", "dryer", "2x"]
    assert salient("The Big big Oil 400 for me") == ["big", "oil"]


def test_typical_words_prefers_what_stands_out():
    frequency = {"hair": 90, "argan": 2, "oil": 10}
    assert typical_words(["argan hair oil", "argan hair oil"], frequency, 100, most=2) == ["argan", "oil"]
    assert typical_words([], frequency, 100) == []
