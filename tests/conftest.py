"""What many tests share: one thread, no network, the real data's folder, a small made-up domain."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import settings

from genrec_hub.domain import Domain

torch.set_num_threads(1)
settings.register_profile("quick", max_examples=60, deadline=None)
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
def prepare_data() -> ModuleType:
    """scripts/prepare_data.py as a module."""
    spec = importlib.util.spec_from_file_location("prepare_data", REPOSITORY / "scripts" / "prepare_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["prepare_data"] = module
    spec.loader.exec_module(module)
    return module


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
