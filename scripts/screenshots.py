"""Takes the README's pictures of the app, with the embedded checkpoints and Debian's chromium.

python scripts/screenshots.py                 docs/app.png, docs/app-phone.png and docs/app-compare.png
python scripts/screenshots.py --output /tmp   elsewhere
"""

import argparse
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from genrec_hub import demo

DOCS = Path(__file__).resolve().parent.parent / "docs"
CHROMIUM = "/usr/bin/chromium"
HISTORY = "espreso machine steam wand\nHand Coffee Grinder for Travel\nsomething for latte art"


def visit(browser: Browser, url: str, width: int = 1280, dark: bool = False) -> Page:
    """Opens the app and waits until it can be used."""
    theme = "dark" if dark else "light"
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme).new_page()
    page.goto(f"{url}?__theme={theme}")
    page.get_by_role("button", name="Recommend", exact=True).wait_for()
    return page


def ask(page: Page, model: str) -> None:
    """Has a model answer the example."""
    page.locator(".gh-history textarea:visible").fill(HISTORY)
    page.locator(".gh-line").nth(2).wait_for(timeout=120_000)
    page.get_by_role("radio", name=model, exact=True).check()
    page.locator("button.gh-go:visible").click()
    page.locator(".gh-card:not(.gh-ghost)").first.wait_for(timeout=120_000)


def keep(page: Page, path: Path) -> None:
    """Takes a picture of what is to be seen."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(1200)
    page.screenshot(path=path)
    print(path)


def main() -> None:
    """Parses the command line and takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DOCS, help="folder")
    folder = parser.parse_args().output
    app, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = visit(browser, url)
        ask(page, "Side by side")
        ask(page, "SETRec")  # once more, when everything is warm
        page.evaluate("scrollTo(0, 0)")
        keep(page, folder / "app.png")
        page.get_by_role("tab", name="Compare").click()
        page.locator(".gh-row").first.wait_for(timeout=120_000)
        keep(page, folder / "app-compare.png")
        page = visit(browser, url, width=400, dark=True)
        ask(page, "IDGenRec")
        page.locator(".gh-note").first.scroll_into_view_if_needed()
        page.wait_for_timeout(1500)
        keep(page, folder / "app-phone.png")
        browser.close()
    app.get_blocks().close(verbose=False)


if __name__ == "__main__":
    main()
