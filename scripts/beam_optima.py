"""How often a beam search misses what is best: an IDGenRec's beams against the exact score of every item, by beam width.

    python scripts/beam_optima.py --model runs/idgenrec-beauty --items items.parquet --interactions interactions.parquet --users 100

Validation histories of a seeded sample of users; seen items excluded.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

import genrec_hub
from genrec_hub import Domain
from genrec_hub.domain import Sequences
from genrec_hub.modeling_idgenrec import IDGenRecModel
from genrec_hub.processing_idgenrec import IDGenRecProcessor

TOP = 10


def missed(model: IDGenRecModel, processor: IDGenRecProcessor, histories: Sequences, widths: list[int]) -> dict[str, dict[str, float]]:
    """By beam width: the share of users for whom something of the exact best ten is not found, and the share of the ten."""
    gone: dict[int, list[int]] = {width: [] for width in widths}
    for row in tqdm(range(len(histories)), "users", disable=None):
        rows = histories[row]
        inputs = processor.inputs([[processor.identifiers[int(item)].tokens for item in rows[-processor.max_items :]]], model)
        exact = model.score(inputs, processor.trie)[0]
        exact[torch.as_tensor(np.unique(rows))] = -torch.inf
        best = set(exact.topk(TOP).indices.tolist())
        for width in widths:
            found = model.recommend(inputs, processor.trie, width, excluded=[np.unique(rows).tolist()]).rows[0, :TOP].tolist()
            gone[width].append(len(best - set(found)))
    return {
        str(width): {"users_missing_any": float(np.mean(np.array(own) > 0)), "items_missed": float(np.mean(own) / TOP)}
        for width, own in gone.items()
    }


def main() -> None:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--items", type=Path, required=True)
    parser.add_argument("--interactions", type=Path, required=True)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--widths", default="10,20,50,100")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    pipe = genrec_hub.load(chosen.model)
    processor, model = pipe.processor, pipe.model
    domain = Domain.from_files(chosen.items, chosen.interactions)
    if processor.catalog.fingerprint != domain.catalog.fingerprint:
        processor = processor.with_catalog(domain.catalog, model=model)
    histories = domain.split().validation.sample(chosen.users, chosen.seed).histories
    start = time.process_time()
    report = missed(model, processor, histories, [int(width) for width in chosen.widths.split(",")])
    json.dump(
        {"model": chosen.model, "users": len(histories), "top": TOP, "widths": report, "cpu_seconds": round(time.process_time() - start)},
        sys.stdout,
        indent=2,
    )


if __name__ == "__main__":
    main()
