import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from genrec_hub.configuration_sasrec import SASRecConfig
from genrec_hub.modeling_sasrec import SASRecModel, shift_score

V = 12


def sasrec(seed=0, **config):
    """A tiny model in evaluation mode whose parameters are all away from their start."""
    torch.manual_seed(seed)
    model = SASRecModel(SASRecConfig(**{"num_items": V, "hidden_size": 16, "max_length": 6, "dropout": 0.0, **config})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        model.items.weight[0] = 0
    return model


histories = st.lists(st.lists(st.integers(0, V - 1), max_size=6), min_size=1, max_size=4)


@pytest.mark.parametrize("cosine", [True, False])
@torch.no_grad()
def test_the_full_softmax_against_brute_force(cosine):
    model = sasrec(cosine=cosine, temperature=0.2)
    items = torch.tensor([[0, 3, 1, 7], [5, 2, 9, 4]])
    labels = torch.tensor([[-100, 0, 6, 2], [1, 8, 3, 10]])
    states = model.encode(items)
    total = 0.0
    for row, column in (labels >= 0).nonzero().tolist():
        scores = []
        for item in range(V):
            state, vector = states[row, column], model.items.weight[item + 1]
            dot = float((state * vector).sum())
            scores.append(dot / float(state.norm() * vector.norm()) / 0.2 if cosine else dot)
        total += math.log(sum(math.exp(score) for score in scores)) - scores[labels[row, column]]
    assert float(model(items, labels=labels).loss) == pytest.approx(total / 7, rel=1e-5)
    assert float(model(items, labels=labels, num_items_in_batch=14).loss) == pytest.approx(total / 14, rel=1e-5)
    everything = model(items, labels=labels, candidates=torch.arange(V)).loss
    assert float(everything) == pytest.approx(total / 7, rel=1e-5)


@torch.no_grad()
def test_own_items_are_no_negatives_but_a_repeated_target_is_a_target():
    model = sasrec()
    items, labels = torch.tensor([[4, 8, 2]]), torch.tensor([[1, 0, 2]])  # candidates 3, 7, 9: the second target is item 3 = id 4 again
    candidates, own = torch.tensor([3, 7, 9]), torch.tensor([[True, True, False]])
    scores = model.logits(model.encode(items)[0], candidates + 1)
    expected = [F.cross_entropy(scores[0, [1, 2]], torch.tensor(0)), F.cross_entropy(scores[1, [0, 2]], torch.tensor(0))]
    expected.append(F.cross_entropy(scores[2, [2]], torch.tensor(0)))
    with_own = model(items, labels=labels, candidates=candidates, own=own).loss
    assert float(with_own) == pytest.approx(float(sum(expected)) / 3, abs=1e-6)
    assert own.tolist() == [[True, True, False]]  # the caller's tensor is not written to
    assert float(model(items, labels=labels, candidates=candidates).loss) > float(with_own)


@given(histories, st.integers(0, 3))
@settings(max_examples=20)
@torch.no_grad()
def test_padding_says_nothing(drawn, left):
    model = sasrec(max_length=9)
    length = max(map(len, drawn)) + left
    padded = torch.tensor([[0] * (length - len(own)) + [item + 1 for item in own] for own in drawn], dtype=torch.long).view(
        len(drawn), length
    )
    together = model.encode(padded)
    for row, own in enumerate(drawn):
        if own:
            alone = model.encode(torch.tensor([[item + 1 for item in own]]))
            assert (together[row, -len(own) :] - alone[0]).abs().max() <= 1e-5


@given(histories)
@settings(max_examples=20)
@torch.no_grad()
def test_scores_of_histories(drawn):
    model = sasrec()
    scores = model.score([np.array(own, np.int64) for own in drawn], batch_size=2)
    assert scores.shape == (len(drawn), V)
    for row, own in enumerate(drawn):
        if own:
            alone = model.logits(model.encode(torch.tensor([own]) + 1)[0, -1])
            assert torch.allclose(scores[row], alone, atol=1e-5)
        else:
            assert not scores[row].any()


@torch.no_grad()
def test_only_the_last_items_are_read_and_none_from_the_future():
    model = sasrec()
    long = np.array([1, 5, 2, 8, 3, 9, 4, 7])
    assert torch.allclose(model.score([long]), model.score([long[-6:]]), atol=1e-6)
    one, other = model.encode(torch.tensor([[3, 4, 5, 6]])), model.encode(torch.tensor([[3, 4, 9, 6]]))
    assert torch.equal(one[:, :2], other[:, :2])
    assert not torch.allclose(one[:, 2:], other[:, 2:], atol=1e-3)


@pytest.mark.parametrize("cosine", [True, False])
@torch.no_grad()
def test_save_and_load(tmp_path, cosine):
    model = sasrec(cosine=cosine, catalog_fingerprint="abc")
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="4KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    for folder in ("one", "many"):
        loaded = AutoModel.from_pretrained(tmp_path / folder)
        assert type(loaded) is SASRecModel
        assert loaded.config.catalog_fingerprint == "abc"
        assert loaded.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(values, model.state_dict()[name]) for name, values in loaded.state_dict().items())
        asked = torch.tensor([[0, 3, 1], [2, 5, 9]])
        assert torch.equal(loaded(asked).hidden_states, model(asked).hidden_states)
    config = AutoConfig.from_pretrained(tmp_path / "one")
    assert SASRecConfig.from_dict(json.loads(config.to_json_string(use_diff=False))).to_dict() == config.to_dict()


def test_every_parameter_gets_a_gradient():
    model = sasrec().train()
    model(
        torch.tensor([[0, 3, 1, 7, 2, 6], [5, 2, 9, 4, 1, 8]]), labels=torch.tensor([[-100, 0, 6, 2, 1, 1], [1, 8, 3, 10, 4, 5]])
    ).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert not model.items.weight.grad[0].any()


def planted(users=300, items=60, seed=0):
    """Histories that walk inside one of six groups of items whose numbers say nothing (shuffled)."""
    rng = np.random.default_rng(seed)
    groups = rng.permutation(items).reshape(6, -1)
    return [torch.from_numpy(rng.permutation(groups[rng.integers(6)])[:6]) for _ in range(users)]


def test_shifted_vectors_are_caught():
    """A CF matrix whose row r is the vector of item r + 1, as SETRec's released ones are (methods.md 0.6)."""
    sequences = planted()
    torch.manual_seed(0)
    model = SASRecModel(SASRecConfig(num_items=60, hidden_size=16, max_length=6, dropout=0.0))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    items = torch.stack(sequences)
    for _ in range(25):
        optimizer.zero_grad()
        model(items[:, :-1] + 1, labels=items[:, 1:]).loss.backward()
        optimizer.step()
    vectors = model.item_vectors()
    assert vectors.shape == (60, 16)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(60), atol=1e-5)
    aligned = shift_score(vectors, sequences)
    assert aligned > 0.5
    for shift in (1, -1, 7):
        assert abs(shift_score(torch.roll(vectors, -shift, 0), sequences)) < 0.15
        assert abs(shift_score(vectors, sequences, shift=shift)) < 0.15
    assert shift_score(torch.roll(vectors, -1, 0), sequences, shift=-1) == pytest.approx(aligned, abs=0.1)
    assert abs(shift_score(torch.randn(60, 16, generator=torch.Generator().manual_seed(1)), sequences)) < 0.15
