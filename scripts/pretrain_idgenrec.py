"""Foundation IDGenRec on fused domains: tokenizer and generator from their texts, IDs for every catalogue, a recommender on all histories.

    python scripts/pretrain_idgenrec.py --source ../shared/data --output runs/idgenrec
    torchrun --standalone --nproc_per_node 2 scripts/pretrain_idgenrec.py --batch 32 --source ../shared/data --output runs/idgenrec

Test domains are not read but for their user ids, which are left out of the training domains. The checkpoint carries the sample shop's
catalogue, never that of a training domain. Every phase resumes with --resume. Where training does not better the validation domain, the
untrained recommender is released, which recommends by the words that it copies (`genrec_hub.copying`).
Several processes share the work and end with what one would have; --batch is that of each of them.
"""

import argparse
import json
import logging
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from pretrain_setrec import TEST, TRAIN, fuse, users_of
from transformers import EarlyStoppingCallback, set_seed

from genrec_hub import Catalog, Domain, IDGenRecConfig, IDGenRecModel, IDGenRecProcessor, processes
from genrec_hub.phrases import generator_text, leading_words
from genrec_hub.recipes_idgenrec import small_language_models, tokenizer_of_all, train_writer
from genrec_hub.training import run, training_arguments
from genrec_hub.training_idgenrec import PackedRecommenderTrainer

