"""SETRecProcessor: the catalogue, its item features and the sentence encoder that travel with a SETRec checkpoint.

Item features are a sidecar, not weights: another catalogue, a larger one, or none can be used with the same model.

Dims: B batch · L items in a history · Q tokens of an identifier · D hidden size · V catalogue size · S semantic width · C CF width ·
K shown items.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

from .catalog import Catalog, Item, Recommendation
from .checkpoint import SIDECARS, HubProcessor, read_arrays, seal, write_arrays
from .grounding import top_k
from .history import History
from .modeling_setrec import SETRecModel
from .processes import added, share
from .processes import count as process_count
from .semantic import DEFAULT_ENCODER, MAX_TOKENS, TextEncoder, crowding
from .set_labels import labels_of, neighbours, spread, tokens_of
from .spelling import rarity, spell
from .timing import stage

logger = logging.getLogger(__name__)

OF_THE_CATALOG = ("centre", "rarity")
"""Features that belong to the catalogue as a whole."""
CROWDING = np.float32(0.1)
"""Length of the crowding number beside the unit vectors: small, so that likeness hardly sees it; the model's prior does."""
AVERAGE_POOL = 512
"""Items, evenly spread over the catalogue, that stand for an average one."""

Progress = Callable[[int, int], None]
Lines = str | Iterable[str | Item | Mapping[str, object]]


