"""A run as a page: all of it is there, nothing of it is run."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph import preset, solve
from pdr_graph.budget import Ledger
from pdr_graph.page import _SIGNS, TERMS, _visible, run_page
from pdr_graph.run_history import RoundView, RunHistory
from pdr_graph.types import Solution, Verdict, Workspace
from tests.fakes import drafts_with, make_draft, make_row
from tests.page.browser import CHROMIUM, dom_of

HOSTILE = (
    "</pre></details><script>document.title='owned'</script>"
    "<img src=x onerror=\"document.title='owned'\"><svg onload=\"document.title='owned'\">"
    "<a href=\"javascript:document.title='owned'\">{{ 7 * 7 }}</a>{% raw %}\u202e\ud83d</style>"
)


class Tags(HTMLParser):
    """Collects what a page consists of."""

    VOID = frozenset({"meta", "br", "img", "link"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def past_with(text: str = "All is well.", *, num_drafts: int = 3, rounds: int = 1) -> RunHistory:
    """Return a finished run in which every text is the same."""
    drafts = [
        make_draft(index, "42" if index else text[:40], solution=text)
        for index in range(num_drafts)
    ]
    workspace = Workspace(text=text, tokens=100, estimated=True, sources=[0, 1])
    return RunHistory(
        thread_id=text[:60],
        problem=text,
        config=preset("pdr", kappa=256, answer="text"),
        record=None,
        rounds=[
            RoundView(
                number, num_drafts, [{**each, "round": number} for each in drafts], [workspace]
            )
            for number in range(1, rounds + 1)
        ],
        solution=Solution(text=text, answer=text[:40], truncated=True, finish="refine"),
        verdict=Verdict(verifier="judge", accepted=False, reason=text),
        notes=[text],
        ledger=Ledger(),
        next=(),
        updated_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


@pytest.mark.security
async def test_hostile_text_is_text():
    """No tag, no attribute and no template of a draft's own gets into the page."""
    hostile, harmless = Tags(await run_page(past_with(HOSTILE))), Tags(await run_page(past_with()))
    assert hostile.open == harmless.open == []
    assert hostile.names == harmless.names
    assert "script" not in hostile.names
    followed = {"src", "href", "onerror", "onload", "action", "formaction"}
    for name, value in hostile.attributes:
        assert name not in followed or re.fullmatch(r"#[\w-]+", value or "")
    assert "{{ 7 * 7 }}" in await run_page(past_with(HOSTILE))


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt install chromium")
@pytest.mark.security
async def test_a_browser_runs_none_of_it(tmp_path):
    """In real Chromium the title stays ours; a page without escaping would have changed it."""
    page = tmp_path / "page.html"
    page.write_text(await run_page(past_with(HOSTILE)), "utf-8")
    assert "<title>owned" not in dom_of(page, tmp_path / "profile")
    page.write_text(f"<title>ours</title><body>{HOSTILE}".encode("utf-8", "replace").decode())
    assert "<title>owned" in dom_of(page, tmp_path / "profile")


async def test_a_large_run_is_a_light_page():
    """16 drafts of 8,000 tokens in each of 3 rounds: at most twice their text."""
    text = "So let x be the sum of the digits; then x < 9 & x > 2. " * 600
    past = past_with(text, num_drafts=16, rounds=3)
    began = perf_counter()
    page = await run_page(past)
    assert perf_counter() - began < 20
    whole = len(text) * (16 * 3 + 3 + 2)
    assert whole < len(page.encode()) <= 2 * whole


async def test_the_page_of_a_run_says_what_happened(mock, connect):
    """Drafts, agreement, workspace and where it came from, budgets, the verdict."""
    mock.configure(answers=["42"])
    config = preset("pdr", widths=(4,), max_tokens=512, kappa=256, solution_tokens=256, seed=7)
    result = await solve("What is 6 x 7?", config, model=connect())
    state = result.state
    past = replace(
        past_with(),
        problem="What is 6 x 7?",
        config=config,
        record=state["record"],
        rounds=[RoundView(1, 5, state["drafts"] or drafts_with("42", "42", "41", None))],
        solution=state["solution"],
        ledger=result.ledger,
        next=("drafter",),
    )
    page = await run_page(past)
    for text in (
        "What is 6 x 7?",
        "stopped at drafter",
        "Round 1: 5 drafts",
        "(1 owed)",
        "allotted to the calls",
        f"{result.ledger.b_total:,}",
        "<b>refiner</b>",
        "rejected",
    ):
        assert text in page


