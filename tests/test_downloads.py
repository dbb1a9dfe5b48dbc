"""Downloads against a local server that cuts, changes, forgets ranges and lies."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from genrec_hub import downloads
from genrec_hub.downloads import download

CONTENT = np.random.default_rng(0).bytes(200_000)


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; `server.cuts` are the bytes after which the next answers break off."""

    def do_GET(self):
        server, name = self.server, self.path[1:]
        asked = self.headers.get("Range")
        server.asked.append(asked)
        if server.refusals:
            self.send_error(server.refusals.pop(0))
            return
        if name not in server.files:
            self.send_error(404)
            return
        content = server.files[name]
        tag = '"' + hashlib.md5(content).hexdigest() + '"'
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges and self.headers.get("If-Range") == tag else 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if server.tags:
            self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if server.cuts:
            body = body[: server.cuts.pop(0)]
            self.close_connection = True
        server.sent += len(body)
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.files, running.cuts, running.refusals = {"data.bin": CONTENT}, [], []
        running.ranges, running.tags, running.sent, running.asked = True, True, 0, []
        running.url = f"http://127.0.0.1:{running.server_port}/data.bin"
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(downloads, "CHUNK", 10_000)


def fetch(server, folder, **more):
    return download(server.url, folder, patience=0.01, **more)


def test_cut_in_the_middle_twice(server, tmp_path):
    server.cuts = [60_000, 70_000]
    told = []
    path = fetch(server, tmp_path, progress=lambda there, whole: told.append((there, whole)))
    assert path.read_bytes() == CONTENT
    assert server.sent == len(CONTENT)  # not a byte came twice
    assert server.asked == [None, "bytes=60000-", "bytes=130000-"]
    assert told[-1] == (200_000, 200_000)
    assert sorted(left.name for left in tmp_path.iterdir()) == ["checksums.json", "data.bin"]
    ledger = json.loads((tmp_path / "checksums.json").read_text())
    assert ledger == {"data.bin": {"url": server.url, "size": 200_000, "sha256": hashlib.sha256(CONTENT).hexdigest()}}
    assert fetch(server, tmp_path) == path
    assert len(server.asked) == 3  # what is whole is not asked for again


def test_a_later_run_goes_on(server, tmp_path):
    server.cuts = [60_000, 0]
    with pytest.raises(OSError, match="broke off 1 times in a row"):
        fetch(server, tmp_path, attempts=1)
    assert (tmp_path / "data.bin.part").stat().st_size == 60_000
    assert not (tmp_path / "data.bin").exists()
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.sent == len(CONTENT)


def test_notes_that_were_half_written_are_none(server, tmp_path):
    server.cuts = [60_000, 0]
    with pytest.raises(OSError, match="broke off"):
        fetch(server, tmp_path, attempts=1)
    for name in ("data.bin.part.json", "checksums.json"):
        (tmp_path / name).write_text('{"url": ')
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_read_from_the_start(server, tmp_path):
    server.cuts = [60_000, 0]
    with pytest.raises(OSError, match="broke off"):
        fetch(server, tmp_path, attempts=1)
    server.files["data.bin"] = CONTENT[::-1]
    assert fetch(server, tmp_path).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("lack", ["ranges", "tags"])
def test_a_server_without_ranges_or_validators(server, tmp_path, lack):
    setattr(server, lack, False)
    server.cuts = [60_000]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.sent == 60_000 + len(CONTENT)


def test_everything_was_there_but_not_its_end(server, tmp_path):
    fetch(server, tmp_path).rename(tmp_path / "data.bin.part")
    (tmp_path / "checksums.json").unlink()
    tag = '"' + hashlib.md5(CONTENT).hexdigest() + '"'
    (tmp_path / "data.bin.part.json").write_text(json.dumps({"url": server.url, "validator": tag}))
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.sent == len(CONTENT)
    (tmp_path / "data.bin").rename(tmp_path / "data.bin.part")
    with (tmp_path / "data.bin.part").open("ab") as file:
        file.write(b"more than the file holds")
    (tmp_path / "data.bin.part.json").write_text(json.dumps({"url": server.url, "validator": tag}))
    assert fetch(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_checksums(server, tmp_path, kind):
    right = hashlib.new(kind, CONTENT).hexdigest()
    assert fetch(server, tmp_path / "a", checksum=f"{kind}:{right.upper()}").read_bytes() == CONTENT
    with pytest.raises(ValueError, match=f"came with {kind} {right}, expected {kind} 00: fetch it again"):
        fetch(server, tmp_path / "b", checksum=f"{kind}:00")
    assert not list((tmp_path / "b").glob("data*"))


def test_another_content_than_the_first_time_is_refused(server, tmp_path):
    path = fetch(server, tmp_path)
    path.unlink()
    server.files["data.bin"] = CONTENT[:-1] + b"!"
    with pytest.raises(ValueError, match="as it was the first time"):
        fetch(server, tmp_path)
    assert not path.exists()


def test_refusals(server, tmp_path):
    server.refusals = [503, 500]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    with pytest.raises(OSError, match="not to be had \\(404"):
        download(server.url.replace("data", "nothing"), tmp_path, patience=0.01)
    server.refusals = [500] * 9
    with pytest.raises(OSError, match="broke off 3 times in a row"):
        fetch(server, tmp_path / "x", attempts=3)
