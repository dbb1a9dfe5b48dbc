"""JSON of finished cells -> figures; each is one function of the results, and is left out while its cells are not there."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from genrec_hub.recipes_idgenrec import VALIDATION_USERS

Results = dict[str, list[dict[str, Any]]]
DOMAIN = "setrec_toys"


def _first(results: Results, row: str) -> dict[str, Any] | None:
    runs = results.get(f"{DOMAIN}/{row}", [])
    return runs[0] if runs else None


def _mean(run: dict[str, Any], metric: str = "NDCG@10", group: str = "all") -> float:
    return float(run["test"]["groups"][group][metric]["mean"])


def _with_intervals(axes: Axes, places: Sequence[float], runs: Sequence[dict[str, Any]], **how: Any) -> None:
    """Means of NDCG@10 with their 95 % intervals over users."""
    means, bounds = [_mean(run) for run in runs], [run["test"]["groups"]["all"]["NDCG@10"]["ci"] for run in runs]
    reach = [
        [mean - low for mean, (low, _) in zip(means, bounds, strict=True)],
        [high - mean for mean, (_, high) in zip(means, bounds, strict=True)],
    ]
    axes.errorbar(places, means, reach, capsize=3, linewidth=1, **how)


def beams(results: Results, axes: Axes) -> bool:
    """Share of users for whom a beam search misses something of the exact best ten, by its width."""
    for row in ("tiger", "idgenrec"):
        run = _first(results, f"optima-{row}")
        if run is not None:
            widths = run["study"]["widths"]
            axes.plot([int(width) for width in widths], [own["users_missing_any"] for own in widths.values()], marker="o", label=row)
    axes.set(xlabel="beams", ylabel="users whose exact top 10 is not found", xscale="log", ylim=(0, 1))
    return bool(axes.lines)


def tokens(results: Results, axes: Axes) -> bool:
    """Validation NDCG@10 by N, the semantic tokens of an item."""
    found = {n: _first(results, f"small-n{n}" if n != 3 else "small") for n in (1, 2, 3, 4, 6)}
    known = {n: _mean(run) for n, run in found.items() if run is not None}
    bounds = [run["test"]["groups"]["all"]["NDCG@10"]["ci"] for run in found.values() if run is not None]
    axes.plot(list(known), list(known.values()), marker="o", label="setrec, small")
    axes.fill_between(list(known), [low for low, _ in bounds], [high for _, high in bounds], alpha=0.15, label="95 % over users")
    axes.set(xlabel="N, semantic tokens of an item", ylabel="validation NDCG@10", ylim=(0, None))
    return len(known) > 1


def beta(results: Results, axes: Axes) -> bool:
    """Validation NDCG@10 by beta, the weight of the semantic tokens."""
    for row in ("setrec", "setrec-plain", "small"):
        curve = ((_first(results, row) or {}).get("training") or {}).get("beta")
        if curve:
            axes.plot([float(value) for value in curve], list(curve.values()), label=row)
    axes.set(xlabel="beta, weight of the semantic tokens", ylabel="validation NDCG@10")
    return bool(axes.lines)


def popularity(results: Results, axes: Axes) -> bool:
    """Test NDCG@10 by how often the target occurs in training."""
    for row in ("setrec", "sasrec", "tiger", "p5-cid", "idgenrec", "text-knn-soft"):
        run = _first(results, row)
        if run is not None:
            groups = run["test"]["popularity"]
            names = [name.removeprefix("train count ") for name in groups]
            axes.plot(range(len(names)), [own["NDCG@10"] for own in groups.values()], marker="o", label=row)
            axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="training interactions of the target", ylabel="NDCG@10")
    return bool(axes.lines)


def size(results: Results, axes: Axes) -> bool:
    """Validation NDCG@10 by parameters, three widths a system; the area of a dot is the CPU time of the validation."""
    rows = {
        "setrec": ("small-d32", "small", "small-d128"),
        "setrec-t5": ("small-t5-d32", "small-t5-d64", "small-t5-d128"),
        "tiger": ("tiger-d32", "tiger-d64", "tiger-d128"),
    }
    for system, names in rows.items():
        runs = [run for run in (_first(results, name) for name in names) if run is not None]
        sizes = [
            run["training"]["parameters"] for name in names if (run := _first(results, name.replace("tiger-d128", "tiger"))) is not None
        ]
        if len(runs) == len(names):
            _with_intervals(axes, sizes, runs, label=system)
            axes.scatter(sizes, [_mean(run) for run in runs], [10 * run["test"]["cpu_seconds"] for run in runs])
    axes.set(xlabel="parameters (area: CPU seconds to answer)", ylabel="validation NDCG@10", xscale="log", ylim=(0, None))
    return bool(axes.containers)


def training(results: Results, axes: Axes) -> bool:
    """Validation NDCG@10 by training tokens: passes over the histories x items x tokens of an identifier."""
    for row in ("setrec", "setrec-plain", "setrec-t5", "sasrec", "gru4rec", "tiger", "idgenrec"):
        training = (_first(results, row) or {}).get("training") or {}
        if training.get("curve") and training.get("epoch_tokens"):
            read = [point["epoch"] * training["epoch_tokens"] for point in training["curve"]]
            label = f"{row} ({VALIDATION_USERS:,} users)" if row in ("tiger", "idgenrec") else row
            axes.plot(read, [point["ndcg@10"] for point in training["curve"]], marker=".", label=label)
    axes.set(xlabel="training tokens, each history once an epoch", ylabel="validation NDCG@10", xscale="log", ylim=(0, None))
    return bool(axes.lines)


def ablations(results: Results, axes: Axes) -> bool:
    """Validation NDCG@10 with one part of SETRec taken away."""
    parts = {"mask-released": "released\nmask", "unguided": "one\nquery", "no-cf": "no CF", "cf-only": "CF alone"}
    rows = {"whole": "small", **{name: f"small-{row}" for row, name in parts.items()}}
    known = {name: run for name, row in rows.items() if (run := _first(results, row)) is not None}
    axes.bar(list(known), [_mean(run) for run in known.values()], color="#4f6bed", label="setrec, small")
    _with_intervals(axes, range(len(known)), list(known.values()), fmt="none", color="black", label="95 % over users")
    axes.set(ylabel="validation NDCG@10")
    return len(known) > 1


def _map(row: str) -> Callable[[Results, Axes], bool]:
    def draw_map(results: Results, axes: Axes) -> bool:
        run = _first(results, f"map-{row}")
        if run is None:
            return False
        study = run["study"]
        names = sorted(set(study["department"]), key=study["department"].count, reverse=True)[:9]
        for name in [None, *names]:
            here = [place for place, own in enumerate(study["department"]) if (own not in names if name is None else own == name)]
            told = {"c": "#cccccc", "label": "others"} if name is None else {"label": name[:24] or "none"}
            axes.scatter([study["x"][place] for place in here], [study["y"][place] for place in here], 4, **told)
        axes.set(xticks=[], yticks=[])
        return True

    draw_map.__doc__ = f"Map (t-SNE) of {row}'s identifiers, coloured by department."
    return draw_map


FIGURES: dict[str, Callable[[Results, Axes], bool]] = {
    "beams": beams,
    "tokens": tokens,
    "beta": beta,
    "popularity": popularity,
    "ablations": ablations,
    "size": size,
    "training": training,
    "map-setrec": _map("setrec"),
    "map-tiger": _map("tiger"),
}


def draw(results: Results, folder: Path) -> list[str]:
    """Draws what can be drawn; returns the lines of the page."""
    lines, gone = [], []
    for name, function in FIGURES.items():
        figure, axes = plt.subplots(figsize=(5.4, 3.4), dpi=110, layout="constrained")
        if function(results, axes):
            axes.legend(fontsize=7, markerscale=1.5)
            axes.spines[["top", "right"]].set_visible(False)
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(folder / f"{name}.png", metadata={"Software": None})
            told = (function.__doc__ or "").splitlines()[0]
            lines += [f"![{told}](figures/{name}.png)", "", f"*{DOMAIN}. {told}*", ""]
        else:
            gone.append(name)
        plt.close(figure)
    return [*lines, *_evolution(results), *([f"Not run: {', '.join(gone)}."] if gone else [])]


def _evolution(results: Results) -> list[str]:
    """Identifiers from round to round, as a table."""
    run = _first(results, "evolution")
    if run is None:
        return ["Not run: identifiers from round to round."]
    study = run["study"]
    rounds = len(study["items"][0]["identifiers"])
    share = ", ".join(f"{value:.1%}" for value in study["changed"])
    lines = [f"**Identifiers from round to round** ({DOMAIN}; share of all that changed: {share})", ""]
    lines += ["| title | " + " | ".join(f"round {number}" for number in range(rounds)) + " |", "|---" * (rounds + 1) + "|"]
    for item in study["items"]:
        lines.append(f"| {item['title'].replace('|', ' ')[:60]} | " + " | ".join(item["identifiers"]) + " |")
    return [*lines, ""]
