"""One-shot SETRec against beam search at an equal backbone, against its own encoder, and recommendations a second.

Dims: B batch · V catalogue size.
"""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from transformers import T5ForConditionalGeneration

from genrec_hub import SASRecConfig, SASRecModel, SETRecConfig, SETRecModel, products
from genrec_hub.beam_search import constrained_beam_search
from genrec_hub.grounding import top_k
from genrec_hub.products import fast_products
from genrec_hub.recipes import small_backbone
from genrec_hub.trie import Trie

from .search import EOS, backbone_config, identifiers, prefix_function, prompts, same_items
from .timing import interleaved


def against_beams(size: int, rounds: int, users: int = 8, width: int = 20) -> dict[str, float]:
    """CPU seconds of the best 20 items by one pass, by generate() under a prefix function, by our beams; of the encoder alone.

    The encoder multiplies as the pass does (see `products`); `mkl` is the pass with the matrix products of generate(), without oneDNN.

    Everything reads 128 positions with T5 of width 256 and 4 + 4 layers: three prompt tokens and 25 items of 4 + 1 tokens, or 128 words.
    """
    torch.manual_seed(0)
    config = SETRecConfig(text_config=backbone_config(), semantic_tokens=4, cf_size=64, prompt_ids=[5, 6, 7], grounding="latent")
    model = SETRecModel(config).eval()
    index = model.index(torch.randn(size, 384), torch.randn(size, 64))
    history = {"semantic": torch.randn(users, 25, 384), "cf": torch.randn(users, 25, 64)}
    mask = torch.ones(users, 25, dtype=torch.bool)
    read = torch.randn(users, 128, config.width)
    generator = T5ForConditionalGeneration(backbone_config()).eval()
    inputs, sequences = prompts(users), identifiers(size)
    trie, allowed = Trie.build(sequences, EOS), prefix_function(sequences)

    @torch.inference_mode()
    def one_shot() -> torch.Tensor:
        return top_k(model.ground(model(item_mask=mask, **history).tokens[:, 0]), index, width)[1]

    @torch.inference_mode()
    def encoder() -> Any:
        with fast_products(users * 128, config.width):
            return model.backbone.encoder(inputs_embeds=read)

    def without_onednn() -> torch.Tensor:
        with mock.patch.object(products, "_neglected", return_value=False):
            return one_shot()

    @torch.inference_mode()
    def ours() -> Any:
        return constrained_beam_search(generator, inputs, trie, width)

    def theirs() -> Any:
        return generator.generate(
            **inputs, prefix_allowed_tokens_fn=allowed, num_beams=width, num_return_sequences=width, max_new_tokens=trie.depth,
            do_sample=False, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip

    same_items(ours(), theirs(), trie)
    works: dict[str, Callable[[], Any]] = {"one_shot": one_shot, "encoder": encoder, "our_beams": ours, "hugging_face": theirs}
    return interleaved(works | {"mkl": without_onednn}, rounds)


def throughput(batches: tuple[int, ...], rounds: int, size: int = 12_000, items: int = 10) -> dict[int, dict[str, float]]:
    """CPU seconds of a batch of top-20 recommendations, by the sizes of the recipes (width 64, 2 layers, 12k items, histories of 10).

    SETRec with a CF token and 3 semantic ones; beside it a plain SASRec's forward with a product against all items.
    """
    torch.manual_seed(0)
    setrec = SETRecModel(SETRecConfig(text_config=small_backbone(), semantic_tokens=3, cf_size=64, normalize="slot")).eval()
    sasrec = SASRecModel(SASRecConfig(num_items=size)).eval()
    index = setrec.index(torch.randn(size, 384), torch.randn(size, 64))
    found = {}
    for users in batches:
        semantic, cf, mask = torch.randn(users, items, 384), torch.randn(users, items, 64), torch.ones(users, items, dtype=torch.bool)
        rows = torch.randint(1, size + 1, (users, items))

        @torch.inference_mode()
        def ours(semantic: torch.Tensor = semantic, mask: torch.Tensor = mask, cf: torch.Tensor = cf) -> torch.Tensor:
            return top_k(setrec.ground(setrec(semantic, mask, cf).tokens[:, 0]), index, 20)[1]

        @torch.inference_mode()
        def plain(rows: torch.Tensor = rows) -> torch.Tensor:
            return sasrec.logits(sasrec.encode(rows)[:, -1]).topk(20).indices

        found[users] = interleaved({"setrec": ours, "sasrec": plain}, rounds)
    return found
