"""How a row is made: trained in the cell's folder, or found there, then asked.

A system is a function (task) -> Ranker. What it trains resumes from the cell's folder, and a finished checkpoint is not trained again.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines import codes, gru4rec
from baselines.e4srec import e4srec
from baselines.letter import letter
from baselines.p5_cid import p5_cid
from baselines.p5_semid import p5_semid
from baselines.p5_sid import p5_sid
from baselines.tiger import tiger
from transformers import T5Config, T5Model

import genrec_hub
from genrec_hub.baselines import ItemKNN, Ranker, SASRecRanker, baseline_rankers
from genrec_hub.catalog import Catalog
from genrec_hub.domain import Domain, Split
from genrec_hub.evaluation import text_vectors
from genrec_hub.modeling_sasrec import SASRecModel
from genrec_hub.recipes import REPORT, Settings, train_sasrec, train_setrec
from genrec_hub.recipes_idgenrec import small_tokenizer, train_idgenrec
from genrec_hub.semantic import centred

from . import artefacts
from .cells import FREE, Cell


@dataclass(frozen=True)
class Task:
    """One run of one cell.

    Attributes:
        cell: what is wanted.
        seed: which of its runs.
        domain: the data.
        split: of it.
        folder: of the checkpoint.
        needed: row -> folder of a finished checkpoint.
    """

    cell: Cell
    seed: int
    domain: Domain
    split: Split
    folder: Path
    needed: dict[str, Path]

    @property
    def settings(self) -> Settings:
        """Of the training."""
        return Settings(**{**self.cell.settings, "seed": self.seed, "protocol": self.cell.protocol})

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of the system."""
        return dict(self.cell.config)

    @property
    def finished(self) -> bool:
        """Whether the checkpoint is there."""
        return (self.folder / REPORT).is_file()

    @property
    def vectors(self) -> np.ndarray:
        """Text vectors of the catalogue. Shape: (V, S)."""
        return vectors_of(self.domain.catalog)

    def cf(self) -> tuple[np.ndarray, np.ndarray]:
        """The CF vectors of the SASRec that is needed, and which items have one. Shape: (V, C), (V,)."""
        vectors = SASRecModel.from_pretrained(self.needed["sasrec"], dtype=torch.float32).item_vectors().numpy()
        return vectors, self.split.popularity(len(vectors)) > 0


_VECTORS: dict[str, np.ndarray] = {}


def vectors_of(catalog: Catalog) -> np.ndarray:
    """Text vectors, made once for a catalogue. Shape: -> (V, S)."""
    if catalog.fingerprint not in _VECTORS:
        _VECTORS[catalog.fingerprint] = text_vectors(catalog)
    return _VECTORS[catalog.fingerprint]


def loaded(task: Task, folder: Path | None = None) -> Ranker:
    """The ranker of a finished checkpoint of ours.

    Raises:
        ValueError: when it belongs to another catalogue.
    """
    folder = task.folder if folder is None else folder
    pipe = genrec_hub.load(str(folder))
    _refuse_other(task, folder, pipe.catalog.fingerprint)
    ranker: Ranker = pipe.ranker(task.domain, task.split)
    return ranker


def _refuse_other(task: Task, folder: Path, fingerprint: str) -> None:
    own = task.domain.catalog.fingerprint
    if fingerprint != own:
        raise ValueError(
            f"The checkpoint {folder} belongs to another catalogue ({fingerprint[:12]}) than {task.cell.domain} ({own[:12]}): "
            "give one that was trained on it."
        )


def _free(task: Task) -> Ranker:
    return baseline_rankers(task.split, task.vectors)[task.cell.system]


def _sasrec(task: Task) -> Ranker:
    if not task.finished:
        train_sasrec(task.domain, task.folder, task.settings, True, **task.config)
    return SASRecRanker.from_folder(task.folder, task.domain.catalog)


def _gru4rec(task: Task) -> Ranker:
    if not task.finished:
        gru4rec.train_gru4rec(task.domain, task.folder, task.settings, True, **task.config)
    model = gru4rec.GRU4Rec.from_pretrained(task.folder)
    _refuse_other(task, task.folder, model.config.catalog_fingerprint)
    return SASRecRanker(model)


def _codes(find: Callable[..., list[codes.Code]]) -> Callable[[Task], Ranker]:
    """The system of an identifier family: `hidden`, `layers` and `dropout` are of the decoder, other arguments of the codes."""

    def system(task: Task) -> Ranker:
        if not task.finished:
            shape = {name: value for name, value in task.config.items() if name in ("hidden", "layers", "dropout")}
            own = {name: value for name, value in task.config.items() if name not in shape}
            start = torch.from_numpy(_known_cf(task)) if task.cell.system == "e4srec" else None
            codes.train_codes(task.domain, find(task, **own), task.folder, task.settings, True, vectors=start, **shape)
        return loaded(task)

    return system


