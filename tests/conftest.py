"""What many tests share: one thread, no network, the real data's folder, a small made-up domain."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from transformers import Gemma3TextConfig, LlamaConfig, Qwen2Config, Qwen3Config, T5Config

from genrec_hub.catalog import Catalog, Item
from genrec_hub.configuration_idgenrec import IDGenRecConfig
from genrec_hub.configuration_setrec import SETRecConfig
from genrec_hub.domain import Domain
from genrec_hub.identifiers import assign_identifiers
from genrec_hub.modeling_idgenrec import IDGenRecModel
from genrec_hub.modeling_setrec import SETRecModel
from genrec_hub.phrases import generator_text, salient_words
from genrec_hub.processing_idgenrec import IDGenRecProcessor
from genrec_hub.processing_setrec import SETRecProcessor
from genrec_hub.recipes_idgenrec import small_tokenizer
from genrec_hub.semantic import TextEncoder
from genrec_hub.text import words

pytest.register_assert_rewrite("visitors")
torch.set_num_threads(1)
settings.register_profile("quick", max_examples=40, deadline=None)
settings.load_profile("quick")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of the real data (`$GENREC_SHARED`, else ../shared/data beside the repository); the test is skipped without it."""
    folder = Path(os.environ.get("GENREC_SHARED") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"the shared data is not here ({folder})")
    return folder


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """(name) -> scripts/<name>.py as a module."""

    def _script(name: str) -> ModuleType:
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
            assert spec is not None
            assert spec.loader is not None
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        return sys.modules[name]

    return _script


@pytest.fixture(scope="session")
def prepare_data(script: Callable[[str], ModuleType]) -> ModuleType:
    """scripts/prepare_data.py as a module."""
    return script("prepare_data")


@pytest.fixture(scope="session")
def synthetic_domain(prepare_data: ModuleType) -> Callable[[int, int, int], Domain]:
    """(users, items, seed) -> a made-up domain."""
    return prepare_data.synthetic_domain


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """(name, text or bytes) -> the path of a file with it."""

    def _write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return _write


# A shop, an encoder that needs no download, and tiny models

_NOUNS = {
    "Beauty > Hair Care": ("shampoo", "hair dryer", "argan oil", "curl cream", "round brush"),
    "Toys > Games": ("wooden puzzle", "card game", "robot kit", "plush bear", "kite"),
    "Kitchen": ("cast iron pan", "espresso cup", "bread knife", "tea kettle", "mixing bowl"),
    "Garden > Tools": ("pruning shears", "watering can", "seed tray", "garden hose", "bird feeder"),
}
_KINDS = ("Aurora", "Bramble", "Copper")
_BRANDS = ("Lumo", "Nordhavn", "Tessel", "Okapi")
SEMANTIC = 16


class FakeEncoder(TextEncoder):
    """Unit vectors that are sums of a random vector per word: texts with common words are near, and no model is loaded."""

    def __init__(self, name: str = "fake", max_tokens: int = 48) -> None:
        super().__init__(name, max_tokens)

    def encode(self, texts, progress=None, cache=True) -> np.ndarray:
        vectors = np.zeros((len(texts), SEMANTIC), np.float32)
        for row, text in enumerate(texts):
            for word in words(text.casefold())[: self.max_tokens] or [text]:
                seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
                vectors[row] += np.random.default_rng(seed).normal(size=SEMANTIC)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


@pytest.fixture(scope="session")
def encoder() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture(scope="session")
def shop() -> Catalog:
    """Sixty invented items of four departments."""
    made = [(department, noun, kind) for kind in _KINDS for department, nouns in _NOUNS.items() for noun in nouns]
    return Catalog(
        Item(f"sku-{n:02d}", f"{kind} {noun}", _BRANDS[n % 4], department, f"A {noun} for every day.", f"{n + 3}.50")
        for n, (department, noun, kind) in enumerate(made)
    )


@pytest.fixture(scope="session")
def processor(shop: Catalog, encoder: FakeEncoder) -> SETRecProcessor:
    """The shop without CF vectors; `processor.with_cf(...)` adds them."""
    return SETRecProcessor(shop, encoder=encoder)


@pytest.fixture(scope="session")
def tiny_setrec() -> Callable[..., SETRecModel]:
    """(backbone, attention, seed, **config) -> a SETRec of two layers in evaluation mode whose parameters are all away from their start."""

    def _tiny_setrec(backbone: str = "qwen3", attention: str = "sdpa", seed: int = 0, **config: Any) -> SETRecModel:
        size = {"vocab_size": 8, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        size |= {"num_key_value_heads": 2, "max_position_embeddings": 512}
        kind = {"qwen3": Qwen3Config, "qwen2": Qwen2Config, "llama": LlamaConfig}[backbone]
        text_config = kind(**size, head_dim=16) if backbone == "qwen3" else kind(**size)
        settings = {"semantic_tokens": 3, "semantic_size": SEMANTIC, "semantic_widths": (24, 20), "text_config": text_config}
        torch.manual_seed(seed)
        model = SETRecModel._from_config(SETRecConfig(**{**settings, **config}), attn_implementation=attention).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        return model

    return _tiny_setrec


@pytest.fixture(scope="session")
def id_processor(shop: Catalog) -> Callable[..., IDGenRecProcessor]:
    """(prompt, encoder) -> the shop with its salient words as IDs, and a tokenizer made of its own text."""
    phrases = salient_words(shop)
    texts = [generator_text(item) for item in shop]
    tokenizer = small_tokenizer([*texts, *phrases], 400)
    said = dict(zip(texts, phrases, strict=True))
    identifiers = assign_identifiers(
        shop,
        lambda texts, penalty, length: [[said[text]] for text in texts],
        lambda text: tokenizer.encode(text, add_special_tokens=False),
        generator="phrases",
        catalog=shop.fingerprint,
    )

    def _id_processor(prompt: str = "packed", encoder: bool = False) -> IDGenRecProcessor:
        return IDGenRecProcessor(tokenizer, shop, identifiers, prompt, encoder, max_items=8, max_text=32)

    return _id_processor


@pytest.fixture(scope="session")
def tiny_idgenrec(id_processor: Callable[..., IDGenRecProcessor]) -> Callable[..., IDGenRecModel]:
    """(recommender, generator, attention, seed) -> an IDGenRec of two layers each in evaluation mode, parameters away from their start."""
    words = len(id_processor().tokenizer)

    def config(kind: str) -> Any:
        special = {"vocab_size": words, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        if kind == "t5":
            size = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
            return T5Config(**special, **size, decoder_start_token_id=0, dropout_rate=0.0)
        size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
        kinds = {"qwen3": Qwen3Config, "qwen2": Qwen2Config, "llama": LlamaConfig, "gemma3": Gemma3TextConfig}
        more = {} if kind in ("qwen2", "llama") else {"head_dim": 16}
        return kinds[kind](**special, **size, **more, max_position_embeddings=512, tie_word_embeddings=True)

    def _tiny_idgenrec(
        recommender: str = "qwen3", generator: str = "t5", attention: str = "sdpa", seed: int = 0, **own: Any
    ) -> IDGenRecModel:
        torch.manual_seed(seed)
        settings = IDGenRecConfig(text_config=config(recommender), generator_config=config(generator), beams=10, groups=4, **own)
        model = IDGenRecModel._from_config(settings, attn_implementation=attention).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        return model

    return _tiny_idgenrec
