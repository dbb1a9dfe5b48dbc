import logging
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from genrec_hub.catalog import Catalog, Item
from genrec_hub.domain import Cases, Domain, Sequences, refuse_key_sorted

CATALOG = Catalog(Item(f"i{n}", f"Thing {n}") for n in range(9))

histories = st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=8), min_size=1, max_size=6)


@st.composite
def timed(draw):
    """A domain whose times repeat and interleave."""
    drawn = draw(histories)
    times = [sorted(draw(st.lists(st.integers(0, 12), min_size=len(h), max_size=len(h)))) for h in drawn]
    return Domain(CATALOG, [f"u{n}" for n in range(len(drawn))], Sequences.of(drawn), np.array([float(t) for own in times for t in own]))


def untimed(drawn):
    return Domain(CATALOG, [f"u{n}" for n in range(len(drawn))], Sequences.of(drawn))


def same(a: Cases | Sequences, b: Cases | Sequences) -> bool:
    if isinstance(a, Cases):
        return a.users.tobytes() == b.users.tobytes() and same(a.histories, b.histories) and same(a.targets, b.targets)
    return a.items.tobytes() == b.items.tobytes() and a.offsets.tobytes() == b.offsets.tobytes()


def table(**columns):
    return pa.table(columns)


def read(**columns):
    return Domain.from_table(CATALOG, table(**columns), "interactions.csv")


# Leave-one-out


@given(histories)
def test_leave_one_out(drawn):
    split = untimed(drawn).leave_one_out()
    long = [u for u, own in enumerate(drawn) if len(own) >= 3]
    assert split.test.users.tolist() == split.validation.users.tolist() == long
    for user, own in enumerate(drawn):
        assert split.training[user].tolist() == (own[:-2] if len(own) >= 3 else own)
    for case, user in enumerate(long):
        assert split.test.histories[case].tolist() == drawn[user][:-1]
        assert split.test.targets[case].tolist() == drawn[user][-1:]
        assert split.validation.histories[case].tolist() == drawn[user][:-2]
        assert split.validation.targets[case].tolist() == drawn[user][-2:-1]


@given(histories, st.data())
def test_leave_one_out_sees_nothing_of_the_target_or_after_it(drawn, data):
    user = data.draw(st.sampled_from([u for u, own in enumerate(drawn) if len(own) >= 3] or [-1]))
    assume(user >= 0)
    before, other = untimed(drawn).leave_one_out(), data.draw(st.integers(0, 8))

    changed = [list(own) for own in drawn]
    changed[user][-1] = other
    after = untimed(changed).leave_one_out()
    assert same(before.training, after.training)
    assert same(before.test.histories, after.test.histories)
    assert same(before.validation, after.validation)

    changed[user][-2] = data.draw(st.integers(0, 8))
    after = untimed(changed).leave_one_out()
    assert same(before.training, after.training)
    assert same(before.validation.histories, after.validation.histories)


# Global time


@given(timed(), st.sampled_from([(0.1, 0.1), (0.3, 0.3), (0.0, 0.5)]))
def test_global_time_trains_on_nothing_at_or_after_a_target(domain, shares):
    split = domain.global_time(*shares)
    clocks = [domain.times[domain.sequences.offsets[u] : domain.sequences.offsets[u + 1]] for u in range(len(domain))]
    trained = [clock[: len(own)] for clock, own in zip(clocks, split.training, strict=True)]
    latest = max((float(t) for own in trained for t in own), default=-np.inf)
    for cases in (split.validation, split.test):
        for case, user in enumerate(cases.users):
            history, targets = cases.histories[case], cases.targets[case]
            own = domain.sequences[user]
            assert own[: len(history)].tolist() == history.tolist()
            assert own[len(history) : len(history) + len(targets)].tolist() == targets.tolist()
            assert len(history) >= 1
            assert len(targets) >= 1
            first_target = clocks[user][len(history)]
            assert latest < first_target
            assert clocks[user][len(history) - 1] < first_target
    for user, own in enumerate(split.training):
        assert domain.sequences[user][: len(own)].tolist() == own.tolist()


