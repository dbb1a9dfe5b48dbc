"""Cost against catalogue size, history length, beams and batch: measured points, and their plots in docs/."""

import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import T5ForConditionalGeneration

from genrec_hub import SETRecConfig, SETRecModel
from genrec_hub.beam_search import constrained_beam_search
from genrec_hub.grounding import top_k
from genrec_hub.trie import Trie

from .search import EOS, backbone_config, identifiers, prompts
from .timing import interleaved

Curve = dict[str, list[float]]
MEMORY = ", MB"
COLOURS = {"grounding": "tab:green", "one-shot": "tab:blue", "beam search": "tab:orange", "index": "tab:grey", "prefix tree": "tab:brown"}


def processor() -> str:
    """The model name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def peak(work: Callable[[], Any]) -> int:
    """The most bytes that torch held at once for a piece of work, beside what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    steps = [(event.start_ns(), event.nbytes()) for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate((size for _, size in sorted(steps, key=itemgetter(0))), initial=0))


def measured(points: Sequence[int], forms: Callable[[int], dict[str, Callable[[], Any]]], rounds: int) -> Curve:
    """Milliseconds of each form at each point, and megabytes that it needs beside the model, the index and the tree."""
    found: Curve = {"at": [float(point) for point in points]}
    for point in points:
        works = forms(point)
        for name, seconds in interleaved(works, rounds).items():
            found.setdefault(name, []).append(1000 * seconds)
        for name, work in works.items():
            found.setdefault(name + MEMORY, []).append(peak(work) / 2**20)
    return found


def all_curves(rounds: int) -> dict[str, Curve]:
    """The curves of the benchmark's T5 (width 256, 4 + 4 layers): one-shot SETRec and our beam search."""
    torch.manual_seed(0)
    config = SETRecConfig(text_config=backbone_config(), semantic_tokens=4, cf_size=64, prompt_ids=[5, 6, 7], grounding="latent")
    setrec = SETRecModel(config).eval()
    generator = T5ForConditionalGeneration(backbone_config()).eval()
    width = 64 + 1 + setrec.semantic.last.in_features
    small = Trie.build(identifiers(12_000), EOS)
    table = torch.randn(width, 12_000).T

    def one_shot(users: int, items: int, index: torch.Tensor) -> Callable[[], Any]:
        history = {"semantic": torch.randn(users, items, 384), "cf": torch.randn(users, items, 64)}
        mask = torch.ones(users, items, dtype=torch.bool)

        @torch.inference_mode()
        def run() -> torch.Tensor:
            return top_k(setrec.ground(setrec(item_mask=mask, **history).tokens[:, 0]), index, 20)[1]

        return run

    def beams(users: int, length: int, kept: int, trie: Trie) -> Callable[[], Any]:
        inputs = prompts(users, length)
        return lambda: constrained_beam_search(generator, inputs, trie, kept)

    kept: Curve = {"index, MB": [], "prefix tree, MB": []}

    def sizes(size: int) -> dict[str, Callable[[], Any]]:
        index, queries, trie = torch.randn(width, size).T, torch.randn(8, width), Trie.build(identifiers(size), EOS)
        kept["index, MB"].append(index.nbytes / 2**20)
        kept["prefix tree, MB"].append(sum(own.nbytes for own in vars(trie).values() if isinstance(own, np.ndarray)) / 2**20)
        return {
            "grounding": lambda: top_k(queries, index, 20),
            "one-shot": one_shot(8, 25, index),
            "beam search": beams(8, 128, 20, trie),
        }

    catalogue = measured((10_000, 30_000, 100_000, 300_000, 1_000_000), sizes, rounds) | kept
    return {
        "catalogue size": catalogue,
        "history length": measured(
            (5, 10, 25, 50), lambda n: {"one-shot": one_shot(8, n, table), "beam search": beams(8, 5 * n + 3, 20, small)}, rounds
        ),
        "beams": measured((1, 5, 10, 20, 50), lambda kept: {"beam search": beams(8, 128, kept, small)}, rounds),
        "batch": measured(
            (1, 2, 4, 8, 16, 32),
            lambda users: {"one-shot": one_shot(users, 25, table), "beam search": beams(users, 128, 20, small)},
            rounds,
        ),
    }


def draw(folder: Path, rounds: int) -> dict[str, Any]:
    """Measures the curves and writes docs/cost.png.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ImportError("The plots need matplotlib: pip install 'genrec_hub[dev]'") from error
    mpl.use("Agg")
    from matplotlib import pyplot, ticker

    start, found = time.time(), all_curves(rounds)
    figure, places = pyplot.subplots(2, 4, figsize=(17, 8))
    for (time_place, memory_place), (name, curve) in zip(places.T, found.items(), strict=True):
        for form, values in curve.items():
            if form != "at":
                place = memory_place if form.endswith(MEMORY) else time_place
                stored = form in ("index, MB", "prefix tree, MB")
                label = form.removesuffix(MEMORY)
                place.plot(curve["at"], values, COLOURS[label], marker="o", linestyle=":" if stored else "-", label=label)
        per = "" if name == "batch" else " of 8"
        time_place.set(ylabel=f"CPU ms a batch{per}")
        memory_place.set(ylabel=f"MB at the peak of a batch{per}" + (" (dotted: kept)" if name == "catalogue size" else ""))
        for place in (time_place, memory_place):
            place.set(xlabel=name, xscale="log", yscale="log")
            place.set_xticks(curve["at"], [f"{at:,.0f}" for at in curve["at"]], minor=False)
            place.xaxis.set_minor_locator(ticker.NullLocator())
            place.yaxis.set_major_formatter("{x:g}")
            place.yaxis.set_minor_formatter(ticker.LogFormatter(minor_thresholds=(1.5, 0.6)))
            place.legend(fontsize=8)
            place.grid(alpha=0.3)
    figure.suptitle("T5 of width 256, 4 + 4 layers, one CPU thread; 128 positions, 20 beams, 12k items, batch 8 unless on the axis")
    figure.tight_layout()
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / "cost.png", dpi=110)
    pyplot.close(figure)
    return {**found, "seconds": round(time.time() - start)}
