"""Tiny files in the true formats of every source, from a local server to a domain; the filter equals its plain form."""

import gzip
import io
import json
import threading
import zipfile
from datetime import datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec_hub.domain import Domain
from genrec_hub.sources import SOURCES, build

# user -> items in time order; item z has no description, user w is too short, items of time 30 come first in the file
HISTORIES = {"u": "abcz", "v": "bca", "w": "a", "x": "cab"}
EVENTS = [(user, item, 30 + 10 * place) for user, own in HISTORIES.items() for place, item in enumerate(own)]
EVENTS = [EVENTS[n] for n in np.random.default_rng(0).permutation(len(EVENTS))]


def lines(rows, literal=False):
    return gzip.compress("".join((repr(row) if literal else json.dumps(row)) + "\n" for row in rows).encode())


def day(time):
    return f"2017-12-{time // 10:02d}"


def archive(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        for name, text in members.items():
            out.writestr(f"ml/{name}", text if isinstance(text, bytes) else text.encode())
    return file.getvalue()


def table(rows):
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def described(**fields):
    """A row for each of the three items; a function makes the value of an item."""
    return [{name: value(item) if callable(value) else value for name, value in fields.items()} for item in "abc"]


def events(**fields):
    """A row for each event; a function makes the value of (user, item, time)."""
    return [{name: value(*event) if callable(value) else value for name, value in fields.items()} for event in EVENTS]


def user_of(user, item, time):
    return user


def item_of(user, item, time):
    return item


def name_of(item):
    return f"Item's {item}"


def same(item):
    return item


def csv_of(form, head=""):
    return head + "".join(form.format(*event) + "\n" for event in EVENTS)


def amazon(year):
    reviews = events(reviewerID=user_of, asin=item_of, unixReviewTime=lambda u, i, t: t, reviewText='it\'s "fine"')
    kinds = {
        14: {"categories": [["Beauty", "Hair"], ["Other"]], "price": 3.5},
        18: {"category": ["Beauty", "Hair"], "description": ["one"]},
    }
    meta = described(asin=same, title=name_of, brand="Lumo", **kinds[year])
    return lines(reviews), lines([*meta, meta[0]], literal=year == 14)


def amazon23():
    ratings = csv_of("{0},{1},5.0,{2}000", "user_id,parent_asin,rating,timestamp\n")
    meta = described(parent_asin=same, title=name_of, store="Lumo", categories=["Beauty", "Hair"], features=["x"])
    return gzip.compress(ratings.encode()), lines(meta)


def steam():
    reviews = events(username=user_of, product_id=item_of, date=lambda u, i, t: day(t), text="'")
    games = described(id=same, app_name=name_of, developer="Lumo", genres=["Beauty"], tags=["Hair", "Beauty"])
    return lines(reviews, literal=True), lines([*games, {"url": "?"}], literal=True)


def goodreads():
    def moment(user, item, time):
        return datetime(2017, 12, time // 10).strftime("%a %b %d 10:00:00 -0800 %Y")

    shelves = [{"name": name, "count": "9"} for name in ("to-read", "Beauty", "Hair")]
    books = described(book_id=same, title=name_of, publisher="Lumo", popular_shelves=shelves)
    return lines(events(user_id=user_of, book_id=item_of, date_added=moment)), lines(books)


def yelp():
    reviews = events(user_id=user_of, business_id=item_of, date=lambda u, i, t: f"{day(t)} 01:02:03")
    businesses = described(business_id=same, name=name_of, categories="Beauty, Hair", city="Leeds")
    return gzip.decompress(lines(reviews)), gzip.decompress(lines(businesses))


def movielens(kind):
    movies = "".join(f"{item}::Item's {item}::Beauty|Hair\n" for item in "abc")
    if kind == "csv":
        head = "userId,movieId,rating,timestamp\n"
        return {"ratings.csv": csv_of("{0},{1},4.5,{2}", head), "movies.csv": "movieId,title,genres\n" + movies.replace("::", ",")}
    if kind == "dat":
        return {"ratings.dat": csv_of("{0}::{1}::5::{2}"), "movies.dat": movies}
    items = "".join(f"{item}|Item's {item}|01-Jan-1995||http://x|1|0|1\n" for item in "abc")
    return {"u.data": csv_of("{0}\t{1}\t5\t{2}"), "u.item": items, "u.genre": "Beauty|0\nOther|1\nHair|2\n\n"}


def journey():
    def place(user, item, time):
        return datetime(2017, 1, time // 10)

    rows = events(household_id=lambda u, i, t: ord(u), product_id=lambda u, i, t: ord(i), transaction_timestamp=place)
    kind = {"department": "BEAUTY", "product_category": "HAIR", "product_type": lambda item: f"ITEM {item}", "package_size": None}
    return table(rows), table(described(product_id=ord, manufacturer_id=7, **kind))


CASES = {
    "amazon14:Beauty": lambda: amazon(14),
    "amazon18:Beauty": lambda: amazon(18),
    "amazon23:All_Beauty": amazon23,
    "steam": steam,
    "goodreads:poetry": goodreads,
    "yelp": yelp,
    "movielens:ml-latest-small": lambda: (archive(movielens("csv")),),
    "movielens:ml-1m": lambda: (archive(movielens("dat")),),
    "movielens:ml-100k": lambda: (archive(movielens("u")),),
    "completejourney": journey,
}


@pytest.fixture
def web(tmp_path, monkeypatch):
    """(name, content) -> its address on a local server."""
    folder = tmp_path / "web"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

        def put(name, content):
            (folder / name).write_bytes(content)
            return f"http://127.0.0.1:{server.server_port}/{name}"

        yield put
        server.shutdown()


@pytest.mark.parametrize("wish", CASES)
def test_every_source_becomes_the_same_domain(wish, web, tmp_path, prepare_data, monkeypatch):
    kind, _, part = wish.partition(":")
    contents = CASES[wish]()
    source = SOURCES[kind]
    addresses = [pattern.rsplit("/", 1)[-1].format(part=part) for pattern in (source.interactions, source.items) if pattern]
    ask = wish
    if addresses:
        urls = [web(name, content) for name, content in zip(addresses, contents, strict=True)]
        patterns = dict(zip(("interactions", "items"), (url.replace(part, "{part}") if part else url for url in urls), strict=False))
        monkeypatch.setitem(prepare_data.SOURCES, kind, prepare_data.Source(**{**vars(source), **patterns}))
    else:
        paths = [tmp_path / f"file{n}{'.parquet' if kind == 'completejourney' else '.json'}" for n in range(2)]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        ask = f"{wish}={paths[0]}+{paths[1]}"
    line = ["--fetch", ask, "--core", "3", "--raw", str(tmp_path / "raw"), "--output", str(tmp_path / "out")]
    assert prepare_data.main(line) == 0
    folder = next((tmp_path / "out").iterdir())
    domain = Domain.from_folder(folder)
    name = {"completejourney": lambda char: str(ord(char))}.get(kind, str)
    found = {user: [domain.catalog.ids[row] for row in domain.sequences[place]] for place, user in enumerate(domain.users)}
    assert found == {name(user): [name(item) for item in "".join(HISTORIES[user])[:3]] for user in "uvx"}
    item = domain.catalog[domain.catalog.row(name("a"))]
    assert item.title.lower().startswith("item")
    assert [word.lower() for word in item.categories.replace(" > ", ", ").split(", ")] == ["beauty", "hair"]
    assert (np.diff(domain.times.reshape(3, 3)) > 0).all()
    assert (folder / "terms.txt").read_text().strip() == source.terms
    assert json.loads((folder / "domain.json").read_text())["interactions"] == 9


def brute(happened, known, least, keep_repeats):
    """The same filter in plain loops: user -> items in time order."""
    seen, kept = set(), []
    for user, item, time in sorted(happened, key=lambda event: event[2]):
        key = (user, item, time) if keep_repeats else (user, item)
        if item in known and key not in seen:
            seen.add(key)
            kept.append((user, item, time))
    while True:
        users, items = ([event[n] for event in kept] for n in (0, 1))
        fewer = [event for event in kept if users.count(event[0]) >= least and items.count(event[1]) >= least]
        if len(fewer) == len(kept):
            break
        kept = fewer
    return {user: [item for other, item, _ in kept if other == user] for user in {event[0] for event in kept}}


@pytest.mark.parametrize("keep_repeats", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_filter_equals_its_plain_form(tmp_path, seed, keep_repeats):
    rng = np.random.default_rng(seed)
    pick = rng.integers(0, [25, 12, 400], (260, 3))
    pairs = {(f"u{user}", float(time)): f"i{item}" for user, item, time in pick}  # a user does one thing at a time
    happened = [(user, item, time) for (user, time), item in pairs.items()] + [("u0", "i0", 900.0)] * 2
    known = {f"i{n}" for n in range(10)}
    (tmp_path / "r.csv").write_text(
        "user_id,parent_asin,rating,timestamp\n" + "".join(f"{u},{i},5,{t * 1000:.0f}\n" for u, i, t in happened)
    )
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"parent_asin": i, "title": i}) + "\n" for i in sorted(known)))
    domain = build(SOURCES["amazon23"], tmp_path / "r.csv", tmp_path / "m.jsonl", least=4, keep_repeats=keep_repeats)
    found = {user: [domain.catalog.ids[row] for row in domain.sequences[place]] for place, user in enumerate(domain.users)}
    assert found == brute(happened, known, 4, keep_repeats)
    if seed == 0:
        smaller = build(SOURCES["amazon23"], tmp_path / "r.csv", tmp_path / "m.jsonl", least=2, most_users=8)
        again = build(SOURCES["amazon23"], tmp_path / "r.csv", tmp_path / "m.jsonl", least=2, most_users=8)
        assert 0 < len(smaller) <= 8
        assert smaller.users == again.users
        half = build(SOURCES["amazon23"], tmp_path / "r.csv", tmp_path / "m.jsonl", least=1, sample=0.5)
        assert 5 < len(half) < 20


