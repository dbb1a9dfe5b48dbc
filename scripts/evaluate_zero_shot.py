"""Evaluates checkpoints on domains that they were never trained on, beside every row that they must beat, in one table.

    python scripts/evaluate_zero_shot.py --source ../shared/data --domains lastfm_artists --models setrec-foundation --output runs/zero-shot
    python scripts/evaluate_zero_shot.py ... --models runs/setrec,runs/idgenrec --sasrec amazon14_beauty=runs/beauty-cf --max-users 5000
    python scripts/evaluate_zero_shot.py ... --publish      puts each checkpoint's results into its folder, where the model card finds them

A row is a checkpoint (zero-shot: nothing of the interactions but each user's own history reaches it), one of the five text baselines,
popularity, item-kNN, repeat-last (only where seen items may be recommended), or a SASRec trained on that very domain as the supervised
reference. Every row answers the same users twice: without repeats (seen items excluded, users whose target is a repeat left out) and with
them. A finished cell (domain, repeats, row) is kept in the output folder and asked again only when the checkpoint, the data or the users
have changed; an interrupted run goes on where it was. Answers: `zero_shot.json` (a list of objects as `genrec evaluate --json` gives them,
with `domain`, `trained_on` and `against`), `zero_shot.md`.
"""

import argparse
import hashlib
import json
import logging
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from genrec_hub import Domain, load
from genrec_hub.baselines import Ranker, SASRecRanker, baseline_rankers
from genrec_hub.checkpoint import refuse_other_protocol
from genrec_hub.domain import Cases, Sequences, Split
from genrec_hub.evaluation import Answer, rank, ranker_of, report, text_vectors
from genrec_hub.metrics import ndcg, paired_difference
from genrec_hub.pipeline import embedded

logger = logging.getLogger("evaluate_zero_shot")

TEXT = tuple(f"text-knn-{how}" for how in ("last", "mean", "max", "recent", "soft"))
PLAIN = ("popularity", "item-knn")
RESULTS = "zero_shot.json"
"""What a checkpoint's folder is given with --publish."""


@dataclass
class Question:
    """One domain with or without repeats: the users that every row answers, and what identifies them."""

    name: str
    domain: Domain
    split: Split
    exclude_seen: bool
    cases: Cases
    repeat_targets: int
    key: str
    known: dict[str, Answer] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, domain: Domain, exclude_seen: bool, options: argparse.Namespace) -> "Question":
        """Asks a domain for its users; the key changes with anything that an answer depends on but the row."""
        split = domain.split(options.protocol)
        cases, repeats = split.cases(options.stage).sample(options.max_users, options.seed).asked(exclude_seen)
        if not len(cases):
            raise ValueError(f"{name}: no user has a {options.stage} target under {options.protocol}, so there is nothing to evaluate.")
        key = hashlib.sha256(f"{domain.catalog.fingerprint} {exclude_seen}".encode())
        for part in (cases.histories, cases.targets, split.training):
            key.update(part.items.tobytes() + part.offsets.tobytes())
        return cls(name, domain, split, exclude_seen, cases, repeats, key.hexdigest())

    @property
    def run(self) -> str:
        """Folder name of this run's cells."""
        return "without-repeats" if self.exclude_seen else "with-repeats"


def fill(question: Question, folder: Path, rows: Mapping[str, str], rankers: Callable[[], Mapping[str, Ranker]]) -> None:
    """Answers rows of a question: from the folder's cells where they are current, else by asking their rankers, and then kept.

    Args:
        question: the users; `known` and `seconds` take up the answers.
        folder: of the cells.
        rows: row -> what identifies its ranker, e.g. the digest of a checkpoint.
        rankers: makes the rankers of all the rows; called only when one of them is missing.
    """
    place = folder / question.name / question.run
    keys = {row: hashlib.sha256(f"{question.key} {row} {who}".encode()).hexdigest() for row, who in rows.items()}
    for row, key in keys.items():
        found = _read_cell(place / f"{_file(row)}.safetensors", key)
        if found is not None:
            question.known[row], question.seconds[row] = found
    if all(row in question.known for row in rows):
        return
    start, made = time.process_time(), rankers()
    missing = {row: made[row] for row in rows if row not in question.known}
    logger.info("%s, %s: %s", question.name, question.run.replace("-", " "), ", ".join(missing))
    answers = rank(missing, question.cases, len(question.domain.catalog), question.exclude_seen)
    spent = (time.process_time() - start) / len(missing)
    for row, answer in answers.items():
        _write_cell(place / f"{_file(row)}.safetensors", keys[row], answer, spent)
        question.known[row], question.seconds[row] = answer, spent


