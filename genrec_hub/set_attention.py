"""The sparse set mask, positions, and two layouts in which every prefix of a history is asked in one forward.

`set_layout` packs all prefixes into one causal sequence (decoder-only backbones), `prefix_layout` makes each a row of its own (encoders).

Dims: B batch · L items in a history · Q tokens of an identifier · T prompt tokens · R response tokens · S sequence length ·
A asked prefixes · P prefixes with equally many items.

Source: SETRec section 3.2 and Figure 5: a token of an item sees the prompt, earlier items and itself, but no other token of its own item;
a query sees everything before it and itself, but no other query. In a bidirectional encoder, later items are seen too.
Differs: positions are compact, and padding never counts. `released` gives the published code's positions instead: a gap of
(items x (Q - 1)) after the history, and for decoder-only backbones consecutive positions for the queries; in an encoder, tokens of one item
then see each other. The published code numbers pads as well; here they never count, as in its tests, which ask one history at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class SetLayout:
    """Where everything stands in one forward pass, and what may see what.

    The sequence is `[prompt][items: L x Q][asked prefixes: A x (R + Q)]`.

    Attributes:
        positions: (B, S) compact position ids.
        visible: (B, S, S) true where the row may look at the column; every row sees itself.
        asked: (B, A) true where the prefix exists (it does not start inside the padding).
    """

    positions: torch.Tensor
    visible: torch.Tensor
    asked: torch.Tensor

    def additive(self, dtype: torch.dtype) -> torch.Tensor:
        """The mask as 0 / lowest float: right on eager and sdpa alike (a boolean mask is silently wrong on eager). Shape: (B, 1, S, S)."""
        mask = torch.zeros(self.visible.shape, dtype=dtype, device=self.visible.device)
        return mask.masked_fill_(~self.visible, torch.finfo(dtype).min)[:, None]


def set_layout(
    item_mask: torch.Tensor,
    tokens: int,
    prompt: int,
    response: int,
    packed: bool,
    token_mask: torch.Tensor | None = None,
    released: bool = False,
) -> SetLayout:
    """Lays out a batch of histories as causal sequences.

    Args:
        item_mask: (B, L) true for real items, padding on the left.
        tokens: Q, tokens of an item and number of queries.
        prompt: T, tokens before the history.
        response: R, tokens between the history and the queries.
        packed: ask every prefix (A = L + 1: after 0, 1, .. L columns) instead of only the whole history (A = 1).
        token_mask: (B, L, Q) false for tokens that an item lacks (no CF vector); nothing sees them. All true when None.
        released: positions of the published code.
    """
    batch, length = item_mask.shape
    device = item_mask.device
    columns, before, known, asked = _prefixes(item_mask, packed)

    block = response + tokens
    step = torch.arange(block, device=device)
    if released:
        known = known * tokens
    else:
        step = step.clamp(max=response)
    positions = torch.cat(
        [
            torch.arange(prompt, device=device).expand(batch, prompt),
            (prompt + before[:, :-1]).repeat_interleave(tokens, 1),
            (prompt + known[:, :, None] + step).flatten(1),
        ],
        1,
    )

    # A row's horizon: it sees the item columns before it. Prompt rows see none.
    horizon = torch.cat(
        [
            torch.zeros(prompt, dtype=torch.long, device=device),
            torch.arange(length, device=device).repeat_interleave(tokens),
            columns.repeat_interleave(block),
        ]
    )
    size = len(horizon)
    real = item_mask[:, :, None].expand(batch, length, tokens) if token_mask is None else item_mask[:, :, None] & token_mask
    column_of_item = torch.arange(length, device=device).repeat_interleave(tokens)
    visible = torch.zeros(batch, size, size, dtype=torch.bool, device=device)
    items = slice(prompt, prompt + length * tokens)
    visible[:, :, items] = (column_of_item[None, :] < horizon[:, None])[None] & real.flatten(1)[:, None, :]
    visible[:, :, :prompt] = True
    visible[:, :prompt, :prompt] = torch.ones(prompt, prompt, dtype=torch.bool, device=device).tril()
    if response:
        start = prompt + length * tokens
        own = torch.zeros(block, block, dtype=torch.bool, device=device)
        own[:response, :response] = torch.ones(response, response, dtype=torch.bool, device=device).tril()
        own[response:, :response] = True
        visible[:, start:, start:] = torch.block_diag(*[own] * len(columns)).bool()
    visible |= torch.eye(size, dtype=torch.bool, device=device)
    return SetLayout(positions, visible, asked)


@dataclass(frozen=True)
class PrefixLayout:
    """Every asked prefix as a row of its own, for an encoder. Rows with equally many items form a batch: nothing is ever padded.

    Attributes:
        asked: (B, A) true where the prefix exists.
        counts: (B, A) items of the prefix.
        columns: (B, L) columns of the history, real ones first, in order.
        token_mask: (B, L, Q) false for tokens that an item lacks, or None.
        sizes: Q, T and R.
        released: the published code's positions and mask.
    """

    asked: torch.Tensor
    counts: torch.Tensor
    columns: torch.Tensor
    token_mask: torch.Tensor | None
    sizes: tuple[int, int, int]
    released: bool

    def batches(self, scores: int, heads: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yields users (P,), asks (P,) and columns (P, items) of equally long prefixes, at most `scores` attention scores a layer."""
        tokens, prompt, response = self.sizes
        for count in self.counts[self.asked].unique().tolist():
            users, asks = (self.asked & (self.counts == count)).nonzero(as_tuple=True)
            rows = max(1, scores // (heads * max(1, prompt + count * tokens + response) ** 2))
            for start in range(0, len(users), rows):
                own = users[start : start + rows]
                yield own, asks[start : start + rows], self.columns[own, :count]

    def encoder(self, items: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions and mask of `[prompt][items x Q][response]`. Shape: -> (S,), (S, S) true where the row may look at the column."""
        (tokens, prompt, response), device = self.sizes, self.asked.device
        places = [torch.arange(prompt), torch.arange(items).repeat_interleave(tokens), torch.arange(response)]
        starts = [0, prompt, prompt + items * (tokens if self.released else 1)]
        owner = torch.cat([place + start for place, start in zip(places, [0, prompt, prompt + items], strict=True)]).to(device)
        positions = torch.cat([place + start for place, start in zip(places, starts, strict=True)]).to(device)
        visible = (owner[:, None] != owner[None, :]) | torch.eye(len(owner), dtype=torch.bool, device=device)
        return positions, torch.ones_like(visible) if self.released else visible


def prefix_layout(
    item_mask: torch.Tensor,
    tokens: int,
    prompt: int,
    response: int,
    packed: bool,
    token_mask: torch.Tensor | None = None,
    released: bool = False,
) -> PrefixLayout:
    """Lays out a batch of histories as one row per asked prefix; arguments as those of `set_layout`."""
    _, _, counts, asked = _prefixes(item_mask, packed)
    columns = (~item_mask).long().argsort(dim=1, stable=True)
    return PrefixLayout(asked, counts, columns, token_mask, (tokens, prompt, response), released)


def _prefixes(item_mask: torch.Tensor, packed: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The asked prefixes: where they end (A,), real items before each column (B, L + 1) and prefix (B, A), and which exist (B, A)."""
    batch, length = item_mask.shape
    counts = item_mask.long().cumsum(1)
    before = torch.cat([counts.new_zeros(batch, 1), counts], 1)
    columns = torch.arange(length + 1, device=item_mask.device) if packed else torch.tensor([length], device=item_mask.device)
    known = before[:, columns]
    asked = torch.ones_like(known, dtype=torch.bool)
    if length:
        asked = (columns[None, :] == length) | item_mask[:, columns.clamp(max=length - 1)]
    return columns, before, known, asked


def pad_left(sequences: Sequence[Sequence[int] | np.ndarray], most: int | None = None, fill: int = -1) -> torch.Tensor:
    """Stacks sequences, each cut to its last `most` entries, padded on the left. Shape: B sequences -> (B, L) long, L >= 1."""
    cut = [np.asarray(s, np.int64)[-most:] if most else np.asarray(s, np.int64) for s in sequences]
    out = np.full((len(cut), max([1, *map(len, cut)])), fill, np.int64)
    for row, own in enumerate(cut):
        if len(own):
            out[row, -len(own) :] = own
    return torch.from_numpy(out)


def length_batches(lengths: Sequence[int] | np.ndarray, size: int) -> list[np.ndarray]:
    """Groups rows of similar length, so that little is padded. Returns arrays of row numbers, longest first."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]
