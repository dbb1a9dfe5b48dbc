"""Training of IDGenRec's two parts: a generator that learns to write IDs, a recommender that learns to continue histories of IDs, in turns.

Source: IDGenRec section 3.4 (alternate training).
Differs: true softmax mixing, no loss on padding, histories and user IDs made of what precedes the target only, gradients that are averaged
over processes (all forwards go through the wrapped model), the round chosen on validation data.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from .batches import EpochOrder, LengthBucketSampler, collate
from .modeling_idgenrec import IDGenRecModel
from .own_words import legal_tokens
from .phrases import generator_text
from .processing_idgenrec import IDGenRecProcessor
from .prompts import labels_of, pad_prompts, pad_tokens, soft_places
from .training import NextItemTrainer

READ_BY_GENERATOR = 10
"""History items whose IDs are soft in the generator's phase (IDGenRec: half of the history)."""


class WriterTrainer(Trainer):
    """Teaches the generator to write given words about texts, before any interaction is seen.

    Args:
        texts: what the generator reads.
        phrases: what it should write.
        processor: whose tokenizer is used.
    """

    def __init__(
        self,
        model: IDGenRecModel,
        args: TrainingArguments,
        texts: Sequence[str],
        phrases: Sequence[str],
        processor: IDGenRecProcessor,
        **more: Any,
    ) -> None:
        self.processor, self.own_words = processor, model.config.own_words
        self.words = int(model.generator.get_input_embeddings().weight.shape[0])
        data = _Pairs(texts, processor.writer.text_tokens(texts), processor.tokenizer(list(phrases), add_special_tokens=False)["input_ids"])
        super().__init__(model.train_only("generator"), args, train_dataset=data, data_collator=self._collate, **more)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthBucketSampler:  # type: ignore[type-arg]
        data: Any = self.train_dataset if train_dataset is None else train_dataset
        lengths = np.array([len(own) for own in data.tokens])
        together = self.args.train_batch_size * self.args.world_size
        sampler = LengthBucketSampler(lengths, together, self.args.seed, filled=self.args.world_size > 1)
        self.add_callback(EpochOrder(sampler))
        return sampler

    def _collate(self, pairs: list[tuple[str, list[int], list[int]]]) -> dict[str, torch.Tensor]:
        processor = self.processor
        ids, mask = pad_tokens([tokens for _, tokens, _ in pairs], processor.writer.pad, left=True)
        batch = {"text_ids": ids, "text_mask": mask, "labels": labels_of([phrase for *_, phrase in pairs], processor.writer.eos)}
        if self.own_words:
            words = [processor.writer.word_tokens(text) for text, *_ in pairs]
            batch["legal"] = legal_tokens(words, batch["labels"], processor.writer.eos, self.words)
        empty = torch.tensor([not tokens for _, tokens, _ in pairs])
        batch["text_mask"][empty, -1] = 1  # something to attend to
        batch["labels"][empty] = -100
        return batch


class _Pairs(Dataset):  # type: ignore[type-arg]
    def __init__(self, texts: Sequence[str], tokens: list[list[int]], phrases: list[list[int]]) -> None:
        self.texts, self.tokens, self.phrases = texts, tokens, phrases

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int) -> tuple[str, list[int], list[int]]:
        if row < 0:  # an empty place of the sampler
            return "", [], []
        return self.texts[row], self.tokens[row], self.phrases[row]


