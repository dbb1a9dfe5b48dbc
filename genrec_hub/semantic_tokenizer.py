"""The autoencoder between semantic vectors and semantic tokens.

Dims: S width of semantic vectors · H last hidden width · N semantic tokens · D hidden size.
"""

from itertools import pairwise
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_setrec import SETRecConfig


class TokenizerLinear(nn.Linear):
    """A linear layer of the tokenizers: Xavier-normal as in the paper, or orthogonal where it should keep what it maps."""

    def __init__(self, width: int, out: int, orthogonal: bool = False) -> None:
        self.orthogonal = orthogonal
        super().__init__(width, out)


class SemanticTokenizer(nn.Module):
    """The autoencoder: a semantic vector becomes N tokens, the contiguous chunks of the code. Source: SETRec section 3.1."""

    def __init__(self, config: SETRecConfig) -> None:
        super().__init__()
        widths = [config.semantic_size, *config.semantic_widths, config.semantic_tokens * config.width]
        steps, single = list(pairwise(widths)), not config.semantic_widths
        self.shape = (config.semantic_tokens, config.width)
        self.encoder = nn.ModuleList(TokenizerLinear(a, b, single) for a, b in steps)
        self.decoder = nn.ModuleList(TokenizerLinear(b, a, single) for a, b in reversed(steps))

    @property
    def last(self) -> nn.Linear:
        """The layer that makes tokens of the latent vector."""
        return cast(nn.Linear, self.encoder[-1])

    def latent(self, semantic: torch.Tensor) -> torch.Tensor:
        """The last hidden layer, in which all tokens are affine, in the weights' precision. Shape: (..., S) -> (..., H)."""
        semantic = semantic.to(self.last.weight.dtype)
        for layer in self.encoder[:-1]:
            semantic = F.relu(layer(semantic))
        return semantic

    def forward(self, semantic: torch.Tensor) -> torch.Tensor:
        """Shape: (..., S) -> (..., N, D)."""
        return self.encoder[-1](self.latent(semantic)).unflatten(-1, self.shape)

    def reconstruct(self, tokens: torch.Tensor) -> torch.Tensor:
        """Shape: (..., N, D) -> (..., S)."""
        hidden = tokens.flatten(-2)
        for layer in self.decoder[:-1]:
            hidden = F.relu(layer(hidden))
        return self.decoder[-1](hidden)
