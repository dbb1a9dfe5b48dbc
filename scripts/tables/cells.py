"""Every cell of every table, in one list: data, split, system, configuration, seeds.

A cell is one trained (or training-free) row of one domain. The order of `CELLS` is the order in which they run: cheap and telling first.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from genrec_hub.domain import Protocol, Stage


@dataclass(frozen=True)
class Cell:
    """One row of one domain.

    Attributes:
        table: in which it is shown.
        domain: folder of the data; "amazon14_toys@key-sorted" for histories in the order of their item ids.
        protocol: how it is split.
        row: name of the row, unique in its domain.
        system: how it is made, a name in `systems.SYSTEMS` or `studies.STUDIES`.
        config: arguments of the system.
        settings: fields of `recipes.Settings`.
        needs: rows of the same domain whose checkpoints it reads.
        stage: whose targets are asked for. Curves and ablations ask validation, so that test is left for the tables.
        seeds: one run each.
        note: what a reader has to know beside the row.
        twin: the cell that differs from this one in a fault alone.
    """

    table: str
    domain: str
    protocol: Protocol
    row: str
    system: str
    config: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    stage: Stage = "test"
    seeds: tuple[int, ...] = (0,)
    note: str = ""
    twin: str = ""

    @property
    def name(self) -> str:
        """The cell's folder."""
        return f"{self.domain}/{self.row}"


FREE = ("popularity", "item-knn", "text-knn-last", "text-knn-mean", "text-knn-max", "text-knn-recent", "text-knn-soft")
CODES = ("p5-cid", "tiger", "letter", "e4srec", "p5-semid", "p5-sid")
"""Identifier families that are code sequences."""
THREE = (0, 1, 2)
"""Seeds of the rows that train in less than 20 minutes and that a claim rests on."""

SEQUENCE = {"epochs": 10, "batch": 128, "rate": 2e-3, "every": 5}
"""Training of everything that is decoded token by token: the same backbone, the same passes."""
SETREC = {
    "hidden": 128,
    "semantic_tokens": 8,
    "semantic_widths": [],
    "residual": True,
    "decay": [0.1, 0.05, 0.02],
    "cf_decay": [1.5, 0.5, 0.15],
    "normalize": "slot",
    "beta": 0.3,
    "cold_score": 0.5,
    "fused_loss": 1.0,
    "spelling": 639,
    "spelling_length": 0.866,
    "crowding": 0.06,
    "cold_share": 0.15,
    "keep": 0.5,
    "max_items": 20,
}
SETREC_BETA = {"setrec_beauty": 0.5}
"""The weight of texts in training where validation has chosen another one than .3."""
SETREC_T5 = {"hidden": 64, "spelling": 127}
"""Where the T5 differs: half as wide, since an encoder reads every prefix of a history anew; as many tokens hold fewer numbers."""
SETREC_SETTINGS = {"epochs": 3, "batch": 128, "rate": 5e-4, "negatives": 1024}
IDGENREC = {"hidden": 128, "layers": 2, "dropout": 0.2, "vocabulary": 6000, "max_text": 48, "groups": 6}
LONG_IDS, LONG = {**IDGENREC, "hidden": 160, "dropout": 0.15}, {"epochs": 16, "every": 4}
"""IDGenRec on leave-one-out data, as in the README's results."""
TIMED = {"users": 100, "beams": 20}
"""The search of `generate()` against ours."""
PROMPTED = {"epochs": 2, "batch": 128, "rate": 2e-3}
"""Training on sentences, which starts from a recommender that was trained on bare IDs: each sentence is computed for itself and slow."""
SHORT = {"epochs": 4, "every": 2}
"""Training of ablations and curves: a third of the small SETRec's, the same for all of them."""


