"""Hot paths against their plain forms, against what a user would take instead, and against the limit: ratios of CPU time in one run.

One thread, forms interleaved in one process, minimum of the rounds; every run checks that the forms give the same answers.

python scripts/benchmark.py --quick --json artifacts/benchmark.json     # the 12k sizes, a few minutes
python scripts/benchmark.py --json docs/benchmark.json --curves --model beauty  # everything, the plots of docs/ and the README's table
python scripts/benchmark.py --json docs/benchmark.json --only beams tree    # some parts; the file keeps the figures of the others
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from benchmarks import curves, grounding, neighbours, one_shot, search, training

DOCS = Path(__file__).parent.parent / "docs"
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
# What each figure has to reach, and whether that is the least or the most; None = reported without a floor.
FLOORS: dict[str, tuple[float | None, str]] = {
    **{f"constrained_overhead_{size}": (most, "max") for size, most in (("12k", 1.05), ("120k", 1.05), ("1m", 1.10))},
    **{f"beam_vs_hf_{size}": (most, "max") for size, most in (("12k", 0.45), ("120k", 0.32))},
    "beam_vs_forward": (1.15, "max"),
    **{f"oneshot_vs_hf_beam_{size}": (least, "min") for size, least in (("12k", 12.0), ("120k", 14.0))},
    "oneshot_vs_encoder": (1.3, "max"),
    **{f"grounding_time_{size}": (9.0, "min") for size in ("12k", "120k")},
    "grounding_memory": (13.0, "min"),
    "ann_recall_1m": (0.99, "min"),
    "ann_time_1m": (0.05, "max"),
    **{f"packed_{items}": (least, "min") for items, least in ((8, 3.5), (20, 7.0), (50, 12.0))},
    "latent_loss": (3.5, "min"),
    "trie_build_120k": (1.0, "max"),
    "trie_add": (0.001, "max"),
    **{f"throughput_{users}": (None, "min") for users in (1, 8, 64)},
}
SIZES = {"12k": 12_000, "120k": 120_000, "1m": 1_200_000}
# Short or close to their floor: as many times the rounds, since the least of them counts.
MORE = {"beams 12k": 2, "beams 120k": 2, "one_shot 12k": 2, "one_shot 120k": 2, "grounding 12k": 8}
# Rows of the README's table: what is compared, and its figures.
ROWS = (
    ("constrained beam search / free beam search, 12k, 120k, 1.2M items", [f"constrained_overhead_{size}" for size in SIZES]),
    ("our beam search / generate() with a prefix function, 12k, 120k items", ["beam_vs_hf_12k", "beam_vs_hf_120k"]),
    ("our beam search / its own bare forwards", ["beam_vs_forward"]),
    ("generate() with a prefix function / one-shot SETRec, 12k, 120k items", ["oneshot_vs_hf_beam_12k", "oneshot_vs_hf_beam_120k"]),
    ("one-shot SETRec / its encoder alone", ["oneshot_vs_encoder"]),
    ("grounding token by token / in latent space, time, 12k, 120k items", ["grounding_time_12k", "grounding_time_120k"]),
    ("the same, memory", ["grounding_memory"]),
    ("approximate grounding in 1.2M items: recall of the best 20", ["ann_recall_1m"]),
    ("approximate / exact grounding, time", ["ann_time_1m"]),
    ("training prefix by prefix / packed, 8, 20, 50 items", ["packed_8", "packed_20", "packed_50"]),
    ("softmax over all items' tokens / in latent space, with gradients", ["latent_loss"]),
    ("prefix tree of 120k identifiers: build, add one (CPU seconds)", ["trie_build_120k", "trie_add"]),
    ("recommendations a CPU-second in batches of 1, 8, 64", ["throughput_1", "throughput_8", "throughput_64"]),
)


class Table:
    """The figures of one run, printed as they come."""

    def __init__(self, figures: dict[str, dict[str, Any]]) -> None:
        self.figures = figures

    def put(self, name: str, value: float, note: str, beside: dict[str, float] | None = None) -> None:
        """Holds a figure against its floor; `beside` it stand others that have none."""
        floor, direction = FLOORS[name]
        holds = bool(floor is None or (value >= floor if direction == "min" else value <= floor))
        self.figures[name] = {"value": float(value), "floor": floor, "direction": direction, "holds": holds, "skipped": None, "note": note}
        self.figures[name] |= {"beside": beside} if beside else {}
        bound = "reported" if floor is None else f"{'>=' if direction == 'min' else '<='} {floor:g}"
        print(f"{name:26} {value:10.4g}   {bound:10} {'' if holds else 'MISSED '}  {note}", flush=True)

    def skip(self, name: str, reason: str) -> None:
        """Says why a figure is not there, unless an earlier run left it."""
        if name in self.figures:
            return
        floor, direction = FLOORS[name]
        self.figures[name] = {"value": None, "floor": floor, "direction": direction, "holds": False, "skipped": reason}
        print(f"{name:26} {'skipped':>10}   {reason}", flush=True)


def number(value: float) -> str:
    """Three digits, no exponent."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 else f"{value:.6f}".rstrip("0")


