"""scripts/evaluate_zero_shot.py: its cells equal `evaluate`, finished cells are kept, a changed checkpoint is asked again."""

import json

import numpy as np
import pytest

from genrec_hub.evaluation import evaluate
from genrec_hub.metrics import ndcg, paired_difference
from genrec_hub.pipeline import TASK, RecommendationPipeline
from genrec_hub.processing_setrec import SETRecProcessor

TEXT = [f"text-knn-{how}" for how in ("last", "mean", "max", "recent", "soft")]


@pytest.fixture
def zero_shot(script, monkeypatch, encoder):
    """The script on an encoder that needs no download."""
    module = script("evaluate_zero_shot")
    monkeypatch.setattr(module, "text_vectors", lambda catalog: encoder.encode(catalog.lines))

    def load(folder):
        from transformers import AutoModel

        model = AutoModel.from_pretrained(folder)
        return RecommendationPipeline(model=model, processor=SETRecProcessor(None, None, encoder), task=TASK)

    monkeypatch.setattr(module, "load", load)
    return module


@pytest.fixture
def place(tmp_path, synthetic_domain, tiny_setrec, encoder):
    """Two domains (the second with repeats in it) and a checkpoint; gives the command line."""
    synthetic_domain(50, 40, 0).save(tmp_path / "data" / "shop")
    other = synthetic_domain(30, 40, 1)
    other.sequences.items[other.sequences.offsets[1:6] - 1] = other.sequences.items[other.sequences.offsets[:5]]
    other.save(tmp_path / "data" / "stall")
    tiny_setrec().save_pretrained(tmp_path / "model")
    SETRecProcessor(None, None, encoder).save_pretrained(tmp_path / "model")
    line = ["--source", tmp_path / "data", "--domains", "shop,stall", "--models", tmp_path / "model", "--output", tmp_path / "out"]
    return tmp_path, [*map(str, line), "--bootstrap", "50"]


def asked(module, monkeypatch):
    """The rows that are really asked, as a growing list."""
    rows, real = [], module.rank

    def spy(rankers, *more):
        rows.extend(rankers)
        return real(rankers, *more)

    monkeypatch.setattr(module, "rank", spy)
    return rows


def test_every_cell_equals_evaluate(zero_shot, place, encoder, capsys):
    folder, line = place
    assert zero_shot.main([*line, "--publish"]) == 0
    objects = json.loads((folder / "out" / "zero_shot.json").read_text())
    assert [(entry["domain"], entry["exclude_seen"]) for entry in objects] == [
        ("shop", True),
        ("shop", False),
        ("stall", True),
        ("stall", False),
    ]
    for entry in objects:
        domain = zero_shot.Domain.from_folder(folder / "data" / entry["domain"])
        expected = evaluate(
            zero_shot.load(folder / "model"),
            domain,
            exclude_seen=entry["exclude_seen"],
            zero_shot=True,
            baselines=True,
            vectors=encoder.encode(domain.catalog.lines),
            bootstrap=50,
        )
        for name in ("metrics", "ci", "baselines", "groups", "users", "items", "repeat_targets", "fingerprint", "zero_shot"):
            assert entry[name] == expected[name], name
        assert ("repeat-last" in entry["baselines"]) == (not entry["exclude_seen"])
        best = max(TEXT, key=lambda row: entry["baselines"][row]["NDCG@10"])
        assert entry["against"]["row"] == best
        pair, theirs = entry["against"]["NDCG@10"], entry["baselines"][best]["NDCG@10"]
        assert pair["difference"] == pytest.approx(entry["metrics"]["NDCG@10"] - theirs)
        assert pair["ratio"] == pytest.approx(entry["metrics"]["NDCG@10"] / theirs)
        assert pair["ci"][0] <= pair["difference"] <= pair["ci"][1]
    assert [entry["repeat_targets"] for entry in objects] == [0, 0, 5, 5]
    assert [entry["users"] for entry in objects] == [50, 50, 25, 30]
    table = (folder / "out" / "zero_shot.md").read_text()
    assert capsys.readouterr().out.strip() == table.strip()
    assert "| text-knn-soft | ." in table
    published = json.loads((folder / "model" / "zero_shot.json").read_text())
    assert [{**entry, "model": None} for entry in published] == [{**entry, "model": None} for entry in objects]


