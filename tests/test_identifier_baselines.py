"""scripts/baselines: codes are unique, stable and blind to what is asked; beams equal exact scores; one decoder trains on all of them."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from baselines import codes, gru4rec, letter, p5_sid, quantise
from baselines.e4srec import e4srec
from baselines.p5_cid import p5_cid
from baselines.p5_semid import p5_semid
from baselines.tiger import tiger

import genrec_hub
from genrec_hub.baselines import SASRecRanker
from genrec_hub.catalog import Item
from genrec_hub.domain import Domain, Sequences
from genrec_hub.recipes import Settings
from genrec_hub.set_attention import pad_left

WIDTH = 12


def vectors_of(size):
    return np.random.default_rng(0).normal(size=(size, WIDTH)).astype(np.float32)


def families(domain):
    size, training = len(domain.catalog), domain.split().training
    vectors = vectors_of(size)
    known = np.bincount(training.items, minlength=size) > 0
    return {
        "tiger": tiger(vectors, size=6),
        "tiger-rq-vae": tiger(vectors, size=6, quantiser="rq-vae"),
        "letter": letter.letter(vectors, vectors[:, ::2], known, levels=3, size=6, epochs=3),
        "p5-cid": p5_cid(training, size, clusters=3, leaf=6),
        "p5-semid": p5_semid(domain.catalog),
        "p5-sid": p5_sid.p5_sid(training, size),
        "e4srec": e4srec(size),
    }


@pytest.fixture(scope="module")
def domain(synthetic_domain):
    return synthetic_domain(60, 40, 0)


@pytest.fixture(scope="module")
def found(domain):
    return families(domain)


NAMES = ["tiger", "tiger-rq-vae", "letter", "p5-cid", "p5-semid", "p5-sid", "e4srec"]


@pytest.mark.parametrize("name", NAMES)
def test_every_item_has_a_code_of_its_own(found, domain, name):
    own = found[name]
    assert len(own) == len(set(own)) == len(domain.catalog)
    assert all(code and not any(" " in token for token in code) for code in own)


def test_codes_are_the_same_every_time_and_blind_to_what_is_asked(found, domain):
    """Whatever validation and test items are exchanged for, nothing of a code changes."""
    items = domain.sequences.items.copy()
    for end in domain.sequences.offsets[1:]:
        items[end - 2 : end] = (items[end - 2 : end] + 7) % len(domain.catalog)
    other = Domain(domain.catalog, domain.users, Sequences(items, domain.sequences.offsets))
    assert families(other) == found


@pytest.mark.parametrize("name", NAMES)
def test_a_beam_as_wide_as_the_catalogue_is_exact(found, domain, name):
    processor = codes.code_processor(domain.catalog, found[name])
    torch.manual_seed(0)
    model = codes.code_model(len(processor.tokenizer), hidden=32, layers=1, beams=len(domain.catalog)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        inputs = processor.inputs([[processor.identifiers[row].tokens for row in own] for own in ([3, 1], [0, 5, 9])], model)
        exact = model.score(inputs, processor.trie)
        beams = model.recommend(inputs, processor.trie)
    assert torch.allclose(exact.exp().sum(1), torch.ones(2), atol=1e-5)  # probabilities of all items
    assert torch.equal(beams.rows.sort(1).values, torch.arange(len(domain.catalog)).expand(2, -1))
    torch.testing.assert_close(beams.scores, exact.gather(1, beams.rows), atol=1e-5, rtol=1e-5)
    assert all(above >= below for own in beams.scores.tolist() for above, below in pairwise(own))


def test_numbers_tell_equal_codes_apart():
    assert codes.numbered([("a",), ("b",), ("a",)]) == [("a", "n0"), ("b", "n0"), ("a", "n1")]
    assert codes.numbered([("a",), ("b",), ("a",)], always=False) == [("a",), ("b",), ("a", "n1")]
    assert codes.with_levels([(3, 3)]) == [("a3", "b3")]


def test_sequential_numbers_follow_the_first_training_interaction():
    training = Sequences.of([np.array([4, 2, 4]), np.array([2, 0])])
    assert p5_sid.first_seen(training, 6).tolist() == [2, 3, 1, 4, 0, 5]  # 4, 2, 0, then 1, 3, 5 that nobody took
    assert p5_sid.p5_sid(training, 6)[4] == ("a0",)
    assert p5_sid.p5_sid(training, 1000)[4] == ("a0", "b0")


def test_items_that_are_taken_together_share_a_cluster():
    """Two groups of items that no user mixes, and items that nobody takes."""
    rng = np.random.default_rng(0)
    histories = [rng.choice(10, 5, replace=False) + 10 * (user % 2) for user in range(80)]
    found = p5_cid(Sequences.of(histories), 24, clusters=2, leaf=10)
    heads = [code[0] for code in found]
    assert len({*heads[:10]}) == len({*heads[10:20]}) == len({*heads[20:]}) == 1
    assert len({heads[0], heads[10], heads[20]}) == 3


def test_category_codes_are_paths(shop):
    found = p5_semid(shop)
    assert found[0][:2] == ("0:Beauty", "1:Hair_Care")
    assert len({code[:-1] for code in found}) == 4
    several = Item("a", "Figure", categories="Toys > Action Figures; Video Games > Wii")  # in two places of the shop
    assert p5_semid([several, several, Item("b", "Thing")]) == [
        ("0:Toys", "1:Action_Figures", "n0"),
        ("0:Toys", "1:Action_Figures", "n1"),
        ("none", "n0"),
    ]
    tags = [Item("c", "Taco", categories="Mexican, Restaurants"), Item("d", "Pho", categories="Restaurants, Vietnamese")]
    assert p5_semid(tags) == [("0:Restaurants", "1:Mexican", "n0"), ("0:Restaurants", "1:Vietnamese", "n0")]


def test_residual_kmeans_takes_the_nearest_centre_of_what_is_left():
    vectors = vectors_of(50)
    found, centres = quantise.residual_kmeans(vectors, 3, 8)
    rest, errors = vectors.copy(), [np.square(vectors).sum()]
    for level in range(3):
        distance = np.square(rest[:, None] - centres[level][None]).sum(2)
        assert (distance[np.arange(50), found[:, level]] <= distance.min(1) + 1e-4).all()
        rest -= centres[level][found[:, level]]
        errors.append(np.square(rest).sum())
    assert all(after < before for before, after in pairwise(errors))


def test_rqvae_quantises_level_by_level_and_learns():
    torch.manual_seed(0)
    model = quantise.RQVAE(WIDTH, widths=(8, 4), levels=2, size=5)
    for book in model.books:
        torch.nn.init.normal_(book)
    hidden = torch.randn(6, 4)
    total, found, _ = model.quantise(hidden)
    for row in range(6):
        first = int((model.books[0] - hidden[row]).norm(dim=1).argmin())
        second = int((model.books[1] - (hidden[row] - model.books[0][first])).norm(dim=1).argmin())
        assert found[row].tolist() == [first, second]
        torch.testing.assert_close(total[row], model.books[0][first] + model.books[1][second])
    losses = []
    quantise.train_rqvae(
        vectors_of(60), 2, 8, epochs=30, rate=3e-3, extra=lambda rows, q, books: losses.append(q.detach().norm()) or 0 * q.sum()
    )
    assert len(losses) == 30
    assert len(np.unique(quantise.train_rqvae(vectors_of(60), 2, 8, epochs=30, rate=3e-3), axis=0)) > 20


def test_letter_spreads_codes_over_their_clusters():
    torch.manual_seed(0)
    book, cluster = torch.randn(7, 3), torch.tensor([0, 0, 1, 1, 1, 2, 0])
    unit = book / book.norm(dim=1, keepdim=True)
    losses = []
    for code in range(7):
        likeness = {other: float((unit[code] @ unit[other] / 0.5).exp()) for other in range(7) if other != code}
        same = sum(value for other, value in likeness.items() if cluster[other] == cluster[code])
        if same:
            losses.append(-np.log(same / sum(likeness.values())))
    assert float(letter._spread(book, cluster, 0.5)) == pytest.approx(np.mean(losses), abs=1e-5)


def test_single_tokens_start_from_their_vectors(domain):
    vectors = torch.from_numpy(vectors_of(len(domain.catalog)))
    vectors[5] = 0
    processor = codes.code_processor(domain.catalog, e4srec(len(vectors)))
    model = codes.code_model(len(processor.tokenizer), hidden=32)
    before = model.recommender.get_input_embeddings().weight.detach().clone()
    codes.start_from(model, processor, vectors)
    table = model.recommender.get_input_embeddings().weight.detach()
    first = torch.tensor([own[0] for own in processor.identifiers.tokens])
    assert torch.equal(table[first[5]], before[first[5]])
    keep = torch.arange(len(vectors)) != 5
    cosines = [torch.nn.functional.normalize(own[keep], dim=1) for own in (vectors, table[first])]
    torch.testing.assert_close(cosines[0] @ cosines[0].T, cosines[1] @ cosines[1].T, atol=1e-5, rtol=1e-4)


def test_a_decoder_trains_on_codes_and_is_an_ordinary_checkpoint(found, domain, tmp_path):
    report = codes.train_codes(domain, found["p5-cid"], tmp_path, Settings(epochs=2, batch=16), hidden=32, layers=1)
    assert report["losses"][-1] < report["losses"][0]
    assert report["tokens"]["vocabulary"] == len(codes.SPECIAL) + len({token for code in found["p5-cid"] for token in code})
    pipe = genrec_hub.load(str(tmp_path))
    assert pipe.processor.identifiers[3].text == " ".join(found["p5-cid"][3])
    ranker = pipe.ranker(domain, domain.split())
    scores = ranker.scores([domain.sequences[0][:3]])
    assert scores.shape == (1, len(domain.catalog))
    assert (scores > -torch.inf).sum() == 20


def test_gru4rec_reads_no_padding_and_comes_back(domain, tmp_path):
    report = gru4rec.train_gru4rec(domain, tmp_path, Settings(epochs=2, batch=16, negatives=0), hidden_size=16)
    assert report["curve"][-1]["ndcg@10"] > 0
    model = gru4rec.GRU4Rec.from_pretrained(tmp_path).eval()
    histories = [domain.sequences[user] for user in range(5)]
    together = SASRecRanker(model).scores(histories)
    alone = torch.cat([SASRecRanker(model).scores([own]) for own in histories])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    ids = pad_left(histories) + 1
    by_hand = [model.gru(model.items(torch.from_numpy(own)[None] + 1) * 4.0)[0] for own in histories]
    states = model.encode(ids)
    for row, own in enumerate(by_hand):
        torch.testing.assert_close(states[row, -own.shape[1] :], model.norm(own[0]), atol=1e-5, rtol=1e-5)
