"""The demo's named endpoints, as programs and agents call them."""

import asyncio
import json
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the demo extra is not installed")

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from visitors import SETS, TEXTS

from genrec_hub import demo, demo_endpoints, demo_uploads

pytest_plugins = ["visitors"]


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return Client(url, verbose=False)


def test_the_public_endpoints_are_these_three(client: Client) -> None:
    api = client.view_api(return_format="dict")
    assert isinstance(api, dict)
    named = api["named_endpoints"]
    assert {
        name: [(p["parameter_name"], p["type"]["type"], p["parameter_has_default"]) for p in one["parameters"]]
        for name, one in named.items()
    } == {
        "/recommend": [
            ("history", "string", False),
            ("model", "string", True),
            ("k", "integer", True),
            ("exclude_seen", "boolean", True),
        ],
        "/search": [("query", "string", False), ("k", "integer", True)],
        "/identify": [("catalog", "object", False), ("model", "string", True)],
    }
    assert api["unnamed_endpoints"] == {}
    schema = named["/recommend"]["returns"][0]["type"]
    card = schema["properties"]["recommendations"]["items"]
    assert set(card["properties"]) == {"item", "score", "rank", "identifier", "because"}


def test_recommend(client: Client) -> None:
    answer = client.predict("argan oil shampoo\nionic hair dryer", SETS, 5, True, api_name="/recommend")
    cards = answer["recommendations"]
    assert [card["rank"] for card in cards] == [1, 2, 3, 4, 5]
    assert set(cards[0]["item"]) == {"item_id", "title", "brand", "categories", "description", "price", "text"}
    for card in cards:
        tokens = card["identifier"]["tokens"]
        assert all(set(token) == {"slot", "score", "label"} and token["label"] for token in tokens)
        assert sum(token["score"] for token in tokens) == pytest.approx(card["score"])
    assert set(cards[0]["because"]) == {"item", "share"}


def test_recommend_with_words_for_identifiers(client: Client) -> None:
    cards = client.predict("argan oil shampoo", TEXTS, 3, True, api_name="/recommend")["recommendations"]
    for card in cards:
        assert set(card["identifier"]) == {"text", "tokens", "logprob"}
        assert all(isinstance(token, str) for token in card["identifier"]["tokens"])


def test_recommend_counts_what_is_seen_only_when_asked(client: Client) -> None:
    def ids(exclude: bool) -> set[str]:
        answer = client.predict("shop-0001", SETS, 10, exclude, api_name="/recommend")
        return {card["item"]["item_id"] for card in answer["recommendations"]}

    assert "shop-0001" in ids(False)
    assert "shop-0001" not in ids(True)


def test_search(client: Client) -> None:
    found = client.predict("espreso machine", 3, api_name="/search")
    assert len(found) == 3
    assert "Espresso Machine" in found[0]["title"]


