"""Model and data set cards: the templates of `model_cards/`, filled from what a run itself wrote down. No number is typed by hand."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCardData, EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .catalog import Catalog
from .checkpoint import REPORT
from .domain import Domain
from .history import History

EVALUATIONS = ("evaluation.json", "zero_shot.json", "evaluations/*.json")
"""Objects that `genrec evaluate --json` printed, or lists of them; an object without a `domain` is called like its file."""
FIGURE = "figures/results.svg"
HEADLINE = "NDCG@10"
METRICS = ("HR@5", "HR@10", "Recall@5", "Recall@10", "NDCG@5", "NDCG@10", "MRR", "coverage@10", "diversity@10")
TAGS = ("recommendation", "sequential-recommendation", "generative-retrieval", "genrec_hub", "transformers")
INVENTED = ("Argan oil shampoo", "Ionic hair dryer", "Wooden puzzle", "Cast iron pan", "Moisturising hair mask", "Bread knife")
"""The shop of an example whose own catalogue may not be shown."""
FIELDS = (
    "command",
    "backbone",
    "foundation",
    "seconds",
    "cpu_seconds",
    "hardware",
    "settings",
    "curve",
    "validation",
    "validation_domain",
    "untrained",
    "released",
    "phases",
    "best_phase",
)
"""Of a run's report that the cards use; none of them has to be there."""
SHOWN = 3
"""Recommendations of the example."""

_OPEN = re.compile(r"\b(cc0|cc[- ]by|public domain|mit|apache|bsd|odc-by|odbl|pddl|unlicense)\b", re.IGNORECASE)
_CLOSED = re.compile(
    r"redistribut|research|academic|non-commercial use|competition|teaching|not stated|permission|nd-?\d|noderiv", re.IGNORECASE
)


@dataclass(frozen=True)
class System:
    """What the cards say of a system whatever the checkpoint.

    Attributes:
        name: as its paper writes it.
        tag: the task under which the Hub lists it; the Hub knows no recommendation task.
        paper: arXiv number.
    """

    name: str
    tag: str
    paper: str


SYSTEMS = {
    "setrec": System("SETRec", "text-ranking", "2502.10833"),
    "idgenrec": System("IDGenRec", "text-generation", "2403.19021"),
    "sasrec": System("SASRec", "text-ranking", "1808.09781"),
}
"""By `config.model_type`; each has a template of that name."""


def may_be_published(license: str) -> bool:
    """Whether the terms of some data allow to pass it on. No terms at all are the caller's own data; unknown ones count as a no."""
    return not license or bool(_OPEN.search(license) and not _CLOSED.search(license))


