"""What the demo asks of a model, and models that load at their first use."""

import gc
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Final, Protocol, TypedDict, cast

import numpy as np
import yaml

from .catalog import Catalog
from .demo_cards import BeamFields, IdentifierFields, RecommendationFields
from .demo_gpu import Lent, lend
from .history import History

logger = logging.getLogger(__name__)

PRETRAINED: Final = Path(__file__).with_name("pretrained")
PREPARED: Final = 2000
"""Items of a catalogue whose labels are made before anybody asks."""
WORKERS: Final = 4
"""Batches of an upload that are encoded at a time at the most: a container sees all cores of its host, and may use few."""
KINDS: Final = {"setrec": "SETRec", "idgenrec": "IDGenRec"}


class IdentifiedItem(TypedDict):
    """An item's id and title, with the identifier the model gives it."""

    item_id: str
    title: str
    identifier: IdentifierFields


class Recommendations(TypedDict):
    """The ranked recommendations."""

    recommendations: list[RecommendationFields]


class Recommender(Protocol):
    """What the demo asks of a model: the interface of `genrec_hub.RecommendationPipeline`."""

    @property
    def catalog(self) -> Catalog:
        """The items that are recommended."""

    @property
    def processor(self) -> Any:
        """What reads histories for the model."""

    @property
    def trained_on(self) -> np.ndarray:
        """True for the items that stood in the model's training. Shape: (V,)."""

    def __call__(
        self, history: str, *, top_k: int = 10, exclude_seen: bool = True, department: str | None = None
    ) -> list[RecommendationFields]:
        """Ranks the items of the catalogue for a history."""

    def understand(self, history: str) -> History:
        """Says how each line of a history is read."""

    def identify(self) -> list[IdentifiedItem]:
        """Gives the identifier of every item."""

    def beams(self, history: str, beams: int = 20) -> list[BeamFields]:
        """Gives the identifiers that were considered, for models that search."""

    def nearest(self, history: str, items: Sequence[str] = (), most: int = 5) -> list[dict[str, Any]]:
        """Gives the items nearest to each token, for models whose tokens are no words."""

    def usual(self, history: str) -> list[float]:
        """Gives what each token adds to the score of an average item, for models whose tokens are no words."""

    def with_catalog(self, catalog: Catalog, progress: Callable[[int, int], None] | None = None) -> "Recommender":
        """Makes a recommender of the same weights over other items."""


Loaders = Mapping[str, Callable[[], Recommender]]


class Lazy:
    """A recommender that is loaded once, by whichever thread asks first, together with those it belongs to.

    While transformers loads a model, tensors of another thread can land on its meta device; so nobody computes before all are loaded.

    Args:
        load: makes the recommender.
    """

    def __init__(self, load: Callable[[], Recommender]) -> None:
        self._load, self._lock = load, Lock()
        self._loaded: Recommender | None = None
        self._together: list[Lazy] = [self]

    def belong(self, others: "Iterable[Lazy]") -> None:
        """Loads with the others from now on, under one lock."""
        self._together = list(others)
        self._lock = self._together[0]._lock

    @property
    def ready(self) -> bool:
        """Whether a call answers at once."""
        return self._loaded is not None

    def __call__(self) -> Recommender:
        """Returns the recommender, loaded now if it was not."""
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            for other in self._together:
                if other._loaded is None:
                    try:
                        other._loaded = other._load()
                    except Exception:
                        logger.exception("A model could not be loaded; it is tried again when it is asked for.")
            return self._loaded


def open_model(name: str) -> Recommender:
    """Loads a checkpoint for a server of strangers' texts: nothing that they type or upload is cached on disk, and all cores index."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    import genrec_hub

    disable_progress_bar()  # of weights that are read in no time
    torch.backends.mkldnn.set_flags(False)  # no oneDNN: it keeps something of every shape that it meets, and visitors' texts have any

    pipe = genrec_hub.load(name)
    encoder = getattr(pipe.processor, "encoder", None)
    if encoder is not None:
        encoder.cache = False
        encoder.workers = max(1, min(os.cpu_count() or 1, WORKERS) // torch.get_num_threads())
        encoder.load()
    return cast(Recommender, lend(name, pipe))


def default_models() -> dict[str, Callable[[], Recommender]]:
    """The embedded checkpoints by their short names, SETRec first."""
    kinds = {}
    for folder in sorted(PRETRAINED.iterdir()):
        if (folder / "config.json").is_file():
            kinds[folder.name] = json.loads((folder / "config.json").read_text())["model_type"]
    order = list(KINDS)
    names = sorted((name for name, kind in kinds.items() if kind in order), key=lambda name: (order.index(kinds[name]), name))
    return {name: partial(open_model, name) for name in names}


def space_models(readme: Path) -> dict[str, Callable[[], Recommender]]:
    """The models that a Space's README names in its header, first, and the embedded ones; each is loaded at its first use."""
    header = re.match(r"\A---\n(.*?)\n---\n", readme.read_text(encoding="utf-8"), re.DOTALL) if readme.is_file() else None
    named = yaml.safe_load(header[1]).get("models") if header else None
    return {name: partial(open_model, name) for name in named or ()} | default_models()


def lazy_models(models: Loaders | None) -> dict[str, Lazy]:
    """The given models, or the embedded ones, each loaded at its first use."""
    loaders = default_models() if models is None else models
    made = {name: load if isinstance(load, Lazy) else Lazy(load) for name, load in loaders.items()}
    for lazy in made.values():
        lazy.belong(made.values())
    return made


def labels(names: Iterable[str]) -> dict[str, str]:
    """Short name -> what a visitor reads: SETRec and IDGenRec where that is clear, else the short name."""
    known = {name: KINDS.get(name.partition("-")[0], name) for name in names}
    twice = [label for label in known.values() if list(known.values()).count(label) > 1]
    return {name: name if label in twice else label for name, label in known.items()}


def warm_up(models: Iterable[Lazy]) -> None:
    """Loads models and their encoders ahead of the first request, one after the other; what goes wrong is logged."""
    for load in models:
        try:
            pipe = load()
            if not isinstance(pipe, Lent):  # nobody lends a GPU to nobody
                pipe("coffee", top_k=1)
                if len(pipe.catalog) <= PREPARED:
                    pipe.identify()  # the labels of all items, which answers then find made
        except Exception:
            logger.exception("A model could not be loaded ahead of the first request.")
    gc.freeze()
    gc.enable()  # app.py starts without it
