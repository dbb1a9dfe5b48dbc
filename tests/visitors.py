"""What the demo's tests share: recommenders that need no model, a server with them, and visitors in a real Chromium."""

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
import pytest
from conftest import FakeEncoder

pytest.importorskip("gradio", reason="the demo extra is not installed")

from genrec_hub import demo
from genrec_hub.catalog import Catalog, Item
from genrec_hub.history import History, Match
from genrec_hub.processing_setrec import SETRecProcessor

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

CHROMIUM = Path("/usr/bin/chromium")
SHOTS = Path("/tmp/demo_shots")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ATTACK = "<script>alert('in')</script><img src=x onerror=alert(1)>"
SHOP = Path(demo.__file__).with_name("shop.jsonl")
SETS, TEXTS = "setrec-foundation", "idgenrec-foundation"


def _words(text: str) -> set[str]:
    return {word.rstrip("s") for word in re.findall(r"\w{3,}", text.casefold())}


class FakeRecommender:
    """Ranks by shared words, with an identifier of three tokens whose scores add up; the interface of the real pipeline."""

    def __init__(self, catalog: Catalog, pause: float = 0.0) -> None:
        self.catalog, self.pause = catalog, pause
        self.trained_on = np.arange(len(catalog)) % 2 == 0

    @cached_property
    def processor(self) -> SETRecProcessor:
        return SETRecProcessor(self.catalog, encoder=FakeEncoder())

    def understand(self, history: str) -> History:
        matches = []
        for line in filter(str.strip, history.splitlines()):
            if ATTACK in line:  # the real reader drops tags: here they must come through
                matches.append(Match(line, Item("typed:0", title="typed"), None, "text", 0.0, (0, 1)))
            else:
                matches += History.read([line], self.catalog).matches
        return History(matches)

    def __call__(self, history: str, *, top_k: int = 10, exclude_seen: bool = True, department: str | None = None) -> list[dict]:
        if "the sky falls" in history:
            raise RuntimeError("a secret of the server")
        seen = self.understand(history)
        rows = [
            row
            for row, item in enumerate(self.catalog)
            if not (exclude_seen and row in seen.rows) and (not department or item.department == department)
        ]
        known = [(_words(old.title), _words(old.line)) for old in seen]
        ranked = []
        for row in rows:
            title, line = self.words[row]
            overlap = [len(title & of_title) * 2 + len(line & of_line) for of_title, of_line in known]
            score = (sum(overlap) + 0.5) / (8.0 * len(overlap) or 1)
            best = max(range(len(overlap)), key=overlap.__getitem__, default=None)
            share = overlap[best] / (sum(overlap) or 1) if best is not None else 0.0
            ranked.append((score, row, best if share else None, share))
        ranked.sort(key=lambda entry: (-entry[0], entry[1]))
        answer = []
        for rank, (score, row, best, share) in enumerate(ranked[:top_k], 1):
            because = {"item": asdict(seen.items[best]), "share": share} if best is not None else None
            entry = {"item": self.fields(row), "score": score, "rank": rank, "identifier": self.identifier(row, score), "because": because}
            answer.append(entry)
        return answer

    @cached_property
    def words(self) -> list[tuple[set[str], set[str]]]:
        return [(_words(item.title), _words(item.line)) for item in self.catalog]

    def fields(self, row: int) -> dict:
        item = asdict(self.catalog[row])
        if "xss" in item["item_id"]:
            item |= {"title": ATTACK, "brand": ATTACK, "price": "<b>1</b>"}
        return item

    def identify(self) -> list[dict]:
        return [
            {"item_id": item.item_id, "title": item.title, "identifier": self.identifier(row, 1.0)} for row, item in enumerate(self.catalog)
        ]

    def beams(self, history: str, beams: int = 20) -> list[dict]:
        return []

    def usual(self, history: str) -> list[float]:
        return [0.02, 0.01, 0.0]

    def nearest(self, history: str, items: Sequence[str] = (), most: int = 5) -> list[dict]:
        near = [{"item_id": item.item_id, "title": self.fields(row)["title"], "similarity": 1 - row / 10}
                for row, item in enumerate(self.catalog[-most:], max(0, len(self.catalog) - most))]  # fmt: skip
        return [{"item_id": item, "tokens": [{"slot": f"sem{n}", "nearest": near} for n in (1, 2, 3)]} for item in (None, *items)]

    def with_catalog(self, catalog: Catalog, progress: Callable[[int, int], object] | None = None) -> "FakeRecommender":
        for done in range(0, len(catalog) + 1, 100):
            time.sleep(self.pause)
            if progress:
                progress(done, len(catalog))
        return type(self)(catalog)

    def identifier(self, row: int, score: float) -> dict:
        item = self.catalog[row]
        leaf = item.categories.split(" > ")[-1].casefold() or "anything"
        labels = [leaf, " ".join(sorted(_words(item.title))[:2]), item.brand.casefold() or item.department.casefold() or "no brand"]
        parts = (0.55, 0.3, 0.15)
        return {"tokens": [{"slot": f"sem{i + 1}", "score": part * score, "label": labels[i]} for i, part in enumerate(parts)]}


