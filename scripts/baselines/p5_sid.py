"""P5-SID: items are numbered one after the other as users took them, and read digit pair by digit pair.

Source: Hua et al., How to Index Item IDs for Recommendation Foundation Models, SIGIR-AP 2023 (arXiv 2305.06569) section 4.2: items of one
user, one after the other, get neighbouring numbers and so share their first tokens.
As in the authors' code, training histories are numbered first; items that no training history holds follow.
Differs: those follow in the order of the catalogue. Numbers have equally many digits; a token is a pair of them (the paper's tokenizer
decides).
"""

import numpy as np

from genrec_hub.domain import Sequences

from .codes import Code, with_levels


def first_seen(training: Sequences, size: int) -> np.ndarray:
    """The place of each item among the items in order of their first training interaction, users one after the other. Shape: -> (V,)."""
    seen, first = np.unique(training.items, return_index=True)
    order = seen[np.argsort(first)]
    places = np.empty(size, np.int64)
    places[np.concatenate([order, np.setdiff1d(np.arange(size), order)])] = np.arange(size)
    return places


def p5_sid(training: Sequences, size: int) -> list[Code]:
    """Gives every item its code."""
    pairs = max(1, -(-len(str(size - 1)) // 2))
    places = first_seen(training, size)
    return with_levels([[int(places[item]) // 100**power % 100 for power in range(pairs - 1, -1, -1)] for item in range(size)])
