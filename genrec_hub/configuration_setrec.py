"""SETRecConfig: hyper-parameters of SETRec, with the backbone's own configuration nested in it."""

from typing import Any

import numpy as np
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .checkpoint import FORMAT_VERSION, settle


class SETRecConfig(PreTrainedConfig):
    """Hyper-parameters of `SETRecModel`.

    Args:
        text_config: configuration of the backbone: a decoder-only model (Qwen3, Qwen2, Llama, Gemma, ...) or one of the T5 family.
        semantic_tokens: N, semantic tokens of an item.
        semantic_size: width of the sentence encoder's vectors.
        semantic_widths: hidden widths of the autoencoder's encoder; the decoder mirrors them. () = one linear map.
        cf_size: width of the CF vectors; 0 = no CF token (foundation models: CF spaces of different shops are unrelated).
        alpha: weight of the reconstruction loss.
        beta: weight of the semantic tokens in the score, 1 - beta that of the CF token; picked on validation data.
        cold_score: what an item without a CF vector scores in the CF slot, as a share of the most that slot can give (of 1 where scores are
            not normalised). 0 = nothing, as in the paper, and items without interactions are hardly ever recommended.
        slot_weights: further weight per slot in the score, CF first; () = all 1.
        prompt_ids: token ids before the history.
        response_ids: token ids between the history and the queries.
        query_guidance: a query vector for each slot; False gives all slots the same one (the paper's ablation).
        mask: "paper", or "released" for what the published code does instead (see `set_attention` and `backbones`).
        lora: low-rank adapters in the backbone, whose own weights are then frozen: {"r", "alpha", "dropout", "target_modules"}, those left
            out take the published values. None = the whole backbone is trained.
        max_items: items of a history that are read, the last ones.
        dropout: on the item tokens that enter the backbone and on the generated tokens.
        normalize: "slot" makes each generated token unit length, "joint" the whole set, "none" leaves raw dot products (the paper).
        scale: starting value of the factor on normalised scores, learned per slot ("slot") or for the set ("joint").
        fused_loss: share of the loss on the fused score; 0 = the paper's mean over slots.
        residual: add the recency-weighted sum of the history's own tokens to the generated ones (a dot-product text-kNN to start from).
        decay: starting value of the residual's recency rate. Several rates give several sums, from which the backbone's answer mixes the
            residual of each history and slot: evenly at first.
        cf_decay: the same for the CF slot, where it starts elsewhere: as many rates as `decay`. None = those of `decay`. Likeness in text
            wants a long memory, what is bought together a short one.
        prior: add a learned token set of its own to every answer, whatever the history: what is recommended more or less often than its
            likeness says. It starts at zero, see `SETRecModel.set_prior`.
        grounding: "latent", "token", or "auto" (the narrower one).
        catalog_fingerprint: the catalogue that CF vectors and validation choices belong to; "" = any.
        format_version: of the checkpoint.
    """

    model_type = "setrec"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen3")}  # noqa: RUF012

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    semantic_tokens: int = 4
    semantic_size: int = 384
    semantic_widths: list[int] | tuple[int, ...] = (512, 256, 128)
    cf_size: int = 0
    alpha: float = 0.7
    beta: float = 0.5
    cold_score: float = 0.0
    slot_weights: list[float] | tuple[float, ...] = ()
    prompt_ids: list[int] | tuple[int, ...] = (0,)
    response_ids: list[int] | tuple[int, ...] = ()
    query_guidance: bool = True
    mask: str = "paper"
    lora: dict[str, Any] | None = None
    max_items: int = 50
    dropout: float = 0.0
    normalize: str = "none"
    scale: float = 10.0
    fused_loss: float = 0.0
    residual: bool = False
    decay: float | list[float] | tuple[float, ...] = 0.3
    cf_decay: float | list[float] | tuple[float, ...] | None = None
    prior: bool = False
    grounding: str = "auto"
    initializer_range: float = 0.02
    catalog_fingerprint: str = ""
    format_version: int = FORMAT_VERSION
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        settle(kwargs, self.format_version)
        super().__post_init__(**kwargs)
        choices = {"normalize": ("none", "slot", "joint"), "grounding": ("auto", "latent", "token"), "mask": ("paper", "released")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"SETRecConfig.{name} is {getattr(self, name)!r}: it should be one of {', '.join(allowed)}.")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"SETRecConfig.beta is {self.beta}: it should lie between 0 (CF alone) and 1 (semantic alone).")
        if self.cf_decay is not None and np.shape(self.cf_decay) != np.shape(self.decay):
            raise ValueError(f"SETRecConfig.cf_decay is {self.cf_decay!r}: it should hold as many rates as decay, {self.decay!r}.")
        if unknown := set(self.lora or ()) - {"r", "alpha", "dropout", "target_modules"}:
            raise ValueError(f"SETRecConfig.lora holds {', '.join(sorted(unknown))}: it knows r, alpha, dropout and target_modules.")

    @property
    def width(self) -> int:
        """D, hidden size of the backbone (T5Gemma states it in its encoder alone)."""
        own: Any = self.text_config
        return int(own.hidden_size if hasattr(own, "hidden_size") else own.encoder.hidden_size)

    @property
    def has_encoder(self) -> bool:
        """Whether the backbone reads the history in an encoder and answers in a decoder."""
        return bool(getattr(self.text_config, "is_encoder_decoder", False))

    @property
    def has_cf(self) -> bool:
        """Whether items have a CF token."""
        return self.cf_size > 0

    @property
    def tokens(self) -> int:
        """Q, tokens of an identifier: the CF token, if any, and the semantic ones."""
        return self.semantic_tokens + self.has_cf

    @property
    def slots(self) -> list[str]:
        """Names of the slots in order."""
        return ["cf"] * self.has_cf + [f"sem{n + 1}" for n in range(self.semantic_tokens)]