@given(timed(), st.data())
def test_global_time_sees_nothing_of_the_targets(domain, data):
    before = domain.global_time(0.2, 0.2)
    assume(len(before.test))
    items = domain.sequences.items.copy()
    late = domain.times >= np.sort(domain.times)[int(len(domain.times) * 0.8)]
    items[late] = data.draw(st.integers(0, 8))
    after = Domain(CATALOG, domain.users, Sequences(items, domain.sequences.offsets), domain.times).global_time(0.2, 0.2)
    assert same(before.training, after.training)
    assert same(before.validation, after.validation)
    assert same(before.test.histories, after.test.histories)


def test_global_time_by_hand():
    domain = Domain(CATALOG, ["a", "b"], Sequences.of([[0, 1, 2, 3], [4, 5, 6]]), np.array([0.0, 1, 8, 9, 2, 3, 4]))
    split = domain.global_time(validation=1 / 7, test=2 / 7)
    assert [own.tolist() for own in split.training] == [[0, 1], [4, 5]]
    assert (split.validation.users.tolist(), split.validation.histories[0].tolist(), split.validation.targets[0].tolist()) == (
        [1],
        [4, 5],
        [6],
    )
    assert (split.test.users.tolist(), split.test.histories[0].tolist(), split.test.targets[0].tolist()) == ([0], [0, 1], [2, 3])


def test_positions_under_global_time_are_refused():
    with pytest.raises(ValueError, match=r"position but no timestamp.*add a timestamp column or use the leave-one-out"):
        read(user_id=["a", "a"], item_id=["i1", "i2"], position=[0, 1]).split("global-time")


# The source's own split


def test_given_split():
    domain = read(
        user_id=["a"] * 4 + ["b"] * 2 + ["c"] * 2,
        item_id=["i1", "i2", "i3", "i4", "i5", "i6", "i7", "i8"],
        position=[0, 1, 2, 3, 0, 1, 0, 1],
        split=["training", "Validation", "testing", "test", "train", "test", "test", "test"],
    )
    split = domain.split("given")
    assert [own.tolist() for own in split.training] == [[1], [5], []]
    assert split.validation.users.tolist() == [0]
    assert split.test.users.tolist() == [0, 1]  # c has no history
    assert split.test.histories[0].tolist() == [1, 2]
    assert split.test.targets[0].tolist() == [3, 4]
    assert split.popularity(9).tolist() == [0, 1, 0, 0, 0, 1, 0, 0, 0]
    assert split.cases("validation") is split.validation
    assert split.cases("test") is split.test


def test_given_split_faults():
    with pytest.raises(ValueError, match="no column split"):
        read(user_id=["a"], item_id=["i1"], position=[0]).split("given")
    with pytest.raises(ValueError, match=r"interactions\.csv: column split holds 'holdout'; it should hold training, validation or test"):
        read(user_id=["a"], item_id=["i1"], position=[0], split=["holdout"]).split("given")
    with pytest.raises(ValueError, match="User 'a' has a training interaction after a later part"):
        read(user_id=["a", "a"], item_id=["i1", "i2"], position=[0, 1], split=["test", "training"]).split("given")
    with pytest.raises(ValueError, match=r"Unknown protocol 'random'.*leave-one-out, global-time and given"):
        read(user_id=["a"], item_id=["i1"], position=[0]).split("random")
    assert read(user_id=["a"], item_id=["i1"], position=[0], split=[""]).given is None


@pytest.mark.parametrize("column", [["fold0", "fold1", "fold0"], ["training", None, "test"], [0, 1, 2]])
def test_a_strange_split_matters_only_where_it_is_asked_for(column, tmp_path):
    domain = read(user_id=["a"] * 3, item_id=["i1", "i2", "i3"], position=[0, 1, 2], split=column)
    assert domain.split().test.targets[0].tolist() == [3]
    with pytest.raises(ValueError, match=r"interactions\.csv: column split holds '.*; it should hold training, validation or test"):
        domain.split("given")
    domain.save(tmp_path)
    assert Domain.from_folder(tmp_path).given is None


# Reading


