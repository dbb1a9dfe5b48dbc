"""The papers' tables again, without leaks, beside strong baselines: cell by cell, restartable at any time.

    python scripts/reproduce_tables.py --source ../shared/data --output runs/tables                  everything that is not there yet
    python scripts/reproduce_tables.py ... --only 'setrec_toys/*'                                    some cells (a shell pattern)
    python scripts/reproduce_tables.py ... --only setrec_toys/setrec --checkpoint setrec_toys/setrec=runs/setrec    a checkpoint at hand
    python scripts/reproduce_tables.py ... --quick                                                   every cell on a sample, in minutes
    python scripts/reproduce_tables.py --output runs/tables --render docs/results.md                 what has been run, at any time
    python scripts/reproduce_tables.py ... --list                                                    the cells and where they stand

A cell (one row of one domain) has a folder in the output, with one folder a seed: `model/` (its checkpoint), `answers.safetensors` (the
ranks of all users) and, last of all and whole or not at all, `result.json`. A cell with a result is skipped; one that was interrupted
goes on from its last checkpoint. All cells stand in tables/cells.py. Everything is chosen on validation data; the test set is asked once
per cell and seed.
"""

import argparse
import fnmatch
import json
import logging
import os
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from prepare_data import prepare
from tables.artefacts import key_sorted
from tables.cells import CELLS, Cell, quick
from tables.measure import measure, write_json
from tables.studies import STUDIES
from tables.systems import SYSTEMS, Task, tokens_of_epoch, training_report

from genrec_hub.catalog import Catalog
from genrec_hub.checkpoint import refuse_other_protocol
from genrec_hub.domain import Domain, Sequences
from genrec_hub.recipes import hardware

logger = logging.getLogger("reproduce_tables")

HERE = Path(__file__).resolve().parent
RESULT = "result.json"
QUICK_USERS = 120
"""Users of a domain with --quick; the catalogue is what they took."""


