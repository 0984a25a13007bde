"""`pdr-graph check`: JSON lines in, verdicts out."""

import json
import signal

import pytest

TOWER = r"\dfrac{5^{(5^{(5^{(5^5)})} - 4)} - 5}{16}"
HOSTILE = {
    "tower of nines": "9^{9^{9^{9}}}",
    "factorials": "((9!)!)!",
    "tower of powers of two": "2^{16^{64^{16}}}",
    "tower of fives": TOWER,
    "a million digits": "7" * 1_000_000,
    "fractions 500 deep": r"\frac{1}{" * 500 + "2" + "}" * 500,
}
SLACK_S = 0.5
"""By which a verdict may be later than the deadline."""


def lines(*rows: object) -> str:
    """Write rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def boxed(gold: str, answer: str, **more: object) -> dict[str, object]:
    """Return a row whose prediction is a box."""
    return {"gold": gold, "pred": f"So it is $\\boxed{{{answer}}}$.", **more}


def read(text: str) -> list[dict]:
    """Read JSON lines."""
    return [json.loads(line) for line in text.splitlines()]


def test_verdicts_come_in_the_order_of_the_lines(cli, tmp_path):
    """Each names its line by id, or by number where it has none; a blank line is none."""
    rows = [boxed("42", "42"), boxed("42", "43", id="b"), {"gold": "x+1", "pred": "it depends"}]
    file = tmp_path / "rows.jsonl"
    file.write_text(lines(rows[0]) + "\n" + lines(*rows[1:]).rstrip("\n"))
    done = cli("check", str(file))
    assert (done.code, done.err.startswith("3 checked · 1 correct")) == (0, True)
    verdicts = read(done.out)
    assert all(0 <= each.pop("seconds") <= 5 for each in verdicts)
    assert verdicts == [
        {"id": 1, "correct": True, "reason": "correct", "extracted": "42", "read": "answer"},
        {"id": "b", "correct": False, "reason": "wrong", "extracted": "43", "read": "answer"},
        {"id": 4, "correct": False, "reason": "no_answer", "extracted": None, "read": "answer"},
    ]


@pytest.mark.parametrize(
    ("words", "correct"), [(["--mode", "answer"], False), (["--mode", "raw"], True)]
)
def test_where_the_answer_is_can_be_said_for_all_lines(cli, words, correct):
    """`raw` takes all of the prediction for the answer; a line's own mode comes first."""
    rows = [{"gold": 0.5, "pred": "1/2"}, {"gold": 7, "pred": 7, "mode": "raw"}]
    done = cli("check", "-", *words, "--quiet", stdin=lines(*rows))
    assert [each["correct"] for each in read(done.out)] == [correct, True]
    assert done.err == ""


BARE = {
    "a number": ("0.5", "1/2", "raw", "correct"),
    "a number that is not it": ("7", "8", "raw", "wrong"),
    "a formula": ("x+1", "$1 + x$", "raw", "correct"),
    "an option": ("B", "(B)", "raw", "correct"),
    "words where words are asked for": ("even", "Even", "raw", "correct"),
    "words where a number is asked for": ("7", "I am not sure", "answer", "no_answer"),
    "a box": ("7", "so \\boxed{7}", "answer", "correct"),
    "an answer line": ("7", "The answer is 7.", "answer", "correct"),
    "several lines": ("7", "3 + 4\n7", "answer", "no_answer"),
    "a long line": ("7", "7" + " + 0" * 60, "answer", "no_answer"),
}


@pytest.mark.parametrize("case", BARE)
def test_a_bare_answer_is_taken_where_there_is_no_box(cli, case):
    """Each verdict says how the prediction was read."""
    gold, pred, mode, reason = BARE[case]
    (verdict,) = read(cli("check", stdin=lines({"gold": gold, "pred": pred})).out)
    assert (verdict["read"], verdict["reason"]) == (mode, reason)


def test_a_cut_prediction_without_an_answer_is_truncated(cli):
    """A line may say that a token limit cut its prediction."""
    done = cli("check", stdin=lines({"gold": 1, "pred": "let me", "truncated": True}))
    assert read(done.out)[0]["reason"] == "truncated"


