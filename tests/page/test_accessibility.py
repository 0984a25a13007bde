"""Both pages under axe-core, in both themes, on a desk and on a phone: `make test-browser`."""

import asyncio

import pytest

from pdr_graph.eval.comparison import compare
from pdr_graph.eval.comparison_page import comparison_page
from pdr_graph.page import run_page
from tests.eval.recorded import draft, recorded, sample, workspace
from tests.page.browser import CHROMIUM
from tests.page.test_run_page import past_with

LONG = "So let x be the sum of the digits; then x < 9 & x > 2. " * 1000
"""About 20,000 tokens."""

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright and axe: make test-browser"
)
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="needs playwright and axe: make test-browser"
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Return a page of each kind, as files."""
    folder = tmp_path_factory.mktemp("pages")
    drafts = [draft(0, "7"), draft(1, "8")]
    made = [
        sample(
            arm, f"p{n}", answer="7" if n % 3 else "8", drafts=drafts, workspaces=[workspace(True)]
        )
        for arm in ("pdr", "majority")
        for n in range(6)
    ]
    found = asyncio.run(compare([recorded(folder / "run", made)]))
    texts = {
        "run": asyncio.run(
            run_page(past_with("A long word: " + "x" * 300, num_drafts=9, rounds=2))
        ),
        "large": asyncio.run(run_page(past_with(LONG, num_drafts=16, rounds=3))),
        "comparison": comparison_page(found),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, "utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.fixture(scope="module")
def chromium(pages):
    """Return a browser; its own event loop runs from then on, so the pages are made before."""
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt install chromium")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["run", "comparison"])
def test_nothing_is_in_a_readers_way(chromium, pages, name, theme, width):
    """No violation of axe's rules, and no page wider than its screen."""
    context = chromium.new_context(
        color_scheme=theme,
        viewport={"width": width, "height": 900},
        bypass_csp=True,  # for axe's own script
    )
    page = context.new_page()
    page.goto(pages[name].as_uri())
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_the_keyboard_reaches_every_draft(chromium, pages):
    """Tab goes from fold to fold, and Enter opens one."""
    page = chromium.new_page()
    page.goto(pages["run"].as_uri())
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('.draft') !== null"):
            break
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelectorAll('.draft[open]').length") == 1


def test_a_link_to_a_draft_opens_it(chromium, pages):
    """By keyboard, from the workspace to what entered it, and with nothing else unfolded."""
    page = chromium.new_page()
    page.goto(pages["run"].as_uri())
    page.focus("a[href='#draft-1-1']")
    page.keyboard.press("Enter")
    page.wait_for_selector("#draft-1-1:visible")
    assert page.evaluate("document.querySelectorAll('.draft[open]').length") == 1


def test_a_page_of_a_million_tokens_opens_within_two_seconds(chromium, pages):
    """48 drafts of 20,000 tokens: seconds of the page's thread, which no other work stretches."""
    seconds = []
    for _ in range(3):
        page = chromium.new_page()
        figures = page.context.new_cdp_session(page)
        figures.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto(pages["large"].as_uri())
        found = figures.send("Performance.getMetrics")["metrics"]
        seconds.append(next(each["value"] for each in found if each["name"] == "TaskDuration"))
        page.close()
    assert min(seconds) <= 2, seconds


def test_a_word_is_explained_on_hover_and_by_keyboard(chromium, pages):
    """And nothing is shown before."""
    page = chromium.new_page()
    page.goto(pages["run"].as_uri())
    tip = page.locator("a.term[href='#term-b_seq'] .tip").first
    assert not tip.is_visible()
    page.hover("a.term[href='#term-b_seq']")
    assert tip.is_visible()
    page.mouse.move(0, 0)
    assert not tip.is_visible()
    page.focus("a.term[href='#term-b_total']")
    page.keyboard.press("Tab")
    assert tip.is_visible()


def test_a_wide_table_keeps_its_first_column_in_sight(chromium, pages):
    """On a phone, scrolled to the last column, a row still says whose it is."""
    page = chromium.new_page(viewport={"width": 390, "height": 900})
    page.goto(pages["comparison"].as_uri())
    left = page.evaluate(
        "(() => { const box = document.querySelector('.wide'); box.scrollLeft = 10000;"
        " return box.querySelector('tbody th').getBoundingClientRect().left"
        " - box.getBoundingClientRect().left; })()"
    )
    assert left == 0
