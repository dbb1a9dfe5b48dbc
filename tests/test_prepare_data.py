import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec_hub.domain import Domain


@pytest.fixture
def setrec(tmp_path):
    """A folder like SETRec's: 4 items (one with a title, one with text only, one anonymous), 2 users."""
    folder = tmp_path / "source" / "setrec_tiny"
    folder.mkdir(parents=True)
    items = {
        "item": pa.array([1, 0, 2, 3], pa.int32()),
        "warm": [True, True, False, True],
        "asin": ["B1", "B0", "", "B3"],
        "title": ["", "Red Cup", "", "Cup; categories: odd"],
        "text": [
            "keyword id of one",
            "title: Red Cup; brand: Kiln; categories: Home > Cups",
            "",
            "title: Cup; categories: odd; categories: Home",
        ],
    }
    pq.write_table(pa.table(items), folder / "items.parquet")
    rows = [
        ("testing_warm", 1, 0, 0),
        ("testing", 1, 0, 0),
        ("testing", 0, 0, 3),
        ("testing", 0, 1, 1),
        ("testing_cold", 0, 0, 3),
        ("training", 1, 1, 2),
        ("training", 1, 0, 3),
        ("training", 0, 0, 1),
        ("validation", 0, 0, 2),
    ]
    split = pa.array([row[0] for row in rows]).dictionary_encode()
    pq.write_table(
        pa.table(
            {
                "split": split,
                **{name: pa.array([row[n] for row in rows], pa.int32()) for n, name in enumerate(("user", "position", "item"), 1)},
            }
        ),
        folder / "split.parquet",
    )
    pq.write_table(pa.table({"user": pa.array([0, 1], pa.int32()), "reviewer_id": ["A9", None]}), folder / "users.parquet")
    return folder


def test_setrec(setrec, tmp_path, prepare_data, capsys):
    assert prepare_data.main(["--source", str(setrec.parent), "--domains", "setrec_tiny", "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == ""
    domain = Domain.from_folder(tmp_path / "out" / "setrec_tiny")
    assert domain.catalog.ids == ["0", "1", "2", "3"]
    assert domain.catalog.titles == ["Red Cup", "keyword id of one", "2", "Cup; categories: odd"]
    assert (domain.catalog[0].brand, domain.catalog[0].categories) == ("Kiln", "Home > Cups")
    assert domain.users == ["0", "1"]
    assert [own.tolist() for own in domain.sequences] == [[1, 2, 3, 1], [3, 2, 0]]
    split = domain.split("given")
    assert [own.tolist() for own in split.training] == [[1], [3, 2]]
    assert split.validation.targets[0].tolist() == [2]
    assert [own.tolist() for own in split.test.targets] == [[3, 1], [0]]
    table = pq.read_table(tmp_path / "out" / "setrec_tiny" / "interactions.parquet")
    assert table.column("position").to_pylist() == [0, 1, 2, 3, 0, 1, 2]
    assert table.column("reviewer_id").to_pylist()[::4] == ["A9", ""]
    assert pq.read_table(tmp_path / "out" / "setrec_tiny" / "items.parquet").column("asin").to_pylist() == ["B0", "B1", "", "B3"]
    card = json.loads((tmp_path / "out" / "setrec_tiny" / "domain.json").read_text())
    assert card["split"] == {"training": 3, "validation": 1, "test": 3}
    assert card["fingerprint"] == domain.catalog.fingerprint


def test_setrec_items_must_be_numbered_through(setrec, prepare_data):
    table = pq.read_table(setrec / "items.parquet")
    pq.write_table(table.slice(1), setrec / "items.parquet")
    with pytest.raises(ValueError, match=r"setrec_tiny/items\.parquet: column item should hold 0 \.\. 2"):
        prepare_data.setrec_items(setrec)


def test_other_domains_are_read_and_written(tmp_path, write, prepare_data):
    (tmp_path / "source" / "shop").mkdir(parents=True)
    (tmp_path / "source" / "shop" / "items.csv").write_text("item_id,title,colour\n1,A,red\n2,B,blue\n")
    (tmp_path / "source" / "shop" / "interactions.csv").write_text("user_id,item_id,timestamp\nu,2,9\nu,1,5\n")
    prepare_data.prepare(tmp_path / "source" / "shop", tmp_path / "out")
    domain = Domain.from_folder(tmp_path / "out")
    assert domain.sequences[0].tolist() == [0, 1]
    assert domain.times.tolist() == [5, 9]
    assert pq.read_table(tmp_path / "out" / "items.parquet").column("colour").to_pylist() == ["red", "blue"]


def test_faults_are_said_and_counted(tmp_path, prepare_data, caplog):
    (tmp_path / "broken").mkdir()
    assert prepare_data.main(["--source", str(tmp_path), "--domains", "broken,nowhere", "--output", str(tmp_path / "out")]) == 1
    assert "broken: There is no file" in caplog.text
    assert "nowhere: There is no folder" in caplog.text
    with pytest.raises(SystemExit):
        prepare_data.main([])
    with pytest.raises(SystemExit):
        prepare_data.main(["--synthetic", "many"])


def test_synthetic_domain(tmp_path, synthetic_domain, prepare_data):
    domain, again, other = synthetic_domain(40, 30, 0), synthetic_domain(40, 30, 0), synthetic_domain(40, 30, 1)
    assert (len(domain), len(domain.catalog)) == (40, 30)
    assert domain.catalog.fingerprint == again.catalog.fingerprint != other.catalog.fingerprint
    assert domain.sequences.items.tobytes() == again.sequences.items.tobytes()
    assert all(5 <= len(own) <= 12 and len(set(own.tolist())) == len(own) for own in domain.sequences)
    assert all((np.diff(domain.times[a:b]) > 0).all() for a, b in zip(domain.sequences.offsets, domain.sequences.offsets[1:], strict=False))
    assert len(domain.global_time().test) > 5
    follows = [int(b - a) % 30 == 5 for own in domain.sequences for a, b in itertools.pairwise(own)]
    assert 0.4 < np.mean(follows) < 0.9  # there is something to learn
    assert len(synthetic_domain(3, 4, 0).sequences.items) == 12
    assert prepare_data.main(["--synthetic", "10x20", "--seed", "5", "--output", str(tmp_path)]) == 0
    assert len(Domain.from_folder(tmp_path / "synthetic_10x20_5")) == 10


def test_setrec_toys_has_its_published_counts(shared, tmp_path, prepare_data):
    folder = shared / "setrec_toys"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    domain = prepare_data.prepare(folder, tmp_path / "toys")
    assert (len(domain), len(domain.catalog)) == (15_635, 11_908)
    assert np.bincount(domain.given).tolist() == [114_983, 12_740, 14_776]
    domain.split("given")