def test_finished_cells_are_kept(zero_shot, place, monkeypatch):
    folder, line = place
    rows = asked(zero_shot, monkeypatch)
    assert zero_shot.main([*line, "--publish"]) == 0
    first, count = (folder / "out" / "zero_shot.json").read_text(), len(rows)
    assert count == 4 * 8 + 2
    assert zero_shot.main([*line, "--publish"]) == 0  # the published file is no part of what a checkpoint is
    assert len(rows) == count
    assert (folder / "out" / "zero_shot.json").read_text() == first
    config = folder / "model" / "config.json"
    config.write_text(config.read_text().replace('"scale": 10.0', '"scale": 11.0'))
    assert zero_shot.main(line) == 0
    assert rows[count:] == [str(folder / "model")] * 4


def test_an_interrupted_run_goes_on(zero_shot, place, monkeypatch):
    _, line = place
    rows, real = asked(zero_shot, monkeypatch), zero_shot.load
    with monkeypatch.context() as patch:
        patch.setattr(zero_shot, "load", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            zero_shot.main(line)
    done = list(rows)
    assert done == [*TEXT, "popularity", "item-knn"]
    assert zero_shot.load is real
    assert zero_shot.main(line) == 0
    assert len(rows) == 4 * 8 + 2  # nothing was asked twice


def test_a_domain_of_the_training_is_said(zero_shot, place):
    folder, line = place
    (folder / "model" / "training.json").write_text(json.dumps({"train": {"shop": {"users": 50}}}))
    assert zero_shot.main(line) == 0
    objects = json.loads((folder / "out" / "zero_shot.json").read_text())
    assert [entry["trained_on"] for entry in objects] == [True, True, False, False]
    assert (folder / "out" / "zero_shot.md").read_text().count("(trained on it)") == 2


def test_without_models_and_with_a_sasrec(zero_shot, place):
    from genrec_hub import SASRecConfig, SASRecModel

    folder, line = place
    fingerprint = zero_shot.Domain.from_folder(folder / "data" / "shop").catalog.fingerprint
    SASRecModel(SASRecConfig(num_items=40, hidden_size=8, catalog_fingerprint=fingerprint)).save_pretrained(folder / "cf")
    line[line.index("--models") + 1] = ""
    assert zero_shot.main([*line, "--sasrec", f"shop={folder / 'cf'}"]) == 0
    objects = json.loads((folder / "out" / "zero_shot.json").read_text())
    assert ["sasrec" in entry["baselines"] for entry in objects] == [True, True, False, False]
    assert all(entry["model"] is None and entry["metrics"] == {} for entry in objects)


def test_faults_are_said(zero_shot, place, caplog):
    folder, line = place
    for change, sentence in (
        (("--models", "nowhere"), "No embedded checkpoint 'nowhere'"),
        (("--domains", "nowhere"), "There is no file"),
    ):
        broken = [change[1] if before == change[0] else word for before, word in zip(["", *line], line, strict=False)]
        assert zero_shot.main(broken) == 1
        assert sentence in caplog.text
    assert zero_shot.main([*line, "--sasrec", str(folder)]) == 1
    assert "write the domain and the folder" in caplog.text


def test_paired_difference_is_the_bootstrap_of_the_difference():
    rng = np.random.default_rng(0)
    theirs = rng.random(300)
    ours = theirs + 0.05 + 0.01 * rng.normal(size=300)
    pair = paired_difference(ours, theirs, samples=200, seed=4)
    rng = np.random.default_rng(4)
    draws = [rng.integers(0, 300, 300) for _ in range(200)]
    assert pair["ci"] == pytest.approx(np.quantile([(ours - theirs)[rows].mean() for rows in draws], [0.025, 0.975]))
    assert pair["ratio_ci"] == pytest.approx(np.quantile([ours[rows].mean() / theirs[rows].mean() for rows in draws], [0.025, 0.975]))
    assert pair["ci"][1] - pair["ci"][0] < 0.01  # far narrower than the rows' own intervals of about .07
    assert paired_difference(ours, np.zeros(300), samples=5)["ratio"] is None
    with pytest.raises(ValueError, match="should answer the same users"):
        paired_difference(ours, theirs[1:])
    ranks = [np.array([1]), np.array([20])]
    assert ndcg(ranks, 10).tolist() == [1.0, 0.0]
