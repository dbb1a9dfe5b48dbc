"""SASRecConfig: hyper-parameters of the CF tokenizer and baseline."""

from typing import Any

from transformers import PreTrainedConfig

from .checkpoint import FORMAT_VERSION, settle


class SASRecConfig(PreTrainedConfig):
    """Hyper-parameters of `SASRecModel`.

    Args:
        num_items: catalogue size V; item row r has the embedding r + 1, embedding 0 is padding.
        hidden_size: width D of the item vectors (64 is what SETRec's CF token reads).
        num_layers: transformer blocks.
        num_heads: attention heads.
        max_length: items of a history that are read, the last ones.
        dropout: on embeddings, attention weights and residual branches.
        cosine: score by the cosine over `temperature` instead of the raw dot product.
        temperature: divides cosine scores.
        catalog_fingerprint: the catalogue that the item embeddings belong to.
        format_version: of the checkpoint.
    """

    model_type = "sasrec"

    num_items: int = 100
    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 2
    max_length: int = 50
    dropout: float = 0.5
    cosine: bool = True
    temperature: float = 0.07
    initializer_range: float = 0.02
    catalog_fingerprint: str = ""
    format_version: int = FORMAT_VERSION
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        settle(kwargs, self.format_version)
        super().__post_init__(**kwargs)
        if self.hidden_size % self.num_heads:
            raise ValueError(f"SASRecConfig.hidden_size is {self.hidden_size}: it should be a multiple of num_heads, {self.num_heads}.")
