"""The demo: a history in plain words in, recommendations with their identifiers out; a Gradio app with three named endpoints.

`launch()` is what `app.py` and `genrec demo` call; `build_demo()` gives the bare `gr.Blocks`. Neither imports torch: a model is
loaded at its first use, which `launch` brings forward in a background thread.
"""

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import Final, Literal, ParamSpec, TypeVar, cast

import gradio as gr
from gradio.events import api

from . import demo_cards as cards
from .catalog import Catalog
from .demo_cards import ItemFields, RecommendationFields
from .demo_models import (
    IdentifiedItem,
    Lazy,
    Loaders,
    Recommendations,
    Recommender,
    lazy_models,
    warm_up,
)
from .demo_texts import ABOUT, PERSONAS, UPLOAD_HELP, snippets
from .demo_theme import SCRIPT, STYLES, theme
from .demo_uploads import FILE_TYPES, MAX_BYTES, MAX_ROWS, read_upload

logger = logging.getLogger(__name__)

MAX_K: Final = 50
MAX_HISTORY: Final = 20_000
"""Characters of a history."""
SESSION_SECONDS: Final = 2 * 3600
"""How long an uploaded catalogue is kept in memory for its session."""
SERVER_FAULT: Final = "Something went wrong on our side; please try again."

_PICK = """element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-line]");
  if (button) trigger("click", {line: Number(button.dataset.line), title: button.dataset.title});
});"""

_SHOW = """() => {
  const results = [...document.querySelectorAll(".gh-main")].find((column) => column.offsetParent);
  if (results && window.innerWidth < 700) results.scrollIntoView({behavior: "smooth", block: "start"});
}"""


P = ParamSpec("P")
R = TypeVar("R")


def launch(models: Loaders | None = None, **options: object) -> tuple[object, str, str]:
    """Builds the demo, starts to load the first model beside it, and serves it.

    Args:
        models: short name -> function that loads the recommender; the embedded checkpoints when left out.
        **options: what `gr.Blocks.launch` takes; the address is left to GRADIO_SERVER_NAME and GRADIO_SERVER_PORT.

    Returns:
        What `gr.Blocks.launch` returns: the app, its local address, its public address.
    """
    lazy = lazy_models(models)
    Thread(target=warm_up, args=(next(iter(lazy.values())),), daemon=True, name="warm-up").start()
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
    return cast(tuple[object, str, str], demo.launch(**(settings | options)))  # type: ignore[arg-type]


def build_demo(models: Loaders | None = None) -> gr.Blocks:
    """Builds all of the interface.

    Args:
        models: short name -> function that loads the recommender, called at the first use only; the first one is preselected.

    Returns:
        The app, not yet launched; theme, styles and script go to its `launch` (see `launch` here).
    """
    lazy = lazy_models(models)
    with gr.Blocks(title="genrec_hub: generative recommendations", analytics_enabled=None, delete_cache=(600, 600)) as demo:
        _html(cards.hero())
        with gr.Tab("Recommend", id="recommend"):
            _recommend_tab(demo, lazy)
        with gr.Tab("Your catalogue", id="catalogue"):
            _catalogue_tab(lazy)
        with gr.Tab("API", id="api"):
            _api_tab(demo, next(iter(lazy)))
        with gr.Tab("About", id="about"):
            gr.Markdown(ABOUT, elem_classes="gh-about")
        _endpoints(lazy)
    return cast(gr.Blocks, demo)


# ---------------------------------------------------------------- what the endpoints and the page share


def _fault(sentence: str) -> gr.Error:
    return gr.Error(sentence, print_exception=False)