class IDGenRecTrainer(NextItemTrainer):
    """What the two phases share: IDs of rows, ranked validation by beam search.

    Args:
        processor: the catalogue with its IDs; of several domains, whose items stand one behind the other, one each.
        validation_processor: that of the validation cases' catalogue, when it is another one.
    """

    model: IDGenRecModel
    part = "recommender"
    positions = 512

    def __init__(
        self,
        model: IDGenRecModel,
        args: TrainingArguments,
        *,
        processor: IDGenRecProcessor | Sequence[IDGenRecProcessor],
        validation_processor: IDGenRecProcessor | None = None,
        **more: Any,
    ) -> None:
        self.several = several = [processor] if isinstance(processor, IDGenRecProcessor) else list(processor)
        self.processor, self.tries = several[0], [own.trie for own in several]
        self.validation_processor = validation_processor or self.processor
        self.tokens = [tokens.tolist() for own in several for tokens in own.identifiers.tokens]
        self.parents = [[trie.root, *path[path >= 0].tolist()[:-1]] for trie in self.tries for path in trie.paths(torch.arange(len(trie)))]
        self.mean = float(np.mean([len(own) + 1 for own in self.tokens]))
        super().__init__(
            model.train_only(self.part), args, catalog_size=len(self.tokens), negatives=0, max_items=self.processor.max_items, **more
        )

    def draw_candidates(self, labels: torch.Tensor) -> torch.Tensor:
        """A language model contrasts a token with all tokens: no items are drawn. Shape: -> (0,)."""
        return labels.new_zeros(0)

    def scores(self, histories: Sequence[np.ndarray]) -> torch.Tensor:
        """Shape: B histories -> (B, V), -inf where the beam search found nothing."""
        return self.validation_processor.score(self.model, histories)

    def choose_length_penalty(self, grid: Sequence[float] = (0.0, 0.5, 1.0)) -> dict[float, float]:
        """Sets `config.length_penalty` to the best of a grid by validation NDCG@10. Returns penalty -> NDCG@10."""
        found = {}
        for penalty in grid:
            self.model.config.length_penalty = penalty
            found[penalty] = self.rank_validation()["ndcg@10"]
        self.model.config.length_penalty = max(found, key=lambda penalty: found[penalty])
        return found

    def labels(self, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """The IDs of some items, one after the other, as labels, and the nodes of the tree before each token. Shape: B lists -> (B, T)."""
        eos = self.processor.writer.eos
        tokens = [[token for item in own for token in (*self.tokens[item], eos)][:-1] for own in rows]
        nodes, _ = pad_tokens([[node for item in own for node in self.parents[item]] for own in rows], 0)
        return {"labels": labels_of(tokens, eos), "nodes": nodes}

    def biases(self, histories: Sequence[Sequence[Sequence[int]]], rows: Sequence[Sequence[int]], every: bool) -> dict[str, torch.Tensor]:
        """The copy bias of each label, after each prefix of a history or after all of it.

        Shape: B histories -> bias (M, W), owner (B, T).
        """
        if not self.processor.copy:
            return {}
        processor = self.several[int(self.domains[rows[0][0]])]
        found = [processor.copy_bias(own)[0 if every else -1 :] for own in histories]
        starts = np.cumsum([0, *map(len, found)])
        owner, _ = pad_tokens(
            [
                [int(start) + place for place, item in enumerate(own) for _ in range(len(self.tokens[item]) + 1)]
                for start, own in zip(starts, rows, strict=False)
            ],
            0,
        )
        return {"bias": torch.cat(found), "owner": owner}

    def draw(self, sequence: np.ndarray) -> np.random.Generator:
        """Randomness that is a function of seed, step and sequence alone, whatever the process or the part of the batch."""
        return np.random.default_rng((self.args.seed, self.state.global_step, *sequence[:4].tolist()))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Makes the phase's prompts of a batch of rows and runs the model; the loss is the mean over the label tokens of an average ID."""
        items, labels = inputs["items"], inputs["labels"]
        count = num_items_in_batch if num_items_in_batch is not None else int((labels >= 0).sum())
        real = (items >= 0).any(1)
        if filled := bool(real.any()):
            items, labels = items[real], labels[real]
        else:  # a batch of empty places: other processes wait for its gradients, which are those of any items times nothing
            items = labels = items.new_zeros(1, 2)
        there = {name: values.to(self.args.device) for name, values in self.prompts(items, labels).items()}
        domain = int(self.domains[int(items.max())])
        trie = self.tries[domain] if self.model.config.normalizer == "tree" else None
        output = model(**there, trie=trie, num_items_in_batch=count * self.mean)
        loss = output.loss * ((self.args.world_size if num_items_in_batch is not None else 1) * filled)
        return (loss, output) if return_outputs else loss

    def prompts(self, items: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Shape: items (B, L) rows with -1 for padding, labels (B, L) -> the arguments of `IDGenRecModel.forward`."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its model reads.")


class PackedRecommenderTrainer(IDGenRecTrainer):
    """Trains a decoder-only recommender on every item of a history in one forward: the IDs follow each other, each ended."""

    def prompts(self, items: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The start token is the prompt, all IDs are its continuation. Shape: items (B, L) -> B prompts of one token."""
        rows = [own[own >= 0].tolist() for own in items.cpu().numpy()]
        batch = {"input_ids": torch.full((len(rows), 1), self.processor.prompts.start), **self.labels(rows)}
        return batch | self.biases([[self.tokens[item] for item in own[:-1]] for own in rows], rows, every=True)


class PromptRecommenderTrainer(IDGenRecTrainer):
    """Trains a recommender on sentences: one for every item of a history but the first, each in a wording drawn anew at every step."""

    opening = False
    positions = 64

    def __init__(self, model: IDGenRecModel, args: TrainingArguments, **more: Any) -> None:
        super().__init__(model, args, **more)
        self._users: dict[tuple[int, ...], list[int]] = {}

    def parts(self, items: torch.Tensor, labels: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Parts of at most `positions` sentences about as many items, so that little padding is computed.

        Sequences stay whole; each part keeps the labels of one column. Shape: items, labels (B, L) -> pairs (b, L).
        """
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        for column in (labels >= 0).any(0).nonzero()[:, 0].tolist():
            here = labels[:, column] >= 0
            own = torch.full_like(labels[here], -100)
            own[:, column] = labels[here, column]
            found += zip(items[here].split(self.positions), own.split(self.positions), strict=True)
        return found or [(items, labels)]

    def prompts(self, items: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """A sentence per label that has items before it. Shape: items, labels (B, L) -> P prompts, P the labels."""
        histories, about, targets, wordings = [], [], [], []
        for own, told in zip(items.cpu().numpy(), labels.cpu().numpy(), strict=True):
            real = own[own >= 0]
            drawn = self.draw(real).integers(len(self.processor.prompts), size=len(real)).tolist()
            for place in (np.flatnonzero(told[own >= 0][1:] >= 0) + 1).tolist():
                histories.append([self.tokens[item] for item in real[:place][-self.processor.max_items :]])
                about.append([self.tokens[item] for item in self.read_about_user(real, place)])
                targets.append([int(real[place])])
                wordings.append(drawn[place])
        users = self.user_ids(about) if self.processor.prompts.needs_user else [[]] * len(histories)
        made = [self.processor.prompts.write(*one) for one in zip(histories, users, wordings, strict=True)]
        return {**pad_prompts(made, self.processor.writer.pad), **self.labels(targets), **self.biases(histories, targets, every=False)}

    def read_about_user(self, sequence: np.ndarray, place: int) -> np.ndarray:
        """The items about which the user ID in the sentence for the item at `place` is written: those read before it, nothing after."""
        return sequence[:place][-self.processor.max_items :]

    def user_ids(self, histories: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
        """The tokens of user IDs; what the generator, which rests in this phase, writes about a history is written once."""
        keys = [tuple(token for own in history for token in own) for history in histories]
        new = {key: history for key, history in zip(keys, histories, strict=True) if key not in self._users}
        if new:
            self._users |= dict(zip(new, self.processor.user_tokens(list(new.values()), self.model), strict=True))
        return [self._users[key] for key in keys]


class GeneratorTrainer(IDGenRecTrainer):
    """Trains the generator through the frozen recommender: what it writes about a history's items is read as soft tokens.

    Of every sequence one target is drawn at each step; the items before it are read, nothing after.
    """

    opening = False
    part = "generator"
    positions = 256

    def __init__(self, model: IDGenRecModel, args: TrainingArguments, *, processor: IDGenRecProcessor, **more: Any) -> None:
        self.raw = [generator_text(item) for item in processor.catalog]
        self.texts = processor.writer.text_tokens(self.raw)
        super().__init__(model, args, processor=processor, **more)
        self.data_collator = _one_target

    def prompts(self, items: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """A prompt per sequence. Shape: items (B, L) -> B prompts, P texts of the items in their histories."""
        processor = self.processor
        histories, targets, wordings = [], [], []
        for own in items.cpu().numpy():
            real = own[own >= 0]
            draw = self.draw(real)
            place = int(draw.integers(1, len(real)))
            histories.append(real[max(0, place - READ_BY_GENERATOR) : place].tolist())
            targets.append([int(real[place])])
            wordings.append(int(draw.integers(len(processor.prompts))))
        items_read = sorted({item for own in histories for item in own})
        row_of = {item: row for row, item in enumerate(items_read)}
        text_ids, text_mask = pad_tokens([self.texts[item] for item in items_read], processor.writer.pad, left=True)
        there = {"input_ids": text_ids.to(self.args.device), "attention_mask": text_mask.to(self.args.device)}
        own_words = self.model.config.own_words
        words = [processor.writer.word_tokens(self.raw[item]) for item in items_read] if own_words else None
        written = self.model.write(there, penalty=0.0, min_length=2, groups=1, words=words)  # at least one token, so that no item vanishes
        tokens, lengths = written.tokens[:, 0].cpu(), written.lengths[:, 0].cpu()
        own_tokens = [row[:length].tolist() for row, length in zip(tokens, lengths.tolist(), strict=True)]
        known = [[self.tokens[item] for item in own] for own in histories]
        users = processor.user_tokens(known, self.model) if processor.prompts.needs_user else [[]] * len(histories)
        rows = [[row_of[item] for item in own] for own in histories]
        made = [
            processor.prompts.write([own_tokens[row] for row in own], user, wording)
            for own, user, wording in zip(rows, users, wordings, strict=True)
        ]
        batch = pad_prompts(made, processor.writer.pad)
        soft = torch.full_like(batch["input_ids"], -1)
        for line, (prompt, own) in enumerate(zip(made, rows, strict=True)):
            soft[line, soft.shape[1] - len(prompt.tokens) :] = torch.tensor(soft_places(prompt, own, tokens.shape[1]))
        beyond = torch.arange(tokens.shape[1])[None] > lengths[:, None]
        texts = {"text_ids": text_ids, "text_mask": text_mask, "written": tokens.masked_fill(beyond, -100)}
        if words is not None:
            size = self.model.generator.get_input_embeddings().weight.shape[0]
            texts["legal"] = legal_tokens(words, texts["written"], processor.writer.eos, size)
        return {**batch, **texts, "soft": soft, **self.labels(targets), **self.biases(known, targets, every=False)}


def _one_target(entries: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """Sequences of which one target each is told, whichever it will be: the Trainer counts the labels."""
    batch = collate(entries, opening=False)
    batch["labels"][:, :-1] = -100
    return batch
