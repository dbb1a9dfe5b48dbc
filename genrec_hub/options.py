"""What `genrec train` takes in --config and --arguments: JSON, checked by name and type before anything is read or trained."""

import json
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from inspect import get_annotations
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from transformers import TrainingArguments

from .configuration_idgenrec import IDGenRecConfig
from .configuration_sasrec import SASRecConfig
from .configuration_setrec import SETRecConfig
from .finetuning import finetune_setrec
from .modeling_setrec import SETRecModel
from .recipes import Settings, small_backbone, train_setrec
from .recipes_idgenrec import small_language_models, train_idgenrec

TYPED = {*(field.name for field in fields(Settings)), "backbone", "cf", "foundation", "output", "resume", "sasrec", "strategy"}
"""Options of their own on the command line."""
GIVEN = {"domain", "model", "processor", "settings", "progress", "arguments", "config", "return"}
GIVEN |= {"num_items", "semantic_size", "cf_size", "catalog_fingerprint", "format_version", "text_config", "generator_config"}
GIVEN |= {"name_or_folder", "words", "dtype"}
"""What a recipe is told, or finds out, without --config."""


def read_config(text: str, system: str, backbone: str | None = None, tuned: bool = False) -> dict[str, Any]:
    """Reads --config for a system on a backbone (None: from scratch); `tuned` is for a foundation that is fine-tuned.

    Raises:
        ValueError: when a field is not known there, or its value has another type.
    """
    known = config_fields(system, backbone, tuned)
    return _read("--config", text, known, f"it takes {', '.join(sorted(known))}")


def read_arguments(text: str) -> dict[str, Any]:
    """Reads --arguments.

    Raises:
        ValueError: when something is no field of `TrainingArguments`, or its value has another type.
    """
    hints = get_type_hints(TrainingArguments)
    known = {field.name: hints[field.name] for field in fields(TrainingArguments) if field.init and field.name not in TYPED}
    return _read("--arguments", text, known, "it takes the fields of transformers.TrainingArguments")


def config_fields(system: str, backbone: str | None = None, tuned: bool = False) -> dict[str, Any]:
    """Name -> type of what a recipe makes use of: its own keywords, its configuration's fields, the sizes of a small backbone."""
    scratch, without, more = backbone is None, GIVEN | TYPED, {}
    parts: list[Any]
    if system == "sasrec":
        parts = [SASRecConfig]
    elif system == "idgenrec":
        parts = [IDGenRecConfig, train_idgenrec, *[small_language_models] * scratch]
        without = without | {"generator" if scratch else "vocabulary"}
        if backbone is not None and (Path(backbone) / "processor_config.json").is_file():  # it has its shape and its prompts already
            return {"rounds": int, "generator_rate": float}
    elif tuned:
        parts, without = [SETRecConfig, finetune_setrec], without | {"slot_weights"}
    else:
        parts = [SETRecConfig, train_setrec, small_backbone if scratch else SETRecModel.from_backbone]
        more = {"text_config": dict} if scratch else {}
    found = {name: kind for part in parts for name, kind in get_annotations(part).items()}
    return {name: kind for name, kind in found.items() if name not in without} | more


def _read(option: str, text: str, known: Mapping[str, Any], takes: str) -> dict[str, Any]:
    """A JSON object whose fields are all known and of the known type."""
    try:
        read = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{option} is no JSON ({error}): write for instance {option} '{{\"lora\": {{}}}}'.") from error
    if not isinstance(read, dict):
        raise ValueError(f"{option} is {text}: it should be a JSON object, for instance '{{\"lora\": {{}}}}'.")
    for name, value in read.items():
        if name not in known:
            near = get_close_matches(name, known)
            hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"{takes}."
            raise ValueError(f"{option} holds {name!r}: " + (f"that is an option of its own, --{name}." if name in TYPED else hint))
        if not fits(value, known[name]):
            kind = known[name]
            wanted = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
            raise ValueError(f"{option} holds {json.dumps(value)} as {name!r}: it should be {wanted}.")
    return read


def fits(value: object, kind: Any) -> bool:
    """Whether a JSON value has a type; a list will do for a tuple, a whole number for a float."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if isinstance(value, bool) or not isinstance(origin, type):
        return origin is bool if isinstance(origin, type) else value in inner
    if origin in (list, tuple):
        return isinstance(value, list) and all(fits(one, inner[0]) for one in value)
    return isinstance(value, int | float if origin is float else origin)