def _speaking(endpoint: Callable[P, R]) -> Callable[P, R]:
    """The endpoint with every failure as one sentence; what is no fault of the caller goes to the log."""

    @wraps(endpoint)
    def speak(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return endpoint(*args, **kwargs)
        except gr.Error:
            raise
        except ValueError as error:
            raise _fault(str(error)) from None
        except Exception:
            logger.exception("The endpoint %s failed.", endpoint.__name__)
            raise _fault(SERVER_FAULT) from None

    return speak


def _pick(lazy: Mapping[str, Lazy], model: str) -> Lazy:
    if model not in lazy:
        raise _fault(f"There is no model {str(model)[:60]!r}: the models here are {', '.join(lazy)}.")
    return lazy[model]


def _whole(k: object) -> int:
    number = int(k) if isinstance(k, int | float) and not isinstance(k, bool) and k == int(k) else 0
    if not 1 <= number <= MAX_K:
        raise _fault(f"k is {str(k)[:40]!r}: give a whole number from 1 to {MAX_K}.")
    return number


def _history(history: object) -> str:
    if not isinstance(history, str) or not history.strip():
        raise _fault("The history is empty: write at least one item, one per line.")
    if len(history) > MAX_HISTORY:
        raise _fault(f"The history has {len(history):,} characters, the limit is {MAX_HISTORY:,}: keep the latest items.")
    return history


def _recommend(pipe: Recommender, history: str, k: int, exclude_seen: bool, department: str | None = None) -> list[RecommendationFields]:
    try:
        return pipe(_history(history), top_k=_whole(k), exclude_seen=exclude_seen, department=department)
    except ValueError as error:
        raise _fault(str(error)) from None


def _upload_box(label: str, **options: object) -> gr.File:
    """A file box that hands over the path alone: as it is, `gr.File` leaves an empty temporary file behind at every use."""
    box = gr.File(label=label, **options)  # type: ignore[arg-type]
    box._process_single_file = lambda f: str(f.path)  # type: ignore[method-assign, assignment, return-value]
    return box


# ---------------------------------------------------------------- named endpoints


def _endpoints(lazy: Mapping[str, Lazy]) -> None:
    default = next(iter(lazy))

    @_speaking
    def recommend(history: str, model: str = default, k: int = 10, exclude_seen: bool = True) -> Recommendations:
        """Recommends items from the sample shop for a history of purchases written in plain words.

        Args:
            history: what was bought, one item per line, oldest first, in any words.
            model: the short name of the model.
            k: how many recommendations, 1 to 50.
            exclude_seen: leave out what the history already holds.

        Returns:
            The ranked recommendations, each with item, score, rank, the generated identifier and the item it is there because of.
        """
        return {"recommendations": _recommend(_pick(lazy, model)(), history, k, bool(exclude_seen))}

    @_speaking
    def search(query: str, k: int = 10) -> list[ItemFields]:
        """Finds items of the sample shop by title; typos and missing words are forgiven.

        Args:
            query: words of a title.
            k: how many at the most, 1 to 50.

        Returns:
            The items, best first; none when nothing is near.
        """
        if not isinstance(query, str) or not query.strip():
            raise _fault("The query is empty: give some words of a title.")
        catalog = lazy[default]().catalog
        return cast(list[ItemFields], [catalog[row].to_dict() for row, _ in catalog.search(query[:500], _whole(k))])

    @_speaking
    def identify(catalog: str, model: str = default) -> list[IdentifiedItem]:
        """Gives every item of an uploaded catalogue the identifier that the model reads it by.

        Args:
            catalog: a CSV, TSV, JSONL or Parquet file with the columns item_id and title (brand, categories, description, price if there).
            model: the short name of the model.

        Returns:
            Per item its item_id, title and identifier, in the order of the file.
        """
        pipe = _pick(lazy, model)()
        return pipe.with_catalog(read_upload(catalog)).identify()

    api(recommend, api_name="recommend", concurrency_id="model", concurrency_limit=2)
    api(search, api_name="search")
    with gr.Row(visible=False):
        file, name, out = _upload_box(label="Catalogue"), gr.Textbox(default, label="Model"), gr.JSON(label="Identifiers")
        trigger = gr.Button("Identify")
    trigger.click(identify, [file, name], out, api_name="identify", concurrency_id="index", concurrency_limit=1)


# ---------------------------------------------------------------- the page


@dataclass(frozen=True)
class _Panel:
    history: gr.Textbox
    understood: gr.HTML
    k: gr.Slider
    exclude_seen: gr.Checkbox
    department: gr.Dropdown
    button: gr.Button
    results: gr.HTML


_EMPTY: Final = cards.notice(
    "empty", "Recommendations appear here", "Write what you bought, or start from one of the examples, and press Recommend."
)


def _html(value: str, classes: str = "", js: str | None = None, min_height: int | None = None) -> gr.HTML:
    return gr.HTML(value, elem_classes=classes, js_on_load=js, min_height=min_height, apply_default_css=False)


def _history_box(placeholder: str) -> tuple[gr.Textbox, gr.HTML]:
    box = gr.Textbox(
        label="What did you buy?",
        info="One item per line, oldest first, in your own words.",
        placeholder=placeholder,
        lines=5,
        max_lines=14,
        max_length=MAX_HISTORY,
        elem_classes="gh-history",
    )
    return box, _html("", js=_PICK, classes="gh-understood")


def _controls() -> tuple[gr.Slider, gr.Checkbox, gr.Dropdown]:
    with gr.Group():
        k = gr.Slider(1, MAX_K, value=10, step=1, label="How many")
        department = gr.Dropdown([("All departments", "")], value="", label="Department")
        exclude_seen = gr.Checkbox(True, label="Hide what I already have")
    return k, exclude_seen, department


def _connect(panel: _Panel, source: gr.components.Component, find: Callable[[object], Lazy]) -> None:
    """Wires a panel; `source` holds what `find` turns into the recommender: a model's name, or the session's own catalogue."""

    def read(history: str, held: object) -> str:
        try:
            pipe = find(held)()
            return cards.understood(pipe.understand(history), pipe.catalog) if history and history.strip() else ""
        except Exception:
            logger.exception("A history could not be read.")
            return ""

    def choose(history: str, held: object, event: gr.EventData) -> str:
        line, title = event._data["line"], str(event._data["title"])
        lines = [match.line for match in find(held)().understand(history or "").matches]
        if 0 <= line < len(lines):
            lines[line : line + 1] = [title] if title else []
        elif title:
            lines.append(title)
        return "\n".join(lines)

    def answer(history: str, held: object, k: int, exclude_seen: bool, department: str) -> Iterator[str]:
        try:
            load = find(held)
            yield cards.loading(text="" if load.ready else "The model is waking up: the first answer takes a few seconds.")
            pipe = load()
            start = perf_counter()
            found = _recommend(pipe, history, k, exclude_seen, department or None)
            spent = 1000 * (perf_counter() - start)
        except gr.Error as error:
            empty = not (history or "").strip()
            yield _EMPTY if empty else cards.notice("error", "That did not work", str(error.message))
            return
        except Exception:
            logger.exception("A recommendation failed.")
            yield cards.notice("error", "That did not work", SERVER_FAULT)
            return
        if not found:
            yield cards.notice("empty", "Nothing left to recommend", "Try another department, or show what you already have.")
            return
        plural = "s" if len(found) != 1 else ""
        yield cards.results(found, f"{len(found)} recommendation{plural} out of {len(pipe.catalog):,} items in {spent:,.0f} ms")

    settings = [panel.history, source, panel.k, panel.exclude_seen, panel.department]
    panel.history.change(
        read,
        [panel.history, source],
        panel.understood,
        trigger_mode="always_last",
        api_visibility="private",
        show_progress="hidden",
    )
    panel.understood.click(choose, [panel.history, source], panel.history, api_visibility="private", show_progress="hidden")
    panel.button.click(None, js=_SHOW, api_visibility="private")
    panel.button.click(
        answer,
        settings,
        panel.results,
        trigger_mode="always_last",
        concurrency_id="model",
        concurrency_limit=2,
        api_visibility="private",
        show_progress="hidden",
    ).then(None, js=_SHOW, api_visibility="private")


def _department_choices(catalog: Catalog) -> gr.Dropdown:
    return gr.Dropdown([("All departments", "")] + [(name, name) for name in catalog.departments], value="")


def _recommend_tab(demo: gr.Blocks, lazy: Mapping[str, Lazy]) -> None:
    with gr.Row(elem_classes="gh-panel"):
        with gr.Column(scale=5, min_width=300, elem_classes="gh-side"):
            with gr.Row(elem_classes="gh-personas"):
                _html('<p class="gh-lead">Start from an example</p>', "gh-lead")
                personas = {name: gr.Button(name, size="sm", variant="secondary") for name in PERSONAS}
            history, understood = _history_box("argan oil shampoo\nionic hair dryer\nsomething against frizz")
            button = gr.Button("Recommend", variant="primary", elem_classes="gh-go")
            k, exclude_seen, department = _controls()
            model = gr.Dropdown(list(lazy), value=next(iter(lazy)), label="Model")
        with gr.Column(scale=7, min_width=300, elem_classes="gh-main"):
            results = _html(_EMPTY, classes="gh-results")
    panel = _Panel(history, understood, k, exclude_seen, department, button, results)
    _connect(panel, model, lambda name: _pick(lazy, str(name)))
    for name, persona in personas.items():
        persona.click(partial(str, PERSONAS[name]), None, history, api_visibility="private", show_progress="hidden", queue=False).then(
            None, js="() => document.querySelector('.gh-panel button.gh-go').click()", api_visibility="private"
        )

    def departments(name: str) -> gr.Dropdown:
        try:
            return _department_choices(_pick(lazy, name)().catalog)
        except Exception:
            logger.exception("The departments of %r could not be listed.", name)
            return gr.Dropdown()

    gr.on([demo.load, model.change], departments, model, department, api_visibility="private", show_progress="hidden")


def _catalogue_tab(lazy: Mapping[str, Lazy]) -> None:
    held = gr.State(None, time_to_live=SESSION_SECONDS)
    with gr.Row():
        with gr.Column(scale=5, min_width=300):
            gr.Markdown(UPLOAD_HELP.format(rows=MAX_ROWS, megabytes=MAX_BYTES // 2**20))
        with gr.Column(scale=7, min_width=300):
            file = _upload_box(label="Your items", file_types=FILE_TYPES, height=150, elem_classes="gh-upload")
            model = gr.Dropdown(list(lazy), value=next(iter(lazy)), label="Model", visible=len(lazy) > 1)
    waiting = "Drop a file above. It is indexed on this machine: a thousand items take about ten seconds."
    status = _html(cards.notice("empty", "No catalogue yet", waiting), classes="gh-status", min_height=70)
    with gr.Row(elem_classes="gh-panel", visible=False) as shelf:
        with gr.Column(scale=5, min_width=300, elem_classes="gh-side"):
            history, understood = _history_box("")
            offers = _html("", js=_PICK)
            button = gr.Button("Recommend from my catalogue", variant="primary", elem_classes="gh-go")
            k, exclude_seen, department = _controls()
            forget = gr.Button("Forget my catalogue", size="sm", variant="secondary")
        with gr.Column(scale=7, min_width=300, elem_classes="gh-main"):
            results = _html(_EMPTY, classes="gh-results")
    panel = _Panel(history, understood, k, exclude_seen, department, button, results)

    def find(pipe: object) -> Lazy:
        if not isinstance(pipe, Lazy):
            raise _fault("This session holds no catalogue any more: please upload the file again.")
        return pipe

    def index(path: str | None, name: str, progress: gr.Progress = gr.Progress()) -> dict[object, object]:  # noqa: B008
        if path is None:
            return {status: gr.skip()}
        shown = Path(path).name
        start = perf_counter()
        try:
            progress(0, desc="Reading the file")
            catalog = read_upload(path)
            pipe = _pick(lazy, name)().with_catalog(
                catalog, progress=lambda done, total: progress((done, total), desc="Reading every item", unit="items")
            )
        except (gr.Error, ValueError) as error:
            return {file: None, status: cards.notice("error", "This file cannot be used", str(getattr(error, "message", error)))}
        except Exception:
            logger.exception("An uploaded catalogue could not be indexed.")
            return {file: None, status: cards.notice("error", "This file cannot be used", SERVER_FAULT)}
        own = Lazy(lambda: pipe)
        own()
        offered = random.Random(0).sample(catalog.titles, min(6, len(catalog)))
        return {
            file: None,
            held: own,
            status: cards.catalogue_summary(shown, len(catalog), len(catalog.departments), perf_counter() - start),
            shelf: gr.Row(visible=True),
            history: gr.Textbox("", placeholder="\n".join(offered[:3])),
            understood: "",
            offers: cards.suggestions(offered),
            department: _department_choices(catalog),
            results: _EMPTY,
        }

    def drop() -> dict[object, object]:
        text = "Nothing of it is left in this session."
        return {held: None, shelf: gr.Row(visible=False), status: cards.notice("info", "Forgotten", text), history: "", results: _EMPTY}

    _connect(panel, held, find)
    everything = [file, held, status, shelf, history, understood, offers, department, results]
    file.upload(
        index, [file, model], everything, show_progress_on=status, concurrency_id="index", concurrency_limit=1, api_visibility="private"
    )
    forget.click(drop, None, [held, shelf, status, history, results], api_visibility="private", show_progress="hidden")

    def offer(history: str, event: gr.EventData) -> str:
        return "\n".join([*(history or "").rstrip().splitlines(), str(event._data["title"])])

    offers.click(offer, history, history, api_visibility="private", show_progress="hidden")


def _api_tab(demo: gr.Blocks, model: str) -> None:
    gr.Markdown("The same answers for programs. Three named endpoints, typed JSON, one clear sentence on bad input.")
    address = gr.Textbox("", visible=False)
    languages: Sequence[tuple[str, Literal["python", "shell", "json"]]] = [
        ("Python, against this server", "python"),
        ("curl, against this server", "shell"),
        ("Python, on your own machine", "python"),
        ("MCP configuration", "json"),
    ]
    blocks = [gr.Code(snippet, language=kind, label=label, interactive=False, wrap_lines=True)
              for (label, kind), snippet in zip(languages, snippets("http://127.0.0.1:7860/", model), strict=True)]  # fmt: skip
    js = "() => [location.origin + location.pathname]"
    demo.load(lambda url: list(snippets(url, model)), address, blocks, js=js, api_visibility="private", show_progress="hidden", queue=False)