logger = logging.getLogger(__name__)


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of prepared domains")
    parser.add_argument("--train", default=TRAIN, help="comma-separated domains")
    parser.add_argument("--validation", default="lastfm_artists")
    parser.add_argument("--without-users", default=TEST, help="domains whose user ids may not occur in training; the rest is not read")
    parser.add_argument("--catalog", type=Path, default=Path(__file__).parent.parent / "genrec_hub" / "shop.jsonl")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--writer-epochs", type=int, default=3)
    parser.add_argument("--writer-rate", type=float, default=2e-3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--patience", type=int, default=3, help="epochs without a better validation after which a run ends")
    parser.add_argument("--batch", type=int, default=64, help="histories of a step, in each process")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--quota", type=int, default=3000, help="users of a domain in one epoch, at the most")
    parser.add_argument("--max-text", type=int, default=64, help="tokens of an item's text that the generator reads")
    parser.add_argument("--max-items", type=int, default=20, help="history items that the recommender reads")
    parser.add_argument("--copy", type=float, default=3.0, help="how much tokens of the history's IDs are preferred")
    parser.add_argument("--copy-decay", type=float, default=0.2, help="how fast that fades with items further back")
    parser.add_argument("--shortlist", type=int, default=20, help="items that the search ends in, most promising first; 0 = any")
    parser.add_argument("--config", type=json.loads, default={}, help="JSON of further IDGenRecConfig values")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    chosen = parser.parse_args()
    processes.join()
    logging.basicConfig(level=logging.INFO if processes.first() else logging.WARNING, stream=sys.stderr)
    start, cpu = time.time(), time.process_time()
    known = chosen.output / "training.json"
    earlier = json.loads(known.read_text()) if chosen.resume and known.is_file() else {}

    names = chosen.train.split(",")
    forbidden = {user for name in filter(None, chosen.without_users.split(",")) for user in users_of(chosen.source / name)}
    domains = [Domain.from_folder(chosen.source / name, check_order=False) for name in names]
    sequences, domain_of, left_out = fuse(domains, forbidden)
    logger.info("%d domains, %d items, %d users; %d users of test domains left out", len(domains), len(domain_of), len(sequences), left_out)
    held, shop = Domain.from_folder(chosen.source / chosen.validation), Catalog.from_file(chosen.catalog)

    with redirect_stdout(sys.stderr):
        set_seed(chosen.seed)
        model, bare, written = writer(chosen, [domain.catalog for domain in domains])
        bare.copy, bare.copy_decay, bare.shortlist = chosen.copy, chosen.copy_decay, chosen.shortlist
        for name, value in settings_of(chosen).items():
            setattr(model.config, name, value)
        model.eval()
        processors = [identified(chosen, model, bare, name, domain.catalog) for name, domain in zip(names, domains, strict=True)]
        validation = identified(chosen, model, bare, chosen.validation, held.catalog)
        trainer = recommender(chosen, model, processors, validation, held, sequences, domain_of)
        before, penalty = trainer.rank_validation(), model.config.length_penalty
        untrained = {name: values.clone() for name, values in model.state_dict().items()}
        keep(chosen.output / "start", bare.with_catalog(shop, model=model), model)
        logger.info("untrained, on %s: %s", chosen.validation, before)
        run(trainer, chosen.resume)
        penalties = trainer.choose_length_penalty()
        after = trainer.rank_validation()
        bettered = after["ndcg@10"] > before["ndcg@10"]
        if not bettered:
            logger.warning("Training has not bettered the start on %s (%s): the start is released.", chosen.validation, after)
            model.load_state_dict(untrained)
            model.config.length_penalty = penalty
    entries = np.bincount(domain_of[sequences.items[sequences.offsets[:-1]]], minlength=len(domains))
    report: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "train": {name: {"users": int(n), "items": len(d.catalog)} for name, n, d in zip(names, entries, domains, strict=True)},
        "validation_domain": chosen.validation,
        "writer": written,
        "untrained": before,
        "trained": after,
        "validation": after if bettered else before,
        "released": "trained" if bettered else "untrained",
        "length_penalty": penalties,
        "curve": [{k: e[k] for k in ("epoch", "eval_hr@10", "eval_ndcg@10")} for e in trainer.state.log_history if "eval_ndcg@10" in e],
        "seconds": earlier.get("seconds", 0) + round(time.time() - start),
        "cpu_seconds": earlier.get("cpu_seconds", 0) + round(time.process_time() - cpu),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    keep(chosen.output, bare.with_catalog(shop, model=model.eval()), model, report)
    if processes.first():
        print(json.dumps(report))


def keep(folder: Path, processor: IDGenRecProcessor, model: IDGenRecModel | None = None, report: dict[str, Any] | None = None) -> None:
    """Writes what there is, the report last; the first process for all of them."""
    if processes.first():
        if model is not None:
            model.save_pretrained(folder)
        processor.save_pretrained(folder)
        if report is not None:
            (folder / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    processes.wait()


def settings_of(chosen: argparse.Namespace) -> dict[str, Any]:
    """Of `IDGenRecConfig`."""
    small = {"normalizer": "vocabulary", "own_words": True, "length_penalty": 1.0, "max_length": 16, "dropout": 0.1, "groups": 6}
    return {**small, **chosen.config}


def writer(chosen: argparse.Namespace, catalogs: list[Catalog]) -> tuple[IDGenRecModel, IDGenRecProcessor, dict[str, Any]]:
    """The model with a generator that has learned to write, a processor without a catalogue, and the phase's report; kept for --resume."""
    place = chosen.output / "checkpoints" / "writer"
    if chosen.resume and (place / "training.json").is_file():
        report = json.loads((place / "training.json").read_text())
        return IDGenRecModel.from_pretrained(place), IDGenRecProcessor.from_pretrained(place), report
    texts = [text for catalog in catalogs for text in (*map(generator_text, catalog), *map(leading_words, catalog))]
    tokenizer = tokenizer_of_all(texts, chosen.vocabulary)
    settings = {
        "normalizer": "tree",
        "own_words": True,
        "length_penalty": 0.0,
        "max_length": 16,
        "dropout": 0.1,
        "groups": 6,
        **chosen.config,
    }
    parts = small_language_models(len(tokenizer), chosen.hidden, chosen.layers, settings["dropout"])
    model = IDGenRecModel(IDGenRecConfig(**parts, **settings))
    bare = IDGenRecProcessor(tokenizer, max_items=chosen.max_items, max_text=chosen.max_text)
    report = train_writer(
        model,
        bare,
        catalogs,
        place / "run",
        chosen.writer_epochs,
        chosen.resume,
        chosen.seed,
        rate=chosen.writer_rate,
        phrases=lambda catalog: [leading_words(item) for item in catalog],
    )
    keep(place, bare, model, report)
    return model, bare, report


def identified(chosen: argparse.Namespace, model: IDGenRecModel, bare: IDGenRecProcessor, name: str, catalog: Catalog) -> IDGenRecProcessor:
    """The processor of a catalogue with the IDs that the generator writes; kept for --resume."""
    place = chosen.output / "checkpoints" / name
    if chosen.resume and (place / "processor_config.json").is_file():
        processor = IDGenRecProcessor.from_pretrained(place)
        processor.copy, processor.copy_decay, processor.shortlist = chosen.copy, chosen.copy_decay, chosen.shortlist
        return processor
    start = time.process_time()
    processor = bare.with_catalog(catalog, model=model)
    logger.info("%s: %d IDs in %.0f s, such as %s", name, len(catalog), time.process_time() - start, processor.identifiers.texts[:5])
    keep(place, processor)
    return processor


def recommender(
    chosen: argparse.Namespace,
    model: IDGenRecModel,
    processors: list[IDGenRecProcessor],
    validation: IDGenRecProcessor,
    held: Domain,
    sequences: Any,
    domain_of: np.ndarray,
) -> PackedRecommenderTrainer:
    """The trainer of the recommender on all domains; a batch is of one domain."""
    entries = np.bincount(domain_of[sequences.items[sequences.offsets[:-1]]], minlength=len(processors))
    steps = int((np.minimum(entries, chosen.quota) // (chosen.batch * processes.count())).sum())
    return PackedRecommenderTrainer(
        model,
        training_arguments(
            chosen.output / "checkpoints" / "recommender",
            epochs=chosen.epochs,
            batch=chosen.batch,
            rate=chosen.rate,
            steps_per_epoch=max(1, steps),
            seed=chosen.seed,
            weight_decay=0.01,
        ),
        processor=processors,
        validation_processor=validation,
        sequences=sequences,
        validation=held.split().test,
        domains=domain_of,
        quota=chosen.quota,
        callbacks=[EarlyStoppingCallback(chosen.patience)],
    )


if __name__ == "__main__":
    main()
