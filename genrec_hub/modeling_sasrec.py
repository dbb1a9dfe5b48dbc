"""SASRec as a PreTrainedModel: the CF tokenizer of SETRec, and the baseline to beat.

Dims: B batch · L items in a history · D hidden size · V catalogue size · P scored positions · C candidates of a step.

Source: Kang and McAuley, Self-Attentive Sequential Recommendation, ICDM 2018; softmax training instead of one negative per target
as in Klenitskiy and Vasilev, RecSys 2023, and Petrov and Macdonald, RecSys 2023.
Differs: pre-norm blocks; cosine scores over a temperature (an option, on by default); positions count from the first item that is read,
so that padding never matters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .checkpoint import HubModel
from .configuration_sasrec import SASRecConfig
from .set_attention import length_batches, pad_left


@dataclass
class SASRecOutput(ModelOutput):
    """`loss` (when labels are given) and `hidden_states`, the user state after each item. Shape: (B, L, D)."""

    loss: torch.Tensor | None = None
    hidden_states: torch.Tensor | None = None


class SASRecBlock(nn.Module):
    """Pre-norm causal self-attention and feed-forward."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads, self.rate = config.num_heads, config.dropout
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Shape: hidden (B, L, D), mask (B, 1, L, L) true where visible -> (B, L, D)."""
        batch, length, width = hidden.shape
        qkv = self.qkv(self.norm_attention(hidden)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        rate = self.rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)
        hidden = hidden + F.dropout(self.out(mixed.transpose(1, 2).reshape(batch, length, width)), self.rate, self.training)
        fed = self.down(F.dropout(F.gelu(self.up(self.norm_feed(hidden))), self.rate, self.training))
        return hidden + F.dropout(fed, self.rate, self.training)


class SASRecModel(HubModel, PreTrainedModel):
    """A causal transformer over item embeddings whose state after a history scores all items.

    Item row r of the catalogue is id r + 1; id 0 is padding, on the left.
    """

    config: SASRecConfig
    config_class = SASRecConfig
    base_model_prefix = "sasrec"
    main_input_name = "item_ids"
    _no_split_modules: ClassVar[list[str]] = ["SASRecBlock"]

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__(config)
        self.items = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        self.positions = nn.Embedding(config.max_length, config.hidden_size)
        self.blocks = nn.ModuleList(SASRecBlock(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    def encode(self, item_ids: torch.Tensor) -> torch.Tensor:
        """Returns the state after each item. Shape: item_ids (B, L), 0 = padding on the left -> (B, L, D)."""
        item_ids = item_ids[:, -self.config.max_length :]
        real = item_ids > 0
        position = (real.long().cumsum(1) - 1).clamp(min=0)
        hidden = self.items(item_ids) * self.config.hidden_size**0.5 + self.positions(position)
        hidden = F.dropout(hidden, self.config.dropout, self.training)
        length = item_ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=item_ids.device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=item_ids.device)
        mask = (causal & real[:, None, :]) | itself
        for block in self.blocks:
            hidden = block(hidden, mask[:, None])
        return self.norm(hidden)

    def logits(self, states: torch.Tensor, candidates: torch.Tensor | None = None) -> torch.Tensor:
        """Scores items. Shape: states (..., D), candidates (C,) ids or None = all items -> (..., C) or (..., V)."""
        table = self.items.weight[1:] if candidates is None else self.items(candidates)
        if self.config.cosine:
            return F.normalize(states, dim=-1) @ F.normalize(table, dim=-1).T / self.config.temperature
        return states @ table.T

    def forward(
        self,
        item_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        candidates: torch.Tensor | None = None,
        own: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **_: Any,
    ) -> SASRecOutput:
        """Runs the model; with labels also the cross-entropy of the next item at every position.

        Args:
            item_ids: (B, L) ids, 0 = padding on the left; L at most `config.max_length`.
            labels: (B, L) place, among the candidates, of the item that follows each position; -100 = none.
            candidates: (C,) rows of the catalogue that the loss contrasts with; all when None.
            own: (B, C) true for candidates that are the user's own items: no negatives for this user (its targets stay targets).
            num_items_in_batch: targets of the whole (accumulated, distributed) batch, for the mean.
        """
        hidden = self.encode(item_ids)
        if labels is None:
            return SASRecOutput(hidden_states=hidden)
        keep = labels >= 0
        targets = labels[keep]
        scores = self.logits(hidden[keep], None if candidates is None else candidates + 1)
        if own is not None:
            shut = own[keep.nonzero()[:, 0]]
            shut[torch.arange(len(targets), device=targets.device), targets] = False
            scores = scores.masked_fill(shut, torch.finfo(scores.dtype).min)
        total = F.cross_entropy(scores, targets, reduction="sum")
        return SASRecOutput(loss=total / (num_items_in_batch or max(1, len(targets))), hidden_states=hidden)

    @torch.no_grad()
    def score(self, histories: Sequence[np.ndarray], batch_size: int = 128) -> torch.Tensor:
        """Scores all items for histories given as rows of the catalogue; an empty history scores 0 everywhere.

        Shape: B arrays of rows -> (B, V).
        """
        scores = torch.zeros(len(histories), self.config.num_items)
        for rows in length_batches([len(h) for h in histories], batch_size):
            rows = rows[[len(histories[r]) > 0 for r in rows]]
            if len(rows):
                ids = pad_left([histories[r] for r in rows], self.config.max_length) + 1
                scores[rows] = self.logits(self.encode(ids.to(self.device))[:, -1]).float().cpu()
        return scores

    def item_vectors(self) -> torch.Tensor:
        """The CF vectors of all items, unit length when the model scores by cosine. Shape: (V, D)."""
        table = self.items.weight[1:].detach()
        return F.normalize(table, dim=-1) if self.config.cosine else table


def shift_score(vectors: torch.Tensor, sequences: list[torch.Tensor], shift: int = 0, seed: int = 0) -> float:
    """Tells whether a CF matrix is aligned with its items: mean centred cosine of neighbours in the histories minus that of random pairs.

    Well above 0 when row r belongs to item r; about 0 when the rows are shifted (SETRec's released matrices are, by one).

    Args:
        vectors: (V, C) CF matrix.
        sequences: rows of items per user.
        shift: added to the rows, to test another alignment.
        seed: of the random pairs.
    """
    unit = F.normalize(vectors - vectors.mean(0), dim=-1)
    pairs = torch.cat([torch.stack([s[:-1], s[1:]], 1) for s in sequences if len(s) > 1]) + shift
    pairs = pairs[(pairs >= 0).all(1) & (pairs < len(unit)).all(1) & (pairs[:, 0] != pairs[:, 1])]
    other = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)), 1]
    near = (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(1).mean()
    return float(near - (unit[pairs[:, 0]] * unit[other]).sum(1).mean())
