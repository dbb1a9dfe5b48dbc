"""Launches the demo: `python app.py`, and the entry point of the Space."""

import contextlib
import gc
import os
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

if __name__ == "__main__":
    gc.disable()  # imports make a million objects that stay; `launch` switches collection on again once the model is warm
    with contextlib.suppress(ImportError):
        import spaces  # noqa: F401 - on ZeroGPU it has to come before torch
    from genrec_hub.demo import launch
    from genrec_hub.demo_models import space_models

    launch(space_models(Path(__file__).with_name("README.md")))
