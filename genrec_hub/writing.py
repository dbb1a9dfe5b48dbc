"""What an IDGenRec's generator reads and writes: texts of items in, candidates of their IDs out."""

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from .modeling_idgenrec import IDGenRecModel
from .phrases import clean_words
from .prompts import pad_tokens
from .text import STOPWORDS

WRITTEN_AT_ONCE = 128
"""Texts whose IDs are written in one batch."""
MOST_WORDS = 60
"""Words of a text of which an ID may consist."""


class IDWriter:
    """Texts to tokens, and through a model's generator to ID candidates.

    Args:
        tokenizer: of both language models.
        max_text: tokens of an item's text that the generator reads.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_text: int) -> None:
        self.tokenizer, self.max_text = tokenizer, max_text
        self.eos = int(tokenizer.eos_token_id)
        self.pad = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
        self._spellings: dict[str, tuple[int, ...]] = {}

    @torch.inference_mode()
    def write(
        self,
        model: IDGenRecModel,
        texts: Sequence[str],
        penalty: float = 1.0,
        min_length: int = 1,
        groups: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[str]]:
        """The generator's ID candidates for each text, best first; texts of like length share a batch, after which `progress` is told."""
        tokens = self.text_tokens(texts)
        found: list[list[str]] = [[]] * len(texts)
        order = sorted(range(len(texts)), key=lambda row: len(tokens[row]))
        for start in range(0, len(order), WRITTEN_AT_ONCE):
            rows = order[start : start + WRITTEN_AT_ONCE]
            ids, mask = pad_tokens([tokens[row] for row in rows], self.pad, left=True)
            inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
            words = [self.word_tokens(texts[row]) for row in rows] if model.config.own_words else None
            candidates = model.write(inputs, penalty, min_length, groups, words)
            for row, own in zip(rows, candidates.tokens.tolist(), strict=True):
                decoded = map(clean_words, self.tokenizer.batch_decode(own, skip_special_tokens=True))
                found[row] = [_whole(text, texts[row]) for text in decoded] if model.config.own_words else list(decoded)
            if progress is not None:
                progress(start + len(rows))
        return found

    def word_tokens(self, text: str) -> list[tuple[int, ...]]:
        """The words of a text of which an ID may consist, as tokens; each once."""
        own = clean_words(text, MOST_WORDS).split()
        telling = [word for word in own if len(word) > 1 and word not in STOPWORDS]
        return [self._spelled(word) for word in dict.fromkeys(telling or own)]

    def _spelled(self, word: str) -> tuple[int, ...]:
        if word not in self._spellings:
            self._spellings[word] = tuple(self.tokenizer.encode(word, add_special_tokens=False))
        return self._spellings[word]

    def text_tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts as the generator reads them, ended by the end token."""
        if not len(texts):
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=self.max_text - 1)["input_ids"]
        return [[*own, self.eos] for own in encoded]

    def known_tokens(self, text: str) -> list[int]:
        """The tokens of a text that the vocabulary knows."""
        return [token for token in self.tokenizer.encode(text, add_special_tokens=False) if token != self.tokenizer.unk_token_id]


def _whole(written: str, text: str) -> str:
    """What was written, without a last word that was cut where the length ran out."""
    words = written.split()
    return " ".join(words[:-1] if words and words[-1] not in clean_words(text, MOST_WORDS).split() else words)
