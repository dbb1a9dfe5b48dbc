"""The markup of the demo's answers; everything that a person or a file gave is escaped where the HTML is made."""

from collections.abc import Collection, Sequence
from html import escape
from math import exp
from typing import TYPE_CHECKING, Final, TypedDict

from .text import salient, words

if TYPE_CHECKING:
    from .catalog import Catalog
    from .history import History

COLOURS: Final = 8
"""Token colours in demo.css; further tokens start over."""
MOST_LINES: Final = 60
"""Lines of a history that are shown; the rest is counted."""
NEW: Final = "The model never saw this item in training: it knows it by its words alone."
NEW_ALL: Final = "The model never saw any of these items in training: it knows them by their words alone."


class ItemFields(TypedDict):
    """An item as plain text fields."""

    item_id: str
    title: str
    brand: str
    categories: str
    description: str
    price: str
    text: str


class TokenFields(TypedDict):
    """One token of a set: its slot, what it adds to the score (nothing outside of a ranking), and words that say what it stands for."""

    slot: str
    score: float | None
    label: str


class IdentifierFields(TypedDict, total=False):
    """The identifier that the model generated: a set of `tokens`, or a `text` with its word pieces and log-probability."""

    text: str
    tokens: list[TokenFields] | list[str]
    logprob: float | None


class BecauseFields(TypedDict):
    """The item of the history that contributed most, and its share."""

    item: ItemFields
    share: float


class RecommendationFields(TypedDict):
    """One recommended item, with the reason for it."""

    item: ItemFields
    score: float
    rank: int
    identifier: IdentifierFields
    because: BecauseFields | None


class BeamFields(TypedDict):
    """An identifier that was considered, what it was ranked by, and the item that has it."""

    text: str
    logprob: float
    score: float
    item: ItemFields | None


def hero() -> str:
    """The head of the page."""
    return (
        '<header class="gh-hero"><span class="gh-mark" aria-hidden="true"><i></i><i></i><i></i><i></i></span><div>'
        "<h1>genrec_hub</h1>"
        "<p>Paste what you bought, in your own words. See what could come next, and the identifier the model generated for it.</p>"
        "</div></header>"
    )


def notice(kind: str, title: str, text: str = "") -> str:
    """A centred message in place of results; `kind` is `empty`, `error` or `info`."""
    role = "alert" if kind == "error" else "status"
    body = f"<p>{escape(text)}</p>" if text else ""
    return f'<div class="gh-notice gh-{escape(kind)}" role="{role}"><strong>{escape(title)}</strong>{body}</div>'


def welcome() -> str:
    """What stands in place of results before there are any: where to begin, and how an answer is read."""
    token = '<span class="gh-token gh-c{0}"><span>{1}</span><b>{2}</b></span>'
    entries = [
        (
            token.format(0, "filter coffee", "14%") + " " + token.format(1, "scale timer", "11%"),
            "<b>SETRec</b> generates a set of tokens. Each is shown by the words nearest to it, with its share of the score.",
        ),
        (
            '<span class="gh-words"><mark>espresso</mark> machine steam</span>',
            "<b>IDGenRec</b> writes an identifier in words. Those that your history has too are marked.",
        ),
        (
            "because you had <q>…</q> <b>64%</b>",
            "The purchase without which the score would fall most, and its share of what all of them add.",
        ),
        ('<span class="gh-new">new to the model</span>', "Not seen in training: the model knows it by its words alone."),
    ]
    legend = "".join(f"<div><dt>{shown}</dt><dd>{meaning}</dd></div>" for shown, meaning in entries)
    return (
        notice("empty", "Recommendations appear here", "Write what you bought, or start from one of the examples, and press Recommend.")
        + f'<section class="gh-legend" aria-label="How to read an answer"><h2>How to read an answer</h2><dl>{legend}</dl></section>'
    )


def loading(cards: int = 4, text: str = "") -> str:
    """Grey cards for as long as an answer takes."""
    card = '<li class="gh-card gh-ghost" aria-hidden="true"><b></b><i></i><i></i></li>'
    note = f'<p class="gh-note">{escape(text)}</p>' if text else ""
    ghosts = f'<ol class="gh-cards">{card * cards}</ol>'
    return f'<div class="gh-loading" role="status" aria-label="Loading recommendations">{note}{ghosts}</div>'


# ---------------------------------------------------------------- the history


def options(titles: Sequence[str], panel: str, line: str = "") -> str:
    """Titles to choose from while a line is typed; the markup names the line, so that an answer to an older one is not shown."""
    unique = list(dict.fromkeys(titles))
    said = f"{len(unique)} suggestion{'s' if len(unique) != 1 else ''}: arrow keys to choose, Enter to take." if unique else ""
    listed = "".join(
        f'<li role="option" id="gh-{panel}-option-{n}" aria-selected="false" dir="auto" data-title="{escape(title)}">{escape(title)}</li>'
        for n, title in enumerate(unique)
    )
    box = (
        f'<ul role="listbox" id="gh-{panel}-options" data-line="{escape(line)}" aria-label="Titles from the catalogue">{listed}</ul>'
        if unique
        else ""
    )
    return f'{box}<span class="gh-unseen" role="status">{said}</span>'