def test_nothing_left_and_broken_lines(tmp_path):
    (tmp_path / "r.csv").write_text("user_id,parent_asin,rating,timestamp\nu,i,5,1\n")
    (tmp_path / "m.jsonl").write_text('{"parent_asin": "i", "title": "t"}\n')
    with pytest.raises(ValueError, match=r"Nothing of r\.csv is left by the 5-core filter"):
        build(SOURCES["amazon23"], tmp_path / "r.csv", tmp_path / "m.jsonl")
    (tmp_path / "m.jsonl").write_text('{"parent_asin": "i", "title": "t"}\n{"parent_asin": __import__("os")}\n')
    with pytest.raises(ValueError, match=r"Line 2 of m\.jsonl is no object"):
        build(SOURCES["amazon23"], tmp_path / "r.csv", tmp_path / "m.jsonl")


def test_memory_does_not_grow_with_the_texts(tmp_path):
    """A file of long texts (60 MB unpacked) is read with a peak far below its size."""
    import tracemalloc

    text = "x" * 20_000
    with gzip.open(tmp_path / "r.json.gz", "wt", compresslevel=1) as file:
        for n in range(3000):
            file.write(json.dumps({"reviewerID": f"u{n % 300}", "asin": f"i{n % 7}", "unixReviewTime": n, "reviewText": text}) + "\n")
    (tmp_path / "m.json").write_text("".join(json.dumps({"asin": f"i{n}", "title": f"t{n}"}) + "\n" for n in range(7)))
    tracemalloc.start()
    domain = build(SOURCES["amazon18"], tmp_path / "r.json.gz", tmp_path / "m.json", keep_repeats=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(domain.sequences.items) == 3000
    assert peak < 5 * 2**20


def test_wishes_that_can_not_be_met(tmp_path, prepare_data, caplog):
    for wish, sentence in (
        ("etsy", "There is no source 'etsy'; there are: amazon14"),
        ("amazon14", "write for instance amazon14:Beauty"),
        ("yelp", "handed out by a form"),
        ("yelp=nowhere.json+items.json", "There is no file nowhere.json"),
    ):
        assert prepare_data.main(["--fetch", wish, "--output", str(tmp_path)]) == 1
        assert sentence in caplog.text


def test_leaks_are_taken_out(tmp_path, prepare_data, synthetic_domain):
    synthetic_domain(30, 20, 0).save(tmp_path / "source" / "shop")
    other = synthetic_domain(30, 20, 1)
    shared = synthetic_domain(30, 20, 0)
    other.users = [f"other-{user}" for user in other.users[:-3]] + other.users[-3:]
    Domain(prepare_data.Catalog([*shared.catalog[:2], *other.catalog[2:]]), other.users, other.sequences, other.times).save(
        tmp_path / "held"
    )
    line = ["--source", tmp_path / "source", "--without", tmp_path / "held", "--output", tmp_path / "out"]
    assert prepare_data.main([*map(str, line)]) == 0
    report = json.loads((tmp_path / "out" / "shop" / "leaks.json").read_text())
    assert [(leak["training"], leak["test"], leak["items"], leak["users"]) for leak in report] == [("shop", "held", 2, 3)]
    domain = Domain.from_folder(tmp_path / "out" / "shop", check_order=False)
    assert (len(domain), len(domain.catalog)) == (27, 18)


def test_scripts_of_a_page_are_no_titles(tmp_path):
    script = "var aPageStart = (new Date()).getTime(); function x() {}"
    meta = [{"asin": "a", "title": script, "price": ".a-box-inner{color:red}"}, {"asin": "b", "title": "A {curly} pen", "price": "$3"}]
    events = [{"reviewerID": user, "asin": item, "unixReviewTime": time} for user in "uv" for time, item in enumerate("ab")]
    (tmp_path / "r.json.gz").write_bytes(lines(events))
    (tmp_path / "m.json.gz").write_bytes(lines(meta))
    catalog = build(SOURCES["amazon18"], tmp_path / "r.json.gz", tmp_path / "m.json.gz", least=1).catalog
    assert {item.item_id: (item.title, item.price) for item in catalog} == {"a": ("a", ""), "b": ("A {curly} pen", "$3")}
    assert catalog.license == SOURCES["amazon18"].terms