def _known_cf(task: Task) -> np.ndarray:
    """CF vectors with zeros where there is none."""
    vectors, known = task.cf()
    return np.where(known[:, None], vectors, 0).astype(np.float32)


def _setrec(task: Task) -> Ranker:
    if not task.finished:
        train_setrec(task.domain, task.folder, task.settings, True, sasrec=task.needed.get("sasrec"), **task.config)
    return loaded(task)


def _setrec_t5(task: Task) -> Ranker:
    """SETRec on a small T5 from scratch, which `train_setrec` takes as any backbone: a folder with a model and a tokenizer."""
    if not task.finished:
        config, start = task.config, task.folder.parent / "t5"
        hidden = config.pop("hidden")
        if not (start / "config.json").is_file():
            _save_small_t5(start, hidden, task.seed)
        train_setrec(task.domain, task.folder, task.settings, True, backbone=str(start), sasrec=task.needed["sasrec"], **config)
    return loaded(task)


def _save_small_t5(folder: Path, hidden: int, seed: int) -> None:
    """An untrained T5 of two and two layers with a tokenizer of few words."""
    torch.manual_seed(seed)
    tokenizer = small_tokenizer(["what comes next after buying these items"], 300)
    sizes = {"d_model": hidden, "d_kv": 32, "d_ff": 2 * hidden, "num_layers": 2, "num_decoder_layers": 2, "num_heads": max(2, hidden // 32)}
    special = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    config = T5Config(vocab_size=len(tokenizer), feed_forward_proj="gated-gelu", dropout_rate=0.3, **sizes, **special)
    tokenizer.save_pretrained(folder)
    T5Model(config).save_pretrained(folder)


def _finished(task: Task) -> Ranker:
    """A finished checkpoint as it is, of whose test row this is the validation."""
    (folder,) = task.needed.values()
    return loaded(task, folder)


def _setrec_beta(task: Task) -> Ranker:
    """A finished SETRec at another weight of its semantic tokens: 0 is its CF token alone."""
    (folder,) = task.needed.values()
    ranker: Any = loaded(task, folder)
    ranker.model.config.beta = float(task.config["beta"])
    ranker.index = ranker.processor.index(ranker.model)
    return ranker


def _idgenrec(task: Task) -> Ranker:
    if not task.finished:
        train_idgenrec(task.domain, task.folder, task.settings, True, **task.config)
    return loaded(task)


def _prompted(task: Task) -> Ranker:
    return artefacts.prompted(task.domain, task.split, task.folder, task.settings, task.needed["idgenrec"], **task.config)


SYSTEMS: dict[str, Callable[[Task], Ranker]] = {
    **dict.fromkeys(FREE, _free),
    "item-knn-larger": lambda task: artefacts.LargerOnly(ItemKNN(task.split.training, len(task.domain.catalog)), task.domain.catalog.ids),
    "sasrec": _sasrec,
    "gru4rec": _gru4rec,
    "tiger": _codes(lambda task, **own: tiger(centred(task.vectors), seed=task.seed, **own)),
    "letter": _codes(lambda task, **own: letter(centred(task.vectors), *task.cf(), seed=task.seed, **own)),
    "p5-cid": _codes(lambda task, **own: p5_cid(task.split.training, len(task.domain.catalog), seed=task.seed, **own)),
    "p5-semid": _codes(lambda task: p5_semid(task.domain.catalog)),
    "p5-sid": _codes(lambda task: p5_sid(task.split.training, len(task.domain.catalog))),
    "e4srec": _codes(lambda task: e4srec(len(task.domain.catalog))),
    "setrec": _setrec,
    "setrec-t5": _setrec_t5,
    "setrec-beta": _setrec_beta,
    "finished": _finished,
    "idgenrec": _idgenrec,
    "prompted": _prompted,
}


def training_report(folder: Path) -> dict[str, Any] | None:
    """What a training wrote down, None where nothing was trained; of several phases with the last one's curve."""
    path = folder / REPORT
    report = json.loads(path.read_text()) if path.is_file() else None
    if report is not None and "curve" not in report:
        report |= next(({"curve": phase["curve"]} for phase in reversed(report.get("phases", [])) if "curve" in phase), {})
    return report


def tokens_of_epoch(split: Split, ranker: Any) -> float:
    """The tokens in one passage of the training histories, as a system of ours reads them: items x tokens of an identifier."""
    processor = getattr(ranker, "processor", None)
    most = ranker.model.config.max_length if processor is None else processor.max_items
    lengths = split.training.lengths
    items = np.minimum(lengths[lengths >= 2], most + 1).sum()
    if processor is None:
        return float(items)
    ids = [len(own) + 1 for own in processor.identifiers.tokens] if hasattr(processor, "trie") else [ranker.model.config.tokens]
    return float(items * np.mean(ids))
