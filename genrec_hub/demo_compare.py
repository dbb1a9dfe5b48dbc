"""The tab that puts the systems, and text-kNN beside them, before the same history."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import combinations
from typing import Final

import gradio as gr

from . import demo_cards as cards
from .demo_cards import ItemFields
from .demo_models import Lazy, Recommender, labels
from .demo_panel import Panel, html
from .demo_requests import MAX_HISTORY, recommend, sentence_of, written
from .demo_texts import COMPARE_HELP, SUBTITLES

KNN: Final = "text-kNN"
SHOWN: Final = 10

_FOLLOW = """(mine, theirs) => [mine.trim() ? mine : theirs]"""
_COMPARE = "(mine) => { if (mine.trim()) document.querySelector('button.gh-compare').click(); }"


@dataclass(frozen=True)
class Column:
    """What one system recommends."""

    name: str
    items: Sequence[ItemFields]


def compare_tab(tab: gr.Tab, lazy: Mapping[str, Lazy], first: Panel) -> None:
    """Builds the tab; `first` is the panel whose history it starts from."""
    names = labels(lazy)
    gr.Markdown(COMPARE_HELP)
    with gr.Row(elem_classes="gh-comparing"):
        history = gr.Textbox(
            label="What did you buy?", info="One item per line, oldest first.", lines=3, max_lines=8, max_length=MAX_HISTORY, scale=4
        )
        button = gr.Button("Compare", variant="primary", elem_classes="gh-compare", scale=1, min_width=140)
    empty = cards.notice("empty", "Three lists for one history appear here", "Write what you bought, and press Compare.")
    page = html(empty, classes="gh-comparison")

    def compare(history: str) -> str:
        try:
            if not (history or "").strip():
                return empty
            pipes = {names[name]: load() for name, load in lazy.items()}
            columns = [Column(name, [card["item"] for card in recommend(pipe, history, SHOWN, True)]) for name, pipe in pipes.items()]
            reader = next((pipe for pipe in pipes.values() if "semantic" in getattr(pipe.processor, "features", {})), None)
            if reader is not None:
                columns.append(Column(KNN, nearest_texts(reader, history, SHOWN)))
            return comparison(columns)
        except Exception as error:
            return cards.notice("error", "That did not work", sentence_of(error))

    button.click(
        compare, history, page, concurrency_id="model", trigger_mode="always_last", api_visibility="private", show_progress="minimal"
    )
    tab.select(None, [history, first.history], history, js=_FOLLOW, api_visibility="private").then(
        None, history, None, js=_COMPARE, api_visibility="private"
    )


def nearest_texts(pipe: Recommender, history: str, k: int) -> list[ItemFields]:
    """What `text-knn-soft` recommends: no training, only the similarity of texts; see `baselines.TextNeighbours`."""
    import numpy as np
    import torch

    from .baselines import TextNeighbours
    from .grounding import top_k

    processor = pipe.processor
    read = processor.read(written(history))
    own = processor([read])["semantic"][0].numpy()
    shop = processor.features["semantic"].numpy()
    # The lines of the history stand behind the catalogue, so that typed words have a row as well.
    scores = TextNeighbours(np.concatenate([shop, own])).scores([np.arange(len(shop), len(shop) + len(own))], "soft")[:, : len(shop)]
    seen = [row for row in read.rows if row is not None]
    _, rows = top_k(torch.eye(1), scores.T, min(k, len(shop)), [seen])
    return [pipe.catalog[row].to_dict() for row in rows[0].tolist() if row >= 0]  # type: ignore[misc]


def comparison(columns: Sequence[Column]) -> str:
    """The lists beside each other; what stands in several of them is marked."""
    places = [{item["item_id"]: rank for rank, item in enumerate(column.items, 1)} for column in columns]
    lists = []
    for number, column in enumerate(columns):
        rows = []
        for rank, item in enumerate(column.items, 1):
            others = [
                f"{columns[other].name} {own[item['item_id']]}"
                for other, own in enumerate(places)
                if other != number and item["item_id"] in own
            ]
            everywhere = len(others) == len(columns) - 1 and others
            also = f'<span class="gh-also">also {escape(", ".join(others))}</span>' if others else '<span class="gh-only">only here</span>'
            rows.append(
                f'<li class="gh-row{" gh-shared" if everywhere else ""}"><span class="gh-rank" aria-hidden="true">{rank}</span>'
                f'<div class="gh-body"><h3 dir="auto">{escape(item["title"])}</h3>'
                f'<p class="gh-meta" dir="auto">{cards.meta(item)}</p>{also}</div></li>'
            )
        lists.append(
            f'<section class="gh-answer" aria-label="{escape(column.name)}"><h2>{escape(column.name)}</h2>'
            f'<p class="gh-note">{escape(SUBTITLES.get(column.name, ""))}</p><ol class="gh-cards gh-list">{"".join(rows)}</ol></section>'
        )
    return f'<p class="gh-note" role="status">{escape(agreement(columns))}</p>{cards.side_by_side(lists)}'


def agreement(columns: Sequence[Column]) -> str:
    """How much the lists have in common, in words."""
    ids = [{item["item_id"] for item in column.items} for column in columns]
    pairs = [
        f"{columns[one].name} and {columns[other].name} share {len(ids[one] & ids[other])}"
        for one, other in combinations(range(len(columns)), 2)
    ]
    return "Of their first ten, " + "; ".join(pairs) + "." if pairs else "Only one system is here."
