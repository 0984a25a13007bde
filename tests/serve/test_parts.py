"""The small parts: the answer's text, admission, repeats, names with settings."""

import asyncio
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.answers.extract import split_text
from pdr_graph.config import RECOMMENDED, preset
from pdr_graph.errors import CallError, ConfigError
from pdr_graph.extensions import Extensions
from pdr_graph.judge import SignalsJudge
from pdr_graph.serve.refusal import RefusalError, refusal_of
from pdr_graph.serve.reply import Answer
from pdr_graph.serve.request import Catalogue, Repeats
from pdr_graph.serve.runner import Admission


def make(name, fields):
    return preset(name, **fields)


def test_settings_in_a_name():
    """Read like a URL's query; the request's own fields come before them."""
    catalogue = Catalogue(make, {"max_tokens": 99}, max_drafts=50)
    config, insisted = catalogue.resolve("pdr?widths=8,4&kappa=64&deadline_s=none", {"kappa": 32})
    assert (config.widths, config.kappa, config.max_tokens) == ((8, 4), 32, 99)
    assert insisted.keys() == {"preset", "widths", "kappa", "deadline_s"}
    assert catalogue.resolve("long_cot?widths=", {})[0].widths == ()
    assert catalogue.resolve("sr", {"preset": "sr"})[0].preset == "sr"
    with pytest.raises(ConfigError, match="preset 'pdr' is another than the model 'sr'"):
        catalogue.resolve("sr", {"preset": "pdr"})
    with pytest.raises(ConfigError, match="'long_cot' has no rounds of drafts"):
        catalogue.resolve("long_cot", {"widths": [4]})


def test_the_recommended_preset_is_listed_first():
    """It is what a program offers to whoever chooses nothing."""
    assert Catalogue(make, {}, max_drafts=200).names[0] == RECOMMENDED


def test_a_request_may_ask_for_what_the_operators_judge_trusts():
    """And for a strategy that asks for no weights; without a judge the first is refused."""
    judge = SignalsJudge(
        model="m", features=("logprob",), means=(0.0,), scales=(1.0,), weights=(1.0,), bias=0.0
    )
    asked = {"widths": [2, 2], "distiller": "trusted"}
    judged = Catalogue(make, {}, max_drafts=200, steps=Extensions(judge=judge))
    assert judged.resolve("vote_first", asked)[0].weighs
    assert not judged.resolve("pdr", {})[0].weighs
    with pytest.raises(ConfigError, match="admits what a judge trusts"):
        Catalogue(make, {}, max_drafts=200).resolve("vote_first", asked)


def test_defaults_that_no_preset_can_take():
    """They are the operator's mistake, refused at the start."""
    with pytest.raises(ConfigError, match="unknown setting 'kapa'"):
        Catalogue(make, {"kapa": 1}, max_drafts=50)


def test_the_first_of_a_seed_is_the_seed_itself():
    """So a request and `solve --seed` agree; repeats count by request and seed."""
    repeats = Repeats()
    seeds = [repeats.seed(7, "a"), repeats.seed(7, "a"), repeats.seed(7, "b"), repeats.seed(8, "a")]
    assert (seeds[0], seeds[2], seeds[3]) == (7, 7, 8)
    assert seeds[1] not in {7, 8}
    assert [Repeats(repeatable=True).seed(7, "a") for _ in range(2)] == [7, 7]
    assert all(0 <= repeats.seed(odd, "a") < 2**31 for odd in (-1, 2**31, 2**63, -1))


async def test_places_go_to_who_came_first():
    """One at a time here, and in order."""
    admission = Admission(max_runs=1, max_waiting=10)
    order = []

    async def come(number: int) -> None:
        async with admission.place():
            assert admission.running == 1
            order.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(come(number) for number in range(5)))
    assert order == [0, 1, 2, 3, 4]
    assert (admission.running, admission.waiting) == (0, 0)


async def test_who_leaves_the_queue_leaves_no_gap():
    """Nor one whose turn had just come."""
    admission = Admission(max_runs=1, max_waiting=10)

    async def come() -> None:
        async with admission.place():
            await asyncio.sleep(0)

    async with admission.place():
        waiting = [asyncio.ensure_future(come()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[1].cancel()
    waiting[0].cancel()  # the place was just handed to it
    await asyncio.gather(*waiting, return_exceptions=True)
    assert waiting[2].exception() is None
    assert (admission.running, admission.waiting) == (0, 0)


async def test_closed_doors():
    """Waiting requests are rejected, running ones finish."""
    admission = Admission(max_runs=1, max_waiting=10)
    async with admission.place():
        waiting = asyncio.ensure_future(admission.place().__aenter__())
        await asyncio.sleep(0)
        admission.close()
        with pytest.raises(RefusalError, match="shutting down") as closed:
            await waiting
        assert closed.value.headers == {"Retry-After": "5"}
        assert admission.running == 1
    assert admission.running == 0


def test_a_store_that_is_away_is_no_fault_of_the_client():
    """503; what else goes wrong is a defect, whose text stays in the log."""
    assert refusal_of(ConnectionError("redis://secret:6379")).status == 503
    defect = refusal_of(RuntimeError("a secret"))
    assert (defect.status, "secret" in str(defect)) == (500, False)


WORDS = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</th", "so ", "\n", " ", "4", "stop", "st", "é"]),
    max_size=25,
).map("".join)


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(places)]