async def test_the_graph_shows_each_draft_of_each_round():
    """A dot a draft, coloured by its answer and marked where it was kept; no call is no call."""
    rows = [
        make_row(round=number, node=node, calls=calls)
        for number in (1, 2)
        for node, calls in (("drafter", 3), ("distiller", 0))
    ]
    past = past_with(rounds=2)
    page = await run_page(
        replace(past, ledger=Ledger((*rows, make_row(round=2, node="refiner", calls=1))))
    )
    graph = page.partition('id="graph"')[2].partition("</section>")[0]
    assert re.findall(r'href="#(round-\d)"', graph) == ["round-1", "round-2"]
    assert re.findall(r"<b>(\w+)</b>", graph) == [*("drafter", "distiller") * 2, "refiner"]
    dots = re.findall(r'<i class="(dot[^"]*)"', graph)
    assert dots == ["dot r1 kept", "dot r0 kept", "dot r0"] * 2
    assert graph.count("no call<") == 2
    assert graph.count("1 workspace") == 2


@pytest.mark.parametrize(
    ("accepted", "tone"), [(True, "good"), (False, "bad"), (None, "warn")], ids=str
)
async def test_an_answer_looks_as_it_was_judged(accepted, tone):
    """A glance at the page does not take a rejected answer for a right one."""
    past = past_with()
    judged = replace(
        past,
        config=preset("pdr"),
        verdict=Verdict(verifier="judge", accepted=accepted, reason="It is so."),
    )
    assert f'class="answer {tone}"' in await run_page(judged)
    nobody = replace(judged, verdict=Verdict(verifier="none", accepted=None, reason=""))
    assert 'class="answer "' in await run_page(nobody)


async def test_a_deadline_is_a_budget():
    """Beside the tokens: seconds worked of seconds allowed."""
    config = preset("pdr", deadline_s=60.0, answer="text")
    past = replace(past_with(), config=config, ledger=Ledger((make_row(seconds=15.0),)))
    page = await run_page(past)
    assert "seconds allowed by deadline_s (25 %)" in page


def test_inspect_writes_it(stored, mock, tmp_path):
    """`--html` writes a file and leaves standard output empty; a bad place is named."""
    words = ["--widths", "2", "--max-tokens", "256", "--kappa", "256", "--solution-tokens", "128"]
    assert stored("solve", "1 + 1?", "--thread", "one", *words, "--quiet").code == 0
    page = tmp_path / "deep" / "run.html"
    done = stored("inspect", "one", "--html", str(page))
    assert (done.code, done.out) == (0, "")
    assert f"written: {page}" in done.err
    assert "Run one" in page.read_text("utf-8")
    done = stored("inspect", "one", "--html", "/proc/none/run.html")
    assert done.code in {1, 2}
    assert "cannot be written" in done.err


async def test_the_solution_comes_first_and_is_open():
    """Before the problem, unfolded; drafts have their number and answer as a name."""
    page = await run_page(past_with())
    order = [page.index(f'<h2 id="{each}"') for each in ("solution", "problem", "round-1", "words")]
    assert order == sorted(order)
    assert "<details open><summary>The solution in full" in page
    assert '<b>Draft 2:</b>\n        <span dir="auto">42</span>' in page


async def test_the_words_of_the_method_are_explained():
    """By a link that the keyboard reaches, to a list that is there without hovering."""
    page = await run_page(past_with())
    used = set(re.findall(r'class="term" href="#term-(\w+)" aria-describedby="term-\1"', page))
    assert {"b_seq", "b_total", "kappa", "workspace", "finish"} <= used <= TERMS.keys()
    for name, (word, meaning) in TERMS.items():
        assert f'<dt>{word}</dt><dd id="term-{name}">{meaning.replace(chr(39), "&#39;")}' in page


@pytest.mark.security
@given(text=st.text(st.characters(codec="utf-8", categories=("Cc", "Cf", "Zl", "Zp", "L"))))
def test_control_characters_are_signs(text):
    """None of those that hide or turn text is left, and nothing else is changed."""
    shown = _visible(text)
    assert not set(shown) & {chr(code) for code in _SIGNS}
    plain = "".join(each for each in text if ord(each) not in _SIGNS)
    signs = "".join(str(each) if isinstance(each, str) else chr(each) for each in _SIGNS.values())
    assert all(each in shown for each in plain)
    assert all(each in plain + signs for each in shown)


async def test_control_characters_of_a_run_are_signs():
    """Wherever a model's text is shown."""
    page = await run_page(past_with("a\x1b[31mred\x07 \u202edlrow\r\nnext\x00\tb"))
    assert "a␛[31mred␇ ⟨U+202E⟩dlrow\nnext␀\tb" in page
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", page)
