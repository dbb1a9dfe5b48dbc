"""genrec_hub: generative recommendation on the Hugging Face stack.

Importing the package is cheap: names load on first use, and the Auto classes and the pipeline task register themselves as soon as
transformers' own auto classes are there.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .catalog import Catalog, Item, Recommendation
    from .configuration_idgenrec import IDGenRecConfig
    from .configuration_sasrec import SASRecConfig
    from .configuration_setrec import SETRecConfig
    from .domain import Domain
    from .evaluation import evaluate
    from .history import History
    from .modeling_idgenrec import IDGenRecModel
    from .modeling_sasrec import SASRecModel
    from .modeling_setrec import SETRecModel
    from .pipeline import RecommendationPipeline, embedded, load
    from .processing_idgenrec import IDGenRecProcessor
    from .processing_setrec import SETRecProcessor

__version__ = "0.1.0"

_HOMES = {  # a system is a Config, a Model and, where it recommends, a Processor of the same name: `_register` finds them here
    "Catalog": "catalog",
    "Domain": "domain",
    "History": "history",
    "IDGenRecConfig": "configuration_idgenrec",
    "IDGenRecModel": "modeling_idgenrec",
    "IDGenRecProcessor": "processing_idgenrec",
    "Item": "catalog",
    "Recommendation": "catalog",
    "RecommendationPipeline": "pipeline",
    "SASRecConfig": "configuration_sasrec",
    "SASRecModel": "modeling_sasrec",
    "SETRecConfig": "configuration_setrec",
    "SETRecModel": "modeling_setrec",
    "SETRecProcessor": "processing_setrec",
    "embedded": "pipeline",
    "evaluate": "evaluation",
    "load": "pipeline",
}

__all__ = [  # noqa: RUF022 - one name a line, sorted without regard to case
    "Catalog",
    "Domain",
    "embedded",
    "evaluate",
    "History",
    "IDGenRecConfig",
    "IDGenRecModel",
    "IDGenRecProcessor",
    "Item",
    "load",
    "Recommendation",
    "RecommendationPipeline",
    "SASRecConfig",
    "SASRecModel",
    "SETRecConfig",
    "SETRecModel",
    "SETRecProcessor",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'genrec_hub' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_AUTO = "transformers.models.auto.configuration_auto"
"""The one module that all of transformers' auto classes and `pipeline` import: AutoModel needs no other auto class."""


def _register() -> None:
    """Registers configurations, models, processors and the pipeline task with transformers; once."""
    from transformers import AutoConfig, AutoModel, AutoProcessor
    from transformers.pipelines import PIPELINE_REGISTRY

    from .checkpoint import TASK
    from .pipeline import RecommendationPipeline, embedded

    for name in (name.removesuffix("Config") for name in _HOMES if name.endswith("Config")):
        config, model = __getattr__(f"{name}Config"), __getattr__(f"{name}Model")
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        if f"{name}Processor" in _HOMES:
            AutoProcessor.register(config, __getattr__(f"{name}Processor"), exist_ok=True)
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        try:
            default = {"model": (str(embedded()), "main")}
        except KeyError:
            default = None
        PIPELINE_REGISTRY.register_pipeline(TASK, RecommendationPipeline, pt_model=AutoModel, default=default, type="text")


class _RegisterLater(MetaPathFinder):
    """Waits for transformers' auto classes, and until no module of transformers or ours is half imported; then registers and is gone."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in ("transformers", __name__):
            return None
        sys.meta_path.remove(self)
        try:
            spec = find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            spec.loader = _Announcing(spec.loader)
        return spec


class _Announcing(Loader):
    """A loader that tries to register after its module has been executed."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        _depth.append(module.__name__)
        try:
            self.loader.exec_module(module)
        finally:
            _depth.pop()
        _register_when_ready()


_depth: list[str] = []
"""Modules that are being executed right now, outermost first."""


def _register_when_ready() -> None:
    finder = next((finder for finder in sys.meta_path if isinstance(finder, _RegisterLater)), None)
    if finder is not None and not _depth and _AUTO in sys.modules:
        sys.meta_path.remove(finder)
        _register()


if _AUTO in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _RegisterLater())
