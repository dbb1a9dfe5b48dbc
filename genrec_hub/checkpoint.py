"""A checkpoint on disk or on the Hub: fetched whole, checked before anything of it is used, saved with the code that reads it.

Checksums stand in `SHA256SUMS`, which `sha256sum --check` reads too. The code travels as flat copies of the modules that the classes
are made of, so that `trust_remote_code=True` loads a checkpoint where the package is not installed.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import time
import weakref
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import GenerationConfig
from transformers.dynamic_module_utils import get_relative_import_files

logger = logging.getLogger(__name__)

TASK = "sequential-recommendation"
FORMAT_VERSION = 1
"""Of config.json and processor_config.json; older ones are read, newer ones refused."""
SUMS = "SHA256SUMS"
REPORT = "training.json"
"""What a training run writes down beside its model."""
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
SIDECARS = ("catalog/*", "encoder/*", "encoder/*/*")
"""What a processor has on disk besides its card and, where it has one, a tokenizer."""
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "chat_template.jinja")
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill"}
TRAINER_STATE = {"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth"}
"""What transformers' Trainer leaves beside a model; it is never read here."""
TRANSPORT: type[Exception] = import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0]).TransportError
"""What huggingface_hub's HTTP library raises when a connection can't be made or breaks: httpx under 1.x, httpx2 under 2.x."""
WAITS = (1.0, 3.0, 9.0)
"""Seconds before each further attempt of a transfer."""
PASSED = ("revision", "token", "cache_dir", "local_files_only", "force_download")


def fetch(name: str | Path, patterns: Iterable[str] | None = None, ignore: Iterable[str] = (), **kwargs: Any) -> Path:
    """Returns the folder of a checkpoint: the given one, or the Hub repository's in the cache, downloaded if need be.

    Args:
        name: a folder or a Hub name.
        patterns: of the files that are wanted; all when None. Checksums always come along.
        ignore: patterns of files that are not wanted.
        **kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`; others are ignored.

    Raises:
        FileNotFoundError: no such folder, repository or revision, or nothing in the cache while the Hub is out of reach.
        PermissionError: the repository is gated, or the token is refused.
        ConnectionError: the Hub fails again and again.
        ValueError: there is a pickle.
    """
    folder = Path(name)
    if folder.is_dir():
        refuse_pickles(name, (path.relative_to(folder).as_posix() for path in folder.rglob("*")))
        return folder
    passed = {key: kwargs[key] for key in PASSED if kwargs.get(key) is not None}
    allowed = None if patterns is None else [*patterns, SUMS]
    try:
        if not passed.get("local_files_only"):
            refuse_pickles(name, _listed(str(name), passed.get("revision"), passed.get("token")))
        return _downloaded(str(name), allow_patterns=allowed, ignore_patterns=list(ignore), **passed)
    except HFValidationError:
        raise FileNotFoundError(f"There is no folder {name}, and it is no Hub name (org/name) either.") from None
    except GatedRepoError:
        raise PermissionError(f"{name} is gated: ask for access on its page, then log in with `hf auth login` or HF_TOKEN.") from None
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"There is no folder {name}, and on the Hub no repository {name} that you may read: check the name; if it is private, "
            "log in with `hf auth login` or set HF_TOKEN."
        ) from None
    except RevisionNotFoundError:
        raise FileNotFoundError(
            f"{name} has no revision {str(passed.get('revision'))!r}: give a branch, a tag or a commit that it has."
        ) from None
    except LocalEntryNotFoundError:
        raise FileNotFoundError(
            f"There is no folder {name}, the Hub's {name} is not in the cache, and the Hub is out of reach: go online once to fetch it."
        ) from None
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise PermissionError(f"The Hub refuses your token for {name}: log in anew with `hf auth login` or mend HF_TOKEN.") from None
        raise


def _downloaded(name: str, **how: Any) -> Path:
    """`snapshot_download`, tried again where the Hub fails or the connection breaks; what was fetched so far stays in the cache.

    Raises:
        ConnectionError: when no attempt went through.
    """
    for wait in (*WAITS, None):
        try:
            return Path(snapshot_download(name, **how))
        except HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise
            trouble: Exception = error
        except TRANSPORT as error:
            trouble = error
        if wait is not None:
            logger.warning("The download of %s broke off (%s); it is tried again.", name, str(trouble).partition("\n")[0])
            time.sleep(wait)
    raise ConnectionError(
        f"{name} could not be downloaded in {len(WAITS) + 1} attempts ({str(trouble).strip().partition(chr(10))[0]}): try later."
    )


