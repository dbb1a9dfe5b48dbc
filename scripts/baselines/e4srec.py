"""E4SRec: an item is one token, whose embedding comes from collaborative filtering.

Source: Li et al., E4SRec, arXiv 2312.02443: a language model reads items as ID vectors of a trained sequential recommender and scores all
items at once.
Differs: the vectors (of the SASRec of the same split) are where the token embeddings start, trained on and shared with the output, in place
of two linear maps around frozen ones; no words around the history. Items without a CF vector start at random.
"""

from .codes import Code


def e4srec(size: int) -> list[Code]:
    """Gives every item its one token; pass the CF vectors to `codes.train_codes` as `vectors`."""
    return [(f"i{item}",) for item in range(size)]
