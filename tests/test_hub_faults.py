"""What goes wrong on the way to the Hub and back, one thing at a time, through LFS and through Xet; run by `make soak`."""

import os
import shutil
import signal
import time

import pytest
from test_hub import ANSWER, HISTORIES, REPOSITORY, answers, clients, made, said  # noqa: F401 - fixtures
from testhub import TestHub

import genrec_hub

pytestmark = pytest.mark.soak
PACKAGE = {"PYTHONPATH": str(REPOSITORY)}
REPO = "org/toy"
BLOB = {"lfs": r"^PUT /lfs/", "xet": r"^POST /v1/xorbs/"}
FETCH = {"lfs": r"^GET /blob/", "xet": r"^GET /xorb/"}
BOOKING = {"lfs": r"^POST .*/info/lfs/objects/batch", "xet": r"^POST /v1/shards"}
"""Where an upload is asked for (LFS) or registered (Xet)."""
LEAVE = {"lfs": r"^POST .*/preupload/", "xet": r"^GET .*/xet-write-token/"}
MAP = {"lfs": r"^GET /[^/]+/[^/]+/resolve/", "xet": r"^GET /v1/reconstructions/"}
"""Where a file's bytes are, asked before they are fetched."""
COMMIT = r"^POST .*/commit/main"


@pytest.fixture(scope="module")
def pushed(two, clients, tmp_path_factory):  # noqa: F811
    """(how files travel) -> the folder of a hub to which the first checkpoint was pushed, made once."""
    known = {}

    def _pushed(mode):
        if mode not in known:
            root = known[mode] = tmp_path_factory.mktemp(f"pushed-{mode}")
            with TestHub(root) as hub:
                env = hub.env(tmp_path_factory.mktemp("home"), xet=mode == "xet", **PACKAGE)
                assert "oid" in said(clients.run(push_code(two["first"][0]), env))
        return known[mode]

    return _pushed


@pytest.fixture(params=["lfs", "xet"])
def wire(request, pushed, tmp_path):
    """(how files travel, a hub of its own that has the first checkpoint, environment of a client by its cache's name)."""
    with TestHub(shutil.copytree(pushed(request.param), tmp_path / "hub")) as hub:

        def env(home, **more):
            return hub.env(tmp_path / home, xet=request.param == "xet", **PACKAGE, **more)

        yield request.param, hub, env
        calls = hub.log()
        assert not [call for call in calls if "error" in call], "a fault of the test hub's own"
        leaks = [call for call in calls if call["at"] == "storage" and (call["token"] or "").startswith("hf_")]
        assert not leaks, "a token reached the storage origin"


@pytest.fixture(scope="module")
def two(made, tmp_path_factory):  # noqa: F811
    """The folders of two checkpoints that differ in every weight, catalogue order included in neither."""
    import torch

    first = made("setrec")
    recommend = genrec_hub.load(first)
    with torch.no_grad():
        for parameter in recommend.model.parameters():
            parameter += 0.25
    second = tmp_path_factory.mktemp("two") / "second"
    recommend.save_pretrained(second)
    return {name: (folder, answers(genrec_hub.load(folder))) for name, folder in (("first", first), ("second", second))}


def push_code(folder, **more):
    return f"""
import genrec_hub, genrec_hub.hub, json
from huggingface_hub import list_repo_commits
genrec_hub.hub.WAITS = (.1, .1, .1)
recommend = genrec_hub.load({str(folder)!r})
try:
    done = recommend.push_to_hub({REPO!r}, **{more!r})
    print(json.dumps({{"oid": done.oid, "pr": done.pr_url}}))
except OSError as error:
    print(json.dumps({{"kind": type(error).__name__, "sentence": str(error)}}))
"""


def pull_code(**more):
    return f"{ANSWER}\nimport genrec_hub\nprint(json.dumps(answer(genrec_hub.load({REPO!r}, **{more!r}), {HISTORIES!r})))"


def state_code():
    """The commits, newest first, and what the newest one answers."""
    commits = f"[commit.title for commit in huggingface_hub.list_repo_commits({REPO!r})]"
    return f"{ANSWER}\nimport genrec_hub, huggingface_hub\nprint(json.dumps([{commits}, answer(genrec_hub.load({REPO!r}), {HISTORIES!r})]))"


FIRST = ["Upload SETRecModel", "initial commit"]
SECOND = ["Upload SETRecModel", *FIRST]