def _listed(name: str, revision: str | None, token: str | bool | None) -> list[str]:
    """The files of a repository; none when the Hub does not say, for then `snapshot_download` knows best what to do."""
    try:
        found = HfApi(token=token).model_info(name, revision=revision).siblings  # one request, which does not wait for a Hub out of reach
        return [file.rfilename for file in found or ()]
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except (HfHubHTTPError, OfflineModeIsEnabled, TRANSPORT):
        return []


def refuse_pickles(where: str | Path, names: Iterable[str]) -> None:
    """Refuses files that run code when they are read, whether or not anybody would read them.

    Raises:
        ValueError: when there is one; the sentence names it.
    """
    for name in names:
        path = PurePosixPath(name)
        if path.suffix in PICKLES and path.name not in TRAINER_STATE and not path.name.startswith("rng_state_"):
            raise ValueError(
                f"{where} holds {name}, a pickle, which can run any code when it is read: delete it, or convert it to safetensors."
            )


def refuse_other_protocol(folder: str | Path | None, fingerprint: str, protocol: str) -> None:
    """Refuses a model that may have seen what is asked for: trained on the same catalogue under another protocol, says its report.

    What was trained on other catalogues alone has seen none of this one's targets. Without a folder or a report nothing is known.

    Raises:
        ValueError: with both protocols, and how to mend it.
    """
    path = None if folder is None else Path(folder) / REPORT
    report = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else {}
    trained = report.get("settings", {}).get("protocol", protocol)
    if trained != protocol and report.get("data", {}).get("fingerprint", fingerprint) == fingerprint:
        raise ValueError(
            f"{folder} was trained under {trained}, so that targets of {protocol} may stand in its training histories: train it anew "
            f"with --protocol {protocol}, or ask with --protocol {trained}."
        )


def check_format(version: object, where: str | Path) -> None:
    """Refuses what a newer package wrote.

    Raises:
        ValueError: when the version is newer than this package knows, or none.
    """
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(
            f"{where} has format {version}, this package reads up to {FORMAT_VERSION}: upgrade it with pip install -U genrec_hub."
        )


# Checksums


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_sums(folder: Path) -> dict[str, str]:
    """File name -> SHA-256, of every file that `SHA256SUMS` lists; empty without it."""
    path = folder / SUMS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {name.strip().removeprefix("*"): sha for sha, _, name in (line.partition(" ") for line in lines if line.strip())}


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Writes `SHA256SUMS`, sorted by name."""
    (folder / SUMS).write_text("".join(f"{sha}  {name}\n" for name, sha in sorted(sums.items())), encoding="utf-8")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name fits one of the patterns, in which * does not cross folders."""
    path = PurePosixPath(name)
    return any(path.match(pattern) and pattern.count("/") == name.count("/") for pattern in patterns)


def seal(folder: Path, *patterns: str) -> None:
    """Writes the checksums of the files that fit a pattern; those of other files stay."""
    sums = {name: sha for name, sha in read_sums(folder).items() if not matches(name, patterns)}
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    for path in files:
        if matches(name := path.relative_to(folder).as_posix(), patterns):
            sums[name] = digest(path)
    write_sums(folder, sums)


def verify(folder: Path, *patterns: str, where: str | Path = "") -> int:
    """Compares files with their checksums, all of them when no pattern is given. Returns how many were compared.

    Raises:
        FileNotFoundError: when a listed file is not there.
        ValueError: when a file is not what was saved.
    """
    listed = {name: sha for name, sha in read_sums(folder).items() if not patterns or matches(name, patterns)}
    for name, sha in listed.items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{where or folder} lacks {name}, which its {SUMS} lists: copy or download the checkpoint again.")
        if digest(path) != sha:
            raise ValueError(
                f"{name} of {where or folder} is damaged or was changed: its SHA-256 is not the one in {SUMS}. Copy it again or download "
                "it with force_download=True; if the change was meant, save the checkpoint anew."
            )
    return len(listed)


# Code that travels


