"""Few-shot: fine-tunes a foundation SETRec on shares of a domain's users, beside a SASRec trained from scratch on the same users.

    python scripts/finetune.py --domain ../shared/data/amazon18_cds --model setrec-foundation --shares 0.01,0.1,1 --output runs/cds \
        --stage validation
    python scripts/finetune.py --domain ../shared/data/amazon14_beauty --shares 0.1 --output runs/beauty-10 --resume

Of a share everything is learnt and chosen from its users alone: the SASRec, its item vectors (the CF slot), the best epochs and beta.
All users of the domain are then asked, each with the own history. Rows: SETRec fine-tuned, the foundation model as it came, SASRec,
item-kNN and popularity on the share, and the five text baselines. Answers: `few_shot.json`, `few_shot.md`; a share that is finished is
kept, an interrupted training goes on with --resume.
"""

import argparse
import json
import logging
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from evaluate_zero_shot import hits_and_ndcg

from genrec_hub import Domain, load
from genrec_hub.baselines import Ranker, SASRecRanker, baseline_rankers
from genrec_hub.checkpoint import refuse_other_protocol
from genrec_hub.domain import Split
from genrec_hub.evaluation import rank, ranker_of, report, text_vectors
from genrec_hub.finetuning import few_shot, few_shot_settings, finetune_setrec
from genrec_hub.metrics import ndcg, paired_difference
from genrec_hub.recipes import REPORT, Settings, train_sasrec

logger = logging.getLogger("finetune")


def refuse_others(path: Path, options: argparse.Namespace) -> None:
    """Raises a ValueError where a share was begun with other options: what is kept there is of another run."""
    names = ("model", "protocol", "seed", "epochs", "batch", "rate", "negatives", "config")
    asked = {name: getattr(options, name) for name in names}
    kept = json.loads(path.read_text()) if path.is_file() else asked
    if kept != asked:
        other = ", ".join(f"{name} {kept[name]}" for name in names if kept[name] != asked[name])
        raise ValueError(f"{path.parent} was begun with {other}: give another --output, or the same options.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asked) + "\n")


def tune(share: float, domain: Domain, pipe: Any, options: argparse.Namespace) -> dict[str, Any]:
    """One share: trains both, asks all users; returns the object that the table is made of."""
    folder = options.output / f"share-{share:g}"
    refuse_others(folder / "options.json", options)
    few = few_shot(domain, share, options.seed)
    settings = Settings(options.epochs, options.batch, options.rate, options.negatives, options.every, options.seed, options.protocol)
    sasrec = options.sasrec if options.sasrec is not None and share == 1 else folder / "sasrec"
    if not (sasrec / "config.json").is_file():
        train_sasrec(few, sasrec, few_shot_settings(len(few), settings), options.resume)
    trained = folder / "setrec" / REPORT
    if not trained.is_file():
        finetune_setrec(pipe.model, pipe.processor, few, folder / "setrec", settings, options.resume, sasrec=sasrec, **options.config)
    for place in (sasrec, folder / "setrec"):
        refuse_other_protocol(place, domain.catalog.fingerprint, options.protocol)
    whole, own = domain.split(options.protocol), few.split(options.protocol)
    split = Split(own.training, whole.validation, whole.test)
    cases, repeats = split.cases(options.stage).sample(options.max_users, options.seed).asked()
    vectors = text_vectors(domain.catalog)
    rankers: dict[str, Ranker] = {
        "model": ranker_of(load(folder / "setrec"), domain, split, False, True),
        "zero-shot": ranker_of(pipe, domain, split, True, True),
        "sasrec": SASRecRanker.from_folder(sasrec, domain.catalog),
        **baseline_rankers(split, vectors),
    }
    start = time.process_time()
    answers = rank(rankers, cases, len(domain.catalog))
    ours = ndcg(answers["model"].ranks, 10)
    return {
        "share": share,
        "domain": options.domain.name,
        "protocol": options.protocol,
        "stage": options.stage,
        "zero_shot": False,
        "exclude_seen": True,
        "repeat_targets": repeats,
        "users": len(cases),
        "training_users": len(few),
        "items": len(domain.catalog),
        "seed": options.seed,
        **report(answers, split.popularity(len(domain.catalog)), vectors, options.bootstrap, options.seed),
        "against": {row: paired_difference(ours, ndcg(answers[row].ranks, 10), options.bootstrap) for row in ("sasrec", "zero-shot")},
        "training": {"setrec": json.loads(trained.read_text()), "sasrec": json.loads((sasrec / REPORT).read_text())},
        "seconds": round(time.process_time() - start, 2),
        "model": options.model,
        "fingerprint": domain.catalog.fingerprint,
        "command": options.command,
    }


def markdown(objects: Sequence[Mapping[str, Any]]) -> str:
    """The table: rows x shares, then fine-tuned against SASRec and against zero-shot."""
    first = objects[0]
    lines = [f"# Few-shot on {first['domain']} ({first['users']:,} users asked, {first['stage']}, seen items excluded)", ""]
    lines += ["HR@10 (Recall@10 where users have several targets) / NDCG@10.", ""]
    heads = [f"{entry['share']:.0%} ({entry['training_users']:,} users)" for entry in objects]
    lines += ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    tables = [{"**SETRec fine-tuned**": entry["metrics"], **entry["baselines"]} for entry in objects]
    for row in tables[0]:
        lines.append(f"| {row} | " + " | ".join(hits_and_ndcg(table[row]) for table in tables) + " |")
    for row in ("sasrec", "zero-shot"):
        pairs = [entry["against"][row] for entry in objects]
        cells = ("-" if p["ratio"] is None else f"{p['ratio']:.2f} ({p['ratio_ci'][0]:.2f} to {p['ratio_ci'][1]:.2f})" for p in pairs)
        lines.append(f"| fine-tuned / {row}, NDCG@10 | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", type=Path, required=True, help="folder of a prepared domain")
    parser.add_argument("--model", default="setrec-foundation", help="the foundation checkpoint: an embedded name or a folder")
    parser.add_argument("--shares", default="0.01,0.1,1", help="comma-separated shares of the users")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sasrec", type=Path, help="a SASRec trained on all users, instead of training one for the share 1")
    parser.add_argument("--stage", default="test", choices=["test", "validation"])
    parser.add_argument("--protocol", default="leave-one-out", choices=["leave-one-out", "global-time", "given"])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--negatives", type=int)
    parser.add_argument("--every", type=int, default=1, help="epochs between validations and checkpoints")
    parser.add_argument("--config", type=json.loads, default={}, help="JSON of SETRecConfig values that differ from the foundation's")
    parser.add_argument("--max-users", type=int, help="a seeded sample of the users that are asked")
    parser.add_argument("--bootstrap", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-check-order", dest="check_order", action="store_false")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    options = parser.parse_args(arguments)
    options.command = "python scripts/finetune.py " + shlex.join(sys.argv[1:] if arguments is None else list(arguments))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        domain, pipe = Domain.from_folder(options.domain, options.check_order), load(options.model)
        objects = []
        with redirect_stdout(sys.stderr):  # the Trainer prints its log
            for share in map(float, options.shares.split(",")):
                objects.append(tune(share, domain, pipe, options))
                (options.output / "few_shot.json").write_text(json.dumps(objects, indent=2) + "\n")
    except (ValueError, OSError, KeyError) as error:
        logger.error("%s", error.args[0] if isinstance(error, KeyError) else error)
        return 1
    table = markdown(objects)
    (options.output / "few_shot.md").write_text(table)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
