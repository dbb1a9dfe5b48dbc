"""ZeroGPU, with a stand-in for `spaces` that does what the real decorator does: fork, pickle arguments and answer, forget the rest."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the demo extra is not installed")

from genrec_hub.demo_models import default_models, space_models
from genrec_hub.timing import clocked, hear, stage

ROOT = Path(__file__).parent.parent
SPACES = """
import multiprocessing, os, pickle
asked = []
def GPU(duration):
    def decorate(task):
        def lent(*arguments, **named):
            asked.append((task.__name__, duration, os.getpid()))
            packed = pickle.dumps((arguments, named))
            mine, other = multiprocessing.Pipe()
            def work():
                given = pickle.loads(packed)
                other.send_bytes(pickle.dumps((os.getpid(), task(*given[0], **given[1]))))
            process = multiprocessing.get_context("fork").Process(target=work)
            process.start()
            assert mine.poll(120), "the process with the GPU does not answer"
            there, answer = pickle.loads(mine.recv_bytes())
            process.join()
            assert there != os.getpid()
            return answer
        return lent
    return decorate
"""
CODE = """
import json
import spaces
import genrec_hub
from genrec_hub.demo_gpu import Lent
from genrec_hub.demo_models import lazy_models, warm_up
from genrec_hub.demo_panel import ask, shown, traced
lazy = lazy_models(None)
warm_up(lazy.values())
assert spaces.asked == [], "a GPU was lent to nobody"
history = "argan oil shampoo\\nionic hair dryer"
for name, load in lazy.items():
    pipe, plain = load(), genrec_hub.load(name)
    assert isinstance(pipe, Lent)
    before = len(spaces.asked)
    one = ask(name, pipe, history, 3, True, None)
    assert [task for task, seconds, _ in spaces.asked[before:]] == ["_compute"] and spaces.asked[-1][1] <= 60
    assert one.recommendations == plain(history, top_k=3)
    assert "read" in one.times and sum(one.times.values()) <= one.seconds
    assert shown(one, "").count('<li class="gh-card">') == 3
    assert "Time:" in traced(one, "")
    assert str(pipe.model.device) == "cpu" and pipe.catalog == plain.catalog
    try:
        pipe(history, department="Nowhere")
    except ValueError as error:
        assert "Nowhere" in str(error)
    else:
        raise AssertionError("no such department, and no word of it")
    before = len(spaces.asked)
    own = pipe.with_catalog(genrec_hub.Catalog.from_items([{"item_id": "1", "title": "Hair mask"}, {"item_id": "2", "title": "Tent"}]))
    assert len(own(history)) == 2 and len(spaces.asked) == before
print(json.dumps(len(spaces.asked)))
"""


def run(code: str, *path: Path) -> str:
    settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "GENREC_CACHE": str(path[0] / "vectors") if path else ""}
    environment = {**os.environ, **settings, "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_answers_come_from_the_process_that_has_the_gpu(tmp_path: Path) -> None:
    (tmp_path / "spaces.py").write_text(SPACES)
    assert json.loads(run(CODE, tmp_path).splitlines()[-1]) >= 8


def test_without_spaces_nothing_changes() -> None:
    code = "import sys; sys.modules['spaces'] = None; from genrec_hub.demo_gpu import GPU, lend; print(GPU, lend('m', sys) is sys)"
    assert run(code).strip() == "None True"


def test_on_other_hardware_the_decorator_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "spaces.py").write_text("def GPU(duration):\n    return lambda task: task\n")
    code = """
import genrec_hub
from genrec_hub.demo_models import open_model
pipe = open_model("setrec-foundation")
assert type(pipe).__name__ == "Lent"
assert pipe("coffee", top_k=2) == genrec_hub.load()("coffee", top_k=2)
assert pipe.usual("coffee") and pipe.nearest("coffee")
"""
    run(code, tmp_path)


def test_stages_of_another_process_are_heard() -> None:
    with clocked() as times:
        with stage("read"):
            pass
        hear({"read": 1.0, "search": 2.0})
    assert times["read"] >= 1
    assert times["search"] == 2
    hear({"read": 1.0})


def test_a_space_offers_the_models_that_its_readme_names(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    assert space_models(readme).keys() == default_models().keys()
    readme.write_text("---\ntitle: a\nmodels: [org/a, org/b]\n---\n# A\n")
    assert list(space_models(readme)) == ["org/a", "org/b", *default_models()]
    for text in ("# no header", "---\ntitle: a\n---\n# A\n"):
        readme.write_text(text)
        assert list(space_models(readme)) == list(default_models())
    assert list(space_models(ROOT / "README.md")) == list(default_models())
