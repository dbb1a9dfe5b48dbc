"""SETRec: an item is a set of order-agnostic tokens; the next item's set is generated in one pass and grounded by dot products.

Dims: B batch · L items in a history · Q tokens of an identifier (1 CF + N semantic) · D hidden size · V catalogue size ·
A asked prefixes · P scored positions · C candidates of a step · S width of semantic vectors · W index width · K shown items.

Source: SETRec (SIGIR 2025, arXiv 2502.10833), sections 3.1 (tokenizers), 3.2 (sparse attention, query-guided generation), 3.3 (grounding).
Differs: the reconstruction error is a mean over users by their targets, not over all items of a batch, so that batches can be cut up over
processes. Options that the paper lacks are off in `SETRecConfig`'s defaults: unit-length generated tokens with a learned scale, a loss on
the fused score, a recency-weighted residual from the history's own tokens, sampled candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .backbones import add_adapters, freeze_all_but_adapters, is_supported, merge_adapters, read_in_encoder, read_in_sequence, word_scale
from .checkpoint import HubModel
from .configuration_setrec import SETRecConfig
from .products import fast_products, table_product
from .semantic_tokenizer import SemanticTokenizer, TokenizerLinear
from .set_attention import PrefixLayout, SetLayout, length_batches, pad_left, prefix_layout, set_layout

STATES = 2**20
"""Numbers of the states of a batch that is only asked: few enough that a processor's caches hold a layer's (128 users at once take half as
long again as 32)."""


@dataclass
class SETRecOutput(ModelOutput):
    """What one forward gives.

    Attributes:
        loss: with labels: generation loss + alpha x reconstruction loss.
        tokens: (B, A, Q, D) generated tokens per asked prefix; A = 1 unless packed.
        asked: (B, A) true where the prefix exists.
        generation_loss: mean cross-entropy over targets and slots.
        reconstruction_loss: mean squared error of a history's semantic vectors, a mean over targets as well.
    """

    loss: torch.Tensor | None = None
    tokens: torch.Tensor | None = None
    asked: torch.Tensor | None = None
    generation_loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None


class SETRecModel(HubModel, PreTrainedModel):
    """A backbone that reads items as token sets and generates the next item's set.

    Item features (semantic and CF vectors) are inputs, not weights: the same weights serve any catalogue. See `SETRecProcessor`.
    """

    config: SETRecConfig
    config_class = SETRecConfig
    base_model_prefix = "setrec"
    main_input_name = "semantic"
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def __init__(self, config: SETRecConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        width = config.width
        self.backbone = AutoModel.from_config(config.text_config) if backbone is None else backbone
        if not is_supported(self.backbone):
            raise ValueError(
                f"{type(self.backbone).__name__} takes no positions of ours: use a decoder-only model with position_ids "
                "(Qwen, Llama, Gemma, ...) or an encoder-decoder of the T5 family (T5, Flan-T5, mT5, T5Gemma)."
            )
        self.semantic = SemanticTokenizer(config)
        self.cf = TokenizerLinear(config.cf_size, width, orthogonal=True) if config.has_cf else None
        self.queries = nn.Parameter(torch.empty(config.tokens if config.query_guidance else 1, width))
        scales = {"none": 0, "slot": config.tokens, "joint": 1}[config.normalize]
        self.log_scale = nn.Parameter(torch.empty(scales)) if scales else None
        rates = () if isinstance(config.decay, float) else (len(config.decay),)
        self.log_decay = nn.Parameter(torch.empty(*rates, config.tokens)) if config.residual else None
        self.mixture = nn.Linear(width, *rates) if config.residual and rates else None
        self.prior = nn.Parameter(torch.empty(config.tokens, width)) if config.prior else None
        self.gate = nn.Parameter(torch.empty(config.tokens, width)) if config.residual else None
        self.post_init()
        if config.lora is not None:  # after post_init: adapters start as peft makes them, at no change
            config.lora = add_adapters(self.backbone, config.lora)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, SETRecModel):
            init.normal_(module.queries, std=self.config.initializer_range)
            if module.log_scale is not None:
                init.constant_(module.log_scale, float(torch.tensor(self.config.scale).log()))
            if module.log_decay is not None and module.gate is not None:
                rates = torch.tensor(self.config.decay)[..., None].repeat_interleave(self.config.tokens, -1)
                if self.config.has_cf and self.config.cf_decay is not None:
                    rates[..., 0] = torch.tensor(self.config.cf_decay)
                init.copy_(module.log_decay, rates.log())
                init.constant_(module.gate, 0.01)
            if module.mixture is not None:
                init.zeros_(module.mixture.weight)
                init.zeros_(module.mixture.bias)
            if module.prior is not None:
                init.zeros_(module.prior)
        elif isinstance(module, TokenizerLinear):
            (init.orthogonal_ if module.orthogonal else init.xavier_normal_)(module.weight)
            init.zeros_(module.bias)

    @classmethod
    def from_backbone(
        cls,
        name_or_folder: str,
        prompt: str = "What would user be likely to purchase next after buying items",
        response: str = "?;",
        dtype: torch.dtype = torch.float32,
        lora: dict[str, Any] | None = None,
        attn_implementation: str | None = None,
        **config: Any,
    ) -> "SETRecModel":
        """Puts a pretrained backbone, decoder-only or of the T5 family, under fresh queries, projections and autoencoder.

        Args:
            name_or_folder: a Hub name or a folder, with weights and tokenizer.
            prompt: words before the history (SETRec's template).
            response: words between the history and the queries.
            dtype: of the weights.
            lora: adapters, as in `SETRecConfig`; {} takes the published settings, None trains the whole backbone.
            attn_implementation: "sdpa" or "eager"; what the backbone takes by itself when None.
            **config: of `SETRecConfig`.
        """
        tokenizer = AutoTokenizer.from_pretrained(name_or_folder)
        backbone = AutoModel.from_pretrained(name_or_folder, dtype=dtype, attn_implementation=attn_implementation)
        words = {
            "prompt_ids": tokenizer(prompt, add_special_tokens=False).input_ids,
            "response_ids": tokenizer(response, add_special_tokens=False).input_ids,
        }
        own = {"text_config": backbone.config, "lora": lora, "attn_implementation": backbone.config._attn_implementation}
        return cls(SETRecConfig(**{**words, **config, **own}), backbone).to(dtype)

    @classmethod
    def from_pretrained(cls, *arguments: Any, **more: Any) -> Any:
        """Loads a checkpoint; with adapters in it, the backbone's own weights are frozen again."""
        loaded = super().from_pretrained(*arguments, **more)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.lora is not None:
            freeze_all_but_adapters(model.backbone)
        return loaded

    def merge_adapter(self) -> "SETRecModel":
        """Adds the LoRA adapters to the backbone's weights, so that a plain checkpoint is left. Returns the model."""
        if self.config.lora is None:
            raise ValueError("This model has no adapters to merge: config.lora is None.")
        merge_adapters(self.backbone)
        self.config.lora = None
        return self

    def generation(self) -> dict[str, Any]:
        """Nothing is searched or drawn: one pass generates the whole set."""
        return {"do_sample": False}

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's word embeddings."""
        return self.backbone.get_input_embeddings()

    # Tokens of items

    def tokenize(self, semantic: torch.Tensor, cf: torch.Tensor | None = None) -> torch.Tensor:
        """Turns item features into token sets, CF first. Shape: semantic (..., S), cf (..., C) -> (..., Q, D)."""
        tokens = self.semantic(semantic)
        if self.cf is None:
            return tokens
        if cf is None:
            cf = semantic.new_zeros(*semantic.shape[:-1], self.config.cf_size)
        return torch.cat([self.cf(cf.to(tokens.dtype))[..., None, :], tokens], -2)

    def forward(
        self,
        semantic: torch.Tensor,
        item_mask: torch.Tensor,
        cf: torch.Tensor | None = None,
        has_cf: torch.Tensor | None = None,
        packed: bool = False,
        candidates: dict[str, torch.Tensor] | None = None,
        labels: torch.Tensor | None = None,
        own: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **_: Any,
    ) -> SETRecOutput:
        """Generates the next item's tokens for each history, or for each prefix of it.

        Args:
            semantic: (B, L, S) semantic vectors of the items, padding on the left.
            item_mask: (B, L) true for real items.
            cf: (B, L, C) CF vectors; zeros where an item has none.
            has_cf: (B, L) true where an item has a CF vector; its CF token is hidden elsewhere. All true when None.
            packed: answer after 0, 1, .. L columns in one pass (A = L + 1) instead of once (A = 1).
            candidates: features of the items that a loss contrasts with: semantic (C, S), and cf (C, C'), has_cf (C,) with a CF slot.
            labels: (B, A) place of the target among the candidates, -100 = none.
            own: (B, C) true for candidates that are the user's own items: no negatives for this user (its targets stay targets).
            num_items_in_batch: targets of the whole (accumulated, distributed) batch, for the mean.
        """
        config = self.config
        with fast_products(item_mask.numel(), *self.semantic.last.weight.shape):
            tokens = self.tokenize(semantic, cf)
        arrange = prefix_layout if config.has_encoder else set_layout
        sizes = (config.tokens, len(config.prompt_ids), len(config.response_ids))
        layout = arrange(item_mask, *sizes, packed, self._token_mask(item_mask, has_cf), config.mask == "released")
        generated = self._generate(tokens, layout)
        if self.gate is not None:
            generated = generated * self.gate + self._residual(generated, tokens, item_mask, has_cf, packed)
        generated = self._scaled(generated)
        if self.prior is not None:
            generated = generated + self.prior
        output = SETRecOutput(tokens=generated, asked=layout.asked)
        if labels is not None and candidates is not None:
            keep = (labels >= 0) & layout.asked
            shut = None if own is None else own[keep.nonzero()[:, 0]]
            count = num_items_in_batch or max(1, int(keep.sum()))
            output.generation_loss = self._generation_loss(generated[keep], candidates, labels[keep], shut) / count
            real = semantic[item_mask]
            rebuilt = self.semantic.reconstruct(tokens[item_mask][:, int(config.has_cf) :])
            # A user's mean error counts as much as the user's targets, so that parts of a batch add up to the whole.
            shares = keep.sum(1).to(real) / item_mask.sum(1).clamp(min=1) / count
            errors = F.mse_loss(rebuilt, real, reduction="none").mean(-1)
            output.reconstruction_loss = (errors * shares[item_mask.nonzero()[:, 0]]).sum()
            output.loss = output.generation_loss + config.alpha * output.reconstruction_loss
        return output

    def _token_mask(self, item_mask: torch.Tensor, has_cf: torch.Tensor | None) -> torch.Tensor | None:
        if self.cf is None or has_cf is None:
            return None
        mask = item_mask.new_ones(*item_mask.shape, self.config.tokens)
        mask[:, :, 0] = has_cf
        return mask

    def _generate(self, tokens: torch.Tensor, layout: SetLayout | PrefixLayout) -> torch.Tensor:
        """Runs the backbone over prompt, items and queries. Shape: tokens (B, L, Q, D) -> (B, A, Q, D)."""
        config, words = self.config, self.get_input_embeddings()
        scale = word_scale(words)
        prompt, response = (
            words(torch.tensor(ids, dtype=torch.long, device=tokens.device)).to(tokens.dtype)
            for ids in (config.prompt_ids, config.response_ids)
        )
        items = F.dropout(tokens, config.dropout, self.training) * scale
        read: Any = read_in_encoder if config.has_encoder else read_in_sequence
        queries = self.queries.to(tokens.dtype).expand(self.config.tokens, -1) * scale
        answers = read(self.backbone, layout, items, prompt, response, queries)
        return F.dropout(answers, config.dropout, self.training)

    def _residual(
        self, answers: torch.Tensor, tokens: torch.Tensor, item_mask: torch.Tensor, has_cf: torch.Tensor | None, packed: bool
    ) -> torch.Tensor:
        """The recency-weighted sum of the history's own tokens, exp(-rate x ago); of several rates a mixture that the answers choose.

        Shape: answers (B, A, Q, D), tokens (B, L, Q, D) -> (B, A, Q, D).
        """
        assert self.log_decay is not None
        length = item_mask.shape[1]
        ends = torch.arange(length + 1, device=tokens.device) if packed else torch.tensor([length], device=tokens.device)
        ago = ends[:, None] - 1 - torch.arange(length, device=tokens.device)[None, :]
        weight = torch.exp(-self.log_decay.exp()[..., None, None] * ago.clamp(min=0)) * (ago >= 0)
        real = item_mask[:, :, None].expand(-1, -1, self.config.tokens)
        mask = self._token_mask(item_mask, has_cf)
        real = (real if mask is None else real & mask).to(tokens.dtype)
        if self.mixture is None:
            return torch.einsum("qal,blq,blqd->baqd", weight.to(tokens.dtype), real, tokens)
        share = self.mixture(answers).softmax(-1)
        return torch.einsum("baqr,rqal,blq,blqd->baqd", share, weight.to(tokens.dtype), real, tokens)

    def _scaled(self, generated: torch.Tensor) -> torch.Tensor:
        """Brings generated tokens to the length that scores them. Shape: (B, A, Q, D) -> same."""
        if self.log_scale is None:
            return generated
        if self.config.normalize == "slot":
            return F.normalize(generated, dim=-1) * self.log_scale.exp()[:, None]
        return F.normalize(generated.flatten(-2), dim=-1).view_as(generated) * self.log_scale.exp()

    def _generation_loss(
        self, generated: torch.Tensor, candidates: dict[str, torch.Tensor], labels: torch.Tensor, own: torch.Tensor | None
    ) -> torch.Tensor:
        """Sum over targets of the mean cross-entropy over slots (and of the fused score). Shape: generated (P, Q, D) -> ()."""
        if own is not None:
            own = own.scatter(1, labels[:, None], False)

        def contrast(answers: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
            scores = answers @ items.T
            if own is not None:
                scores.masked_fill_(own, torch.finfo(scores.dtype).min)
            return F.cross_entropy(scores, labels, reduction="sum")

        share, total = self.config.fused_loss, generated.new_zeros(())
        slots = self._latent_slots if self.loss_in_latent_space else self._token_slots
        if share > 0:
            weights = self.slot_weights(generated)
            pairs = slots(generated * weights[:, None], candidates, self.without_cf() * weights[0])
            if self.loss_in_latent_space:  # semantic slots share their items: their answers add up
                first = int(self.config.has_cf)
                pairs = [*pairs[:first], (torch.stack([answers for answers, _ in pairs[first:]]).sum(0), pairs[first][1])]
            total = total + share * contrast(torch.cat([a for a, _ in pairs], 1), torch.cat([b for _, b in pairs], 1))
        if share < 1:
            losses = [contrast(answers, items) for answers, items in slots(generated, candidates, self.without_cf())]
            total = total + (1 - share) * torch.stack(losses).mean()
        return total

    def without_cf(self) -> torch.Tensor:
        """What an item without a CF vector scores in the CF slot, before the slot's weight. Shape: ()."""
        if self.log_scale is None:
            return self.queries.new_tensor(self.config.cold_score)
        return self.log_scale[0].exp() * self.config.cold_score

    def _token_slots(
        self, generated: torch.Tensor, candidates: dict[str, torch.Tensor], absent: torch.Tensor
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Answers and items per slot, as tokens: their products are the scores.

        Shape: generated (P, Q, D), absent () -> Q pairs, (P, D + 1), (C, D + 1) for CF and (P, D), (C, D) for each semantic slot.
        """
        table = self.tokenize(candidates["semantic"], candidates.get("cf"))
        pairs = list(zip(generated.unbind(1), table.unbind(1), strict=True))
        if self.cf is not None and candidates.get("has_cf") is not None:
            answer, items = pairs[0]
            known = candidates["has_cf"][:, None].to(items)
            pairs[0] = torch.cat([answer, absent.expand(len(answer), 1)], 1), torch.cat([items * known, 1 - known], 1)
        return pairs

    def _latent_slots(
        self, generated: torch.Tensor, candidates: dict[str, torch.Tensor], absent: torch.Tensor
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The same scores, up to a constant of each answer, from the latent vectors in which tokens are affine.

        Shape: generated (P, Q, D), absent () -> Q pairs, (P, C' + 1), (C, C' + 1) for CF and (P, H), (C, H) for each semantic slot.
        """
        pairs = []
        if self.cf is not None:
            cf = candidates.get("cf")
            cf = generated.new_zeros(len(candidates["semantic"]), self.config.cf_size) if cf is None else cf.to(self.dtype)
            known = candidates.get("has_cf")
            known = torch.ones_like(cf[:, :1]) if known is None else known[:, None].to(cf)
            answer = generated[:, 0]
            here = (answer @ self.cf.bias - absent)[:, None]
            pairs.append((torch.cat([answer @ self.cf.weight, here], 1), torch.cat([cf * known, known], 1)))
        latent = self.semantic.latent(candidates["semantic"])
        maps = self.semantic.last.weight.unflatten(0, self.semantic.shape)
        answers = torch.einsum("pnd,ndh->nph", generated[:, int(self.config.has_cf) :], maps)
        return pairs + [(answer, latent) for answer in answers]

    @property
    def loss_in_latent_space(self) -> bool:
        """Whether training compares latent vectors rather than tokens: the same gradient, cheaper where they are narrower."""
        if self.config.grounding != "auto":
            return self.config.grounding == "latent"
        return self.semantic.last.in_features < self.config.width

    @torch.no_grad()
    def recommend_tokens(
        self, histories: Sequence[np.ndarray], features: dict[str, torch.Tensor], batch_size: int | None = None
    ) -> torch.Tensor:
        """Generates the next item's tokens for histories given as rows of `features`, as many at a time as suits the memory.

        Shape: B arrays of rows -> (B, Q, D).
        """
        longest = self.config.max_items * self.config.tokens * self.config.width
        batch_size = batch_size or min(128, max(32, STATES // longest))
        generated = torch.empty(len(histories), self.config.tokens, self.config.width, device=self.device, dtype=self.dtype)
        for rows in length_batches([len(h) for h in histories], batch_size):
            items = pad_left([histories[r] for r in rows], self.config.max_items)
            inputs = {name: values[items.clamp(min=0).to(values.device)].to(self.device) for name, values in features.items()}
            generated[rows] = self(item_mask=(items >= 0).to(self.device), **inputs).tokens[:, 0]
        return generated

    @torch.no_grad()
    def score(self, histories: Sequence[np.ndarray], features: dict[str, torch.Tensor], index: torch.Tensor | None = None) -> torch.Tensor:
        """Scores all items for histories given as rows of `features` (ranking scores: the user's constant is left out), 32-bit.

        Shape: B arrays of rows, features semantic (V, S), cf (V, C), has_cf (V,) -> (B, V).
        """
        index = self.index(**dict[str, Any](features)) if index is None else index
        return table_product(self.ground(self.recommend_tokens(histories, features)), index).float().cpu()

    @torch.no_grad()
    def set_prior(self, direction: torch.Tensor) -> None:
        """Lets the prior score items by `direction . semantic` from now on. Exact for a linear text map that loses nothing.

        Shape: direction (S,).

        Raises:
            ValueError: without a prior, or when the text map is not linear.
        """
        if self.prior is None or self.config.semantic_widths:
            raise ValueError("Only a model with prior=True and a linear text map (semantic_widths=[]) can be given a prior.")
        back = torch.linalg.pinv(self.semantic.last.weight.T.double()) @ direction.double()
        weights = self.slot_weights(self.prior)[int(self.config.has_cf) :, None].clamp(min=1e-6)
        self.prior[int(self.config.has_cf) :] = back.to(self.prior).view(self.semantic.shape) / weights

    # Grounding

    def slot_weights(self, like: torch.Tensor) -> torch.Tensor:
        """Weight of each slot in the score: 1 - beta for CF, beta for each semantic one, times `config.slot_weights`. Shape: (Q,)."""
        config = self.config
        weights = [1 - config.beta] * config.has_cf + [config.beta if config.has_cf else 1.0] * config.semantic_tokens
        extra = config.slot_weights or [1.0] * config.tokens
        return torch.tensor([a * b for a, b in zip(weights, extra, strict=True)], dtype=like.dtype, device=like.device)

    @property
    def grounds_in_latent_space(self) -> bool:
        """Whether the index holds latent vectors (CF numbers and the autoencoder's last hidden layer) rather than tokens."""
        if self.config.grounding != "auto":
            return self.config.grounding == "latent"
        width = self.config.cf_size + self.semantic.last.in_features
        return width < self.config.tokens * self.config.width

    @torch.no_grad()
    def index(
        self, semantic: torch.Tensor, cf: torch.Tensor | None = None, has_cf: torch.Tensor | None = None, chunk: int = 8192
    ) -> torch.Tensor:
        """Encodes a catalogue for `top_k`. An item without a CF vector has `config.cold_score` in place of a CF term.

        The numbers of one column lie side by side in memory: a few queries then read the index once, in order (twice as fast for one).

        Shape: semantic (V, S), cf (V, C), has_cf (V,) -> (V, W).
        """
        semantic = semantic.to(self.dtype)
        cf = None if cf is None else cf.to(self.dtype)

        def encode(part: slice) -> torch.Tensor:
            known = None
            if cf is not None:
                known = (torch.ones(len(cf[part])) if has_cf is None else has_cf[part].float()).to(semantic)[:, None]
            if self.grounds_in_latent_space:
                latent = self.semantic.latent(semantic[part])
                if self.cf is None:
                    return latent
                empty = semantic.new_zeros(len(latent), self.config.cf_size)
                here = empty[:, :1] if known is None or cf is None else known
                return torch.cat([empty if cf is None else cf[part] * here, here, latent], 1)
            tokens = self.tokenize(semantic[part], None if cf is None else cf[part])
            if self.cf is None:
                return tokens.flatten(1)
            known = tokens.new_zeros(len(tokens), 1) if known is None else known
            tokens[:, 0] *= known
            return torch.cat([tokens.flatten(1), known], 1) if self.config.cold_score else tokens.flatten(1)

        first = encode(slice(0, chunk))
        columns = first.new_empty(first.shape[1], len(semantic))
        columns[:, : len(first)] = first.T
        for start in range(chunk, len(semantic), chunk):
            columns[:, start : start + chunk] = encode(slice(start, start + chunk)).T
        return columns.T

    def ground(self, generated: torch.Tensor) -> torch.Tensor:
        """Folds generated tokens and slot weights into one query for `top_k`. Shape: generated (B, Q, D) -> (B, W)."""
        if not self.grounds_in_latent_space:
            query = (generated * self.slot_weights(generated)[:, None]).flatten(1)
            if self.cf is None or not self.config.cold_score:
                return query
            return torch.cat([query, -self._cold(generated).expand(len(query), 1)], 1)
        first, cf_share, share = int(self.config.has_cf), 1 - self.config.beta, self.config.beta
        if self.config.slot_weights:
            generated, cf_share, share = generated * self.slot_weights(generated)[:, None], 1.0, 1.0
        query = generated.flatten(1)[:, first * self.config.width :] @ self.semantic.last.weight
        if self.cf is None:
            return query
        answer = generated[:, 0] * cf_share
        here = answer @ self.cf.bias
        if self.config.cold_score:
            here = here - self._cold(generated)
        return torch.cat([answer @ self.cf.weight, here[:, None], query * share], 1)

    def _cold(self, generated: torch.Tensor) -> torch.Tensor:
        """What an item without a CF vector scores in the CF slot, weighted. Shape: ()."""
        return self.without_cf().to(generated) * self.slot_weights(generated)[0]

    def ground_constant(self, generated: torch.Tensor) -> torch.Tensor:
        """What `ground` leaves out of a user's scores: the score of an absent CF vector, in the latent form the semantic bias.

        Shape: (B, Q, D) -> (B,).
        """
        cold = self._cold(generated) * self.config.has_cf
        if not self.grounds_in_latent_space:
            return cold.expand(len(generated))
        weighted = generated * self.slot_weights(generated)[:, None]
        return weighted[:, int(self.config.has_cf) :].flatten(1) @ self.semantic.last.bias + cold

    def contributions(
        self, generated: torch.Tensor, semantic: torch.Tensor, cf: torch.Tensor | None = None, has_cf: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What each token adds to the score of each shown item; the reference form of the score.

        The prior judges an item as a whole and may be much longer than a token, so that its parts by slot say nothing of the history:
        what it takes or gives in all is shared evenly by the semantic slots.

        Shape: generated (B, Q, D), semantic (B, K, S), cf (B, K, C), has_cf (B, K) -> (B, K, Q).
        """
        items, weights = self.tokenize(semantic, cf), self.slot_weights(generated)
        parts = torch.einsum("bqd,bkqd,q->bkq", generated if self.prior is None else generated - self.prior, items, weights)
        first = int(self.config.has_cf)
        if self.cf is not None and (cf is None or has_cf is not None):  # an item without a CF vector has no CF token
            here = parts.new_zeros(parts.shape[:-1]) if cf is None or has_cf is None else has_cf.to(parts)
            items = torch.cat([items[..., :1, :] * here[..., None, None], items[..., 1:, :]], -2)
            parts = torch.cat([(parts[..., 0] * here + self._cold(generated) * (1 - here))[..., None], parts[..., 1:]], -1)
        if self.prior is None:
            return parts
        whole = torch.einsum("qd,bkqd,q->bk", self.prior, items, weights)[..., None] / self.config.semantic_tokens
        return torch.cat([parts[..., :first], parts[..., first:] + whole], -1)
