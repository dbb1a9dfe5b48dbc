"""IDGenRecProcessor: the tokenizer, the catalogue and its textual IDs that travel with an IDGenRec checkpoint.

IDs are a sidecar, not weights: another catalogue gets IDs of its own from the same generator, a larger one keeps those it has.

Dims: B batch · S prompt tokens · V catalogue size · L items in a history · K shown items.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from .beam_search import Beams
from .catalog import Catalog, Item, Recommendation
from .checkpoint import SIDECARS, TOKENIZER, HubProcessor, seal
from .copying import FlatTokens, copy_bias, flat_tokens, promising, token_rarity
from .history import History
from .identifiers import Identifiers, assign_identifiers
from .modeling_idgenrec import IDGenRecModel
from .phrases import clean_words, generator_text
from .prompts import PromptWriter, pad_prompts
from .timing import stage
from .trie import Trie
from .writing import IDWriter

TYPED_WORDS = 6
"""Words of a typed line that stand for an ID where no generator is at hand."""
TYPED_KEPT = 2048
"""Typed texts whose IDs are kept in memory, about."""

Progress = Callable[[int, int], None]
Lines = str | Iterable[str | Item | Mapping[str, object]]


class IDGenRecProcessor(HubProcessor, ProcessorMixin):
    """Turns histories into prompts and generated IDs into recommendations.

    Args:
        tokenizer: of both language models.
        catalog: the items that can be recommended; may be empty (then a catalogue is given at call time).
        identifiers: their IDs; see `with_catalog` for how a catalogue gets them.
        prompt: what the recommender reads: "packed", "item", "user" or "both"; see `PromptWriter`.
        has_encoder: whether the recommender reads prompts in an encoder (T5).
        max_items: items of a history that are read, the last ones.
        max_text: tokens of an item's text that the generator reads.
        copy: how much tokens that stand in the history's IDs are preferred; 0 = not at all. See `copying.copy_bias`.
        copy_decay: how fast that fades with items further back.
        shortlist: the search ends in the items whose IDs those preferred tokens speak for most, this many; 0 = any (`copying.promising`).

    Raises:
        ValueError: when the identifiers are not those of the catalogue.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        catalog: Catalog | None = None,
        identifiers: Identifiers | None = None,
        prompt: str = "packed",
        has_encoder: bool = False,
        max_items: int = 20,
        max_text: int = 256,
        copy: float = 0.0,
        copy_decay: float = 0.3,
        shortlist: int = 0,
    ) -> None:
        self.tokenizer = tokenizer
        self.catalog = Catalog(()) if catalog is None else catalog
        self.max_items, self.max_text = max_items, max_text
        self.copy, self.copy_decay, self.shortlist = copy, copy_decay, shortlist
        self.prompts = PromptWriter(tokenizer, prompt, has_encoder)
        self.has_encoder = has_encoder
        self._identifiers = identifiers
        self.writer = IDWriter(tokenizer, max_text)
        self._typed: tuple[tuple[Any, ...], dict[str, list[int]]] = ((), {})
        if identifiers is not None and identifiers.item_ids != self.catalog.ids:
            raise ValueError(f"The identifiers are those of {len(identifiers)} other items than the catalogue's {len(self.catalog)}.")

    def __repr__(self) -> str:
        return f"IDGenRecProcessor({self.catalog!r}, {self._identifiers!r})"

    @property
    def identifiers(self) -> Identifiers:
        """The IDs of the catalogue, row by row."""
        if self._identifiers is None:
            raise ValueError("This checkpoint carries no catalogue: give one, for instance catalog=Catalog.from_file('items.csv').")
        return self._identifiers

    @cached_property
    def rarity(self) -> torch.Tensor:
        """How much each token tells of an item; see `copying.token_rarity`. Shape: (W,)."""
        return token_rarity(self._tokens, len(self.tokenizer))

    @property
    def without_ids(self) -> bool:
        """Whether no catalogue has been given IDs yet."""
        return self._identifiers is None

    @cached_property
    def trie(self) -> Trie:
        """The prefix tree of the catalogue's IDs."""
        return Trie.build(self._tokens, self.writer.eos)

    @cached_property
    def _tokens(self) -> list[list[int]]:
        return [own.tolist() for own in self.identifiers.tokens]

    def _like(self, catalog: Catalog | None, identifiers: Identifiers | None) -> "IDGenRecProcessor":
        return IDGenRecProcessor(
            self.tokenizer,
            catalog,
            identifiers,
            self.prompts.kind,
            self.has_encoder,
            self.max_items,
            self.max_text,
            self.copy,
            self.copy_decay,
            self.shortlist,
        )

    # Catalogues

    def without_catalog(self) -> "IDGenRecProcessor":
        """Returns a processor that knows no items."""
        return self._like(None, None)

    def with_catalog(self, catalog: Catalog, progress: Progress | None = None, model: IDGenRecModel | None = None) -> "IDGenRecProcessor":
        """Returns a processor for another catalogue, whose IDs the model's generator writes (Algorithm 1): zero-shot.

        Raises:
            ValueError: when no model is given.
        """
        if catalog.fingerprint == self.catalog.fingerprint and self._identifiers is not None:
            return self
        return self._like(catalog, self._assigned(catalog, None, progress, model))

    def add_items(self, items: Iterable[Item], progress: Progress | None = None, model: IDGenRecModel | None = None) -> "IDGenRecProcessor":
        """Returns a processor whose catalogue has the items appended; the IDs of the old items stay as they are."""
        catalog = self.catalog.add(items)
        return self._like(catalog, self._assigned(catalog, self._identifiers, progress, model))

    def _assigned(self, catalog: Catalog, old: Identifiers | None, progress: Progress | None, model: IDGenRecModel | None) -> Identifiers:
        if model is None:
            raise ValueError("IDs are written by the model's generator: pass the model as well, model=... .")
        latest = 0

        def told(done: int, total: int) -> None:
            nonlocal latest
            latest = max(latest, done)
            if progress is not None:
                progress(latest, total)

        def written(done: int) -> None:
            # Rounds are long: within one, texts that have been written count, and whoever cancels is heard.
            told(min(done, len(catalog) - 1), len(catalog))

        return assign_identifiers(
            catalog,
            partial(self.writer.write, model, progress=written),
            partial(self.tokenizer.encode, add_special_tokens=False),
            generator=old.fingerprint if old is not None else model.fingerprint,
            old=old,
            catalog=catalog.fingerprint,
            unknown=self.tokenizer.unk_token_id,
            progress=told,
        )

    # Histories

    def read(self, history: Lines | History) -> History:
        """Reads a history against the catalogue; see `History.read`."""
        return history if isinstance(history, History) else History.read(history, self.catalog)

    def __call__(
        self, histories: Sequence[Lines | History], return_tensors: str = "pt", model: IDGenRecModel | None = None
    ) -> BatchFeature:
        """Makes prompts from histories, padded on the left.

        Args:
            histories: lines of text, items, or read histories.
            return_tensors: as in transformers.
            model: whose generator writes IDs for lines that are no items of the catalogue, and user IDs; without it such a line's own words
                stand for an ID.

        Shape: B histories -> input_ids, attention_mask (B, S).
        """
        if isinstance(histories, str):
            raise TypeError("The processor takes a list of histories: wrap the one history in a list.")
        own = self.history_tokens([self.read(history) for history in histories], model)
        return BatchFeature(dict(self.inputs(own, model)), tensor_type=return_tensors)

    def history_tokens(self, histories: Sequence[History], model: IDGenRecModel | None = None) -> list[list[list[int]]]:
        """The ID tokens of each history's last items; those of typed items are written on the spot."""
        cut = [history[-self.max_items :] for history in histories]
        typed = list(dict.fromkeys(generator_text(match.item) for own in cut for match in own.matches if match.row is None))
        if model is None or not typed:
            words = self._spoken(typed, [clean_words(text, TYPED_WORDS) for text in typed])
        else:
            moment, kept = model.moment(), self._typed
            if kept[0] != moment or len(kept[1]) > TYPED_KEPT:
                kept = self._typed = (moment, {})
            missing = [text for text in typed if text not in kept[1]]
            kept[1].update(self._spoken(missing, [found[0] for found in self.writer.write(model, missing, groups=1)]))
            words = kept[1]
        return [
            [words[generator_text(match.item)] if match.row is None else self._tokens[match.row] for match in own.matches] for own in cut
        ]

    def _spoken(self, texts: Sequence[str], written: Sequence[str]) -> dict[str, list[int]]:
        """The tokens that stand for typed texts: those of the ID that was written for each, or of its own words where that says nothing."""
        return {
            text: self.writer.known_tokens(own) or self.writer.known_tokens(clean_words(text))
            for text, own in zip(texts, written, strict=True)
        }

    def inputs(self, histories: Sequence[Sequence[Sequence[int]]], model: IDGenRecModel | None = None) -> dict[str, torch.Tensor]:
        """Prompts of histories given as ID tokens. Shape: B histories -> input_ids, attention_mask (B, S)."""
        users: list[list[int]] = self.user_tokens(histories, model) if self.prompts.needs_user else [[]] * len(histories)
        cut = [history[-self.max_items :] for history in histories]
        batch = pad_prompts([self.prompts.write(own, user) for own, user in zip(cut, users, strict=True)], self.writer.pad)
        return {**batch, "bias": torch.stack([self.copy_bias(own)[-1] for own in cut])} if self.copy else batch

    def copy_bias(self, history: Sequence[Sequence[int]]) -> torch.Tensor:
        """What is added to the logits after each prefix of a history; see `copying.copy_bias`. Shape: L items -> (L + 1, W)."""
        return copy_bias(history, self.rarity, self.copy, self.copy_decay)

    def user_tokens(self, histories: Sequence[Sequence[Sequence[int]]], model: IDGenRecModel | None) -> list[list[int]]:
        """The ID of each user: what the generator writes about the last IDs of this very history, so nothing after it can be known.

        Differs: the published user IDs are written about the whole sequence, target included, and are unique over the users; of a sequence
        that is longer than what the generator reads, the first IDs.
        """
        if model is None:
            raise ValueError(f'Prompts of the kind "{self.prompts.kind}" name a user ID, which the model writes: pass model=... .')
        read = [[token for own in self._with_room(history) for token in own] for history in histories]
        texts = [self.tokenizer.decode(tokens).strip() or "new" for tokens in read]
        distinct = list(dict.fromkeys(texts))
        written = dict(zip(distinct, (found[0] for found in self.writer.write(model, distinct, groups=1)), strict=True))
        return [self.writer.known_tokens(written[text]) for text in texts]

    def _with_room(self, history: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        """The last IDs that together are no longer than what the generator reads; the very last one in any case."""
        lengths = np.cumsum([len(own) for own in reversed(history)])
        return history[-max(1, int((lengths < self.writer.max_text).sum())) :]

    # Recommendations

    def index(self, model: IDGenRecModel) -> Trie:
        """What recommendations are looked up in."""
        return self.trie

    @torch.inference_mode()
    def recommend(
        self,
        model: IDGenRecModel,
        histories: Sequence[Lines | History],
        top: int = 10,
        exclude_seen: bool = True,
        department: str | None = None,
        index: Trie | None = None,
        explain: bool = True,
    ) -> list[list[Recommendation]]:
        """Recommends items for each history.

        Args:
            model: the model in evaluation mode.
            histories: lines of text, items, or read histories.
            top: recommendations per history; fewer when the catalogue has fewer to offer.
            exclude_seen: leave out items of the history.
            department: only items of this department.
            index: `processor.index(model)`, when it is known.
            explain: say which history item contributed most.

        Raises:
            ValueError: when no item is of the department; the sentence names those there are.
        """
        if top < 1:
            raise ValueError(f"top_k is {top}: ask for at least one recommendation.")
        trie = self.trie if index is None else index
        with stage("read"):
            read = [self.read(history) for history in histories]
            own = self.history_tokens(read, model)
            inputs = self._at(model, own)
        seen = [[row for row in history.rows if row is not None] for history in read] if exclude_seen else None
        mask = self.catalog.in_department(department)
        allowed = None if mask is None else torch.from_numpy(mask)
        with stage("search"):
            found = self._search(model, inputs, trie, max(top, model.config.beams), allowed, seen)
        answers: list[list[Recommendation]] = []
        for number, history in enumerate(read):
            rows = [row for row in found.rows[number, :top].tolist() if row >= 0]
            with stage("reasons"):
                reasons = self._because(model, history[-self.max_items :], own[number], rows) if explain else [None] * len(rows)
            answers.append(
                [
                    Recommendation(self.catalog[row], score, place + 1, self._identifier(row, self._logprob(model, row, score)), reason)
                    for place, (row, score, reason) in enumerate(zip(rows, found.scores[number].tolist(), reasons, strict=False))
                ]
            )
        return answers

    @torch.inference_mode()
    def beams(self, model: IDGenRecModel, history: Lines | History, beams: int = 20, exclude_seen: bool = True) -> list[dict[str, object]]:
        """The IDs that the search ended with, best first: text, logprob, score, and the item.

        Args:
            model: the model in evaluation mode.
            history: lines of text, items, or a read history.
            beams: width of the search.
            exclude_seen: leave out items of the history.
        """
        read = self.read(history)
        seen = [[row for row in read.rows if row is not None]] if exclude_seen else None
        found = self._search(model, self._at(model, self.history_tokens([read], model)), self.trie, beams, None, seen)
        return [
            {**self._identifier(row, self._logprob(model, row, score)), "score": score, "item": self.catalog[row].to_dict()}
            for row, score in zip(found.rows[0].tolist(), found.scores[0].tolist(), strict=True)
            if row >= 0
        ]

    @torch.no_grad()
    def score(
        self,
        model: IDGenRecModel,
        histories: Sequence[np.ndarray],
        index: Trie | None = None,
        exclude_seen: bool = True,
        allowed: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scores of the items that a beam search finds for histories of rows; -inf for all others. Shape: B, allowed (V,) -> (B, V)."""
        trie = self.trie if index is None else index
        scores = torch.full((len(histories), len(self.catalog)), -torch.inf)
        # Prompts of like length share a batch.
        order = sorted(range(len(histories)), key=lambda row: len(histories[row]))
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            own = [[self._tokens[item] for item in histories[row][-self.max_items :]] for row in rows]
            seen = [np.unique(histories[row]).tolist() for row in rows] if exclude_seen else None
            found = self._search(model, self._at(model, own), trie, model.config.beams, allowed, seen)
            real = found.rows >= 0
            place = torch.tensor(rows)[:, None].expand_as(found.rows)[real.cpu()]
            scores[place, found.rows[real].cpu()] = found.scores[real].float().cpu()
        return scores

    @cached_property
    def _flat_tokens(self) -> FlatTokens:
        return flat_tokens(self._tokens)

    def _search(
        self,
        model: IDGenRecModel,
        inputs: dict[str, torch.Tensor],
        trie: Trie,
        beams: int,
        allowed: torch.Tensor | None,
        seen: Sequence[Sequence[int]] | None,
    ) -> Beams:
        if self.shortlist and self.copy:
            bias = inputs["bias"].cpu()
            open_ = torch.ones(len(bias), len(self.catalog), dtype=torch.bool) if allowed is None else allowed.expand(len(bias), -1).clone()
            for row, rows in enumerate(seen or ()):
                open_[row, list(rows)] = False
            most, penalty = max(self.shortlist, beams), model.config.length_penalty
            allowed, seen = promising(self._flat_tokens, bias, most, penalty, open_), None
        return model.recommend(inputs, trie, beams, allowed, seen)

    def _at(self, model: IDGenRecModel, histories: Sequence[Sequence[Sequence[int]]]) -> dict[str, torch.Tensor]:
        return {name: values.to(model.device) for name, values in self.inputs(histories, model).items()}

    def _because(
        self, model: IDGenRecModel, history: History, own: Sequence[Sequence[int]], rows: Sequence[int]
    ) -> list[dict[str, object] | None]:
        """Leaves out one history item at a time, in one batch; its share is its part of the fall of the score."""
        if not len(history) or not rows:
            return [None] * len(rows)
        histories = [own, *([*own[:place], *own[place + 1 :]] for place in range(len(own)))]
        scores = model.score(self._at(model, histories), self.trie, torch.tensor(rows))
        falls = (scores[:1] - scores[1:]).clamp(min=0)
        shares = falls / falls.sum(0).clamp(min=1e-12)
        best = shares.argmax(0).tolist()
        return [
            {"item": history[place].to_dict(), "share": float(shares[place, k])} if float(shares[place, k]) > 0 else None
            for k, place in enumerate(best)
        ]

    # Identifiers

    def identify(self, model: IDGenRecModel, progress: Progress | None = None, first: int = 0) -> list[dict[str, object]]:
        """The ID of every item from row `first` on (it has a probability only for a user)."""
        rows: list[dict[str, object]] = [
            {"item_id": item.item_id, "title": item.title, "identifier": self._identifier(row, None)}
            for row, item in enumerate(self.catalog)
            if row >= first
        ]
        if progress is not None:
            progress(len(rows), len(rows))
        return rows

    def _identifier(self, row: int, logprob: float | None) -> dict[str, object]:
        text, tokens = self.identifiers[row]
        return {"text": text, "tokens": [self.tokenizer.decode([token]).strip() for token in tokens], "logprob": logprob}

    def _logprob(self, model: IDGenRecModel, row: int, score: float) -> float:
        """The log-probability that a score was made of."""
        return float(score * (len(self._tokens[row]) + 1) ** model.config.length_penalty)

    # Folders

    def __getstate__(self) -> dict[str, Any]:
        """IDs of typed items belong to a model at hand."""
        return {**vars(self), "_typed": ((), {})}

    def save_pretrained(
        self,
        save_directory: str | Path,
        push_to_hub: bool = False,
        with_catalog: bool = True,
        with_encoder: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Writes `processor_config.json`, the code, the tokenizer and `catalog/` (items, IDs, fingerprint).

        Args:
            save_directory: the folder.
            push_to_hub: push it too; see `push_to_hub`, whose arguments `kwargs` are.
            with_catalog: False leaves out the catalogue and its IDs: the checkpoint then recommends from the caller's.
            with_encoder: for likeness with other systems; no sentence encoder belongs to this one.
            **kwargs: of `push_to_hub`, `repo_id` above all.

        Returns:
            The paths of what was written.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / "processor_config.json", *map(Path, self.tokenizer.save_pretrained(folder))]
        with_catalog = with_catalog and self._identifiers is not None
        if with_catalog:
            self.catalog.save(folder / "catalog")
            self.identifiers.save(folder / "catalog")
            written += sorted((folder / "catalog").iterdir())
        card = {"prompt": self.prompts.kind, "has_encoder": self.has_encoder, "max_items": self.max_items, "max_text": self.max_text}
        card |= {"copy": self.copy, "copy_decay": self.copy_decay, "shortlist": self.shortlist}
        self.write_card(folder, card, with_catalog)
        seal(folder, *SIDECARS, *TOKENIZER)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        return [str(path) for path in written]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "IDGenRecProcessor":
        """Reads a processor from a folder or a Hub repository.

        Raises:
            FileNotFoundError: when there is no processor, or something of it is missing.
            ValueError: when the format is newer than this package, a file is damaged, or catalogue and IDs do not belong together.
        """
        name = pretrained_model_name_or_path
        folder, card = cls.read_card(name, **kwargs)
        catalog, identifiers = None, None
        if card.get("catalog", True) and (folder / "catalog" / "catalog.json").is_file():  # the first cards said nothing of it
            catalog = Catalog.load(folder / "catalog")
            identifiers = Identifiers.load(folder / "catalog")
            if identifiers.catalog != catalog.fingerprint:
                raise ValueError(
                    f"The identifiers of {name} belong to the catalogue {identifiers.catalog[:12]}, its items are "
                    f"{catalog.fingerprint[:12]}: copy the folder again or index the catalogue anew."
                )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=kwargs.get("trust_remote_code"))
        names = ("prompt", "has_encoder", "max_items", "max_text", "copy", "copy_decay", "shortlist")
        own = {name: card[name] for name in names if name in card}
        return cls(tokenizer, catalog, identifiers, **own)
