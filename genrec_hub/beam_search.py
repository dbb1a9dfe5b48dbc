"""Generation under a prefix tree: beam search that asks the encoder once per user, diverse beam search, and the exact score of every item.

Dims: B batch (users) · K beams · G groups · N columns asked at once · M columns asked so far · D hidden · V catalogue size · W vocabulary ·
E edges of the tree · T tokens of an identifier with its end.

All three ask the model through one layout, see `decoding`: a user is a row, whatever is generated for the user a column of it.

Source: `transformers` 5.23 `GenerationMixin._beam_search` for the rules of the search, which are matched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel

from .decoding import Decoding
from .own_words import OwnWords
from .trie import Trie

Normalizer = Literal["vocabulary", "tree"]
"""What the probabilities of a token are normalised over: the whole vocabulary, or the edges that leave its node of the tree (those of all
items then add up to 1)."""

_HEAD_NUMBERS = 2**20
"""Logits that may be held at once when every node of the tree is scored: 4 MB, which a processor's cache holds. With 64 MB a search took a
tenth longer, and what a server freed of them left its memory full of holes."""


@dataclass(frozen=True)
class Beams:
    """The best items of each user, best first.

    Attributes:
        rows: (B, K) catalogue rows, -1 where there are fewer items than beams.
        scores: (B, K) sum of log-probabilities / length ** length_penalty, the end token included; -inf for row -1.
        tokens: (B, K, T) the identifiers, ended and filled by the end token.
    """

    rows: torch.Tensor
    scores: torch.Tensor
    tokens: torch.Tensor


@dataclass(frozen=True)
class Candidates:
    """Diverse sequences of each row, best first.

    Attributes:
        tokens: (B, G, T) generated tokens, ended and filled by the end token (no end where the length ran out).
        lengths: (B, G) tokens before the end.
        scores: (B, G) sum of penalised log-probabilities / generated tokens, the end token included.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    scores: torch.Tensor


@torch.no_grad()
def constrained_beam_search(
    model: PreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    trie: Trie,
    beams: int = 20,
    *,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    allowed: torch.Tensor | None = None,
    excluded: Sequence[Sequence[int]] | None = None,
    normalizer: Normalizer = "vocabulary",
) -> Beams:
    """The items whose identifiers a beam search finds, every one of them in the catalogue and none twice.

    Args:
        model: a T5-family model with a language head, or a decoder-only one; in eval mode.
        inputs: what its tokenizer gave: `input_ids` (or `inputs_embeds`) and `attention_mask`; decoder-only prompts are padded on the left.
            `bias`, if there, is added to all logits of a user: (B, W).
        trie: the legal identifiers.
        beams: width of the search and number of results.
        length_penalty: exponent of the length in the final score; 1 = mean log-probability.
        early_stopping: when a user with K finished items is done. False: when the best running beam, divided by its own length, is no
            better than the worst finished one. True: at once. "never": like False, but a positive penalty divides by the longest length
            (that of the longest identifier), so that nothing better is missed among the beams.
        allowed: (V,) true for rows that may come (a department), or (B, V), each user's own.
        excluded: rows that may not come, per user.
        normalizer: what probabilities are normalised over; with "tree", items that may not come keep their share.

    Source: `GenerationMixin._beam_search` with `prefix_allowed_tokens_fn` (transformers 5.23): 2K candidates a step; an end
    among the best K finishes, the best K others run on. "tree" is its `renormalize_logits=True`.
    Differs: only edges of the tree are compared; paths that do not exist are row -1 instead of beams of score -1e9, and never count
    as finished (with early_stopping=True, `generate` lets them crowd out items).
    """
    if beams < 1:
        raise ValueError(f"A beam search needs at least one beam; got {beams}.")
    tree = Decoding(model, inputs)
    device, users = tree.root.device, len(tree.root)
    passable = trie.open_nodes(allowed, excluded, users)
    passable = None if passable is None else passable.expand(users, -1)

    nodes = torch.full((users, 1), trie.root, device=device)
    running = torch.zeros((users, 1), device=device)
    visible = torch.zeros((users, 1, 0), dtype=torch.bool, device=device)
    best = torch.full((users, beams), -torch.inf, device=device)
    best_nodes = torch.full((users, beams), trie.root, device=device)
    unfinished = torch.ones((users, 1), dtype=torch.bool, device=device)
    hidden = tree.root[:, None]
    for length in range(1, trie.depth + 1):
        scores, parents, children, tokens = _edges(tree, hidden, running, nodes, trie, passable, normalizer)
        # An item's own end token is an edge like any other: a leaf among the best K is a finished item.
        top = scores.topk(min(2 * beams, scores.shape[1]))
        parents, children, tokens = (of.gather(1, top.indices) for of in (parents, children, tokens))
        ended = trie.items(children) >= 0
        finished = (top.values / length**length_penalty).masked_fill(~ended | ~unfinished, -torch.inf)[:, :beams]
        if early_stopping is True:
            finished = finished.masked_fill((best > -torch.inf).all(1, keepdim=True), -torch.inf)
        best, kept = torch.cat([best, finished], 1).topk(beams)
        best_nodes = torch.cat([best_nodes, children[:, :beams]], 1).gather(1, kept)

        running, kept = top.values.masked_fill(ended, -torch.inf).topk(min(beams, scores.shape[1]))
        longest = trie.depth if early_stopping == "never" and length_penalty > 0 else length
        unfinished &= running[:, :1] / longest**length_penalty > best.amin(1, keepdim=True)
        if early_stopping is True:
            unfinished &= ~(best > -torch.inf).all(1, keepdim=True)
        if not unfinished.any():
            break
        # Columns that no user needs are not asked, nor is anything for a user who is done.
        running = running.masked_fill(~unfinished, -torch.inf)
        alive = int((running > -torch.inf).sum(1).max())
        running, kept = running[:, :alive], kept[:, :alive]
        parents, nodes, tokens = (of.gather(1, kept) for of in (parents, children, tokens))
        seen = visible.gather(1, parents[:, :, None].expand(-1, -1, visible.shape[2]))
        visible = torch.cat([seen, torch.eye(alive, dtype=torch.bool, device=device).expand(users, -1, -1)], 2)
        hidden = tree.step(tokens, torch.full((alive,), length, device=device), visible)

    rows = trie.items(best_nodes).masked_fill(best == -torch.inf, -1)
    found = trie.sequences(rows.clamp(min=0).flatten()).view(users, beams, -1)
    return Beams(rows, best, found.masked_fill((rows < 0)[:, :, None], trie.eos))