ON_THE_WAY_UP = {
    "an upload answered 500": (BLOB, "status", {"status": 500}),
    "an upload cut in the middle": (BLOB, "drop", {"after_bytes": 2000}),
    "the answer to an upload lost": (BLOB, "drop_response", {}),
    "the booking of an upload answered 500": (BOOKING, "status", {"status": 500}),
    "the answer to a booking lost": (BOOKING, "drop_response", {}),
    "leave to upload answered 503": (LEAVE, "status", {"status": 503}),
    "a commit answered 500": (COMMIT, "status", {"status": 500}),
    "a commit answered 503 twice": (COMMIT, "status", {"status": 503, "times": 2}),
    "a commit cut before it was made": (COMMIT, "drop", {"after_bytes": 10}),
    "the answer to the commit lost": (COMMIT, "drop_response", {}),
    "the repository's creation answered 500": (r"^POST /api/repos/create", "status", {"status": 500}),
    "a listing answered 502": (r"^GET /api/models/.*/tree/", "status", {"status": 502}),
    "the preupload answered 500": (r"^POST .*/preupload/", "status", {"status": 500}),
    "a slow hub": (r".*", "slow", {"delay": 1.5, "times": 6}),
    "a slow wire": (BLOB, "throttle", {"bytes_per_s": 40_000, "times": 2}),
}


@pytest.mark.parametrize("trouble", ON_THE_WAY_UP)
def test_a_push_goes_through_whatever_happens_once(trouble, wire, two, clients):  # noqa: F811
    """The old state or the new one is to be seen, never a mixture; nothing is lost, nothing committed twice."""
    mode, hub, env = wire
    hub.reset()
    where, kind, more = ON_THE_WAY_UP[trouble]
    hub.fault(where[mode] if isinstance(where, dict) else where, kind, **more)
    done = said(clients.run(push_code(two["second"][0]), env("up")))
    assert "oid" in done, done
    assert [call for call in hub.log() if call.get("fault")], "the fault never struck"
    hub.call("reset")
    assert said(clients.run(state_code(), env("down"))) == [SECOND, two["second"][1]]


def test_a_push_that_fails_for_good_leaves_everything_as_it_was(wire, two, clients):  # noqa: F811
    mode, hub, env = wire
    for where, status in ((BLOB[mode], 400), (COMMIT, 500)):
        hub.reset()
        hub.fault(where, "status", status=status, times=99)
        failed = said(clients.run(push_code(two["second"][0]), env("up")))
        assert failed["kind"] == "ConnectionError", failed
        assert "no half of it is to be seen there" in failed["sentence"]
        assert "\n" not in failed["sentence"]
        hub.reset()
        assert said(clients.run(state_code(), env("down"))) == [FIRST, two["first"][1]]
    clients.run(push_code(two["second"][0]), env("up"))
    assert said(clients.run(pull_code(), env("down"))) == two["second"][1]


def test_a_killed_push_is_taken_up_again(wire, two, clients):  # noqa: F811
    mode, hub, env = wire
    hub.reset()
    hub.fault(BLOB[mode], "throttle", bytes_per_s=20_000, times=9)
    started = clients.start(push_code(two["second"][0]), env("up"))
    end = time.time() + 120
    while not hub.log(BLOB[mode]):
        assert time.time() < end
        time.sleep(0.05)
    os.kill(started.pid, signal.SIGKILL)
    started.wait(ok=-signal.SIGKILL)
    assert not hub.log(COMMIT)
    hub.reset()
    assert said(clients.run(pull_code(), env("down"))) == two["first"][1]
    clients.run(push_code(two["second"][0]), env("up"))
    assert said(clients.run(pull_code(), env("down"))) == two["second"][1]


def test_a_hub_that_dies_and_comes_back(wire, two, clients):  # noqa: F811
    mode, hub, env = wire
    hub.fault(BLOB[mode], "crash", after_bytes=2000)
    started = clients.start(push_code(two["second"][0]), env("up"))
    hub.proc.wait(120)
    hub.restart()
    done = said(started.wait())
    if "oid" not in done:
        assert "no half of it is to be seen" in done["sentence"]
        clients.run(push_code(two["second"][0]), env("up"))
    assert said(clients.run(pull_code(), env("down"))) == two["second"][1]


