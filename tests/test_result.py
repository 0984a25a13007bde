"""What `print` and Jupyter show of a result and of its ledger."""

from dataclasses import replace

from pdr_graph.budget import Ledger
from pdr_graph.types import Verdict
from tests.cli import shown


def test_a_result_is_a_few_lines():
    """The answer first, then its ground, then what it cost."""
    assert str(shown.RESULT).splitlines() == [
        "answer     7",
        "agreement  2 of 3 drafts",
        "verdict    accepted by consensus: 2 of 3 drafts answer 7",
        "b_total    ~21,512 tokens of all calls, with prompts",
        "b_seq      ~11,313 tokens on the longest path of calls",
        "nominal    53,248 and 22,528 completion tokens allotted",
        "calls      7 in 28.9 s, 1 failed",
        f"note       {shown.NOTE}",
        "thread     9f3c2b1a7e4d",
    ]


def test_a_result_without_an_answer():
    """It says so, and nobody agrees with it."""
    none = Verdict(verifier="none", accepted=None, reason="")
    lines = str(replace(shown.RESULT, answer=None, verdict=none, notes=())).splitlines()
    assert lines[:2] == ["answer     none stated", "verdict    not judged"]


def test_a_result_whose_answer_is_a_text():
    """The solution is the answer: none is missing."""
    config = shown.CONFIG.model_copy(update={"answer": "text"})
    line, *_ = str(replace(shown.RESULT, answer=None, config=config, solution="Yes.")).splitlines()
    assert line == "answer     a text of 4 characters, the solution"


def test_what_a_model_wrote_acts_on_nothing():
    """Neither on a terminal nor in a page."""
    result = replace(shown.RESULT, answer="<b>\x1b[31m7</b>", solution="<script>")
    assert "\x1b" not in str(result)
    page = result._repr_html_()
    assert "<script>" not in page
    assert "&lt;b&gt;" in page


def test_the_state_is_not_part_of_the_representation():
    """It holds all drafts."""
    assert "state=" not in repr(shown.RESULT)


def test_a_ledger_is_a_table():
    """A line for each node of each round, then the sums with their meaning."""
    lines = str(shown.LEDGER).splitlines()
    assert lines[0].split() == [
        *("round", "node", "calls", "prompt", "completion", "failed", "aborted", "seconds")
    ]
    assert lines[1].split() == ["1", "drafter", "5", "1,460", "12,840", "1", "0", "14.2"]
    assert lines[2].split() == ["1", "distiller", "1", "~2,204", "~611", "0", "0", "2.9"]
    assert lines[4] == "b_total  ~21,512 tokens of all calls, with prompts"
    assert "<td>drafter</td>" in shown.LEDGER._repr_html_()


def test_an_empty_ledger():
    """Nothing was spent."""
    assert str(Ledger()).splitlines()[1] == "b_total  0 tokens of all calls, with prompts"
