"""To the Hub and back: a checkpoint, a data set or the Space becomes one commit, whole or not at all."""

import json
import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import safe_open

from .cards import (
    EVALUATIONS,
    FIGURE,
    bars,
    eval_results,
    evaluation_files,
    may_be_published,
    read_evaluations,
    render_card,
    render_dataset_card,
)
from .checkpoint import REPORT, SIDECARS, SUMS, TOKENIZER, TRANSPORT, WAITS, WEIGHTS, matches, read_sums, write_sums
from .domain import Domain
from .pipeline import RecommendationPipeline

logger = logging.getLogger(__name__)

RUN = (REPORT, *EVALUATIONS, ".eval_results/*.yaml", FIGURE)
"""What tells of a run; it belongs to the weights and goes when they are replaced."""
MODEL_FILES = ("config.json", "generation_config.json", *WEIGHTS, "pytorch_model*", *RUN)
PROCESSOR_FILES = ("processor_config.json", *SIDECARS, *TOKENIZER)
CODE = ("*.py",)


@dataclass(frozen=True)
class Target:
    """Where a commit goes.

    Attributes:
        repo_id: "org/name".
        kind: "model", "dataset" or "space".
        private: of a repository that is made; None takes the owner's default.
        token: of an account that may write; the logged-in one when None.
        revision: a branch, made where it is missing; the main one when None.
        create_pr: propose the commit instead of making it.
    """

    repo_id: str
    kind: str = "model"
    private: bool | None = None
    token: str | bool | None = None
    revision: str | None = None
    create_pr: bool = False


def push(
    repo_id: str,
    *,
    pipeline: RecommendationPipeline | None = None,
    model: Any | None = None,
    processor: Any | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    tags: Sequence[str] | None = (),
    max_shard_size: int | str = "5GB",
    push_catalog: bool = True,
    push_encoder: bool = True,
    license: str | None = None,
    evaluations: Sequence[str | Path] = (),
) -> CommitInfo:
    """Pushes a checkpoint, or its model or processor alone, in one commit. A repeated push of the same thing commits nothing.

    Args:
        repo_id: "org/name"; made where it is missing.
        pipeline: everything: weights, catalogue, encoder, code, card and results.
        model: weights, configuration, code, card and results; a catalogue that is there stays.
        processor: catalogue and encoder; weights and card stay.
        private: of a repository that is made.
        token: of an account that may write; the logged-in one when None.
        revision: a branch, made where it is missing; the main one when None.
        create_pr: propose the commit instead of making it.
        commit_message: first line of the commit.
        commit_description: its further text.
        tags: for the card, besides its own.
        max_shard_size: of a file of weights.
        push_catalog: False leaves out the catalogue and all that is made of it; the repository then works zero-shot.
        push_encoder: False names the sentence encoder instead of copying it.
        license: of the weights, a licence identifier of the Hub; that of the run or of its data when None.
        evaluations: further files with what `genrec evaluate --json` printed.

    Raises:
        ValueError: when the terms of the catalogue forbid to publish it.
        PermissionError: when the token may not write there.
        ConnectionAbortedError: when somebody else changed the repository meanwhile.
        ConnectionError: when the Hub can't be reached or fails again and again.
    """
    parts = [part for part in (pipeline, model, processor) if part is not None]
    if len(parts) != 1:
        raise ValueError(f"{len(parts)} things are given to push: give a pipeline, a model or a processor.")
    if pipeline is not None:
        model, processor = pipeline.model, pipeline.processor
    if processor is not None and push_catalog:
        refuse_closed(processor.catalog.license, "the catalogue", "push it without its catalogue (push_catalog=False, --no-catalog)")
    target = Target(repo_id, "model", private, token, revision, create_pr)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if model is not None:
            own = {"catalog_left_out": not push_catalog, "license": license, "tags": tags or ()}
            write_model(folder, model, pipeline, repo_id, max_shard_size, evaluations, **own)
        if processor is not None:
            processor.save_pretrained(folder, with_catalog=push_catalog, with_encoder=push_encoder)
        managed = [*(MODEL_FILES if model is not None else ()), *(PROCESSOR_FILES if processor is not None else ())]
        managed += CODE if pipeline is not None else ()
        what = type(parts[0].model if pipeline is not None else parts[0]).__name__
        return upload(folder, target, managed, commit_message or f"Upload {what}", commit_description)


