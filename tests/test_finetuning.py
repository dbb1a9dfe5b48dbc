"""Few-shot: shares that nest, a CF slot that leaves the semantic ones as they were, the script from end to end."""

import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from transformers import AutoModel

from genrec_hub import finetuning
from genrec_hub.finetuning import add_cf_slot, few_shot, few_shot_settings, finetune_setrec
from genrec_hub.pipeline import TASK, RecommendationPipeline
from genrec_hub.processing_setrec import SETRecProcessor
from genrec_hub.recipes import Settings


def test_a_share_of_the_users_keeps_their_histories(synthetic_domain):
    domain = synthetic_domain(40, 30, 0)
    small, large = few_shot(domain, 0.1, 3), few_shot(domain, 0.5, 3)
    assert (len(small), len(large), len(few_shot(domain, 1.0))) == (4, 20, 40)
    assert set(small.users) < set(large.users) < set(domain.users)
    assert small.catalog is domain.catalog
    for row, user in enumerate(large.users):
        there = domain.users.index(user)
        assert large.sequences[row].tolist() == domain.sequences[there].tolist()
        span, whole = large.sequences.offsets[row : row + 2], domain.sequences.offsets[there : there + 2]
        assert large.times[slice(*span)].tolist() == domain.times[slice(*whole)].tolist()
    assert few_shot(domain, 0.1, 4).users != small.users
    for share in (0, -0.1, 1.5):
        with pytest.raises(ValueError, match="share of the users"):
            few_shot(domain, share)


@pytest.mark.parametrize("normalize", ["none", "slot", "joint"])
@pytest.mark.parametrize("options", [{}, {"residual": True}, {"residual": True, "decay": [1.5, 0.2]}, {"prior": True}])
def test_without_cf_vectors_the_wider_model_answers_as_before(tiny_setrec, normalize, options):
    model = tiny_setrec(normalize=normalize, semantic_widths=(), **options)
    wider = add_cf_slot(model, 8, "f" * 64, beta=0.4).eval()
    assert wider.config.slots == ["cf", "sem1", "sem2", "sem3"]
    assert (model.config.cf_size, model.config.catalog_fingerprint) == (0, "")
    semantic, mask = torch.randn(3, 5, 16), torch.ones(3, 5, dtype=torch.bool)
    mask[0, :3] = False
    absent = torch.zeros(3, 5, dtype=torch.bool)
    shown = torch.randn(3, 7, 16)
    with torch.no_grad():
        before = model.contributions(model(semantic, mask).tokens[:, 0], shown)
        after = wider.contributions(
            wider(semantic, mask, torch.zeros(3, 5, 8), absent).tokens[:, 0], shown, torch.zeros(3, 7, 8), absent[:, :1].expand(-1, 7)
        )
    assert after[..., 0].abs().max() == 0
    ratio = after[..., 1:] / before
    if normalize == "joint" and options.get("prior"):  # the prior stands beside what the empty CF token shortens
        assert (wider.prior[1:] * 0.4).detach().numpy() == pytest.approx(model.prior.detach().numpy(), abs=1e-6)
    elif normalize == "joint":  # the empty CF token takes its share of the common length
        assert (ratio > 0).all()
        assert (ratio - ratio[:, :1, :1]).abs().max() < 1e-3
    else:
        assert ratio.numpy() == pytest.approx(np.full(ratio.shape, 0.4), rel=1e-3)


def test_a_second_cf_slot_is_refused(tiny_setrec):
    with pytest.raises(ValueError, match="has a CF slot already"):
        add_cf_slot(tiny_setrec(cf_size=8), 8, "")


def test_weights_per_slot_keep_their_places(tiny_setrec):
    wider = add_cf_slot(tiny_setrec(slot_weights=[1.0, 0.5, 0.25], normalize="slot"), 8, "")
    assert wider.config.slot_weights == [1.0, 1.0, 0.5, 0.25]
    assert len(wider.log_scale) == 4


def test_few_users_train_longer():
    assert few_shot_settings(30_000, Settings()).epochs == 24
    few = few_shot_settings(2_000, Settings(seed=5))
    assert (few.batch, few.epochs, few.seed) == (64, 64, 5)
    assert few_shot_settings(10, Settings()).epochs == 100


def test_finetune(tmp_path, synthetic_domain, tiny_setrec, encoder, monkeypatch):
    monkeypatch.setattr(finetuning, "few_shot_settings", lambda users, chosen: Settings(epochs=1, batch=16))
    domain, model = synthetic_domain(60, 40, 0), tiny_setrec(residual=True, semantic_widths=(), normalize="joint")
    before = {name: values.clone() for name, values in model.state_dict().items()}
    settings = Settings(epochs=2, batch=16, rate=1e-3)
    report = finetune_setrec(model, SETRecProcessor(None, None, encoder), domain, tmp_path / "tuned", settings, fused_loss=0.5)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert len(report["curve"]) == 2
    tuned, processor = AutoModel.from_pretrained(tmp_path / "tuned"), SETRecProcessor.from_pretrained(tmp_path / "tuned")
    assert (tuned.config.has_cf, tuned.config.fused_loss) == (True, 0.5)
    assert tuned.config.beta == max(report["beta"], key=report["beta"].get)
    assert tuned.config.catalog_fingerprint == processor.catalog.fingerprint == domain.catalog.fingerprint
    assert set(report["keep"]) == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert tuned.config.cold_score in report["cold_score"]
    known = domain.split().popularity(40) > 0
    assert processor.features["has_cf"].tolist() == known.tolist()
    assert processor.features["cf"].shape == (40, 64)
    plain = finetune_setrec(
        model,
        SETRecProcessor(None, None, encoder),
        domain,
        tmp_path / "plain",
        settings,
        sasrec=tmp_path / "tuned" / "cf",
        cold_share=0,
        cold_score=0,
    )
    assert "cold_score" not in plain
    other = synthetic_domain(20, 40, 1)
    with pytest.raises(ValueError, match="trained on another catalogue"):
        finetune_setrec(model, SETRecProcessor(None, None, encoder), other, tmp_path / "x", settings, sasrec=tmp_path / "tuned" / "cf")
    late = Settings(protocol="global-time")
    with pytest.raises(ValueError, match=r"cf was trained under leave-one-out"):
        finetune_setrec(model, SETRecProcessor(None, None, encoder), domain, tmp_path / "x", late, sasrec=tmp_path / "tuned" / "cf")


