"""The demo: a history in plain words in, recommendations with their identifiers out; a Gradio app with three named endpoints.

`launch()` is what `app.py` and `genrec demo` call; `build_demo()` gives the bare `gr.Blocks`. Neither imports torch: a model is
loaded at its first use, which `launch` brings forward in a background thread.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from threading import Thread
from typing import Literal, cast

import gradio as gr
from gradio.utils import get_space

from . import demo_cards as cards
from .demo_catalogue import CatalogueTab
from .demo_compare import compare_tab
from .demo_endpoints import endpoints
from .demo_heaps import share_heaps
from .demo_learn import learn_tab
from .demo_models import PRETRAINED, Lazy, Loaders, lazy_models, open_model, warm_up
from .demo_panel import html
from .demo_recommend import recommend_tab
from .demo_texts import ABOUT, API_HELP, model_card, snippets
from .demo_theme import SCRIPT, STYLES, theme
from .demo_uploads import MAX_BYTES


def launch(models: Loaders | str | None = None, **options: object) -> tuple[object, str, str]:
    """Builds the demo, serves it, and loads the models ahead of the first question.

    Args:
        models: short name -> function that loads the recommender, or the name or folder of one checkpoint; the embedded ones when left out.
        **options: what `gr.Blocks.launch` takes; the address is left to GRADIO_SERVER_NAME and GRADIO_SERVER_PORT.

    Returns:
        What `gr.Blocks.launch` returns: the app, its local address, its public address.
    """
    share_heaps()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch is not there yet: visitors share the cores, an answer takes one
    lazy = lazy_models({models: partial(open_model, models)} if isinstance(models, str) else models)
    demo = build_demo(lazy)
    demo.queue(default_concurrency_limit=4, max_size=200)
    settings: dict[str, object] = {
        "theme": theme(),
        "css": STYLES,
        "js": SCRIPT,
        "max_file_size": MAX_BYTES,
        "mcp_server": find_spec("mcp") is not None,
        "footer_links": ["api", "settings"],
        "run_history": False,
        "ssr_mode": False,
        "state_session_capacity": 200,
    }
    # Gradio asks its own server whether it answers, and gives up where imports keep the interpreter busy: models come after that.
    served = demo.launch(**(settings | options | {"prevent_thread_lock": True}))  # type: ignore[arg-type]
    Thread(target=warm_up, args=(list(lazy.values()),), daemon=True, name="warm-up").start()
    if not options.get("prevent_thread_lock"):
        demo.block_thread()
    return cast(tuple[object, str, str], served)


def build_demo(models: Loaders | None = None) -> gr.Blocks:
    """Builds all of the interface.

    Args:
        models: short name -> function that loads the recommender, called at the first use only; the first one is preselected.

    Returns:
        The app, not yet launched; theme, styles and script go to its `launch` (see `launch` here).
    """
    lazy = lazy_models(models)
    with gr.Blocks(title="genrec_hub: generative recommendations", analytics_enabled=None, delete_cache=(600, 600)) as demo:
        html(cards.hero())
        with gr.Tab("Recommend", id="recommend"):
            first = recommend_tab(demo, lazy)
        with gr.Tab("Your catalogue", id="catalogue"):
            CatalogueTab(demo, lazy)
        with gr.Tab("Compare", id="compare") as tab:
            compare_tab(tab, lazy, first)
        with gr.Tab("Learn", id="learn") as tab:
            learn_tab(tab, lazy, first)
        with gr.Tab("API", id="api") as tab:
            _api_tab(tab, next(iter(lazy)))
        with gr.Tab("About", id="about"):
            _about_tab(lazy)
        endpoints(lazy)
    return cast(gr.Blocks, demo)


def _api_tab(tab: gr.Tab, model: str) -> None:
    gr.Markdown(API_HELP)
    address = gr.Textbox("", visible=False)
    languages: Sequence[tuple[str, Literal["python", "shell", "json"]]] = [
        ("Python, against this server", "python"),
        ("curl, against this server", "shell"),
        ("Python, on your own machine", "python"),
        ("MCP configuration, for agents", "json"),
    ]
    blocks = [gr.Code(snippet, language=kind, label=label, interactive=False, wrap_lines=True, show_line_numbers=False)
              for (label, kind), snippet in zip(languages, snippets("http://127.0.0.1:7860/", model), strict=True)]  # fmt: skip
    js = "() => [location.origin + location.pathname]"
    quiet = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    tab.select(lambda url: list(snippets(url, model)), address, blocks, js=js, **quiet)


def _about_tab(lazy: Mapping[str, Lazy]) -> None:
    gr.Markdown(ABOUT, elem_classes="gh-about")
    for name in lazy:
        card = PRETRAINED / name / "README.md"
        if card.is_file():
            with gr.Accordion(f"Model card: {name}", open=False):
                gr.Markdown(model_card(card.read_text(encoding="utf-8")), elem_classes="gh-about")
                if (figure := card.with_name("figures") / "results.svg").is_file():
                    html(figure.read_text(encoding="utf-8"), classes="gh-figure")
    gr.DuplicateButton("Duplicate this Space", visible=get_space() is not None, elem_classes="gh-duplicate")
