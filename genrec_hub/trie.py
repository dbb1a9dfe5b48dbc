"""All legal identifiers as one tree of tokens: flat arrays, children of many nodes in one gather, new items without a rebuild.

Dims: V catalogue size · N nodes asked at once · E their edges · B batch · T tokens of an identifier with its end.

Nodes are numbered level by level and, within a level, in the order of their paths. So the children of a node are neighbours,
sorted by token, and one array of first children says where every family starts: compressed sparse rows whose columns need not be stored.
An identifier ends with the end token, which has a node of its own, the leaf; so one identifier may be the beginning of another.

Source: IDGenRec section 3.3 (constrained generation); STATIC (arXiv 2602.22647) for the flat form of a tree.
Differs: the published code walks a tree of dicts from the root for every beam at every step.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

_VERSION = "1"
_Rows = NDArray[np.int64]


class Trie:
    """A tree of token sequences, each the identifier of a catalogue row. Made by `Trie.build` or `Trie.load`.

    Attributes:
        eos: the token that ends an identifier.
        root: the node where every identifier starts.
    """

    root = 0

    def __init__(self, eos: int, tokens: _Rows, parents: _Rows, items: _Rows, first: _Rows) -> None:
        self.eos = eos
        self._first = first
        self._built = len(tokens)
        self._nodes = len(tokens)
        # Room for items to come, so that adding one copies nothing.
        self._tokens, self._parents, self._items = (_with_room(array, len(array) + 1) for array in (tokens, parents, items))
        ends = np.flatnonzero(items >= 0)
        self._leaves = _with_room(ends[items[ends].argsort()], len(ends) + 1)
        self._size = len(ends)
        self._depth = self._climb(ends).shape[1]
        # Children that were added later: sorted by parent, among one parent in order of arrival.
        self._late_parents = np.empty(0, np.int64)
        self._late_children = np.empty(0, np.int64)
        self._late: dict[tuple[int, int], int] = {}

    @classmethod
    def build(cls, sequences: Sequence[Sequence[int]], eos: int) -> "Trie":
        """The tree of these identifiers; the position of a sequence is its catalogue row.

        Args:
            sequences: the tokens of each identifier, without the end token.
            eos: the end token.

        Raises:
            ValueError: no sequence, an empty one, the same one twice, a negative token or an end token inside.
        """
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        if not len(lengths):
            raise ValueError("A prefix tree needs at least one identifier; got none.")
        if not lengths.all():
            raise ValueError(f"The identifier of row {int(lengths.argmin())} is empty: every item needs at least one token.")
        flat = np.fromiter(chain.from_iterable(sequences), np.int64, int(lengths.sum()))
        wrong = (flat < 0) | (flat == eos)
        if wrong.any():
            place = int(wrong.argmax())
            row = int(np.searchsorted(lengths.cumsum(), place, side="right"))
            raise ValueError(
                f"The identifier of row {row} has the token {int(flat[place])}: tokens are not negative, "
                f"and the end token {eos} is added by the tree, so give identifiers without it."
            )
        width = int(lengths.max()) + 1
        paths = np.full((len(lengths), width), -1, np.int64)
        paths[np.arange(width) < lengths[:, None]] = flat
        paths[np.arange(len(lengths)), lengths] = eos
        order = np.lexsort(paths.T[::-1])
        paths = paths[order]
        # A node is new where the path so far differs from that of the row above.
        apart = np.ones(paths.shape, bool)
        apart[1:] = np.logical_or.accumulate(paths[1:] != paths[:-1], axis=1)
        if not apart[:, -1].all():
            again = int(np.flatnonzero(~apart[:, -1])[0])
            rows = sorted(int(row) for row in order[again - 1 : again + 1])
            raise ValueError(f"Rows {rows[0]} and {rows[1]} have the same identifier {list(sequences[rows[0]])}; they must be unique.")
        fresh = (apart & (paths >= 0)).T
        numbers = fresh.cumsum().reshape(fresh.shape)
        # In each column: the number of the node that a row passes = the last one that was new at or above the row.
        passed = np.maximum.accumulate(np.where(fresh, numbers, 0), axis=1)
        parents = np.concatenate([[-1], np.concatenate([np.zeros((1, len(order)), np.int64), passed[:-1]])[fresh]])
        tokens = np.concatenate([[-1], paths.T[fresh]])
        items = np.concatenate([[-1], np.where(np.equal(paths.T, eos), order, -1)[fresh]])
        first = np.searchsorted(parents, np.arange(len(parents) + 1))
        return cls(eos, tokens, parents, items, first)

    def __len__(self) -> int:
        """The number of items."""
        return self._size

    def __repr__(self) -> str:
        return f"Trie({self._size} items, {self._nodes} nodes, depth {self._depth})"

    @property
    def nodes(self) -> int:
        """The number of nodes; they are numbered 0 .. nodes - 1, parents before children."""
        return self._nodes

    @property
    def depth(self) -> int:
        """Tokens of the longest identifier, its end included."""
        return self._depth

    # Reading

    def children(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The children of many nodes, one ragged row after the other, in one gather.

        Shape: nodes (N,) -> tokens (E,), child nodes (E,), counts (N,) with E the sum of counts.
        """
        asked = nodes.cpu().numpy()
        known = np.minimum(asked, self._built - 1)
        starts = self._first[known]
        counts = np.where(asked < self._built, self._first[known + 1] - starts, 0)
        found = _ragged(starts, counts)
        if len(self._late_parents):
            starts = np.searchsorted(self._late_parents, asked)
            more = np.searchsorted(self._late_parents, asked, side="right") - starts
            owners = np.concatenate([np.repeat(np.arange(len(asked)), counts), np.repeat(np.arange(len(asked)), more)])
            found = np.concatenate([found, self._late_children[_ragged(starts, more)]])[owners.argsort(kind="stable")]
            counts = counts + more
        tokens, device = torch.from_numpy(self._tokens[found]), nodes.device
        return tokens.to(device), torch.from_numpy(found).to(device), torch.from_numpy(counts).to(device)

    def items(self, nodes: torch.Tensor) -> torch.Tensor:
        """The catalogue row of each leaf, -1 for a node within the tree. Shape: any -> same."""
        return torch.from_numpy(np.asarray(self._items[nodes.cpu().numpy()])).to(nodes.device)

    def paths(self, rows: torch.Tensor) -> torch.Tensor:
        """The nodes from the first token of each item to its leaf, filled with -1. Shape: (N,) -> (N, T), T <= depth."""
        return torch.from_numpy(self._climb(self._leaves[: self._size][rows.cpu().numpy()])).to(rows.device)

    def sequences(self, rows: torch.Tensor) -> torch.Tensor:
        """The tokens of each item, ended and filled by the end token. Shape: (N,) -> (N, T), T <= depth."""
        paths = self._climb(self._leaves[: self._size][rows.cpu().numpy()])
        return torch.from_numpy(np.where(paths < 0, self.eos, self._tokens[paths])).to(rows.device)

    def find(self, sequence: Sequence[int]) -> int:
        """The row of an identifier (without its end token), -1 if there is none."""
        node = self.root
        for token in (*sequence, self.eos):
            child = self._child(node, token)
            if child is None:
                return -1
            node = child
        return int(self._items[node])

    def _child(self, node: int, token: int) -> int | None:
        if node < self._built:
            start, end = int(self._first[node]), int(self._first[node + 1])
            place = start + int(np.searchsorted(self._tokens[start:end], token))
            if place < end and self._tokens[place] == token:
                return place
        return self._late.get((node, token))

    def _climb(self, leaves: _Rows) -> _Rows:
        """The nodes from below the root to each leaf, filled with -1. Shape: (N,) -> (N, T)."""
        levels, nodes = [], leaves
        while (nodes > self.root).any():
            levels.append(nodes)
            nodes = np.where(nodes > self.root, self._parents[nodes], self.root)
        if not levels:
            return np.empty((len(leaves), 0), np.int64)
        upward = np.stack(levels, 1)
        lengths = (upward > self.root).sum(1, keepdims=True)
        places = lengths - 1 - np.arange(upward.shape[1])
        return np.where(places >= 0, np.take_along_axis(upward, np.maximum(places, 0), 1), -1)

    # Restricting

    def open_nodes(
        self, allowed: torch.Tensor | None = None, excluded: Sequence[Sequence[int]] | None = None, users: int | None = None
    ) -> torch.Tensor | None:
        """Which nodes still lead to an item that may come: the tree restricted to some items, without a rebuild.

        Args:
            allowed: (V,) true for rows that may come (a department), or (B, V), each user's own; all when None.
            excluded: rows that may not come, per user (seen items).
            users: how many users there are, to check `excluded`.

        Shape: -> (B, nodes) with anything of a user's own, (1, nodes) with one mask only, None without any restriction.

        Raises:
            ValueError: a mask or a list that does not fit the tree.
        """
        if allowed is None and excluded is None:
            return None
        counted = np.ones((1, self._size), bool) if allowed is None else np.atleast_2d(allowed.cpu().numpy().astype(bool))
        if counted.ndim != 2 or counted.shape[1] != self._size:
            raise ValueError(f"The mask of allowed items has the shape {counted.shape}; the tree has {self._size} items.")
        below = np.zeros((len(counted), self._nodes), np.int32)
        for own, rows in zip(below, counted, strict=True):
            self._count(own, np.flatnonzero(rows), 1)
        if excluded is not None:
            if users is not None and len(excluded) != users:
                raise ValueError(f"Got lists of excluded items for {len(excluded)} users, but {users} users.")
            if len(below) == 1:
                below, counted = np.repeat(below, len(excluded), 0), np.repeat(counted, len(excluded), 0)
            for own, mask, rows in zip(below, counted, excluded, strict=True):
                gone = np.unique(np.asarray(rows, np.int64))
                if len(gone) and not 0 <= gone[0] <= gone[-1] < self._size:
                    raise ValueError(f"Excluded rows must lie in 0 .. {self._size - 1}; got {int(gone[0])} .. {int(gone[-1])}.")
                self._count(own, gone[mask[gone]], -1)
        return torch.from_numpy(below > 0)

    def _count(self, below: NDArray[np.int32], rows: _Rows, by: int) -> None:
        """Adds `by` to every node above (and at) the leaves of these rows."""
        nodes = self._leaves[rows]
        while len(nodes):
            np.add.at(below, nodes, by)
            nodes = self._parents[nodes]
            nodes = nodes[nodes >= 0]

    # Growing and keeping

    def add(self, sequence: Sequence[int]) -> int:
        """Adds an identifier without a rebuild and returns its row, the next one; the rows of all others stay.

        Raises:
            ValueError: an empty sequence, one that the tree has, a negative token or an end token inside.
        """
        tokens = [int(token) for token in sequence]
        if not tokens:
            raise ValueError("The new identifier is empty: every item needs at least one token.")
        if min(tokens) < 0 or self.eos in tokens:
            raise ValueError(f"The new identifier {tokens} has a negative token or the end token {self.eos}; give it without its end.")
        row = self.find(tokens)
        if row >= 0:
            raise ValueError(f"Row {row} has the identifier {tokens} already: identifiers must be unique.")
        node = self.root
        for token in (*tokens, self.eos):
            child = self._child(node, token)
            node = self._grow(node, token) if child is None else child
        self._items[node] = self._size
        self._leaves = _with_room(self._leaves, self._size + 1)
        self._leaves[self._size] = node
        self._size += 1
        self._depth = max(self._depth, len(tokens) + 1)
        return self._size - 1

    def _grow(self, parent: int, token: int) -> int:
        node = self._nodes
        self._tokens, self._parents, self._items = (_with_room(old, node + 1) for old in (self._tokens, self._parents, self._items))
        self._tokens[node], self._parents[node], self._items[node] = token, parent, -1
        place = int(np.searchsorted(self._late_parents, parent, side="right"))
        self._late_parents = np.insert(self._late_parents, place, parent)
        self._late_children = np.insert(self._late_children, place, node)
        self._late[parent, token] = node
        self._nodes += 1
        return node

    def merged(self) -> "Trie":
        """The same tree with everything that was added built in; rows stay, nodes are numbered anew."""
        if self._nodes == self._built:
            return self
        tokens = self.sequences(torch.arange(self._size)).numpy()
        lengths = (tokens != self.eos).sum(1)
        return Trie.build([row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)], self.eos)

    def save(self, path: str | Path) -> None:
        """Writes the tree as safetensors; what was added is merged first."""
        tree = self.merged()
        nodes = {"tokens": tree._tokens, "parents": tree._parents, "items": tree._items}
        arrays = {name: array[: tree._nodes].astype(np.int32) for name, array in nodes.items()} | {"first": tree._first.astype(np.int32)}
        save_file(arrays, path, metadata={"format": "genrec-trie", "version": _VERSION, "eos": str(self.eos)})

    @classmethod
    def load(cls, path: str | Path) -> "Trie":
        """Reads what `save` wrote.

        Raises:
            ValueError: a file of another kind or version.
        """
        with safe_open(path, "np") as file:
            told = file.metadata() or {}
            if (told.get("format"), told.get("version")) != ("genrec-trie", _VERSION):
                raise ValueError(f"{path} is no prefix tree of version {_VERSION}: it says {told}. Build the tree again.")
            arrays = {name: file.get_tensor(name).astype(np.int64) for name in ("tokens", "parents", "items", "first")}
        return cls(int(told["eos"]), **arrays)


def _ragged(starts: _Rows, counts: _Rows) -> _Rows:
    """start, start + 1, .. of every row, one row after the other. Shape: (N,), (N,) -> (E,)."""
    before = counts.cumsum() - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))


def _with_room(old: _Rows, size: int) -> _Rows:
    """The array itself if it holds `size` numbers, else a copy with a sixteenth more room (a copy of few milliseconds, seldom)."""
    if len(old) >= size:
        return old
    room = np.full(size + size // 16 + 1024, -1, np.int64)
    room[: len(old)] = old
    return room