def test_of_two_pushes_at_once_one_wins(wire, two, clients, tmp_path):  # noqa: F811
    """Both start from the same commit: the first to commit is there, the other is told so and nothing of it is."""
    _, _, env = wire
    folder, _ = two["second"]
    recommend = genrec_hub.load(folder)
    third = folder.parent / "third"
    import torch

    with torch.no_grad():
        for parameter in recommend.model.parameters():
            parameter += 0.25
    recommend.save_pretrained(third)
    wants = [two["second"][1], answers(genrec_hub.load(third))]
    lines = [f"{tmp_path}/ready-{n}" for n in range(2)]

    def racing(n, path):
        """Both have looked at the repository before either commits."""
        return f"""
import genrec_hub.hub, os, time
look = genrec_hub.hub._prepare
def look_and_wait(*arguments):
    parent = look(*arguments)
    open({lines[n]!r}, "w").close()
    while not all(map(os.path.exists, {lines!r})):
        time.sleep(.02)
    return parent
genrec_hub.hub._prepare = look_and_wait
{push_code(path)}"""

    racers = [clients.start(racing(n, path), env(f"up{n}")) for n, path in enumerate((folder, third))]
    results = [said(racer.wait()) for racer in racers]
    won = [n for n, result in enumerate(results) if "oid" in result]
    assert len(won) == 1, results
    lost = results[1 - won[0]]
    assert lost["kind"] == "ConnectionAbortedError"
    assert "changed while this push was under way" in lost["sentence"]
    assert said(clients.run(state_code(), env("down"))) == [SECOND, wants[won[0]]]


ON_THE_WAY_DOWN = {
    "cut in the middle": (FETCH, "truncate", {"after_bytes": 3000, "times": 2}),
    "answered 500": (FETCH, "status", {"status": 500, "times": 2}),
    "answered 429": (FETCH, "status", {"status": 429, "headers": {"Retry-After": "1"}}),
    "slow": (FETCH, "slow", {"delay": 3, "times": 3}),
    "not told where": (MAP, "status", {"status": 500}),
    "no answer where": (MAP, "drop_response", {}),
}


@pytest.mark.parametrize("trouble", ON_THE_WAY_DOWN)
def test_a_pull_goes_through_whatever_happens_once(trouble, wire, two, clients):  # noqa: F811
    mode, hub, env = wire
    hub.reset()
    where, kind, more = ON_THE_WAY_DOWN[trouble]
    hub.fault(where[mode], kind, **more)
    assert said(clients.run(pull_code(), env("down"))) == two["first"][1]
    assert [call for call in hub.log() if call.get("fault")], "the fault never struck"


def test_what_was_pulled_works_offline(wire, two, clients):  # noqa: F811
    _, hub, env = wire
    clients.run(pull_code(), env("down"))
    hub.reset()
    assert said(clients.run(pull_code(), env("down", HF_HUB_OFFLINE=1))) == two["first"][1]
    assert hub.log() == []
    code = f"import genrec_hub\ntry:\n    genrec_hub.load({REPO!r})\nexcept FileNotFoundError as error:\n    print(error)"
    assert "is not in the cache, and the Hub is out of reach" in clients.run(code, env("empty", HF_HUB_OFFLINE=1))
    hub.proc.kill()  # not said to be offline, but out of reach: the cache serves, an empty one says so
    hub.proc.wait()
    try:
        assert said(clients.run(pull_code(), env("down"))) == two["first"][1]
        assert "is not in the cache, and the Hub is out of reach" in clients.run(code, env("empty2"))
    finally:
        hub.restart()


def test_revisions_pin_and_branches_stay_apart(wire, two, clients):  # noqa: F811
    _, _, env = wire
    (first, want_first), (second, want_second) = two["first"], two["second"]
    tag = f"from huggingface_hub import *\ncreate_tag({REPO!r}, tag='v1')\nprint(model_info({REPO!r}).sha)"
    sha = clients.run(tag, env("up")).split()[-1]
    clients.run(push_code(second, revision="trial"), env("up"))
    assert said(clients.run(pull_code(), env("down"))) == want_first
    assert said(clients.run(pull_code(revision="trial"), env("down"))) == want_second
    clients.run(push_code(second), env("up"))
    proposed = said(clients.run(push_code(first, create_pr=True), env("up")))
    assert proposed["pr"]
    for revision, want in ((None, want_second), ("v1", want_first), (sha, want_first), ("refs/pr/1", want_first)):
        assert said(clients.run(pull_code(revision=revision), env("down"))) == want