def markdown(result: dict[str, Any]) -> str:
    """The table of the README: what is compared, what was measured, what was to be reached."""
    lines = ["| | measured | wanted |", "|---|---|---|"]
    for what, names in ROWS:
        figures = [result["figures"][name] for name in names]
        values = [
            "-" if figure["value"] is None else number(figure["value"]) + ("" if figure["holds"] else " (missed)") for figure in figures
        ]
        signs = {"min": "≥", "max": "≤"}
        wanted = [f"{signs[figure['direction']]} {number(figure['floor'])}" for figure in figures if figure["floor"] is not None]
        for label in dict.fromkeys(label for figure in figures for label in figure.get("beside", ())):
            values[-1] += f"; {label} " + ", ".join(number(figure["beside"][label]) for figure in figures if "beside" in figure)
        lines.append(f"| {what} | {', '.join(values)} | {', '.join(dict.fromkeys(wanted)) or 'reported'} |")
    machine = result["machine"]
    told = f"torch {machine['torch']}, transformers {machine['transformers']}, one thread of {machine['processor']}"
    return "\n".join([*lines, "", f"`docs/benchmark.json`: {told}; CPU time, forms interleaved, minimum of the rounds."])


def into_readme(result: dict[str, Any], readme: Path = README) -> None:
    """Puts the table between the README's marks."""
    before, _, rest = readme.read_text().partition(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n{markdown(result)}\n{END}{rest.partition(END)[2]}")


def ms(seconds: float) -> str:
    """Milliseconds, three digits."""
    return f"{1000 * seconds:.3g} ms"


def put_beams(table: Table, size: str, rounds: int) -> None:
    """Beam search at one catalogue size; generate() is left out beyond 120k, where its tree of dicts does not fit."""
    spent = search.beams(SIZES[size], rounds, hugging_face=size != "1m")
    free = f"constrained {ms(spent['ours'])}, free {ms(spent['free'])}"
    table.put(f"constrained_overhead_{size}", spent["ours"] / spent["free"], free)
    if size != "1m":
        note = f"ours {ms(spent['ours'])}, generate() with a prefix function {ms(spent['hugging_face'])}, the same items for every user"
        plain = {"without oneDNN": spent["mkl"] / spent["hugging_face"]}
        table.put(f"beam_vs_hf_{size}", spent["ours"] / spent["hugging_face"], note, plain)
    if size == "12k":
        table.put("beam_vs_forward", spent["ours"] / spent["bare"], f"the same forwards without selection {ms(spent['bare'])}")


def put_one_shot(table: Table, size: str, rounds: int) -> None:
    """One pass and grounding at one catalogue size."""
    spent = one_shot.against_beams(SIZES[size], rounds)
    ours = spent["our_beams"] / spent["one_shot"]
    note = f"one-shot {ms(spent['one_shot'])}, generate() {ms(spent['hugging_face'])}; against our beams {ours:.1f} x"
    plain = {"without oneDNN": spent["hugging_face"] / spent["mkl"]}
    table.put(f"oneshot_vs_hf_beam_{size}", spent["hugging_face"] / spent["one_shot"], note, plain)
    if size == "12k":
        table.put("oneshot_vs_encoder", spent["one_shot"] / spent["encoder"], f"the encoder alone {ms(spent['encoder'])}")


def put_grounding(table: Table, size: str, rounds: int) -> None:
    """Exact grounding at one catalogue size."""
    spent, memory = grounding.low_rank(SIZES[size], rounds)
    note = f"the better of per token {ms(spent['plain'])} and all tokens in one product {ms(spent['joined'])}, latent {ms(spent['ours'])}"
    reference = min(spent["plain"], spent["joined"])
    table.put(f"grounding_time_{size}", reference / spent["ours"], note, {"without oneDNN": reference / spent["mkl"]})
    if size == "12k":
        table.put("grounding_memory", memory, "numbers of the index, per token / latent")


def put_neighbours(table: Table, rounds: int, checkpoint: str | None) -> None:
    """Approximate grounding at 1.2 million items."""
    if checkpoint is None:
        for name in ("ann_recall_1m", "ann_time_1m"):
            table.skip(name, "--model names no trained SETRec whose vectors are searched")
        return
    found = neighbours.million(SIZES["1m"], rounds, checkpoint)
    table.put("ann_recall_1m", found["recall"], found["note"])
    table.put(
        "ann_time_1m", found["ours"] / found["exact"], f"exact {ms(found['exact'])}, approximate with exact scores {ms(found['ours'])}"
    )


def put_training(table: Table, rounds: int) -> None:
    """Packed training and the loss."""
    for items in (8, 20, 50):
        spent = training.packed(items, rounds)
        better = min(spent["plain"], spent.get("padded", spent["plain"]))
        note = f"a batch per length {ms(spent['plain'])}" + (f", padded {ms(spent['padded'])}" if "padded" in spent else "")
        table.put(f"packed_{items}", better / spent["ours"], f"the better of {note}; packed {ms(spent['ours'])}")
    spent = training.latent_loss(2 * rounds)
    note = f"per token {ms(spent['plain'])}, latent {ms(spent['ours'])}; against a table split once {spent['split'] / spent['ours']:.1f} x"
    table.put("latent_loss", spent["plain"] / spent["ours"], note)


def put_tree(table: Table, rounds: int) -> None:
    """The prefix tree."""
    built, added, slow = search.tree(SIZES["120k"], rounds)
    table.put("trie_build_120k", built, "CPU seconds for 120k identifiers of 4 to 8 tokens")
    table.put("trie_add", added, f"CPU seconds, median of 1,000 additions; 99th percentile {ms(slow)}")


def put_throughput(table: Table, rounds: int) -> None:
    """Recommendations a second."""
    for users, spent in one_shot.throughput((1, 8, 64), 4 * rounds).items():
        note = f"users a CPU-second, top 20 of 12k items; a plain SASRec {users / spent['sasrec']:.0f}"
        table.put(f"throughput_{users}", users / spent["setrec"], note, {"a plain SASRec": users / spent["sasrec"]})


def main() -> None:
    """Parses the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the 12k sizes only")
    parser.add_argument("--rounds", type=int, default=5)
    named = 'beams one_shot "one_shot 12k" grounding neighbours training tree throughput; curves for none of them'
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help=named)
    parser.add_argument("--model", help="folder of a trained SETRec with an autoencoder: whose vectors approximate grounding searches")
    parser.add_argument("--curves", action="store_true", help="also the cost curves, as plots in docs/")
    parser.add_argument("--json", type=Path, help="where the figures go")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    start, rounds = time.time(), chosen.rounds
    known = json.loads(chosen.json.read_text()) if chosen.json is not None and chosen.only and chosen.json.is_file() else {}
    table = Table(known.get("figures", {}))
    sized: dict[str, Callable[[Table, str, int], None]] = {"beams": put_beams, "one_shot": put_one_shot, "grounding": put_grounding}
    parts: dict[str, Callable[[], None]] = {}
    for name, work in sized.items():
        for size in SIZES:
            if not (chosen.quick and size != "12k") and (name == "beams" or size != "1m"):
                many = rounds * MORE.get(f"{name} {size}", 1)
                parts[f"{name} {size}"] = lambda work=work, size=size, many=many: work(table, size, many)
    parts |= {
        "training": lambda: put_training(table, rounds),
        "tree": lambda: put_tree(table, rounds),
        "throughput": lambda: put_throughput(table, rounds),
    }
    if not chosen.quick:
        parts["neighbours"] = lambda: put_neighbours(table, rounds, chosen.model)
    for name, run in parts.items():
        if not chosen.only or {name, name.split()[0]} & set(chosen.only):
            run()
            if chosen.json is not None:  # what was measured stays, should the rest be called off
                chosen.json.parent.mkdir(parents=True, exist_ok=True)
                chosen.json.write_text(json.dumps({**known, "figures": table.figures}, indent=2) + "\n")
    reason = "--only names other parts" if chosen.only else "--quick runs the 12k sizes"
    for name in FLOORS:
        if name not in table.figures:
            table.skip(name, reason)
    drawn = curves.draw(DOCS, rounds=2 if chosen.quick else 3) if chosen.curves else known.get("curves", {})
    versions = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    machine = {
        "platform": platform.platform(),
        "processor": curves.processor(),
        "threads": 1,
        **versions,
        "seconds": round(time.time() - start) + known.get("machine", {}).get("seconds", 0),
    }
    if chosen.json is not None:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        result = {"figures": {name: table.figures[name] for name in FLOORS}, "curves": drawn, "machine": machine}
        chosen.json.write_text(json.dumps(result, indent=2) + "\n")
        if chosen.json.resolve() == (DOCS / "benchmark.json").resolve():
            into_readme(result)


if __name__ == "__main__":
    main()