@given(WORDS, st.lists(st.integers(0, 500), max_size=20), st.booleans())
def test_the_pieces_are_the_solution(text, cuts, may_think):
    """However the model's text is cut; or it is said that they cannot be."""
    solution = split_text(text).solution
    whole = solution.partition("stop")[0]
    answer = Answer(["stop"], may_think=may_think)
    sent = "".join(answer.take(1, piece) for piece in pieces_of(text, cuts))
    try:
        sent += answer.finish(solution)
    except CallError:
        # Only a text with thoughts in odd places can have been taken for an answer.
        assert "think>" in text
    else:
        assert sent == whole
    assert answer.is_cut(solution) == ("stop" in solution)


OVERLAPPING = st.lists(st.text(alphabet="ab \n", min_size=1, max_size=4), min_size=1, max_size=4)


@given(st.text(alphabet="ab \n", max_size=40), OVERLAPPING, st.lists(st.integers(0, 500)))
def test_the_pieces_end_before_the_first_of_many_stops(text, stops, cuts):
    """Also where one begins within another, and however the text is cut."""
    solution = text.strip()
    found = [place for each in stops if (place := solution.find(each)) >= 0]
    answer = Answer(stops, may_think=False)
    sent = "".join(answer.take(1, piece) for piece in pieces_of(text, cuts))
    assert sent + answer.finish(solution) == solution[: min(found, default=None)]


@pytest.mark.security
@pytest.mark.parametrize(
    "piece", ["ababab ", " ", "\n", "<thin", "</think> a", "<think></think>", "é"]
)
@pytest.mark.parametrize("may_think", [False, True])
def test_twice_the_pieces_take_twice_the_time(piece, may_think):
    """With as many and as long stop texts as a request may have."""
    stops = [f"{'ab' * 120}{number}" for number in range(16)]

    def seconds(count: int) -> float:
        answer = Answer(stops, may_think=may_think)
        began = time.process_time()
        for _ in range(count):
            answer.take(1, piece)
        return time.process_time() - began

    seconds(1_000)
    # Of several, for a machine that is busy with other things.
    short, long = (min(seconds(count) for _ in range(3)) for count in (3_000, 12_000))
    assert long < max(8 * short, 0.05), (short, long)
    assert long < 1.5


@given(st.text(alphabet="ab \n", max_size=60), st.lists(st.integers(0, 500), max_size=20))
def test_a_plain_answer_is_never_held_as_a_whole(text, cuts):
    """All but its blank end is sent before the end is known."""
    answer = Answer(may_think=False)
    sent = "".join(answer.take(1, piece) for piece in pieces_of(text, cuts))
    assert sent == text.strip()


def test_a_thought_that_the_prompt_has_opened_is_held():
    """Until it is closed."""
    answer = Answer()
    assert answer.take(1, "Let me see. 2 + 2") == ""
    assert answer.take(1, "</think>\n\nIt is") == "It is"
    assert answer.take(1, " 4. ") == " 4."
    assert answer.finish("It is 4.") == ""


def test_a_text_is_not_held_once_the_thought_came_apart():
    """Such a server leaves none in the text."""
    answer = Answer()
    assert answer.take(1, "", thought_apart=True) == ""
    assert answer.take(1, "It is") == "It is"


def test_a_second_attempt_goes_on_where_the_first_was():
    """What was sent is not sent again."""
    answer = Answer(may_think=False)
    assert answer.take(1, "It is fo") == "It is fo"
    assert answer.take(2, "It is") == ""
    assert answer.take(2, " four") == "ur"
    assert answer.finish("It is four") == ""


def test_a_second_attempt_that_differs_is_told():
    """Sent text cannot be called back."""
    answer = Answer(may_think=False)
    answer.take(1, "It is 4")
    answer.take(2, "It is 5")
    with pytest.raises(CallError, match="came out otherwise"):
        answer.finish("It is 5")