def save_code(folder: Path, source: str | None) -> None:
    """Copies a module's file and every sibling that it reaches into a folder."""
    if source is not None and Path(source).is_file():
        for path in {source, *get_relative_import_files(source)}:
            target = folder / Path(path).name
            if Path(path).resolve() != target.resolve():
                shutil.copyfile(path, target)


def source_of(kind: type) -> str | None:
    """The file that a class stands in."""
    return getattr(sys.modules.get(kind.__module__), "__file__", None)


def reference(kind: type) -> str:
    """What `auto_map` calls a class: its module's last name and its own."""
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


def settle(fields: dict[str, Any], version: int) -> None:
    """Prepares what a configuration is made of: refuses newer formats; the package's own pipeline comes before a repository's copy."""
    check_format(version, "The checkpoint's config.json")
    if not __name__.startswith("transformers_modules."):
        fields.pop("custom_pipelines", None)


def push(kind: str, owner: Any, repo_id: str, **kwargs: Any) -> Any:
    """Hands a model, processor or pipeline to `hub.push`, which is no part of the code that travels.

    Raises:
        ModuleNotFoundError: without the package.
    """
    try:
        from genrec_hub.hub import push as push_parts
    except ModuleNotFoundError as error:
        if error.name != "genrec_hub":
            raise
        raise ModuleNotFoundError("Pushing writes a model card, which needs the package: pip install genrec_hub") from None
    return push_parts(repo_id, **{kind: owner}, **kwargs)


class HubModel:
    """What our models add to `PreTrainedModel`: checksums, formats, the code that travels, a push with a card."""

    pipeline_travels: ClassVar[bool] = True
    """Whether the pipeline's code is saved with the model."""
    checkpoint_folder: Path | None = None
    """Where the model was read from."""

    def generation(self) -> dict[str, Any] | None:
        """What `generation_config.json` says; None where nothing is generated."""
        return None

    def moment(self) -> tuple[Any, ...]:
        """Equal as long as model and weights are the same: what was computed with them may then be kept."""
        own = ((id(values), values._version, values.device, values.dtype) for values in self.parameters())  # type: ignore[attr-defined]
        return weakref.ref(self), *own

    def save_pretrained(
        self, save_directory: str | Path, is_main_process: bool = True, push_to_hub: bool = False, repo_id: str | None = None, **kwargs: Any
    ) -> None:
        """Writes weights, configuration, code and checksums into a folder; see `PreTrainedModel.save_pretrained`."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)  # type: ignore[misc]
        if not is_main_process:
            return
        folder = Path(save_directory)
        kind, path = type(self), folder / "config.json"
        if path.is_file():  # not there when only adapters were saved
            config = json.loads(path.read_text(encoding="utf-8"))
            config["auto_map"] = {"AutoConfig": reference(kind.config_class), "AutoModel": reference(kind)}  # type: ignore[attr-defined]
            source = source_of(kind)
            save_code(folder, source)
            config.pop("custom_pipelines", None)
            # The code of a checkpoint is kept in a folder for each class: the pipeline's is then beside the weights alone.
            places = [Path(place) / "pipeline.py" for place in (source and Path(source).parent, self.checkpoint_folder) if place]
            pipeline = next(filter(Path.is_file, places), None)
            if self.pipeline_travels and pipeline is not None:
                save_code(folder, str(pipeline))
                config["custom_pipelines"] = {TASK: {"impl": "pipeline.RecommendationPipeline", "pt": ["AutoModel"], "type": "text"}}
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if (generation := self.generation()) is not None:
            GenerationConfig(**generation).save_pretrained(folder)
        if (folder / "model.safetensors").is_file():  # an earlier save may have needed several files
            (folder / "model.safetensors.index.json").unlink(missing_ok=True)
        seal(folder, *WEIGHTS)
        if push_to_hub:
            self.push_to_hub(repo_id or folder.name)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str] | None = None, *arguments: Any, **kwargs: Any) -> Any:
        """Reads a model from a folder or a Hub repository; see `PreTrainedModel.from_pretrained`.

        Raises:
            FileNotFoundError: when there is no such checkpoint, or a shard is missing.
            ValueError: when a shard is damaged, a pickle is there, or the format is newer than this package.
        """
        name, folder = pretrained_model_name_or_path, None
        if name is not None:
            folder = fetch(os.fspath(name), (*WEIGHTS, "*.json"), SIDECARS, **kwargs) / (kwargs.get("subfolder") or "")
            verify(folder, *WEIGHTS, where=name)  # type: ignore[arg-type]
        try:
            loaded = super().from_pretrained(name, *arguments, **{"use_safetensors": True, **kwargs})  # type: ignore[misc]
        except SafetensorError as error:
            raise ValueError(f"The weights of {name} are damaged ({error}): copy or download the checkpoint again.") from None
        (loaded[0] if isinstance(loaded, tuple) else loaded).checkpoint_folder = folder
        return loaded

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Pushes weights, configuration, code and card in one commit; see `genrec_hub.hub.push`."""
        return push("model", self, repo_id, **kwargs)


