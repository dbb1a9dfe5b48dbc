"""Pretrains a foundation SETRec on fused domains: semantic tokens only, in-domain negatives, chosen on a domain that it never trains on.

    python scripts/pretrain_setrec.py --source ../shared/data --output runs/foundation
    python scripts/pretrain_setrec.py --source ../shared/data --output runs/foundation --resume
    python scripts/pretrain_setrec.py --source data --train shop_a,shop_b --validation shop_c --without-users shop_d --output runs/x
    torchrun --standalone --nproc_per_node 2 scripts/pretrain_setrec.py --batch 32 --source ../shared/data --output runs/foundation

Several processes share the work and end with what one would have; --batch is that of each of them. The finished checkpoint carries the
catalogue of `--catalog` (the sample shop by default), never that of a training domain.
"""

import argparse
import json
import logging
import math
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EarlyStoppingCallback, set_seed

from genrec_hub import Catalog, Domain, SETRecConfig, SETRecModel, SETRecProcessor, processes
from genrec_hub.domain import MAX_INTERACTION_BYTES, Sequences, files_of
from genrec_hub.recipes import lean, small_backbone
from genrec_hub.tables import clean_id, read_table
from genrec_hub.timing import Clock
from genrec_hub.training import SETRecTrainer, run, training_arguments

TRAIN = "amazon_videogames,amazon18_industrial,amazon18_cds,movielens_small,goodreads_books,uci_onlineretail,instacart_grocery"
TEST = "amazon14_beauty,amazon14_toys,amazon14_sports,yelp_2019"

logger = logging.getLogger(__name__)


