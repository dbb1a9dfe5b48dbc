import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genrec_hub import grounding
from genrec_hub.grounding import NearIndex, near_index, top_k


def best(scores, k, excluded=(), allowed=None):
    """Rows by falling score, equal ones by rising row; brute force."""
    rows = [r for r in range(len(scores)) if r not in excluded and (allowed is None or allowed[r])]
    return sorted(rows, key=lambda r: (-scores[r], r))[:k]


@st.composite
def questions(draw):
    """Small whole numbers, so that many scores are equal and all sums are exact."""
    size, width = draw(st.integers(1, 14)), draw(st.integers(1, 3))
    numbers = st.integers(-2, 2).map(float)
    index = torch.tensor(draw(st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=size, max_size=size)))
    queries = torch.tensor(draw(st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=1, max_size=3)))
    rows = st.lists(st.integers(0, size - 1), max_size=size)
    excluded = draw(st.none() | st.lists(rows, min_size=len(queries), max_size=len(queries)))
    allowed = draw(st.none() | st.lists(st.booleans(), min_size=size, max_size=size))
    return queries, index, draw(st.integers(1, 16)), excluded, allowed, draw(st.integers(1, 20))


@given(questions())
def test_the_best_items_against_brute_force(drawn):
    queries, index, k, excluded, allowed, chunk = drawn
    scores, rows = top_k(queries, index, k, excluded, None if allowed is None else torch.tensor(allowed), chunk)
    whole = queries @ index.T
    assert rows.shape == scores.shape
    assert rows.shape[1] == min(k, len(index))
    for user in range(len(queries)):
        expected = best(whole[user].tolist(), k, () if excluded is None else excluded[user], allowed)
        assert [row for row in rows[user].tolist() if row >= 0] == expected
        assert rows[user, len(expected) :].tolist() == [-1] * (rows.shape[1] - len(expected))
        assert scores[user, : len(expected)].tolist() == [whole[user, row] for row in expected]
        assert bool((scores[user, len(expected) :] == -torch.inf).all())


@pytest.mark.parametrize("chunk", [7, 64, 300, 262_144])
def test_ties_at_the_cut_go_to_the_lower_rows(chunk):
    """With hundreds of equal scores torch.topk alone picks any of them."""
    rows = top_k(torch.ones(2, 3), torch.ones(300, 3), 5, chunk=chunk)[1]
    assert rows.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_nothing_left():
    scores, rows = top_k(torch.ones(1, 2), torch.ones(3, 2), 2, excluded=[[0, 1, 2]])
    assert rows.tolist() == [[-1, -1]]
    assert bool((scores == -torch.inf).all())
    scores, rows = top_k(torch.ones(1, 2), torch.ones(3, 2), 2, allowed=torch.zeros(3, dtype=torch.bool))
    assert rows.tolist() == [[-1, -1]]
    scores, rows = top_k(torch.ones(1, 2), torch.ones(0, 2), 2)
    assert not (rows >= 0).any()


# One score in three forms: tokens, latent vectors, contributions


def catalogue(seed=0, size=200, cf=6):
    generator = torch.Generator().manual_seed(seed)
    semantic = torch.nn.functional.normalize(torch.randn(size, 16, generator=generator), dim=-1)
    has_cf = torch.rand(size, generator=generator) > 0.3
    return {"semantic": semantic, "cf": torch.randn(size, cf, generator=generator) * has_cf[:, None], "has_cf": has_cf}


def forms(tiny_setrec, features, **config):
    generated, out = None, {}
    for form in ("token", "latent"):
        model = tiny_setrec(grounding=form, **config)
        if generated is None:
            generated = model.recommend_tokens([np.array([3, 1]), np.array([], np.int64), np.array([5, 9, 2])], features)
        index = model.index(**features)
        out[form] = (model, index, model.ground(generated) @ index.T, model.ground_constant(generated))
    return generated, out