def test_identify(client: Client, items_csv: Path) -> None:
    listed = client.predict(handle_file(items_csv), SETS, api_name="/identify")
    assert [item["item_id"] for item in listed][:6] == ["w0", "w1", "w2", "w3", "w4", "n2"]
    assert all(set(item) == {"item_id", "title", "identifier"} and item["identifier"]["tokens"] for item in listed)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("", SETS, 5, True), "The history is empty"),
        ((" \n ", SETS, 5, True), "The history is empty"),
        (("coffee", "gpt-9", 5, True), "There is no model 'gpt-9': the models here are setrec-foundation, idgenrec-foundation"),
        (("coffee", SETS, 0, True), "give a whole number from 1 to 50"),
        (("coffee", SETS, 51, True), "give a whole number from 1 to 50"),
        (("coffee", SETS, 2.5, True), "give a whole number from 1 to 50"),
        (("coffee", [SETS], 5, True), "There is no model"),
        (("coffee", SETS, 5, "no"), "exclude_seen is 'no': give true or false."),
        (("the sky falls", SETS, 5, True), "Something went wrong on our side"),
        (("x" * 30_000, SETS, 5, True), "the limit is 20,000"),
    ],
)
def test_bad_input_gets_one_sentence(client: Client, arguments: tuple, sentence: str) -> None:
    with pytest.raises(AppError, match=re.escape(sentence)) as caught:
        client.predict(*arguments, api_name="/recommend")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("items.csv", b"colour,size\nred,3\n", "no column item_id"),
        ("items.csv", b"item_id,title\na,one\na,two\n", "occurs twice"),
        ("items.csv", b"item_id,title\n", "no rows"),
        ("items.parquet", b"not parquet at all", "not a readable Parquet file"),
        ("holiday.png", b"\x89PNG\r\n", "unknown kind"),
        (
            "items.csv",
            b"item_id,title\n" + b"\n".join(b"%d,thing" % n for n in range(demo_uploads.MAX_ROWS + 1)),
            "has 20,001 rows, the limit is 20,000",
        ),
    ],
)
def test_a_wrong_file_gets_one_sentence(client: Client, tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(AppError, match=re.escape(sentence)):
        client.predict(handle_file(path), SETS, api_name="/identify")


def test_a_file_too_large_is_refused(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    path.write_bytes(b"item_id,title\n" + b"x" * (demo_uploads.MAX_BYTES + 1))
    with pytest.raises(Exception, match=r"(?i)maximum|large|413"):
        client.predict(handle_file(path), SETS, api_name="/identify")


def test_uploads_leave_nothing_on_disk(client: Client, url: str, items_csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = f"nothing-stays-{time.time_ns()}"
    items_csv.write_text(f"item_id,title\n1,{marker}\n")
    read: list[str] = []
    original = demo_uploads.read_upload
    monkeypatch.setattr(demo_endpoints, "read_upload", lambda path: read.append(path) or original(path))
    client.predict(handle_file(items_csv), SETS, api_name="/identify")
    assert read
    assert not Path(read[0]).exists()
    assert not Path(read[0]).parent.exists()


def test_files_that_were_not_uploaded_are_neither_read_nor_deleted(url: str, items_csv: Path) -> None:
    import httpx

    payload = {"data": [{"path": str(items_csv), "meta": {"_type": "gradio.FileData"}}, SETS]}
    event = httpx.post(f"{url}gradio_api/call/identify", json=payload).json()["event_id"]
    answer = httpx.get(f"{url}gradio_api/call/identify/{event}", timeout=30).text
    assert "event: error" in answer
    assert "wool yarn" not in answer
    assert items_csv.exists()


def test_a_model_is_loaded_once_and_only_when_needed() -> None:
    calls = []
    demo.build_demo({"m": lambda: calls.append(1)})  # type: ignore[func-returns-value, arg-type, return-value, dict-item]
    assert not calls


HEAPS = """
import ctypes, sys, threading
from genrec_hub.demo_heaps import share_heaps
share_heaps()
together, library = threading.Barrier(17), ctypes.CDLL(None)
def work():
    together.wait()
    library.malloc(5000)
    together.wait()
threads = [threading.Thread(target=work) for _ in range(16)]
for thread in threads: thread.start()
together.wait(), together.wait()
library.open_memstream.restype = ctypes.c_void_p
text, size = ctypes.c_char_p(), ctypes.c_size_t()
stream = ctypes.c_void_p(library.open_memstream(ctypes.byref(text), ctypes.byref(size)))
library.malloc_info(0, stream), library.fclose(stream)
print(text.value.decode().count("<heap nr"))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_threads_share_two_heaps() -> None:
    """What short-lived threads free would otherwise stay with up to eight heaps a core, and a busy server would grow for minutes."""
    out = subprocess.run([sys.executable, "-c", HEAPS], capture_output=True, text=True, check=True).stdout
    assert int(out) == 2


def test_agents_get_described_tools(url: str) -> None:
    pytest.importorskip("mcp")
    import httpx

    tools = {tool["name"]: tool for tool in httpx.get(f"{url}gradio_api/mcp/schema").json()}
    assert set(tools) == {"recommend", "search", "identify"}
    assert all(tool["description"] for tool in tools.values())
    assert tools["recommend"]["inputSchema"]["properties"]["history"]["description"].startswith("what was bought")


def test_the_snippets_name_the_server() -> None:
    python, curl, _, mcp = demo.snippets("http://host:1/sub/", "some-model")
    assert 'Client("http://host:1/sub/")' in python
    assert "some-model" in python
    assert "http://host:1/sub/gradio_api/call/recommend" in curl
    assert json.loads(mcp)["mcpServers"]["genrec_hub"]["url"] == "http://host:1/sub/gradio_api/mcp/"


def test_the_python_snippets_run_as_copied(url: str, items_csv: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    items_csv.rename(items_csv.with_name("items.csv"))
    monkeypatch.chdir(items_csv.parent)
    remote, _, local, _ = demo.snippets(url, SETS)
    exec(remote, {})
    printed = [line for line in capsys.readouterr().out.splitlines() if re.match(r"\d ", line)]
    assert len(printed) == 5
    assert printed[0].startswith("1 Universal Silicone Diffuser")
    known: dict = {}
    exec(local, known)
    assert len(known["mine"].catalog) == 10


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("bash")), reason="curl is not installed")
def test_the_curl_snippet_runs_as_copied(url: str) -> None:
    said = subprocess.run(["bash", "-ec", demo.snippets(url, SETS)[1]], capture_output=True, text=True, check=True, timeout=60).stdout
    assert said.startswith("event: complete")
    answer = json.loads(said.split("data: ", 1)[1])[0]
    assert [card["rank"] for card in answer["recommendations"]] == [1, 2, 3, 4, 5]


def test_the_mcp_configuration_works_as_copied(url: str) -> None:
    pytest.importorskip("mcp")
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def agent() -> tuple[list[str], str]:
        address = json.loads(demo.snippets(url, SETS)[3])["mcpServers"]["genrec_hub"]["url"]
        async with streamablehttp_client(address) as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            tools = (await session.list_tools()).tools
            answer = await session.call_tool("recommend", {"history": "argan oil shampoo", "k": 2})
            assert not answer.isError
            return sorted(tool.name for tool in tools), answer.content[0].text

    names, text = asyncio.run(agent())
    assert names == ["identify", "recommend", "search"]
    assert "Argan Oil" in text
    assert "'rank': 2" in text
