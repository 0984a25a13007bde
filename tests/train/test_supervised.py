"""Supervised data is what was said in right runs, role by role, and nothing that is wrong."""

import json
from pathlib import Path

import pytest

from pdr_graph.errors import ConfigError
from pdr_graph.train.supervised import ExampleChoice, RoleTally, examples_of
from tests.eval.recorded import draft, sample, write_run


def traced(thread: str, node: str, index: int = 0, **fields: object) -> dict[str, object]:
    """Return one line of a trace."""
    template = {"drafter": "draft", "distiller": "summary", "refiner": "improve"}[node]
    return {
        "thread_id": thread,
        "round": 1,
        "node": node,
        "index": index,
        "template": template,
        "prompt": f"{thread} {node}",
        "thought": "",
        "solution": f"{node} {index} of {thread}",
        "finish_reason": "stop",
        "prompt_tokens": 3,
        "completion_tokens": 3,
        "seed": 1,
        "seconds": 0.1,
        "error": "",
        **fields,
    }


def write_trace(run: Path, *calls: dict[str, object]) -> None:
    """Write the calls of a run into its folder."""
    (run / "trace").mkdir(exist_ok=True)
    (run / "trace" / "host-1.jsonl").write_text("".join(json.dumps(each) + "\n" for each in calls))


RIGHT, WRONG = "pdr-p0-0", "pdr-p1-0"


@pytest.fixture
def run(tmp_path) -> Path:
    """A right run with a right and a wrong draft, and a wrong run with a right draft."""
    folder = write_run(
        tmp_path / "run",
        [
            sample("pdr", "p0", drafts=[draft(0, "7"), draft(1, "8")]),
            sample("pdr", "p1", answer="9", drafts=[draft(0, "7")]),
        ],
    )
    write_trace(
        folder,
        traced(RIGHT, "drafter", 0, thought="six and one"),
        traced(RIGHT, "drafter", 1),
        traced(RIGHT, "distiller"),
        traced(RIGHT, "refiner"),
        traced(WRONG, "drafter", 0),
        traced(WRONG, "refiner"),
    )
    return folder


def taken(*sources: Path, model: Path | None = None, **choice: object):
    """Return examples and what was counted."""
    tally = RoleTally()
    return list(examples_of(sources, ExampleChoice(**choice), tally, model)), tally


def replies(examples) -> list[str]:
    """Return what the model is to say."""
    return [each["completion"][0]["content"] for each in examples]


def test_only_right_runs_are_learnt_from(run):
    """A draft must be right itself as well; counts say what was left out and why."""
    examples, tally = taken(run)
    assert [each["call"] for each in examples] == ["draft", "refine"]
    assert {each["problem_id"] for each in examples} == {"p0"}
    assert examples[1]["prompt"] == [{"role": "user", "content": f"{RIGHT} refiner"}]
    assert tally.to_json() == {
        "taken": {"draft": 1, "refine": 1},
        "problems": 1,
        "runs": 2,
        "correct_runs": 1,
        "left_out": {"drafts with a wrong answer": 1, "of role distill": 1},
    }


def test_the_thought_is_part_of_a_reply_unless_it_is_not_wanted(run):
    """As a chat template of a reasoning model reads it."""
    examples, _ = taken(run, roles=frozenset({"draft"}))
    assert replies(examples) == [f"<think>\nsix and one\n</think>\n\ndrafter 0 of {RIGHT}"]
    examples, _ = taken(run, roles=frozenset({"draft"}), thoughts=False)
    assert replies(examples) == [f"drafter 0 of {RIGHT}"]


def test_wrong_drafts_of_right_runs_can_be_taken(run):
    """On request alone."""
    examples, _ = taken(run, wrong_drafts=True, roles=frozenset({"draft"}))
    assert len(examples) == 2


def test_a_distillers_calls_can_be_taken(run):
    """They are as right as the run that they led to."""
    examples, _ = taken(run, roles=frozenset({"distill"}))
    assert replies(examples) == [f"distiller 0 of {RIGHT}"]


def test_the_same_is_said_once_and_a_problem_gives_so_many(tmp_path):
    """Duplicates go first, then what is above the limit."""
    folder = write_run(
        tmp_path / "run", [sample("pdr", "p0", number) for number in range(4)], num_samples=4
    )
    threads = [f"pdr-p0-{number}" for number in range(4)]
    calls = [traced(thread, "refiner", prompt="asked") for thread in threads]
    calls[1]["solution"] = calls[0]["solution"]
    write_trace(folder, *calls)
    examples, tally = taken(folder, per_problem=2)
    assert len(examples) == 2
    assert tally.left_out == {"said before": 1, "above the limit of a problem": 1}
    examples, _ = taken(folder, duplicates=True)
    assert len(examples) == 4


def test_cut_and_failed_calls_are_left_out(tmp_path):
    """The token limit cut one; another brought no reply."""
    folder = write_run(tmp_path / "run", [sample("pdr", "p0")])
    cut = traced(RIGHT, "refiner", finish_reason="length")
    failed = traced(RIGHT, "drafter", error="HTTP 500", solution="")
    write_trace(folder, cut, failed)
    examples, tally = taken(folder)
    assert examples == []
    assert tally.left_out == {"cut by the token limit": 1}