def _file(row: str) -> str:
    """A file name for a row; rows of checkpoints may be paths."""
    return (
        "".join(char if char.isalnum() or char in "-_." else "_" for char in row)[-80:] + "-" + hashlib.sha256(row.encode()).hexdigest()[:6]
    )


def _write_cell(path: Path, key: str, answer: Answer, seconds: float) -> None:
    targets, ranks = Sequences.of(answer.targets), Sequences.of(answer.ranks)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"targets": targets.items, "ranks": ranks.items, "offsets": targets.offsets, "lists": answer.lists}
    half = path.with_suffix(".half")
    save_file(arrays, half, metadata={"key": key, "seconds": f"{seconds:.2f}"})
    half.replace(path)  # an interrupted write leaves no cell


def _read_cell(path: Path, key: str) -> tuple[Answer, float] | None:
    from safetensors import safe_open

    if not path.is_file():
        return None
    with safe_open(path, "np") as file:
        about = file.metadata()
    if about["key"] != key:
        return None
    arrays = load_file(path)
    targets, ranks = (Sequences(arrays[name], arrays["offsets"]) for name in ("targets", "ranks"))
    users = range(len(targets))
    return Answer([targets[user] for user in users], [ranks[user] for user in users], arrays["lists"]), float(about["seconds"])


def folder_of(model: str) -> Path:
    """The folder of a checkpoint: a path, or the short name of an embedded one."""
    path = Path(model) if (Path(model) / "config.json").is_file() else embedded(model)
    AutoConfig.from_pretrained(path)
    return path


def digest(folder: Path) -> str:
    """SHA-256 of what decides a checkpoint's answers: weights, configurations, an encoder of its own; not its catalogue or its card."""
    total = hashlib.sha256()
    wanted = [
        path for path in folder.rglob("*") if path.is_file() and not {"catalog", "checkpoints"} & {*path.relative_to(folder).parts[:-1]}
    ]
    for path in sorted(wanted):
        if path.suffix in (".safetensors", ".json", ".model", ".txt") and path.name not in ("training.json", RESULTS):
            total.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def trained_on(folder: Path) -> list[str]:
    """The domains that a checkpoint's training report names."""
    path = folder / "training.json"
    return sorted(json.loads(path.read_text()).get("train", {})) if path.is_file() else []


