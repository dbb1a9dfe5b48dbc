"""A panel: what was bought on the left, what could come next on the right; the shop and an uploaded catalogue have one each."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

import gradio as gr

from . import demo_cards as cards
from . import demo_details as details
from .catalog import Catalog
from .demo_cards import RecommendationFields
from .demo_models import Lazy, Recommender
from .demo_requests import MAX_HISTORY, MAX_K, recommend, sentence_of
from .timing import clocked

logger = logging.getLogger(__name__)

SESSION_SECONDS: Final = 2 * 3600
"""How long what a visitor brought is kept in memory for the session."""
MOST_OPTIONS: Final = 6
BEAMS: Final = 20

_FOLDER = Path(__file__).parent
_CHIPS = (_FOLDER / "demo_chips.js").read_text(encoding="utf-8")
_TYPEAHEAD = (_FOLDER / "demo_typeahead.js").read_text(encoding="utf-8")

_SHOW = """() => {
  const results = [...document.querySelectorAll(".gh-main")].find((column) => column.offsetParent);
  if (results && window.innerWidth < 700) results.scrollIntoView({behavior: "smooth", block: "start"});
}"""

EMPTY: Final = cards.welcome()

Chosen = Sequence[tuple[str, Lazy]]
"""The models that answer, each with what a visitor calls it."""


@dataclass(frozen=True)
class Answer:
    """What one model said to a history."""

    name: str
    pipe: Recommender
    history: str
    recommendations: list[RecommendationFields]
    seconds: float
    times: dict[str, float]


@dataclass(frozen=True)
class Panel:
    """The components of a panel; `above` the history and `below` the settings there is room for more."""

    row: gr.Row
    above: gr.Column
    below: gr.Column
    history: gr.Textbox
    typeahead: gr.HTML
    understood: gr.HTML
    k: gr.Slider
    exclude_seen: gr.Checkbox
    department: gr.Dropdown
    button: gr.Button
    results: gr.HTML
    fold: gr.Accordion
    trace: gr.HTML
    answers: gr.State


def html(value: str, classes: str = "", js: str | None = None, min_height: int | None = None) -> gr.HTML:
    """A piece of markup."""
    return gr.HTML(value, elem_classes=classes, js_on_load=js, min_height=min_height, apply_default_css=False)


def lay_out(button: str, placeholder: str, visible: bool = True) -> Panel:
    """Makes the components of a panel; more can be put into `above` and `below`."""
    with gr.Row(elem_classes="gh-panel", visible=visible) as row:
        with gr.Column(scale=5, min_width=300, elem_classes="gh-side"):
            above = gr.Column(elem_classes="gh-above")
            history = gr.Textbox(
                label="What did you buy?",
                info="One item per line, oldest first, in your own words.",
                placeholder=placeholder,
                lines=5,
                max_lines=14,
                max_length=MAX_HISTORY,
                elem_classes="gh-history",
            )
            typeahead, understood = html("", "gh-typeahead", _TYPEAHEAD), html("", "gh-understood", _CHIPS)
            go = gr.Button(button, variant="primary", elem_classes="gh-go")
            with gr.Group():
                k = gr.Slider(1, MAX_K, value=10, step=1, label="How many")
                department = gr.Dropdown([("All departments", "")], value="", label="Department")
                exclude_seen = gr.Checkbox(True, label="Hide what I already have")
            below = gr.Column(elem_classes="gh-below")
        with gr.Column(scale=7, min_width=300, elem_classes="gh-main"):
            results = html(EMPTY, classes="gh-results")
            with gr.Accordion("How this answer was made", open=False, visible=False, elem_classes="gh-fold") as fold:
                trace = html("", classes="gh-trace", min_height=60)
    answers = gr.State(None, time_to_live=SESSION_SECONDS)
    return Panel(row, above, below, history, typeahead, understood, k, exclude_seen, department, go, results, fold, trace, answers)


def department_choices(catalog: Catalog, chosen: str = "", shown: bool = False) -> gr.Dropdown:
    """The departments of a catalogue; `chosen` is preselected when there.

    Where it is `shown` already and there, nothing is selected: an answer that comes late would undo what a visitor has picked meanwhile.
    """
    names = catalog.departments
    choices = [("All departments", ""), *((name, name) for name in names)]
    if shown and chosen in ("", *names):
        return gr.Dropdown(choices)
    return gr.Dropdown(choices, value=chosen if chosen in names else "")


def connect(panel: Panel, name: str, source: gr.components.Component, find: Callable[[object], Chosen]) -> None:
    """Wires a panel; `source` holds what `find` turns into models: a short name, or the session's own catalogue."""

    def read(history: str, held: object) -> str:
        try:
            if not (history and history.strip()):
                return ""
            pipe = find(held)[0][1]()
            return cards.understood(pipe.understand(history), pipe.catalog)
        except Exception as error:
            return cards.notice("error", "Your lines could not be read", sentence_of(error))

    def offer(held: object, event: gr.EventData) -> str:
        try:
            line = str(event._data["line"])[:300]
            catalog = find(held)[0][1]().catalog
            titles = [catalog[row].title for row, _ in catalog.search(line, MOST_OPTIONS)] if line.strip() else []
            return cards.options([title for title in titles if title.casefold() != line.strip().casefold()], name, line)
        except Exception as error:
            sentence_of(error)
            return ""

    def choose(history: str, held: object, event: gr.EventData) -> str:
        lines = [match.line for match in find(held)[0][1]().understand(history or "").matches]
        return "\n".join(moved(lines, event._data))

    def answer(history: str, held: object, k: int, exclude_seen: bool, department: str) -> Iterator[dict[object, object]]:
        away = {panel.fold: gr.Accordion(open=False, visible=False), panel.trace: ""}
        try:
            chosen = find(held)
            ready = all(load.ready for _, load in chosen)
            yield {
                panel.results: cards.loading(text="" if ready else "The model is waking up: the first answer takes a few seconds."),
                **away,
            }
            answers = [ask(label, load(), history, k, exclude_seen, department or None) for label, load in chosen]
        except Exception as error:
            sentence = sentence_of(error)
            empty = not (history or "").strip()
            yield {panel.results: EMPTY if empty else cards.notice("error", "That did not work", sentence), panel.answers: None, **away}
            return
        if not any(one.recommendations for one in answers):
            nothing = cards.notice("empty", "Nothing left to recommend", "Try another department, or show what you already have.")
            yield {panel.results: nothing, panel.answers: None, **away}
            return
        columns = [shown(one, one.name if len(answers) > 1 else "") for one in answers]
        page = cards.side_by_side(columns) if len(columns) > 1 else columns[0]
        yield {panel.results: page, panel.answers: answers, panel.fold: gr.Accordion(open=False, visible=True), panel.trace: ""}

    def explain(answers: list[Answer] | None) -> str:
        try:
            return "".join(traced(one, one.name if len(answers) > 1 else "") for one in answers) if answers else ""
        except Exception as error:
            return cards.notice("error", "That did not work", sentence_of(error))

    settings = [panel.history, source, panel.k, panel.exclude_seen, panel.department]
    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    panel.history.change(read, [panel.history, source], panel.understood, trigger_mode="always_last", **quiet)
    # not "always_last", which would ask again with the event data of the first question
    panel.typeahead.input(offer, source, panel.typeahead, trigger_mode="multiple", queue=False, **quiet)
    panel.understood.click(choose, [panel.history, source], panel.history, **quiet)
    panel.button.click(None, js=_SHOW, api_visibility="private")
    panel.button.click(
        answer,
        settings,
        [panel.results, panel.answers, panel.fold, panel.trace],
        trigger_mode="always_last",
        concurrency_id="model",
        concurrency_limit=2,
        **quiet,
    ).then(None, js=_SHOW, api_visibility="private")
    panel.fold.expand(explain, panel.answers, panel.trace, concurrency_id="model", **quiet)


