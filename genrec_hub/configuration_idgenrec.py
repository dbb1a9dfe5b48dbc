"""IDGenRecConfig: hyper-parameters of IDGenRec, with the configurations of its two language models nested in it."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .checkpoint import FORMAT_VERSION, settle


class IDGenRecConfig(PreTrainedConfig):
    """Hyper-parameters of `IDGenRecModel`; what its prompts look like is `IDGenRecProcessor`'s.

    Args:
        text_config: configuration of the recommender: a decoder-only model (Qwen3, Llama, ...) or one of the T5 family.
        generator_config: configuration of the ID generator, of either kind as well.
        max_length: most tokens of a written ID in the first rounds, its end included (Algorithm 1 counts the start token as well).
        groups: candidates that the generator writes for an item.
        beams: width of the recommender's beam search.
        length_penalty: exponent of an ID's length in its score: 0 = log-probability, 1 = its mean per token (the published code). Picked
            on validation data.
        normalizer: what the recommender's probabilities are normalised over, in training and in search: "vocabulary" (the paper), or
            "tree": the tokens that may legally come next, so that the probabilities of all items add up to 1. The second learns from far
            fewer examples.
        dropout: on what the recommender embeds, on what its layers add to it and on its last hidden states; for models from scratch.
        own_words: the generator writes only words of the text that it reads, each at most once; for small generators.
        catalog_fingerprint: the catalogue that validation choices belong to; "" = any.
        format_version: of the checkpoint.
    """

    model_type = "idgenrec"
    sub_configs_defaults = {  # noqa: RUF012
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen3"),
        "generator_config": SubConfigSpec(config_class=AutoConfig, model_type="t5"),
    }

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    generator_config: dict[str, Any] | PreTrainedConfig | None = None
    max_length: int = 10
    groups: int = 10
    beams: int = 20
    length_penalty: float = 1.0
    normalizer: str = "vocabulary"
    dropout: float = 0.0
    own_words: bool = False
    catalog_fingerprint: str = ""
    format_version: int = FORMAT_VERSION
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        settle(kwargs, self.format_version)
        super().__post_init__(**kwargs)
        if self.normalizer not in ("vocabulary", "tree"):
            raise ValueError(f"IDGenRecConfig.normalizer is {self.normalizer!r}: it should be vocabulary or tree.")

    @property
    def has_encoder(self) -> bool:
        """Whether the recommender reads the history in an encoder and answers in a decoder."""
        return bool(getattr(self.text_config, "is_encoder_decoder", False))