def understood(history: "History", catalog: "Catalog") -> str:
    """How each line was understood: the title that was matched, how surely, and what else it could have been."""
    shown = history.matches[:MOST_LINES]
    rows: list[str] = []
    for line, match in enumerate(shown):
        said = escape(match.line)
        if match.how == "text":
            kind, badge, title = "free", "in your words", said
        elif match.how == "fuzzy":
            kind, badge, title = "near", f"{match.confidence:.0%} sure", escape(match.item.title)
        else:
            kind, badge, title = "sure", "exact", escape(match.item.title)
        heard = f"<small>from “{said}”</small>" if kind != "free" and match.line.casefold() != match.item.title.casefold() else ""
        others = [catalog[row].title for row in match.alternatives if row != match.row][:3]
        offers = "".join(
            f'<button type="button" data-do="use" data-line="{line}" data-title="{escape(other)}" '
            f'aria-label="Use {escape(other)} instead of {said}">{escape(other)}</button>'
            for other in dict.fromkeys(others)
        )
        question = f'<div class="gh-alternatives"><span>did you mean</span>{offers}</div>' if offers and kind != "sure" else ""
        moves = _move(line, "earlier", said, "&uarr;", line == 0) + _move(line, "later", said, "&darr;", line == len(shown) - 1)
        rows.append(
            f'<li class="gh-line gh-{kind}"><div><span class="gh-title" dir="auto">{title}</span><em>{badge}</em>'
            f'<span class="gh-moves">{moves if len(shown) > 1 else ""}<button type="button" class="gh-remove" data-do="remove" '
            f'data-line="{line}" aria-label="Remove {said}">&times;</button></span></div>{heard}{question}</li>'
        )
    more = len(history.matches) - len(rows)
    if more:
        rows.append(f'<li class="gh-note">and {more:,} more lines</li>')
    return f'<ul class="gh-lines" aria-label="How your lines were understood">{"".join(rows)}</ul>' if rows else ""


def _move(line: int, way: str, said: str, sign: str, end: bool) -> str:
    off = " disabled" if end else ""
    return f'<button type="button" data-do="{way}" data-line="{line}" aria-label="Move {said} {way}"{off}>{sign}</button>'


def suggestions(titles: Sequence[str]) -> str:
    """Buttons that add a title to the history."""
    buttons = "".join(f'<button type="button" data-do="add" data-title="{escape(title)}">{escape(title)}</button>' for title in titles)
    return f'<div class="gh-alternatives gh-suggestions"><span>from your catalogue</span>{buttons}</div>' if buttons else ""


# ---------------------------------------------------------------- recommendations


def results(
    recommendations: Sequence[RecommendationFields],
    note: str = "",
    said: Collection[str] = (),
    fresh: Collection[str] = (),
    name: str = "",
    usual: Sequence[float] = (),
) -> str:
    """The ranked cards of one model.

    Args:
        recommendations: what it recommends, best first.
        note: a line above the cards.
        said: words of the history, marked in textual identifiers.
        fresh: ids of items that the model never saw in training.
        name: of the model, where several stand side by side.
        usual: what each token adds to the score of an average item, against which the tokens of sets are shown.
    """
    scores = [_height(card, usual) for card in recommendations]
    floor, top = min([0.0, *scores]), max([0.0, *scores])
    all_fresh = len(recommendations) > 1 and all(card["item"]["item_id"] in fresh for card in recommendations)
    cards = "".join(
        _card(card, (score - floor) / ((top - floor) or 1.0), said, not all_fresh and card["item"]["item_id"] in fresh, usual)
        for card, score in zip(recommendations, scores, strict=True)
    )
    head = f"<h2>{escape(name)}</h2>" if name else ""
    label = f"Recommendations of {escape(name)}" if name else "Recommendations"
    badge = f' <span class="gh-new" title="{NEW_ALL}">all new to the model</span>' if all_fresh else ""
    return (
        f'<section class="gh-answer" aria-label="{label}">{head}<p class="gh-note" role="status">{escape(note)}{badge}</p>'
        f'<ol class="gh-cards">{cards}</ol></section>'
    )


def side_by_side(columns: Sequence[str]) -> str:
    """Answers of several models beside each other."""
    return f'<div class="gh-columns">{"".join(columns)}</div>'


def _height(card: RecommendationFields, usual: Sequence[float]) -> float:
    """What the bar of a card shows: by how much the score exceeds an average item's, or for a textual identifier the probability."""
    return exp(min(card["score"], 0.0)) if "text" in card["identifier"] else card["score"] - sum(usual)


def percent(probability: float) -> str:
    """A probability with two digits that say something."""
    return f"{100 * probability:.2g}%" if probability >= 1e-5 else "&lt;0.001%"


