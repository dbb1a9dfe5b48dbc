"""Uploads of all kinds, honest and hostile: each gets a table or one sentence, and the file is gone."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("gradio", reason="the demo extra is not installed")

from genrec_hub import demo_uploads
from genrec_hub.catalog import Catalog
from genrec_hub.demo_downloads import as_csv, as_jsonl, harmless
from genrec_hub.demo_indexing import Cancelled, Indexing
from genrec_hub.demo_models import Lazy
from genrec_hub.demo_tables import preview, progress
from genrec_hub.demo_uploads import MAX_BYTES, MAX_ROWS, Upload, read_upload, read_within_limits

Write = Callable[..., Path]


def parquet(path: Path, **columns) -> Path:
    pq.write_table(pa.table(columns), path, compression="snappy", write_statistics=False)
    return path


def test_a_table_is_read_as_text_and_the_file_is_gone(write: Write) -> None:
    path = write("items.jsonl", '{"asin": 7, "name": "Tee", "genres": ["a", "b"], "price": 2.5}\n{"asin": "8", "name": null}\n')
    upload = read_upload(str(path))
    assert not path.exists()
    assert upload.guess == {"item_id": "asin", "title": "name", "categories": "genres", "price": "price"}
    assert upload.table.to_pylist() == [
        {"asin": "7", "name": "Tee", "genres": "a > b", "price": "2.5"},
        {"asin": "8", "name": "", "genres": "", "price": ""},
    ]
    assert [item.title for item in upload.catalog()] == ["Tee", "8"]


def test_columns_may_be_chosen(write: Write) -> None:
    upload = read_upload(str(write("items.csv", "what,who,n\nA red hat,Ann,1\nA blue hat,Bo,2\n")))
    items = upload.catalog({"title": "what", "brand": "who"})
    assert [(item.item_id, item.title, item.brand) for item in items] == [("1", "A red hat", "Ann"), ("2", "A blue hat", "Bo")]
    assert upload.catalog({"item_id": "n", "title": "what"}).ids == ["1", "2"]
    for columns, sentence in (
        ({"brand": "who"}, "The titles are missing"),
        ({"title": "what", "brand": "what"}, "The column what is chosen twice"),
        ({"title": "colour"}, "has no column colour"),
    ):
        with pytest.raises(ValueError, match=sentence):
            upload.catalog(columns)


def nested(path: Path) -> Path:
    return parquet(path, item_id=["a"], title=["x"], categories=[{"main": "b"}])


def one_long_text_everywhere(path: Path) -> Path:
    """Twenty thousand rows that repeat a text of a megabyte: small on disk, 20 GB when it is read."""
    return parquet(path, item_id=[str(n) for n in range(MAX_ROWS)], title=pa.DictionaryArray.from_arrays([0] * MAX_ROWS, ["x" * 2**20]))


def too_large_inside(path: Path) -> Path:
    return parquet(path, item_id=["a", "b"], title=["x" * 85_000_000, "y" * 85_000_000])


def a_column_a_row(path: Path) -> Path:
    path.write_text("".join(json.dumps({f"k{n}": 1}) + "\n" for n in range(15_000)))
    return path


HOSTILE = {
    "two million rows.csv": (b"item_id,title\n" + b"1,a\n" * 2_000_000, "has 2,000,000 rows, the limit is 20,000"),
    "two million rows.jsonl": (b"{}\n" * 2_000_000, "has 2,000,000 rows, the limit is 20,000"),
    "two hundred megabytes.csv": (b"item_id,title\n" + b"x" * 200 * 2**20, "has 200 MB, the limit is 20 MB"),
    "utf-16.csv": ("item_id,title\n1,a".encode("utf-16"), "is not UTF-8 text"),
    "latin-1.csv": ("item_id,title\n1,caf\xe9".encode("latin-1"), "is not UTF-8 text"),
    "zip.csv": (b"PK\x03\x04" + bytes(range(256)) * 9, "is not UTF-8 text"),
    "bomb.zip": (b"PK\x03\x04" + b"\0" * 99, "is of an unknown kind"),
    "noise.parquet": (b"PAR1" + bytes(range(256)) * 40 + b"PAR1", "is not a readable Parquet file"),
    "deep.json": (b"[" * 100_000, "is not valid JSON"),
    "columns.csv": (b",".join(b"c%d" % n for n in range(200_000)) + b"\n1", "has 200,000 columns, the limit is 100"),
    "same column.csv": (b",".join([b"c"] * 90) + b"\n1", "two columns of one name"),
    "nothing.csv": (b"item_id,title\n\n", "has no rows"),
    "empty.csv": (b"", "is empty"),
    "nested.parquet": (nested, r"Column categories of nested.parquet is nested"),
    "repeated.parquet": (one_long_text_everywhere, "holds more than 100 million characters"),
    "large inside.parquet": (too_large_inside, "unpacks to 162 MB, the limit is 160 MB"),
    "growing.jsonl": (a_column_a_row, "has 15,000 columns, the limit is 100"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_get_one_sentence(tmp_path: Path, name: str) -> None:
    content, sentence = HOSTILE[name]
    path = tmp_path / name
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        read_within_limits(path)
    told = str(caught.value)
    assert name in told
    assert "\n" not in told
    assert len(told) < 400


@pytest.mark.parametrize("memory", [demo_uploads._LIMITS[0], 400 * 2**20], ids=["as served", "less memory than it takes"])
def test_the_wall_holds(tmp_path: Path, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens to the reader's process, the visitor gets a sentence, and the file is gone."""
    monkeypatch.setattr(demo_uploads, "_LIMITS", (memory, 60))
    path = one_long_text_everywhere(tmp_path / "repeated.parquet")
    with pytest.raises(ValueError, match=r"holds more than 100 million|unpacks to more than this page can hold"):
        read_upload(str(path))
    assert not path.exists()


