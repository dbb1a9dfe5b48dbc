"""What is measured beside the rows of a table; each study is a function (task) -> what its figure is drawn from.

Dims: B batch · V catalogue size · T tokens of an identifier with its end.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import beam_optima
import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

import genrec_hub
from genrec_hub import recipes_idgenrec
from genrec_hub.evaluation import evaluate
from genrec_hub.processing_idgenrec import IDGenRecProcessor
from genrec_hub.recipes import CHECKPOINTS
from genrec_hub.text import departments

from .measure import ROOMS
from .systems import Task


def optima(task: Task) -> dict[str, Any]:
    """Beam search against the exact score of every item, by beam width."""
    pipe = genrec_hub.load(str(_only(task)))
    histories = task.split.validation.sample(task.config["users"], task.seed).histories
    missed = beam_optima.missed(pipe.model, pipe.processor, histories, task.config["widths"])
    return {"users": len(histories), "top": beam_optima.TOP, "widths": missed}


@torch.inference_mode()
def hf_beam(task: Task) -> dict[str, Any]:
    """CPU seconds of `generate()` under a prefix function, a user at a time as published, beside our search of the same beams in batches.

    Both on the same sample of test histories, then scaled to all of them.
    """
    pipe = genrec_hub.load(str(_only(task)))
    model, processor, beams = pipe.model.eval(), pipe.processor, int(task.config["beams"])
    cases, _ = task.split.test.asked()
    own = cases.sample(task.config["users"], task.seed).histories
    histories = [[processor.identifiers.tokens[int(item)].tolist() for item in own[row][-processor.max_items :]] for row in range(len(own))]
    tree = prefix_tree([tokens.tolist() for tokens in processor.identifiers.tokens], processor.writer.eos)
    trie = processor.trie
    spent = {"hf": 0.0, "ours-single": 0.0, "ours": 0.0}
    for history in histories:
        inputs = processor.inputs([history], model)
        start = time.process_time()
        generate(model, processor, inputs, beams, tree)
        spent["hf"] += time.process_time() - start
        start = time.process_time()
        model.recommend(inputs, trie, beams)
        spent["ours-single"] += time.process_time() - start
    start = time.process_time()
    for at in range(0, len(histories), 32):
        model.recommend(processor.inputs(histories[at : at + 32], model), trie, beams)
    spent["ours"] = time.process_time() - start
    scale = len(cases) / len(histories)
    return {"sample": len(histories), "beams": beams, "cpu_seconds": {name: round(own * scale, 1) for name, own in spent.items()}}


def seen_kept(task: Task) -> dict[str, Any]:
    """A finished SETRec beside SASRec and what needs no training when items of the history may come again, as SETRec was published."""
    (row,) = set(task.needed) - {"sasrec"}
    found: dict[str, Any] = evaluate(
        genrec_hub.load(str(task.needed[row])),
        task.domain,
        protocol=task.cell.protocol,
        exclude_seen=False,
        sasrec=task.needed["sasrec"],
        baselines=True,
        split=task.split,
        vectors=task.vectors,
    )
    rooms = {name: found["groups"].get(f"{name} among {name}") for name in ROOMS}
    groups = {"all": {**found, **found["metrics"]}, **{name: own for name, own in rooms.items() if own}}
    shown = {"Recall@10": "Recall@10", "HR@10": "Recall@10", "NDCG@10": "NDCG@10"}

    def picked(means: dict[str, Any]) -> dict[str, float]:
        return {shown[metric]: value for metric, value in means.items() if metric in shown}

    return {name: {who: picked(means) for who, means in {row: own, **own["baselines"]}.items()} for name, own in groups.items()}


def generate(model: Any, processor: Any, inputs: dict[str, torch.Tensor], beams: int, tree: dict[int, Any]) -> torch.Tensor:
    """The same beam search by `generate()`, for one user. Shape: -> (beams, prompt and identifier)."""
    prompt = inputs["input_ids"].shape[1]

    def allowed(_: int, tokens: torch.Tensor) -> list[int]:
        node: dict[int, Any] | None = tree
        for token in tokens[prompt:].tolist():
            node = node.get(token) if node else None
        return list(node) if node else [processor.writer.eos]

    found: torch.Tensor = model.recommender.generate(
        **inputs,
        prefix_allowed_tokens_fn=allowed,
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=processor.trie.depth,
        renormalize_logits=model.config.normalizer == "tree",
        length_penalty=model.config.length_penalty,
        do_sample=False,
        pad_token_id=processor.writer.pad,
        eos_token_id=processor.writer.eos,
    )
    return found


def prefix_tree(sequences: list[list[int]], eos: int) -> dict[int, Any]:
    """The identifiers as a tree of dicts, as a user of transformers writes it."""
    root: dict[int, Any] = {}
    for sequence in sequences:
        node = root
        for token in (*sequence, eos):
            node = node.setdefault(token, {})
    return root


def layout(task: Task) -> dict[str, Any]:
    """A map of the identifiers: t-SNE of what each is made of (the set of tokens, or the sum of the embedded code), with departments."""
    pipe = genrec_hub.load(str(_only(task)))
    size = len(task.domain.catalog)
    rows = np.sort(np.random.default_rng(task.seed).choice(size, min(size, int(task.config["items"])), replace=False))
    if isinstance(pipe.processor, IDGenRecProcessor):
        table = pipe.model.recommender.get_input_embeddings().weight.detach()
        codes = [torch.from_numpy(pipe.processor.identifiers.tokens[row]).long() for row in rows]
        vectors = torch.stack([table[own].sum(0) for own in codes]).numpy()
    else:
        vectors = pipe.processor.index(pipe.model.eval())[torch.from_numpy(rows)].detach().numpy()
    flat = PCA(min(30, *vectors.shape), random_state=task.seed).fit_transform(vectors)
    places = TSNE(2, init="pca", perplexity=min(30, len(rows) // 4), random_state=task.seed).fit_transform(flat)
    kinds = [[*departments(task.domain.catalog[int(row)].categories), "", ""][1] for row in rows]
    return {"x": places[:, 0].round(2).tolist(), "y": places[:, 1].round(2).tolist(), "department": kinds}


def evolution(task: Task) -> dict[str, Any]:
    """What identifiers become over alternate rounds: those of some items after the writer, and after each generator phase."""
    config, chosen = task.config, task.settings.or_else(epochs=2, batch=128, rate=2e-3, negatives=0)
    rounds, work, domain = config.pop("rounds"), task.folder / CHECKPOINTS, task.domain
    shape = {"max_items": 20, "max_text": config.pop("max_text")}
    own = {"normalizer": "tree", "own_words": True, "max_length": 16, "length_penalty": 0.0}
    model, bare, _ = recipes_idgenrec._start(domain.catalog, None, None, None, config.pop("vocabulary"), shape, {**own, **config})
    writer_epochs = 1 if chosen.epochs == 1 else 6
    recipes_idgenrec.train_writer(model, bare, [domain.catalog], work / "writer", writer_epochs, True, chosen.seed)
    shown = np.random.default_rng(task.seed).choice(len(domain.catalog), min(12, len(domain.catalog)), replace=False)
    history: list[list[str]] = []
    phases: list[dict[str, Any]] = []
    for turn in range(rounds):
        processor = bare.with_catalog(domain.catalog, None, model.eval())
        history.append([processor.identifiers[int(row)].text for row in range(len(domain.catalog))])
        phases.append(recipes_idgenrec.train_recommender(model, processor, work / f"r{turn}", chosen, task.split, True))
        if turn + 1 < rounds:
            once = replace(chosen, epochs=1, rate=1e-4)
            recipes_idgenrec.train_generator(model, processor, work / f"g{turn}", once, task.split, True)
    changed = [float(np.mean([a != b for a, b in zip(before, after, strict=True)])) for before, after in pairwise(history)]
    items = [{"title": domain.catalog[int(row)].title, "identifiers": [texts[int(row)] for texts in history]} for row in shown]
    return {"items": items, "changed": changed, "validation": [phase.get("validation", {}) for phase in phases]}


def _only(task: Task) -> Path:
    (folder,) = task.needed.values()
    return folder


STUDIES: dict[str, Callable[[Task], dict[str, Any]]] = {
    "beam-optima": optima,
    "hf-beam": hf_beam,
    "seen-kept": seen_kept,
    "map": layout,
    "evolution": evolution,
}