def test_rows_are_put_in_time_order(caplog):
    shuffled = {"user_id": ["b", "a", "b", "a"], "item_id": ["i4", "i2", "i3", "i1"], "timestamp": [9, 5, 8, 1]}
    with caplog.at_level(logging.WARNING, "genrec_hub.domain"):
        domain = read(**shuffled)
    assert "interactions.csv is not in time order within its users: sorted by user and timestamp" in caplog.text
    assert domain.users == ["b", "a"]
    assert [own.tolist() for own in domain.sequences] == [[3, 4], [1, 2]]
    assert domain.times.tolist() == [8, 9, 1, 5]
    caplog.clear()
    read(user_id=["b", "a", "b", "a"], item_id=["i3", "i1", "i4", "i2"], timestamp=[8, 1, 9, 5])
    assert caplog.text == ""  # interleaved users are no disorder


def test_equal_times_keep_the_order_of_positions_then_of_the_file():
    domain = read(user_id=["a"] * 3, item_id=["i1", "i2", "i3"], timestamp=[5, 5, 5], position=[2, 0, 1])
    assert domain.sequences[0].tolist() == [2, 3, 1]
    assert read(user_id=["a"] * 3, item_id=["i3", "i1", "i2"], timestamp=[5, 5, 5]).sequences[0].tolist() == [3, 1, 2]


def test_dates_and_numbers_as_text():
    moments = [datetime(2020, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC), datetime(2020, 1, 2, tzinfo=UTC)]
    for kind in ("us", "ns"):
        domain = read(user_id=["a", "a"], item_id=["i1", "i2"], timestamp=pa.array(moments, pa.timestamp(kind)))
        assert domain.times.tolist() == [1577836801.5, 1577923200.0]
    assert read(user_id=["a", "a"], item_id=["i1", "i2"], timestamp=pa.array([1, 2], pa.date32())).times.tolist() == [86400, 172800]
    assert read(user_id=["a", "a"], item_id=["i2", "i1"], timestamp=["10", "9.5"]).sequences[0].tolist() == [1, 2]
    assert read(user_id=[7, 7], item_id=["i1", "i2"], position=[1, 0]).users == ["7"]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (
            {"user": ["a"], "item_id": ["i1"], "position": [0]},
            r"interactions\.csv has no column user_id \(it has: user, item_id, position\): rename",
        ),
        (
            {"user_id": ["a"], "asin": ["i1"], "position": [0]},
            r"interactions\.csv has no column item_id \(it has: user_id, asin, position\): rename",
        ),
        ({"user_id": ["a"], "item_id": ["i1"]}, r"interactions\.csv has neither timestamp nor position .*add the Unix time"),
        ({"user_id": [], "item_id": [], "position": []}, r"interactions\.csv has no rows"),
        (
            {"user_id": ["a"] * 4, "item_id": ["i1", "x", "y", "x"], "position": [0, 1, 2, 3]},
            r"interactions\.csv names 2 item_id that the catalogue does not have \(first: 'x' in row 2\): add these items",
        ),
        ({"user_id": ["a", "a"], "item_id": ["i1", None], "position": [0, 1]}, r"1 item_id .*first: None in row 2"),
        ({"user_id": ["a", None], "item_id": ["i1", "i2"], "position": [0, 1]}, r"interactions\.csv: column user_id is empty in row 2"),
        ({"user_id": ["a", " "], "item_id": ["i1", "i2"], "position": [0, 1]}, r"interactions\.csv: column user_id is empty in row 2"),
        (
            {"user_id": ["a", "a"], "item_id": ["i1", "i2"], "timestamp": [1, None]},
            r"interactions\.csv: column timestamp is empty in row 2",
        ),
        (
            {"user_id": ["a", "a"], "item_id": ["i1", "i2"], "timestamp": ["May", "1"]},
            r"interactions\.csv: column timestamp should hold numbers .*give Unix seconds",
        ),
        ({"user_id": ["a"], "item_id": ["i1"], "position": [[0]]}, r"interactions\.csv: column position should hold numbers"),
        (
            {"user_id": ["b", "a", "b", "b"], "item_id": ["i1", "i1", "i2", "i3"], "position": [0, 0, 3, 3]},
            r"interactions\.csv: user 'b' has two interactions at position 3: number each history",
        ),
    ],
)
def test_faults(columns, sentence):
    with pytest.raises(ValueError, match=sentence):
        read(**columns)


