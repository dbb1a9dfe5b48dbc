"""What the words of a history promise: IDs that share its rare and recent tokens are preferred.

Differs: IDGenRec has no such term; a small recommender without it has to learn to copy from examples, and on catalogues that it never saw
it cannot.

Dims: B batch · L items in a history · V catalogue size · W vocabulary size.
"""

from collections.abc import Sequence

import numpy as np
import torch

FlatTokens = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def token_rarity(tokens: Sequence[Sequence[int]], width: int) -> torch.Tensor:
    """log(V / items whose ID holds a token) / log V: 1 for a token of one item, 0 for one of all or of none. Shape: V IDs -> (W,)."""
    size = len(tokens) + 1
    counts = torch.zeros(width)
    for own in tokens:
        counts[list(set(own))] += 1
    return torch.where(counts > 0, (size / counts.clamp(min=1)).log(), 0.0) / float(np.log(size))


def copy_bias(history: Sequence[Sequence[int]], rarity: torch.Tensor, copy: float, decay: float) -> torch.Tensor:
    """What is added to the logits after each prefix of a history: tokens of its IDs are preferred, rare and recent ones more.

    The value of a token is copy x sum over the items that hold it of exp(-decay x items since) x rarity.

    Shape: L IDs, rarity (W,) -> (L + 1, W), after 0, 1, .. L items.
    """
    rows = [torch.zeros(len(rarity))]
    for own in history:
        following = rows[-1] * float(np.exp(-decay))
        held = list(set(own))
        following[held] += copy * rarity[held]
        rows.append(following)
    return torch.stack(rows)


def flat_tokens(tokens: Sequence[Sequence[int]]) -> FlatTokens:
    """The tokens of all IDs one after the other, the row of each, and the length of each ID with its end."""
    lengths = torch.tensor([len(own) for own in tokens])
    flat = torch.tensor([token for own in tokens for token in own])
    return flat, torch.repeat_interleave(torch.arange(len(lengths)), lengths), lengths + 1


def promising(tokens: FlatTokens, bias: torch.Tensor, most: int, length_penalty: float, open_: torch.Tensor) -> torch.Tensor:
    """The items of which the preferred tokens promise most: what their scores would be if nothing but `copy_bias` spoke.

    A beam search keeps what begins well; an ID whose last word is the telling one falls out before it is read. Restricted to the promising
    items, the tree is small enough for the beams: no more items than beams, and nothing falls out.

    Differs: IDGenRec searches the whole tree. Its beams see only what has been written; this is a look ahead.

    Shape: bias (B, W), open_ (B, V) or (1, V) true for items that may come -> (B, V), at most `most` true for each user.
    """
    flat, owner, lengths = tokens
    told = bias.new_zeros(len(bias), len(lengths)).index_add_(1, owner, bias[:, flat])
    scores = (told - lengths * bias.logsumexp(1, keepdim=True)) / lengths**length_penalty
    scores = scores.masked_fill(~open_, -torch.inf)
    best = scores.topk(min(most, scores.shape[1])).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True) & open_
