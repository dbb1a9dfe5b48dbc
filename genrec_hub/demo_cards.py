"""The markup of the demo: every piece of HTML is made here, and everything that a person or a file gave is escaped here."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Final, TypedDict

if TYPE_CHECKING:
    from .catalog import Catalog
    from .history import History

COLOURS: Final = 6
"""Token colours in demo.css; further tokens start over."""
MOST_LINES: Final = 60
"""Lines of a history that are shown; the rest is counted."""


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
    """One token of an identifier: its slot, what it adds to the score, and words that say what it stands for."""

    slot: str
    score: float
    label: str


class IdentifierFields(TypedDict):
    """The identifier that the model generated, as a set of tokens."""

    tokens: list[TokenFields]


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


def loading(cards: int = 4, text: str = "") -> str:
    """Grey cards for as long as an answer takes."""
    card = '<li class="gh-card gh-ghost" aria-hidden="true"><b></b><i></i><i></i></li>'
    note = f'<p class="gh-note">{escape(text)}</p>' if text else ""
    ghosts = f'<ol class="gh-cards">{card * cards}</ol>'
    return f'<div class="gh-loading" role="status" aria-label="Loading recommendations">{note}{ghosts}</div>'


def understood(history: "History", catalog: "Catalog") -> str:
    """How each line was understood: the title that was matched, how surely, and what else it could have been."""
    rows: list[str] = []
    for line, match in enumerate(history.matches[:MOST_LINES]):
        said = escape(match.line)
        if match.how == "text":
            kind, badge, title = "free", "in your words", said
        elif match.how == "fuzzy":
            kind, badge, title = "near", f"{match.confidence:.0%} sure", escape(match.item.title)
        else:
            kind, badge, title = "sure", "exact", escape(match.item.title)
        heard = f"<small>from “{said}”</small>" if kind != "free" and match.line.casefold() != match.item.title.casefold() else ""
        others = [catalog[row].title for row in match.alternatives if row != match.row][:3]
        options = "".join(
            f'<button type="button" data-line="{line}" data-title="{escape(other)}" aria-label="Use {escape(other)} instead of {said}">'
            f"{escape(other)}</button>"
            for other in dict.fromkeys(others)
        )
        question = f'<div class="gh-alternatives"><span>did you mean</span>{options}</div>' if options and kind != "sure" else ""
        rows.append(
            f'<li class="gh-line gh-{kind}"><div><span class="gh-title" dir="auto">{title}</span><em>{badge}</em>'
            f'<button type="button" class="gh-remove" data-line="{line}" data-title="" aria-label="Remove {said}">&times;</button></div>'
            f"{heard}{question}</li>"
        )
    more = len(history.matches) - len(rows)
    if more:
        rows.append(f'<li class="gh-note">and {more:,} more lines</li>')
    return f'<ul class="gh-lines" aria-label="How your lines were understood">{"".join(rows)}</ul>' if rows else ""


def results(recommendations: Sequence[RecommendationFields], note: str = "") -> str:
    """The ranked cards."""
    scores = [card["score"] for card in recommendations]
    floor, top = min(0.0, *scores), max(scores)
    cards = "".join(_card(card, (card["score"] - floor) / ((top - floor) or 1.0)) for card in recommendations)
    head = f'<p class="gh-note">{escape(note)}</p>'
    return f'<section aria-label="Recommendations" aria-live="polite">{head}<ol class="gh-cards">{cards}</ol></section>'


def _card(card: RecommendationFields, height: float) -> str:
    item, tokens = card["item"], card["identifier"]["tokens"]
    whole = sum(abs(token["score"]) for token in tokens) or 1.0
    path = [part.strip() for part in item["categories"].replace("|", ">").split(">") if part.strip()]
    trail = " \u203a ".join(dict.fromkeys(path[:1] + path[-1:]))
    meta = " · ".join(escape(part) for part in (item["brand"], trail) if part)
    price = f'<span class="gh-price">{escape(item["price"])}</span>' if item["price"] else ""
    bar = "".join(
        f'<i class="gh-c{slot % COLOURS}" style="flex-grow:{max(token["score"], 0) / whole:.4f}"></i>' for slot, token in enumerate(tokens)
    )
    chips = "".join(_chip(token, token["score"] / whole, slot) for slot, token in enumerate(tokens))
    because = card["because"]
    reason = ""
    if because:
        had = escape(because["item"]["title"])
        reason = f'<p class="gh-because">because you had <q dir="auto">{had}</q> <span>{because["share"]:.0%}</span></p>'
    return (
        f'<li class="gh-card"><span class="gh-rank" aria-label="Rank {card["rank"]}">{card["rank"]}</span><div class="gh-body">'
        f'<div class="gh-head"><h3 dir="auto">{escape(item["title"])}</h3>{price}</div><p class="gh-meta" dir="auto">{meta}</p>'
        f'<div class="gh-score" role="img" aria-label="Score {card["score"]:.3f}">'
        f'<span class="gh-track"><span style="width:{height:.1%}">{bar}</span></span>'
        f'<span class="gh-number">{card["score"]:.3f}</span></div>'
        f'<ul class="gh-tokens" aria-label="Generated identifier">{chips}</ul>{reason}</div></li>'
    )


def _chip(token: TokenFields, share: float, slot: int) -> str:
    tip = f"{token['slot']}: “{token['label']}” adds {token['score']:+.4f} to the score"
    return (
        f'<li class="gh-token gh-c{slot % COLOURS}" tabindex="0" data-tip="{escape(tip)}" aria-label="{escape(tip)}">'
        f'<span dir="auto">{escape(token["label"] or token["slot"])}</span><b>{share:.0%}</b></li>'
    )


def suggestions(titles: Sequence[str]) -> str:
    """Buttons that add a title to the history."""
    buttons = "".join(f'<button type="button" data-line="-1" data-title="{escape(title)}">{escape(title)}</button>' for title in titles)
    return f'<div class="gh-alternatives gh-suggestions"><span>from your catalogue</span>{buttons}</div>' if buttons else ""


def catalogue_summary(name: str, items: int, departments: int, seconds: float) -> str:
    """What an indexed catalogue holds."""
    shelves = f" in {departments:,} department{'s' if departments != 1 else ''}" if departments else ""
    plural = "s" if items != 1 else ""
    return (
        f'<div class="gh-notice gh-done" role="status"><strong><bdi>{escape(name)}</bdi> is ready</strong>'
        f"<p>{items:,} item{plural}{shelves}, indexed in {seconds:.1f} s. Only this browser session can use it; "
        "the file is deleted already.</p></div>"
    )
