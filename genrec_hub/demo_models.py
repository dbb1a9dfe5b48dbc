"""What the demo asks of a model, and models that load at their first use."""

import gc
import logging
from collections.abc import Callable, Mapping
from functools import partial
from threading import Lock
from typing import Final, Protocol, TypedDict, cast

from .catalog import Catalog
from .demo_cards import RecommendationFields
from .history import History

logger = logging.getLogger(__name__)

DEFAULT_MODEL: Final = "setrec-foundation"


class UnscoredToken(TypedDict):
    """One token of an identifier outside of any ranking: nothing to score yet."""

    slot: str
    score: float | None
    label: str


class ItemIdentifier(TypedDict):
    """The identifier of an item of a catalogue."""

    tokens: list[UnscoredToken]


class IdentifiedItem(TypedDict):
    """An item's id and title, with the identifier the model gives it."""

    item_id: str
    title: str
    identifier: ItemIdentifier


class Recommendations(TypedDict):
    """The ranked recommendations."""

    recommendations: list[RecommendationFields]


class Recommender(Protocol):
    """What the demo asks of a model: the interface of `genrec_hub.RecommendationPipeline`."""

    catalog: Catalog

    def __call__(
        self, history: str, *, top_k: int = 10, exclude_seen: bool = True, department: str | None = None
    ) -> list[RecommendationFields]:
        """Ranks the items of the catalogue for a history."""

    def understand(self, history: str) -> History:
        """Says how each line of a history is read."""

    def identify(self) -> list[IdentifiedItem]:
        """Gives the identifier of every item."""

    def with_catalog(self, catalog: Catalog, progress: Callable[[int, int], object] | None = None) -> "Recommender":
        """Makes a recommender of the same weights over other items."""


Loaders = Mapping[str, Callable[[], Recommender]]


class Lazy:
    """A recommender that is loaded once, by whichever thread asks first.

    Args:
        load: makes the recommender.
    """

    def __init__(self, load: Callable[[], Recommender]) -> None:
        self._load, self._lock = load, Lock()
        self._loaded: Recommender | None = None

    @property
    def ready(self) -> bool:
        """Whether a call answers at once."""
        return self._loaded is not None

    def __call__(self) -> Recommender:
        """Returns the recommender, loaded now if it was not."""
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded


def default_models() -> dict[str, Callable[[], Recommender]]:
    """The embedded checkpoints, by their short names."""

    def load(name: str) -> Recommender:
        import genrec_hub

        return cast(Recommender, genrec_hub.load(name))

    return {name: partial(load, name) for name in (DEFAULT_MODEL,)}


def lazy_models(models: Loaders | None) -> dict[str, Lazy]:
    """The given models, or the embedded ones, each loaded at its first use."""
    loaders = default_models() if models is None else models
    return {name: load if isinstance(load, Lazy) else Lazy(load) for name, load in loaders.items()}


def warm_up(load: Lazy) -> None:
    """Loads a model and its encoder ahead of the first request; what goes wrong is logged."""
    try:
        load()("coffee", top_k=1)
    except Exception:
        logger.exception("The model could not be loaded ahead of the first request.")
    finally:
        gc.freeze()
        gc.enable()  # app.py starts without it