def evaluate_domain(name: str, options: argparse.Namespace, models: Mapping[str, Path], sasrec: Mapping[str, Path]) -> list[dict[str, Any]]:
    """All rows of a domain, without and with repeats: one object a checkpoint and run (or the baselines alone)."""
    domain = Domain.from_folder(options.source / name, check_order=options.check_order)
    vectors = text_vectors(domain.catalog)
    objects = []
    for exclude_seen in (True, False):
        question, cells = Question.of(name, domain, exclude_seen, options), options.output / "cells"

        def rows_without_training(question: Question = question) -> Mapping[str, Ranker]:
            return baseline_rankers(question.split, vectors, repeat_last=not question.exclude_seen)

        fill(question, cells, dict.fromkeys(TEXT, "1"), rows_without_training)
        fill(question, cells, dict.fromkeys(PLAIN if exclude_seen else (*PLAIN, "repeat-last"), "1"), rows_without_training)
        if name in sasrec:
            folder = sasrec[name]
            refuse_other_protocol(folder, domain.catalog.fingerprint, options.protocol)
            fill(
                question,
                cells,
                {"sasrec": digest(folder)},
                lambda folder=folder: {"sasrec": SASRecRanker.from_folder(folder, domain.catalog)},
            )
        for model, folder in models.items():

            def ours(question: Question = question, model: str = model, folder: Path = folder) -> Mapping[str, Ranker]:
                return {model: ranker_of(load(folder), domain, question.split, True, question.exclude_seen)}

            fill(question, cells, {model: digest(folder)}, ours)
        others = {row: answer for row, answer in question.known.items() if row not in models}
        for model in models or [None]:
            answers = others if model is None else {**others, "model": question.known[model]}
            objects.append(
                {
                    "domain": name,
                    "protocol": options.protocol,
                    "stage": options.stage,
                    "zero_shot": True,
                    "exclude_seen": exclude_seen,
                    "repeat_targets": question.repeat_targets,
                    "users": len(question.cases),
                    "items": len(domain.catalog),
                    "seed": options.seed,
                    **report(answers, question.split.popularity(len(domain.catalog)), vectors, options.bootstrap, options.seed),
                    "against": {} if model is None else against(question.known[model], others, options),
                    "seconds": None if model is None else round(question.seconds[model], 2),
                    "model": model,
                    "trained_on": model is not None and name in trained_on(models[model]),
                    "fingerprint": domain.catalog.fingerprint,
                    "command": options.command,
                }
            )
    return objects


def against(ours: Answer, others: Mapping[str, Answer], options: argparse.Namespace) -> dict[str, Any]:
    """Ours beside the best text baseline (the best by NDCG@10 on these users, chosen in hindsight), in pairs."""
    means = {row: float(ndcg(others[row].ranks, 10).mean()) for row in TEXT}
    best = max(means, key=lambda row: means[row])
    return {"row": best, "NDCG@10": paired_difference(ndcg(ours.ranks, 10), ndcg(others[best].ranks, 10), options.bootstrap, options.seed)}


def markdown(objects: Sequence[Mapping[str, Any]]) -> str:
    """The table of a run: rows x domains, HR@10 / NDCG@10, without and with repeats, then ours against the best text baseline."""
    lines = ["# Zero-shot evaluation", ""]
    domains = list(dict.fromkeys(entry["domain"] for entry in objects))
    for exclude_seen, title in ((True, "Without repeats (seen items excluded)"), (False, "With repeats (seen items may be recommended)")):
        chosen = [entry for entry in objects if entry["exclude_seen"] == exclude_seen]
        rows: dict[str, dict[str, Mapping[str, float]]] = {}
        for entry in chosen:
            if entry["model"] is not None:
                rows.setdefault(f"**{entry['model']}**", {})[entry["domain"]] = entry["metrics"]
        for entry in chosen:
            for row, metrics in entry["baselines"].items():
                rows.setdefault(row, {})[entry["domain"]] = metrics
        users = {entry["domain"]: f"{entry['domain']} ({entry['users']:,} users, {entry['items']:,} items)" for entry in chosen}
        lines += [f"## {title}", "", "HR@10 / NDCG@10. " + _repeats(chosen), ""]
        lines += ["| | " + " | ".join(users[domain] for domain in domains) + " |", "|---" * (len(domains) + 1) + "|"]
        lines += [f"| {row} | " + " | ".join(hits_and_ndcg(known.get(domain)) for domain in domains) + " |" for row, known in rows.items()]
        lines.append("")
    ours = [entry for entry in objects if entry["model"] is not None]
    if ours:
        lines += ["## Against the best text baseline", "", "Ratio of mean NDCG@10, paired 95 % bootstrap interval over users.", ""]
        lines += ["| checkpoint | repeats | " + " | ".join(domains) + " | mean ratio |", "|---" * (len(domains) + 3) + "|"]
        for model, exclude_seen in dict.fromkeys((entry["model"], entry["exclude_seen"]) for entry in ours):
            own = {entry["domain"]: entry for entry in ours if (entry["model"], entry["exclude_seen"]) == (model, exclude_seen)}
            ratios = [own[domain]["against"]["NDCG@10"]["ratio"] for domain in domains]
            mean = f"{np.mean(ratios):.3f}" if None not in ratios else "-"
            cells = " | ".join(_against(own[domain]) for domain in domains)
            lines.append(f"| {model} | {'without' if exclude_seen else 'with'} | {cells} | {mean} |")
        lines.append("")
    return "\n".join(lines)


