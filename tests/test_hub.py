"""The round trip over HTTP with the real client, and every refusal; the faults on the way are in test_hub_faults.py."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent / "hub"))
from clients import OURS, Clients, without
from testhub import TestHub

import genrec_hub
from genrec_hub.cards import SYSTEMS as CARDS
from genrec_hub.cards import eval_results, may_be_published, read_evaluations
from genrec_hub.catalog import Catalog
from genrec_hub.checkpoint import FORMAT_VERSION, SUMS, TASK, digest, read_sums
from genrec_hub.hub import push, write_card
from genrec_hub.pipeline import PRETRAINED, RecommendationPipeline
from genrec_hub.processing_setrec import SETRecProcessor
from genrec_hub.semantic import TextEncoder
from genrec_hub.text import words

REPOSITORY = Path(__file__).resolve().parent.parent
HISTORIES = [["sku-03", "sku-10"], ["Aurora kite", "something of argan oil"], ["Copper bread knife"]]
EVALUATION = {
    "protocol": "leave-one-out", "zero_shot": False, "exclude_seen": True, "repeat_targets": 0, "users": 40, "items": 60, "seed": 0,
    "metrics": {"HR@5": 0.25, "HR@10": 0.375, "NDCG@5": 0.125, "NDCG@10": 0.1875, "MRR": 0.1, "coverage@10": 0.5, "diversity@10": None},
    "ci": {"HR@10": [0.25, 0.5], "NDCG@10": [0.125, 0.25]},
    "baselines": {"popularity": {"HR@10": 0.125, "NDCG@10": 0.0625}, "text-knn-last": {"HR@10": 0.25, "NDCG@10": 0.15}},
    "groups": {"warm": {"NDCG@10": 0.2, "users": 39}, "cold": {"NDCG@10": 0.0, "users": 1}},
    "seconds": 1.0, "model": "toy", "fingerprint": "f" * 64, "command": "genrec evaluate --model toy",
}  # fmt: skip
REPORT = {
    "command": "genrec train setrec --items items.csv", "settings": {"epochs": 2, "batch": 8, "rate": 0.002, "negatives": 0, "seed": 0},
    "seconds": 12.5, "cpu_seconds": 12.0, "parameters": 1, "validation": {"hr@10": 0.4, "ndcg@10": 0.2},
    "curve": [{"epoch": 1.0, "hr@10": 0.3, "ndcg@10": 0.1}, {"epoch": 2.0, "hr@10": 0.4, "ndcg@10": 0.2}],
}  # fmt: skip


def tiny_encoder(folder: Path, shop: Catalog, width: int) -> str:
    """A sentence encoder of random weights in the sentence-transformers layout."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for item in shop for word in words(item.line.casefold())})]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
    BertModel(BertConfig(vocab_size=len(vocabulary), **size)).save_pretrained(folder)
    modules = [{"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
               for n, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling")])]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}))
    return str(folder)


def make_setrec(folder: Path, shop: Catalog, encoder: str, tiny_setrec) -> RecommendationPipeline:
    """With a CF token, an encoder of its own, and what a run leaves behind."""
    processor = SETRecProcessor(shop, encoder=TextEncoder(encoder, 16))
    cf = np.random.default_rng(0).normal(size=(len(shop), 6)).astype(np.float32)
    model = tiny_setrec(cf_size=6, catalog_fingerprint=shop.fingerprint)
    return RecommendationPipeline(model=model, processor=processor.with_cf(cf, np.arange(len(shop)) % 3 > 0), task=TASK)


SYSTEMS = {"setrec": make_setrec}


@pytest.fixture(scope="module")
def made(tmp_path_factory, shop, tiny_setrec):
    """(system) -> the folder of a small checkpoint of it, made once."""
    root, known = tmp_path_factory.mktemp("made"), {}

    def _made(system: str) -> Path:
        if system not in known:
            folder = known[system] = root / system
            encoder = tiny_encoder(root / f"encoder-{system}", shop, 16)
            pipe = SYSTEMS[system](folder, shop, encoder, tiny_setrec)
            pipe.save_pretrained(folder)
            (folder / "training.json").write_text(json.dumps(REPORT))
            (folder / "evaluations").mkdir()
            (folder / "evaluations" / "toy_shop.json").write_text(json.dumps(EVALUATION))
        return known[system]

    return _made


@pytest.fixture
def copy(made, tmp_path):
    """A SETRec checkpoint that a test may damage."""
    return Path(shutil.copytree(made("setrec"), tmp_path / "copy"))


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    started = Clients(tmp_path_factory.mktemp("clients"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with TestHub(tmp_path_factory.mktemp("hub")) as server:
        yield server


ANSWER = """
import hashlib, json, torch
def answer(recommend, histories):
    sums = hashlib.sha256(b"".join(values.numpy().tobytes() for values in recommend.model.state_dict().values())).hexdigest()
    rows = [[3, 10], [0], []]
    import numpy
    scores = recommend.ranker(type("Shop", (), {"catalog": recommend.catalog})()).scores([numpy.array(r, numpy.int64) for r in rows])
    return {"weights": sums, "scores": hashlib.sha256(scores.numpy().tobytes()).hexdigest(), "lists": recommend(histories, top_k=5)}
"""


def answers(recommend) -> dict:
    scope: dict = {}
    exec(ANSWER, scope)
    return json.loads(json.dumps(scope["answer"](recommend, HISTORIES)))


def said(text: str):
    """The JSON of a client's last line."""
    return json.loads(text.strip().splitlines()[-1])


# The round trip


@pytest.mark.parametrize("system", SYSTEMS)
def test_push_and_pull(system, made, clients, hub, tmp_path):
    """Pushed by one process, pulled by two others with caches of their own: with the package, and with nothing but what a card names."""
    folder, repo = made(system), f"org/toy-{system}"
    want = answers(genrec_hub.load(folder))
    package = {"PYTHONPATH": str(REPOSITORY)}
    push_code = f"""
import genrec_hub
from huggingface_hub import list_repo_commits
recommend = genrec_hub.load({str(folder)!r})
done = recommend.push_to_hub({repo!r}, tags=["toy"])
again = recommend.push_to_hub({repo!r}, tags=["toy"])
assert again.oid == done.oid, "a repeated push committed something"
print([commit.title for commit in list_repo_commits({repo!r})])
"""
    text = clients.run(push_code, hub.env(tmp_path / "a", **package))
    assert text.strip().splitlines()[-1] == f"['Upload {CARDS[system].name}Model', 'initial commit']"

    pull_code = f"""
{ANSWER}
import genrec_hub
from transformers import AutoModel, AutoProcessor, pipeline
model, processor = AutoModel.from_pretrained({repo!r}), AutoProcessor.from_pretrained({repo!r})
assert type(model).__module__.startswith("genrec_hub.") and type(processor).__module__.startswith("genrec_hub.")
recommend = pipeline({TASK!r}, model={repo!r})
assert type(recommend) is genrec_hub.RecommendationPipeline
print(json.dumps(answer(recommend, {HISTORIES!r})))
"""
    inside = clients.start(pull_code, hub.env(tmp_path / "b", **package))
    bare_code = f"""
{without(*OURS)}
{ANSWER}
from pathlib import Path
from transformers import AutoModel, AutoProcessor, pipeline
from huggingface_hub import snapshot_download
model = AutoModel.from_pretrained({repo!r}, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules.")
processor = AutoProcessor.from_pretrained({repo!r}, trust_remote_code=True)
recommend = pipeline({TASK!r}, model={repo!r}, trust_remote_code=True)
print(json.dumps({{"answer": answer(recommend, {HISTORIES!r}), "folder": snapshot_download({repo!r})}}))
try:
    recommend.push_to_hub("org/other")
except ModuleNotFoundError as error:
    assert "pip install genrec_hub" in str(error)
else:
    raise AssertionError("pushed without the package")
"""
    outside = clients.start(bare_code, hub.env(tmp_path / "c"))
    assert said(inside.wait()) == want
    got = said(outside.wait())
    assert got["answer"] == want
    assert not [call for call in hub.log() if "error" in call]

    there = Path(got["folder"])
    names = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
    assert {"README.md", SUMS, "config.json", "model.safetensors", "processor_config.json", "catalog/items.parquet", "training.json",
            ".eval_results/toy_shop.yaml", "evaluations/toy_shop.json", "figures/results.svg", "pipeline.py", "encoder/modules.json"} <= names  # fmt: skip
    assert not [name for name in names if Path(name).suffix in (".bin", ".pt", ".pkl")]
    card = ModelCard.load(there / "README.md")
    assert card.data.tags[-1] == "toy"
    assert {"library_name": "genrec_hub", "pipeline_tag": CARDS[system].tag}.items() <= card.data.to_dict().items()
    # The card's own example runs as it stands and prints what the card says it prints.
    code, output = re.search(r"```python\n(.*?)```\n\nprints\n\n```text\n(.*?)```", card.text, re.DOTALL).groups()
    text = clients.run(f"{without(*OURS)}\n{code}", hub.env(tmp_path / "c", HF_HUB_OFFLINE=1))
    assert text.endswith(output)


def test_whoever_may_not_is_told_so(made, clients, hub, tmp_path):
    """One sentence each, and nothing of it on the Hub."""
    code = f"""
import genrec_hub, tempfile
from genrec_hub.hub import push_domain
from huggingface_hub import HfApi
def refused(kind, words, do):
    try:
        do()
    except kind as error:
        assert words in str(error), error
        assert chr(10) not in str(error), error
    else:
        raise AssertionError("not refused: " + words)
recommend = genrec_hub.load({str(made("setrec"))!r})
push = lambda **more: recommend.push_to_hub("org/closed", push_encoder=False, **more)
refused(PermissionError, "You may not write to org/closed", lambda: push(token="hf_read"))
refused(PermissionError, "You may not write to org/closed", lambda: push(token=False))
refused(PermissionError, "You may not write to org/closed", lambda: push(token="hf_stranger"))
refused(PermissionError, "You may not write to org/closed", lambda: push(token="hf_wrong"))
assert not HfApi().repo_exists("org/closed")
push(private=True)
head = HfApi().model_info("org/closed").sha
refused(PermissionError, "You may not write to org/closed", lambda: push(token="hf_read", commit_message="x"))
refused(PermissionError, "You may not write to org/closed", lambda: push(token="hf_stranger"))
assert HfApi().model_info("org/closed").sha == head
load = lambda name="org/closed", **more: genrec_hub.load(name, cache_dir=tempfile.mkdtemp(), **more)
refused(FileNotFoundError, "no repository org/closed that you may read", lambda: load(token=False))
refused(FileNotFoundError, "no repository org/closed that you may read", lambda: load(token="hf_stranger"))
refused(FileNotFoundError, "no repository org/none that you may read", lambda: load("org/none"))
refused(FileNotFoundError, "org/closed has no revision 'v9'", lambda: load(revision="v9"))
refused(PermissionError, "The Hub refuses your token for org/closed", lambda: load(token="hf_wrong"))
assert len(load(token="hf_read").catalog) == 60
HfApi().create_repo("org/open")
refused(ValueError, "is there already and public", lambda: recommend.push_to_hub("org/open", push_encoder=False, private=True))
recommend.catalog.license = "academic use only, no redistribution"
refused(ValueError, "do not allow to publish it", push)
push(push_catalog=False)
bare = load()
refused(ValueError, "carries no catalogue", lambda: bare(["kite"]))
answer = bare(["kite"], catalog=[{{"item_id": "1", "title": "Aurora kite"}}, {{"item_id": "2", "title": "Wooden puzzle"}}], top_k=1)
assert answer[0]["item"]["item_id"] in "12"
assert not [name for name in HfApi().list_repo_files("org/closed") if name.startswith("catalog/")]
"""
    clients.run(code, hub.env(tmp_path / "home", PYTHONPATH=REPOSITORY))
    assert not [call for call in hub.log() if "error" in call]
