"""The demo: its endpoints through gradio_client, and whole journeys in a real Chromium, over a recommender that needs no model."""

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

pytest.importorskip("gradio", reason="the demo extra is not installed")

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from genrec_hub import demo, demo_uploads
from genrec_hub.catalog import Catalog, Item
from genrec_hub.history import History, Match

if TYPE_CHECKING:
    from playwright.sync_api import Browser

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


def _words(text: str) -> set[str]:
    return {word.rstrip("s") for word in re.findall(r"\w{3,}", text.casefold())}


class FakeRecommender:
    """Ranks by shared words, with an identifier of three tokens whose scores add up; the interface of the real pipeline."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

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
        ranked = []
        for row in rows:
            item = self.catalog[row]
            overlap = [len(_words(item.title) & _words(old.title)) * 2 + len(_words(item.line) & _words(old.line)) for old in seen]
            score = (sum(overlap) + 0.5) / (8.0 * len(overlap) or 1)
            best = max(range(len(overlap)), key=overlap.__getitem__, default=None)
            share = overlap[best] / (sum(overlap) or 1) if best is not None else 0.0
            ranked.append((score, row, best if share else None, share))
        ranked.sort(key=lambda entry: (-entry[0], entry[1]))
        answer = []
        for rank, (score, row, best, share) in enumerate(ranked[:top_k], 1):
            item = asdict(self.catalog[row])
            if "xss" in item["item_id"]:
                item["title"] = ATTACK
            because = {"item": asdict(seen.items[best]), "share": share} if best is not None else None
            answer.append({"item": item, "score": score, "rank": rank, "identifier": self._identifier(row, score), "because": because})
        return answer

    def identify(self) -> list[dict]:
        return [
            {"item_id": item.item_id, "title": item.title, "identifier": self._identifier(row, 1.0)}
            for row, item in enumerate(self.catalog)
        ]

    def with_catalog(self, catalog: Catalog, progress: Callable[[int, int], object] | None = None) -> "FakeRecommender":
        for done in range(0, len(catalog) + 1, 100):
            if progress:
                progress(done, len(catalog))
        return FakeRecommender(catalog)

    def _identifier(self, row: int, score: float) -> dict:
        item = self.catalog[row]
        leaf = item.categories.split(" > ")[-1].casefold() or "anything"
        labels = [leaf, " ".join(sorted(_words(item.title))[:2]), item.brand.casefold() or item.department.casefold() or "no brand"]
        parts = (0.55, 0.3, 0.15)
        return {"tokens": [{"slot": f"sem{i + 1}", "score": part * score, "label": labels[i]} for i, part in enumerate(parts)]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    attacked = Catalog([*Catalog.from_file(SHOP), Item("xss", title="zebra lamp", categories="Traps")])
    models = {"setrec-foundation": lambda: FakeRecommender(attacked)}
    app, local, _ = demo.launch(models, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield local
    app.get_blocks().close(verbose=False)


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return Client(url, verbose=False)


@pytest.fixture
def items_csv(tmp_path: Path) -> Path:
    path = tmp_path / "my shop.csv"
    rows = ["item_id,title,brand,categories"]
    rows += [f"w{n},{colour} wool yarn {n},Knitwell,Yarn" for n, colour in enumerate(["red", "blue", "green", "grey", "black"])]
    rows += [f"n{n},Bamboo knitting needles {n} mm,Knitwell,Needles" for n in range(2, 7)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


# ---------------------------------------------------------------- endpoints


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
    answer = client.predict("argan oil shampoo\nionic hair dryer", "setrec-foundation", 5, True, api_name="/recommend")
    cards = answer["recommendations"]
    assert [card["rank"] for card in cards] == [1, 2, 3, 4, 5]
    assert set(cards[0]["item"]) == {"item_id", "title", "brand", "categories", "description", "price", "text"}
    for card in cards:
        tokens = card["identifier"]["tokens"]
        assert all(set(token) == {"slot", "score", "label"} and token["label"] for token in tokens)
        assert sum(token["score"] for token in tokens) == pytest.approx(card["score"])
    assert set(cards[0]["because"]) == {"item", "share"}


def test_recommend_counts_what_is_seen_only_when_asked(client: Client) -> None:
    def ids(exclude: bool) -> set[str]:
        answer = client.predict("shop-0001", "setrec-foundation", 10, exclude, api_name="/recommend")
        return {card["item"]["item_id"] for card in answer["recommendations"]}

    assert "shop-0001" in ids(False)
    assert "shop-0001" not in ids(True)


def test_search(client: Client) -> None:
    found = client.predict("espreso machine", 3, api_name="/search")
    assert len(found) == 3
    assert "Espresso Machine" in found[0]["title"]


def test_identify(client: Client, items_csv: Path) -> None:
    listed = client.predict(handle_file(items_csv), "setrec-foundation", api_name="/identify")
    assert [item["item_id"] for item in listed][:6] == ["w0", "w1", "w2", "w3", "w4", "n2"]
    assert all(set(item) == {"item_id", "title", "identifier"} and item["identifier"]["tokens"] for item in listed)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("", "setrec-foundation", 5, True), "The history is empty"),
        ((" \n ", "setrec-foundation", 5, True), "The history is empty"),
        (("coffee", "gpt-9", 5, True), "There is no model 'gpt-9': the models here are setrec-foundation"),
        (("coffee", "setrec-foundation", 0, True), "give a whole number from 1 to 50"),
        (("coffee", "setrec-foundation", 51, True), "give a whole number from 1 to 50"),
        (("coffee", "setrec-foundation", 2.5, True), "give a whole number from 1 to 50"),
        (("the sky falls", "setrec-foundation", 5, True), "Something went wrong on our side"),
        (("x" * 30_000, "setrec-foundation", 5, True), "the limit is 20,000"),
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
        ("items.csv", b"item_id,title\n" + b"\n".join(b"%d,thing" % n for n in range(demo_uploads.MAX_ROWS + 1)), "the limit of this page"),
    ],
)
def test_a_wrong_file_gets_one_sentence(client: Client, tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(AppError, match=re.escape(sentence)):
        client.predict(handle_file(path), "setrec-foundation", api_name="/identify")


def test_a_file_too_large_is_refused(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    path.write_bytes(b"item_id,title\n" + b"x" * (demo_uploads.MAX_BYTES + 1))
    with pytest.raises(Exception, match=r"(?i)maximum|large|413"):
        client.predict(handle_file(path), "setrec-foundation", api_name="/identify")


def test_a_parquet_that_unpacks_to_too_much_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.parquet"
    Catalog([Item("a", title="one" * 50)]).to_file(path)
    monkeypatch.setattr(demo_uploads, "MAX_UNPACKED_BYTES", 10)
    with pytest.raises(ValueError, match="unpacks to"):
        demo_uploads.read_upload(str(path))
    assert not path.exists()


def test_uploads_leave_nothing_on_disk(client: Client, url: str, items_csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = f"nothing-stays-{time.time_ns()}"
    items_csv.write_text(f"item_id,title\n1,{marker}\n")
    read: list[str] = []
    original = demo_uploads.read_upload
    monkeypatch.setattr(demo, "read_upload", lambda path: read.append(path) or original(path))
    client.predict(handle_file(items_csv), "setrec-foundation", api_name="/identify")
    assert read
    assert not Path(read[0]).exists()
    assert not Path(read[0]).parent.exists()


def test_files_that_were_not_uploaded_are_neither_read_nor_deleted(url: str, items_csv: Path) -> None:
    import httpx

    payload = {"data": [{"path": str(items_csv), "meta": {"_type": "gradio.FileData"}}, "setrec-foundation"]}
    event = httpx.post(f"{url}gradio_api/call/identify", json=payload).json()["event_id"]
    answer = httpx.get(f"{url}gradio_api/call/identify/{event}", timeout=30).text
    assert "event: error" in answer
    assert "wool yarn" not in answer
    assert items_csv.exists()


def test_two_identical_uploads_at_once_both_succeed(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item_id,title\n1,one\n")
    first = demo_uploads.read_upload(str(path))
    assert demo_uploads.read_upload(str(path)) is first


def test_a_model_is_loaded_once_and_only_when_needed() -> None:
    calls = []
    demo.build_demo({"m": lambda: calls.append(1)})  # type: ignore[func-returns-value, arg-type, return-value, dict-item]
    assert not calls


def test_agents_get_described_tools(url: str) -> None:
    pytest.importorskip("mcp")
    import httpx

    tools = {tool["name"]: tool for tool in httpx.get(f"{url}gradio_api/mcp/schema").json()}
    assert {name.split("_")[-1] for name in tools} == {"recommend", "search", "identify"}
    assert all(tool["description"] for tool in tools.values())
    recommend = next(tool for name, tool in tools.items() if name.endswith("recommend"))
    assert recommend["inputSchema"]["properties"]["history"]["description"].startswith("what was bought")


def test_the_snippets_name_the_server() -> None:
    python, curl, _, mcp = demo.snippets("http://host:1/sub/", "some-model")
    assert 'Client("http://host:1/sub/")' in python
    assert "some-model" in python
    assert "http://host:1/sub/gradio_api/call/recommend" in curl
    assert json.loads(mcp)["mcpServers"]["genrec_hub"]["url"] == "http://host:1/sub/gradio_api/mcp/"


# ---------------------------------------------------------------- a real browser


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

    def __init__(self, browser: "Browser", url: str, width: int, dark: bool) -> None:
        self.faults: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
        self.page.on("dialog", lambda dialog: (self.faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("pageerror", lambda error: self.faults.append(f"script error {error}"))
        host = urlsplit(url).netloc
        self.page.on("request", lambda r: r.url.startswith("http") and urlsplit(r.url).netloc != host and self.faults.append(r.url))
        self.page.goto(f"{url}?__theme={'dark' if dark else 'light'}")
        self.page.get_by_role("button", name="Recommend", exact=True).wait_for()

    def shot(self, name: str) -> None:
        SHOTS.mkdir(exist_ok=True)
        self.page.wait_for_timeout(350)
        self.page.screenshot(path=str(SHOTS / f"{name}.png"), full_page=True)

    def overflow(self) -> int:
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.fixture
def visit(browser: "Browser", url: str) -> Iterator[Callable[..., Visit]]:
    visits = []

    def open_page(width: int = 1280, dark: bool = False) -> Visit:
        visits.append(Visit(browser, url, width, dark))
        return visits[-1]

    yield open_page
    for one in visits:
        one.page.close()
        assert one.faults == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_paste_understand_recommend(visit: Callable[..., Visit], dark: bool) -> None:
    from playwright.sync_api import expect

    here = visit(dark=dark)
    page = here.page
    expect(page.get_by_text("Recommendations appear here")).to_be_visible()
    if not dark:
        here.shot("desktop_empty")
    page.get_by_label("What did you buy?").first.fill("shop-0001\nargan shampo dry hair\nsomething against frizz")
    lines = page.locator(".gh-line")
    expect(lines).to_have_count(3)
    expect(lines.nth(0)).to_contain_text("Ionic Hair Dryer")
    expect(lines.nth(1)).to_contain_text("Argan Oil Shampoo for Dry Hair")
    expect(lines.nth(1)).to_contain_text("sure")
    expect(lines.nth(2)).to_contain_text("in your words")
    page.get_by_role("button", name="Recommend", exact=True).click()
    cards = page.locator(".gh-card:not(.gh-ghost)")
    expect(cards).to_have_count(10)
    expect(cards.first.locator(".gh-token")).to_have_count(3)
    expect(cards.first.locator(".gh-because")).to_contain_text("because you had")
    cards.first.locator(".gh-token").first.hover()
    assert "adds +" in cards.first.locator(".gh-token").first.get_attribute("aria-label")
    assert here.overflow() <= 0
    here.shot(f"desktop_{'dark' if dark else 'light'}")


def test_a_persona_answers_with_one_press(visit: Callable[..., Visit]) -> None:
    from playwright.sync_api import expect

    page = visit().page
    page.get_by_role("button", name="Home barista").click()
    expect(page.get_by_label("What did you buy?").first).to_have_value(re.compile("espresso machine"))
    expect(page.locator(".gh-card:not(.gh-ghost)")).to_have_count(10)
    expect(page.locator(".gh-line")).to_have_count(3)


def test_did_you_mean_and_remove(visit: Callable[..., Visit]) -> None:
    from playwright.sync_api import expect

    page = visit().page
    box = page.get_by_label("What did you buy?").first
    box.fill("ashen crown\nsnuffle mat")
    page.locator(".gh-line").first.locator(".gh-alternatives button").first.click()
    expect(page.locator(".gh-line").first).to_contain_text("exact")
    page.locator(".gh-line").nth(1).locator(".gh-remove").click()
    expect(page.locator(".gh-line")).to_have_count(1)
    expect(box).to_have_value(re.compile(r"Ashen Crown[^\n]*$"))


def test_department_key_press_and_empty_states(visit: Callable[..., Visit]) -> None:
    from playwright.sync_api import expect

    page = visit().page
    page.get_by_role("button", name="Recommend", exact=True).click()
    expect(page.get_by_text("Recommendations appear here")).to_be_visible()
    page.get_by_label("Department").first.click()
    page.get_by_role("option", name="Pets").click()
    box = page.get_by_label("What did you buy?").first
    box.fill("espresso machine")
    box.press("Control+Enter")
    cards = page.locator(".gh-card:not(.gh-ghost)")
    expect(cards).to_have_count(10)
    expect(page.locator(".gh-meta").filter(has_text="Pets")).to_have_count(10)
    box.fill("the sky falls")
    page.get_by_role("button", name="Recommend", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("Something went wrong on our side")
    assert "secret" not in page.content()


def test_script_in_a_line_and_in_a_title_stays_text(visit: Callable[..., Visit]) -> None:
    from playwright.sync_api import expect

    here = visit()
    page = here.page
    page.get_by_label("What did you buy?").first.fill(f"zebra lamp traps\n{ATTACK}")
    expect(page.locator(".gh-line").nth(1)).to_contain_text(ATTACK)
    page.get_by_label("Hide what I already have").first.uncheck()
    page.get_by_role("button", name="Recommend", exact=True).click()
    expect(page.locator(".gh-card h3").first).to_have_text(ATTACK)
    page.wait_for_timeout(300)
    assert page.locator(".gh-panel img, .gh-panel script").count() == 0


def test_upload_then_recommend_from_it(visit: Callable[..., Visit], items_csv: Path, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    here = visit()
    page = here.page
    page.get_by_role("tab", name="Your catalogue").click()
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("colour\nred\n")
    page.locator(".gh-upload input[type=file]").set_input_files(wrong)
    expect(page.get_by_role("alert")).to_contain_text("no column item_id")
    here.shot("catalogue_wrong_file")
    page.locator(".gh-upload input[type=file]").set_input_files(items_csv)
    expect(page.locator(".gh-done")).to_contain_text("10 items in 2 departments")
    page.locator(".gh-suggestions:visible button").first.click()
    expect(page.locator(".gh-line:visible")).to_have_count(1)
    page.get_by_role("button", name="Recommend from my catalogue").click()
    cards = page.locator(".gh-card:not(.gh-ghost):visible")
    expect(cards).to_have_count(9)
    expect(cards.first).to_contain_text("Knitwell")
    here.shot("catalogue")
    page.get_by_role("button", name="Forget my catalogue").click()
    expect(page.get_by_role("button", name="Recommend from my catalogue")).to_be_hidden()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_never_scrolls_sideways(visit: Callable[..., Visit], dark: bool) -> None:
    from playwright.sync_api import expect

    here = visit(width=400, dark=dark)
    page = here.page
    page.get_by_label("What did you buy?").first.fill("x" * 300)
    page.get_by_role("button", name="First camping trip").click()
    expect(page.locator(".gh-card:not(.gh-ghost)")).to_have_count(10)
    expect(page.locator(".gh-line")).to_have_count(3)
    assert here.overflow() <= 0
    here.shot(f"phone_{'dark' if dark else 'light'}")
    for tab in ("Your catalogue", "API", "About"):
        if not page.get_by_role("tab", name=tab).is_visible():
            page.locator(".overflow-menu button").first.click()
            page.locator(".overflow-dropdown button", has_text=tab).click()
        else:
            page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(150)
        assert here.overflow() <= 0
        here.shot(f"phone_{tab.split()[-1].lower()}_{'dark' if dark else 'light'}")
