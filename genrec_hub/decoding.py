"""A language model that continues many beginnings of one prompt at once, and asks the encoder once per user.

Dims: B batch (users) · N columns (or states) asked at once · M columns asked so far · D hidden · W vocabulary · C some of its tokens ·
E tokens, each after a state.

A user is a row; everything generated for the user, whatever the beam, is a column of that row, and a mask says which columns are the
ancestors of which. So the prompt (or the encoder's keys and values) exists once per user and not once per beam, and when beams are
reordered no key or value moves: only the mask's rows are gathered.

Source: xGR (arXiv 2512.11529) for keys split into shared and own ones.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from .products import fast_products

_APART = 16
"""A logit by itself costs about as much as this many of a product with the whole head."""


def head_logits(model: Any, hidden: torch.Tensor, columns: torch.Tensor | None = None, tokens: torch.Tensor | None = None) -> torch.Tensor:
    """The logits that a language model's head makes of its last hidden states: of all tokens, of some, or of one for each state.

    Shape: hidden (..., D) -> (..., W), 32-bit; with columns (C,) -> (..., C); with tokens (E,) and hidden (E, D) -> (E,).
    """
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "scale_decoder_outputs", False):
        hidden = hidden * config.d_model**-0.5
    head = model.get_output_embeddings()
    if tokens is not None:
        logits = (hidden * head.weight[tokens]).sum(-1).float()
    elif columns is not None:
        logits = (hidden @ head.weight[columns].T).float()
    else:
        with fast_products(hidden.shape[:-1].numel(), *head.weight.shape):
            logits = head(hidden).float()
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else (logits / cap).tanh() * cap


def edge_logits(model: Any, hidden: torch.Tensor, owners: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The logits of some tokens after each state, by whichever way is cheaper.

    Shape: hidden (N, D), owners (E,) the state that a token follows, tokens (E,) -> (E,), 32-bit.
    """
    if len(tokens) * _APART < len(hidden) * model.get_output_embeddings().weight.shape[0]:
        return head_logits(model, hidden[owners], tokens=tokens)
    return head_logits(model, hidden)[owners, tokens]


