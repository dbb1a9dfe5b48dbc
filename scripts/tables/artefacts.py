"""The two artefacts of IDGenRec's published evaluation, each to be switched on, so that their size can be measured; and its prompts.

Nothing here is used by the package. Source: IDGenRec's issues 1 (user IDs are written about the whole history, target included), 3 and 7
(the Toys and Sports histories are sorted by item id).
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed

import genrec_hub
from genrec_hub.baselines import Ranker
from genrec_hub.domain import Domain, Sequences, Split
from genrec_hub.modeling_idgenrec import IDGenRecModel
from genrec_hub.pipeline import DomainRanker
from genrec_hub.processing_idgenrec import IDGenRecProcessor
from genrec_hub.recipes import CHECKPOINTS, REPORT, Settings, circumstances, run_arguments
from genrec_hub.recipes_idgenrec import VALIDATION_USERS
from genrec_hub.timing import Clock
from genrec_hub.training import run
from genrec_hub.training_idgenrec import PromptRecommenderTrainer


def key_sorted(domain: Domain) -> Domain:
    """The domain with every history in the order of its item ids, as IDGenRec's Toys and Sports files have them."""
    place = np.argsort(np.argsort(np.array(domain.catalog.ids)))
    own = [domain.sequences[user] for user in range(len(domain))]
    histories = Sequences.of([items[np.argsort(place[items], kind="stable")] for items in own])
    return Domain(domain.catalog, domain.users, histories, None, None, f"{domain.name}@key-sorted")


class LargerOnly:
    """A ranker with the one rule that key-sorted histories reward: only items with a larger id than all of the history."""

    def __init__(self, ranker: Ranker, ids: Sequence[str]) -> None:
        self.ranker, self.order = ranker, np.argsort(np.argsort(np.array(ids)))

    def scores(self, histories: Sequence[np.ndarray]) -> torch.Tensor:
        """Shape: B histories -> (B, V)."""
        scores = self.ranker.scores(histories).clone()
        for row, history in enumerate(histories):
            scores[row, torch.from_numpy(self.order <= self.order[history].max())] = -torch.inf
        return scores


class UserIDs(IDGenRecProcessor):
    """A processor whose user IDs are written about whole histories, targets included. Only for measuring what that is worth.

    Attributes:
        whole: the tokens of a known history (cut as it is read) -> the tokens of all that its user ever took.
    """

    whole: dict[tuple[tuple[int, ...], ...], list[list[int]]]

    def known(self, split: Split, domain: Domain) -> "UserIDs":
        """Learns the users of a domain; returns the processor."""
        self.whole = {}
        for own, histories in ((split.validation.users, split.validation.histories), (split.test.users, split.test.histories)):
            for row, user in enumerate(own):
                self.whole[self.key(histories[row])] = self.tokens_of(domain.sequences[int(user)])
        return self

    def key(self, rows: np.ndarray) -> tuple[tuple[int, ...], ...]:
        """A history as it is read."""
        return tuple(tuple(own) for own in self.tokens_of(rows[-self.max_items :]))

    def tokens_of(self, rows: np.ndarray) -> list[list[int]]:
        """The ID tokens of some items."""
        return [self._tokens[int(row)] for row in rows]

    def user_tokens(self, histories: Sequence[Sequence[Sequence[int]]], model: IDGenRecModel | None) -> list[list[int]]:
        """As the parent's, but of the whole histories; one that is no known part of another is whole."""
        return super().user_tokens([self.whole.get(tuple(map(tuple, history)), history) for history in histories], model)


class LeakyTrainer(PromptRecommenderTrainer):
    """Writes user IDs about all that the user of a sequence ever took."""

    users: dict[tuple[int, ...], np.ndarray]

    def read_about_user(self, sequence: np.ndarray, place: int) -> np.ndarray:
        """The whole history. Shape: sequence (L,) -> (N,)."""
        return self.users[tuple(sequence.tolist())]


def prompted(
    domain: Domain, split: Split, folder: Path, settings: Settings, start: Path, prompt: str = "item", leak: bool = False
) -> Ranker:
    """An IDGenRec that reads sentences: the generator and IDs of a finished one, its recommender trained further on prompts of one kind.

    Args:
        domain: the data.
        split: of it.
        folder: of the finished checkpoint.
        settings: of the training.
        start: the finished IDGenRec.
        prompt: "item", "user" or "both".
        leak: user IDs are written about the whole history of the user.
    """
    before = genrec_hub.load(str(start))
    model, old = before.model, before.processor
    kind = UserIDs if leak else IDGenRecProcessor
    processor = kind(old.tokenizer, old.catalog, old.identifiers, prompt, old.has_encoder, old.max_items, old.max_text)
    if isinstance(processor, UserIDs):
        processor.known(split, domain)
    if (folder / REPORT).is_file():
        model = IDGenRecModel.from_pretrained(folder)
    else:
        chosen = settings.or_else(epochs=2, batch=128, rate=2e-3, negatives=0)
        set_seed(chosen.seed)
        clock = Clock()
        last = {"eval_strategy": "no", "load_best_model_at_end": False}  # the twins are compared after the same training
        trainer = (LeakyTrainer if leak else PromptRecommenderTrainer)(
            model, run_arguments(folder, chosen, split, last), processor=processor, sequences=split.training, validation=split.validation,
            max_validation=VALIDATION_USERS,
        )  # fmt: skip
        if isinstance(trainer, LeakyTrainer):
            data: Any = trainer.train_dataset
            trainer.users = {tuple(data[row].tolist()): domain.sequences[int(user)] for row, user in enumerate(data.users)}
        run(trainer, True, clock)
        report = {"settings": asdict(chosen), "validation": trainer.rank_validation(), **circumstances(domain)}
        report |= clock.spent()
        report["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        model.save_pretrained(folder)
        (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return DomainRanker(model, processor)
