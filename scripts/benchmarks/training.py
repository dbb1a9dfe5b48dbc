"""Training: every prefix in one packed pass against one sample per prefix, and the loss in latent space against the loss per token.

Dims: P targets · Q tokens of an identifier · D hidden size · V catalogue size.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from genrec_hub import SETRecConfig, SETRecModel
from genrec_hub.recipes import small_backbone

from .timing import interleaved


def packed(items: int, rounds: int, users: int = 4) -> dict[str, float]:
    """CPU seconds of loss and gradients of every prefix (D 256, 4 layers, 5 tokens, 1,000 candidates).

    Two plain forms: `padded`, the published one, has the prefixes of the same users in one batch, padded to the longest; `plain` has one
    batch per length, so that no padding is computed. Of long histories the padded form is left out: it takes more than twice as long.

    Raises:
        RuntimeError: when packed and plain losses differ.
    """
    torch.manual_seed(0)
    model = SETRecModel(SETRecConfig(text_config=small_backbone(256, 4, 0.0), semantic_tokens=4, cf_size=64))
    semantic, cf = torch.randn(users, items, 384), torch.randn(users, items, 64)
    mask = torch.ones(users, items, dtype=torch.bool)
    candidates = {"semantic": torch.randn(1000, 384), "cf": torch.randn(1000, 64)}
    labels = torch.randint(1000, (users, items + 1))
    ends = torch.arange(items + 1)
    prefix_mask = (torch.arange(items)[None] >= items - ends[:, None]).repeat_interleave(users, 0)
    source = (torch.arange(items)[None] - (items - ends[:, None])).clamp(min=0).repeat_interleave(users, 0)
    owner = torch.arange(users).repeat(items + 1)[:, None]
    count = labels.numel()

    def padded() -> torch.Tensor:
        model.zero_grad()
        targets = labels.T.reshape(-1, 1)
        output = model(semantic[owner, source], prefix_mask, cf[owner, source], candidates=candidates, labels=targets)
        output.loss.backward()
        return output.generation_loss

    def unpadded() -> torch.Tensor:
        model.zero_grad()
        total = torch.zeros(())
        for end in range(items + 1):
            inputs = (semantic[:, :end], mask[:, :end], cf[:, :end])
            output = model(*inputs, candidates=candidates, labels=labels[:, end : end + 1], num_items_in_batch=count)
            output.loss.backward()
            total += output.generation_loss.detach()
        return total

    def ours() -> torch.Tensor:
        model.zero_grad()
        output = model(semantic, mask, cf, packed=True, candidates=candidates, labels=labels)
        output.loss.backward()
        return output.generation_loss

    forms: dict[str, Callable[[], torch.Tensor]] = {"plain": unpadded, "ours": ours} | ({"padded": padded} if items <= 20 else {})
    losses = [form() for form in forms.values()]
    if not all(torch.allclose(loss, losses[0], rtol=1e-5, atol=1e-5) for loss in losses):
        raise RuntimeError("Packed and per-prefix training have different losses.")
    return interleaved(forms, rounds)


def latent_loss(rounds: int, size: int = 12_000, targets: int = 256) -> dict[str, float]:
    """CPU seconds of the full softmax over a catalogue with all its gradients: D 512, 4 + 1 slots, autoencoder 128 wide.

    `plain` is the published form: all items become one tensor of tokens, and every slot takes its slice of it. `split` takes the tensor
    apart once, which spares autograd a tensor of zeros per slot. All three include the autoencoder below the last layer, which they share.

    Raises:
        RuntimeError: when losses or gradients differ.
    """
    torch.manual_seed(0)
    config = SETRecConfig(text_config=small_backbone(512, 1), semantic_tokens=4, cf_size=64, grounding="latent")
    model = SETRecModel(config)
    candidates = {"semantic": torch.randn(size, 384), "cf": torch.randn(size, 64)}
    generated, labels = torch.randn(targets, 5, 512, requires_grad=True), torch.randint(size, (targets,))

    def contrast(answers: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(answers @ items.T, labels, reduction="sum")

    def plain() -> torch.Tensor:
        table = model.tokenize(**candidates)
        return torch.stack([contrast(generated[:, slot], table[:, slot]) for slot in range(5)]).mean()

    def split() -> torch.Tensor:
        pairs = zip(generated.unbind(1), model.tokenize(**candidates).unbind(1), strict=True)
        return torch.stack([contrast(*pair) for pair in pairs]).mean()

    def ours() -> torch.Tensor:
        return model._generation_loss(generated, candidates, labels, None)

    def gradient(form: str) -> torch.Tensor:
        model.zero_grad()
        generated.grad = None
        loss = {"plain": plain, "split": split, "ours": ours}[form]()
        loss.backward()
        assert generated.grad is not None
        return torch.cat([loss.detach()[None], generated.grad.flatten(), model.semantic.last.weight.grad.flatten()])

    if not torch.allclose(gradient("plain"), gradient("ours"), rtol=1e-3, atol=1e-4):
        raise RuntimeError("The loss in latent space and the loss per token differ.")
    return interleaved({form: lambda form=form: gradient(form) for form in ("plain", "split", "ours")}, rounds)
