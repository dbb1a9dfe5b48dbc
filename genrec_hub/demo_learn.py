"""The tab that explains the two kinds of identifiers with pictures of the visitor's own results."""

from collections.abc import Mapping
from html import escape
from typing import Final

import gradio as gr

from . import demo_cards as cards
from . import demo_pictures as pictures
from .demo_models import Lazy, labels
from .demo_panel import Answer, Panel, ask, html
from .demo_requests import sentence_of
from .demo_texts import LEARN_IDS, LEARN_MASK, LEARN_SETS, LEARN_TREE, PERSONAS

MOST_ITEMS: Final = 5


def learn_tab(tab: gr.Tab, lazy: Mapping[str, Lazy], first: Panel) -> None:
    """Builds the tab; `first` is the panel whose answers are drawn."""
    names = labels(lazy)
    with gr.Column(elem_classes="gh-learn"):
        gr.Markdown(LEARN_SETS)
        tokens = html("", classes="gh-picture", min_height=120)
        gr.Markdown(LEARN_MASK)
        count = gr.Slider(1, MOST_ITEMS, value=3, step=1, label="Items in the history")
        masks = html("", classes="gh-picture", min_height=200)
        gr.Markdown(LEARN_IDS)
        tree = html("", classes="gh-picture", min_height=60)

    def draw(answers: list[Answer] | None, items: int) -> tuple[str, str, str]:
        try:
            known = answers or []
            sets = next((one for one in known if _is_set(one)), None)
            texts = next((one for one in known if not _is_set(one)), None)
            for name, load in lazy.items():
                # What an embedded model is tells its name; any other is asked while something is missing.
                missing = {"setrec": sets is None, "idgenrec": texts is None}
                if missing.get(name.partition("-")[0], any(missing.values())):
                    history = known[0].history if known else next(iter(PERSONAS.values()))
                    one = ask(names[name], load(), history, 8, True, None)
                    sets, texts = (sets or one, texts) if _is_set(one) else (sets, texts or one)
            return token_picture(sets), mask_picture(sets, items), tree_picture(texts)
        except Exception as error:
            return cards.notice("error", "That could not be drawn", sentence_of(error)), "", ""

    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    tab.select(draw, [first.answers, count], [tokens, masks, tree], concurrency_id="model", **quiet)
    count.change(draw, [first.answers, count], [tokens, masks, tree], concurrency_id="model", trigger_mode="always_last", **quiet)


def _is_set(answer: Answer) -> bool:
    return bool(answer.recommendations) and "text" not in answer.recommendations[0]["identifier"]


def token_picture(answer: Answer | None) -> str:
    """The tokens of the first recommendation of a system of sets."""
    if answer is None or not answer.recommendations:
        return cards.notice("empty", "No system of sets is here")
    card = answer.recommendations[0]
    near = answer.pipe.nearest(answer.history, [card["item"]["item_id"]], 3)
    own = [token for token in card["identifier"]["tokens"] if isinstance(token, dict)]
    described = list(near[1]["tokens"]) if len(near) > 1 else [{"nearest": []} for _ in own]
    head = f'<p class="gh-note">Your first recommendation, <b dir="auto">{escape(card["item"]["title"])}</b>, as the model reads it:</p>'
    return head + _scrolled(pictures.token_set(card["item"]["title"], [dict(token) for token in own], described), "Tokens of an item")


def mask_picture(answer: Answer | None, items: int) -> str:
    """What sees what: an ordinary language model's mask, and the set mask that the model really uses."""
    import torch

    from .set_attention import set_layout

    count = max(1, min(int(items), MOST_ITEMS))
    tokens = len(answer.recommendations[0]["identifier"]["tokens"]) if answer is not None else 3
    visible = set_layout(torch.ones(1, count, dtype=torch.bool), tokens, 1, 0, False).visible[0].tolist()
    letters = "abcdefghij"
    groups = [-1] + [item for item in range(count) for _ in range(tokens)] + [count] * tokens
    names = (
        ["·"]
        + [f"{letters[item]}{slot + 1}" for item in range(count) for slot in range(tokens)]
        + [f"?{slot + 1}" for slot in range(tokens)]
    )
    causal = [[column <= row for column in range(len(names))] for row in range(len(names))]
    set_said = "Set mask: a token sees earlier items and itself, no other token of its own item; a query sees the whole history and itself."
    left = pictures.attention_mask(
        causal, groups, names, "Ordinary causal mask: every token sees all tokens before it, also those of its own item."
    )
    right = pictures.attention_mask(visible, groups, names, set_said)
    return (
        f'<div class="gh-columns"><figure>{left}<figcaption>An ordinary language model: one token after the other.</figcaption></figure>'
        f"<figure>{right}<figcaption>SETRec: the tokens of an item do not see each other, nor do the queries (?): "
        "their order says nothing."
        "</figcaption></figure></div>"
    )


def tree_picture(answer: Answer | None) -> str:
    """The prefix tree of the visible results of a system of textual identifiers."""
    if answer is None or not answer.recommendations:
        return cards.notice("empty", "No system of textual identifiers is here", "The prefix tree of its results would be drawn here.")
    matches = answer.pipe.understand(answer.history).matches
    said = cards.said_in([text for match in matches for text in (match.line, match.item.title)])
    picture = pictures.prefix_tree(answer.recommendations[:12], said)
    return f'<p class="gh-note">{escape(LEARN_TREE)}</p>{_scrolled(picture, "Prefix tree")}'


def _scrolled(picture: str, name: str) -> str:
    return f'<div class="gh-scroll" tabindex="0" role="region" aria-label="{escape(name)}">{picture}</div>'
