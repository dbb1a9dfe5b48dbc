"""Grounding: the exact low-rank form against the per-token form.

Dims: B batch · Q tokens of an identifier · D hidden size · V catalogue size · W index width.
"""

import torch

from genrec_hub import SETRecConfig, SETRecModel
from genrec_hub.grounding import top_k
from genrec_hub.recipes import small_backbone

from .timing import interleaved


def low_rank(size: int, rounds: int, users: int = 8, shown: int = 20) -> tuple[dict[str, float], float]:
    """CPU seconds for the best 20 items of a batch (D 512, 4 + 1 slots, autoencoder 128 wide), and how much smaller the index is.

    `plain` is the published form: a product per token with the items' tokens, and the weighted sum. `joined` is one product of all tokens,
    `mkl` ours without oneDNN.

    Raises:
        RuntimeError: when the forms do not give the same items in the same order.
    """
    torch.manual_seed(0)
    model = SETRecModel(SETRecConfig(text_config=small_backbone(512, 1), semantic_tokens=4, cf_size=64, grounding="latent")).eval()
    semantic, cf, generated = torch.randn(size, 384), torch.randn(size, 64), torch.randn(users, 5, 512)
    with torch.inference_mode():
        index, weights = model.index(semantic, cf), model.slot_weights(generated)
        table = torch.cat([model.tokenize(*part) for part in zip(semantic.split(8192), cf.split(8192), strict=True)])

    @torch.inference_mode()
    def plain() -> torch.Tensor:
        scores = torch.stack([weights[slot] * (generated[:, slot] @ table[:, slot].T) for slot in range(5)])
        return scores.sum(0).topk(shown).indices

    @torch.inference_mode()
    def joined() -> torch.Tensor:
        return ((generated * weights[:, None]).flatten(1) @ table.flatten(1).T).topk(shown).indices

    @torch.inference_mode()
    def ours() -> torch.Tensor:
        return top_k(model.ground(generated), index, shown)[1]

    def mkl() -> torch.Tensor:
        with torch.backends.mkldnn.flags(enabled=False):
            return ours()

    if not (torch.equal(plain(), ours()) and torch.equal(joined(), ours())):
        raise RuntimeError("The forms of grounding disagree on the top 20.")
    return interleaved({"plain": plain, "joined": joined, "ours": ours, "mkl": mkl}, rounds), table.numel() / index.numel()