def sample_domain(domain: Domain, users: int, seed: int = 0) -> Domain:
    """Some users of a domain with the items that they took."""
    rows = np.sort(np.random.default_rng(seed).choice(len(domain), min(users, len(domain)), replace=False))
    own = [domain.sequences[int(row)] for row in rows]
    items, flat = np.unique(np.concatenate(own), return_inverse=True)
    parts = [slice(domain.sequences.offsets[row], domain.sequences.offsets[row + 1]) for row in rows]

    def taken(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else np.concatenate([values[part] for part in parts])

    catalog = Catalog((domain.catalog[int(item)] for item in items), domain.catalog.license)
    sequences = Sequences(flat.astype(np.int64), np.cumsum([0, *map(len, own)]).astype(np.int64))
    return Domain(catalog, [domain.users[int(row)] for row in rows], sequences, taken(domain.times), taken(domain.given), domain.name)


@lru_cache(2)
def read_domain(name: str, source: Path, output: Path, sampled: bool) -> Domain:
    """A domain of the source folder, prepared once where it is in SETRec's own form; "@key-sorted" is sorted by item id."""
    folder, _, variant = name.partition("@")
    place = source / folder
    if (place / "split.parquet").is_file():
        place = output / "data" / folder
        if not (place / "interactions.parquet").is_file():
            prepare(source / folder, place)
    domain = Domain.from_folder(place)
    domain = sample_domain(domain, QUICK_USERS) if sampled else domain
    return key_sorted(domain) if variant == "key-sorted" else domain


class Run:
    """The cells of one output folder.

    Args:
        options: of the command line.
        command: as it was typed.
    """

    def __init__(self, options: argparse.Namespace, command: str) -> None:
        self.options, self.command, self.output = options, command, options.output
        self.commit = commit()  # of the code that is loaded, whatever becomes of the files
        self.given = dict(pair.split("=", 1) for pair in options.checkpoint)
        self.cells = {cell.name: quick(cell) if options.quick else cell for cell in CELLS}
        if unknown := self.given.keys() - self.cells.keys():
            raise ValueError(f"--checkpoint names {', '.join(sorted(unknown))}, which is no cell: see --list.")

    def folder(self, cell: Cell, seed: int) -> Path:
        """Where a run of a cell is kept."""
        return self.output / cell.name / f"seed{seed}"

    def finished(self, cell: Cell, seed: int) -> bool:
        """Whether a run has its result."""
        return (self.folder(cell, seed) / RESULT).is_file()

    def needed(self, cell: Cell) -> dict[str, Path]:
        """The checkpoints that a cell reads, those of the first seed: finished cells or --checkpoint.

        Raises:
            FileNotFoundError: when one is not there yet.
        """
        found = {}
        for row in cell.needs:
            name = f"{cell.domain}/{row}"
            other = self.cells[name]
            if not self.finished(other, other.seeds[0]) and not self.is_given(other, other.seeds[0]):
                raise FileNotFoundError(f"{cell.name} reads the checkpoint of {name}, which is not finished: run that cell first.")
            found[row] = self.checkpoint(other, other.seeds[0])
        return found

    def is_given(self, cell: Cell, seed: int) -> bool:
        """Whether a run is of a checkpoint at hand; that stands for the first seed."""
        return cell.name in self.given and seed == cell.seeds[0]

    def checkpoint(self, cell: Cell, seed: int) -> Path:
        """The folder of a cell's model: its own, or the one that was given, which the result then names."""
        if self.is_given(cell, seed):
            return Path(self.given[cell.name]).resolve()
        result = read_json(self.folder(cell, seed) / RESULT)
        return Path(result["checkpoint"]) if result and result.get("checkpoint") else self.folder(cell, seed) / "model"

    def do(self, cell: Cell, seed: int) -> None:
        """Runs one cell with one seed and writes its result."""
        options, folder = self.options, self.folder(cell, seed)
        folder.mkdir(parents=True, exist_ok=True)
        domain = read_domain(cell.domain, options.source, self.output, options.quick)
        split, start, cpu = domain.split(cell.protocol), time.time(), time.process_time()
        needed = {} if self.is_given(cell, seed) else self.needed(cell)
        task = Task(cell, seed, domain, split, self.checkpoint(cell, seed), needed)
        if self.is_given(cell, seed) and not task.finished:
            raise FileNotFoundError(f"{task.folder} holds no finished checkpoint (training.json is missing).")
        named = ("table", "domain", "protocol", "stage", "row", "system", "config", "settings", "note")
        result: dict[str, Any] = {"cell": cell.name, "seed": seed, "quick": options.quick, **{name: getattr(cell, name) for name in named}}
        if cell.system in STUDIES:
            result["study"] = STUDIES[cell.system](task)
        else:
            ranker = SYSTEMS[cell.system](task)
            refuse_other_protocol(task.folder, domain.catalog.fingerprint, cell.protocol)
            training = training_report(task.folder)
            kept = ("command", "seconds", "cpu_seconds", "parameters", "validation", "curve", "beta", "tokens", "settings", "hardware")
            result["training"] = training and {name: training[name] for name in kept if name in training}
            if training is not None:
                result["training"]["epoch_tokens"] = tokens_of_epoch(split, ranker)
            result["test"] = measure(ranker, split, cell.stage, task.vectors, folder, options.bootstrap, options.max_users)
        result |= {
            "checkpoint": str(task.folder) if self.is_given(cell, seed) else None,
            "seconds": round(time.time() - start, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "command": self.command,
            "commit": self.commit,
            "hardware": hardware(),
            "fingerprint": domain.catalog.fingerprint,
        }
        write_json(folder / RESULT, result)

    def all(self, pattern: str) -> int:
        """Runs what is not finished, first one seed of every cell, then the others; returns the number of runs that failed."""
        failed = 0
        wanted = [cell for name, cell in self.cells.items() if fnmatch.fnmatch(name, pattern)]
        most = self.options.seeds or max(len(cell.seeds) for cell in CELLS)
        turns = [(cell, seed) for turn in range(most) for cell in wanted for seed in cell.seeds[turn : turn + 1]]
        for cell, seed in turns:
            if self.finished(cell, seed):
                continue
            logger.info("%s, seed %d", cell.name, seed)
            start = time.time()
            try:
                self.do(cell, seed)
            except Exception:  # one cell's failure, told in full, should not cost the night
                failed += 1
                logger.error("%s, seed %d failed:\n%s", cell.name, seed, traceback.format_exc())
            else:
                logger.info("%s, seed %d: %.0f s", cell.name, seed, time.time() - start)
        return failed

    def standing(self) -> list[str]:
        """A line a cell: how many of its seeds are finished."""
        return [f"{sum(self.finished(cell, seed) for seed in cell.seeds)}/{len(cell.seeds)}  {name}" for name, cell in self.cells.items()]


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file if it is there."""
    return json.loads(path.read_text()) if path.is_file() else None


@lru_cache(1)
def commit() -> str:
    """The commit of this code, "+" behind it where files differ from it, "unknown" outside of git."""
    git = ["git", "-C", str(HERE.parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + "+" * bool(changed)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source", type=Path, default=HERE.parent.parent / "shared" / "data", help="folder of domains, prepared or SETRec's"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/tables"), help="folder of the cells")
    parser.add_argument("--only", default="*", help="cells whose name (domain/row) fits this pattern")
    parser.add_argument("--seeds", type=int, help="at most so many seeds of a cell")
    parser.add_argument("--checkpoint", action="append", default=[], metavar="CELL=FOLDER", help="a finished checkpoint for a cell")
    parser.add_argument("--quick", action="store_true", help="every cell on a sample of the users, one epoch each")
    parser.add_argument(
        "--render", type=Path, help="write the tables of what has been run to this file, and figures beside it; run nothing"
    )
    parser.add_argument("--list", action="store_true", help="tell which cells there are and which are finished; run nothing")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples of an interval")
    parser.add_argument("--max-users", type=int, help="a seeded sample of the users who are asked")
    options = parser.parse_args(arguments)
    typed = sys.argv[1:] if arguments is None else list(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        run = Run(options, "python scripts/reproduce_tables.py " + shlex.join(typed))
    except ValueError as error:
        logger.error("%s", error)
        return 1
    if options.list:
        print("\n".join(run.standing()))
        return 0
    if options.render is not None:
        from tables.render import render

        render(run.output, options.render, list(run.cells.values()), options.bootstrap)
        return 0
    return 1 if run.all(options.only) else 0


if __name__ == "__main__":
    sys.exit(main())