def moved(lines: list[str], wish: dict[str, object]) -> list[str]:
    """The lines of a history after a chip's button was pressed: another title used, or the line removed, moved or added."""
    done, line = list(lines), wish.get("line")
    do, title = wish.get("do"), str(wish.get("title") or "")
    if do == "add" and title:
        return [*done, title]
    if not isinstance(line, int) or not 0 <= line < len(done):
        return done
    if do == "use" and title:
        done[line] = title
    elif do == "remove":
        del done[line]
    elif do in ("earlier", "later"):
        to = line + (1 if do == "later" else -1)
        if 0 <= to < len(done):
            done[line], done[to] = done[to], done[line]
    return done


def ask(name: str, pipe: Recommender, history: str, k: int, exclude_seen: bool, department: str | None) -> Answer:
    """Lets one model answer, by the clock."""
    with clocked() as times:
        start = perf_counter()
        found = recommend(pipe, history, k, exclude_seen, department)
        seconds = perf_counter() - start
    return Answer(name, pipe, history, found, seconds, times)


def shown(answer: Answer, name: str) -> str:
    """The cards of an answer."""
    pipe, found = answer.pipe, answer.recommendations
    trained = pipe.trained_on
    rows = {card["item"]["item_id"]: pipe.catalog.row(card["item"]["item_id"]) for card in found}
    fresh = {item_id for item_id, row in rows.items() if not trained[row]}
    note = f"{len(found)} of {len(pipe.catalog):,} items in {1000 * answer.seconds:,.0f} ms"
    return cards.results(found, note, _said(answer), fresh, name, pipe.usual(answer.history))


def traced(answer: Answer, name: str) -> str:
    """How an answer came about."""
    pipe, history = answer.pipe, answer.history
    near = pipe.nearest(history, [card["item"]["item_id"] for card in answer.recommendations])
    body = details.beams(pipe.beams(history, BEAMS), _said(answer)) + details.nearest(near, answer.recommendations)
    return details.section(name, body + details.stages(answer.times, answer.seconds))


def _said(answer: Answer) -> set[str]:
    matches = answer.pipe.understand(answer.history).matches
    return cards.said_in([text for match in matches for text in (match.line, match.item.title)])
