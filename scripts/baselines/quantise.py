"""Vectors -> codes of several levels: residual k-means, and a residual-quantised autoencoder (RQ-VAE).

Source: TIGER (arXiv 2305.05065) section 3.1 for RQ-VAE; GRID (arXiv 2507.22224) for residual k-means, which is as good and has nothing to
tune.

Dims: V items · S width of their vectors · D width of the code space · K codes of a level · M levels.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

Extra = Callable[[torch.Tensor, torch.Tensor, list[torch.Tensor]], torch.Tensor]
"""(rows of a batch, their quantised vectors, the codebooks) -> a further loss."""


def residual_kmeans(vectors: np.ndarray, levels: int, size: int, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    """Clusters vectors, then what the centres leave of them, and so on. Shape: (V, S) -> codes (V, M), M centres (K, S)."""
    rest, codes, centres = np.asarray(vectors, np.float32).copy(), [], []
    for level in range(levels):
        found = KMeans(min(size, len(rest)), n_init=1, max_iter=50, random_state=seed + level).fit(rest)
        codes.append(found.labels_)
        centres.append(found.cluster_centers_.astype(np.float32))
        rest -= centres[-1][found.labels_]
    return np.stack(codes, 1), centres


class RQVAE(nn.Module):
    """An autoencoder whose code is a sum of one vector from each of M codebooks.

    Args:
        width: S.
        widths: of the encoder's hidden layers, then D; the decoder mirrors them.
        levels: M.
        size: K.
    """

    def __init__(self, width: int, widths: tuple[int, ...] = (256, 128, 32), levels: int = 3, size: int = 256) -> None:
        super().__init__()
        sizes = [width, *widths]
        self.encoder = _layers(sizes)
        self.decoder = _layers(sizes[::-1])
        self.books = nn.ParameterList(torch.zeros(size, widths[-1]) for _ in range(levels))

    def quantise(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The nearest code of each level, to what the levels before left over.

        Shape: (B, D) -> quantised (B, D), codes (B, M), loss () = ||sg(rest) - code||^2 + 0.25 ||rest - sg(code)||^2.
        """
        rest, total, loss, codes = hidden, torch.zeros_like(hidden), hidden.new_zeros(()), []
        for book in self.books:
            nearest = torch.cdist(rest, book).argmin(1)
            chosen = book[nearest]
            loss = loss + F.mse_loss(chosen, rest.detach()) + 0.25 * F.mse_loss(rest, chosen.detach())
            codes.append(nearest)
            total, rest = total + chosen, rest - chosen.detach()
        return total, torch.stack(codes, 1), loss


def train_rqvae(
    vectors: np.ndarray,
    levels: int,
    size: int,
    *,
    epochs: int = 60,
    batch: int = 1024,
    rate: float = 1e-3,
    seed: int = 0,
    extra: Extra | None = None,
    parameters: list[nn.Parameter] | None = None,
) -> np.ndarray:
    """Trains an RQ-VAE on the vectors and gives their codes; codebooks start from residual k-means of the untrained encoder's output.

    Differs: the papers train for 20,000 epochs with codebooks that start from the first batch; these start from the whole catalogue.

    Args:
        vectors: (V, S).
        levels: M.
        size: K.
        epochs: passes over the items.
        batch: items of a step.
        rate: of AdamW.
        seed: of weights, codebooks and batches.
        extra: a further loss on the quantised vectors.
        parameters: that the further loss trains.

    Shape: -> (V, M).
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = RQVAE(vectors.shape[1], levels=levels, size=min(size, len(vectors)))
    items = torch.from_numpy(np.asarray(vectors, np.float32))
    with torch.no_grad():
        for book, centres in zip(model.books, residual_kmeans(model.encoder(items).numpy(), levels, size, seed)[1], strict=True):
            book.copy_(torch.from_numpy(centres))
    optimiser = torch.optim.AdamW([*model.parameters(), *(parameters or [])], rate, weight_decay=1e-4)
    for _ in tqdm(range(epochs), "rq-vae", unit="epoch", disable=None):
        for rows in torch.randperm(len(items), generator=generator).split(batch):
            hidden = model.encoder(items[rows])
            quantised, _, commitment = model.quantise(hidden)
            passed = hidden + (quantised - hidden).detach()  # the gradient goes past the choice
            loss = F.mse_loss(model.decoder(passed), items[rows]) * items.shape[1] + commitment * hidden.shape[1]
            if extra is not None:
                loss = loss + extra(rows, passed, list(model.books))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        return model.quantise(model.encoder(items))[1].numpy()


def _layers(widths: list[int]) -> nn.Sequential:
    steps: list[nn.Module] = []
    for place, (before, after) in enumerate(pairwise(widths)):
        steps += [nn.Linear(before, after)] + [nn.ReLU()] * (place + 2 < len(widths))
    return nn.Sequential(*steps)
