"""The demo under load, with the embedded checkpoints, in a process of its own: `make soak`."""

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import pytest

pytest.importorskip("gradio", reason="the demo extra is not installed")

import httpx
import psutil
from visitors import SHOTS, Visit, browser  # noqa: F401

from genrec_hub.catalog import Catalog
from genrec_hub.demo_models import default_models
from genrec_hub.demo_texts import PERSONAS

pytestmark = pytest.mark.soak

ROOT = Path(__file__).parent.parent
VISITORS = 50
SECONDS = float(os.environ.get("GENREC_SOAK_SECONDS", "120"))
THINKING = (2.0, 6.0)
"""Seconds between an answer and a visitor's next question."""


@dataclass
class Server:
    """A running demo."""

    url: str
    process: psutil.Process
    started: float
    """Seconds from the start of the process to the first answer."""

    def memory(self) -> int:
        return self.process.memory_info().rss


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    address = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(folder / "uploads")}
    environment = {**os.environ, **threads, **address, "PYTHONPATH": str(ROOT)}
    start = time.monotonic()
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}/"
        while True:
            assert process.poll() is None, (folder / "server.log").read_text()[-2000:]
            assert time.monotonic() - start < 180, "the server does not answer"
            try:
                asyncio.run(_first(url))
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield Server(url, psutil.Process(process.pid), time.monotonic() - start)
    finally:
        process.terminate()
        process.wait(30)


async def _first(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        await recommend(http, "coffee", next(iter(default_models())))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("soak")) as running:
        yield running


def tell(figure: str) -> None:
    """Measured figures are kept beside the screenshots."""
    SHOTS.mkdir(exist_ok=True)
    with (SHOTS / "soak.txt").open("a") as file:
        file.write(f"{time.strftime('%F %T')} {figure}\n")


async def recommend(http: httpx.AsyncClient, history: str, model: str, k: int = 10, session: str | None = None) -> list[dict]:
    """One question through the queue, as the browser and gradio_client ask: all questions of a visitor in one session."""
    question = {"data": [history, model, k, True], **({} if session is None else {"session_hash": session})}
    event = (await http.post("gradio_api/call/recommend", json=question)).raise_for_status().json()["event_id"]
    answer = (await http.get(f"gradio_api/call/recommend/{event}")).raise_for_status().text
    assert "event: complete" in answer, answer[:300]
    return json.loads(answer.rsplit("data: ", 1)[1])[0]["recommendations"]


async def timed(url: str) -> float:
    start = time.monotonic()
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        assert len(await recommend(http, "coffee\nsnuffle mat", next(iter(default_models())))) == 10
    return time.monotonic() - start


def test_a_cold_start_answers_within_fifteen_seconds(server: Server) -> None:
    tell(f"first answer after {server.started:.1f} s")
    assert server.started < 15


@pytest.mark.parametrize(("model", "most"), [("setrec-foundation", 0.150), ("idgenrec-foundation", 0.600)])
def test_an_answer_alone(model: str, most: float) -> None:
    """The recommend call itself, in this process."""
    if model not in default_models():
        pytest.skip(f"{model} is not embedded")
    import torch

    torch.set_num_threads(1)
    pipe = default_models()[model]()
    pipe("coffee")
    times = []
    for history in list(PERSONAS.values()) * 5:
        start = time.perf_counter()
        pipe(history)
        times.append(time.perf_counter() - start)
    tell(f"{model}: p50 {1000 * median(times):.0f} ms")
    assert median(times) < most


