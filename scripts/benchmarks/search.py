"""Beam search under a prefix tree against generate() with a prefix function, a free search, and its own bare forwards; the tree itself.

Dims: B batch · K beams · W vocabulary · T tokens of an identifier with its end.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import T5Config, T5ForConditionalGeneration

from genrec_hub import beam_search, products
from genrec_hub.beam_search import constrained_beam_search
from genrec_hub.trie import Trie

from .timing import interleaved

EOS, VOCABULARY, WORDS = 1, 32_128, 8_000


def backbone_config() -> T5Config:
    """The backbone of every comparison: T5 of width 256 with 4 + 4 layers."""
    sizes: dict[str, Any] = {"d_model": 256, "d_kv": 64, "d_ff": 1024, "num_layers": 4, "num_decoder_layers": 4, "num_heads": 4}
    tokens = {"pad_token_id": 0, "eos_token_id": EOS, "decoder_start_token_id": 0}
    return T5Config(vocab_size=VOCABULARY, dropout_rate=0.0, **sizes, **tokens)


def prompts(users: int, length: int = 128) -> dict[str, torch.Tensor]:
    """Shape: -> input_ids and attention_mask (B, length)."""
    tokens = torch.randint(2, VOCABULARY, (users, length), generator=torch.Generator().manual_seed(1))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def identifiers(size: int, seed: int = 0) -> list[list[int]]:
    """Distinct identifiers of 4 to 8 tokens whose words follow Zipf's law, as those of titles do."""
    rng = np.random.default_rng(seed)
    chances = 1 / (np.arange(WORDS) + 200)
    chances /= chances.sum()
    found: dict[tuple[int, ...], None] = {}
    while len(found) < size:
        lengths, words = rng.integers(4, 9, size), rng.choice(WORDS, (size, 8), p=chances) + 100
        found.update(dict.fromkeys(tuple(row[:length]) for row, length in zip(words.tolist(), lengths.tolist(), strict=True)))
    return [list(own) for own in list(found)[:size]]


def prefix_function(sequences: list[list[int]]) -> Callable[[int, torch.Tensor], list[int]]:
    """What a user of transformers writes: a tree of dicts, walked from the root for every beam at every step."""
    root: dict[int, Any] = {}
    for sequence in sequences:
        node = root
        for token in (*sequence, EOS):
            node = node.setdefault(token, {})

    def allowed(_: int, tokens: torch.Tensor) -> list[int]:
        node: dict[int, Any] | None = root
        for token in tokens[1:].tolist():
            node = node.get(token) if node else None
        return list(node) if node else [EOS]

    return allowed


@torch.inference_mode()
def free_beam_search(model: Any, inputs: Mapping[str, torch.Tensor], beams: int, steps: int) -> torch.Tensor:
    """The same engine without a tree: the best K of K x W at every step. Shape: -> scores (B, K)."""
    tree = beam_search.Decoding(model, inputs)
    users = len(tree.root)
    running, visible = torch.zeros(users, 1), torch.zeros(users, 1, 0, dtype=torch.bool)
    hidden = tree.root[:, None]
    for step in range(1, steps + 1):
        logits = tree.logits(hidden)
        best, words = logits.topk(beams)
        running, places = (best + (running - logits.logsumexp(2))[:, :, None]).flatten(1).topk(beams)
        if step == steps:
            break
        parents, tokens = places // beams, words.flatten(1).gather(1, places)
        seen = visible.gather(1, parents[:, :, None].expand(-1, -1, visible.shape[2]))
        visible = torch.cat([seen, torch.eye(beams, dtype=torch.bool).expand(users, -1, -1)], 2)
        hidden = tree.step(tokens, torch.full((beams,), step), visible)
    return running


def recorded_forwards(model: Any, inputs: Mapping[str, torch.Tensor], search: Callable[[], Any]) -> Callable[[], None]:
    """Runs a search and returns its bare forwards: the same decoder steps and heads on the same inputs, without any selection."""
    calls: list[tuple[str, tuple[Any, ...]]] = []

    class Recording(beam_search.Decoding):
        def edges(self, hidden: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
            calls.append(("logits", (hidden[None],)))
            return super().edges(hidden, *given, **named)

        def step(self, *given: Any, **named: Any) -> torch.Tensor:
            calls.append(("step", given))
            return super().step(*given, **named)

    with mock.patch.object(beam_search, "Decoding", Recording):
        search()

    @torch.inference_mode()
    def again() -> None:
        tree = beam_search.Decoding(model, inputs)
        for name, given in calls:
            getattr(tree, name)(*given)

    return again


def beams(size: int, rounds: int, users: int = 8, width: int = 20, hugging_face: bool = True) -> dict[str, float]:
    """CPU seconds of the constrained search, the free one, the bare forwards and generate() under a prefix function.

    `mkl` is the constrained search with the matrix products of generate(), without oneDNN.

    Raises:
        RuntimeError: when generate() and ours do not find the same items for every user.
    """
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(backbone_config()).eval()
    inputs, sequences = prompts(users), identifiers(size)
    trie = Trie.build(sequences, EOS)

    @torch.inference_mode()
    def ours() -> beam_search.Beams:
        return constrained_beam_search(model, inputs, trie, width)

    def without_onednn() -> beam_search.Beams:
        with mock.patch.object(products, "_neglected", return_value=False):
            return ours()

    # As many steps as the constrained search takes.
    with mock.patch.object(beam_search.Decoding, "step", autospec=True, side_effect=beam_search.Decoding.step) as step:
        ours()
    steps = step.call_count + 1
    works: dict[str, Callable[[], Any]] = {
        "ours": ours,
        "free": lambda: free_beam_search(model, inputs, width, steps),
        "bare": recorded_forwards(model, inputs, ours),
    }
    if hugging_face:
        allowed = prefix_function(sequences)

        def theirs() -> Any:
            return model.generate(
                **inputs, prefix_allowed_tokens_fn=allowed, num_beams=width, num_return_sequences=width, max_new_tokens=trie.depth,
                do_sample=False, return_dict_in_generate=True, output_scores=True,
            )  # fmt: skip

        same_items(ours(), theirs(), trie)
        works |= {"hugging_face": theirs, "mkl": without_onednn}
    return interleaved(works, rounds)


def same_items(ours: beam_search.Beams, theirs: Any, trie: Trie) -> None:
    """Compares the sets of items and the scores of every user."""
    users, width = ours.rows.shape
    found = [trie.find(row[1 : row.index(EOS)]) for row in theirs.sequences.tolist()]
    scores = theirs.sequences_scores.view(users, width)
    for user, rows in enumerate(ours.rows.tolist()):
        own = found[user * width : (user + 1) * width]
        if set(own) != set(rows) or not torch.allclose(ours.scores[user].sort().values, scores[user].sort().values, atol=1e-4):
            raise RuntimeError(f"generate() and our search differ for user {user}: {sorted(set(own) ^ set(rows))}.")


def tree(size: int, rounds: int, added: int = 1000) -> tuple[float, float, float]:
    """CPU seconds to build a tree, and to add one identifier (median and 99th percentile of a thousand)."""
    sequences = identifiers(size + added)
    built = interleaved({"build": lambda: Trie.build(sequences[:size], EOS)}, rounds)["build"]
    trie, spent = Trie.build(sequences[:size], EOS), []
    for sequence in sequences[size:]:
        start = time.process_time()
        trie.add(sequence)
        spent.append(time.process_time() - start)
    return built, float(np.median(spent)), float(np.quantile(spent, 0.99))
