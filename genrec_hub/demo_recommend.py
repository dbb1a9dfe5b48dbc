"""The tab that a visitor meets first: a history, examples to start from, the model that answers, and a link to share it by."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Final
from urllib.parse import parse_qs

import gradio as gr

from .demo_models import Lazy, labels
from .demo_panel import Chosen, Panel, connect, department_choices, html, lay_out
from .demo_requests import MAX_HISTORY, MAX_K, pick
from .demo_texts import MODEL_HELP, PERSONAS

logger = logging.getLogger(__name__)

BOTH: Final = "side-by-side"
STORAGE: Final = "genrec_hub"
"""Key of the browser's storage; fixed, so that a history survives a restart of the server as well."""
START: Final = {"history": "", "model": "", "k": 10, "exclude_seen": True, "department": ""}

_KEEP = "(history, model, k, exclude_seen, department) => [{history, model, k, exclude_seen, department}]"
_ARRIVE = "(kept, _, typed) => [kept, location.hash.length > 1 ? location.hash : location.search, typed]"
_ANSWER = """(back) => {
  const url = new URL(location.href);
  if (url.hash || url.searchParams.has("history")) {
    url.hash = "";
    ["history", "model"].forEach((name) => url.searchParams.delete(name));
    window.history.replaceState(null, "", url);
  }
  if (back) document.querySelector(".gh-panel button.gh-go")?.click();
}"""
_GO = "() => document.querySelector('.gh-panel button.gh-go').click()"
_SHARE = """async (history, model) => {
  const parameters = new URLSearchParams({history, model}), link = location.origin + location.pathname + "#" + parameters;
  const said = document.querySelector(".gh-said");
  try { await navigator.clipboard.writeText(link); said.textContent = "Link copied"; }
  catch { said.textContent = link; }
}"""


def recommend_tab(demo: gr.Blocks, lazy: Mapping[str, Lazy]) -> Panel:
    """Builds the tab; its panel's history and answers are what the other tabs start from."""
    names = labels(lazy)
    link, shelf = gr.Textbox(visible=False), gr.Textbox(visible=False)
    kept = gr.BrowserState(START, storage_key=STORAGE, secret=STORAGE)
    panel = lay_out("Recommend", "argan oil shampoo\nionic hair dryer\nsomething against frizz")
    with panel.above:
        with gr.Row(elem_classes="gh-personas"):
            html('<p class="gh-lead">Start from an example</p>', "gh-lead")
            personas = {name: gr.Button(name, size="sm", variant="secondary") for name in PERSONAS}
        models = [(label, name) for name, label in names.items()] + ([("Side by side", BOTH)] if len(names) > 1 else [])
        model = gr.Radio(models, value=models[0][1], label="Model", info=MODEL_HELP, visible=len(models) > 1, elem_classes="gh-model")
    with panel.below, gr.Row(elem_classes="gh-links"):
        share = gr.Button("Copy link to this history", size="sm", variant="secondary")
        html('<p class="gh-said" role="status"></p>')

    def find(name: object) -> Chosen:
        if name == BOTH:
            return [(names[one], load) for one, load in lazy.items()]
        return [(names.get(str(name), str(name)), pick(lazy, str(name)))]

    connect(panel, "shop", model, find)
    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    history = panel.history
    for name, persona in personas.items():
        persona.click(partial(str, PERSONAS[name]), None, history, queue=False, **quiet).then(None, js=_GO, api_visibility="private")
    share.click(None, [history, model], None, js=_SHARE, api_visibility="private")

    def arrive(before: object, address: str, typed: str) -> dict[object, object]:
        """Brings back what was there, and never writes over what is being typed already."""
        values = [value for _, value in models]
        wish = wanted(before, address, values)
        if wish == wanted(None, "", values) or (typed or "").strip():
            return {link: ""}
        return {
            link: "back" if wish["history"] else "",
            history: wish["history"],
            model: wish["model"],
            panel.k: wish["k"],
            panel.exclude_seen: wish["exclude_seen"],
            shelf: wish["department"],
        }

    def departments(name: str, wish: str, shown: bool = False) -> gr.Dropdown:
        try:
            return department_choices(find(name)[0][1]().catalog, wish, shown)
        except Exception:
            logger.exception("The departments of %r could not be listed.", name)
            return gr.Dropdown()

    everything = [history, model, panel.k, panel.exclude_seen, panel.department]
    back = demo.load(arrive, [kept, link, history], [*everything, shelf, link], js=_ARRIVE, queue=False, **quiet)
    back.then(departments, [model, shelf], panel.department, **quiet).then(None, link, None, js=_ANSWER, api_visibility="private")
    model.change(
        partial(departments, shown=True), [model, panel.department], panel.department, **quiet
    )  # each model may have a catalogue of its own
    gr.on([one.change for one in everything], None, everything, kept, js=_KEEP, api_visibility="private")
    return panel


def wanted(before: object, address: str, models: list[str]) -> dict[str, object]:
    """What a visitor comes back to: the link's history, else what the browser kept; whatever is not valid is left at its start.

    Args:
        before: what the browser kept.
        address: the part of the address after `#` or `?`, such as `#history=tea%0Acup&model=setrec-foundation`.
        models: values of the model switch.
    """
    kept = {**START, **(before if isinstance(before, dict) else {})}
    asked = {name: values[-1] for name, values in parse_qs((address or "").lstrip("#?")[: 4 * MAX_HISTORY]).items()}
    if asked.get("history"):
        kept = {**START, "model": kept["model"], **{name: asked[name] for name in ("history", "model") if name in asked}}
    k = kept["k"]
    return {
        "history": str(kept["history"] or "")[:MAX_HISTORY],
        "model": kept["model"] if kept["model"] in models else models[0],
        "k": k if isinstance(k, int) and not isinstance(k, bool) and 1 <= k <= MAX_K else START["k"],
        "exclude_seen": kept["exclude_seen"] if isinstance(kept["exclude_seen"], bool) else True,
        "department": str(kept["department"] or ""),
    }
