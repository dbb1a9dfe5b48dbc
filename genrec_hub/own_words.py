"""Which tokens may be written next when an ID consists of words of the text it is about, each at most once.

A small generator learns which words to choose long before it could learn to spell them.

Dims: B texts · G groups (or 1) · T tokens of an ID · W vocabulary.

Differs: IDGenRec's generator may write anything. With this restriction, off unless `IDGenRecConfig.own_words`, an ID says nothing that its
item does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

Words = Sequence[Sequence[int]]
"""The words of one text, each as its tokens."""


@dataclass(frozen=True)
class _State:
    """Where a writer stands: words it has finished, words that the tokens of the current one may become, tokens of the current one."""

    used: frozenset[int] = frozenset()
    open: tuple[int, ...] = ()
    depth: int = 0


class OwnWords:
    """Follows several writers per text.

    Args:
        words: the words of each text; where there are none, the writer may only end.
        groups: G, writers of each text.
        eos: the end token.
        size: W, tokens of the vocabulary.
    """

    def __init__(self, words: Sequence[Words], groups: int, eos: int, size: int) -> None:
        self.words, self.eos, self.size = words, eos, size
        self._states = [[_State()] * groups for _ in words]

    def legal(self) -> torch.Tensor:
        """What each writer may write now; the end only after a whole word.

        Shape: -> (B, G, W) of truth values.
        """
        mask = torch.zeros(len(self.words), len(self._states[0]), self.size, dtype=torch.bool)
        rows, columns, tokens = [], [], []
        for row, states in enumerate(self._states):
            for column, state in enumerate(states):
                legal = self._legal(row, state)
                tokens += legal
                rows += [row] * len(legal)
                columns += [column] * len(legal)
        mask[rows, columns, tokens] = True
        return mask

    def take(self, tokens: torch.Tensor) -> None:
        """Notes what the writers have written; what is illegal (padding after the end) changes nothing. Shape: (B, G)."""
        for row, own in enumerate(tokens.tolist()):
            self._states[row] = [self._next(row, state, token) for state, token in zip(self._states[row], own, strict=True)]

    def _legal(self, row: int, state: _State) -> list[int]:
        words = self.words[row]
        found = [words[word][state.depth] for word in state.open if len(words[word]) > state.depth]
        done = self._finished(row, state)
        if done is None:
            return list(dict.fromkeys(found))
        starts = [words[word][0] for word in range(len(words)) if word not in done]
        end = [self.eos] if done or not starts else []
        return list(dict.fromkeys((*found, *starts, *end)))

    def _finished(self, row: int, state: _State) -> frozenset[int] | None:
        """The words written if a new one may begin here, None inside a word."""
        if not state.open:
            return state.used
        whole = next((word for word in state.open if len(self.words[row][word]) == state.depth), None)
        return None if whole is None else state.used | {whole}

    def _next(self, row: int, state: _State, token: int) -> _State:
        words = self.words[row]
        on = tuple(word for word in state.open if len(words[word]) > state.depth and words[word][state.depth] == token)
        if on:
            return _State(state.used, on, state.depth + 1)
        done = self._finished(row, state)
        if done is None:
            return state
        begun = tuple(word for word in range(len(words)) if word not in done and words[word][0] == token)
        return _State(done, begun, 1) if begun else state


def legal_tokens(words: Sequence[Words], written: torch.Tensor, eos: int, size: int) -> torch.Tensor:
    """What was legal at each token of what has been written. Shape: written (B, T), -100 from the end on -> (B, T, W)."""
    follower = OwnWords(words, 1, eos, size)
    steps = []
    for column in written.T:
        steps.append(follower.legal()[:, 0])
        follower.take(column[:, None])
    legal = torch.stack(steps, 1)
    # What stands there is legal: a pair of text and phrase may hold a word that the text lacks.
    real = written.clamp(min=0)
    return legal.scatter(2, real[..., None], True)
