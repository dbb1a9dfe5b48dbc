"""Publishes the app as a Space on the Hub: made if it is missing, brought up to date if it is there, in one commit.

    python scripts/deploy_space.py org/name
    python scripts/deploy_space.py org/name --private --models org/setrec-beauty,org/idgenrec-beauty
    python scripts/deploy_space.py org/name --hardware zero-a10g          ZeroGPU; the free CPU otherwise

What goes up is what `python app.py` needs: the app, the package with its embedded checkpoints, the card templates, the requirements. The
header of README.md is the Space's configuration; `--models` adds them to it: they are fetched while the Space is built, and the app
offers them before the embedded ones. On ZeroGPU answers are computed on the lent GPU (genrec_hub/demo_gpu.py), and torch comes with CUDA.
"""

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi

from genrec_hub.hub import Target, upload

REPOSITORY = Path(__file__).resolve().parent.parent
FILES = ("app.py", "requirements.txt", "README.md", "LICENSE", "genrec_hub", "model_cards")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc")
MANAGED = ("*.py", "requirements.txt", "model_cards/*", *(f"genrec_hub{'/*' * depth}" for depth in range(1, 6)))
"""What goes from the Space when it is no longer here."""
HEADER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


def configuration(readme: str) -> dict[str, Any]:
    """The header of a Space's README.

    Raises:
        ValueError: when there is none.
    """
    found = HEADER.match(readme)
    if found is None:
        raise ValueError("README.md has no header between --- lines: it is the Space's configuration.")
    return dict(yaml.safe_load(found[1]))


def configure(readme: str, models: list[str]) -> str:
    """Names models in the header and has them fetched while the Space is built."""
    header = configuration(readme)
    if models:
        header |= {"models": models, "preload_from_hub": list(models)}
    text = yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=140)
    return HEADER.sub(lambda _: f"---\n{text}---\n", readme, count=1)


def requirements(text: str, hardware: str | None) -> str:
    """The requirements for some hardware: without the index of CPU wheels where there is a GPU."""
    lines = text.splitlines(keepends=True)
    on_cpu = hardware is None or hardware.startswith("cpu")
    return "".join(line for line in lines if on_cpu or not line.startswith("--extra-index-url"))


def assemble(folder: Path, models: list[str], hardware: str | None = None) -> None:
    """Copies what the Space runs into a folder."""
    for name in FILES:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=LEFT_OUT)
        else:
            shutil.copyfile(source, folder / name)
    (folder / "requirements.txt").write_text(requirements((REPOSITORY / "requirements.txt").read_text(encoding="utf-8"), hardware))
    (folder / "README.md").write_text(configure((REPOSITORY / "README.md").read_text(encoding="utf-8"), models), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line and publishes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", help="org/name")
    parser.add_argument("--models", default="", help="comma-separated Hub names")
    parser.add_argument("--private", action="store_true", default=None)
    parser.add_argument("--hardware", help="ask for other hardware than the free CPU, e.g. zero-a10g")
    parser.add_argument("--message", default="Update the app")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as made:
        try:
            assemble(Path(made), [name.strip() for name in chosen.models.split(",") if name.strip()], chosen.hardware)
            done = upload(Path(made), Target(chosen.space, "space", chosen.private), MANAGED, chosen.message)
            if chosen.hardware:
                HfApi().request_space_hardware(chosen.space, chosen.hardware)
        except (ValueError, OSError) as error:
            print(error, file=sys.stderr)
            return 1
    print(done.commit_url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