def test_a_reader_that_takes_too_long_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_uploads, "READER_SECONDS", 0.05)
    path = tmp_path / "items.csv"
    path.write_text("item_id,title\n1,a\n")
    with pytest.raises(ValueError, match="takes longer than"):
        read_upload(str(path))
    assert not path.exists()


def test_a_wide_honest_file_near_the_limits_is_read(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    row = ",".join(["word " * 12] * 15)
    path.write_text("item_id,title," + ",".join(f"c{n}" for n in range(15)) + "\n" + "".join(f"{n},t{n},{row}\n" for n in range(20_000)))
    assert 15 * 2**20 < path.stat().st_size < MAX_BYTES
    start = time.monotonic()
    assert read_upload(str(path)).table.num_rows == 20_000
    assert time.monotonic() - start < 30


def test_identical_uploads_at_once_all_succeed(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item_id,title\n1,one\n")
    found: list[Upload] = []
    threads = [threading.Thread(target=lambda: found.append(read_upload(str(path)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in found}) == 1
    assert len(found) == 4


# ---------------------------------------------------------------- what is shown and written


def test_previews_escape_everything() -> None:
    attack = "<script>alert(1)</script>"
    upload = Upload(f"{attack}.csv", pa.table({attack: [attack], "title": ["x" * 500]}))
    shown = preview(upload)
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") == 3
    assert "x" * 81 not in shown
    assert 'aria-valuenow="25"' in progress(25, 100, 3.0)
    assert "about 3 s left" in progress(25, 100, 3.0)


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@a", "\t=1", "\r=1", "  =1", "\uff1d1"])
def test_no_cell_is_a_formula(cell: str) -> None:
    assert harmless(cell) == f"'{cell}"


def test_downloads() -> None:
    sets = [
        {"item_id": "-1", "title": '=HYPERLINK("http://x")', "identifier": {"tokens": [{"slot": "s", "score": None, "label": "@tea, cup"}]}}
    ]
    written = as_csv(sets)
    assert written.splitlines() == ['\ufeff"item_id","title","token 1"', '"\'-1","\'=HYPERLINK(""http://x"")","\'@tea, cup"']
    assert [json.loads(line) for line in as_jsonl(sets).splitlines()] == sets
    texts = [{"item_id": "1", "title": "Tea", "identifier": {"text": "green tea", "tokens": ["green", "tea"], "logprob": -1.0}}]
    assert as_csv(texts).splitlines()[1] == '"1","Tea","green tea"'


class Slow:
    """Indexes in steps until it is told to stop."""

    def with_catalog(self, catalog: Catalog, progress: Callable[[int, int], None]) -> "Slow":
        for done in range(1000):
            time.sleep(0.005)
            progress(done, 1000)
        return self

    def __call__(self, history: str, **_: object) -> list:
        return []


def test_indexing_can_be_called_off() -> None:
    job = Indexing(Lazy(Slow), Catalog([]))
    assert not job.wait(0.1)
    assert 0 < job.done < 1000
    job.cancel()
    assert job.wait(2)
    assert isinstance(job.error, Cancelled)
    assert job.result is None
