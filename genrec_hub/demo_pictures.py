"""Pictures for the page that explains the identifiers: plain SVG, every text in it escaped."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Final

from .demo_cards import COLOURS, RecommendationFields, stem

CELL: Final = 15
LETTER: Final = 7.2
"""Width of a letter of the pictures' font at 13 px, about."""
STEP: Final = 40
"""From the end of a branch to the beginning of those below it."""


def _svg(width: float, height: float, said: str, body: str, classes: str = "") -> str:
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px;--wide:{width:.0f}px"'
    return f'<svg class="gh-svg {classes}" {size} role="img" aria-label="{escape(said)}">{body}</svg>'


def attention_mask(visible: Sequence[Sequence[bool]], groups: Sequence[int], names: Sequence[str], said: str) -> str:
    """A mask as a grid: a row sees the coloured columns.

    Args:
        visible: (S, S) true where the row sees the column.
        groups: (S,) colour of each place, -1 for grey.
        names: (S,) label of each place.
        said: the picture in words.
    """
    margin, size = 30, len(names)
    parts = []
    for place, (name, group) in enumerate(zip(names, groups, strict=True)):
        at = margin + place * CELL + CELL / 2
        tone = f"gh-c{group % COLOURS}" if group >= 0 else "gh-grey"
        parts.append(f'<text class="{tone}" x="{margin - 5}" y="{at + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<text class="{tone}" x="{at:.1f}" y="{margin - 7}" text-anchor="middle">{escape(name)}</text>')
    for row in range(size):
        for column in range(size):
            tone = "gh-off" if not visible[row][column] else f"gh-c{groups[column] % COLOURS}" if groups[column] >= 0 else "gh-grey"
            x, y = margin + column * CELL, margin + row * CELL
            parts.append(f'<rect class="{tone}" x="{x}" y="{y}" width="{CELL - 1.5}" height="{CELL - 1.5}" rx="3"/>')
    return _svg(margin + size * CELL, margin + size * CELL, said, "".join(parts), "gh-mask")


def token_set(title: str, tokens: Sequence[dict[str, Any]], nearest: Sequence[dict[str, Any]]) -> str:
    """An item and its tokens, each with its label and the items nearest to it."""
    shown = [(token, near["nearest"][:2]) for token, near in zip(tokens, nearest, strict=False)]
    step, left, width = 60, 205, 880
    height = step * len(shown) + 8
    middle = height / 2
    parts = [
        f'<rect class="gh-box" x="2" y="{middle - 40}" width="150" height="80" rx="12"/>',
        *_wrapped(title, 77, middle, 17, 4),
    ]
    for slot, (token, near) in enumerate(shown):
        y = step * slot + 8
        at = y + step / 2 - 6
        tone = f"gh-c{slot % COLOURS}"
        parts.append(f'<path class="gh-edge {tone}" d="M152 {middle} C 185 {middle}, 172 {at}, {left} {at}"/>')
        parts.append(f'<rect class="{tone} gh-wash" x="{left}" y="{y}" width="{width - left - 2}" height="{step - 12}" rx="10"/>')
        parts.append(
            f'<text class="{tone} gh-strong" x="{left + 14}" y="{y + 22}">{escape(_cut(str(token["label"] or token["slot"]), 40))}</text>'
        )
        if near:
            text = "near " + " · ".join(_cut(str(item["title"]), 46) for item in near)
            parts.append(f'<text class="gh-quiet" x="{left + 14}" y="{y + 39}">{escape(text)}</text>')
    said = f"{title} as a set of {len(shown)} tokens: {', '.join(str(token['label']) for token, _ in shown)}"
    return _svg(width, height, said, "".join(parts))


@dataclass
class _Branch:
    words: list[str]
    below: dict[str, "_Branch"] = field(default_factory=dict)
    ends: list[RecommendationFields] = field(default_factory=list)


def prefix_tree(recommendations: Sequence[RecommendationFields], said: Collection[str]) -> str:
    """The identifiers of the visible results as one tree: what two of them begin with is written once.

    Words shared with the history (stems in `said`) are marked.
    """
    root = _Branch([])
    for card in recommendations:
        branch = root
        for word in card["identifier"]["text"].split():
            branch = branch.below.setdefault(word, _Branch([word]))
        branch.ends.append(card)
    _join(root)
    parts: list[str] = []
    ends_at = _reach(root, 16) + 36
    count = _draw(root, 16, 0, ends_at, said, parts)
    height = 30.0 * max(count, 1) + 10
    titles = "; ".join(f"{card['identifier']['text']} is {card['item']['title']}" for card in recommendations)
    return _svg(ends_at + 360, height, f"Prefix tree of {len(recommendations)} identifiers: {titles}", "".join(parts))


def _join(branch: _Branch) -> None:
    """Makes one branch of those that never part."""
    while len(branch.below) == 1 and not branch.ends and branch.words:
        (only,) = branch.below.values()
        branch.words, branch.below, branch.ends = branch.words + only.words, only.below, only.ends
    for one in branch.below.values():
        _join(one)


def _reach(branch: _Branch, x: float) -> float:
    """Where the words of a branch that begins at `x`, and of all below it, end."""
    out = x + len(" ".join(branch.words)) * LETTER + 8
    return max([out, *(_reach(one, out + STEP) for one in branch.below.values())])


def _draw(branch: _Branch, x: float, row: int, ends_at: float, said: Collection[str], parts: list[str]) -> int:
    """Draws a branch from `row` on and returns the first row that is free."""
    start = row
    y = _height(start)
    label = "".join(f'<tspan class="{"gh-shared" if stem(word) in said else ""}">{escape(word)} </tspan>' for word in branch.words)
    parts.append(f'<text x="{x}" y="{y + 4}">{label}</text>' if label else f'<circle class="gh-c0" cx="{x}" cy="{y}" r="5"/>')
    out = x + len(" ".join(branch.words)) * LETTER + 8
    for card in branch.ends:
        end = _height(row)
        parts.append(f'<path class="gh-edge" d="M{out} {y} C {out + 20} {y}, {ends_at - 24} {end}, {ends_at - 8} {end}"/>')
        title = _cut(card["item"]["title"], 40)
        parts.append(f'<text class="gh-strong" x="{ends_at}" y="{end + 4}">{card["rank"]} · {escape(title)}</text>')
        row += 1
    for one in branch.below.values():
        to = _height(row)
        at = out + STEP - 6
        parts.append(f'<path class="gh-edge" d="M{out} {y} C {out + 16} {y}, {at - 16} {to}, {at} {to}"/>')
        row = _draw(one, out + STEP, row, ends_at, said, parts)
    return max(row, start + 1)


def _height(row: int) -> float:
    return 20 + 30.0 * row


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _wrapped(text: str, x: float, middle: float, letters: int, lines: int) -> list[str]:
    """Centred lines of text around a height."""
    rows: list[str] = [""]
    for word in text.split():
        if rows[-1] and len(rows[-1]) + 1 + len(word) > letters:
            rows.append("")
        rows[-1] = f"{rows[-1]} {word}".strip()
    if len(rows) > lines:
        rows = [*rows[: lines - 1], _cut(" ".join(rows[lines - 1 :]), letters)]
    top = middle - 8 * (len(rows) - 1) + 4
    return [
        f'<text class="gh-strong" x="{x}" y="{top + 16 * n:.1f}" text-anchor="middle">{escape(_cut(row, letters))}</text>'
        for n, row in enumerate(rows)
    ]