def write_model(
    folder: Path,
    model: Any,
    pipeline: RecommendationPipeline | None,
    repo_id: str | None,
    max_shard_size: int | str = "5GB",
    evaluations: Sequence[str | Path] = (),
    **card: Any,
) -> None:
    """Writes weights, code, report, evaluations, results and card of a model into a folder; arguments as in `push` and `render_card`."""
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    source = getattr(model, "checkpoint_folder", None)
    if source is not None and any((source / name).exists() for name in (REPORT, "evaluations", *EVALUATIONS[:2])):
        if same_weights(source, folder):
            for path in [source / REPORT, *evaluation_files(source)]:
                if path.is_file():
                    target = folder / path.relative_to(source)
                    target.parent.mkdir(exist_ok=True)
                    shutil.copyfile(path, target)
        else:
            logger.warning("The weights are no longer those of %s: its report and its results are left out.", source)
    for path in map(Path, evaluations):
        target = folder / "evaluations" / f"{path.stem}.json"
        if target.exists():
            raise ValueError(f"Two evaluations are called {path.stem}, as their data set then is on the card: rename one of the files.")
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    write_card(folder, model, pipeline, repo_id, **card)


def write_card(folder: Path, model: Any, pipeline: RecommendationPipeline | None, repo_id: str | None, **card: Any) -> None:
    """Writes README.md, `.eval_results/` and the figure into a folder that holds the run's report and evaluations."""
    entries = read_evaluations(evaluation_files(folder))
    for name, text in eval_results(entries).items():
        (folder / ".eval_results").mkdir(exist_ok=True)
        (folder / ".eval_results" / name).write_text(text, encoding="utf-8")
    if picture := bars(entries):
        (folder / FIGURE).parent.mkdir(exist_ok=True)
        (folder / FIGURE).write_text(picture, encoding="utf-8")
    (folder / "README.md").write_text(render_card(model, pipeline, folder, entries, repo_id, **card), encoding="utf-8")


def same_weights(one: Path, other: Path) -> bool:
    """Whether two folders hold the same weights, however sharded; a wider floating-point type of the same numbers counts as the same."""
    sums = [{name: sha for name, sha in read_sums(folder).items() if matches(name, WEIGHTS)} for folder in (one, other)]
    if sums[0] and sums[0] == sums[1]:
        return True
    with ExitStack() as stack:
        files = [[stack.enter_context(safe_open(path, "pt")) for path in sorted(folder.glob(WEIGHTS[0]))] for folder in (one, other)]
        homes = [{name: file for file in own for name in file.keys()} for own in files]  # noqa: SIM118
        return homes[0].keys() == homes[1].keys() and all(
            torch.equal(home.get_tensor(name).float(), homes[1][name].get_tensor(name).float()) for name, home in homes[0].items()
        )


def refuse_closed(license: str, what: str, instead: str) -> None:
    """Refuses to publish data whose terms forbid it or are unknown.

    Raises:
        ValueError: naming the terms and the way out.
    """
    if not may_be_published(license):
        raise ValueError(
            f"The terms of {what} do not allow to publish it ({license!r}): {instead}; if you hold the right, say so in its license field."
        )


# One commit


def upload(folder: Path, target: Target, managed: Iterable[str], message: str, description: str | None = None) -> CommitInfo:
    """Makes a folder the state of a repository's managed files, in one commit.

    The commit names its parent: if somebody else's came between, it is refused as a whole. What fails on the way is tried again; a commit
    that was made although its answer was lost is found made, and nothing is done twice.

    Args:
        folder: the new files.
        target: where they go.
        managed: patterns of files that go when the folder has none of their name; all others stay.
        message: first line of the commit.
        description: its further text.

    Raises:
        PermissionError: when the token may not write there.
        ConnectionAbortedError: when the repository changed meanwhile.
        ConnectionError: when no attempt went through.
    """
    managed = tuple(managed)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    api = HfApi(token=target.token)
    branch = "main" if target.revision is None else target.revision
    parent: str | None = None
    for number in range(len(WAITS) + 1):
        try:
            if parent is None:
                parent = _prepare(api, target, branch)
            there = api.list_repo_files(target.repo_id, repo_type=target.kind, revision=branch)
            if SUMS in files:
                _keep_other_sums(folder, target, parent, managed, there)
            stale = [name for name in there if name not in files and matches(name, managed)]
            operations = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")
                return api.create_commit(
                    target.repo_id,
                    [*operations, *(CommitOperationDelete(name) for name in stale)],
                    commit_message=message,
                    commit_description=description,
                    repo_type=target.kind,
                    revision=None if target.create_pr else branch,
                    create_pr=target.create_pr,
                    parent_commit=parent,
                )
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
                raise PermissionError(
                    f"You may not write to {target.repo_id}: the token is missing, unknown, or may only read. Log in with one that may "
                    "write (`hf auth login`, or HF_TOKEN)."
                ) from None
            if status == 412:
                raise ConnectionAbortedError(
                    f"{target.repo_id} changed while this push was under way: push again to put it on top of what is there now."
                ) from None
            if status < 500 and status not in (408, 429):
                raise
            trouble: Exception = error
        except (TRANSPORT, ConnectionError, RuntimeError) as error:  # RuntimeError is what the client makes of an upload that broke off
            trouble = error
        if number < len(WAITS):
            logger.warning("The push to %s broke off (%s); attempt %d follows.", target.repo_id, _first_line(trouble), number + 2)
            time.sleep(WAITS[number])
    raise ConnectionError(
        f"The push to {target.repo_id} failed {len(WAITS) + 1} times ({_first_line(trouble)}): no half of it is to be seen there; push "
        "again later, what was uploaded so far is not sent twice."
    )


