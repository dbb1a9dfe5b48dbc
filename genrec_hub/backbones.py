"""How a backbone reads item sets and answers queries: in one causal sequence, or with an encoder and a decoder; and its LoRA adapters.

What differs between backbones is decided by their configuration: `is_encoder_decoder`, `layer_types` (all take the same mask), a table of
relative positions (T5) or rotary positions (all others), and the factor that an embedding module puts on its words. No name decides what
is computed; of some families it is known that less need be (`PLAIN`).

Dims: B batch · L items in a history · Q tokens of an identifier · D hidden size · A asked prefixes · T prompt tokens · R response tokens ·
P prefixes with equally many items · S sequence length.

Source: SETRec section 3.2; T5's relative positions as in transformers' T5Attention.compute_bias.
Differs: the published T5 code has no set mask in the encoder and adds a 0/1 mask in the decoder; `mask="released"` brings both back.
"""

from inspect import signature
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from .products import fast_products
from .set_attention import PrefixLayout, SetLayout

SCORES = 2**26
"""Attention scores of a layer that an encoder computes at a time (256 MB in single precision)."""

PLAIN = ("llama", "mistral", "qwen2", "qwen3")
"""Decoder families (`model_type`) whose layers are Llama's, but for biases and a norm of the keys: `_end_of_sequence` may run them."""

LORA = {"r": 8, "alpha": 16, "dropout": 0.02}
"""Source: SETRec's Qwen script, as the target modules below."""


def is_supported(backbone: Any) -> bool:
    """Whether one of the two ways to hand in positions fits: by argument, or as the relative bias that all blocks of a T5 stack share."""
    if not backbone.config.is_encoder_decoder:
        return "position_ids" in signature(backbone.forward).parameters
    if not hasattr(backbone.config, "relative_attention_num_buckets"):
        return hasattr(backbone.encoder, "rotary_emb")
    tables = [hasattr(getattr(block.layer[0], "SelfAttention", None), "relative_attention_bias") for block in backbone.encoder.block]
    return tables[0] and not any(tables[1:])


def word_scale(words: nn.Module) -> torch.Tensor | float:
    """The factor that an embedding module puts on its words: sqrt(D) in Gemma, 1 elsewhere.

    A backbone reads words that went through this factor, so item tokens and queries, which skip the embedding module, take it too. Where
    a model scales its inputs instead (T5Gemma, early Gemma code), words and items meet that factor together and nothing is left to do.
    """
    return getattr(words, "embed_scale", 1.0)


def read_in_sequence(
    backbone: nn.Module, layout: SetLayout, items: torch.Tensor, prompt: torch.Tensor, response: torch.Tensor, queries: torch.Tensor
) -> torch.Tensor:
    """A decoder-only backbone reads prompt, items and, per asked prefix, response and queries.

    Shape: items (B, L, Q, D), prompt (T, D), response (R, D), queries (Q, D) -> (B, A, Q, D).
    """
    batch, count = layout.asked.shape
    block = torch.cat([response, queries])
    sequence = torch.cat([prompt.expand(batch, -1, -1), items.flatten(1, 2), block.repeat(count, 1).expand(batch, -1, -1)], 1)
    config: Any = backbone.config
    mask, end = layout.additive(sequence.dtype), count * len(block)
    with fast_products(sequence.shape[:2].numel(), sequence.shape[2]):
        if config.model_type in PLAIN and not torch.is_grad_enabled():
            hidden = _end_of_sequence(backbone, sequence, mask, layout.positions, end)
        else:
            asked = {"attention_mask": _for_each_kind(config, mask), "position_ids": layout.positions, "use_cache": False}
            hidden = backbone(inputs_embeds=sequence, **asked).last_hidden_state[:, -end:]
    return hidden.view(batch, count, len(block), -1)[:, :, len(response) :]


def _end_of_sequence(backbone: Any, hidden: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, end: int) -> torch.Tensor:
    """The states of the last `end` places, layer by layer as in LlamaModel.forward.

    Nobody reads what the last layer says of the places before, so only their keys and values are computed there: the same sums, and of a
    small backbone of two layers almost half of the work saved.

    Shape: hidden (B, S, D), mask (B, 1, S, S), positions (B, S) -> (B, end, D).
    """
    turn = backbone.rotary_emb(hidden, positions)
    *layers, last = backbone.layers
    for layer in layers:
        hidden = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=turn)
    attention, before = last.self_attn, last.input_layernorm(hidden[:, :-end])
    keys, values = (part(before).unflatten(-1, (-1, attention.head_dim)) for part in (attention.k_proj, attention.v_proj))
    keys = (attention.k_norm(keys) if hasattr(attention, "k_norm") else keys).transpose(1, 2)
    _, keys = apply_rotary_pos_emb(keys[:, :0], keys, *(part[:, :-end] for part in turn))
    cache = DynamicCache()
    cache.update(keys, values.transpose(1, 2), attention.layer_idx)
    hidden = last(
        hidden[:, -end:],
        attention_mask=mask[:, :, -end:],
        position_ids=positions[:, -end:],
        position_embeddings=tuple(part[:, -end:] for part in turn),
        past_key_values=cache,
    )
    answer: torch.Tensor = backbone.norm(hidden)
    return answer


