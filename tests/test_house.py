"""The README's map is the house: every module is named, every name is a file."""

import json
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_readme_names_every_file():
    tree = README.split("```\napp.py", 1)[1].split("```", 1)[0]
    for path in [*ROOT.glob("genrec_hub/*.py"), *ROOT.glob("scripts/*.py")]:
        assert path.name in tree, f"README's tree does not name {path.name}"


def test_every_file_the_readme_names_is_there():
    tree = "app.py" + README.split("```\napp.py", 1)[1].split("```", 1)[0]
    names = set(re.findall(r"[\w/]+\.(?:py|txt|css|js|jsonl|md)\b", tree))
    for name in names:
        places = [*ROOT.glob(name), *ROOT.glob(f"genrec_hub/{name}"), *ROOT.glob(f"scripts/{name}")]
        assert places, f"README names {name}, which is not there"


def test_the_speed_table_is_the_benchmarks(script, monkeypatch):
    """The table in the README is what docs/benchmark.json renders to."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    result = ROOT / "docs" / "benchmark.json"
    shown = README.partition("<!-- benchmark:begin -->\n")[2].partition("\n<!-- benchmark:end -->")[0]
    assert shown == script("benchmark").markdown(json.loads(result.read_text()))


def test_space_header_and_requirements_agree():
    header = README.split("---")[1]
    gradio = re.search(r"sdk_version: (\S+)", header)[1]
    assert f"gradio[mcp]=={gradio}" in (ROOT / "requirements.txt").read_text()
    python = re.search(r'python_version: "(\S+)"', header)[1]
    least = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    assert tuple(map(int, python.split("."))) >= tuple(map(int, least.split(".")))


def test_embedded_checkpoints_are_small_and_safe():
    for folder in (ROOT / "genrec_hub" / "pretrained").iterdir():
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= 30 * 2**20
        assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl", ".pth")]