def fuse(domains: list[Domain], forbidden: set[str]) -> tuple[Sequences, np.ndarray, int]:
    """Stacks domains: the items of each behind those of the one before, histories without the forbidden users.

    Returns:
        sequences over the stacked rows, the domain of every stacked item, and how many users were left out.
    """
    sequences, sizes, left_out, start = [], [], 0, 0
    for domain in domains:
        for row, user in enumerate(domain.users):
            if user in forbidden:
                left_out += 1
            else:
                sequences.append(domain.sequences[row] + start)
        sizes.append(len(domain.catalog))
        start += len(domain.catalog)
    return Sequences.of(sequences), np.repeat(np.arange(len(domains)), sizes), left_out


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of prepared domains")
    parser.add_argument("--train", default=TRAIN, help="comma-separated domains")
    parser.add_argument("--validation", default="lastfm_artists")
    parser.add_argument(
        "--without-users", default=TEST, help="domains whose user ids may not occur in training; nothing else of them is read"
    )
    parser.add_argument("--catalog", type=Path, default=Path(__file__).parent.parent / "genrec_hub" / "shop.jsonl")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--patience", type=int, default=2, help="epochs without a better validation after which a run ends")
    parser.add_argument("--batch", type=int, default=64, help="histories of a step, in each process")
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--negatives", type=int, default=512)
    parser.add_argument("--quota", type=int, default=2000, help="users of a domain in one epoch, at the most")
    parser.add_argument("--max-items", type=int, default=15, help="history items of a training sequence")
    parser.add_argument("--spelling", type=int, default=639, help="width of the spelling vectors; 0 = none")
    parser.add_argument("--crowding", type=float, default=0.4, help="weight of an item's crowding against it at the start; 0 = none")
    parser.add_argument("--config", type=json.loads, default={}, help="JSON of further SETRecConfig values")
    parser.add_argument("--freeze", default="", help="comma-separated parts that stay as they start: semantic, backbone, ...")
    parser.add_argument("--keep", type=float, default=0.5, help="share of the untrained weights in the finished ones")
    parser.add_argument("--encoder", default="minilm", help="of the finished checkpoint, in MiniLM's space; training reads MiniLM")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    chosen = parser.parse_args()
    processes.join()
    logging.basicConfig(level=logging.INFO if processes.first() else logging.WARNING, stream=sys.stderr)

    names = chosen.train.split(",")
    forbidden = {user for name in filter(None, chosen.without_users.split(",")) for user in users_of(chosen.source / name)}
    domains = [Domain.from_folder(chosen.source / name, check_order=False) for name in names]
    sequences, domain_of, left_out = fuse(domains, forbidden)
    logger.info("%d domains, %d items, %d users; %d users of test domains left out", len(domains), len(domain_of), len(sequences), left_out)

    bare = SETRecProcessor(spelling=chosen.spelling, crowding=chosen.crowding > 0)
    features = {"semantic": torch.cat([bare.with_catalog(domain.catalog).features["semantic"] for domain in domains])}
    held = Domain.from_folder(chosen.source / chosen.validation)
    validation, held_features = held.split().test, bare.with_catalog(held.catalog).features

    set_seed(chosen.seed)
    settings: dict[str, Any] = {
        "semantic_tokens": 8,
        "semantic_widths": (),
        "normalize": "joint",
        "fused_loss": 1.0,
        "residual": True,
        "decay": (1.5, 0.5, 0.15),
        "prior": chosen.crowding > 0,
        "alpha": 1.0,
        "dropout": 0.1,
        "scale": 12.0,
        **chosen.config,
    }
    hidden = settings.pop("hidden", 128)
    backbone = small_backbone(hidden, settings.pop("layers", 2), settings.pop("attention_dropout", 0.1))
    model = SETRecModel(SETRecConfig(text_config=backbone, semantic_size=features["semantic"].shape[1], **settings))
    if chosen.crowding > 0:
        lean(model, chosen.crowding)
    for part in filter(None, chosen.freeze.split(",")):
        for name, parameter in model.named_parameters():
            if name == part or name.startswith(f"{part}."):
                parameter.requires_grad_(False)
    entries = np.bincount(domain_of[sequences.items[sequences.offsets[:-1]]], minlength=len(domains))
    steps = int((np.minimum(entries, chosen.quota) // (chosen.batch * processes.count())).sum())
    trainer = SETRecTrainer(
        model,
        training_arguments(
            chosen.output / "checkpoints",
            epochs=chosen.epochs,
            batch=chosen.batch,
            rate=chosen.rate,
            steps_per_epoch=max(1, math.floor(steps)),
            seed=chosen.seed,
            weight_decay=chosen.weight_decay,
        ),
        features=features,
        validation_features=held_features,
        sequences=sequences,
        validation=validation,
        catalog_size=len(domain_of),
        negatives=chosen.negatives,
        popular_negatives=True,
        domains=domain_of,
        quota=chosen.quota,
        max_items=chosen.max_items,
        keep=chosen.keep,
        callbacks=[EarlyStoppingCallback(chosen.patience)],
    )
    before = trainer.rank_validation()
    logger.info("untrained, on %s: %s", chosen.validation, before)
    clock = Clock()
    with redirect_stdout(sys.stderr):
        run(trainer, chosen.resume, clock)
    trainer.settle()
    report = {
        "command": " ".join(sys.argv),
        "train": {name: {"users": int(n), "items": len(d.catalog)} for name, n, d in zip(names, entries, domains, strict=True)},
        "validation_domain": chosen.validation,
        "untrained": before,
        "keep": chosen.keep,
        "validation": trainer.rank_validation(),
        "curve": [{k: e[k] for k in ("epoch", "eval_hr@10", "eval_ndcg@10")} for e in trainer.state.log_history if "eval_ndcg@10" in e],
        **clock.spent(),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    shop = SETRecProcessor(
        Catalog.from_file(chosen.catalog), encoder=chosen.encoder, spelling=chosen.spelling, crowding=chosen.crowding > 0
    )
    if processes.first():
        trainer.model.save_pretrained(chosen.output)
        shop.save_pretrained(chosen.output)
        (chosen.output / "training.json").write_text(json.dumps(report, indent=2) + "\n")
        print(json.dumps(report))
    processes.wait()


def users_of(folder: Path) -> set[str]:
    """The user ids of a domain; its items and histories are not read."""
    _, interactions = files_of(folder)
    return set(map(clean_id, read_table(interactions, MAX_INTERACTION_BYTES).column("user_id").unique().to_pylist()))


if __name__ == "__main__":
    main()
