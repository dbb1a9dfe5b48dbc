"""What IDGenRec's recommender reads: a history of IDs as one packed sequence or as a sentence, and where each ID stands in it.

A prompt is put together of tokens, never of text: the tokens of an ID are those of the prefix tree, and nothing is tokenised twice.

Source: IDGenRec section 3.3 and its prompt file; the wordings here are our own.
Differs: the published code tokenises prompts twice, keeps user IDs in all of them and samples wordings once per phase.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

TEMPLATES = (
    "[Shopper {user} is back.] [Bought so far: {history} .] What comes next?",
    "[These items were taken in this order: {history} .] [They belong to customer {user} .] Name the item that follows.",
    "[Customer {user} :] [first to last, {history} .] Which item will be wanted now?",
    "[After {history} ,] what would be bought next[ by {user} ]?",
    "[Here is the basket of {user} .] [It grew item by item: {history} .] Continue it with one more item.",
    "[Someone described as {user} is browsing.] [They have had {history} .] Suggest their next item.",
    "[A shopping trail: {history} .] [It was left by {user} .] Where does it lead?",
    "[For {user} ,] [who went through {history} ,] predict the coming purchase.",
    "[Seen in order of time: {history} .] Which identifier continues the list[ of {user} ]?",
    "[Profile: {user} .] [Past items: {history} .] Next item?",
)
"""Ten wordings; what stands in brackets is left out with the placeholder in it. The first one is used to recommend."""
SEPARATOR = " ; "
PROMPTS = ("packed", "item", "user", "both")

_PART = re.compile(r"\[([^\]]*)\]|([^\[]+)")


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt.

    Attributes:
        tokens: its tokens.
        items: per token, the place in the history of the item whose ID it belongs to; -1 for all other tokens.
    """

    tokens: list[int]
    items: list[int]


class PromptWriter:
    """Writes prompts of one kind for one tokenizer.

    Args:
        tokenizer: of both language models.
        kind: "packed", the bare IDs of the history one after the other (decoder-only models, trained on every item of a history in one
            forward); or a sentence with the history's item IDs ("item"), a user ID ("user") or "both".
        encoder: whether an encoder reads the prompt, whose sentence then ends with the end token, as T5 knows it.

    Raises:
        ValueError: another kind, or packed IDs for an encoder.
    """

    def __init__(self, tokenizer: Any, kind: str, encoder: bool) -> None:
        if kind not in PROMPTS:
            raise ValueError(f"A prompt is {', '.join(PROMPTS)}; got {kind!r}.")
        if kind == "packed" and encoder:
            raise ValueError('Packed prompts need a decoder-only recommender: an encoder reads sentences ("item", "user" or "both").')
        self.kind, self.eos = kind, int(tokenizer.eos_token_id)
        self.start = int(tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id)
        self.end = [self.eos] if encoder else []
        self._tokenizer: Any = tokenizer
        self._separator = self._encode(SEPARATOR)
        self._templates = [] if kind == "packed" else [self._pieces(template) for template in TEMPLATES]

    def __len__(self) -> int:
        """The number of wordings."""
        return max(1, len(self._templates))

    @property
    def needs_user(self) -> bool:
        """Whether prompts name a user ID."""
        return self.kind in ("user", "both")

    def write(self, history: Sequence[Sequence[int]], user: Sequence[int] = (), wording: int = 0) -> Prompt:
        """Writes one prompt.

        Args:
            history: tokens of each item's ID, oldest first.
            user: tokens of the user ID, for the prompts that name one.
            wording: which of the ten templates.
        """
        tokens: list[int] = []
        items: list[int] = []

        def add(some: Sequence[int], item: int = -1) -> None:
            tokens.extend(some)
            items.extend([item] * len(some))

        if self.kind == "packed":
            add([self.start])
            for place, own in enumerate(history):
                add(own, place)
                add([self.eos])
            return Prompt(tokens, items)
        for piece in self._templates[wording]:
            if piece == "{user}":
                add(user)
            elif piece == "{history}":
                for place, own in enumerate(history):
                    add(self._separator if place else [])
                    add(own, place)
            else:
                add(piece)  # type: ignore[arg-type]
        add(self.end)
        return Prompt(tokens, items)

    def _pieces(self, template: str) -> list[list[int] | str]:
        """The template without the brackets that this kind of prompt leaves out: tokens, and the placeholders that stay."""
        wanted = {"{user}": self.needs_user, "{history}": self.kind in ("item", "both")}
        text = "".join(
            bracket or plain
            for bracket, plain in _PART.findall(template)
            if all(keep or name not in bracket for name, keep in wanted.items())
        )
        pieces = [piece for piece in re.split(r"({user}|{history})", text) if piece.strip()]
        return [piece if piece in wanted else self._encode(piece) for piece in pieces]

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text.strip(), add_special_tokens=False))


def pad_prompts(prompts: Sequence[Prompt], pad: int) -> dict[str, torch.Tensor]:
    """Makes a batch of prompts, padded on the left. Shape: B prompts -> input_ids, attention_mask (B, S)."""
    ids, mask = pad_tokens([prompt.tokens for prompt in prompts], pad, left=True)
    return {"input_ids": ids, "attention_mask": mask}


def pad_tokens(rows: Sequence[Sequence[int]], pad: int, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads lists of tokens. Shape: B lists -> (B, S) tokens, (B, S) mask of 1 for real ones."""
    width = max([1, *map(len, rows)])
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for row, own in enumerate(rows):
        part = slice(width - len(own), width) if left else slice(0, len(own))
        ids[row, part] = torch.tensor(own, dtype=torch.long)
        mask[row, part] = 1
    return ids, mask


def labels_of(rows: Sequence[Sequence[int]], eos: int) -> torch.Tensor:
    """Continuations as labels: each with its end token, then -100, which carries no loss. Shape: B lists -> (B, T)."""
    ids, mask = pad_tokens([[*own, eos] for own in rows], eos)
    return ids.masked_fill(mask == 0, -100)


def soft_places(prompt: Prompt, rows: Sequence[int], width: int) -> list[int]:
    """Where the tokens of a prompt's IDs stand in a flat table of written ones, -1 for all other tokens.

    Args:
        prompt: whose history items were written as `rows` of the table.
        rows: row of each history item.
        width: T, tokens of a row.
    """
    places, seen = [], Counter[int]()
    for item in prompt.items:
        places.append(-1 if item < 0 else rows[item] * width + seen[item])
        seen[item] += 1
    return places