def read_in_encoder(
    backbone: Any, layout: PrefixLayout, items: torch.Tensor, prompt: torch.Tensor, response: torch.Tensor, queries: torch.Tensor
) -> torch.Tensor:
    """An encoder reads prompt, items and response of every asked prefix; the decoder answers the queries, which do not see each other.

    The answer is the decoder's last hidden state, without the factor that T5 puts before its vocabulary. Prefixes that were not asked get
    zeros. Nothing to read at all is a zero vector, to which attention adds nothing.

    Shape: items (B, L, Q, D), prompt (T, D), response (R, D), queries (Q, D) -> (B, A, Q, D).
    """
    # T5's table of relative positions is used on our own positions; other families (T5Gemma) take positions as an argument.
    run = _with_relative_bias if hasattr(backbone.config, "relative_attention_num_buckets") else _with_rotary_positions
    same = torch.eye(len(queries), dtype=torch.bool, device=items.device)
    alone = same.to(items.dtype)[None, None] if layout.released else _additive(same, items.dtype)[None, None]
    together = torch.zeros(len(queries), dtype=torch.long, device=items.device)
    places, answers = [], []
    for users, asks, columns in layout.batches(SCORES, backbone.encoder.config.num_attention_heads):
        rows, count = columns.shape
        own = items[users[:, None], columns].flatten(1, 2)
        sequence = torch.cat([prompt.expand(rows, -1, -1), own, response.expand(rows, -1, -1)], 1)
        positions, visible = layout.encoder(count)
        if not len(positions):
            sequence, positions, visible = items.new_zeros(rows, 1, items.shape[-1]), positions.new_zeros(1), visible.new_ones(1, 1)
        mask, memory_mask = _additive(visible, items.dtype)[None, None], None
        if layout.token_mask is not None and count:
            real = visible.new_ones(rows, len(positions))
            real[:, len(prompt) : len(prompt) + own.shape[1]] = layout.token_mask[users[:, None], columns].flatten(1)
            seen = (visible & real[:, None, :]) | torch.eye(len(positions), dtype=torch.bool, device=items.device)
            mask, memory_mask = _additive(seen, items.dtype)[:, None], _additive(real, items.dtype)[:, None, None]
        with fast_products(sequence.shape[:2].numel(), sequence.shape[2]):
            memory = run(backbone.encoder, sequence, mask, positions)
        with fast_products(rows * len(queries), sequence.shape[2]):
            asked = queries.expand(rows, -1, -1)
            answers.append(run(backbone.decoder, asked, alone, together, memory, memory_mask, not layout.released))
        places.append((users, asks))
    found = torch.cat(answers)
    users, asks = (torch.cat(part) for part in zip(*places, strict=True))
    return found.new_zeros(*layout.asked.shape, *found.shape[1:]).index_put((users, asks), found)


def _with_relative_bias(
    stack: Any,
    hidden: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    memory: torch.Tensor | None = None,
    memory_mask: torch.Tensor | None = None,
    apart: bool = False,
) -> torch.Tensor:
    """Runs a T5 stack block by block, as T5Stack.forward does, with the relative bias of our own positions.

    T5Stack lets its first block compute the bias from the place in the sequence and hands it on to the others. Every block takes a
    bias as an argument, so handing in the right one from the start is exact and replaces no method. States that are `apart` see nothing
    but themselves, as the mask says: what attention finds is their own value then, whatever the bias.

    Shape: hidden (P, S, D), mask (1 or P, 1, S, S), positions (S,), memory (P, S', D), memory_mask (P, 1, 1, S') -> (P, S, D).
    """
    table = stack.block[0].layer[0].SelfAttention
    buckets = table._relative_position_bucket(
        positions[None, :] - positions[:, None],
        bidirectional=not table.is_decoder,
        num_buckets=table.relative_attention_num_buckets,
        max_distance=table.relative_attention_max_distance,
    )
    bias = table.relative_attention_bias(buckets).permute(2, 0, 1)[None]
    # Added once for all blocks; but a decoder without a mask would look back only.
    own, bias = (mask, bias) if stack.is_decoder else (None, bias + mask)
    apart = apart and not torch.is_grad_enabled()  # where gradients are wanted, every weight gets one
    hidden = stack.dropout(hidden)
    for block in stack.block:
        if memory is None or not _reads_few(block.layer[1].EncDecAttention, hidden):
            hidden = block(hidden, own, bias, memory, memory_mask)[0]
            continue
        itself = block.layer[0].SelfAttention
        hidden = hidden + itself.o(itself.v(block.layer[0].layer_norm(hidden))) if apart else block.layer[0](hidden, own, bias)[0]
        hidden = hidden + _read(block.layer[1].EncDecAttention, block.layer[1].layer_norm(hidden), memory, memory_mask)
        hidden = block.layer[2](hidden)
    answer: torch.Tensor = stack.dropout(stack.final_layer_norm(hidden))
    return answer


