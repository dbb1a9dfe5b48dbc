"""Whole journeys through the demo in a real Chromium, over recommenders that need no model."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the demo extra is not installed")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from playwright.sync_api import FileChooser, Page, expect
from visitors import ATTACK, TEXTS, Visit

pytest_plugins = ["visitors"]

Visitor = Callable[..., Visit]
expect.set_options(timeout=30_000)  # where eight others share the machine
SHARED = {"history": "shop-0001\nargan shampo dry hair\nsomething against frizz", "model": TEXTS}


def bring(page: Page, path: Path, index: bool = True) -> None:
    """Uploads a file and, when its columns are understood, has it indexed."""
    page.locator(".gh-upload input[type=file]").set_input_files(path)
    if index:
        page.get_by_role("button", name="Index these items").click()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_paste_understand_recommend_details(visit: Visitor, dark: bool) -> None:
    here = visit(dark=dark)
    page = here.page
    expect(page.get_by_text("Recommendations appear here")).to_be_visible()
    if not dark:
        here.shot("desktop_empty")
    here.history.fill(SHARED["history"])
    expect(here.lines).to_have_count(3)
    expect(here.lines.nth(0)).to_contain_text("Ionic Hair Dryer")
    expect(here.lines.nth(0)).to_contain_text("exact")
    expect(here.lines.nth(1)).to_contain_text("Argan Oil Shampoo for Dry Hair")
    expect(here.lines.nth(1)).to_contain_text(re.compile(r"\d\d% sure"))
    expect(here.lines.nth(2)).to_contain_text("in your words")
    here.recommend()
    expect(here.cards).to_have_count(10)
    first = here.cards.first
    expect(first.locator(".gh-token")).to_have_count(3)
    expect(first.locator(".gh-because")).to_contain_text("because you had")
    assert "adds +" in str(first.locator(".gh-token").first.get_attribute("aria-label"))
    assert here.cards.locator(".gh-new").count() > 0
    page.get_by_text("How this answer was made").click()
    details = page.locator(".gh-details:visible")
    expect(details).to_contain_text("What the model generated")
    expect(details.locator(".gh-key li").first).to_contain_text("ms")
    details.locator("summary").first.click()
    expect(details.locator("details[open] .gh-near-items li").first).to_be_visible()
    assert here.overflow() <= 0
    here.shot(f"desktop_{'dark' if dark else 'light'}")


def test_unknown_words(visit: Visitor) -> None:
    here = visit()
    here.history.fill("qwertzuiop asdfghjkl\n\U0001f9f6 \u05e9\u05dc\u05d5\u05dd")
    expect(here.lines).to_have_count(2)
    expect(here.lines.locator("em")).to_have_text(["in your words"] * 2)
    here.recommend()
    expect(here.cards).to_have_count(10)


def test_a_persona_answers_with_one_press(visit: Visitor) -> None:
    here = visit()
    here.page.get_by_role("button", name="Home barista").click()
    expect(here.history).to_have_value(re.compile("espresso machine"))
    expect(here.cards).to_have_count(10)
    expect(here.lines).to_have_count(3)


def test_chips_did_you_mean_move_and_remove(visit: Visitor) -> None:
    here = visit()
    page = here.page
    here.history.fill("ashen crown\nsnuffle mat\ntea")
    here.lines.first.locator(".gh-alternatives button").first.click()
    expect(here.lines.first).to_contain_text("exact")
    here.lines.nth(1).get_by_role("button", name="Move snuffle mat earlier").focus()
    page.keyboard.press("Enter")
    expect(here.history).to_have_value(re.compile(r"^snuffle mat\n.*Ashen Crown.*\ntea$"))
    expect(here.lines.first.locator("button:focus")).to_have_count(1)  # the keyboard goes with the line
    here.lines.nth(2).get_by_role("button", name="Remove tea").click()
    expect(here.lines).to_have_count(2)
    expect(here.history).to_have_value(re.compile(r"Ashen Crown[^\n]*$"))


def test_titles_are_offered_while_typing(visit: Visitor) -> None:
    here = visit()
    page = here.page
    here.history.fill("tea\n")
    here.history.press("Control+End")
    page.keyboard.type("ionic hair dr", delay=10)
    options = page.get_by_role("option")
    expect(options.first).to_be_visible()
    page.keyboard.press("ArrowDown")
    expect(options.first).to_have_attribute("aria-selected", "true")
    assert here.history.get_attribute("aria-activedescendant") == options.first.get_attribute("id")
    title = options.first.inner_text()
    page.keyboard.press("Enter")
    expect(here.history).to_have_value(f"tea\n{title}\n")
    expect(options).to_have_count(0)
    page.keyboard.type("espresso", delay=10)
    expect(options.first).to_be_visible()
    page.keyboard.press("Escape")
    expect(options.first).to_be_hidden()
    page.keyboard.type(" mach", delay=10)
    options.last.click()
    expect(here.history).to_have_value(re.compile(r"^tea\n.*Dryer.*\n.*Espresso Mach.*\n$"))
    here.shot("typeahead")


def test_department_key_press_and_empty_states(visit: Visitor) -> None:
    here = visit()
    page = here.page
    here.recommend()
    expect(page.get_by_text("Recommendations appear here")).to_be_visible()
    page.get_by_label("Department").first.click()
    page.get_by_role("option", name="Pets").click()
    here.history.fill("espresso machine")
    here.history.press("Control+Enter")
    expect(here.cards).to_have_count(10)
    expect(page.locator(".gh-meta").filter(has_text="Pets")).to_have_count(10)
    here.history.fill("the sky falls")
    here.recommend()
    expect(page.get_by_role("alert")).to_contain_text("Something went wrong on our side")
    assert "a secret of the server" not in page.content()


def test_side_by_side_compare_and_learn(visit: Visitor) -> None:
    here = visit()
    page = here.page
    page.get_by_role("radio", name="Side by side").check()
    page.get_by_role("button", name="Home barista").click()
    answers = page.locator(".gh-answer:visible")
    expect(answers).to_have_count(2)
    expect(answers.nth(0).locator("h2")).to_have_text("SETRec")
    expect(answers.nth(1).locator("h2")).to_have_text("IDGenRec")
    expect(answers.nth(0).locator(".gh-token")).to_have_count(30)
    expect(answers.nth(1).locator(".gh-words")).to_have_count(10)
    expect(answers.nth(1).locator("mark").first).to_be_visible()
    page.get_by_text("How this answer was made").click()
    expect(page.locator(".gh-details:visible")).to_have_count(2)
    expect(page.locator(".gh-details .gh-table").first).to_contain_text("no item has it")
    here.shot("side_by_side")
    here.tab("Compare")
    columns = page.locator(".gh-comparison .gh-answer")
    expect(columns.locator("h2")).to_have_text(["SETRec", "IDGenRec", "text-kNN"])
    expect(columns.nth(2).locator(".gh-row")).to_have_count(10)
    expect(page.locator(".gh-comparison .gh-note").first).to_contain_text("share")
    here.shot("compare")
    here.tab("Learn")
    expect(page.locator(".gh-picture svg")).to_have_count(4)
    expect(page.get_by_role("img", name=re.compile("Prefix tree of"))).to_be_visible()
    before = page.locator("svg.gh-mask").last.locator("rect").count()
    page.get_by_label("number input for Items in the history").fill("4")
    page.keyboard.press("Tab")
    expect(page.locator("svg.gh-mask").last.locator("rect")).to_have_count(before // 13 * 16 * 16 // 13)
    here.shot("learn")


def test_script_stays_text_everywhere(visit: Visitor, tmp_path: Path) -> None:
    here = visit()
    page = here.page
    here.history.fill(f"zebra lamp traps\n{ATTACK}")
    expect(here.lines.nth(1)).to_contain_text(ATTACK)
    page.get_by_label("Hide what I already have").first.uncheck()
    page.get_by_role("radio", name="Side by side").check()
    here.recommend()
    expect(here.cards.first.locator("h3")).to_have_text(ATTACK)
    page.get_by_text("How this answer was made").click()
    expect(page.locator(".gh-details:visible").last).to_contain_text(ATTACK)
    here.tab("Compare")
    expect(page.locator(".gh-comparison .gh-row").first.locator("h3")).to_have_text(ATTACK)
    here.tab("Learn")
    expect(page.locator(".gh-picture svg")).to_have_count(4)
    here.tab("Your catalogue")
    path = tmp_path / "<script>alert(1)<img src=x onerror=alert(2)>.csv"
    path.write_text(f'item_id,title,"{ATTACK}"\n1,"{ATTACK}","{ATTACK}"\n2,lamp,x\n')
    bring(page, path, index=False)
    expect(page.locator(".gh-mapping .gh-table th").nth(2)).to_contain_text(ATTACK)
    expect(page.locator(".gh-mapping .gh-table td").nth(1)).to_contain_text("<script>")
    page.get_by_label("Brand").click()
    page.get_by_role("option").nth(3).click()
    page.get_by_role("button", name="Index these items").click()
    expect(page.locator(".gh-done")).to_contain_text("2 items")
    page.wait_for_timeout(300)
    assert page.locator(".gradio-container .gh-status img, .gradio-container .prose script, .gh-panel img, .gh-panel script").count() == 0
    assert page.evaluate("document.querySelectorAll('img[src=\"x\"]').length") == 0


def test_ten_thousand_rows_progress_cancel_recommend_download(visit: Visitor, tmp_path: Path) -> None:
    here = visit()
    page = here.page
    here.tab("Your catalogue")
    path = tmp_path / "big shop.csv"
    path.write_text("sku,what,kind\n" + "".join(f"=s{n},+{['red', 'blue', 'green'][n % 3]} wool {n},Yarn\n" for n in range(10_000)))
    bring(page, path, index=False)
    expect(page.locator(".gh-mapping")).to_contain_text("10,000 rows, 3 columns")
    expect(page.get_by_label("Id", exact=True)).to_have_value("sku")
    page.get_by_role("button", name="Index these items").click()
    expect(page.get_by_role("alert")).to_contain_text("The titles are missing")
    page.get_by_label("Title", exact=True).click()
    page.get_by_role("option", name="what").click()
    here.shot("catalogue_columns")
    page.get_by_role("button", name="Index these items").click()
    bar = page.get_by_role("progressbar")
    expect(bar).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".gh-status").first).to_contain_text("Nothing was indexed")
    page.get_by_role("button", name="Index these items").click()
    expect(bar).to_have_attribute("aria-valuenow", re.compile(r"^[1-9]\d*$"))
    here.shot("catalogue_progress")
    expect(page.locator(".gh-done")).to_contain_text("10,000 items")
    page.locator(".gh-suggestions:visible button").first.click()
    expect(here.lines).to_have_count(1)
    here.recommend()
    expect(here.cards).to_have_count(10)
    here.shot("catalogue")
    for kind in ("CSV", "JSONL"):
        with page.expect_download() as saved:
            page.get_by_role("button", name=f"Download identifiers ({kind})").click()
        text = Path(saved.value.path()).read_text("utf-8-sig")
        assert saved.value.suggested_filename == f"identifiers.{kind.lower()}"
        assert len(text.splitlines()) == 10_000 + (kind == "CSV")
        if kind == "CSV":
            assert text.splitlines()[1].startswith('"\'=s0","\'+red wool 0"')
        else:
            assert json.loads(text.splitlines()[0])["item_id"] == "=s0"
    page.get_by_role("button", name="Forget my catalogue").click()
    expect(page.get_by_role("button", name="Recommend from my catalogue")).to_be_hidden()


def test_a_wrong_file_gets_one_sentence(visit: Visitor, tmp_path: Path, items_csv: Path) -> None:
    here = visit()
    page = here.page
    here.tab("Your catalogue")
    wrong = tmp_path / "wrong.csv"
    wrong.write_bytes("item_id,title\n1,caf\xe9".encode("latin-1"))
    bring(page, wrong, index=False)
    expect(page.get_by_role("alert")).to_contain_text("wrong.csv is not UTF-8 text")
    here.shot("catalogue_wrong_file")
    large = tmp_path / "large.csv"
    with large.open("wb") as file:
        file.truncate(200 * 2**20)
    bring(page, large, index=False)
    refused = page.locator(".gh-refusal p")
    expect(refused).to_have_text("large.csv has 200 MB, the limit is 20 MB: upload a part of it, or drop columns.")
    bomb = tmp_path / "bomb.zip"
    bomb.write_bytes(b"PK")
    bring(page, bomb, index=False)
    expect(refused).to_contain_text("bomb.zip is of an unknown kind")
    bring(page, items_csv)
    expect(page.locator(".gh-done")).to_contain_text("10 items in 2 departments")
    expect(refused).to_be_hidden()


def test_a_refresh_brings_everything_back(visit: Visitor) -> None:
    here = visit()
    page = here.page
    here.history.fill(SHARED["history"])
    page.get_by_role("radio", name="IDGenRec").check()
    page.get_by_label("number input for How many").first.fill("4")
    page.get_by_label("Hide what I already have").first.uncheck()
    page.get_by_label("Department").first.click()
    page.get_by_role("option", name="Hair Care & Beauty").click()
    expect(here.lines).to_have_count(3)
    page.wait_for_timeout(2000)  # what is kept is written when the server has answered
    page.reload()
    expect(here.history).to_have_value(SHARED["history"])
    expect(here.cards).to_have_count(4)
    expect(here.cards.locator(".gh-words")).to_have_count(4)
    expect(page.get_by_label("Department").first).to_have_value("Hair Care & Beauty")
    expect(page.get_by_label("Hide what I already have").first).not_to_be_checked()


def test_a_link_to_a_history(visit: Visitor) -> None:
    here = visit(address="#history=snuffle%20mat%0Apuppy%20food&model=" + TEXTS)
    expect(here.history).to_have_value("snuffle mat\npuppy food")
    expect(here.cards.locator(".gh-words")).to_have_count(10)
    assert "history" not in here.page.url
    here.context.grant_permissions(["clipboard-read", "clipboard-write"])
    here.page.get_by_role("button", name="Copy link to this history").click()
    expect(here.page.locator(".gh-said")).to_have_text("Link copied")
    link = here.page.evaluate("navigator.clipboard.readText()")
    assert link.endswith(f"#history=snuffle+mat%0Apuppy+food&model={TEXTS}")


def test_two_tabs_do_not_mix(visit: Visitor, items_csv: Path, tmp_path: Path) -> None:
    here = visit()
    other = tmp_path / "tea.jsonl"
    other.write_text("".join(json.dumps({"item_id": f"t{n}", "title": f"Green tea no. {n}"}) + "\n" for n in range(4)))
    pages = [here.page, here.open()]
    for page, path in zip(pages, (items_csv, other), strict=True):
        page.get_by_role("tab", name="Your catalogue").click()
        bring(page, path)
    for page, count in zip(pages, (10, 4), strict=True):
        expect(page.locator(".gh-done")).to_contain_text(f"{count} items")
        page.locator(".gh-history textarea:visible").fill("something green")
        page.get_by_role("button", name="Recommend from my catalogue").click()
    expect(pages[0].locator(".gh-card:not(.gh-ghost):visible")).to_have_count(10)
    expect(pages[1].locator(".gh-card:not(.gh-ghost):visible")).to_have_count(4)
    expect(pages[0].locator(".gh-card:visible").first).to_contain_text("Knitwell")
    expect(pages[1].locator(".gh-card:visible").first).to_contain_text("Green tea")


def reach(page: Page, what: str, most: int = 60) -> None:
    """Presses Tab until something has the keyboard."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("(what) => document.activeElement.matches(what)", what):
            return
    raise AssertionError(f"{what} is out of the keyboard's reach")