class FakeWriter(FakeRecommender):
    """The same ranking with a textual identifier, by its probability."""

    def __call__(self, history: str, **how) -> list[dict]:
        return [{**card, "score": card["identifier"]["logprob"]} for card in super().__call__(history, **how)]

    def usual(self, history: str) -> list[float]:
        return []

    def identifier(self, row: int, score: float) -> dict:
        item = self.catalog[row]
        text = (
            ATTACK
            if "xss" in item.item_id
            else " ".join([item.department.split()[0].casefold() if item.department else "thing", *sorted(_words(item.title))[:3]])
        )
        return {"text": text, "tokens": [f"\u2581{word}" for word in text.split()], "logprob": math.log(min(score, 1.9) / 2)}

    def beams(self, history: str, beams: int = 20) -> list[dict]:
        shown = [
            {"text": card["identifier"]["text"], "logprob": card["score"], "score": card["score"], "item": card["item"]}
            for card in self(history)
        ]
        return [*shown, {"text": f"unheard of {ATTACK}", "logprob": -9.0, "score": -9.0, "item": None}]

    def nearest(self, history: str, items: Sequence[str] = (), most: int = 5) -> list[dict]:
        return []


def serve(models: dict) -> Iterator[str]:
    app, local, _ = demo.launch(models, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield local
    app.get_blocks().close(verbose=False)


def shop() -> Catalog:
    return Catalog([*Catalog.from_file(SHOP), Item("xss", title="zebra lamp", categories="Traps")])


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server with two fake systems."""
    attacked = shop()
    yield from serve({SETS: lambda: FakeRecommender(attacked, 0.03), TEXTS: lambda: FakeWriter(attacked)})


@pytest.fixture
def items_csv(tmp_path: Path) -> Path:
    path = tmp_path / "my shop.csv"
    rows = ["item_id,title,brand,categories"]
    rows += [f"w{n},{colour} wool yarn {n},Knitwell,Yarn" for n, colour in enumerate(["red", "blue", "green", "grey", "black"])]
    rows += [f"n{n},Bamboo knitting needles {n} mm,Knitwell,Needles" for n in range(2, 7)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield chromium
        chromium.close()


class Visit:
    """A page that remembers dialogs, script errors and requests that left the machine."""

    def __init__(self, browser: "Browser", url: str, width: int = 1280, dark: bool = False, address: str = "", apart: bool = False) -> None:
        self.faults: list[str] = []
        # One context for all, because a page is loaded from its cache; nothing but the kept history stays, and `leave` clears it.
        # Many at once need one each (`apart`): a browser holds six connections to a server, and every open page keeps one.
        shared = next(iter(browser.contexts), None)
        self.context = browser.new_context(accept_downloads=True) if apart or shared is None else shared
        self.apart = apart
        self.width, self.theme, self.url = width, "dark" if dark else "light", f"{url}?__theme={'dark' if dark else 'light'}{address}"
        self.pages: list[Page] = []
        self.page = self.open()

    def open(self) -> "Page":
        page = self.context.new_page()
        self.pages.append(page)
        page.set_viewport_size({"width": self.width, "height": 900})
        page.emulate_media(color_scheme=self.theme)
        page.on("dialog", lambda dialog: (self.faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("pageerror", lambda error: self.faults.append(f"script error {error}"))
        host = urlsplit(self.url).netloc
        page.on("request", lambda r: r.url.startswith("http") and urlsplit(r.url).netloc != host and self.faults.append(r.url))
        page.goto(self.url)
        page.get_by_role("button", name="Recommend", exact=True).wait_for()
        return page

    def leave(self) -> None:
        self.page.evaluate("localStorage.clear()")
        for page in self.pages:
            page.close()
        if self.apart:
            self.context.close()

    @property
    def history(self) -> "Locator":
        return self.page.locator(".gh-history textarea:visible")

    @property
    def cards(self) -> "Locator":
        return self.page.locator(".gh-card:not(.gh-ghost):visible")

    @property
    def lines(self) -> "Locator":
        return self.page.locator(".gh-line:visible")

    def recommend(self) -> None:
        self.page.locator("button.gh-go:visible").click()

    def tab(self, name: str) -> None:
        tab = self.page.get_by_role("tab", name=name)
        if tab.is_visible():
            tab.click()
        else:
            self.page.locator(".overflow-menu button").first.click()
            self.page.locator(".overflow-dropdown button", has_text=name).click()

    def shot(self, name: str) -> None:
        SHOTS.mkdir(exist_ok=True)
        self.page.wait_for_timeout(350)
        self.page.screenshot(path=str(SHOTS / f"{name}.png"), full_page=True)

    def overflow(self) -> int:
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.fixture
def visit(browser: "Browser", url: str) -> Iterator[Callable[..., Visit]]:
    visits = []

    def open_page(**options) -> Visit:
        visits.append(Visit(browser, url, **options))
        return visits[-1]

    yield open_page
    for one in visits:
        one.leave()
        assert one.faults == []
