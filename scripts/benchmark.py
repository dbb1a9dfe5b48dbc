"""Measures hot paths against their plain forms, as ratios of CPU time in one run (one thread, interleaved, minimum of the rounds).

python scripts/benchmark.py --quick --json artifacts/benchmark.json
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from genrec_hub import SETRecConfig, SETRecModel
from genrec_hub.grounding import top_k
from genrec_hub.recipes import small_backbone

FLOORS = {
    "packed_8": 3.5,
    "packed_20": 7.0,
    "packed_50": 12.0,
    "grounding_time_12k": 9.0,
    "grounding_time_120k": 9.0,
    "grounding_memory": 13.0,
}


def ratio(plain: Callable[[], Any], ours: Callable[[], Any], rounds: int) -> tuple[float, float, float]:
    """Returns plain / ours, and both times in CPU seconds: the minimum over interleaved rounds after one warm-up."""
    best = [float("inf"), float("inf")]
    for number in range(rounds + 1):
        for place, work in enumerate((plain, ours)):
            start = time.process_time()
            work()
            if number:
                best[place] = min(best[place], time.process_time() - start)
    return best[0] / best[1], best[0], best[1]


def packed(items: int, rounds: int, batch: int = 4) -> tuple[float, float, float]:
    """Packed training of every prefix against one sample per prefix: forward and backward of the same sum (D 256, 4 layers, 5 tokens)."""
    torch.manual_seed(0)
    config = SETRecConfig(text_config=small_backbone(256, 4, 0.0), semantic_tokens=4, cf_size=64)
    model = SETRecModel(config)
    semantic, cf = torch.randn(batch, items, 384), torch.randn(batch, items, 64)
    mask = torch.ones(batch, items, dtype=torch.bool)

    def plain() -> None:
        model.zero_grad()
        for end in range(items + 1):
            model(semantic[:, :end], mask[:, :end], cf[:, :end]).tokens.square().sum().backward()

    def ours() -> None:
        model.zero_grad()
        model(semantic, mask, cf, packed=True).tokens.square().sum().backward()

    return ratio(plain, ours, rounds)


def grounding(size: int, rounds: int) -> tuple[float, float, float, float]:
    """Exact low-rank grounding against the per-token form (D 512, 4 + 1 slots, autoencoder 128 wide, batch 8, top 20); also the memory."""
    torch.manual_seed(0)
    config = SETRecConfig(text_config=small_backbone(512, 1), semantic_tokens=4, cf_size=64, grounding="token")
    model = SETRecModel(config)
    semantic, cf, generated = torch.randn(size, 384), torch.randn(size, 64), torch.randn(8, 5, 512)
    tables = {}
    for form in ("token", "latent"):
        model.config.grounding = form
        tables[form] = model.index(semantic, cf)

    @torch.no_grad()
    def run(form: str) -> torch.Tensor:
        model.config.grounding = form
        return top_k(model.ground(generated), tables[form], 20)[1]

    if not torch.equal(run("token"), run("latent")):
        raise RuntimeError("The two forms of grounding disagree on the top 20.")
    return *ratio(lambda: run("token"), lambda: run("latent"), rounds), tables["token"].numel() / tables["latent"].numel()


def main() -> None:
    """Parses the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the 12k sizes only")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where the figures go")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, dict[str, Any]] = {}

    def put(name: str, value: float | None, note: str) -> None:
        holds = None if value is None else value >= FLOORS[name]
        skipped = note if value is None else None
        figures[name] = {"value": value, "floor": FLOORS[name], "direction": "min", "holds": holds, "skipped": skipped}
        print(f"{name:22} {'skipped' if value is None else f'{value:8.2f}'}   floor {FLOORS[name]:5.1f}   {note}", flush=True)

    for items in (8, 20, 50):
        value, plain, ours = packed(items, chosen.rounds if items < 50 else max(2, chosen.rounds // 2))
        put(f"packed_{items}", value, f"per prefix {plain:.2f} s, packed {ours:.2f} s")
    for name, size in (("12k", 12_000), ("120k", 120_000)):
        if chosen.quick and size > 12_000:
            put(f"grounding_time_{name}", None, "--quick runs the 12k size")
            continue
        value, plain, ours, memory = grounding(size, 4 * chosen.rounds)
        put(f"grounding_time_{name}", value, f"per token {1000 * plain:.1f} ms, latent {1000 * ours:.1f} ms")
        if name == "12k":
            put("grounding_memory", memory, "floats of the index, per token / latent")
    machine = {"platform": platform.platform(), "processor": platform.processor(), "torch": torch.__version__, "threads": 1}
    if chosen.json is not None:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps({"figures": figures, "curves": {}, "machine": machine}, indent=2) + "\n")


if __name__ == "__main__":
    main()
