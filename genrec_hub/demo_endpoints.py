"""The named endpoints: recommend, search and identify, for programs and for agents."""

from collections.abc import Mapping
from typing import cast

import gradio as gr
from gradio.events import api

from . import demo_requests as requests
from .demo_cards import ItemFields
from .demo_models import IdentifiedItem, Lazy, Recommendations
from .demo_requests import fault, pick, speaking, whole, yes_or_no
from .demo_uploads import read_upload


def endpoints(lazy: Mapping[str, Lazy]) -> None:
    """Adds the endpoints to the app that is being built."""
    default = next(iter(lazy))

    @speaking
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
        return {"recommendations": requests.recommend(pick(lazy, model)(), history, k, yes_or_no(exclude_seen))}

    @speaking
    def search(query: str, k: int = 10) -> list[ItemFields]:
        """Finds items of the sample shop by title; typos and missing words are forgiven.

        Args:
            query: words of a title.
            k: how many at the most, 1 to 50.

        Returns:
            The items, best first; none when nothing is near.
        """
        if not isinstance(query, str) or not query.strip():
            raise fault("The query is empty: give some words of a title.")
        catalog = lazy[default]().catalog
        return cast(list[ItemFields], [catalog[row].to_dict() for row, _ in catalog.search(query[:500], whole(k))])

    @speaking
    def identify(catalog: str, model: str = default) -> list[IdentifiedItem]:
        """Gives every item of an uploaded catalogue the identifier that the model reads it by.

        Args:
            catalog: a CSV, TSV, JSONL or Parquet file with the columns item_id and title (brand, categories, description, price if there).
            model: the short name of the model.

        Returns:
            Per item its item_id, title and identifier, in the order of the file.
        """
        pipe = pick(lazy, model)()
        return pipe.with_catalog(read_upload(catalog).catalog()).identify()

    api(recommend, api_name="recommend", concurrency_id="model", concurrency_limit=2)
    api(search, api_name="search")
    with gr.Row(visible=False):
        file, name, out = upload_box(label="Catalogue"), gr.Textbox(default, label="Model"), gr.JSON(label="Identifiers")
        trigger = gr.Button("Identify")
    trigger.click(identify, [file, name], out, api_name="identify", concurrency_id="index", concurrency_limit=2)


def upload_box(label: str, **options: object) -> gr.File:
    """A file box that hands over the path alone: as it is, `gr.File` leaves an empty temporary file behind at every use."""
    box = gr.File(label=label, **options)  # type: ignore[arg-type]
    box._process_single_file = lambda f: str(f.path)  # type: ignore[method-assign, assignment, return-value]
    return box