def read_report(folder: Path) -> dict[str, Any]:
    """What a training run wrote down, empty when there is nothing."""
    path = folder / REPORT
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def read_evaluations(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Reads evaluation objects, each with its `domain`.

    Raises:
        ValueError: when a file holds something else.
    """
    found = []
    for path in paths:
        content = json.loads(path.read_text(encoding="utf-8"))
        for entry in content if isinstance(content, list) else [content]:
            if not isinstance(entry, dict) or not {"metrics", "baselines", "protocol", "users"} <= set(entry):
                raise ValueError(f"{path} is no evaluation: it should hold what `genrec evaluate --json` prints.")
            if entry["metrics"]:
                found.append({"domain": path.stem, **entry})
    return found


def evaluation_files(folder: Path) -> list[Path]:
    """The evaluation files of a checkpoint folder."""
    return [path for pattern in EVALUATIONS for path in sorted(folder.glob(pattern))]


# Results in the Hub's two formats


def setup_of(entry: Mapping[str, Any]) -> str:
    """How an evaluation was made, in words."""
    seen = "seen items excluded" if entry.get("exclude_seen", True) else "seen items may be recommended"
    kind = "zero-shot, " if entry.get("zero_shot") else ""
    stage = "" if entry.get("stage", "test") == "test" else f"{entry['stage']} targets, "
    return f"{kind}{entry['protocol']}, {stage}{entry['users']:,} users, {entry.get('items', 0):,} items, whole catalogue ranked, {seen}"


def model_index(entries: Sequence[Mapping[str, Any]]) -> list[EvalResult]:
    """Evaluations as the `model-index` of a card's header."""
    return [
        EvalResult(
            task_type=SYSTEMS["setrec"].tag,
            task_name="Sequential recommendation",
            dataset_type=str(entry["domain"]),
            dataset_name=str(entry["domain"]),
            dataset_config=None if entry.get("exclude_seen", True) else "with repeats",  # results of one data set and config are one
            dataset_split=str(entry.get("stage", "test")),
            dataset_args={"setup": setup_of(entry)},
            metric_type=name.lower(),
            metric_name=name,
            metric_value=round(float(value), 6),
        )
        for entry in entries
        for name, value in entry["metrics"].items()
        if value is not None
    ]


def eval_results(entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Evaluations as `.eval_results/<domain>.yaml`: file name -> text. A data set of the Hub is named by the object's `dataset_id`."""
    files: dict[str, list[EvalResultEntry]] = {}
    for entry in entries:
        notes = f"{setup_of(entry)}, seed {entry.get('seed', 0)}; {entry.get('command', '')}".rstrip("; ")
        for name, value in entry["metrics"].items():
            if value is not None:
                task = name.lower() if entry.get("exclude_seen", True) else f"{name.lower()}-with-repeats"
                files.setdefault(f"{str(entry['domain']).replace('/', '_')}.yaml", []).append(
                    EvalResultEntry(
                        dataset_id=str(entry.get("dataset_id", entry["domain"])), task_id=task, value=round(float(value), 6), notes=notes
                    )
                )
    return {name: yaml.safe_dump(eval_result_entries_to_yaml(own), sort_keys=False, width=140) for name, own in files.items()}


# Templates


def template_folder() -> Path:
    """Where the templates are: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "model_cards"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "model_cards"


def render(template: str, **facts: Any) -> str:
    """Fills a template of `model_cards/`."""
    page = Environment(
        loader=FileSystemLoader(template_folder()),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=template.endswith(".svg"),
        keep_trailing_newline=True,
    )
    page.filters |= {"cell": _cell, "score": _score, "python": _python, "duration": _duration, "identifier": _identifier}
    return page.get_template(template).render(**facts)


def _cell(text: object) -> str:
    """Text that breaks neither a Markdown table nor a page."""
    return (
        html.escape(str(text), quote=False).replace("|", "\\|").replace("`", "'").replace("*", "\\*").replace("_", "\\_").replace("\n", " ")
    )


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}".removeprefix("0")


def _python(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _duration(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _identifier(identifier: Mapping[str, Any]) -> str:
    """An identifier as a person reads it: the words, or each token's label with what it adds to the score."""
    if "text" in identifier:
        return _cell(identifier["text"])
    return _cell(" · ".join(f"{t['label']} ({t['score']:.2f})" for t in identifier["tokens"]))


# A model's card


def render_card(
    model: Any, pipeline: Any | None, folder: Path, entries: Sequence[Mapping[str, Any]], repo_id: str | None, **more: Any
) -> str:
    """Fills the card of a checkpoint.

    Args:
        model: the model.
        pipeline: with the catalogue that the repository will have; None when the model goes alone.
        folder: where the run left its report.
        entries: evaluations.
        repo_id: the repository; None for a checkpoint that ships with the package.
        **more: `license`, `tags`, and `catalog_left_out` where the catalogue stays at home.
    """
    system, report = SYSTEMS[model.config.model_type], read_report(folder)
    data, base = _data_of(report), report.get("foundation") or report.get("backbone")
    if base is not None and (not re.fullmatch(r"[\w.-]+/[\w.-]+", base) or Path(base).exists()):
        base = None  # a folder of the trainer's machine
    name = (repo_id or folder.name).rpartition("/")[2]
    catalog = None if pipeline is None or more.get("catalog_left_out") else pipeline.catalog
    license, extra = _license(more.get("license"), report, data, repo_id)
    header = ModelCardData(
        language="en",
        license=license,
        library_name="genrec_hub",
        pipeline_tag=system.tag,
        tags=list(dict.fromkeys([*TAGS, model.config.model_type, *more.get("tags", ())])),
        base_model=base,
        datasets=[entry["name"] for entry in data if "/" in entry["name"]] or None,
        metrics=sorted({metric.lower() for entry in entries for metric in entry["metrics"]}) or None,
        model_name=name if entries else None,
        eval_results=model_index(entries) or None,
        **extra,
    )
    example = None if pipeline is None else example_of(pipeline, catalog is None or not len(catalog))
    return render(
        f"{model.config.model_type}.md",
        header=header.to_yaml(),
        name=name,
        repo_id=repo_id,
        system=system,
        config=model.config,
        model_class=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        catalog=catalog if catalog is not None and len(catalog) else None,
        max_items=getattr(getattr(pipeline, "processor", None), "max_items", None),
        catalog_left_out=bool(more.get("catalog_left_out")),
        encoder=getattr(getattr(getattr(pipeline, "processor", None), "encoder", None), "origin", None),
        base=base,
        backbone=getattr(getattr(model.config, "text_config", None), "model_type", model.config.model_type),
        report={**dict.fromkeys(FIELDS), **report},
        has_report=bool(report),
        kept=_kept(report.get("keep")),
        data=data,
        tables=[table_of(entry) for entry in entries],
        figure=FIGURE if bars(entries) else None,
        example=example,
        setup_of=setup_of,
    )


def _kept(keep: float | Mapping[str, float] | None) -> float:
    """The share of the untrained weights in the finished ones: as given, or the one of a curve that validation chose."""
    if isinstance(keep, Mapping):
        return float(max(keep, key=lambda share: keep[share])) if keep else 0.0
    return keep or 0.0


def _data_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The data sets a run was trained on: name, what is known of the size, and the terms."""
    terms = yaml.safe_load((template_folder() / "terms.yaml").read_text(encoding="utf-8"))
    own = report.get("data")
    named = {**report.get("train", {}), **({own["name"] or "data of the trainer's own": own} if own else {})}
    return [
        {"users": None, "items": None, **facts, "name": name, "license": facts.get("license") or terms.get(name) or ""}
        for name, facts in named.items()
    ]


def _license(
    given: str | None, report: Mapping[str, Any], data: Sequence[Mapping[str, Any]], repo_id: str | None
) -> tuple[str | None, dict[str, Any]]:
    """The licence of the weights, and what the Hub wants beside it: given, the run's own, or that of the data they were trained on."""
    known = given or report.get("license")
    if known or not any(entry["license"] for entry in data):
        return known, {}
    link = {} if repo_id is None else {"license_link": f"https://huggingface.co/{repo_id}#terms"}
    return "other", {"license_name": "terms-of-the-training-data", **link}


def example_of(pipeline: Any, elsewhere: bool) -> dict[str, Any]:
    """Runs the example that a card shows: two items of the catalogue, or of a small invented one when the card may show no other."""
    if elsewhere:
        shop = [{"item_id": str(n), "title": title} for n, title in enumerate(INVENTED, 1)]
        history = [shop[0]["title"], shop[1]["title"]]
        return {"history": history, "shop": shop, "answers": pipeline(history, top_k=SHOWN, catalog=Catalog.from_items(shop))}
    first = len(pipeline.catalog) // 5
    items = list(pipeline.catalog[first : first + 2])
    # By title where the title finds that very item, as a reader would type it; by id where another item has the same title.
    found = History.read([item.title for item in items], pipeline.catalog).rows
    history = [item.title if row == first + n else item.item_id for n, (item, row) in enumerate(zip(items, found, strict=True))]
    return {"history": history, "shop": None, "answers": pipeline(history, top_k=SHOWN)}


def table_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One evaluation as a table: the model first, then the baselines from the best to the worst."""
    names = [name for name in METRICS if name in entry["metrics"]]
    others = sorted(entry["baselines"].items(), key=lambda row: -(row[1].get(HEADLINE) or 0))
    return {"entry": entry, "names": names, "rows": [(None, entry["metrics"]), *others], "setup": setup_of(entry)}


def bars(entries: Sequence[Mapping[str, Any]]) -> str:
    """A figure of the headline metric, the model beside its best baselines; "" when there is nothing to compare."""
    groups = []
    for entry in entries:
        rows = [(name, float(row.get(HEADLINE) or 0)) for name, row in entry["baselines"].items()]
        if rows and entry.get("exclude_seen", True):
            own = ("this model", float(entry["metrics"].get(HEADLINE) or 0))
            groups.append({"title": entry["domain"], "rows": [own, *sorted(rows, key=lambda row: -row[1])[:5]]})
    if not groups:
        return ""
    top = max(value for group in groups for _, value in group["rows"]) or 1.0
    return render("results.svg", groups=groups, top=top, metric=HEADLINE)


# A data set's card


def render_dataset_card(domain: Domain, files: Mapping[str, Any], repo_id: str, license: str) -> str:
    """Fills the card of a domain.

    Args:
        domain: catalogue and interactions.
        files: configuration ("items", "interactions") -> Arrow schema of its Parquet file.
        repo_id: the repository.
        license: an identifier of the Hub's, or the terms in words.
    """
    identifier = license if re.fullmatch(r"[a-z0-9.-]+", license) else "other" if license else None
    lengths = domain.sequences.lengths
    configs = [{"config_name": name, "data_files": f"{name}.parquet", "default": name == "items"} for name in files]
    features = [
        {"config_name": name, "features": [{"name": field.name, "dtype": str(field.type).replace("double", "float64")} for field in schema]}
        for name, schema in files.items()
    ]
    header = DatasetCardData(
        license=identifier,
        license_name="terms-of-the-source" if identifier == "other" else None,
        license_link=f"https://huggingface.co/datasets/{repo_id}#terms" if identifier == "other" else None,
        tags=["recommendation", "sequential-recommendation", "genrec_hub"],
        pretty_name=repo_id.rpartition("/")[2],
        configs=configs,
        dataset_info=features,
    )
    return render(
        "dataset.md",
        header=header.to_yaml(),
        repo_id=repo_id,
        name=repo_id.rpartition("/")[2],
        domain=domain,
        license=license,
        lengths=(int(lengths.min()), float(sorted(lengths)[len(lengths) // 2]), int(lengths.max())) if len(lengths) else (0, 0, 0),
        columns={name: [field.name for field in schema] for name, schema in files.items()},
    )