def test_the_script(tmp_path, script, synthetic_domain, tiny_setrec, encoder, monkeypatch, capsys):
    finetune = script("finetune")

    def load(name):
        model = AutoModel.from_pretrained(name)
        processor = SETRecProcessor.from_pretrained(name)
        processor.encoder = encoder
        return RecommendationPipeline(model=model, processor=processor, task=TASK)

    monkeypatch.setattr(finetune, "load", load)
    monkeypatch.setattr(finetune, "text_vectors", lambda catalog: encoder.encode(catalog.lines))
    synthetic_domain(60, 40, 0).save(tmp_path / "shop")
    tiny_setrec(residual=True, semantic_widths=()).save_pretrained(tmp_path / "foundation")
    SETRecProcessor(None, None, encoder).save_pretrained(tmp_path / "foundation")
    line = ["--domain", tmp_path / "shop", "--model", tmp_path / "foundation", "--shares", "0.2,0.5", "--output", tmp_path / "out"]
    line = [*map(str, line), "--epochs", "1", "--batch", "16", "--bootstrap", "20", "--stage", "validation"]
    monkeypatch.setattr(finetune, "few_shot_settings", lambda users, chosen: Settings(epochs=1, batch=16))
    assert finetune.main(line) == 0
    objects = json.loads((tmp_path / "out" / "few_shot.json").read_text())
    assert [(entry["share"], entry["training_users"], entry["users"]) for entry in objects] == [(0.2, 12, 60), (0.5, 30, 60)]
    rows = {"zero-shot", "sasrec", "popularity", "item-knn", *(f"text-knn-{how}" for how in ("last", "mean", "max", "recent", "soft"))}
    for entry in objects:
        assert set(entry["baselines"]) == rows
        sasrec = entry["baselines"]["sasrec"]["NDCG@10"]
        assert entry["against"]["sasrec"]["difference"] == pytest.approx(entry["metrics"]["NDCG@10"] - sasrec)
        assert entry["training"]["setrec"]["curve"]
    assert objects[0]["baselines"]["zero-shot"] == objects[1]["baselines"]["zero-shot"]  # it knows nothing of the share
    assert objects[0]["baselines"]["popularity"] != objects[1]["baselines"]["popularity"]
    assert capsys.readouterr().out.strip() == (tmp_path / "out" / "few_shot.md").read_text().strip()
    monkeypatch.setattr(finetune, "finetune_setrec", None)
    monkeypatch.setattr(finetune, "train_sasrec", None)
    assert finetune.main(line) == 0  # what is finished is not trained again
    again = json.loads((tmp_path / "out" / "few_shot.json").read_text())
    assert [entry["metrics"] for entry in again] == [entry["metrics"] for entry in objects]
    assert finetune.main([*line, "--shares", "2"]) == 1


def test_the_table_of_a_split_with_several_targets(script):
    finetune = script("finetune")
    metrics = {"Recall@10": 0.25, "NDCG@10": 0.125}
    against = {"ratio": 2.0, "ratio_ci": [1.5, 2.5]}
    entry = {"domain": "shop", "users": 4, "stage": "test", "share": 0.5, "training_users": 2, "metrics": metrics}
    entry |= {"baselines": {"sasrec": metrics}, "against": {"sasrec": against, "zero-shot": {"ratio": None}}}
    lines = finetune.markdown([entry]).splitlines()
    assert "| **SETRec fine-tuned** | .2500 / .1250 |" in lines
    assert "| fine-tuned / sasrec, NDCG@10 | 2.00 (1.50 to 2.50) |" in lines
    assert "| fine-tuned / zero-shot, NDCG@10 | - |" in lines


def test_a_share_of_other_options_is_refused(script, tmp_path):
    finetune = script("finetune")
    names = {"model": "setrec-foundation", "protocol": "leave-one-out", "epochs": None, "batch": None, "rate": None, "negatives": None}
    path = tmp_path / "share-1" / "options.json"
    finetune.refuse_others(path, Namespace(**names, seed=0, config={}))
    finetune.refuse_others(path, Namespace(**names, seed=0, config={}))
    with pytest.raises(ValueError, match="was begun with seed 0: give another --output"):
        finetune.refuse_others(path, Namespace(**names, seed=7, config={}))