def _reads_few(attention: Any, hidden: torch.Tensor) -> bool:
    """Whether `_read` stands in for a block's cross-attention: no dropout, adapter, checkpointing or half-precision clamp is lost."""
    bare = type(attention.k) is nn.Linear and type(attention.v) is nn.Linear
    return bare and not attention.training and hidden.dtype in (torch.float32, torch.float64)


def _read(attention: Any, hidden: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """T5's cross-attention for a few queries, without keys and values: (W_q x) . (W_k m) = (W_k' W_q x) . m, and W_v after the average.

    The same sums in another order; projecting the whole memory in every block was more than half of the decoder's time.

    Shape: hidden (P, Q, D), memory (P, S, D), mask (P, 1, 1, S) -> (P, Q, D).
    """
    heads, count = attention.n_heads, hidden.shape[1]
    keys, values = (layer.weight.unflatten(0, (heads, -1)) for layer in (attention.k, attention.v))
    asked = torch.einsum("pqhe,hed->phqd", attention.q(hidden).unflatten(-1, (heads, -1)), keys).flatten(1, 2)
    scores = asked @ memory.transpose(1, 2)
    found = (scores if mask is None else scores + mask[:, 0]).softmax(-1) @ memory
    answer: torch.Tensor = attention.o(torch.einsum("phqd,hed->pqhe", found.unflatten(1, (heads, count)), values).flatten(2))
    return answer


def _with_rotary_positions(
    stack: Any,
    hidden: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    memory: torch.Tensor | None = None,
    memory_mask: torch.Tensor | None = None,
    apart: bool = False,
) -> torch.Tensor:
    """Runs an encoder or decoder that takes positions and masks. Shapes as in `_with_relative_bias`."""
    asked: dict[str, Any] = {"inputs_embeds": hidden, "attention_mask": _for_each_kind(stack.config, mask), "position_ids": positions[None]}
    if memory is not None:
        asked |= {"encoder_hidden_states": memory, "encoder_attention_mask": {"full_attention": memory_mask}, "use_cache": False}
    answer: torch.Tensor = stack(**asked).last_hidden_state
    return answer


def _additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where visible, else the lowest number: right on eager and sdpa alike."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)


def _for_each_kind(config: Any, mask: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
    """The same mask for layers of every kind: a history is shorter than any sliding window worth the name."""
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    return {"full_attention": mask, **dict.fromkeys(kinds, mask)} if kinds else mask


# Adapters


def add_adapters(backbone: nn.Module, lora: dict[str, Any]) -> dict[str, Any]:
    """Puts LoRA adapters into a backbone and freezes everything else of it. Returns the settings with nothing left open."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("LoRA adapters need peft: pip install peft") from error
    relative = hasattr(backbone.config, "relative_attention_num_buckets")
    chosen = {**LORA, "target_modules": ["q", "v", "o"] if relative else ["q_proj", "v_proj", "o_proj"], **lora}
    settings = LoraConfig(
        r=chosen["r"], lora_alpha=chosen["alpha"], lora_dropout=chosen["dropout"], target_modules=list(chosen["target_modules"])
    )
    inject_adapter_in_model(settings, backbone)
    freeze_all_but_adapters(backbone)
    return chosen


def freeze_all_but_adapters(backbone: nn.Module) -> None:
    """Leaves only the adapters of a backbone trainable (loading a checkpoint makes every parameter trainable again)."""
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_("lora_" in name)


def merge_adapters(backbone: nn.Module) -> None:
    """Adds the adapters to the weights they adapt and takes them out; all of the backbone is trainable then."""
    for name, module in [*backbone.named_modules()]:
        if hasattr(module, "get_base_layer"):
            module.merge(safe_merge=True)
            backbone.set_submodule(name, module.get_base_layer())
    if hasattr(backbone, "peft_config"):
        del backbone.peft_config
    backbone.requires_grad_(True)