def test_a_model_of_several_shards(wire, tmp_path, tiny_setrec, processor, clients):  # noqa: F811
    """More than 10 MB in shards of 4; then one file again: the shards are gone, the checksums too."""
    from genrec_hub.pipeline import TASK, RecommendationPipeline

    _, _, env = wire
    pipe = RecommendationPipeline(model=tiny_setrec(semantic_widths=(1200, 1200)), processor=processor, task=TASK)
    pipe.save_pretrained(tmp_path / "large")
    assert (tmp_path / "large" / "model.safetensors").stat().st_size > 10 * 2**20
    listing = f"from huggingface_hub import *\nimport json\nprint(json.dumps(list_repo_files({REPO!r})))"
    code = f"""
import genrec_hub, hashlib, json
from genrec_hub.checkpoint import fetch, read_sums, verify
model = genrec_hub.load({REPO!r}).model
folder = fetch({REPO!r})
verify(folder)
sums = hashlib.sha256(b"".join(values.numpy().tobytes() for values in model.state_dict().values())).hexdigest()
print(json.dumps([sums, sorted(name for name in read_sums(folder) if "/" not in name)]))
"""
    import hashlib

    want = hashlib.sha256(b"".join(values.numpy().tobytes() for values in pipe.model.state_dict().values())).hexdigest()
    clients.run(push_code(tmp_path / "large", max_shard_size="4MB"), env("up"))
    shards = [name for name in said(clients.run(listing, env("up"))) if name.endswith(".safetensors") and "/" not in name]
    assert len(shards) >= 3
    assert said(clients.run(code, env("down"))) == [want, [*shards, "model.safetensors.index.json"]]
    clients.run(push_code(tmp_path / "large"), env("up"))
    assert [
        name for name in said(clients.run(listing, env("up"))) if name.startswith("model") and "/" not in name and ".py" not in name
    ] == ["model.safetensors"]
    assert said(clients.run(code, env("down"))) == [want, ["model.safetensors"]]


def test_parts_go_up_alone_and_leave_the_rest(wire, two, clients):  # noqa: F811
    """A model's push keeps the catalogue with its checksums, a processor's the weights and the card."""
    _, _, env = wire
    (first, _), (second, want_second) = two["first"], two["second"]
    code = f"""
import genrec_hub
genrec_hub.load({str(second)!r}).model.push_to_hub({REPO!r})
"""
    clients.run(code, env("up"))
    assert said(clients.run(pull_code(), env("down"))) == want_second
    code = f"""
import genrec_hub
from genrec_hub.checkpoint import fetch, read_sums, verify
before = (fetch({REPO!r}) / "README.md").read_bytes()
genrec_hub.load({str(first)!r}).processor.push_to_hub({REPO!r})
recommend = genrec_hub.load({REPO!r})
folder = fetch({REPO!r})
assert (folder / "README.md").read_bytes() == before
assert {{"model.safetensors", "catalog/items.parquet"}} <= set(read_sums(folder))
verify(folder)
recommend.push_to_hub({REPO!r}, push_catalog=False)
folder = fetch({REPO!r})
assert not (folder / "catalog").exists() and not [name for name in read_sums(folder) if name.startswith("catalog/")]
"""
    clients.run(code, env("up"))


