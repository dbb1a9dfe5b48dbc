"""The markup of "How this answer was made": time per stage, what stands near each token, the identifiers that were considered."""

from collections.abc import Collection, Mapping, Sequence
from html import escape
from math import exp
from typing import Any, Final

from .demo_cards import COLOURS, BeamFields, RecommendationFields, marked, named, percent

STAGES: Final = {
    "read": "read the history",
    "generate": "generate the identifier",
    "rank": "rank the catalogue",
    "search": "search the prefix tree",
    "reasons": "find the reasons",
    "labels": "put tokens into words",
    "other": "everything else",
}


def stages(times: Mapping[str, float], total: float) -> str:
    """A bar of the stages of an answer. `times` and `total` are seconds."""
    rest = {**times, "other": max(0.0, total - sum(times.values()))}
    shown = [(STAGES.get(name, name), seconds) for name, seconds in rest.items() if seconds > 0]
    bar = "".join(f'<i class="gh-c{n % COLOURS}" style="flex-grow:{1000 * seconds:.4f}"></i>' for n, (_, seconds) in enumerate(shown))
    key = "".join(
        f'<li class="gh-c{n % COLOURS}"><i></i>{escape(name)} <b>{1000 * seconds:,.1f} ms</b></li>'
        for n, (name, seconds) in enumerate(shown)
    )
    return (
        f"<h3>Time: {1000 * total:,.0f} ms</h3>"
        f'<div class="gh-stages" aria-hidden="true">{bar}</div><ul class="gh-key" aria-label="Time per stage">{key}</ul>'
    )


def nearest(described: Sequence[Mapping[str, Any]], recommendations: Sequence[RecommendationFields]) -> str:
    """What the generated tokens and those of the recommendations stand for, by the items nearest to each."""
    if not described:
        return ""
    known = {card["item"]["item_id"]: card for card in recommendations}
    parts = [
        "<h3>What the model generated</h3>"
        "<p>A set of tokens. None has words of its own: these are the items whose tokens lie nearest, with their similarity.</p>"
    ]
    for entry in described:
        slots = "".join(_slot(number, token, known.get(entry["item_id"])) for number, token in enumerate(entry["tokens"]))
        table = f'<div class="gh-near-items">{slots}</div>'
        if entry["item_id"] is None:
            parts.append(table)
            parts.append("<h3>What the tokens of each recommendation stand for</h3>")
            continue
        card = known[entry["item_id"]]
        parts.append(
            f'<details><summary><b>{card["rank"]}</b> <span dir="auto">{escape(card["item"]["title"])}</span></summary>{table}</details>'
        )
    return "".join(parts)


def _slot(number: int, token: Mapping[str, Any], card: RecommendationFields | None) -> str:
    label = named(str(token["slot"]))
    own = card["identifier"].get("tokens", []) if card else []
    if number < len(own):
        this = own[number]
        if isinstance(this, dict):
            label = f"{label}: {this['label']}"
    items = "".join(f'<li dir="auto">{escape(item["title"])} <b>{item["similarity"]:.2f}</b></li>' for item in token["nearest"])
    return f'<div class="gh-c{number % COLOURS}"><h4 dir="auto">{escape(label)}</h4><ol>{items}</ol></div>'


def beams(considered: Sequence[BeamFields], said: Collection[str]) -> str:
    """The table of the identifiers that a search considered."""
    if not considered:
        return ""
    top = max(exp(min(beam["score"], 0.0)) for beam in considered) or 1.0
    whole = all(abs(beam["score"] - beam["logprob"]) < 1e-6 for beam in considered)
    rows = []
    for number, beam in enumerate(considered, 1):
        probability = exp(min(beam["score"], 0.0))
        item = f'<span dir="auto">{escape(beam["item"]["title"])}</span>' if beam["item"] else '<em class="gh-none">no item has it</em>'
        rows.append(
            f'<tr><td>{number}</td><td class="gh-words">{marked(beam["text"], said)}</td><td class="gh-share">'
            f'<i class="gh-c0" style="width:{max(probability / top, 0.01):.1%}"></i><b>{percent(probability)}</b></td><td>{item}</td></tr>'
        )
    of = "the whole text" if whole else "a word piece in the mean, so that long ones have a chance"
    head = '<tr><th scope="col">#</th><th scope="col">identifier</th><th scope="col">probability</th><th scope="col">item</th></tr>'
    return (
        f"<h3>What the model considered</h3><p>The most probable identifiers of its search, with the probability of {of}; "
        "words shared with your history are marked.</p>"
        f'<div class="gh-scroll" tabindex="0" role="region" aria-label="Considered identifiers">'
        f'<table class="gh-table"><thead>{head}</thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def section(name: str, body: str) -> str:
    """The details of one model; `name` is "" when it is the only one."""
    head = f"<h2>{escape(name)}</h2>" if name else ""
    return f'<section class="gh-details">{head}{body}</section>'