def test_files(write, tmp_path):
    items = write("items.csv", "\ufeffitem_id;title\ni1;A\ni2;B\n")
    interactions = write("interactions.csv", "\ufeffuser_id,item_id,timestamp\na,i2,1\na,i1,2\n")
    domain = Domain.from_files(items, interactions)
    assert domain.sequences[0].tolist() == [1, 0]
    assert repr(domain) == "Domain(1 users, 2 items, 2 interactions)"
    assert Domain.from_folder(tmp_path).sequences[0].tolist() == [1, 0]
    write("interactions.csv", "user_id,item_id,timestamp\na,i2,1\na,i1\n")
    with pytest.raises(ValueError, match=r"Line 3 of interactions\.csv has 2 fields, the header has 3"):
        Domain.from_folder(tmp_path)
    write("interactions.csv", "")
    with pytest.raises(ValueError, match=r"interactions\.csv is empty"):
        Domain.from_folder(tmp_path)
    write("interactions.jsonl", '{"user_id": 1, "item_id": "i1", "position": 0}\n')
    assert Domain.from_folder(tmp_path).users == ["1"]
    with pytest.raises(FileNotFoundError, match=r"There is no file .*items\.parquet"):
        Domain.from_folder(tmp_path / "nowhere")


def test_ids_are_read_the_same_on_both_sides(write):
    domain = Domain.from_files(
        write("items.csv", "item_id,title\n A&amp;B ,x\nA&B,y\nx..1,z\n"),
        write("interactions.csv", "user_id,item_id,position\n u,A&amp;B,0\nu,x..1 ,1\nu..v,A&B\x01,0\n"),
    )
    assert domain.catalog.ids == ["A&amp;B", "A&B", "x..1"]
    assert domain.users == ["u", "u..v"]
    assert [own.tolist() for own in domain.sequences] == [[0, 2], [1]]


def test_ids_that_are_floats_or_categories(tmp_path):
    pq.write_table(pa.table({"item_id": [1.0, 2.0, 2.5], "title": ["a", "b", "c"]}), tmp_path / "items.parquet")
    for items in (pa.array([2.0, 1.0, 2.5]), pa.array(["2", "1", "2.5"]).dictionary_encode()):
        table = pa.table({"user_id": [7.0, 7.0, 8.0], "item_id": items, "position": [0, 1, 0]})
        pq.write_table(table, tmp_path / "interactions.parquet")
        domain = Domain.from_folder(tmp_path)
        assert (domain.catalog.ids, domain.users) == (["1", "2", "2.5"], ["7", "8"])
        assert [own.tolist() for own in domain.sequences] == [[1, 0], [2]]
    with pytest.raises(ValueError, match="column user_id is empty in row 2"):
        read(user_id=[7.0, float("nan")], item_id=["i1", "i2"], position=[0, 1])


# Histories in the order of their ids


def _sorted_by(key, users=40):
    rng = np.random.default_rng(0)
    return [sorted(rng.choice(30, 5, replace=False).tolist(), key=key) for _ in range(users)]


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("ids", [[f"B{n:03d}" for n in range(30)], [str(n) for n in range(30)]], ids=["text", "numbers"])
def test_key_sorted_histories_are_refused(ids, descending):
    sequences = Sequences.of(_sorted_by(lambda n: -n if descending else n))
    with pytest.raises(ValueError, match=r"here: 40 of 40 histories are sorted by item_id.*order them by the time of purchase"):
        refuse_key_sorted(sequences, ids, "here")


def test_histories_in_time_order_pass():
    rng = np.random.default_rng(0)
    ids = [f"B{n:03d}" for n in range(30)]

    def refused(sequences):
        try:
            refuse_key_sorted(Sequences.of(sequences), ids)
        except ValueError:
            return True
        return False

    assert not refused([rng.choice(30, 5, replace=False) for _ in range(200)])
    assert not refused(_sorted_by(None, users=19))  # too few to tell
    mixed = _sorted_by(None, users=40) + [rng.choice(30, 6, replace=False).tolist() for _ in range(20)]
    assert not refused(mixed)  # two in three are not four in five
    assert not refused([[1, 2, 3]] * 50)  # too short to tell
    assert refused(_sorted_by(None, users=40))