class SETRecProcessor(HubProcessor, ProcessorMixin):
    """Turns histories into model inputs and generated tokens into recommendations.

    Args:
        catalog: the items that can be recommended; may be empty (then a catalogue is given at call time).
        features: `semantic` (V, S) centred unit vectors, `centre` (S,), with spelling vectors `rarity`, and with CF tokens `cf` (V, C),
            `has_cf` (V,).
            Computed with the encoder when None.
        encoder: name of the sentence encoder ("fast", "minilm", `pypi:<package>`, a folder, or a Hub name).
        max_tokens: where the encoder cuts a text.
        max_items: items of a history that are read, the last ones.
        progress: called with (done, total) while texts are encoded.
        spelling: width of the spelling vectors that stand behind the encoder's in `semantic`; 0 = none.
        spelling_length: their length where the encoder's is 1; what they weigh in a likeness is its square.
        crowding: one more number in `semantic`, how close the nearest other items are (see `semantic.crowding`).
    """

    def __init__(
        self,
        catalog: Catalog | None = None,
        features: Mapping[str, np.ndarray] | None = None,
        encoder: str | TextEncoder = DEFAULT_ENCODER,
        max_tokens: int = MAX_TOKENS,
        max_items: int = 50,
        progress: Progress | None = None,
        spelling: int = 0,
        crowding: bool = False,
        spelling_length: float = 1.0,
    ) -> None:
        self.catalog = Catalog(()) if catalog is None else catalog
        self.spelling, self.crowding, self.spelling_length = spelling, crowding, spelling_length
        self.encoder = encoder if isinstance(encoder, TextEncoder) else TextEncoder(encoder, max_tokens)
        self.max_items = max_items
        self._features = dict(features) if features is not None else None
        self._labels: tuple[tuple[Any, ...], dict[int, list[str]]] = ((), {})
        if self._features is None and len(self.catalog):
            self._features = self._encode(self.catalog, None, progress)
        if self._features is not None and len(self._features["semantic"]) != len(self.catalog):
            raise ValueError(
                f"The features hold {len(self._features['semantic'])} items, the catalogue {len(self.catalog)}: "
                "they belong to another catalogue."
            )
        self._tensors: dict[str, torch.Tensor] | None = None

    def __repr__(self) -> str:
        return f"SETRecProcessor({self.catalog!r}, {self.encoder!r})"

    @property
    def features(self) -> dict[str, torch.Tensor]:
        """The model's view of the catalogue: semantic (V, S), and with CF vectors cf (V, C) and has_cf (V,)."""
        if self._tensors is None:
            self._tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in self._item_arrays().items()}
        return self._tensors

    def _arrays(self) -> dict[str, np.ndarray]:
        if self._features is None:
            raise ValueError("This checkpoint carries no catalogue: give one, for instance catalog=Catalog.from_file('items.csv').")
        return self._features

    def _item_arrays(self) -> dict[str, np.ndarray]:
        return {name: values for name, values in self._arrays().items() if name not in OF_THE_CATALOG}

    def _encode(self, items: Sequence[Item], known: Mapping[str, np.ndarray] | None, progress: Progress | None) -> dict[str, np.ndarray]:
        """Encodes items by what is known of their catalogue; as a catalogue of their own when nothing is (design decision 10).

        Of a catalogue of their own, several processes encode a share each.
        """
        lines, found = [item.line for item in items], {}
        own = share(len(lines)) if known is None else range(len(lines))
        vectors = self.encoder.encode(lines[own.start : own.stop], progress)
        if len(own) < len(lines):
            every = np.zeros((len(lines), vectors.shape[1]), np.float32)
            every[own.start : own.stop] = vectors
            vectors = added(torch.from_numpy(every)).numpy()
        parts = [vectors]
        if self.spelling:
            found["rarity"] = rarity(lines) if known is None else known["rarity"]
            parts.append(spell(lines, found["rarity"], self.spelling))
        if known is None:
            # One item has no centre but itself, which would leave nothing of it.
            means = [part.mean(0) if len(part) > 1 else np.zeros(part.shape[1], np.float32) for part in parts]
            found["centre"] = np.concatenate(means)
        else:
            found["centre"] = known["centre"]
        edges = np.cumsum([part.shape[1] for part in parts])[:-1]
        moved = [part - centre for part, centre in zip(parts, np.split(found["centre"], edges), strict=True)]
        units = [part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-9) for part in moved]
        if self.spelling:
            units[1] = units[1] * np.float32(self.spelling_length)
        vectors = np.concatenate(units, 1) / np.float32((1 + (len(units) - 1) * self.spelling_length**2) ** 0.5)
        if self.crowding:
            others = None if known is None else known["semantic"][:, :-1]
            vectors = np.concatenate([vectors, CROWDING * crowding(vectors, others)[:, None]], 1)
        return {**found, "semantic": vectors}

    # Catalogues

    def without_catalog(self) -> "SETRecProcessor":
        """Returns a processor that knows no items."""
        return self._with(None, None)

    def with_catalog(self, catalog: Catalog, progress: Progress | None = None, model: SETRecModel | None = None) -> "SETRecProcessor":
        """Returns a processor for another catalogue: zero-shot, without CF vectors, with a centre of its own.

        Args:
            catalog: the items.
            progress: called with (done, total) while texts are encoded.
            model: not needed; systems whose identifiers a model writes need theirs.
        """
        if catalog.fingerprint == self.catalog.fingerprint:
            return self
        if self._features is not None and "cf" in self._features:
            logger.warning(
                "The checkpoint's CF vectors belong to the catalogue %s, this one is %s: its items are recommended by their texts alone.",
                self.catalog.fingerprint[:12],
                catalog.fingerprint[:12],
            )
        return self._with(catalog, None, progress)

    def _with(
        self, catalog: Catalog | None, features: Mapping[str, np.ndarray] | None, progress: Progress | None = None
    ) -> "SETRecProcessor":
        return self._through(self.encoder, catalog, features, progress)

    def _through(
        self, encoder: TextEncoder, catalog: Catalog | None, features: Mapping[str, np.ndarray] | None, progress: Progress | None
    ) -> "SETRecProcessor":
        sizes = (encoder.max_tokens, self.max_items)
        return SETRecProcessor(catalog, features, encoder, *sizes, progress, self.spelling, self.crowding, self.spelling_length)

    def add_items(self, items: Iterable[Item], progress: Progress | None = None, model: SETRecModel | None = None) -> "SETRecProcessor":
        """Returns a processor whose catalogue has the items appended; nothing of the old items changes, the centre stays."""
        fresh = list(items)
        old = self._arrays()
        new = self._encode(fresh, old, progress)
        features = {**old, "semantic": np.concatenate([old["semantic"], new["semantic"]])}
        if "cf" in old:
            features["cf"] = np.concatenate([old["cf"], np.zeros((len(fresh), old["cf"].shape[1]), np.float32)])
            features["has_cf"] = np.concatenate([old["has_cf"], np.zeros(len(fresh), bool)])
        return self._with(self.catalog.add(fresh), features)

    def with_encoder(self, encoder: str | TextEncoder, progress: Progress | None = None) -> "SETRecProcessor":
        """Returns a processor that reads texts through another encoder of the same width and space ("fast" beside MiniLM).

        The catalogue is encoded anew, its CF vectors stay.
        """
        other = encoder if isinstance(encoder, TextEncoder) else TextEncoder(encoder, self.encoder.max_tokens)
        if other.name == self.encoder.name:
            return self
        fresh = self._through(other, self.catalog, None, progress)
        if self._features is None:
            return fresh
        kept = {name: values for name, values in self._features.items() if name in ("cf", "has_cf")}
        return fresh._with(self.catalog, {**fresh._arrays(), **kept})

    def with_cf(self, cf: np.ndarray, has_cf: np.ndarray | None = None) -> "SETRecProcessor":
        """Returns a processor with CF vectors.

        Args:
            cf: CF vectors.
            has_cf: true where an item has interactions.

        Shape: cf (V, C), has_cf (V,).
        """
        known = np.ones(len(cf), bool) if has_cf is None else has_cf
        return self._with(self.catalog, {**self._arrays(), "cf": cf * known[:, None], "has_cf": known})

    # Histories

    def read(self, history: Lines | History) -> History:
        """Reads a history against the catalogue; see `History.read`."""
        return history if isinstance(history, History) else History.read(history, self.catalog)

    def __call__(self, histories: Sequence[Lines | History], return_tensors: str = "pt") -> BatchFeature:
        """Makes model inputs from histories, padded on the left.

        Shape: B histories -> semantic (B, L, S), item_mask (B, L), and with CF vectors cf (B, L, C), has_cf (B, L).
        """
        if isinstance(histories, str):
            raise TypeError("The processor takes a list of histories: wrap the one history in a list.")
        read = [self.read(history)[-self.max_items :] for history in histories]
        arrays = self._item_arrays()
        typed = [match.item for own in read for match in own.matches if match.row is None]
        words = iter(self._encode(typed, self._arrays(), None)["semantic"] if typed else ())
        length = max([1, *map(len, read)])
        batch = {name: np.zeros((len(read), length, *v.shape[1:]), v.dtype) for name, v in arrays.items()}
        mask = np.zeros((len(read), length), bool)
        for row, own in enumerate(read):
            for column, match in enumerate(own.matches, length - len(own)):
                mask[row, column] = True
                if match.row is None:
                    batch["semantic"][row, column] = next(words)
                else:
                    for name, values in batch.items():
                        values[row, column] = arrays[name][match.row]
        return BatchFeature({**batch, "item_mask": mask}, tensor_type=return_tensors)

    # Recommendations

    def index(self, model: SETRecModel) -> torch.Tensor:
        """What recommendations are looked up in, on the model's device; several processes index a share each. Shape: -> (V, W)."""
        size = len(self.catalog)
        own = share(size)
        there = {name: values[own.start : own.stop].to(model.device) for name, values in self.features.items()}
        part = model.index(there["semantic"], there.get("cf"), there.get("has_cf"))
        if process_count() == 1:
            return part
        columns = part.new_zeros(part.shape[1], size)
        columns[:, own.start : own.stop] = part.T
        return added(columns).T

    def score(
        self, model: SETRecModel, histories: Sequence[np.ndarray], index: torch.Tensor | None = None, exclude_seen: bool = True
    ) -> torch.Tensor:
        """Scores all items for histories given as rows; whoever ranks them leaves out what was seen. Shape: B -> (B, V)."""
        return model.score(histories, self.features, self.index(model) if index is None else index)

    @torch.inference_mode()
    def recommend(
        self,
        model: SETRecModel,
        histories: Sequence[Lines | History],
        top: int = 10,
        exclude_seen: bool = True,
        department: str | None = None,
        index: torch.Tensor | None = None,
        explain: bool = True,
    ) -> list[list[Recommendation]]:
        """Recommends items for each history.

        Args:
            model: the model in evaluation mode.
            histories: lines of text, items, or read histories.
            top: recommendations per history; fewer when the catalogue has fewer to offer.
            exclude_seen: leave out items of the history.
            department: only items of this department.
            index: `processor.index(model)`, when it is known.
            explain: say which history item contributed most.

        Raises:
            ValueError: when no item is of the department; the sentence names those there are.
        """
        if top < 1:
            raise ValueError(f"top_k is {top}: ask for at least one recommendation.")
        features = self.features
        with stage("read"):
            whole = [self.read(history) for history in histories]
            read = [own[-self.max_items :] for own in whole]
            inputs = self(read).to(model.device)
        with stage("generate"):
            generated = model(**inputs).tokens[:, 0]
        with stage("rank"):
            index = self.index(model) if index is None else index
            seen = [[row for row in own.rows if row is not None] if exclude_seen else [] for own in whole]
            mask = self.catalog.in_department(department)
            allowed = None if mask is None else torch.from_numpy(mask)
            _, rows = top_k(model.ground(generated), index, min(top, len(self.catalog)), seen, allowed)
        answers: list[list[Recommendation]] = []
        for number, own in enumerate(read):
            shown = rows[number][rows[number] >= 0]
            if not len(shown):
                answers.append([])
                continue
            shown_features = {name: values[shown.cpu()][None].to(model.device) for name, values in features.items()}
            parts = model.contributions(generated[number : number + 1], **shown_features)[0]
            one = {name: values[number : number + 1, -max(1, len(own)) :] for name, values in inputs.items()}
            with stage("reasons"):
                reasons = self._because(model, own, one, shown_features, parts.sum(-1)) if explain else [None] * len(shown)
            with stage("labels"):
                identifiers = self.label_tokens(model, shown.tolist(), parts.tolist())
            answers.append(
                [
                    Recommendation(self.catalog[row], float(parts[place].sum()), place + 1, {"tokens": identifiers[place]}, reasons[place])
                    for place, row in enumerate(shown.tolist())
                ]
            )
        return answers

    def _because(
        self, model: SETRecModel, own: History, inputs: Mapping[str, torch.Tensor], shown: dict[str, torch.Tensor], scores: torch.Tensor
    ) -> list[dict[str, object] | None]:
        """Leaves out one history item at a time, in one batch; its share is its part of the fall of the score. Shape: scores (K,)."""
        count = len(own)
        if not count:
            return [None] * len(scores)
        keep = ~torch.eye(count, dtype=torch.bool, device=scores.device)
        without = {name: torch.stack([values[0][row] for row in keep]) for name, values in inputs.items()}
        generated = model(**without).tokens[:, 0]
        parts = model.contributions(generated, **{name: values.expand(count, *values.shape[1:]) for name, values in shown.items()})
        falls = (scores[None] - parts.sum(-1)).clamp(min=0)
        shares = falls / falls.sum(0).clamp(min=1e-12)
        best = shares.argmax(0).tolist()
        return [
            {"item": own[place].to_dict(), "share": float(shares[place, k])} if float(shares[place, k]) > 0 else None
            for k, place in enumerate(best)
        ]

    # Identifiers

    @torch.inference_mode()
    def identify(self, model: SETRecModel, progress: Progress | None = None, first: int = 0) -> list[dict[str, object]]:
        """The identifier of every item from row `first` on: its tokens with their labels (a token has a score only for a user)."""
        out: list[dict[str, object]] = []
        for start in range(first, len(self.catalog), 512):
            rows = list(range(start, min(start + 512, len(self.catalog))))
            for row, tokens in zip(rows, self.label_tokens(model, rows, None), strict=True):
                item = self.catalog[row]
                out.append({"item_id": item.item_id, "title": item.title, "identifier": {"tokens": tokens}})
            if progress is not None:
                progress(len(out), len(self.catalog) - first)
        return out

    def label_tokens(
        self, model: SETRecModel, rows: Sequence[int], scores: Sequence[Sequence[float]] | None
    ) -> list[list[dict[str, object]]]:
        """Labels the tokens of items with the words most typical of the items nearest to each token.

        Shape: K rows, scores K x Q -> K lists of Q dicts with slot, score and label.
        """
        moment = model.moment()
        if self._labels[0] != moment:
            self._labels = (moment, {})
        known = self._labels[1]
        missing = [row for row in rows if row not in known]
        if missing:
            known.update(zip(missing, labels_of(model, self.catalog, self.features, missing), strict=True))
        return [
            [
                {"slot": name, "score": None if scores is None else float(scores[place][slot]), "label": known[row][slot]}
                for slot, name in enumerate(model.config.slots)
            ]
            for place, row in enumerate(rows)
        ]

    @torch.inference_mode()
    def nearest(self, model: SETRecModel, history: Lines | History, rows: Sequence[int] = (), most: int = 5) -> list[dict[str, object]]:
        """Tells what tokens stand for by the items nearest to each of them.

        Args:
            model: the model in evaluation mode.
            history: what was bought.
            rows: items whose tokens are asked about too.
            most: items per token.

        Returns:
            One dict for the generated set (`item_id` None) and one per row, which is not among its own neighbours:
            `{"item_id", "tokens": [{"slot", "nearest": [{"item_id", "title", "similarity"}]}]}`, similarity being the cosine of the tokens
            less the catalogue's mean token.
        """
        generated = model(**self([self.read(history)[-self.max_items :]]).to(model.device)).tokens[:, 0]
        if model.prior is not None:  # it is the same for every history
            generated = generated - model.prior
        tokens = torch.cat([generated, tokens_of(model, self.features, rows)])
        near, similar = neighbours(model, self.features, tokens, most + 1)
        described: list[dict[str, object]] = []
        for row, places, values in zip([None, *rows], near.tolist(), similar.tolist(), strict=True):
            shown = []
            for slot, own, cosines in zip(model.config.slots, places, values, strict=True):
                others = [(self.catalog[r], cosine) for r, cosine in zip(own, cosines, strict=True) if r != row][:most]
                items = [{"item_id": item.item_id, "title": item.title, "similarity": cosine} for item, cosine in others]
                shown.append({"slot": slot, "nearest": items})
            described.append({"item_id": None if row is None else self.catalog[row].item_id, "tokens": shown})
        return described

    @torch.inference_mode()
    def usual(self, model: SETRecModel, history: Lines | History) -> list[float]:
        """What each token adds to the score of an average item of the catalogue. Shape: -> (Q,)."""
        generated = model(**self([self.read(history)[-self.max_items :]]).to(model.device)).tokens[:, 0]
        pool = spread(len(self.catalog), AVERAGE_POOL)
        features = {name: values[pool][None].to(model.device) for name, values in self.features.items()}
        return model.contributions(generated, **features)[0].mean(0).tolist()

    # Folders

    def __getstate__(self) -> dict[str, Any]:
        """Labels belong to a model at hand."""
        return {**vars(self), "_labels": ((), {})}

    def save_pretrained(
        self,
        save_directory: str | Path,
        push_to_hub: bool = False,
        with_catalog: bool = True,
        with_encoder: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Writes `processor_config.json`, the code, `catalog/` (items, features, fingerprint) and perhaps `encoder/`.

        Args:
            save_directory: the folder.
            push_to_hub: push it too; see `push_to_hub`, whose arguments `kwargs` are.
            with_catalog: False leaves out the catalogue and all that is made of it: the checkpoint then recommends from the caller's.
            with_encoder: put a copy of the sentence encoder beside it; one that is a folder is always copied.
            **kwargs: of `push_to_hub`, `repo_id` above all.

        Returns:
            The paths of what was written.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        with_catalog = with_catalog and self._features is not None
        if with_catalog:
            self.catalog.save(folder / "catalog")
            write_arrays(folder / "catalog" / "features.safetensors", self._arrays(), self.catalog.fingerprint)
        encoder = self.encoder.save(folder / "encoder", whole=with_encoder)
        settings = {"encoder": encoder, "encoder_origin": self.encoder.origin, "max_tokens": self.encoder.max_tokens}
        own = {"max_items": self.max_items, "spelling": self.spelling, "spelling_length": self.spelling_length, "crowding": self.crowding}
        self.write_card(folder, {**settings, **own}, with_catalog)
        seal(folder, *SIDECARS)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        kept = [folder / "processor_config.json", *sorted(folder.glob("catalog/*")), *sorted(folder.glob("encoder/**/*"))]
        return [str(path) for path in kept if path.is_file()]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "SETRecProcessor":
        """Reads a processor from a folder or a Hub repository.

        Raises:
            FileNotFoundError: when there is no processor, or something of it is missing.
            ValueError: when the format is newer than this package, a file is damaged, or catalogue and features do not belong together.
        """
        name = pretrained_model_name_or_path
        folder, card = cls.read_card(name, **kwargs)
        catalog, features = None, None
        if card.get("catalog", True) and (folder / "catalog" / "catalog.json").is_file():  # the first cards said nothing of it
            catalog = Catalog.load(folder / "catalog")
            features = read_arrays(folder / "catalog" / "features.safetensors", catalog.fingerprint, name)
        inside = folder / str(card["encoder"])
        encoder = TextEncoder(
            str(inside) if inside.is_dir() else str(card["encoder"]), card["max_tokens"], origin=card.get("encoder_origin", "")
        )
        own = {"spelling": card.get("spelling", 0), "crowding": card.get("crowding", False)}
        own |= {"spelling_length": card.get("spelling_length", 1.0)}
        return cls(catalog, features, encoder, max_items=card["max_items"], **own)