def test_a_call_that_was_made_again_counts_as_it_was_the_last_time(tmp_path):
    """What a killed run had asked for, and then asked for again, is what the run went on with."""
    folder = write_run(tmp_path / "run", [sample("pdr", "p0")])
    again = traced(RIGHT, "refiner", solution="the second time")
    write_trace(folder, traced(RIGHT, "refiner"), again)
    examples, _ = taken(folder)
    assert replies(examples) == ["the second time"]


def test_runs_that_saw_the_gold_answer_are_left_out(run):
    """An oracle's workspace holds it."""
    header = json.loads((run / "run.json").read_text())
    header["arms"]["pdr"]["config"]["distiller"] = "oracle_correct"
    (run / "run.json").write_text(json.dumps(header))
    assert taken(run)[0] == []


def test_a_run_without_a_trace_says_so(tmp_path):
    """`--no-trace` keeps nothing to learn from."""
    folder = write_run(tmp_path / "run", [sample("pdr", "p0")])
    (folder / "trace").mkdir()
    with pytest.raises(ConfigError, match="kept no model calls; run `pdr-graph eval` without --no"):
        taken(folder)


def test_what_is_no_run_is_named(tmp_path):
    """A folder without records, a trace line that is none, trajectories without a tokenizer."""
    with pytest.raises(ConfigError, match="nowhere' holds no recorded run; name a folder of"):
        taken(tmp_path / "nowhere")
    (tmp_path / "t.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="whose tokens are read back by a tokenizer; name its mo"):
        taken(tmp_path / "t.jsonl")
    folder = write_run(tmp_path / "run", [sample("pdr", "p0")])
    write_trace(folder, traced(RIGHT, "refiner"))
    (folder / "trace" / "host-2.jsonl").write_text("[]\n")
    with pytest.raises(ConfigError, match=r"host-2.jsonl line 1 is no model call; remove the line"):
        taken(folder)


def trajectories(folder: Path, model: Path) -> Path:
    """Write a right and a wrong trajectory, with tokens of the tiny model's tokenizer."""
    from pdr_graph.train.trajectory import Call, Trajectory, append_trajectories
    from tests.policy.tiny_model import tiny_tokenizer

    tokenizer = tiny_tokenizer()

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    def call(role: str, prompt: str, reply: str, reward: float, **fields: object) -> Call:
        token_ids = (*ids(reply), tokenizer.eos_token_id)
        return Call(
            **{
                "role": role,
                "round": 0,
                "rollout": f"{role}{prompt}{reply}",
                "prompt_ids": ids(f"<user>{prompt}<assistant>"),
                "token_ids": token_ids,
                "logprobs": (-1.0,) * len(token_ids),
                "text": reply,
                "finish_reason": "stop",
                "seed": 0,
                "policy_version": 0,
                "reward": reward,
                **fields,
            }
        )

    def trajectory(problem: str, *calls: Call, correct: bool) -> Trajectory:
        return Trajectory(
            thread_id=problem,
            problem_id=problem,
            problem=problem,
            gold="3",
            preset="pdr",
            temperature=1.0,
            calls=calls,
            failed_calls=0,
            answer="3",
            reason="correct" if correct else "wrong",
            reward=1.0 if correct else -1.0,
            correct=correct,
        )

    file = folder / "trajectories.jsonl"
    good = [
        call("draft", "1+2?", "it is 3", 1.0),
        call("draft", "1+2?", "it is 4", -1.0),
        call("refine", "1+2? it is 3", "so 3", 1.0),
        call("refine", "1+2? it is 4", "so", 1.0, finish_reason="length"),
    ]
    wrong = trajectory("b", call("direct", "1+2?", "5", -1.0), correct=False)
    append_trajectories(file, [trajectory("a", *good, correct=True), wrong])
    return file


@pytest.fixture
def tiny(tmp_path) -> Path:
    """The folder of a tiny model."""
    pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")
    from tests.policy.tiny_model import write_tiny_model

    return write_tiny_model(tmp_path / "tiny")


def test_trajectories_are_read_back_as_messages(tmp_path, tiny):
    """The prompt without the chat template around it, the reply without the token that ends it."""
    file = trajectories(tmp_path, tiny)
    examples, tally = taken(file, model=tiny)
    assert [
        (e["call"], e["prompt"][0]["content"], e["completion"][0]["content"]) for e in examples
    ] == [
        ("draft", "1+2?", "it is 3"),
        ("refine", "1+2? it is 3", "so 3"),
    ]
    assert tally.left_out == {"drafts with a wrong answer": 1, "cut by the token limit": 1}
    assert (tally.runs.read, tally.runs.correct) == (2, 1)
    assert taken(tmp_path, model=tiny)[0] == [{**each, "source": str(file)} for each in examples]


def test_another_models_tokenizer_is_told_apart(tmp_path, tiny):
    """What its template puts around a message is not there."""
    file = trajectories(tmp_path, tiny)
    (tiny / "chat_template.jinja").write_text("[{{ messages[0]['content'] }}]")
    with pytest.raises(
        ConfigError, match=r"was not rendered by the chat template of .*name the fol"
    ):
        taken(file, model=tiny)
