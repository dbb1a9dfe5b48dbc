"""The sparse set mask, compact positions, and the packed layout in which every prefix of a history is asked in one forward.

Dims: B batch · L items in a history · Q tokens of an identifier · T prompt tokens · R response tokens · S sequence length · A asked prefixes.

Source: SETRec section 3.2 and Figure 5: a token of an item sees the prompt, earlier items and itself, but no other token of its own item;
a query sees everything before it and itself, but no other query.
Differs: positions are compact (the published code leaves a gap of L(Q-1) after the history and numbers pads); padding never counts.
"""

from collections.abc import Sequence
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
    item_mask: torch.Tensor, tokens: int, prompt: int, response: int, packed: bool, token_mask: torch.Tensor | None = None
) -> SetLayout:
    """Lays out a batch of histories.

    Args:
        item_mask: (B, L) true for real items, padding on the left.
        tokens: Q, tokens of an item and number of queries.
        prompt: T, tokens before the history.
        response: R, tokens between the history and the queries.
        packed: ask every prefix (A = L + 1: after 0, 1, .. L columns) instead of only the whole history (A = 1).
        token_mask: (B, L, Q) false for tokens that an item lacks (no CF vector); nothing sees them. All true when None.
    """
    batch, length = item_mask.shape
    device = item_mask.device
    counts = item_mask.long().cumsum(1)
    before = torch.cat([counts.new_zeros(batch, 1), counts], 1)
    columns = torch.arange(length + 1, device=device) if packed else torch.tensor([length], device=device)
    known = before[:, columns]
    asked = (columns[None, :] == length) | item_mask[:, columns.clamp(max=length - 1)] if length else torch.ones_like(known, dtype=torch.bool)

    block = response + tokens
    step = torch.cat([torch.arange(response, device=device), torch.full((tokens,), response, device=device)])
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
