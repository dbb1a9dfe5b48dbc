"""The fast sentence encoder: a table of token vectors fitted to MiniLM's sentence vectors; a text is the sum of its tokens' vectors.

It has no transformer, so a text costs a lookup: tens of thousands a second on one core. It stands in MiniLM's space: a model that was
trained on MiniLM's vectors reads its vectors too.

Dims: T tokens of the vocabulary · R rank of the table · S width of the vectors.

Source: static embeddings by distillation as in Tulkens and van Dongen, Model2Vec, 2024; smooth inverse frequency as in Arora et al.,
ICLR 2017. Differs: the token vectors are then fitted to the sentence vectors of texts (1 - cosine), weights and all.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "static.safetensors"
FORMAT_VERSION = 1
CELLS = 2**22
"""Numbers that are gathered at once (16 MB of float32)."""


class StaticEncoder:
    """Sums token vectors.

    Args:
        tokenizer: a tokenizer of the vocabulary.
        table: (T, R) int8 token vectors.
        scale: (T,) what a row of the table is multiplied by; a token's weight is in it.
        projection: (R, S) from the table to the vectors.
        bias: (S,) added to a text's unit vector.
        max_tokens: texts are cut there.
        special: token ids that count for nothing.
    """

    def __init__(
        self,
        tokenizer: "Tokenizer",
        table: np.ndarray,
        scale: np.ndarray,
        projection: np.ndarray,
        bias: np.ndarray,
        max_tokens: int,
        special: Sequence[int] = (),
    ) -> None:
        self.tokenizer, self.table, self.max_tokens = tokenizer, table, max_tokens
        self.scale, self.projection, self.bias = (values.astype(np.float32) for values in (scale, projection, bias))
        self.scale[list(special)] = 0
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Shape: texts -> (texts, S) unit vectors, float32; a text without a known token is the bias alone."""
        ids = [entry.ids for entry in self.tokenizer.encode_batch(list(texts), add_special_tokens=True)]
        sums = np.zeros((len(texts), self.table.shape[1]), np.float32)
        lengths = np.array([len(own) for own in ids], np.int64)
        ends = np.cumsum(lengths)
        start, room = 0, max(1, CELLS // self.table.shape[1])
        while start < len(texts):
            before = ends[start] - lengths[start]
            stop = max(start + 1, int(np.searchsorted(ends, before + room, side="right")))
            flat = np.concatenate([np.asarray(own, np.int64) for own in ids[start:stop]])
            if len(flat):
                rows = self.table[flat] * self.scale[flat, None]
                owner = np.repeat(np.arange(start, stop), lengths[start:stop])
                present, first = np.unique(owner, return_index=True)
                sums[present] = np.add.reduceat(rows, first, axis=0)
            start = stop
        return _unit(_unit(sums @ self.projection) + self.bias)

    def save(self, folder: str | Path) -> None:
        """Writes `static.safetensors` and `tokenizer.json`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        about = {"format_version": str(FORMAT_VERSION), "max_tokens": str(self.max_tokens)}
        about["special"] = json.dumps(np.flatnonzero(self.scale == 0).tolist())
        arrays = {"table": self.table, **{name: getattr(self, name).astype(np.float16) for name in ("scale", "projection", "bias")}}
        # safetensors writes the memory as it lies: a transposed array would come back scrambled
        save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, folder / FILE, metadata=about)
        self.tokenizer.save(str(folder / "tokenizer.json"), pretty=False)

    @classmethod
    def load(cls, folder: str | Path) -> "StaticEncoder":
        """Reads what `save` wrote.

        Raises:
            ValueError: when the format is newer than this package.
        """
        from safetensors import safe_open

        with safe_open(Path(folder) / FILE, "np") as file:
            about = file.metadata()
        if int(about["format_version"]) > FORMAT_VERSION:
            raise ValueError(
                f"The encoder in {folder} has format {about['format_version']}, this package reads up to {FORMAT_VERSION}: "
                "upgrade genrec_hub."
            )
        arrays = load_file(Path(folder) / FILE)
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(folder) / "tokenizer.json")).backend_tokenizer
        table, scale, projection, bias = (arrays[name] for name in ("table", "scale", "projection", "bias"))
        return cls(tokenizer, table, scale, projection, bias, int(about["max_tokens"]), json.loads(about["special"]))

    @classmethod
    def compress(
        cls, tokenizer: "Tokenizer", vectors: np.ndarray, bias: np.ndarray, rank: int, max_tokens: int, special: Sequence[int] = ()
    ) -> "StaticEncoder":
        """Makes an encoder of full token vectors: the best projection to `rank` numbers, then one byte each.

        Shape: vectors (T, S), bias (S,).
        """
        _, basis = np.linalg.eigh(vectors.astype(np.float64).T @ vectors)
        projection = basis[:, ::-1][:, :rank].T.astype(np.float32)
        reduced = vectors @ projection.T
        scale = np.abs(reduced).max(1) / 127
        table = np.round(reduced / np.maximum(scale, 1e-12)[:, None]).astype(np.int8)
        return cls(tokenizer, table, scale, projection, bias, max_tokens, special)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
