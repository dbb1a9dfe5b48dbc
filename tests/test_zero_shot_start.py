"""What a foundation model starts from: text and spelling neighbours, crowding, mixed recency rates, a prior."""

import math

import numpy as np
import pytest
import torch

from genrec_hub.catalog import Item
from genrec_hub.configuration_setrec import SETRecConfig
from genrec_hub.modeling_setrec import SETRecModel
from genrec_hub.processing_setrec import CROWDING, SETRecProcessor
from genrec_hub.recipes import Settings, lean, small_backbone, train_setrec
from genrec_hub.semantic import crowding


def unit(size: int, width: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(size, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def foundation(**config: object) -> SETRecModel:
    torch.manual_seed(0)
    settings = {"semantic_tokens": 2, "semantic_widths": (), "semantic_size": 40, "residual": True, "prior": True, "normalize": "joint"}
    return SETRecModel(SETRecConfig(text_config=small_backbone(32, 1), **{**settings, **config})).eval()


@pytest.mark.parametrize("normalize", ["joint", "none"])
@torch.no_grad()
def test_the_untrained_model_is_a_text_knn(normalize: str) -> None:
    """With the gate shut: cosines under the mean of three recency weights, less the crowding."""
    model = foundation(decay=(1.5, 0.5, 0.15), scale=12.0, normalize=normalize)
    model.gate.zero_()
    vectors = np.concatenate([unit(30, 39), np.random.default_rng(1).random((30, 1), np.float32) * CROWDING], 1)
    if normalize == "joint":
        lean(model, 0.4)
    histories = [np.array([3, 1, 4, 9]), np.array([5]), np.array([2, 6, 7])]
    scores = model.score(histories, {"semantic": torch.from_numpy(vectors)})
    for history, got in zip(histories, scores.numpy(), strict=True):
        ago = np.arange(len(history) - 1, -1, -1)
        query = sum(np.exp(-rate * ago) / 3 for rate in (1.5, 0.5, 0.15)) @ vectors[history]
        want = vectors @ query
        if normalize == "joint":
            want = 12 * want / np.linalg.norm(query) - 12 * 0.4 * vectors[:, -1] / CROWDING
        assert got - got.mean() == pytest.approx(want - want.mean(), abs=1e-4)


@pytest.mark.parametrize("backbone", [None, "t5"])
def test_any_backbone_leans_against_crowded_items(backbone: str | None, tiny_idgenrec, id_processor, synthetic_domain, tmp_path) -> None:
    """All of the start is kept, so that the finished prior is the one that training began with."""
    more: dict[str, object] = {"hidden": 32, "layers": 1, "dropout": 0.0}
    if backbone is not None:
        more = {"backbone": str(tmp_path / "t5")}
        tiny_idgenrec("t5").recommender.save_pretrained(tmp_path / "t5")
        id_processor("item", True).tokenizer.save_pretrained(tmp_path / "t5")
    wanted = {"semantic_tokens": 13, "semantic_widths": (), "residual": True, "normalize": "joint"}
    train_setrec(
        synthetic_domain(20, 15, 0), tmp_path / "out", Settings(epochs=1), cf=False, spelling=31, crowding=0.4, keep=1.0, **wanted, **more
    )
    model = SETRecModel.from_pretrained(tmp_path / "out")
    prior = model.prior.detach().clone()
    assert prior.any()
    lean(model, 0.4)
    assert torch.equal(model.prior, prior)


@torch.no_grad()
def test_the_backbone_chooses_between_the_rates() -> None:
    model = foundation(decay=(5.0, 0.01), normalize="none")
    model.gate.zero_()
    vectors = torch.from_numpy(unit(30, 40))
    history = [np.array([3, 1, 4, 9])]
    model.mixture.bias.copy_(torch.tensor([50.0, -50.0]))
    last = model.score(history, {"semantic": vectors})[0]
    assert torch.corrcoef(torch.stack([last, vectors @ vectors[9]]))[0, 1] > 0.999
    model.mixture.bias.copy_(torch.tensor([-50.0, 50.0]))
    mean = model.score(history, {"semantic": vectors})[0]
    assert torch.corrcoef(torch.stack([mean, vectors @ vectors[history[0]].sum(0)]))[0, 1] > 0.999
    model.mixture.bias.zero_()
    model.mixture.weight.normal_(std=0.3)  # now it depends on the history
    weights = []
    for row in (3, 1, 4):
        answers = model._generate(model.tokenize(vectors[None, [row]]), *_layout(model, 1))
        weights.append(model.mixture(answers).softmax(-1)[0, 0])
    assert (weights[0] - weights[1]).abs().max() > 1e-3


def _layout(model: SETRecModel, length: int) -> tuple[object]:
    from genrec_hub.set_attention import set_layout

    return (set_layout(torch.ones(1, length, dtype=torch.bool), model.config.tokens, len(model.config.prompt_ids), 0, False),)


def test_a_prior_needs_a_linear_map(tiny_setrec) -> None:
    with pytest.raises(ValueError, match="linear text map"):
        tiny_setrec(prior=True).set_prior(torch.zeros(16))
    with pytest.raises(ValueError, match="prior=True"):
        tiny_setrec(semantic_widths=()).set_prior(torch.zeros(16))


@pytest.mark.parametrize("most", [2048, 12])
def test_crowding_equals_a_loop(most: int) -> None:
    vectors, others = unit(25, 8), unit(40, 8, 1)
    for pool, own in ((others, False), (vectors, True)):
        rows = sorted({int(place) for place in np.linspace(0, len(pool) - 1, min(most, len(pool)))})
        got = crowding(vectors, None if own else pool, nearest=4, most=most)
        for row, value in enumerate(got):
            near = sorted((float(vectors[row] @ pool[r]) for r in rows if not (own and r == row)), reverse=True)[:4]
            assert value == pytest.approx(np.mean(near), abs=1e-6)
    assert crowding(vectors[:1]).tolist() == [0.0]
    assert crowding(vectors[:2], nearest=10).tolist() == pytest.approx([float(vectors[0] @ vectors[1])] * 2)
    assert len(crowding(vectors[:0])) == 0


@pytest.fixture(scope="module")
def spelled(shop, encoder) -> SETRecProcessor:
    return SETRecProcessor(shop, encoder=encoder, spelling=32, crowding=True)


def test_spelled_features(spelled: SETRecProcessor, processor: SETRecProcessor, tmp_path) -> None:
    semantic = spelled.features["semantic"].numpy()
    assert semantic.shape == (60, 16 + 32 + 1)
    assert semantic[:, :16] * math.sqrt(2) == pytest.approx(processor.features["semantic"].numpy(), abs=1e-6)
    assert np.linalg.norm(semantic[:, 16:48], axis=1) == pytest.approx(math.sqrt(0.5), abs=1e-5)
    assert semantic[:, 48] == pytest.approx(CROWDING * crowding(semantic[:, :48]), abs=1e-6)
    assert set(spelled.features) == {"semantic"}
    spelled.save_pretrained(tmp_path)
    loaded = SETRecProcessor.from_pretrained(tmp_path)
    assert (loaded.spelling, loaded.crowding) == (32, True)
    assert torch.equal(loaded.features["semantic"], spelled.features["semantic"])
    loaded.encoder = spelled.encoder  # the fake one cannot be found by its name
    line = [spelled.catalog[5].line]
    assert torch.equal(loaded([line])["semantic"], spelled([line])["semantic"])
    assert spelled([["something else"]])["semantic"].shape == (1, 1, 49)
    assert spelled.without_catalog().with_catalog(spelled.catalog).features["semantic"].numpy() == pytest.approx(semantic, abs=1e-6)


def test_added_items_are_spelled_like_the_others(spelled: SETRecProcessor) -> None:
    twin = Item(
        "twin", **{k: v for k, v in spelled.catalog[7].to_dict().items() if k in ("title", "brand", "categories", "description", "price")}
    )
    more = spelled.add_items([twin])
    assert torch.equal(more.features["semantic"][:60], spelled.features["semantic"])
    assert more.features["semantic"][60, :48].numpy() == pytest.approx(spelled.features["semantic"][7, :48].numpy(), abs=1e-5)


def test_short_spelling_weighs_less(spelled: SETRecProcessor, encoder, tmp_path) -> None:
    """By the square of its length, in the catalogue, in what is added and in what is typed."""
    short = SETRecProcessor(spelled.catalog, encoder=encoder, spelling=32, crowding=True, spelling_length=0.5)
    whole, less = (one.features["semantic"][:, :48].numpy() for one in (spelled, short))
    want = (2 * whole[:, :16] @ whole[:, :16].T + 0.25 * 2 * whole[:, 16:] @ whole[:, 16:].T) / 1.25
    assert less @ less.T == pytest.approx(want, abs=1e-5)
    short.save_pretrained(tmp_path)
    loaded = SETRecProcessor.from_pretrained(tmp_path)
    loaded.encoder = encoder
    again = short.without_catalog().with_catalog(spelled.catalog)
    assert torch.equal(again.features["semantic"], short.features["semantic"])
    assert torch.equal(loaded([["brass trumpet"]])["semantic"], short([["brass trumpet"]])["semantic"])
    assert not torch.equal(loaded([["brass trumpet"]])["semantic"], spelled([["brass trumpet"]])["semantic"])