def test_by_keyboard_alone(visit: Visitor) -> None:
    here = visit()
    page = here.page
    reach(page, ".gh-personas button")
    reach(page, ".gh-model input")
    page.keyboard.press("ArrowRight")
    reach(page, ".gh-history textarea")
    page.keyboard.type("espresso machine\nsnuffle mat")
    expect(here.lines).to_have_count(2)
    page.keyboard.press("Escape")
    reach(page, ".gh-moves [data-do=remove]")
    reach(page, "button.gh-go")
    page.keyboard.press("Enter")
    expect(here.cards.locator(".gh-words")).to_have_count(10)
    reach(page, ".gh-fold button")
    page.keyboard.press("Enter")
    expect(page.locator(".gh-details:visible")).to_contain_text("What the model considered")
    page.get_by_role("tab", name="Recommend").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_a_catalogue_by_keyboard_alone(visit: Visitor, items_csv: Path) -> None:
    here = visit()
    page = here.page
    reach(page, "[role=tab]")
    while page.evaluate("document.activeElement.textContent.trim()") != "Your catalogue":
        reach(page, "[role=tab]", 1)
    page.keyboard.press("Enter")
    expect(page.locator(".gh-upload button")).to_be_visible()
    choosers: list[FileChooser] = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    for _ in range(5):  # a tab that has just been drawn may draw the button anew under the first key
        reach(page, ".gh-upload button")
        page.keyboard.press("Enter")
        page.wait_for_timeout(2000)
        if choosers:
            break
    choosers[0].set_files(items_csv)
    expect(page.locator(".gh-mapping .gh-table")).to_be_visible()
    reach(page, ".gh-fields input")
    reach(page, ".gh-index")
    page.keyboard.press("Enter")
    expect(page.locator(".gh-done")).to_contain_text("10 items")
    reach(page, ".gh-suggestions button")
    page.keyboard.press("Enter")
    expect(here.lines).to_have_count(1)
    reach(page, "button.gh-go")
    page.keyboard.press("Enter")
    expect(here.cards).to_have_count(9)
    reach(page, ".gh-downloads button")
    with page.expect_download() as saved:
        page.keyboard.press("Enter")
    assert saved.value.suggested_filename == "identifiers.csv"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_never_scrolls_sideways(visit: Visitor, dark: bool, items_csv: Path) -> None:
    here = visit(width=400, dark=dark)
    page = here.page
    here.history.fill("x" * 300)
    page.get_by_role("radio", name="Side by side").check()
    page.get_by_role("button", name="First camping trip").click()
    expect(here.cards).to_have_count(20)
    expect(here.lines).to_have_count(3)
    assert here.overflow() <= 0
    here.shot(f"phone_{'dark' if dark else 'light'}")
    for tab, ready in (
        ("Your catalogue", ".gh-upload"),
        ("Compare", ".gh-row"),
        ("Learn", ".gh-picture svg"),
        ("API", ".cm-content"),
        ("About", ".gh-about"),
    ):
        here.tab(tab)
        expect(page.locator(ready).first).to_be_visible()
        if tab == "Your catalogue":
            bring(page, items_csv, index=False)
            expect(page.locator(".gh-mapping .gh-table")).to_be_visible()
        assert here.overflow() <= 0, tab
        here.shot(f"phone_{tab.split()[-1].lower()}_{'dark' if dark else 'light'}")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious(visit: Visitor, dark: bool, items_csv: Path) -> None:
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="axe-core-python is not installed")
    here = visit(dark=dark)
    page, found = here.page, {}
    options = {"resultTypes": ["violations"], **({"runOnly": ["color-contrast"]} if dark else {})}  # only colours differ in the dark

    def check(name: str) -> None:
        page.wait_for_timeout(400)  # no colour is judged half way through a fade
        for violation in axe.Axe().run(page, options=options)["violations"]:
            if violation["impact"] in ("serious", "critical"):
                found[f"{name}: {violation['id']}"] = [node["html"][:200] for node in violation["nodes"]]

    check("empty")
    here.history.fill("ashen crown\nsnuffle mat")
    page.get_by_role("radio", name="Side by side").check()
    page.get_by_label("number input for How many").first.fill("3")
    here.recommend()
    expect(here.cards).to_have_count(6)
    page.get_by_text("How this answer was made").click()
    expect(page.locator(".gh-details:visible")).to_have_count(2)
    check("recommend")
    for tab, ready in (("Compare", ".gh-row"), ("Learn", ".gh-picture svg"), ("API", ".cm-content"), ("About", ".gh-about")):
        here.tab(tab)
        expect(page.locator(ready).first).to_be_visible()
        check(tab)
    here.tab("Your catalogue")
    bring(page, items_csv, index=False)
    expect(page.locator(".gh-mapping .gh-table")).to_be_visible()
    check("columns")
    page.get_by_role("button", name="Index these items").click()
    expect(page.locator(".gh-done")).to_be_visible()
    check("own catalogue")
    assert found == {}


def test_screen_readers_hear_names(visit: Visitor, items_csv: Path) -> None:
    here = visit()
    page = here.page
    page.get_by_role("button", name="New puppy").click()
    expect(here.cards).to_have_count(10)
    unnamed = {}
    for tab, ready in (
        ("Recommend", ".gh-card"),
        ("Compare", ".gh-row"),
        ("Learn", ".gh-picture svg"),
        ("API", ".cm-content"),
        ("About", ".gh-about"),
        ("Your catalogue", ".gh-mapping .gh-table"),
    ):
        here.tab(tab)
        if tab == "Your catalogue":
            bring(page, items_csv, index=False)
        expect(page.locator(ready).first).to_be_visible()
        unnamed[tab] = page.evaluate(
            """() => [...document.querySelectorAll("button, input, textarea, select, [role=button], [role=img], [role=region]")]
            .filter((one) => one.checkVisibility() && !(one.ariaLabel || one.labels?.length || one.textContent.trim() || one.title
                || one.getAttribute("aria-labelledby") || one.placeholder)).map((one) => one.outerHTML.slice(0, 150))"""
        )
    assert not any(unnamed.values()), unnamed
    assert page.evaluate("document.documentElement.lang") == "en"