def _table_1(domain: str) -> Iterator[Cell]:
    """SETRec's Table 1: identifier families on one backbone, and what they have to beat. SETRec's own split by global time."""

    def cell(row: str, system: str = "", **more: Any) -> Cell:
        return Cell("table-1", domain, "given", row, system or row, **more)

    yield from (cell(row) for row in FREE)
    yield cell("sasrec")
    yield cell("gru4rec")
    weighted = {**SETREC, "beta": SETREC_BETA.get(domain, SETREC["beta"])}
    yield cell("setrec", config=weighted, settings=SETREC_SETTINGS, needs=("sasrec",))
    for row in CODES:
        if row != "p5-semid" or domain != "setrec_sports":  # which has no categories
            yield cell(row, settings=SEQUENCE, needs=("sasrec",) if row in ("letter", "e4srec") else ())
    yield cell("idgenrec", config=IDGENREC, settings=SEQUENCE)
    plain = {"hidden": IDGENREC["hidden"], "max_items": SETREC["max_items"]}
    epochs = {name: SEQUENCE[name] for name in ("epochs", "every")}
    yield cell("setrec-plain", "setrec", config=plain, settings=epochs, needs=("sasrec",), note="no spelling, no start; sizes as above")
    yield cell(
        "setrec-t5",
        config={**weighted, **SETREC_T5, "dropout": 0.3},
        settings=SETREC_SETTINGS,
        needs=("sasrec",),
        note="a small T5 from scratch as backbone",
    )
    yield cell("idgenrec-hf", "hf-beam", config=TIMED, needs=("idgenrec",), note="seconds alone")
    for row in ("setrec", "setrec-t5"):
        yield cell(f"{row}-seen-kept", "seen-kept", needs=("sasrec", row), note="seen items may be recommended, as published")


def _table_4(domain: str) -> Iterator[Cell]:
    """IDGenRec's Table 4: standard evaluation, leave-one-out in time order."""

    def cell(row: str, system: str = "", **more: Any) -> Cell:
        return Cell("table-4", domain, "leave-one-out", row, system or row, **more)

    yield from (cell(row) for row in FREE)
    yield cell("sasrec")
    yield cell("gru4rec")
    yield cell("setrec", settings={"every": 2}, needs=("sasrec",))
    yield cell("idgenrec", config=LONG_IDS, settings=LONG)
    for row in CODES:
        yield cell(row, settings=SEQUENCE, needs=("sasrec",) if row in ("letter", "e4srec") else ())
    yield cell("idgenrec-hf", "hf-beam", config=TIMED, needs=("idgenrec",), note="seconds alone")


def _tables_5_6(domain: str) -> Iterator[Cell]:
    """IDGenRec's Tables 5 and 6: what is trained, and whose IDs the prompt names. Rec-only is the row idgenrec of Table 4."""
    told = "its recommender stays untrained, the published one is a pretrained T5"
    for row, strategy, note in (("id-only", "generator", told), ("alternate", "alternate", "")):
        yield Cell("table-5", domain, "leave-one-out", row, "idgenrec", {**LONG_IDS, "strategy": strategy}, LONG, note=note)
    for kind in ("item", "user", "both"):
        yield Cell("table-6", domain, "leave-one-out", f"prompt-{kind}", "prompted", {"prompt": kind}, PROMPTED, ("idgenrec",))


def _artefacts(domain: str) -> Iterator[Cell]:
    """The size of the two published artefacts: each switched on, beside its twin, which is alike but for it."""

    def cell(where: str, row: str, system: str, **more: Any) -> Cell:
        return Cell("artefacts", where, "leave-one-out", row, system, **more)

    needs = ("idgenrec",)
    yield cell(domain, "prompt-both", "prompted", config={"prompt": "both"}, settings=PROMPTED, needs=needs)
    told = "ARTEFACT: user IDs written about the whole history, its targets included"
    leak = {"prompt": "both", "leak": True}
    yield cell(domain, "leaky-user-id", "prompted", config=leak, settings=PROMPTED, needs=needs, note=told, twin=f"{domain}/prompt-both")
    there, told = f"{domain}@key-sorted", "ARTEFACT: histories sorted by item id"
    yield cell(there, "item-knn", "item-knn", note=told, twin=f"{domain}/item-knn")
    also = f"{told}, and only larger ids than the history's may come"
    yield cell(there, "item-knn-larger", "item-knn-larger", note=also, twin=f"{domain}/item-knn")
    yield cell(there, "sasrec", "sasrec", note=told, twin=f"{domain}/sasrec")
    yield cell(there, "idgenrec", "idgenrec", config=LONG_IDS, settings=LONG, note=told, twin=f"{domain}/idgenrec")