def _prepare(api: HfApi, target: Target, branch: str) -> str:
    """Makes repository and branch where they are missing. Returns the commit that the new one follows."""
    sdk = "gradio" if target.kind == "space" else None
    api.create_repo(target.repo_id, repo_type=target.kind, private=target.private, exist_ok=True, space_sdk=sdk)
    info = api.repo_info(target.repo_id, repo_type=target.kind)
    if target.private and not info.private:
        raise ValueError(
            f"{target.repo_id} is there already and public: make it private in its settings, or push to another name or without private."
        )
    if branch != "main" and not target.create_pr:
        try:
            info = api.repo_info(target.repo_id, repo_type=target.kind, revision=branch)
        except RevisionNotFoundError:
            api.create_branch(target.repo_id, repo_type=target.kind, branch=branch, exist_ok=True)
            info = api.repo_info(target.repo_id, repo_type=target.kind, revision=branch)
    return str(info.sha)


def _keep_other_sums(folder: Path, target: Target, parent: str, managed: tuple[str, ...], there: Sequence[str]) -> None:
    """Adds the checksums of files that stay in the repository to those of the new ones."""
    if SUMS not in there:
        return
    path = hf_hub_download(target.repo_id, SUMS, repo_type=target.kind, revision=parent, token=target.token)
    kept = {name: sha for name, sha in read_sums(Path(path).parent).items() if name in there and not matches(name, managed)}
    write_sums(folder, {**kept, **read_sums(folder)})


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


# Data sets


def push_domain(
    domain: Domain | str | Path, repo_id: str, license: str | None = None, commit_message: str | None = None, **where: Any
) -> CommitInfo:
    """Pushes a domain as a data set repository, in one commit.

    Args:
        domain: the domain, or the folder of one.
        repo_id: "org/name".
        license: the terms; those of the catalogue when None.
        commit_message: its first line.
        **where: of `Target`: `private`, `token`, `revision`, `create_pr`.

    Raises:
        ValueError: when the terms forbid it.
    """
    domain = domain if isinstance(domain, Domain) else Domain.from_folder(domain)
    terms = domain.catalog.license if license is None else license
    refuse_closed(terms, "the data", "keep it")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        domain.save(folder)
        schemas = {name: pq.read_schema(folder / f"{name}.parquet") for name in ("items", "interactions")}
        (folder / "info.json").write_text(json.dumps({"license": terms}, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(render_dataset_card(domain, schemas, repo_id, terms), encoding="utf-8")
        return upload(folder, Target(repo_id, "dataset", **where), ("*.parquet", "info.json"), commit_message or "Upload domain")


def load_domain(repo_id: str, check_order: bool = True, **kwargs: Any) -> Domain:
    """Reads a domain from a data set repository (`kwargs` as in `snapshot_download`) or a folder."""
    from huggingface_hub import snapshot_download

    if Path(repo_id).is_dir():
        return Domain.from_folder(repo_id, check_order)
    wanted = ["items.*", "interactions.*", "info.json"]
    return Domain.from_folder(snapshot_download(repo_id, repo_type="dataset", allow_patterns=wanted, **kwargs), check_order)