def _card(card: RecommendationFields, height: float, said: Collection[str], fresh: bool, usual: Sequence[float]) -> str:
    item, identifier = card["item"], card["identifier"]
    price = f'<span class="gh-price">{escape(item["price"])}</span>' if item["price"] else ""
    badge = f'<span class="gh-new" title="{NEW}">new to the model</span>' if fresh else ""
    if "text" in identifier:
        bar, shown = '<i class="gh-c0" style="flex-grow:1"></i>', _words(identifier, said)
        number = percent(_height(card, usual))
        whole = abs(card["score"] - (identifier["logprob"] or 0.0)) < 1e-6  # not divided by the length of the text
        meaning = f"Probability {'of the identifier' if whole else 'of a word piece of it, in the mean'}: {number}"
        score = f'<div class="gh-score" role="img" title="{meaning}" aria-label="{meaning}">'
    else:
        tokens = [token for token in identifier["tokens"] if isinstance(token, dict)]
        beyond = [(token["score"] or 0.0) - (usual[slot] if usual else 0.0) for slot, token in enumerate(tokens)]
        everything = sum(map(abs, beyond)) or 1.0
        bar = "".join(
            f'<i class="gh-c{slot % COLOURS}" style="flex-grow:{max(part, 0.0) / everything:.4f}"></i>' for slot, part in enumerate(beyond)
        )
        over = " over an average item" if usual else " to the score"
        chips = "".join(
            _chip(token, f"{part:+.2f}{over}", part / everything, slot)
            for slot, (token, part) in enumerate(zip(tokens, beyond, strict=True))
        )
        shown = f'<ul class="gh-tokens" aria-label="Generated identifier, a set of {len(tokens)} tokens">{chips}</ul>'
        number = f"{_height(card, usual):+.2f}" if usual else f"{card['score']:.2f}"
        meaning = f"Score {card['score']:.2f}" + (f", {number} over an average item" if usual else "")
        score = f'<div class="gh-score" role="img" title="{meaning}" aria-label="{meaning}">'
    return (
        f'<li class="gh-card"><span class="gh-rank" role="img" aria-label="Rank {card["rank"]}">{card["rank"]}</span><div class="gh-body">'
        f'<div class="gh-head"><h3 dir="auto">{escape(item["title"])}</h3>{price}</div>'
        f'<p class="gh-meta" dir="auto">{meta(item)} {badge}</p>'
        f'{score}<span class="gh-track"><span style="width:{height:.1%}">{bar}</span></span>'
        f'<span class="gh-number">{number}</span></div>{shown}{_reason(card["because"])}</div></li>'
    )


def meta(item: ItemFields) -> str:
    """Brand and department of an item."""
    path = [part.strip() for part in item["categories"].replace("|", ">").split(">") if part.strip()]
    trail = " \u203a ".join(dict.fromkeys(path[:1] + path[-1:]))
    return " · ".join(escape(part) for part in (item["brand"], trail) if part)


def _reason(because: BecauseFields | None) -> str:
    if not because:
        return ""
    had = escape(because["item"]["title"])
    return f'<p class="gh-because">because you had <q dir="auto">{had}</q> <span>{because["share"]:.0%}</span></p>'


def named(slot: str) -> str:
    """What a visitor calls a slot of a set: `sem3` is "text token 3", `cf` is "behaviour token"."""
    number = slot.removeprefix("sem")
    return "behaviour token" if slot == "cf" else f"text token {number}" if number.isdigit() else slot


def signed(share: float) -> str:
    """A share in whole per cent, which may be below nothing."""
    return f"{round(100 * share)}%"


def _chip(token: TokenFields, added: str, share: float, slot: int) -> str:
    tip = f"{named(token['slot'])}: “{token['label']}” adds {added}"
    return (
        f'<li class="gh-token gh-c{slot % COLOURS}" data-tip="{escape(tip)}" aria-label="{escape(tip)}">'
        f'<span dir="auto">{escape(token["label"] or named(token["slot"]))}</span><b>{signed(share)}</b></li>'
    )


def _words(identifier: IdentifierFields, said: Collection[str]) -> str:
    return f'<p class="gh-words"><span class="gh-unseen">Generated identifier: </span>{marked(identifier["text"], said)}</p>'


def marked(text: str, said: Collection[str]) -> str:
    """The words of an identifier, those shared with the history marked."""
    pieces = []
    for word in text.split():
        shared = any(stem(part) in said for part in words(word))
        pieces.append(f"<mark>{escape(word)}</mark>" if shared else escape(word))
    return f'<span dir="auto">{" ".join(pieces)}</span>'


def said_in(texts: Sequence[str]) -> set[str]:
    """The stems of the words of a history."""
    return {stem(word) for text in texts for word in salient(text)}


def stem(word: str) -> str:
    """A word without its plural s."""
    low = word.casefold()
    return low[:-1] if len(low) > 3 and low.endswith("s") and not low.endswith("ss") else low