def test_check_order_can_be_turned_off(tmp_path):
    catalog = Catalog(Item(f"B{n:03d}") for n in range(30))
    Domain(catalog, [str(u) for u in range(40)], Sequences.of(_sorted_by(None))).save(tmp_path)
    with pytest.raises(ValueError, match=r"interactions\.parquet: 40 of 40 histories are sorted by item_id"):
        Domain.from_folder(tmp_path)
    assert len(Domain.from_folder(tmp_path, check_order=False)) == 40


def test_the_published_order_of_idgenrec_is_refused(shared):
    folder = shared / "amazon14_toys"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    catalog = Catalog.from_file(folder / "items.parquet")
    ours = pq.read_table(folder / "interactions.parquet")
    assert len(Domain.from_table(catalog, ours)) == 19_412
    theirs = ours.drop_columns(["position"]).rename_columns({"position_idgenrec": "position"})
    with pytest.raises(ValueError, match=r"19,4\d\d of 19,412 histories are sorted by item_id"):
        Domain.from_table(catalog, theirs)


# The rest


@given(timed(), st.booleans())
def test_save_and_read_back(domain, clocked):
    from tempfile import TemporaryDirectory

    given_split = np.zeros(len(domain.sequences.items), np.int64)
    given_split[-1] = 2
    domain = Domain(CATALOG, domain.users, domain.sequences, domain.times if clocked else None, given_split)
    with TemporaryDirectory() as folder:
        domain.save(folder)
        back = Domain.from_folder(folder)
    assert back.catalog == domain.catalog
    assert back.users == domain.users
    assert same(back.sequences, domain.sequences)
    assert back.given.tolist() == domain.given.tolist()
    assert (back.times is None) == (not clocked)
    assert not clocked or back.times.tolist() == domain.times.tolist()


@given(timed(), st.integers(1, 4))
def test_k_core_equals_brute_force(domain, k):
    pairs = [(u, i) for u in range(len(domain)) for i in domain.sequences[u].tolist()]
    while True:
        users = [u for u, _ in pairs]
        items = [i for _, i in pairs]
        left = [(u, i) for u, i in pairs if users.count(u) >= k and items.count(i) >= k]
        if len(left) == len(pairs):
            break
        pairs = left
    core = domain.k_core(k)
    assert core.users == [f"u{u}" for u in sorted({u for u, _ in pairs})]
    assert core.catalog.ids == [f"i{i}" for i in sorted({i for _, i in pairs})]
    assert [core.catalog[int(i)].item_id for i in core.sequences.items] == [f"i{i}" for _, i in pairs]
    assert len(core.times) == len(pairs)
    assert all((np.diff(core.times[a:b]) >= 0).all() for a, b in zip(core.sequences.offsets, core.sequences.offsets[1:], strict=False))


@given(histories)
def test_sequences(drawn):
    packed = Sequences.of(drawn)
    assert len(packed) == len(drawn)
    assert [own.tolist() for own in packed] == drawn
    assert packed.lengths.tolist() == [len(own) for own in drawn]


def test_no_sequences():
    assert len(Sequences.of([])) == 0
    assert Sequences.of([]).lengths.tolist() == []


def test_sample_of_cases_is_seeded_and_in_order(synthetic_domain):
    cases = synthetic_domain(50, 20, 0).leave_one_out().test
    some = cases.sample(10, seed=3)
    assert len(some) == 10
    assert some.users.tolist() == sorted(set(some.users.tolist()))
    assert same(some, cases.sample(10, seed=3))
    assert not same(some, cases.sample(10, seed=4))
    assert cases.sample(None, 0) is cases
    assert cases.sample(99, 0) is cases
    for case, user in enumerate(some.users):
        place = cases.users.tolist().index(user)
        assert some.histories[case].tolist() == cases.histories[place].tolist()
        assert some.targets[case].tolist() == cases.targets[place].tolist()