def _curves(domain: str) -> Iterator[Cell]:
    """Ablations and curves of the small SETRec, all alike but for one thing, on validation."""

    def cell(row: str, **config: Any) -> Cell:
        needs = ("sasrec",) if config.get("cf", True) else ()
        return Cell("curves", domain, "given", row, "setrec", config, SHORT, needs, "validation")

    yield cell("small")
    yield cell("small-mask-released", mask="released")
    yield cell("small-unguided", query_guidance=False)
    yield cell("small-no-cf", cf=False)
    yield Cell("curves", domain, "given", "small-cf-only", "setrec-beta", {"beta": 0.0}, {}, ("small",), "validation")
    for tokens in (1, 2, 4, 6):
        yield cell(f"small-n{tokens}", semantic_tokens=tokens)
    for hidden in (32, 128):
        yield cell(f"small-d{hidden}", hidden=hidden)
    for hidden in (32, 64, 128):
        t5 = {"hidden": hidden, "semantic_tokens": 3, "normalize": "slot", "fused_loss": 0.5, "beta": 0.3, "dropout": 0.3}
        yield Cell("curves", domain, "given", f"small-t5-d{hidden}", "setrec-t5", t5, SHORT, ("sasrec",), "validation")
    for hidden in (32, 64):
        yield Cell("curves", domain, "given", f"tiger-d{hidden}", "tiger", {"hidden": hidden}, SEQUENCE, (), "validation")
    yield Cell("curves", domain, "given", "tiger-d128", "finished", {}, {}, ("tiger",), "validation")


def _studies(domain: str) -> Iterator[Cell]:
    """What is no row of a table: beam against exact search, IDs from round to round, maps."""
    for row in ("tiger", "idgenrec"):
        yield Cell(
            "studies",
            domain,
            "given",
            f"optima-{row}",
            "beam-optima",
            {"widths": [10, 20, 50, 100], "users": 100},
            {},
            (row,),
            "validation",
        )
    for row in ("setrec", "tiger"):
        yield Cell("studies", domain, "given", f"map-{row}", "map", {"items": 2000}, {}, (row,), "validation")
    yield Cell("studies", domain, "given", "evolution", "evolution", {**IDGENREC, "rounds": 3}, {**SEQUENCE, "epochs": 2}, (), "validation")


SETREC_DOMAINS = ("setrec_toys", "setrec_beauty", "setrec_sports")
IDGENREC_DOMAINS = ("amazon14_beauty", "amazon14_toys", "yelp_2019")
CLAIMED = ("setrec", "tiger", "p5-cid", "gru4rec", "sasrec")
"""Rows of setrec_toys that run with three seeds; each trains in less than 20 minutes."""


def _all() -> Iterator[Cell]:
    for domain in SETREC_DOMAINS:
        for cell in _table_1(domain):
            yield replace(cell, seeds=THREE) if domain == "setrec_toys" and cell.row in CLAIMED else cell
    yield from _curves("setrec_toys")
    yield from _studies("setrec_toys")
    for domain in IDGENREC_DOMAINS:
        yield from _table_4(domain)
    yield from _tables_5_6("amazon14_beauty")
    yield from _artefacts("amazon14_toys")


CELLS: tuple[Cell, ...] = tuple(_all())


def quick(cell: Cell) -> Cell:
    """The same cell in seconds: one epoch of a model that is too small for anything."""
    config, settings = dict(cell.config), dict(cell.settings)
    for name, least in (("hidden", 32), ("vocabulary", 600), ("users", 4), ("items", 60), ("rounds", 2), ("groups", 2), ("spelling", 63)):
        if name in config:
            config[name] = least
    if "widths" in config:
        config["widths"] = [5, 10]
    if cell.system == "idgenrec":
        config["writer_epochs"] = 1
    if cell.system == "letter":
        config["epochs"] = 2
    if cell.system.startswith("setrec") and config.get("spelling"):
        config["semantic_tokens"] = 14  # 384 + 63 + 1 numbers = 14 tokens x 32
    return replace(cell, config=config, settings={**settings, "epochs": 1, "batch": 32, "every": 1}, seeds=cell.seeds[:1])