def test_fifty_visitors_for_two_minutes(server: Server) -> None:
    latencies: dict[str, list[float]] = {name: [] for name in default_models()}
    end = time.monotonic() + SECONDS

    async def visitor(number: int) -> None:
        chance = random.Random(number)
        # The server closes what is idle for five seconds, httpx reuses it for as long: a request may meet the end. Browsers ask again.
        brief = httpx.Limits(keepalive_expiry=2.0)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=brief) as http:
            await asyncio.sleep(chance.uniform(0, 5))
            assert "genrec_hub" in (await http.get("")).raise_for_status().text
            while time.monotonic() < end:
                lines = chance.sample("\n".join(PERSONAS.values()).split("\n"), chance.randint(1, 6))
                model = chance.choice(list(latencies))
                start = time.monotonic()
                history = "\n".join([*lines, f"thing number {chance.randint(0, 999)}"])
                answer = await recommend(http, history, model, session=f"visitor-{number}")
                latencies[model].append(time.monotonic() - start)
                assert len(answer) == 10
                await asyncio.sleep(chance.uniform(*THINKING))

    async def watch() -> list[int]:
        seen = []
        while time.monotonic() < end:
            await asyncio.sleep(min(5.0, SECONDS / 12))
            seen.append(server.memory())
        return seen

    async def everyone() -> list[int]:
        return (await asyncio.gather(watch(), *(visitor(number) for number in range(VISITORS))))[0]

    memory = asyncio.run(everyone())
    for name, own in latencies.items():
        tell(f"{name}: {len(own)} answers, p50 {median(own):.2f} s, p95 {quantiles(own, n=20)[-1]:.2f} s")
    settled, last = max(memory[: len(memory) // 2]), max(memory[-3:])
    tell(f"memory {settled / 2**20:.0f} MB after the first half, {last / 2**20:.0f} MB at the end")
    assert quantiles([one for own in latencies.values() for one in own], n=20)[-1] < 2.0
    assert last < 1.05 * settled


def test_ten_uploads_at_once_do_not_mix(server: Server, browser, tmp_path: Path) -> None:  # noqa: F811
    visits = []
    try:
        for number in range(10):
            path = tmp_path / f"shop {number}.csv"
            path.write_text("item_id,title\n" + "".join(f"s{number}-{n},Tea no. {n} of shop {number}\n" for n in range(40 + number)))
            visits.append(Visit(browser, server.url, apart=True))
            visits[-1].tab("Your catalogue")
            visits[-1].page.locator(".gh-upload input[type=file]").set_input_files(path)
        for here in visits:
            here.page.get_by_role("button", name="Index these items").click(timeout=120_000)
        for number, here in enumerate(visits):
            here.page.locator(".gh-done").get_by_text(f"{40 + number} items").wait_for(timeout=240_000)
            here.history.fill("tea")
            here.recommend()
        for number, here in enumerate(visits):
            here.cards.first.wait_for(timeout=120_000)
            titles = here.cards.locator("h3").all_inner_texts()
            assert len(titles) == 10
            assert all(title.endswith(f"of shop {number}") for title in titles)
            assert here.faults == []
    finally:
        for here in visits:
            here.leave()


@pytest.mark.parametrize("rows", ["made up", "real"])
def test_ten_thousand_rows(rows: str, server: Server, browser, tmp_path: Path, request: pytest.FixtureRequest) -> None:  # noqa: F811
    """Progress, cancel within a few seconds, then the whole index; other visitors are answered meanwhile; nothing stays on disk."""
    path = tmp_path / "ten thousand.csv"
    if rows == "real":
        items = Catalog.from_file(request.getfixturevalue("shared") / "amazon14_beauty" / "items.parquet")[:10_000]
        Catalog(items).to_file(path)
    else:
        kinds = [line for history in PERSONAS.values() for line in history.split("\n")]
        path.write_text("item_id,title\n" + "".join(f"{n},{kinds[n % len(kinds)]} number {n}\n" for n in range(10_000)))
    here = Visit(browser, server.url)
    page = here.page
    try:
        here.tab("Your catalogue")
        page.locator(".gh-upload input[type=file]").set_input_files(path)
        page.get_by_role("button", name="Index these items").click(timeout=60_000)
        page.locator("[role=progressbar]:not([aria-valuenow='0'])").wait_for(timeout=60_000)
        start = time.monotonic()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("Nothing was indexed").wait_for(timeout=30_000)
        tell(f"cancelled within {time.monotonic() - start:.1f} s")
        start = time.monotonic()
        page.get_by_role("button", name="Index these items").click()
        others, aside = [], ThreadPoolExecutor(1)  # other visitors' answers while the machine is busy with the index
        while not page.locator(".gh-done").is_visible():
            assert time.monotonic() - start < 600, "the index takes too long"
            others.append(aside.submit(asyncio.run, timed(server.url)).result())  # the browser's own loop runs in this thread
            page.wait_for_timeout(1000)
        tell(f"10,000 {rows} rows in {time.monotonic() - start:.0f} s; meanwhile somebody else waits {median(others):.2f} s for an answer")
        assert median(others) < 2
        here.history.fill("espresso beans\nargan oil shampoo")
        page.wait_for_timeout(1000)
        start = time.monotonic()
        here.recommend()
        here.cards.first.wait_for(timeout=60_000)
        tell(f"an answer from 10,000 {rows} rows in {time.monotonic() - start:.2f} s, as seen in the browser")
        assert here.cards.count() == 10
        uploads = Path(server.process.environ()["GRADIO_TEMP_DIR"])
        kept = [file for file in uploads.rglob("*") if file.is_file()]
        assert not kept, kept
        assert here.faults == []
    finally:
        here.leave()
