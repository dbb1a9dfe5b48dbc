"""The "sequential-recommendation" pipeline: a history in plain words in, recommendations out."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoProcessor, Pipeline

from .catalog import Catalog, Item
from .checkpoint import TASK, fetch, push
from .grounding import LARGE, near_index
from .history import History
from .processes import gathered, share

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "setrec-foundation"
PRETRAINED = Path(__file__).parent / "pretrained"
KEPT_CATALOGS = 4
"""Catalogues given at call time whose index a pipeline keeps."""

Lines = str | Iterable[str | Item | Mapping[str, object]] | History
Items = Catalog | str | Path | Iterable[Item | Mapping[str, object]]
"""What can be given as a catalogue: also a file, a data frame, or items as dicts."""
Progress = Callable[[int, int], None]


def embedded(name: str = DEFAULT_MODEL) -> Path:
    """Returns the folder of a checkpoint that ships with the package.

    Raises:
        KeyError: when there is none of that name; the sentence lists those there are.
    """
    known = sorted(path.name for path in PRETRAINED.iterdir() if (path / "config.json").is_file()) if PRETRAINED.is_dir() else []
    if name not in known:
        raise KeyError(f"No embedded checkpoint {name!r}; there are: {', '.join(known) or 'none'}.")
    return PRETRAINED / name


def locate(name_or_path: str | Path, **kwargs: Any) -> str:
    """The folder of a checkpoint, or its Hub name once all of it is in the cache.

    Args:
        name_or_path: as in `load`.
        **kwargs: of `checkpoint.fetch`.

    Raises:
        OSError: when there is no such checkpoint, or it can't be fetched, in one sentence.
    """
    name = str(name_or_path)
    if not Path(name).is_dir() and "/" not in name and "\\" not in name:
        try:
            name = str(embedded(name))
        except KeyError as error:
            raise FileNotFoundError(f"{error.args[0]} A folder or a Hub name (org/name) would do as well.") from None
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(f"{name} holds no checkpoint: config.json is missing.")
    elif not Path(name).is_dir():
        fetch(name, **kwargs)
    return name


def load(name_or_path: str | Path = DEFAULT_MODEL, encoder: str | None = None, **kwargs: Any) -> "RecommendationPipeline":
    """Loads a checkpoint as a pipeline: an embedded one by its short name, a folder, or a Hub repository.

    Args:
        name_or_path: "setrec-foundation", "path/to/folder" or "org/name".
        encoder: another sentence encoder than the checkpoint's, such as "fast" or "minilm".
        **kwargs: passed on to `from_pretrained` (revision, token, ...); weights are 32-bit unless `dtype` says otherwise.

    Raises:
        OSError: when there is no such checkpoint, or it can't be fetched.
        ValueError: when it is damaged, holds a pickle, comes from a newer version, or is a SASRec.
    """
    name = locate(name_or_path, **kwargs)
    model = AutoModel.from_pretrained(name, **{"dtype": torch.float32, **kwargs})
    if model.config.model_type == "sasrec":
        raise ValueError(f"{name} is a SASRec, which reads no texts: it goes to --sasrec of genrec evaluate or genrec train setrec.")
    processor = AutoProcessor.from_pretrained(name, **{key: value for key, value in kwargs.items() if key != "dtype"})
    pipe = RecommendationPipeline(model=model, processor=processor, task=TASK)
    return pipe if encoder is None else pipe.with_encoder(encoder)


class RecommendationPipeline(Pipeline):
    """Recommends items for histories typed in plain words.

    ```python
    recommend = pipeline("sequential-recommendation", model="org/setrec-qwen1.5b")
    recommend(["CHI pro hair dryer", "argan oil shampoo"], top_k=5)
    ```
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False

    def __init__(self, model: Any, processor: Any = None, catalog: Items | None = None, **kwargs: Any) -> None:
        if processor is None:
            processor = AutoProcessor.from_pretrained(model.name_or_path)
        if catalog is not None:
            processor = processor.with_catalog(_catalog(catalog), model=model.eval())
        super().__init__(model=model, processor=processor, **kwargs)
        self.model.eval()
        known = "" if catalog is not None else getattr(model.config, "catalog_fingerprint", "")
        if known and len(self.catalog) and self.catalog.fingerprint != known:
            logger.warning(
                "The model was trained on the catalogue %s, this one is %s: what it learnt of single items does not apply to the new ones.",
                known[:12],
                self.catalog.fingerprint[:12],
            )
        self._indexed: OrderedDict[str, tuple[Any, Any]] = OrderedDict()
        self._indexed_of: tuple[Any, Any] = (None, None)

    def __getstate__(self) -> dict[str, Any]:
        """Indexes are made anew where a pickled pipeline is read."""
        return {**vars(self), "_indexed": OrderedDict(), "_indexed_of": (None, None)}

    @property
    def catalog(self) -> Catalog:
        """The items that are recommended unless a call names others."""
        return self.processor.catalog

    def __call__(
        self,
        history: Lines | Sequence[Lines],
        top_k: int | None = None,
        *,
        catalog: Items | None = None,
        exclude_seen: bool | None = None,
        department: str | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Recommends items. What is None is as it was given to `pipeline(...)`.

        Args:
            history: what was bought, oldest first: a text with one item per line, or a list of ids, titles, words or `Item`s.
                A list of such histories gives a list of lists.
            top_k: how many, at the most; 10 when it was never given.
            catalog: recommend from these items instead (dicts with `item_id` and `title` will do), zero-shot; the weights stay untouched.
            exclude_seen: leave out what the history holds; so when it was never given.
            department: only items of this department.
            batch_size: histories at once; all when it was never given.
            **kwargs: of `transformers.Pipeline`.

        Returns:
            `[{"item", "score", "rank", "identifier", "because"}, ...]`, best first; an empty history gives the model's opening offer.
        """
        if not isinstance(history, Item | Iterable) or isinstance(history, bytes):
            raise TypeError(f"A history is a text with one item per line, or a list of ids, titles, words or items; this is {history!r}.")
        read: Any = history if isinstance(history, str | Mapping | Item | History) else list(history)  # a column, an array, a generator
        several = isinstance(read, list) and any(isinstance(own, list | tuple | History | np.ndarray) for own in read)
        batch = read if several else [read]
        given = {"top_k": top_k, "catalog": catalog, "exclude_seen": exclude_seen, "department": department}
        kwargs |= {name: value for name, value in given.items() if value is not None}
        answers = self._answers(batch, batch_size or self._batch_size or len(batch), kwargs)
        return answers if several else answers[0]

    def recommend_all(
        self, histories: Sequence[Lines], batch_size: int = 64, *, catalog: Items | None = None, **options: Any
    ) -> list[list[dict[str, object]]]:
        """Recommends for many histories, some at a time; several processes (torchrun) do a share each, and all have the whole answer.

        Args:
            histories: as for a call.
            batch_size: histories at once.
            catalog: as for a call.
            **options: of a call: `top_k`, `exclude_seen`, `department`.
        """
        if catalog is not None:
            options["catalog"] = _catalog(catalog)
        self._index(options.get("catalog"))  # by all processes together, also by one that has no history of its own
        return gathered(self._answers([histories[row] for row in share(len(histories))], batch_size, options))

    def _answers(self, histories: Sequence[Any], size: int, options: Mapping[str, Any]) -> list[list[dict[str, object]]]:
        """A pipeline's batch is one input of several histories: transformers would pad them."""
        answers: list[list[dict[str, object]]] = []
        for start in range(0, len(histories), size):
            answers += super().__call__([histories[start : start + size]], batch_size=1, **options)[0]
        return answers

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        known = {"top_k", "catalog", "exclude_seen", "department"}
        unknown = set(kwargs) - known
        if unknown:
            raise TypeError(f"The pipeline does not know {', '.join(sorted(unknown))}; it takes {', '.join(sorted(known))}.")
        if not isinstance(top := kwargs.get("top_k", 1), int | np.integer):
            raise TypeError(f"top_k is {top!r}: give a whole number.")
        reading = {"catalog": _catalog(kwargs["catalog"])} if kwargs.get("catalog") is not None else {}
        return reading, {key: kwargs[key] for key in known - {"catalog"} if key in kwargs}, {}

    def preprocess(self, histories: list[Lines], catalog: Catalog | None = None) -> dict[str, Any]:
        """Reads the histories against the catalogue."""
        processor, index = self._index(catalog)
        return {"processor": processor, "index": index, "histories": [processor.read(history) for history in histories]}

    def _forward(self, inputs: dict[str, Any], top_k: int = 10, exclude_seen: bool = True, department: str | None = None) -> dict[str, Any]:
        answers = inputs["processor"].recommend(self.model, inputs["histories"], top_k, exclude_seen, department, inputs["index"])
        return {"answers": answers}

    def postprocess(self, outputs: dict[str, Any]) -> list[list[dict[str, object]]]:
        """Makes JSON-able dicts."""
        return [[recommendation.to_dict() for recommendation in own] for own in outputs["answers"]]

    def understand(self, history: Lines, catalog: Items | None = None) -> History:
        """Tells how each line of a history is understood: the item, how it was found, and how sure that is."""
        return self._processor_for(catalog).read(history)

    def identify(self, catalog: Items | None = None, progress: Progress | None = None) -> list[dict[str, object]]:
        """The identifier of every item of the catalogue, in its order."""
        return self._processor_for(catalog).identify(self.model, progress)

    def with_catalog(self, catalog: Items, progress: Progress | None = None) -> "RecommendationPipeline":
        """Returns a pipeline that recommends from another catalogue; it shares the weights."""
        processor = self.processor.with_catalog(_catalog(catalog), progress, self.model)
        return RecommendationPipeline(model=self.model, processor=processor, task=self.task, device=self.device)

    def add_items(
        self, items: Iterable[Item | Mapping[str, object]], progress: Progress | None = None
    ) -> tuple["RecommendationPipeline", list[dict[str, object]]]:
        """Returns a pipeline that recommends further items too, and their identifiers, to be looked at before anything is recommended.

        Nothing is trained, nothing of the old items changes; this pipeline stays as it is.

        Args:
            items: the new items; their ids may not be in the catalogue.
            progress: called with (done, total) while the new items are indexed.

        Returns:
            the pipeline, and an entry like those of `identify` for each new item, in their order.
        """
        processor = self.processor.add_items(Catalog(items), progress, self.model)
        more = RecommendationPipeline(model=self.model, processor=processor, task=self.task, device=self.device)
        return more, processor.identify(self.model, first=len(self.catalog))

    def with_encoder(self, encoder: str, progress: Progress | None = None) -> "RecommendationPipeline":
        """Returns a pipeline that reads texts through another sentence encoder, such as "fast"; its catalogue is encoded anew.

        Raises:
            ValueError: when the system reads no sentence vectors.
        """
        if not hasattr(self.processor, "with_encoder"):
            raise ValueError(f"A {type(self.model).__name__} reads words, no sentence vectors: it takes no other encoder.")
        processor = self.processor.with_encoder(encoder, progress)
        return RecommendationPipeline(model=self.model, processor=processor, task=self.task, device=self.device)

    @property
    def trained_on(self) -> np.ndarray:
        """True for the items of the catalogue that stood in the model's training interactions. Shape: (V,)."""
        known = getattr(self.model.config, "catalog_fingerprint", "")
        if not known or known != self.catalog.fingerprint:
            return np.zeros(len(self.catalog), bool)
        has_cf = self.processor.features.get("has_cf") if hasattr(self.processor, "features") else None
        return np.ones(len(self.catalog), bool) if has_cf is None else has_cf.numpy().astype(bool)

    def beams(self, history: Lines, beams: int = 20) -> list[dict[str, object]]:
        """The identifiers that were considered, most probable first: `text`, `logprob` and the `item` (None when no item has it).

        Empty for models that do not search.
        """
        return self.processor.beams(self.model, history, beams=beams) if hasattr(self.processor, "beams") else []

    def nearest(self, history: Lines, items: Sequence[str] = (), most: int = 5) -> list[dict[str, object]]:
        """What the generated tokens, and those of `items` (ids), stand for: the items nearest to each; see `SETRecProcessor.nearest`.

        Empty for models whose identifiers can be read.
        """
        if not hasattr(self.processor, "nearest"):
            return []
        return self.processor.nearest(self.model, history, [self.catalog.row(item) for item in items], most)

    def usual(self, history: Lines) -> list[float]:
        """What each token adds to the score of an average item of the catalogue: what scores can be read against.

        Empty for models whose identifiers can be read.
        """
        return self.processor.usual(self.model, history) if hasattr(self.processor, "usual") else []

    def ranker(self, domain: Any, split: Any = None, zero_shot: bool = False, exclude_seen: bool = True) -> "DomainRanker":
        """Prepares the model for an evaluation on a domain: its own catalogue with everything it knows of it, any other by text alone."""
        processor = self.processor
        if zero_shot or domain.catalog.fingerprint != processor.catalog.fingerprint:
            processor = processor.without_catalog().with_catalog(domain.catalog, model=self.model)
        return DomainRanker(self.model, processor, exclude_seen)

    def save_pretrained(
        self, save_directory: str | Path, with_catalog: bool = True, with_encoder: bool = False, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Writes model and processor into one folder; see `SETRecProcessor.save_pretrained` and `push_to_hub`."""
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name))
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, with_catalog=with_catalog, with_encoder=with_encoder)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Pushes all that a checkpoint is, with its card, in one commit; see `genrec_hub.hub.push`."""
        return push("pipeline", self, repo_id, **kwargs)

    def _queries(self, processor: Any, most: int = 64) -> torch.Tensor:
        """What is asked after histories of one item each, evenly from the catalogue. Shape: -> (B, W)."""
        rows = np.linspace(0, len(processor.catalog) - 1, most).astype(np.int64)
        return self.model.ground(self.model.recommend_tokens([rows[place : place + 1] for place in range(most)], processor.features))

    def _processor_for(self, catalog: Items | None) -> Any:
        return self.processor if catalog is None else self._index(_catalog(catalog))[0]

    def _index(self, catalog: Catalog | None) -> tuple[Any, Any]:
        """The processor and index of a catalogue; the last few are kept, as long as weights and processor stay what they are."""
        now = (self.model.moment(), self.processor)
        if self._indexed_of[0] != now[0] or self._indexed_of[1] is not now[1]:
            self._indexed.clear()
            self._indexed_of = now
        key = (self.catalog if catalog is None else catalog).fingerprint
        if key not in self._indexed:
            processor = self.processor if catalog is None else self.processor.with_catalog(catalog, model=self.model)
            index = processor.index(self.model)
            if isinstance(index, torch.Tensor) and len(index) > LARGE:
                index = near_index(index, self._queries(processor))
            self._indexed[key] = (processor, index)
            while len(self._indexed) > KEPT_CATALOGS:
                self._indexed.popitem(last=False)
        self._indexed.move_to_end(key)
        return self._indexed[key]


def _catalog(items: Any) -> Catalog:
    """A catalogue as it is, or one made of a file, a data frame, items or dicts.

    Raises:
        TypeError: when it is nothing of that.
        ValueError: when it holds no items.
    """
    catalog = items
    if isinstance(items, str | Path):
        catalog = Catalog.from_file(items)
    elif hasattr(items, "columns") and hasattr(items, "to_dict"):
        catalog = Catalog(items.to_dict("records"))
    elif not hasattr(items, "fingerprint"):  # isinstance would not know a catalogue of another copy of this code
        items = list(items) if isinstance(items, Iterable) else [items]
        if not all(isinstance(item, Mapping) or hasattr(item, "item_id") for item in items):
            raise TypeError("A catalogue is a Catalog, a file, a data frame, or a list of items or of dicts with item_id and title.")
        catalog = Catalog(items)
    if not len(catalog):
        raise ValueError("The given catalogue holds no items: give at least one with item_id and title.")
    return catalog


class DomainRanker:
    """Scores a domain's whole catalogue for histories of rows, for evaluations."""

    def __init__(self, model: Any, processor: Any, exclude_seen: bool = True, allowed: Any = None) -> None:
        self.model, self.processor, self.exclude_seen, self.allowed = model.eval(), processor, exclude_seen, allowed
        self.index = processor.index(model)

    def scores(self, histories: Sequence[Any]) -> torch.Tensor:
        """Scores of all items, -inf for those that a search did not find. Shape: B arrays of rows -> (B, V)."""
        more = {} if self.allowed is None else {"allowed": self.allowed}
        return self.processor.score(self.model, histories, self.index, self.exclude_seen, **more)

    def within(self, room: Any) -> "DomainRanker":
        """A ranker that looks for items of a room alone: a search finds other items there than it finds among all. Shape: room (V,)."""
        searches = hasattr(self.processor, "trie")
        return DomainRanker(self.model, self.processor, self.exclude_seen, torch.as_tensor(room)) if searches else self
