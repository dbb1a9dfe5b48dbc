"""Launches the demo: `python app.py`, and the entry point of the Space."""

import gc
import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

if __name__ == "__main__":
    gc.disable()  # imports make a million objects that stay; `launch` switches collection on again once the model is warm
    from genrec_hub.demo import launch

    launch()
