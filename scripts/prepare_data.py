"""Brings data into our format: SETRec's own splits, domains prepared elsewhere, or a made-up domain.

    python scripts/prepare_data.py --source ../shared/data --domains setrec_beauty,setrec_toys --output data
    python scripts/prepare_data.py --source ../shared/data --domains lastfm_artists --output data
    python scripts/prepare_data.py --synthetic 200x60 --seed 0 --output data

Every domain becomes a folder with `items.parquet` (item_id, title, ...), `interactions.parquet` (user_id, item_id, position and,
where known, timestamp and split) and `domain.json` (counts and fingerprint). A folder with `split.parquet` is SETRec's; any other
needs `items.*` and `interactions.*`. Each is read back through `Domain`, so whatever is wrong is said here.
"""

import argparse
import json
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from genrec_hub.catalog import Catalog, Item
from genrec_hub.domain import Domain, Sequences
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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Bring recommendation data into genrec_hub's format.")
    parser.add_argument("--source", type=Path, help="folder that holds the domain folders")
    parser.add_argument("--domains", default="", help="names of domain folders, with commas; all of them when not given")
    parser.add_argument("--synthetic", metavar="USERSxITEMS", help="make a domain of this size, e.g. 200x60")
    parser.add_argument("--seed", type=int, default=0, help="seed of --synthetic")
    parser.add_argument("--output", type=Path, default=Path("data"), help="where the folders go")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    size = re.fullmatch(r"(\d+)x(\d+)", options.synthetic or "0x0")
    if size is None or not (options.source or options.synthetic):
        parser.error("name --source (and --domains), or --synthetic USERSxITEMS such as 200x60.")
    failed = 0
    if options.synthetic:
        folder = options.output / f"synthetic_{options.synthetic}_{options.seed}"
        synthetic_domain(int(size[1]), int(size[2]), options.seed).save(folder)
        logger.info("%s: %s", folder, describe(folder, "synthetic"))
    if options.source:
        names = [name.strip() for name in options.domains.split(",") if name.strip()]
        for name in names or sorted(path.name for path in options.source.iterdir() if path.is_dir()):
            try:
                logger.info("%s: %s", options.output / name, prepare(options.source / name, options.output / name))
            except (FileNotFoundError, ValueError) as error:
                logger.error("%s: %s", name, error)
                failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