def hits_and_ndcg(metrics: Mapping[str, float] | None) -> str:
    """An entry of a table: HR@10, or Recall@10 where users have several targets, and NDCG@10."""
    if metrics is None:
        return "-"
    hits = next(metrics[name] for name in ("HR@10", "Recall@10") if name in metrics)
    return f"{hits:.4f} / {metrics['NDCG@10']:.4f}".replace("0.", ".")


def _repeats(chosen: Sequence[Mapping[str, Any]]) -> str:
    told = dict.fromkeys(f"{entry['domain']} {entry['repeat_targets']:,}" for entry in chosen)
    left_out = "left out" if chosen[0]["exclude_seen"] else "among them"
    return f"Users whose target is a repeat ({left_out}): {', '.join(told)}."


def _against(entry: Mapping[str, Any]) -> str:
    pair = entry["against"]["NDCG@10"]
    if pair["ratio"] is None:
        return "-"
    note = " (trained on it)" if entry["trained_on"] else ""
    return f"{pair['ratio']:.3f} ({pair['ratio_ci'][0]:.3f} to {pair['ratio_ci'][1]:.3f}) of {entry['against']['row']}{note}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of prepared domains")
    parser.add_argument("--domains", required=True, help="comma-separated names of folders in it")
    parser.add_argument("--models", default="", help="comma-separated checkpoints: folders or embedded names; none: the baselines alone")
    parser.add_argument(
        "--sasrec", action="append", default=[], metavar="DOMAIN=FOLDER", help="a SASRec trained on that domain; may be repeated"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the cells and of the table")
    parser.add_argument("--protocol", default="leave-one-out", choices=["leave-one-out", "global-time", "given"])
    parser.add_argument("--stage", default="test", choices=["test", "validation"])
    parser.add_argument("--max-users", type=int, help="a seeded sample of users, the same for every row")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples of an interval")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and the intervals")
    parser.add_argument("--no-check-order", dest="check_order", action="store_false", help="take histories that are sorted by item id")
    parser.add_argument("--publish", action="store_true", help=f"write each checkpoint's results as {RESULTS} into its folder")
    options = parser.parse_args(arguments)
    options.command = "python scripts/evaluate_zero_shot.py " + shlex.join(sys.argv[1:] if arguments is None else list(arguments))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        models = {name: folder_of(name) for name in filter(None, options.models.split(","))}
        sasrec = {}
        for pair in options.sasrec:
            domain, equals, folder = pair.partition("=")
            if not equals:
                raise ValueError(f"--sasrec is {pair!r}: write the domain and the folder, for instance amazon14_beauty=runs/beauty-cf.")
            sasrec[domain] = Path(folder)
        objects = [entry for name in options.domains.split(",") for entry in evaluate_domain(name, options, models, sasrec)]
    except (ValueError, OSError, KeyError) as error:
        logger.error("%s", error.args[0] if isinstance(error, KeyError) else error)
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "zero_shot.json").write_text(json.dumps(objects, indent=2) + "\n")
    table = markdown(objects)
    (options.output / "zero_shot.md").write_text(table)
    for name, folder in models.items() if options.publish else ():
        own = [entry for entry in objects if entry["model"] == name]
        (folder / RESULTS).write_text(json.dumps([{**entry, "model": folder.name} for entry in own], indent=2) + "\n")
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
