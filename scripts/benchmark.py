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
    "latent_loss": 3.5,
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


def packed(items: int, rounds: int, users: int = 4) -> tuple[float, float, float, float]:
    """Packed training of every prefix against one sample per prefix: loss and gradients (D 256, 4 layers, 5 tokens, 1,000 candidates).

    The plain form is the published one: the prefixes of the same users in one batch, padded to the longest. The last figure is the ratio to
    a plain form without any padding (one batch per length), which nobody trains with but which is the limit by the number of tokens.
    """
    torch.manual_seed(0)
    config = SETRecConfig(text_config=small_backbone(256, 4, 0.0), semantic_tokens=4, cf_size=64)
    model = SETRecModel(config)
    semantic, cf = torch.randn(users, items, 384), torch.randn(users, items, 64)
    mask = torch.ones(users, items, dtype=torch.bool)
    candidates = {"semantic": torch.randn(1000, 384), "cf": torch.randn(1000, 64)}
    labels = torch.randint(1000, (users, items + 1))
    ends = torch.arange(items + 1)
    prefix_mask = (torch.arange(items)[None] >= items - ends[:, None]).repeat_interleave(users, 0)
    source = (torch.arange(items)[None] - (items - ends[:, None])).clamp(min=0).repeat_interleave(users, 0)
    owner = torch.arange(users).repeat(items + 1)[:, None]
    count = labels.numel()

    def plain() -> None:
        model.zero_grad()
        targets = labels.T.reshape(-1, 1)
        model(semantic[owner, source], prefix_mask, cf[owner, source], candidates=candidates, labels=targets).loss.backward()

    def unpadded() -> None:
        model.zero_grad()
        for end in range(items + 1):
            inputs = (semantic[:, :end], mask[:, :end], cf[:, :end])
            model(*inputs, candidates=candidates, labels=labels[:, end : end + 1], num_items_in_batch=count).loss.backward()

    def ours() -> None:
        model.zero_grad()
        model(semantic, mask, cf, packed=True, candidates=candidates, labels=labels).loss.backward()

    limit = ratio(unpadded, ours, max(1, rounds // 2))[0]
    return *ratio(plain, ours, rounds), limit


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


def latent_loss(rounds: int, size: int = 12_000, targets: int = 256) -> tuple[float, float, float]:
    """The loss head in latent space against the per-token form: D 512, 4 + 1 slots, autoencoder 128 wide, full softmax, with gradients."""
    torch.manual_seed(0)
    config = SETRecConfig(text_config=small_backbone(512, 1), semantic_tokens=4, cf_size=64)
    model = SETRecModel(config)
    candidates = {"semantic": torch.randn(size, 384), "cf": torch.randn(size, 64)}
    generated, labels = torch.randn(targets, 5, 512, requires_grad=True), torch.randint(size, (targets,))

    def run(form: str) -> None:
        model.config.grounding = form
        model.zero_grad()
        model._generation_loss(generated, candidates, labels, None).backward()

    return ratio(lambda: run("token"), lambda: run("latent"), rounds)


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
        value, plain, ours, unpadded = packed(items, chosen.rounds if items < 50 else max(2, chosen.rounds // 2))
        put(f"packed_{items}", value, f"per prefix {plain:.2f} s, packed {ours:.2f} s; against prefixes without padding {unpadded:.1f}")
    for name, size in (("12k", 12_000), ("120k", 120_000)):
        if chosen.quick and size > 12_000:
            put(f"grounding_time_{name}", None, "--quick runs the 12k size")
            continue
        value, plain, ours, memory = grounding(size, 4 * chosen.rounds)
        put(f"grounding_time_{name}", value, f"per token {1000 * plain:.1f} ms, latent {1000 * ours:.1f} ms")
        if name == "12k":
            put("grounding_memory", memory, "floats of the index, per token / latent")
    value, plain, ours = latent_loss(chosen.rounds)
    put("latent_loss", value, f"per token {1000 * plain:.0f} ms, latent {1000 * ours:.0f} ms, 12k items")
    machine = {"platform": platform.platform(), "processor": platform.processor(), "torch": torch.__version__, "threads": 1}
    if chosen.json is not None:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps({"figures": figures, "curves": {}, "machine": machine}, indent=2) + "\n")


if __name__ == "__main__":
    main()
