"""Launches the demo: `python app.py`, and the entry point of the Space."""

import gc
import inspect
import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


def _import_gradio() -> None:
    """Imports gradio in 60 % of the time: at every import it parses its own sources to refresh stub files for editors.

    It skips that for classes without a source file, so for as long as it is imported no class has one.
    """

    def no_file(_: object) -> str:
        raise OSError("not while gradio is imported")

    getfile, inspect.getfile = inspect.getfile, no_file  # type: ignore[assignment]
    try:
        import gradio  # noqa: F401
    finally:
        inspect.getfile = getfile


if __name__ == "__main__":
    gc.disable()  # imports make a million objects that stay; `launch` switches collection on again once the model is warm
    _import_gradio()
    from genrec_hub.demo import launch

    launch()