def _edges(
    tree: Decoding,
    hidden: torch.Tensor,
    running: torch.Tensor,
    nodes: torch.Tensor,
    trie: Trie,
    passable: torch.Tensor | None,
    normalizer: Normalizer,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores of the tree's edges out of every beam, a user's edges side by side, filled with -inf.

    Shape: hidden (B, K, D), running (B, K), nodes (B, K) -> scores, parents (beams), children (nodes), tokens: (B, most edges).
    """
    users, beams = running.shape
    live = (running > -torch.inf).flatten().nonzero()[:, 0]
    tokens, children, counts = trie.children(nodes.flatten()[live])
    own = torch.arange(len(live), device=live.device).repeat_interleave(counts)
    scores = tree.edges(hidden.flatten(0, 1)[live], live // beams, own, tokens, normalized=normalizer == "vocabulary")
    if normalizer == "tree":
        scores -= segment_logsumexp(scores, counts)[own]
    beam = live[own]
    scores += running.flatten()[beam]
    if passable is not None:
        kept = passable.to(children.device)[beam // beams, children]
        tokens, children, beam, scores = tokens[kept], children[kept], beam[kept], scores[kept]
    user = beam // beams
    sizes = user.bincount(minlength=users)
    place = torch.arange(len(user), device=user.device) - (sizes.cumsum(0) - sizes)[user]
    width = max(int(sizes.max()), 1)
    padded = scores.new_full((users, width), -torch.inf)
    padded[user, place] = scores
    wide = []
    for values in (beam % beams, children, tokens):
        into = values.new_zeros((users, width))
        into[user, place] = values
        wide.append(into)
    return padded, wide[0], wide[1], wide[2]


def segment_logsumexp(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Logsumexp over ragged rows that stand one after the other. Shape: values (..., E), counts (N,) with sum E -> (..., N)."""
    segment = torch.arange(len(counts), device=values.device).repeat_interleave(counts).expand(values.shape)
    empty = values.new_zeros(*values.shape[:-1], len(counts))
    most = empty.scatter_reduce(-1, segment, values.detach(), "amax", include_self=False)
    return empty.scatter_add(-1, segment, (values - most.gather(-1, segment)).exp()).log() + most


@torch.no_grad()
def diverse_beam_search(
    model: PreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    eos: int,
    *,
    groups: int = 10,
    penalty: float | torch.Tensor = 1.0,
    min_length: int = 1,
    max_length: int = 10,
    own_words: OwnWords | None = None,
) -> Candidates:
    """Several different sequences per row: groups of one beam each that avoid each other's tokens.

    At a step, group g takes the token of the best log-probability less `penalty` for each earlier group that took that token at the same
    step; penalties stay in the sum. A group ends with the end token or at `max_length`; ended groups push nobody away.

    Args:
        model: as for `constrained_beam_search`.
        inputs: as for `constrained_beam_search`.
        eos: the end token.
        groups: sequences per row.
        penalty: lambda, not negative; one number, or (B,) one per row.
        min_length: the end token comes no earlier than as this generated token (IDGenRec's L, whose start token takes the end's place).
        max_length: most generated tokens, the end included (IDGenRec's L + 10 counts the start token as well: give L + 9).
        own_words: writers that may only use words of their text; probabilities are then normalised over what is legal.

    Source: Vijayakumar et al. 2016, equation 5 with Hamming diversity; IDGenRec Algorithm 1; `GroupBeamSearch` of transformers 4 with one
    beam a group, whose hypothesis is complete at the first end token.
    """
    if groups < 1 or not 1 <= min_length <= max_length:
        raise ValueError(f"Need groups >= 1 and 1 <= min_length <= max_length; got {groups}, {min_length}, {max_length}.")
    tree = Decoding(model, inputs)
    device, rows = tree.root.device, len(tree.root)
    push = torch.as_tensor(penalty, dtype=torch.float32, device=device).expand(rows)
    if bool((push < 0).any()):
        raise ValueError("The diversity penalty must not be negative.")
    taken = torch.full((rows, groups, max_length), eos, device=device)
    scores = torch.zeros((rows, groups), device=device)
    lengths = torch.zeros((rows, groups), dtype=torch.long, device=device)
    ended = torch.zeros((rows, groups), dtype=torch.bool, device=device)
    own = torch.eye(groups, dtype=torch.bool, device=device)
    hidden = tree.root[:, None]
    for step in range(max_length):
        logits = tree.logits(hidden)
        if own_words is not None:
            legal = own_words.legal().to(device)
            logits = logits.expand(-1, groups, -1).masked_fill(~legal, -torch.inf)
        total = logits.logsumexp(2, keepdim=True)
        if step + 1 < min_length:
            logits[:, :, eos] = -torch.inf if own_words is None else -1e9  # where words have run out, only the end is left
        # At most g tokens are pushed down for group g: its choice is among the g + 1 best of its own.
        top = logits.topk(min(groups, logits.shape[2]))
        chosen, gained = _choose((top.values - total).expand(-1, groups, -1), top.indices.expand(-1, groups, -1), push, ended)
        taken[:, :, step] = chosen.masked_fill(ended, eos)
        scores += gained.masked_fill(ended, 0)
        lengths += (~ended & (chosen != eos)).long()
        ended = ended | (chosen == eos)
        if own_words is not None:
            own_words.take(chosen)
        if bool(ended.all()) or step + 1 == max_length:
            break
        hidden = tree.step(taken[:, :, step], torch.full((groups,), step + 1, device=device), own.repeat(1, step + 1).expand(rows, -1, -1))
    generated = (lengths + ended.long()).clamp(min=1)
    scores, order = (scores / generated).sort(dim=1, descending=True, stable=True)
    taken = taken.gather(1, order[:, :, None].expand_as(taken))[:, :, : int(generated.max())]
    return Candidates(taken, lengths.gather(1, order), scores)


def _choose(best: torch.Tensor, tokens: torch.Tensor, push: torch.Tensor, ended: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What each group takes, group after group.

    Shape: best (B, G, C), tokens (B, G, C), push (B,), ended (B, G) -> tokens (B, G), penalised log-probabilities (B, G).
    """
    chosen = torch.full_like(tokens[:, :, 0], -1)
    gained = torch.zeros_like(best[:, :, 0])
    for group in range(chosen.shape[1]):
        same = (tokens[:, group, :, None] == chosen[:, None, :group]) & ~ended[:, None, :group]
        gained[:, group], place = (best[:, group] - push[:, None] * same.sum(2)).max(1)
        chosen[:, group] = tokens[:, group].gather(1, place[:, None])[:, 0]
    return chosen, gained


@torch.no_grad()
def score_all(
    model: PreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    trie: Trie,
    *,
    length_penalty: float = 1.0,
    normalizer: Normalizer = "vocabulary",
    rows: torch.Tensor | None = None,
    chunk: int = 64,
) -> torch.Tensor:
    """The exact score of every item, or of some: what teacher forcing gives for each identifier, each node of the tree asked (almost) once.

    The tree is cut into runs of `chunk` neighbouring items. All nodes above a run's leaves go through the decoder in one forward, each
    seeing only its ancestors; the few that two runs share are asked in both. Logits are made of some nodes at a time.

    Args:
        model: as for `constrained_beam_search`.
        inputs: as for `constrained_beam_search`.
        trie: the legal identifiers.
        length_penalty: exponent of the length (end included) by which the sum of log-probabilities is divided.
        normalizer: what probabilities are normalised over.
        rows: (R,) the items; all when None.
        chunk: items of a run.

    Shape: -> (B, V), or (B, R) for some rows.
    """
    tree = Decoding(model, inputs)
    device, users = tree.root.device, len(tree.root)
    rows = torch.arange(len(trie), device=device) if rows is None else rows.to(device)
    result = tree.root.new_zeros((users, len(rows)), dtype=torch.float32)
    order, every = torch.arange(len(rows), device=device), trie.sequences(rows)
    for column in range(every.shape[1] - 1, -1, -1):
        order = order[every[order, column].argsort(stable=True)]
    for own in order.split(chunk):
        part = rows[own]
        paths = trie.paths(part)
        # Nodes rise from parent to child, so that sorted nodes are a legal order. Place 0 is the root.
        nodes = torch.cat([torch.tensor([trie.root], device=device), paths[paths >= 0].unique()])
        places = torch.searchsorted(nodes, paths).masked_fill(paths < 0, -1)
        above = torch.cat([torch.zeros_like(places[:, :1]), places[:, :-1]], 1)
        parents, depths = torch.zeros_like(nodes), torch.zeros_like(nodes)
        parents[places[paths >= 0]] = above[paths >= 0]
        depths[places[paths >= 0]] = (torch.arange(paths.shape[1], device=device) + 1).expand_as(paths)[paths >= 0]
        tokens = torch.zeros_like(nodes)
        tokens[places[paths >= 0]] = trie.sequences(part)[paths >= 0]
        inner = trie.items(nodes) < 0
        hidden = _run(tree, tokens, depths, parents, inner)
        edges = _edge_scores(tree, hidden, tokens, parents, inner, nodes, trie if normalizer == "tree" else None)
        total = edges[:, places.clamp(min=0)].masked_fill(paths < 0, 0).sum(2)
        result[:, own] = total / (paths >= 0).sum(1) ** length_penalty
    return result


def _run(tree: Decoding, tokens: torch.Tensor, depths: torch.Tensor, parents: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """Hidden states of the root and the inner nodes of one run. Shape: (N,) each -> (B, inner nodes, D)."""
    asked = inner.nonzero()[1:, 0]
    seen = torch.zeros((len(tokens), len(tokens)), dtype=torch.bool, device=tokens.device)
    at = torch.arange(len(tokens), device=tokens.device)
    ancestor = at
    while bool((ancestor > 0).any()):
        seen[at, ancestor] = True
        ancestor = parents[ancestor]
    users = len(tree.root)
    visible = seen[asked][:, asked].expand(users, -1, -1)
    own = tree.step(tokens[asked].expand(users, -1), depths[asked], visible, keep=False)
    return torch.cat([tree.root[:, None], own], 1)


def _edge_scores(
    tree: Decoding,
    hidden: torch.Tensor,
    tokens: torch.Tensor,
    parents: torch.Tensor,
    inner: torch.Tensor,
    nodes: torch.Tensor,
    trie: Trie | None,
) -> torch.Tensor:
    """Log-probability of each node's token after its parent, 0 for the root; normalised over the edges of `trie`, if given.

    Shape: hidden (B, inner, D), (N,) each -> (B, N).
    """
    column = inner.cumsum(0)[parents] - 1
    scores = hidden.new_zeros((len(hidden), len(tokens)), dtype=torch.float32)
    step = max(1, _HEAD_NUMBERS // (len(hidden) * tree.words))
    for start in range(0, hidden.shape[1], step):
        logits = tree.logits(hidden[:, start : start + step])
        if trie is None:
            totals = logits.logsumexp(2)
        else:
            legal, _, counts = trie.children(nodes[inner][start : start + step])
            columns = torch.arange(len(counts), device=legal.device).repeat_interleave(counts)
            totals = segment_logsumexp(logits[:, columns, legal], counts)
        here = ((column >= start) & (column < start + step)).nonzero()[:, 0]
        here = here[here > 0]
        own = column[here] - start
        scores[:, here] = logits[:, own, tokens[here]] - totals[:, own]
    return scores
