"""What all code-sequence baselines share: items with codes become an IDGenRec whose IDs are codes instead of words.

So every family is trained by the same recommender (a small Qwen3 from scratch, packed histories, probabilities over the tree) and decoded
by the same beam search over the same kind of tree, and what differs between two rows of a table is the identifiers alone. A finished folder
is an ordinary checkpoint: `genrec_hub.load` reads it.

Differs: the papers train an encoder-decoder (T5) on each prefix of a history; here all prefixes are trained in one forward of a decoder.

Dims: V catalogue size.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, set_seed

from genrec_hub.catalog import Catalog
from genrec_hub.configuration_idgenrec import IDGenRecConfig
from genrec_hub.domain import Domain
from genrec_hub.identifiers import Identifiers
from genrec_hub.modeling_idgenrec import IDGenRecModel
from genrec_hub.processing_idgenrec import IDGenRecProcessor
from genrec_hub.recipes import CHECKPOINTS, DEFAULTS, REPORT, Settings, circumstances, refuse_empty
from genrec_hub.recipes_idgenrec import small_language_models, train_recommender
from genrec_hub.timing import Clock

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
Code = tuple[str, ...]
"""The tokens of one item, without spaces; a token of one level never equals one of another unless the paper says so."""


def with_levels(numbers: Iterable[Iterable[int]]) -> list[Code]:
    """Names the tokens of each level apart: (3, 3) -> ("a3", "b3")."""
    return [tuple(f"{chr(ord('a') + level)}{number}" for level, number in enumerate(own)) for own in numbers]


def numbered(codes: Sequence[Code], always: bool = True) -> list[Code]:
    """Makes codes unique by a last token that counts the items with the same code, in the order of the catalogue.

    With `always` every item has that token (TIGER), else those that share a code with an earlier one. Source: TIGER section 3.1.
    """
    seen: Counter[Code] = Counter()
    found = []
    for own in codes:
        place = seen[own]
        seen[own] += 1
        found.append((*own, f"n{place}") if always or place else own)
    return found


def code_processor(catalog: Catalog, codes: Sequence[Code], max_items: int = 20) -> IDGenRecProcessor:
    """The processor of a catalogue whose identifiers are these codes; every distinct token is a word of its vocabulary."""
    words = [*SPECIAL, *dict.fromkeys(token for own in codes for token in own)]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    texts = [" ".join(own) for own in codes]
    tokens = tokenizer(texts, add_special_tokens=False)["input_ids"]
    identifiers = Identifiers(catalog.ids, texts, tokens, generator="codes", catalog=catalog.fingerprint)
    return IDGenRecProcessor(tokenizer, catalog, identifiers, "packed", False, max_items)


def code_model(words: int, hidden: int = 128, layers: int = 2, dropout: float = 0.2, beams: int = 20) -> IDGenRecModel:
    """An untrained recommender over codes. Its generator, which nothing ever asks, is as small as one can be."""
    sizes: dict[str, Any] = small_language_models(words, hidden, layers, dropout)
    special = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    sizes["generator_config"] = T5Config(vocab_size=words, d_model=2, d_kv=1, d_ff=1, num_layers=1, num_heads=1, **special)
    return IDGenRecModel(IDGenRecConfig(**sizes, normalizer="tree", length_penalty=0.0, dropout=dropout, beams=beams))


def train_codes(
    domain: Domain,
    codes: Sequence[Code],
    output: str | Path,
    settings: Settings = DEFAULTS,
    resume: bool = False,
    *,
    hidden: int = 128,
    layers: int = 2,
    dropout: float = 0.2,
    max_items: int = 20,
    vectors: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Trains the decoder on a domain's histories as codes and saves it with its catalogue; resumes.

    Args:
        domain: catalogue and interactions.
        codes: of each item, all different.
        output: folder of the finished checkpoint.
        settings: of the run.
        resume: go on from where `output` stands.
        hidden: width of the decoder.
        layers: of the decoder.
        dropout: as in `IDGenRecConfig`.
        max_items: items of a history that are read, the last ones.
        vectors: (V, C) vectors that the embeddings of the items' first tokens start from, for codes of one token.

    Returns:
        The report that is also written as `training.json`.
    """
    chosen = settings.or_else(epochs=10, batch=128, rate=2e-3, negatives=0)
    output, split = Path(output), domain.split(chosen.protocol)
    refuse_empty(split.training)
    set_seed(chosen.seed)
    clock = Clock()
    processor = code_processor(domain.catalog, codes, max_items)
    model = code_model(len(processor.tokenizer), hidden, layers, dropout)
    if vectors is not None:
        start_from(model, processor, vectors)
    report = train_recommender(model, processor, output, chosen, split, resume, clock=clock)
    report |= {
        "settings": asdict(chosen),
        "parameters": sum(parameter.numel() for parameter in model.recommender.parameters()),
        "tokens": {"mean": sum(map(len, codes)) / len(codes), "most": max(map(len, codes)), "vocabulary": len(processor.tokenizer)},
        **clock.spent(),
        **circumstances(domain),
    }
    model.config.catalog_fingerprint = domain.catalog.fingerprint
    model.save_pretrained(output)
    processor.save_pretrained(output)
    (output / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    return report


@torch.no_grad()
def start_from(model: IDGenRecModel, processor: IDGenRecProcessor, vectors: torch.Tensor) -> None:
    """Lets the first token of each item start from a vector, taken to the model's width by a random map that keeps angles.

    Shape: vectors (V, C); rows of zeros leave the start as it is.
    """
    table = model.recommender.get_input_embeddings().weight
    first = torch.tensor([own[0] for own in processor.identifiers.tokens])
    drawn = torch.randn(max(vectors.shape[1], table.shape[1]), min(vectors.shape[1], table.shape[1]))
    map_ = torch.linalg.qr(drawn).Q
    placed = vectors @ (map_ if vectors.shape[1] >= table.shape[1] else map_.T)
    known = placed.norm(dim=1) > 0
    # Of the length that a random row has, so that attention and head start where they would.
    scaled = placed[known] / placed[known].norm(dim=1).mean() * table.norm(dim=1).mean()
    table[first[known]] = scaled.to(table.dtype)
