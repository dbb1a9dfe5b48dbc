"""Leaks counted as by a double loop, and a stream that is whole, without overlap, mixed as promised and resumable anywhere."""

from collections import Counter
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec_hub.catalog import Catalog, Item
from genrec_hub.domain import Domain, Sequences
from genrec_hub.fusion import Leak, fused_stream, leaks, mixing_weights, normal_title, without_leaks

datasets = pytest.importorskip("datasets")


def make(titles, histories, times=True):
    catalog = Catalog(Item(f"i{n}", title) for n, title in enumerate(titles))
    sequences = Sequences.of(list(histories.values()))
    return Domain(catalog, list(histories), sequences, np.arange(len(sequences.items), dtype=float) if times else None)


TRAIN = make(["Café  Crème!", "Tea pot", "spoon", "THE-CUP", "!!!"], {"ann": [0, 1, 2], "bob": [3, 1], "cleo": [0, 3], "dan": [4, 2, 1]})
TEST = make(["cafe creme", "the cup", "???", "fork"], {"bob": [0, 1], "eve": [2, 3]})


def test_titles_are_equal_whatever_their_spelling():
    assert normal_title("Café  Crème!") == normal_title("CAFE-CREME") == "cafe creme"
    assert normal_title("Straße 4") == normal_title("STRASSE (4)")
    assert normal_title("漢字の本") == "漢字の本"


def test_leaks_by_hand():
    # shared: items 0 and 3 (titles without any letter say nothing), user bob; touched: ann's 0, bob's two, cleo's two.
    assert leaks({"a": TRAIN}, {"t": TEST}) == [Leak("a", "t", items=2, users=1, interactions=5)]


def test_without_leaks():
    clean = without_leaks(TRAIN, [TEST])
    assert clean.catalog.ids == ["i1", "i2", "i4"]
    assert {user: clean.sequences[row].tolist() for row, user in enumerate(clean.users)} == {"ann": [0, 1], "dan": [2, 1, 0]}
    assert clean.times.tolist() == [1, 2, 7, 8, 9]
    assert [(leak.items, leak.users) for leak in leaks({"a": clean}, {"t": TEST})] == [(0, 0)]
    assert len(without_leaks(TRAIN, [])) == 4


def test_mixing_weights():
    assert mixing_weights([90, 10], 1) == pytest.approx([0.9, 0.1])
    assert mixing_weights([90, 10], 2) == pytest.approx([0.75, 0.25])
    assert mixing_weights([90, 10], 1e6) == pytest.approx([0.5, 0.5], abs=1e-5)
    for bad in (([1, 2], 0), ([1, 0], 1), ([], 1)):
        with pytest.raises(ValueError, match="above 0"):
            mixing_weights(*bad)


@pytest.fixture
def domains(synthetic_domain):
    return {"large": synthetic_domain(300, 40, 0), "small": synthetic_domain(50, 20, 1)}


def test_every_history_comes_once(domains):
    entries = list(fused_stream(domains, seed=3))
    assert Counter((entry["domain"], entry["user"]) for entry in entries) == {
        (name, user): 1 for name, d in domains.items() for user in d.users
    }
    for entry in entries:
        domain = domains[entry["domain"]]
        assert entry["items"] == domain.sequences[domain.users.index(entry["user"])].tolist()
    assert [entry["user"] for entry in entries] == [entry["user"] for entry in fused_stream(domains, seed=3)]
    assert [entry["user"] for entry in entries] != [entry["user"] for entry in fused_stream(domains, seed=3, epoch=1)]


def test_processes_share_the_users_out(domains):
    whole = Counter((entry["domain"], entry["user"]) for entry in fused_stream(domains))
    parts = [list(fused_stream(domains, rank=rank, world=3)) for rank in range(3)]
    assert Counter((entry["domain"], entry["user"]) for part in parts for entry in part) == whole
    heads = [[entry["domain"] for entry in part[:40]] for part in parts]
    assert heads[0] == heads[1] == heads[2]  # every process draws the same domains


def test_the_mixture_is_the_promised_one(domains):
    drawn = Counter(entry["domain"] for entry in fused_stream(domains, temperature=2, repeat=True))
    share = drawn["small"] / drawn.total()
    assert share == pytest.approx(50**0.5 / (50**0.5 + 300**0.5), abs=0.06)
    assert drawn["large"] >= 300
    assert drawn["small"] > 50


@pytest.mark.parametrize("read", [1, 77, 349])
def test_a_stream_goes_on_where_it_was(domains, read):
    settings = {"seed": 5, "rank": 1, "world": 2} if read < 100 else {"seed": 5}
    stream = fused_stream(domains, **settings)
    position = iter(stream)
    list(islice(position, read))
    state, rest = stream.state_dict(), list(position)
    again = fused_stream(domains, **settings)
    again.load_state_dict(state)
    assert list(again) == rest


def test_cuts(domains):
    entries = list(fused_stream(domains, most_users=20, max_items=3))
    assert Counter(entry["domain"] for entry in entries) == {"large": 20, "small": 20}
    for entry in entries:
        domain = domains[entry["domain"]]
        assert entry["items"] == domain.sequences[domain.users.index(entry["user"])][-3:].tolist()
    other = {entry["user"] for entry in fused_stream(domains, most_users=20, epoch=1)}
    assert other != {entry["user"] for entry in entries}
    with pytest.raises(ValueError, match="too few for 99 processes"):
        fused_stream(domains, rank=98, world=99)


def test_titles_of_signs_and_of_marks():
    assert normal_title("!!!") == normal_title(" !!! ") == "!!!"
    assert normal_title("पानी") != normal_title("पान")
    assert normal_title("Crème") == "creme"


def test_users_left_out_by_numbers(tmp_path, script):
    """Ids that are numbers in a file are the texts that a domain has."""
    table = pa.table({"user_id": [7, 7, 8], "item_id": ["a", "b", "a"], "position": [0, 1, 0]})
    pq.write_table(table, tmp_path / "interactions.parquet")
    assert script("pretrain_setrec").users_of(tmp_path) == {"7", "8"}
    (tmp_path / "interactions.parquet").unlink()
    (tmp_path / "interactions.csv").write_text("user_id,item_id,position\nu,a,0\nv,a,0\n")
    assert script("pretrain_setrec").users_of(tmp_path) == {"u", "v"}


def test_terms_and_name_stay(tmp_path):
    domain = make(["one", "two"], {"u": [0, 1], "v": [1, 0]})
    domain.catalog.license, domain.name = "cc-by-4.0", "shop"
    kept = without_leaks(domain, [])
    assert (kept.catalog.license, kept.name) == ("cc-by-4.0", "shop")
    kept.save(tmp_path)
    assert Domain.from_folder(tmp_path).catalog.license == "cc-by-4.0"
