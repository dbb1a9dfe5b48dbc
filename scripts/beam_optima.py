"""How often a beam search misses what is best, by beam width, and how often a free one writes IDs that no item has.

    python scripts/beam_optima.py --model runs/idgenrec-beauty --items items.parquet --interactions interactions.parquet --users 100

Validation histories of a seeded sample of users; seen items excluded where the prefix tree is. An IDGenRec's beams are held against the
exact score of every item; free generation is transformers' own beam search without the tree.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import LogitsProcessorList

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


def validity(model: IDGenRecModel, processor: IDGenRecProcessor, histories: Sequences, beams: int = 20) -> dict[str, float]:
    """Of free generation: how many of ten IDs, and of first ones, some item has, and how many of those ten it has bought."""
    row_of = {tuple(own.tolist()): row for row, own in enumerate(processor.identifiers.tokens)}
    valid, first, seen = [], [], []
    for row in tqdm(range(len(histories)), "users", disable=None):
        rows = histories[row]
        inputs = processor.inputs([[processor.identifiers[int(item)].tokens for item in rows[-processor.max_items :]]], model)
        bias = inputs.pop("bias", None)
        written = model.recommender.generate(
            **inputs,
            num_beams=beams,
            num_return_sequences=TOP,
            do_sample=False,
            max_new_tokens=max(map(len, row_of)) + 1,
            length_penalty=model.config.length_penalty,
            eos_token_id=model.eos,
            pad_token_id=processor.writer.pad,
            logits_processor=LogitsProcessorList([] if bias is None else [lambda _, scores, bias=bias: scores + bias]),
        )
        start = 1 if processor.has_encoder else inputs["input_ids"].shape[1]
        found = [row_of.get(_until(own, model.eos)) for own in written[:, start:].tolist()]
        valid.append(np.mean([item is not None for item in found]))
        first.append(found[0] is not None)
        seen.append(np.mean([item in set(rows.tolist()) for item in found]))
    return {"valid": float(np.mean(valid)), "first_valid": float(np.mean(first)), "seen": float(np.mean(seen)), "beams": beams}


def _until(tokens: list[int], end: int) -> tuple[int, ...]:
    return tuple(tokens[: tokens.index(end)] if end in tokens else tokens)


def main() -> None:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--items", type=Path, required=True)
    parser.add_argument("--interactions", type=Path, required=True)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--widths", default="10,20,50,100")
    parser.add_argument("--free", action="store_true", help="generate without the prefix tree too")
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
    report = missed(model, processor, histories, [int(width) for width in filter(None, chosen.widths.split(","))])
    free = validity(model, processor, histories) if chosen.free else None
    spent = round(time.process_time() - start)
    about = {"model": chosen.model, "users": len(histories), "top": TOP, "widths": report, "free": free, "cpu_seconds": spent}
    json.dump(about, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