# Processors


class HubProcessor:
    """What our processors share on disk: a card with its format, the catalogue's fingerprint, arrays that belong to it, checksums."""

    catalog: Any

    def write_card(self, folder: Path, card: dict[str, Any], with_catalog: bool) -> None:
        """Writes `processor_config.json` and the code; the card remembers the catalogue, so that its loss or exchange is noticed."""
        catalog = {"items": len(self.catalog), "fingerprint": self.catalog.fingerprint} if with_catalog else None
        if not with_catalog:
            shutil.rmtree(folder / "catalog", ignore_errors=True)  # that of an earlier save
        kind = type(self)
        own = {"processor_class": kind.__name__, "auto_map": {"AutoProcessor": reference(kind)}, "format_version": FORMAT_VERSION}
        text = json.dumps({**own, **card, "catalog": catalog}, indent=2)
        (folder / "processor_config.json").write_text(text + "\n", encoding="utf-8")
        save_code(folder, source_of(kind))

    @classmethod
    def read_card(cls, name: str | Path, **kwargs: Any) -> tuple[Path, dict[str, Any]]:
        """Fetches and checks what a processor has on disk. Returns the folder and the card.

        Args:
            name: a folder or a Hub name.
            **kwargs: as in `fetch`.

        Raises:
            FileNotFoundError: when there is no processor, or its catalogue is missing.
            ValueError: when a file is damaged, the format newer, or the catalogue another checkpoint's.
        """
        folder = fetch(name, ("processor_config.json", *SIDECARS, *TOKENIZER), **kwargs)
        path = folder / "processor_config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{name} holds no processor: processor_config.json is missing.")
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        check_format(card.get("format_version", 0), name)
        promised, there = card.get("catalog"), folder / "catalog" / "catalog.json"
        if promised:
            if not there.is_file():
                raise FileNotFoundError(
                    f"The catalogue of {name} is missing: catalog/ should hold {promised['items']} items with the fingerprint "
                    f"{promised['fingerprint'][:12]}; copy or download the checkpoint again."
                )
            found = json.loads(there.read_text(encoding="utf-8")).get("fingerprint", "")
            if found != promised["fingerprint"]:
                raise ValueError(
                    f"The catalogue in {name} is another checkpoint's: its fingerprint is {found[:12]}, the processor's is "
                    f"{promised['fingerprint'][:12]}. Put the right catalog/ back; to recommend from other items, give them as catalog=."
                )
        verify(folder, *SIDECARS, *TOKENIZER, where=name)
        return folder, card

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Pushes the processor with its catalogue and encoder in one commit; see `genrec_hub.hub.push`."""
        return push("processor", self, repo_id, **kwargs)


def write_arrays(path: Path, arrays: Mapping[str, Any], fingerprint: str) -> None:
    """Writes arrays that belong to a catalogue."""
    save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, path, metadata={"fingerprint": fingerprint})


def read_arrays(path: Path, fingerprint: str, where: str | Path) -> dict[str, Any]:
    """Reads arrays that belong to a catalogue.

    Raises:
        FileNotFoundError: when the file is not there.
        ValueError: when it is damaged or belongs to another catalogue.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{where} has a catalogue without catalog/{path.name}: copy or download the checkpoint again.")
    try:
        with safe_open(path, "np") as tensors:
            found = str((tensors.metadata() or {}).get("fingerprint"))
            arrays = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"catalog/{path.name} of {where} is damaged ({error}): copy or download the checkpoint again.") from None
    if found != fingerprint:
        raise ValueError(
            f"catalog/{path.name} of {where} belongs to the catalogue {found[:12]}, the items are {fingerprint[:12]}: copy or download "
            "the checkpoint again, or save the processor anew."
        )
    return arrays
