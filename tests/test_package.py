import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import genrec_hub

PACKAGE = Path(genrec_hub.__file__).parent
# design.md's list of files; a module imports only from above itself.
ORDER = """
timing products text tables titles checkpoint catalog history domain fusion downloads sources metrics processes
static_encoder semantic spelling trie own_words decoding beam_search phrases identifiers set_attention grounding backbones
configuration_sasrec modeling_sasrec configuration_setrec semantic_tokenizer modeling_setrec set_labels processing_setrec
prompts copying configuration_idgenrec modeling_idgenrec writing processing_idgenrec
pipeline batches training recipes training_idgenrec recipes_idgenrec finetuning baselines evaluation cards hub options cli __main__
demo_heaps demo_texts demo_theme demo_uploads demo_tables demo_cards demo_details demo_pictures demo_gpu demo_models demo_requests
demo_endpoints demo_panel demo_indexing demo_downloads demo_recommend demo_catalogue demo_compare demo_learn demo
""".split()  # noqa: SIM905 - one room a line would be a page
LATE = {"cli": {"demo"}, "checkpoint": {"hub"}}
"""Further down in the list, but imported inside a function: the command line opens the demo, a model can be pushed."""


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def imports(path: Path):
    """(name, dots, stands inside `try:`, stands inside a function, is for type checkers only) of every import of a file."""

    def walk(node, tried, inside, typed):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, 0, tried, inside, typed) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                names = [child.module] if child.module else [alias.name for alias in child.names]
                yield from ((name, child.level, tried, inside, typed) for name in names)
            checking = isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"
            yield from walk(
                child,
                tried or isinstance(child, ast.Try),
                inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef),
                typed or checking,
            )

    yield from walk(ast.parse(path.read_text()), False, False, False)


MODULES = sorted(path for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def test_importing_is_cheap():
    heavy = ["torch", "transformers", "gradio", "faiss", "datasets", "sentence_transformers", "numpy", "pyarrow"]
    out = python(
        f"import sys, time; t = time.process_time(); import genrec_hub; print([m for m in {heavy} if m in sys.modules])\n"
        "print(time.process_time() - t)"
    )
    loaded, seconds = out.splitlines()
    assert loaded == "[]"
    assert float(seconds) < 0.3


def test_public_names():
    assert sorted(genrec_hub.__all__, key=str.casefold) == genrec_hub.__all__
    wanted = {"Catalog", "Domain", "History", "Item", "Recommendation", "RecommendationPipeline", "SASRecConfig", "SASRecModel"}
    wanted |= {"SETRecConfig", "SETRecModel", "SETRecProcessor", "embedded", "evaluate", "load"}
    assert wanted <= set(genrec_hub.__all__)
    for name in genrec_hub.__all__:
        assert getattr(genrec_hub, name).__name__ == name
        assert name in dir(genrec_hub)
    with pytest.raises(AttributeError, match="no attribute 'Catalogue'"):
        _ = genrec_hub.Catalogue


FIRST = {
    "genrec_hub first": "import genrec_hub\nfrom transformers import AutoModel",
    "transformers first": "from transformers import AutoModel\nimport genrec_hub",
    "a model file first": "from genrec_hub.modeling_setrec import SETRecModel\nfrom transformers import AutoModel",
    "every public name first": "import genrec_hub as g\n[getattr(g, name) for name in g.__all__]\nfrom transformers import AutoModel",
    "a backbone first": "from transformers import PreTrainedModel, Qwen3Config\nimport genrec_hub\nfrom transformers import AutoModel",
    "only the config": "import genrec_hub\nfrom transformers import AutoConfig\nAutoModel = None",
    "only the processor": "import genrec_hub\nfrom transformers import AutoProcessor\nAutoModel = None",
    "only the pipeline": "import genrec_hub\nfrom transformers import pipeline\nAutoModel = None",
}
CHECK = """
if AutoModel is not None:
    assert type(AutoModel.from_pretrained(folder)).__name__ == "SETRecModel"
elif "AutoConfig" in globals():
    assert type(AutoConfig.from_pretrained(folder)).__name__ == "SETRecConfig"
elif "AutoProcessor" in globals():
    assert type(AutoProcessor.from_pretrained(folder)).__name__ == "SETRecProcessor"
else:
    [answers] = pipeline("sequential-recommendation", model=folder)([["sku-03", "sku-10"]], top_k=3)
    assert [answer["rank"] for answer in answers] == [1, 2, 3]
import sys
import genrec_hub
assert not [name for name in ("gradio", "faiss", "datasets", "sentence_transformers", "peft") if name in sys.modules]
assert not [finder for finder in sys.meta_path if type(finder).__module__ == "genrec_hub"]
"""


def test_auto_classes_whichever_comes_first(tiny_setrec, processor, tmp_path):
    """Each order in a process that has imported nothing of transformers or ours (forked after others' libraries, to save time)."""
    tiny_setrec().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    code = f"""
import json, os, sys, traceback
import pyarrow.parquet, scipy.optimize, tokenizers, torch, torch._dynamo, torch.distributed.checkpoint, torch.distributed.tensor
failed = {{}}
for name, order in {FIRST!r}.items():
    assert "transformers" not in sys.modules and "genrec_hub" not in sys.modules
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(read)
        try:
            exec(order + chr(10) + {CHECK!r}, {{"folder": {str(tmp_path)!r}}})
        except BaseException:
            os.write(write, traceback.format_exc()[-1500:].encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        trouble = pipe.read()
    os.wait()
    if trouble:
        failed[name] = trouble
print(json.dumps(failed))
"""
    assert json.loads(python(code).splitlines()[-1]) == {}


def test_every_file_has_its_place():
    assert {path.stem for path in MODULES} <= set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_flow_down(path):
    above = set(ORDER[: ORDER.index(path.stem)])
    for name, dots, _, inside, typed in imports(path):
        if name.split(".")[0] == "genrec_hub":
            assert dots == 0
            name, dots = name.partition(".")[2], 1
        if dots:
            assert dots == 1, f"{path.name} imports {'.' * dots}{name}: only single-dot siblings travel with a checkpoint"
            stem = name.split(".")[0]
            assert stem in above or typed or stem in ("", "__version__") or (inside and stem in LATE.get(path.stem, ())), (
                f"{path.name} imports {name}"
            )


TRAVELLING = [path for path in MODULES if path.stem.split("_")[0] in ("configuration", "modeling", "processing")]


def reached(path: Path) -> set[Path]:
    """The file and every sibling that it imports, and they; all of them are copied beside a checkpoint."""
    known, fresh = set(), {path}
    while fresh:
        known |= fresh
        fresh = {PACKAGE / f"{name}.py" for own in fresh for name, dots, *_ in imports(own) if dots == 1} - known
    return known


@pytest.mark.parametrize("path", TRAVELLING, ids=lambda path: path.stem)
def test_what_travels_with_a_checkpoint_reaches_little(path):
    """Outside `try:` torch, transformers and what it brings, numpy and the standard library; processors pyarrow too."""
    allowed = {"torch", "transformers", "tokenizers", "safetensors", "numpy", "huggingface_hub", *sys.stdlib_module_names}
    if path.stem.startswith("processing"):
        allowed.add("pyarrow")
    for own in reached(path):
        for name, dots, tried, _, _ in imports(own):  # the loader looks into TYPE_CHECKING blocks too
            assert dots or tried or name.split(".")[0] in allowed, f"{own.name} imports {name}"
    if path.stem.startswith("modeling"):
        assert not {"history", "semantic", "hub"} & {own.stem for own in reached(path)}
