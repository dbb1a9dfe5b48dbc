"""The tab for a visitor's own items: upload, say what the columns mean, index with progress and cancel, recommend, download."""

import random
from collections.abc import Callable, Iterator, Mapping
from time import perf_counter
from typing import Any, Final

import gradio as gr

from . import demo_cards as cards
from . import demo_tables as tables
from .demo_downloads import SAVE, as_csv, as_jsonl
from .demo_endpoints import upload_box
from .demo_indexing import Cancelled, Indexing
from .demo_models import IdentifiedItem, Lazy, Recommender, labels
from .demo_panel import EMPTY, SESSION_SECONDS, Chosen, connect, department_choices, html, lay_out, moved
from .demo_requests import fault, pick, sentence_of, speaking
from .demo_texts import UPLOAD_HELP
from .demo_uploads import FIELDS, FILE_TYPES, MAX_BYTES, MAX_ROWS, Upload, read_upload

NUMBERED: Final = "(number the rows)"
NONE: Final = "(none)"
QUIET: Final[dict[str, Any]] = {"api_visibility": "private", "show_progress": "hidden"}

_ADD = """element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-do]");
  if (button) trigger("click", {do: button.dataset.do, title: button.dataset.title});
});"""

Changes = dict[object, object]


class CatalogueTab:
    """The tab's components and what happens to them.

    Args:
        demo: the app that is being built.
        lazy: the models by their short names.
    """

    def __init__(self, demo: gr.Blocks, lazy: Mapping[str, Lazy]) -> None:
        self.lazy, self.running = lazy, dict[str, Indexing]()
        self.upload, self.held = (gr.State(None, time_to_live=SESSION_SECONDS) for _ in range(2))
        self._lay_out_upload()
        self._lay_out_columns()
        self._lay_out_shelf()
        self._wire(demo)

    def _lay_out_upload(self) -> None:
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                gr.Markdown(UPLOAD_HELP.format(rows=MAX_ROWS, megabytes=MAX_BYTES // 2**20))
            with gr.Column(scale=7, min_width=300):
                self.file = upload_box(label="Your items", file_types=FILE_TYPES, height=150, elem_classes="gh-upload")
        html(tables.refusal(FILE_TYPES, MAX_BYTES), classes="gh-refusal")
        self.status = html(cards.notice("empty", "No catalogue yet", "Drop a file above."), classes="gh-status", min_height=70)

    def _lay_out_columns(self) -> None:
        names = labels(self.lazy)
        with gr.Column(visible=False, elem_classes="gh-mapping") as self.mapping:
            self.preview = html("")
            with gr.Row(elem_classes="gh-fields"):
                self.fields = {field: gr.Dropdown([], label=tables.FIELD_LABELS[field], min_width=150) for field in FIELDS}
            choices = [(label, name) for name, label in names.items()]
            self.model = gr.Radio(choices, value=choices[0][1], label="Model", visible=len(choices) > 1)
            self.index = gr.Button("Index these items", variant="primary", elem_classes="gh-index")
        self.cancel = gr.Button("Cancel", size="sm", variant="stop", visible=False, elem_classes="gh-cancel")

    def _lay_out_shelf(self) -> None:
        self.panel = lay_out("Recommend from my catalogue", "", visible=False)
        self.shelf = self.panel.row
        with self.panel.above:
            self.offers = html("", js=_ADD)
        with self.panel.below, gr.Row(elem_classes="gh-downloads"):
            self.csv = gr.Button("Download identifiers (CSV)", size="sm", variant="secondary")
            self.jsonl = gr.Button("Download identifiers (JSONL)", size="sm", variant="secondary")
            self.forget = gr.Button("Forget my catalogue", size="sm", variant="secondary")

    def _wire(self, demo: gr.Blocks) -> None:
        panel, fields = self.panel, list(self.fields.values())
        everything = [self.file, self.upload, self.held, self.status, self.mapping, self.preview, self.cancel, self.shelf, self.offers]
        everything += [panel.history, panel.understood, panel.department, panel.results, panel.answers, panel.fold, *fields]
        connect(panel, "own", self.held, self.find)
        self.file.upload(
            self.receive,
            self.file,
            everything,
            show_progress="minimal",
            show_progress_on=self.status,
            concurrency_id="read",
            concurrency_limit=2,
            api_visibility="private",
        )
        waiting = cards.notice("info", "Waiting for a free place", "Two catalogues are indexed at a time.")
        self.index.click(lambda: waiting, None, self.status, queue=False, **QUIET).then(
            self.begin, [self.upload, self.model, *fields], everything, concurrency_id="index", concurrency_limit=2, **QUIET
        )
        self.cancel.click(self.stop, None, None, queue=False, **QUIET)
        self.forget.click(self.drop, None, everything, **QUIET)
        demo.unload(self.leave)
        self.offers.click(self.offer, panel.history, panel.history, **QUIET)
        name, text = gr.Textbox(visible=False), gr.Textbox(visible=False)
        for button, file, write in ((self.csv, "identifiers.csv", as_csv), (self.jsonl, "identifiers.jsonl", as_jsonl)):
            button.click(self.written(file, write), self.held, [name, text], api_visibility="private").then(
                None, [name, text], None, js=SAVE, api_visibility="private"
            )

    def find(self, own: object) -> Chosen:
        """The session's own recommender."""
        if not isinstance(own, Lazy):
            raise fault("This session holds no catalogue any more: please upload the file again.")
        return [("Your catalogue", own)]

    def receive(self, path: str | None) -> Changes:
        """A file has come: shows its first rows and what its columns seem to mean."""
        if path is None:
            return {self.status: gr.skip()}
        try:
            brought = read_upload(path)
        except Exception as error:
            return {self.file: None, self.mapping: gr.Column(visible=False), self.status: _unusable(sentence_of(error))}
        guess, columns = brought.guess, list(brought.table.column_names)
        empty = {field: NUMBERED if field == "item_id" else NONE for field in FIELDS}
        choices = {field: gr.Dropdown([none, *columns], value=guess.get(field, none)) for field, none in empty.items()}
        return {
            self.file: None,
            self.upload: brought,
            self.mapping: gr.Column(visible=True),
            self.preview: tables.preview(brought),
            self.status: cards.notice("info", "Is this what the columns mean?", "Change what is wrong, then index."),
            **{self.fields[field]: choice for field, choice in choices.items()},
        }

    def begin(self, brought: Upload | None, name: str, request: gr.Request, *columns: str) -> Iterator[Changes]:
        """Indexes what was brought, with progress, until it is done or called off."""
        start, session = perf_counter(), str(request.session_hash)
        if session in self.running:  # pressed twice
            yield {self.status: gr.skip()}
            return
        try:
            if brought is None:
                raise fault("There is no file: please upload it again.")
            chosen = {field: column for field, column in zip(FIELDS, columns, strict=True) if column not in (NUMBERED, NONE, None)}
            catalog = brought.catalog(chosen)
            job = self.running[session] = Indexing(pick(self.lazy, name), catalog)
        except Exception as error:
            yield {self.status: cards.notice("error", "These columns cannot be used", sentence_of(error))}
            return
        away = {self.mapping: gr.Column(visible=False), self.cancel: gr.Button(visible=True)}
        yield {**away, self.status: tables.progress(0, len(catalog), None)}
        try:
            while not job.wait(0.3):
                left = (perf_counter() - start) * (job.total - job.done) / job.done if job.done else None
                yield {self.status: tables.progress(job.done, job.total, left)}
        finally:
            job.cancel()  # the visitor may have gone
            self.running.pop(session, None)
        back = {self.mapping: gr.Column(visible=True), self.cancel: gr.Button(visible=False)}
        if job.result is not None:
            yield {**back, **self.ready(brought.name, job.result, perf_counter() - start)}
        elif isinstance(job.error, Cancelled):
            told = cards.notice("info", "Cancelled", "Nothing was indexed. Your file is still here: index it, or bring another.")
            yield {**back, self.status: told}
        else:
            yield {**back, self.status: _unusable(sentence_of(job.error or RuntimeError("An index came to nothing.")))}

    def ready(self, name: str, pipe: Recommender, seconds: float) -> Changes:
        """The catalogue is indexed: opens the shelf."""
        own, catalog, panel = Lazy(lambda: pipe), pipe.catalog, self.panel
        own()
        offered = random.Random(0).sample(catalog.titles, min(6, len(catalog)))
        return {
            self.held: own,
            self.upload: None,
            self.mapping: gr.Column(visible=False),
            self.status: tables.summary(name, len(catalog), len(catalog.departments), seconds),
            self.shelf: gr.Row(visible=True),
            self.offers: cards.suggestions(offered),
            panel.history: gr.Textbox("", placeholder="\n".join(offered[:3])),
            panel.department: department_choices(catalog),
            **self._blank(),
        }

    def _blank(self) -> Changes:
        panel = self.panel
        return {panel.understood: "", panel.results: EMPTY, panel.answers: None, panel.fold: gr.Accordion(visible=False)}

    def stop(self, request: gr.Request) -> None:
        """The visitor calls the indexing off; the indexing itself says so, or a late word here would stand over its last one."""
        job = self.running.get(str(request.session_hash))
        if job is not None:
            job.cancel()

    def leave(self, request: gr.Request) -> None:
        """The visitor has closed the page."""
        self.stop(request)

    def drop(self) -> Changes:
        """Forgets what this session holds."""
        told = cards.notice("info", "Forgotten", "Nothing of it is left in this session.")
        away = {self.held: None, self.upload: None, self.shelf: gr.Row(visible=False), self.mapping: gr.Column(visible=False)}
        return {**away, self.status: told, self.panel.history: "", **self._blank()}

    def offer(self, history: str, event: gr.EventData) -> str:
        """A title of the catalogue was pressed."""
        return "\n".join(moved((history or "").rstrip().splitlines(), event._data))

    def written(self, name: str, write: Callable[[list[IdentifiedItem]], str]) -> Callable[[object], tuple[str, str]]:
        """What a download button does."""

        @speaking
        def written(own: object) -> tuple[str, str]:
            return name, write(self.find(own)[0][1]().identify())

        return written


def _unusable(sentence: str) -> str:
    return cards.notice("error", "This file cannot be used", sentence)
