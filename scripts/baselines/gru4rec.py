"""GRU4Rec: a recurrent network over item embeddings, trained like our SASRec.

Source: Hidasi et al., Session-based Recommendations with Recurrent Neural Networks, ICLR 2016 (arXiv 1511.06939).
Differs: loss, negatives, cosine scores and training are those of our SASRec, so that only the network between embeddings and scores
differs.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import set_seed

from genrec_hub.configuration_sasrec import SASRecConfig
from genrec_hub.domain import Domain
from genrec_hub.modeling_sasrec import SASRecModel
from genrec_hub.recipes import DEFAULTS, Settings, circumstances, finish, negatives_of, refuse_empty, run_arguments
from genrec_hub.training import SASRecTrainer


class GRU4RecConfig(SASRecConfig):
    """As SASRec's; `num_layers` are those of the GRU."""

    model_type = "gru4rec"


class GRU4Rec(SASRecModel):
    """A GRU in the place of SASRec's blocks."""

    config: GRU4RecConfig
    config_class = GRU4RecConfig
    base_model_prefix = "gru4rec"

    def __init__(self, config: GRU4RecConfig) -> None:
        super().__init__(config)
        del self.blocks, self.positions
        between = config.dropout if config.num_layers > 1 else 0.0
        self.gru = nn.GRU(config.hidden_size, config.hidden_size, config.num_layers, batch_first=True, dropout=between)

    def encode(self, item_ids: torch.Tensor) -> torch.Tensor:
        """Returns the state after each item. Shape: item_ids (B, L), 0 = padding on the left -> (B, L, D).

        Rows are turned until their items come first: the network then reads padding last, where nothing comes after it.
        """
        item_ids = item_ids[:, -self.config.max_length :]
        length = item_ids.shape[1]
        turn = (torch.arange(length, device=item_ids.device) + (item_ids == 0).sum(1, keepdim=True)) % length
        hidden = self.items(item_ids.gather(1, turn)) * self.config.hidden_size**0.5
        hidden = self.gru(F.dropout(hidden, self.config.dropout, self.training))[0]
        back = turn.argsort(1)
        return self.norm(hidden.gather(1, back[:, :, None].expand_as(hidden)))


def train_gru4rec(domain: Domain, output: str | Path, settings: Settings = DEFAULTS, resume: bool = False, **config: Any) -> dict[str, Any]:
    """Trains and saves; arguments and report as those of `genrec_hub.recipes.train_sasrec`."""
    chosen = settings.or_else(epochs=24, batch=256, rate=2e-3, negatives=2048)
    split, size = domain.split(chosen.protocol), len(domain.catalog)
    refuse_empty(split.training)
    set_seed(chosen.seed)
    shape = {"temperature": 0.1, "num_layers": 1, **config}
    model = GRU4Rec(GRU4RecConfig(**shape, num_items=size, catalog_fingerprint=domain.catalog.fingerprint))
    trainer = SASRecTrainer(
        model,
        run_arguments(output, chosen, split),
        sequences=split.training,
        validation=split.validation if len(split.validation) else None,
        catalog_size=size,
        negatives=negatives_of(chosen, size),
        max_items=model.config.max_length,
    )
    return finish(trainer, Path(output), chosen, resume, lambda: circumstances(domain))