@pytest.mark.parametrize("cf", ["vectors", "holes", "absent", "no slot"])
@pytest.mark.parametrize(
    "options", [{}, {"slot_weights": True, "beta": 0.3, "normalize": "slot"}, {"semantic_widths": ()}, {"residual": True}, {"prior": True}]
)
def test_three_forms_of_one_score(tiny_setrec, cf, options):
    features = catalogue()
    if cf == "vectors":
        del features["has_cf"]
    elif cf != "holes":
        features = {"semantic": features["semantic"]}
    options = dict(options)
    if options.pop("slot_weights", False):
        options["slot_weights"] = [0.5, 1.5, 2.0, 0.25][cf == "no slot" :]
    generated, out = forms(tiny_setrec, features, cf_size=0 if cf == "no slot" else 6, **options)
    model, token_index, token_scores, nothing = out["token"]
    _, latent_index, latent_scores, constant = out["latent"]
    assert token_index.shape[1] != latent_index.shape[1]
    assert not nothing.any()
    assert (constant.abs() > 1e-3).all()
    scale = max(1.0, float(token_scores.abs().max()))
    assert torch.allclose(latent_scores + constant[:, None], token_scores, rtol=0, atol=1e-4 * scale)
    shown = {name: values[None].expand(len(generated), *values.shape) for name, values in features.items()}
    parts = model.contributions(generated, **shown)
    assert parts.shape == (*token_scores.shape, model.config.tokens)
    assert torch.allclose(parts.sum(-1), token_scores, rtol=0, atol=1e-4 * scale)
    if cf == "holes":
        assert not parts[..., 0][:, ~features["has_cf"]].any()
        assert parts[..., 0][:, features["has_cf"]].all()
    tops = [top_k(m.ground(generated), index, 20)[1] for m, index in ((model, token_index), (out["latent"][0], latent_index))]
    assert torch.equal(*tops)


@pytest.mark.parametrize("cf", [0, 6])
def test_the_prior_is_no_tokens_own(tiny_setrec, cf):
    """It judges items alike for every history, so what it gives or takes is shared evenly by the semantic tokens."""
    features = {name: values[None] for name, values in catalogue().items() if cf or name == "semantic"}
    model = tiny_setrec(cf_size=cf, prior=True)
    with torch.no_grad():
        model.prior *= 50
        generated = torch.randn(1, model.config.tokens, 32)
        parts = model.contributions(generated + model.prior, **features)
        everything = model.contributions(model.prior[None], **features).sum(-1, keepdim=True)
        model.prior *= 0
        own = model.contributions(generated, **features)
    first = int(bool(cf))
    assert torch.allclose(parts[..., first:] - own[..., first:], (everything / 3).expand_as(own[..., first:]), atol=1e-3)
    assert torch.allclose(parts[..., :first], own[..., :first], atol=1e-3)


def test_the_score_is_the_papers(tiny_setrec):
    """(1 - beta) q_cf . z_cf + beta sum_k q_k . z_k, methods.md 1.6."""
    features = catalogue()
    model = tiny_setrec(cf_size=6, beta=0.3, grounding="token")
    generated = torch.randn(2, 4, 32)
    tokens = model.tokenize(features["semantic"], features["cf"])
    semantic = sum(generated[:, k] @ tokens[:, k].T for k in range(1, 4))
    cf = generated[:, 0] @ tokens[:, 0].T * features["has_cf"]
    scores = model.ground(generated) @ model.index(**features).T
    assert torch.allclose(scores, 0.7 * cf + 0.3 * semantic, atol=1e-5)


def test_the_narrower_form_is_chosen(tiny_setrec):
    narrow, wide = tiny_setrec(semantic_widths=(24, 20), cf_size=6), tiny_setrec(semantic_widths=(24, 300), cf_size=6)
    assert narrow.grounds_in_latent_space
    assert not wide.grounds_in_latent_space
    features = catalogue()
    assert narrow.index(**features).shape[1] < 4 * 32
    assert wide.index(**features).shape[1] == 4 * 32


@pytest.mark.parametrize("form", ["token", "latent"])
def test_an_index_in_chunks(tiny_setrec, form):
    features, model = catalogue(), tiny_setrec(grounding=form, cf_size=6)
    assert torch.allclose(model.index(**features, chunk=33), model.index(**features), atol=1e-6)
    empty = {name: values[:0] for name, values in features.items()}
    assert model.index(**empty).shape == (0, model.index(**features).shape[1])