class Decoding:
    """A model that continues the tree of one batch: `root` first, then any columns that name their ancestors.

    Attributes:
        root: (B, D) hidden state from which the first token is generated.
        words: W, size of the vocabulary.
    """

    def __init__(self, model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> None:
        self._model: Any = model
        self._config: Any = model.config.get_text_config(decoder=True)
        self._seen = inputs.get("attention_mask")
        self._bias = inputs.get("bias")
        inputs = {name: values for name, values in inputs.items() if name != "bias"}
        self._cache: Any
        self._step: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Any], torch.Tensor]
        if model.config.is_encoder_decoder:
            self._start_encoder(inputs)
        else:
            self._start_prompt(inputs)
        self._depths = torch.zeros(0, dtype=torch.long, device=self.root.device)
        self.words = int(model.get_output_embeddings().weight.shape[0])
        if self._bias is not None:  # a tokenizer may know fewer tokens than the model has rows
            self._bias = torch.nn.functional.pad(self._bias, (0, self.words - self._bias.shape[1]))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Shape: (B, N, D) -> (B, N, W), 32-bit."""
        logits = head_logits(self._model, hidden)
        return logits if self._bias is None else logits + self._bias[:, None]

    def edges(
        self, hidden: torch.Tensor, users: torch.Tensor, owners: torch.Tensor, tokens: torch.Tensor, normalized: bool
    ) -> torch.Tensor:
        """Logits of some tokens after each state, or their log-probabilities among the whole vocabulary.

        Args:
            hidden: (N, D) states.
            users: (N,) whose they are.
            owners: (E,) the state that a token follows.
            tokens: (E,).
            normalized: whether log-probabilities are wanted.

        Shape: -> (E,), 32-bit.
        """
        if not normalized:
            logits = edge_logits(self._model, hidden, owners, tokens)
            return logits if self._bias is None else logits + self._bias[users[owners], tokens]
        logits = head_logits(self._model, hidden)
        logits = logits if self._bias is None else logits + self._bias[users]
        return logits.log_softmax(1)[owners, tokens]

    def step(self, tokens: torch.Tensor, depths: torch.Tensor, visible: torch.Tensor, keep: bool = True) -> torch.Tensor:
        """Hidden states of new columns.

        Args:
            tokens: (B, N).
            depths: (N,) generated tokens up to and including the column's own.
            visible: (B, N, M + N) the column's ancestors and itself among the columns kept so far and the new ones.
            keep: whether later columns may see these; if not, the next step sees what this one saw.

        Shape: -> (B, N, D).
        """
        every = torch.cat([self._depths, depths])
        cache = self._cache if keep else self._fork()
        if keep:
            self._depths = every
        return self._step(tokens, every, visible, cache)

    def _fork(self) -> Any:
        """A cache that starts with the same keys and values and grows on its own; the encoder's are shared."""
        old = self._cache.self_attention_cache if self._model.config.is_encoder_decoder else self._cache
        new = DynamicCache()
        for number, layer in enumerate(old.layers):
            new.update(layer.keys, layer.values, number)
        return EncoderDecoderCache(new, self._cache.cross_attention_cache) if self._model.config.is_encoder_decoder else new

    # Relative positions (T5): the decoder's blocks with our own bias, since columns are no positions

    def _start_encoder(self, inputs: Mapping[str, torch.Tensor]) -> None:
        decoder = self._model.get_decoder()
        if not hasattr(decoder, "block"):
            raise ValueError(f"{type(self._model).__name__} is an encoder-decoder unlike T5; give a T5-family or a decoder-only model.")
        with fast_products(next(iter(inputs.values())).shape[:2].numel(), self._config.hidden_size):
            self._encoded = self._model.get_encoder()(**inputs).last_hidden_state
        users, device = len(self._encoded), self._encoded.device
        self._encoder_mask = None if self._seen is None else _additive(self._seen.bool()[:, None], self._encoded.dtype)
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self._step = self._step_encoder
        start = self._model.generation_config.decoder_start_token_id
        start = self._model.config.decoder_start_token_id if start is None else start
        if start is None:
            raise ValueError("The model names no decoder_start_token_id; set it in its configuration.")
        self.root = self._step(
            torch.full((users, 1), start, device=device),
            torch.zeros(0, dtype=torch.long, device=device),
            torch.zeros((users, 1, 0), dtype=torch.bool, device=device),
            self._cache,
        )[:, 0]

    def _step_encoder(self, tokens: torch.Tensor, depths: torch.Tensor, visible: torch.Tensor, cache: Any) -> torch.Tensor:
        decoder = self._model.get_decoder()
        hidden = decoder.embed_tokens(tokens)
        # Every column sees the start token, the first key.
        mask = _additive(torch.nn.functional.pad(visible, (1, 0), value=True), hidden.dtype)
        attention = decoder.block[0].layer[0].SelfAttention
        depths = torch.nn.functional.pad(depths, (1, 0))
        buckets = attention._relative_position_bucket(
            depths - depths[-tokens.shape[1] :, None],
            bidirectional=False,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )
        bias = attention.relative_attention_bias(buckets).permute(2, 0, 1)[None]
        cross = None
        with fast_products(tokens.numel(), self._config.hidden_size):
            for block in decoder.block:
                hidden, _, cross = block(hidden, mask, bias, self._encoded, self._encoder_mask, cross, past_key_values=cache)
        return decoder.final_layer_norm(hidden)

    # Rotary positions (decoder-only): the model itself with our own positions and mask

    def _start_prompt(self, inputs: Mapping[str, torch.Tensor]) -> None:
        prompt = inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"]
        seen = torch.ones(prompt.shape[:2], dtype=torch.bool, device=prompt.device) if self._seen is None else self._seen.bool()
        if not bool(seen[:, -1].all()):
            raise ValueError("A prompt ends with padding; pad decoder-only prompts on the left (tokenizer.padding_side = 'left').")
        self._seen = seen
        self._positions = (seen.cumsum(1) - 1).clamp(min=0)
        self._cache = DynamicCache()
        self._step = self._step_prompt
        named = {"input_ids" if "input_ids" in inputs else "inputs_embeds": prompt}
        # The row itself stays visible to padding, so that no softmax is empty.
        causal = seen[:, None].repeat(1, seen.shape[1], 1).tril() | torch.eye(seen.shape[1], dtype=torch.bool, device=seen.device)
        masks = self._masks(causal, self._positions, self._positions)
        self.root = self._forward(named, self._positions, masks, self._cache)[:, -1]

    def _step_prompt(self, tokens: torch.Tensor, depths: torch.Tensor, visible: torch.Tensor, cache: Any) -> torch.Tensor:
        assert self._seen is not None
        keys = torch.cat([self._positions, self._positions[:, -1:] + depths], 1)
        positions = keys[:, -tokens.shape[1] :]
        seen = torch.cat([self._seen[:, None].expand(-1, tokens.shape[1], -1), visible], 2)
        return self._forward({"input_ids": tokens}, positions, self._masks(seen, positions, keys), cache)

    def _forward(self, named: dict[str, torch.Tensor], positions: torch.Tensor, masks: Any, cache: Any) -> torch.Tensor:
        body = self._model.get_decoder()
        with fast_products(positions.numel(), self._config.hidden_size):
            return body(**named, position_ids=positions, attention_mask=masks, past_key_values=cache, use_cache=True).last_hidden_state

    def _masks(self, seen: torch.Tensor, positions: torch.Tensor, keys: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """One mask, or one per kind of layer where some look back only so far.

        Shape: seen (B, N, keys), positions (B, N), keys (B, keys) -> (B, 1, N, keys).
        """
        full = _additive(seen, self._model.dtype)
        if "sliding_attention" not in (getattr(self._config, "layer_types", None) or ()):
            return full
        near = positions[:, :, None] - keys[:, None] < self._config.sliding_window
        return {"full_attention": full, "sliding_attention": _additive(seen & near, self._model.dtype)}


def _additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where visible, the lowest number elsewhere. Shape: (B, N, M) -> (B, 1, N, M)."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