BAD = {
    "not JSON": (b"{", "is not JSON ("),
    "not UTF-8": (b'{"gold": "\xff"}', "is not UTF-8 text"),
    "no object": (b"[1, 2]", 'is not a JSON object; write {"gold": …, "pred": …}'),
    "no gold": (b'{"pred": "1"}', "has no 'gold'; it has 'pred'"),
    "no prediction": (b'{"gold": "1"}', "has no 'pred'; it has 'gold'"),
    "empty gold": (b'{"gold": " ", "pred": "1"}', "'gold' is empty"),
    "gold that is a list": (b'{"gold": [1], "pred": "1"}', "'gold' is [1], it must be text or a"),
    "unknown mode": (
        b'{"gold": 1, "pred": 1, "mode": "row"}',
        "mode 'row' is unknown; known are au",
    ),
    "id that is a list": (b'{"gold": 1, "pred": 1, "id": []}', "id [] must be text or a whole"),
    "truncated that is text": (b'{"gold":1,"pred":1,"truncated":"y"}', "it must be true or false"),
    "nested too deep": (b"[" * 100_000, "is not JSON ("),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_named_and_costs_no_other(cli, case):
    """The lines around it are checked, and the command says in the end that one was not."""
    bad, said = BAD[case]
    good = lines(boxed("1", "1")).encode()
    done = cli("check", stdin=good + bad + b"\n" + good)
    assert done.code == 2
    assert [each["id"] for each in read(done.out)] == [1, 3]
    first, *_, last = done.err.splitlines()
    assert first.startswith("error: standard input line 2")
    assert said in first
    assert last == "error: 1 line was not checked; each is named above"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.jsonl"], "'nowhere.jsonl' cannot be read: No such file"),
        (["."], "'.' cannot be read: Is a directory"),
        ([], "standard input holds no lines to check"),
        (["--mode", "row"], "--mode 'row' is unknown; known are auto, answer, raw"),
        (["--deadline", "0"], "--deadline '0': input should be greater than or equal to 0.1"),
    ],
)
def test_bad_requests_are_one_sentence(cli, words, said):
    """What cannot be checked at all is said before anything is."""
    done = cli("check", *words)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.count("\n") == 1


def test_hostile_answers_end_at_the_deadline(cli):
    """Whatever is boxed, a verdict comes in time, and the next answer is judged."""
    rows = [boxed("42", answer, id=name) for name, answer in HOSTILE.items()]
    after = boxed("x+1", "1+x", id="after")
    # A busy machine takes seconds to start a worker, which nobody's clock counts.
    done = cli("check", "--deadline", "1", "--workers", "1", stdin=lines(*rows, after))
    verdicts = {each["id"]: each for each in read(done.out)}
    assert (done.code, list(verdicts)) == (0, [*HOSTILE, "after"])
    assert all(each["seconds"] <= 1 + SLACK_S for each in verdicts.values())
    reasons = {name: verdicts[name]["reason"] for name in HOSTILE}
    assert reasons["tower of fives"] == "timeout"
    assert reasons["a million digits"] == reasons["fractions 500 deep"] == "no_answer"
    assert "correct" not in reasons.values()
    assert verdicts["after"]["correct"]


def test_each_line_is_answered_while_the_pipe_stays_open(spawn):
    """And the command ends at once when it is told to, whether or not more may come."""
    process = spawn("check", stdin=-1)
    for gold in ("1", "x+1"):
        process.stdin.write(lines(boxed(gold, gold)))
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["correct"]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert process.stderr.read() == ""


def test_a_reader_that_leaves_ends_it(spawn):
    """As with any filter."""
    process = spawn("check", stdin=-1, text=False)
    process.stdin.write(lines(*[boxed("1", "1")]).encode())
    process.stdin.flush()
    process.stdout.readline()
    process.stdout.close()
    process.stdin.write(lines(*[boxed("1", "1")] * 3).encode())
    process.stdin.flush()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""