@pytest.mark.parametrize("form", ["token", "latent"])
def test_an_item_without_cf_vector_has_no_cf_term(tiny_setrec, form):
    features, model = catalogue(), tiny_setrec(grounding=form, cf_size=6, beta=0.4)
    generated = torch.randn(3, 4, 32)
    other = generated.clone()
    other[:, 0] = torch.randn(3, 32)
    index = model.index(**features)
    change = ((model.ground(generated) - model.ground(other)) @ index.T).abs()
    assert not change[:, ~features["has_cf"]].any()
    assert (change[:, features["has_cf"]] > 0).all()


# Many items


@pytest.fixture(scope="module")
def many():
    """Clusters, as real items have them, in whole numbers, so that all sums are exact."""
    pytest.importorskip("faiss")
    torch.manual_seed(0)
    centres = torch.randn(40, 16)
    index = torch.nn.functional.normalize(centres.repeat(50, 1) + 0.3 * torch.randn(2000, 16), dim=-1)
    return (1000 * (index[:300] + 0.05 * torch.randn(300, 16))).round(), (1000 * index).round()


def test_all_lists_are_the_exact_form(many):
    queries, index = many
    near = NearIndex(index, lists=20, probes=20, candidates=2000)
    excluded = [torch.randint(2000, (7,)).tolist() for _ in queries]
    for k in (1, 20):
        for own in (None, excluded):
            (scores, rows), (exact, expected) = top_k(queries, near, k, own), top_k(queries, index, k, own)
            assert torch.equal(scores, exact)
            assert torch.equal(rows, expected)
    allowed = torch.arange(2000) % 5 == 0
    assert torch.equal(top_k(queries, near, 5, excluded, allowed)[1], top_k(queries, index, 5, excluded, allowed)[1])
    assert torch.equal(top_k(queries[:2], near, 1999, excluded[:2])[1], top_k(queries[:2], index, 1999, excluded[:2])[1])


def test_few_lists_find_nearly_all(many):
    queries, index = many
    found, exact = (top_k(queries, kind, 20)[1].tolist() for kind in (NearIndex(index, lists=40, probes=8), index))
    recall = np.mean([len(set(a) & set(b)) / 20 for a, b in zip(found, exact, strict=True)])
    assert recall > 0.97
    assert all(len(set(rows)) == 20 for rows in found)


def test_as_many_lists_as_needed_are_looked_through(many):
    queries, index = many
    near = near_index(index, queries, least=1999)
    assert isinstance(near, NearIndex)
    exact = top_k(queries, index, 20)[1]
    assert near.recall(queries, exact) >= grounding.RECALL
    assert near.probes < near.lists // 4
    pairs = zip(near.top_k(queries, 20)[1].tolist(), exact.tolist(), strict=True)
    assert near.recall(queries, exact) == pytest.approx(np.mean([len(set(a) & set(b)) / 20 for a, b in pairs]))


def test_items_without_neighbours_stay_exact(caplog):
    """Directions drawn evenly have no lists: a quarter of them holds no nine tenths of the best."""
    pytest.importorskip("faiss")
    torch.manual_seed(0)
    index = torch.nn.functional.normalize(torch.randn(20_000, 64), dim=-1)
    assert near_index(index, torch.randn(50, 64), least=19_999) is index
    assert "are ranked exactly" in caplog.text


def test_large_catalogues_are_looked_through_in_part(many, monkeypatch, caplog):
    index = many[1]
    assert isinstance(near_index(index, least=1999), NearIndex)
    assert near_index(index) is index
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    assert near_index(index, least=1999) is index
    assert "pip install 'genrec_hub[ann]'" in caplog.text
    assert grounding.LARGE > 120_000


@pytest.mark.parametrize("size", [16_385, 40_000])
def test_the_best_of_blocks(size):
    """Wide rows take the way over block maxima; with and without equal scores at the cut."""
    generator = torch.Generator().manual_seed(size)
    for scores in (torch.randn(3, size, generator=generator), torch.randint(0, 300, (3, size), generator=generator).float()):
        for k in (1, 20):
            values, rows = top_k(torch.eye(3), scores.T.contiguous(), k)
            for user in range(3):
                assert rows[user].tolist() == scores[user].sort(descending=True, stable=True).indices[:k].tolist()
                assert torch.equal(values[user], scores[user, rows[user]])
