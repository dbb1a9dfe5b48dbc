"""Words for the tokens of a set: each stands for the items that lie nearest to it in its own slot.

Dims: V catalogue size · Q tokens of an identifier · D hidden size · K items · n neighbours.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from .catalog import Catalog
from .modeling_setrec import SETRecModel
from .text import typical_words

NEIGHBOURS = 6
"""Items whose words label a token."""
POOL = 4096
"""Items among which the neighbours of a token are looked for."""
WORDS = 16
"""Words from which a token's label takes the first two that no other token of the item has taken."""

Features = Mapping[str, torch.Tensor]


@torch.inference_mode()
def labels_of(model: SETRecModel, catalog: Catalog, features: Features, rows: Sequence[int]) -> list[list[str]]:
    """The label of each token of each item: the words most typical of the item and its neighbours. Shape: K rows -> K x Q."""
    near = neighbours(model, features, tokens_of(model, features, rows), NEIGHBOURS)[0].tolist()
    labels = []
    for row, around in zip(rows, near, strict=True):
        own: list[str] = []
        used: set[str] = set()
        for places in around:
            texts = [catalog.labels[r] for r in dict.fromkeys([row, *places])]
            words = typical_words(texts, catalog.label_frequency, len(catalog), most=WORDS)
            fresh = [word for word in words if word not in used][:2] or words[:2]
            used.update(fresh)
            own.append(" ".join(fresh) or catalog[row].title)
        labels.append(own)
    return labels


def neighbours(model: SETRecModel, features: Features, tokens: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and cosines of the items nearest to each token, in its own slot. Shape: (K, Q, D) -> (K, Q, n) twice."""
    pool = spread(len(features["semantic"]), POOL)
    around = tokens_of(model, features, pool)
    centre = around.mean(0)
    around, tokens = F.normalize(around - centre, dim=-1), F.normalize(tokens - centre, dim=-1)
    found = torch.einsum("kqd,pqd->kqp", tokens, around).topk(min(most, len(pool)), dim=-1)
    return pool[found.indices.cpu()], found.values


def tokens_of(model: SETRecModel, features: Features, rows: Sequence[int] | np.ndarray | torch.Tensor) -> torch.Tensor:
    """Shape: K rows -> (K, Q, D)."""
    places = torch.as_tensor(rows, dtype=torch.long)
    return model.tokenize(*(features[name][places].to(model.device) for name in ("semantic", "cf") if name in features))


def spread(size: int, most: int) -> torch.Tensor:
    """Rows that are evenly spread over a catalogue. Shape: -> (n,)."""
    return torch.linspace(0, size - 1, min(most, size), dtype=torch.float64).long().unique()