def test_repositories_that_somebody_spoilt(wire, clients):  # noqa: F811
    """What is refused on disk is refused from the Hub too, by all ways to load."""
    _, _, env = wire
    code = f"""
import genrec_hub, json, io
from huggingface_hub import *
from transformers import AutoModel, AutoProcessor
api, repo = HfApi(), {REPO!r}
good = api.model_info(repo).sha
def spoil(name, change):
    data = bytearray(open(hf_hub_download(repo, name, revision=good), "rb").read()) if change is not None else b"\\x80."
    api.upload_file(path_or_fileobj=bytes(change(data)) if change else data, path_in_repo=name, repo_id=repo)
def heal(name):
    if name in api.list_repo_files(repo, revision=good):
        api.upload_file(path_or_fileobj=open(hf_hub_download(repo, name, revision=good), "rb").read(), path_in_repo=name, repo_id=repo)
    else:
        api.delete_file(name, repo)
def newer(data):
    return json.dumps(dict(json.loads(bytes(data)), format_version=99)).encode()
def flipped(data):
    data[-9] ^= 4
    return data
for name, change, words, loads in [
    ("model.safetensors", flipped, "is damaged or was changed", (genrec_hub.load, AutoModel.from_pretrained)),
    ("model.safetensors", lambda data: data[:-500], "is damaged or was changed", (genrec_hub.load, AutoModel.from_pretrained)),
    ("catalog/items.parquet", flipped, "is damaged or was changed", (genrec_hub.load, AutoProcessor.from_pretrained)),
    ("config.json", newer, "has format 99", (genrec_hub.load, AutoModel.from_pretrained)),
    ("processor_config.json", newer, "has format 99", (genrec_hub.load, AutoProcessor.from_pretrained)),
    ("pytorch_model.bin", None, "a pickle", (genrec_hub.load, AutoModel.from_pretrained, AutoProcessor.from_pretrained)),
]:
    spoil(name, change)
    for load in loads:
        try:
            load(repo)
        except ValueError as error:
            assert words in str(error) and chr(10) not in str(error), error
        else:
            raise AssertionError(name)
    heal(name)
api.delete_folder("catalog", repo)
for load in (genrec_hub.load, AutoProcessor.from_pretrained):
    try:
        load(repo)
    except FileNotFoundError as error:
        assert "catalog/ should hold 60 items" in str(error), error
    else:
        raise AssertionError("catalogue")
assert len(genrec_hub.load(repo, revision=good).catalog) == 60
"""
    clients.run(code, env("home"))


# Data sets and the Space


def test_a_domain_goes_up_and_comes_back(wire, synthetic_domain, tmp_path, clients):  # noqa: F811
    _, _, env = wire
    domain = synthetic_domain(30, 40, 0)
    domain.save(tmp_path / "domain")
    code = f"""
import genrec_hub, json
from genrec_hub.hub import load_domain, push_domain
from datasets import load_dataset
domain = genrec_hub.Domain.from_folder({str(tmp_path / "domain")!r}, check_order=False)
done = push_domain(domain, "org/shop", license="cc-by-4.0")
assert push_domain(domain, "org/shop", license="cc-by-4.0").oid == done.oid
got = load_domain("org/shop", check_order=False)
assert got.catalog == domain.catalog and got.catalog.license == "cc-by-4.0" and got.users == domain.users
assert (got.sequences.items == domain.sequences.items).all() and (got.sequences.offsets == domain.sequences.offsets).all()
items = load_dataset("org/shop", "items", split="train")
interactions = load_dataset("org/shop", "interactions", split="train")
assert genrec_hub.Catalog.from_dataset(items) == domain.catalog
assert interactions.num_rows == len(domain.sequences.items)
assert {{name: feature.dtype for name, feature in interactions.features.items()}}["user_id"] == "string"
domain.catalog.license = "academic use only"
try:
    push_domain(domain, "org/shop")
except ValueError as error:
    assert "do not allow to publish it" in str(error)
else:
    raise AssertionError
"""
    clients.run(code, env("home"))


def test_the_space_is_made_and_brought_up_to_date(wire, clients):  # noqa: F811
    _, _, env = wire
    code = f"""
import sys
sys.path.insert(0, {str(REPOSITORY / "scripts")!r})
import deploy_space
from huggingface_hub import *
assert deploy_space.main(["org/app", "--models", "org/a,org/b"]) == 0
info = space_info("org/app")
names = set(list_repo_files("org/app", repo_type="space"))
assert info.sdk == "gradio"
assert {{"app.py", "requirements.txt", "genrec_hub/demo.py", "genrec_hub/shop.jsonl", "model_cards/card.md"}} <= names
assert not [name for name in names if "__pycache__" in name or name.startswith(("tests/", "docs/", "scripts/"))]
data = SpaceCard.load("org/app").data.to_dict()
assert data["models"] == data["preload_from_hub"] == ["org/a", "org/b"] and data["app_file"] == "app.py"
upload_file(path_or_fileobj=b"old", path_in_repo="genrec_hub/gone.py", repo_id="org/app", repo_type="space")
upload_file(path_or_fileobj=b"own", path_in_repo="notes.txt", repo_id="org/app", repo_type="space")
assert deploy_space.main(["org/app"]) == 0
names = set(list_repo_files("org/app", repo_type="space"))
assert "genrec_hub/gone.py" not in names and "notes.txt" in names
assert len(list_repo_commits("org/app", repo_type="space")) == 5
"""
    clients.run(code, env("home"))
