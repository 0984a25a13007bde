"""An adapter learns to tell right drafts from wrong ones of problems that it never saw."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from safetensors.torch import load_file

from pdr_graph.errors import ConfigError
from pdr_graph.judge import load_judge
from pdr_graph.judge.adapter import AdapterJudge
from pdr_graph.policy.folder import cpu_dtype
from pdr_graph.prompts import Prompts
from pdr_graph.train import judge
from pdr_graph.train.judge import (
    JudgeQuestion,
    JudgeTraining,
    fit_adapter,
    last_logits,
    score,
    train_judge,
)
from pdr_graph.train.judge_data import (
    CheckedDraft,
    auc_within,
    balanced,
    ballots_of_lines,
    calibrated,
    first_problems,
    read_checked,
    splits_of,
)
from tests.policy.tiny_model import tiny_model, tiny_tokenizer, write_tiny_model

PROMPTS = Prompts({**Prompts.load().templates, "self_check": "$problem\n$candidates\nright? "})


def judging_tokenizer() -> object:
    """Return the tiny tokenizer with a token for each answer."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["Yes", "No"])
    return tokenizer


def write_judging_model(folder: Path) -> Path:
    """Write a model with random weights and that tokenizer."""
    tokenizer = judging_tokenizer()
    # As wide as the heads are that vLLM takes on a CPU.
    write_tiny_model(folder, vocab_size=len(tokenizer), head_dim=32)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A model with random weights, which knows nothing."""
    return write_judging_model(tmp_path_factory.mktemp("model"))


def drafts_of(num_problems: int, seed: int = 0, *, each: int = 4) -> list[CheckedDraft]:
    """Return drafts that are right if they hold a 7; those of one problem are right by turns."""
    rng = random.Random(seed)
    made = []
    for number in range(num_problems):
        for index in range(each):
            right = index % 2 == 0
            text = "".join(rng.choices("0123", k=5)) + ("7" if right else "4")
            made.append(CheckedDraft(f"p{number}", f"{number % 10}?", text, right))
    return made


class Lines(list):
    """Keeps what is told."""

    def __call__(self, line: str, *, milestone: bool) -> None:
        self.append(line)


def quick(weights: Path, **fields: object) -> JudgeTraining:
    plain = {"epochs": 4, "learning_rate": 1e-2, "batch_rows": 8, "micro_batch_rows": 8}
    plain["dtype"] = "float32"  # the weights are large, and few, so that bfloat16 tells
    return JudgeTraining(weights, **{**plain, **fields})


def test_a_rule_that_can_be_learnt_is_learnt(weights, tmp_path):
    """On problems that the adapter has not seen; the model itself knows nothing of it."""
    drafts, lines = drafts_of(40), Lines()
    made = train_judge(drafts, quick(weights), tmp_path, prompts=PROMPTS, tell=lines)
    judged = [drafts[i] for i in made.margins]
    assert len({each.problem_id for each in judged}) == 10
    assert auc_within(judged, list(made.margins.values())) > 0.95
    assert auc_within(judged, list(made.untrained.values())) < 0.9
    assert made.scale > 0
    right = [weight for i, weight in made.weights.items() if drafts[i].correct]
    wrong = [weight for i, weight in made.weights.items() if not drafts[i].correct]
    assert sum(right) / len(right) > 0.7 > 0.3 > sum(wrong) / len(wrong)
    assert any("tokens a second" in line for line in lines)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / ".training").exists()


def test_folds_judge_every_draft_once(weights, tmp_path):
    """Each by an adapter that has not seen its problem; the last adapter learns from all."""
    drafts = drafts_of(24)
    made = train_judge(drafts, quick(weights, folds=2, epochs=1), tmp_path, prompts=PROMPTS)
    assert sorted(made.weights) == list(range(len(drafts)))
    assert made.num_learnt > len(drafts) * 0.7


def test_what_is_noise_moves_no_vote(weights, tmp_path):
    """Drafts then all weigh about the same: the vote is what it was."""
    rng = random.Random(3)
    drafts = [
        CheckedDraft(each.problem_id, each.problem, each.solution[:5], rng.random() < 0.5)
        for each in drafts_of(40)
    ]
    made = train_judge(drafts, quick(weights, epochs=1), tmp_path, prompts=PROMPTS)
    judged = [drafts[i] for i in made.margins]
    assert auc_within(judged, list(made.margins.values())) == pytest.approx(0.5, abs=0.25)
    assert max(made.weights.values()) - min(made.weights.values()) < 0.5


def test_only_layers_that_are_named_get_an_adapter(weights, tmp_path):
    """The lower ones cost no backward pass then."""
    settings = quick(weights, first_layer=2, epochs=1)
    train_judge(drafts_of(16), settings, tmp_path, prompts=PROMPTS)
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert names
    assert all(".layers.2." in name for name in names)
    with pytest.raises(ConfigError, match="leaves no layer of 3"):
        train_judge(drafts_of(16), quick(weights, first_layer=3), tmp_path / "b", prompts=PROMPTS)


def test_a_stopped_training_goes_on(weights, tmp_path, monkeypatch):
    """From its last epoch, and to the same adapter; another command is refused until then."""
    drafts, settings = drafts_of(16), quick(weights, epochs=3)
    whole = train_judge(drafts, settings, tmp_path / "whole", prompts=PROMPTS)

    def stopped(line: str, *, milestone: bool) -> None:
        if line.startswith("epoch 2:"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_judge(drafts, settings, tmp_path / "part", prompts=PROMPTS, tell=stopped)
    other = quick(weights, epochs=3, learning_rate=1e-3)
    with pytest.raises(ConfigError, match="unfinished training with another learning_rate"):
        train_judge(drafts, other, tmp_path / "part", prompts=PROMPTS)
    lines = Lines()
    again = train_judge(drafts, settings, tmp_path / "part", prompts=PROMPTS, tell=lines)
    assert not any(line.startswith("epoch 1:") for line in lines)
    # Nor is the model itself asked again.
    assert [line.partition(" ")[0] for line in lines[:2]] == ["opening", "epoch"]
    assert again.margins == pytest.approx(whole.margins, abs=1e-4)
    assert again.aucs == pytest.approx(whole.aucs)


def test_the_question_ends_where_the_answer_begins(weights):
    """And rows of any length are read alike, alone or padded."""
    question = JudgeQuestion(judging_tokenizer(), PROMPTS)
    drafts = [CheckedDraft("a", "1?", "12", True), CheckedDraft("b", "2?", "12345678", False)]
    text = question.tokenizer.decode(question.ids(drafts[0]))
    assert text == "<user>1?\n12\nright?<assistant>"
    model = tiny_model(vocab_size=len(question.tokenizer))
    rows = [question.ids(each) for each in drafts]
    both = last_logits(model, rows, question.tokenizer.pad_token_id)
    for row, logits in zip(rows, both, strict=True):
        alone = model(torch.tensor([row])).logits[0, -1]
        torch.testing.assert_close(logits, alone, atol=1e-4, rtol=1e-4)
    assert score(model, question, drafts) == pytest.approx(
        question.margins(both).tolist(), abs=1e-4
    )


def test_the_frozen_head_is_multiplied_for_all_rows_at_once():
    """In a batched product torch copies a real model's head once a row: four fifths of the time."""
    model = tiny_model(vocab_size=4096)
    model.requires_grad_(False)
    with torch.profiler.profile() as profile:
        last_logits(model, [[1, 2, 3]] * 16, 0)
    called = {each.key for each in profile.key_averages()}
    assert "aten::mm" in called
    assert "aten::bmm" not in called


def test_a_tokenizer_that_divides_the_answers_is_refused():
    """A server would tell the likelihood of a letter."""
    with pytest.raises(ConfigError, match="writes 'Yes' in 3 tokens"):
        JudgeQuestion(tiny_tokenizer(), PROMPTS)


def test_only_the_adapter_is_trained_in_float32(weights):
    """The frozen weights have the format that the machine multiplies fastest, or the named one."""
    for dtype, expected in ((None, getattr(torch, cpu_dtype())), ("bfloat16", torch.bfloat16)):
        model = judge._opened(quick(weights, dtype=dtype))
        assert {each.dtype for each in model.parameters() if each.requires_grad} == {torch.float32}
        assert {each.dtype for each in model.parameters() if not each.requires_grad} == {expected}


def test_too_few_problems_are_refused(weights, tmp_path):
    """The sentence counts those that have drafts of both kinds."""
    drafts = [*drafts_of(5), *(CheckedDraft(f"w{i}", "1?", "4", False) for i in range(40))]
    with pytest.raises(ConfigError, match=r"\d of \d+ problems to learn from have right and wrong"):
        train_judge(drafts, quick(weights), tmp_path, prompts=PROMPTS)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    """In one sentence."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="cannot be opened"):
        train_judge(drafts_of(16), quick(tmp_path / "empty"), tmp_path / "o", prompts=PROMPTS)


# ---------------------------------------------------------------------------- data


def test_lines_are_read_and_what_is_none_is_named(tmp_path):
    """By file and line."""
    file = tmp_path / "drafts.jsonl"
    good = {"problem_id": "a", "problem": "1+1?", "solution": "2", "correct": True, "more": 1}
    file.write_text(json.dumps(good) + "\n\n")
    assert read_checked(file) == [CheckedDraft("a", "1+1?", "2", True)]
    for bad, sentence in {
        "[]": "line 3 is not a JSON object",
        json.dumps({**good, "correct": 1}): "line 3: 'correct' is neither true nor false",
        json.dumps({**good, "solution": None}): "line 3: 'solution' is no text",
    }.items():
        file.write_text(json.dumps(good) + "\n\n" + bad + "\n")
        with pytest.raises(ConfigError, match=sentence):
            read_checked(file)
    file.write_text("\n")
    with pytest.raises(ConfigError, match="holds none"):
        read_checked(file)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_checked(tmp_path / "no.jsonl")


checked = st.lists(
    st.builds(
        CheckedDraft,
        st.sampled_from([f"p{n}" for n in range(6)]),
        st.just("?"),
        st.text(max_size=3),
        st.booleans(),
    ),
    min_size=1,
    max_size=40,
)


@given(checked, st.integers(1, 4), st.integers(0, 99))
def test_right_and_wrong_drafts_are_learnt_in_equal_numbers(drafts, per_kind, seed):
    """Of each problem, none twice, and never more than asked for."""
    taken = balanced(drafts, per_kind, seed)
    for problem in {each.problem_id for each in drafts}:
        mine = [each for each in taken if each.problem_id == problem]
        right = sum(each.correct for each in mine)
        assert right == len(mine) - right <= per_kind
    assert all(taken.count(each) <= drafts.count(each) for each in taken)


@given(st.integers(4, 60), st.integers(1, 6), st.integers(0, 99))
def test_problems_are_divided_once(num_problems, folds, seed):
    """No problem is judged by what has learnt from it; folds judge each problem once."""
    problems = [f"p{n}" for n in range(num_problems)]
    splits = splits_of(problems * 2, folds, seed)
    for each in splits:
        parts = [each.learning, each.stopping, each.judged]
        assert sum(map(len, parts)) == num_problems
        assert frozenset().union(*parts) == set(problems)
        assert each.stopping
    if folds > 1:
        judged = [problem for each in splits for problem in each.judged]
        assert sorted(judged) == sorted(problems)
        assert not splits[-1].judged


@given(st.lists(st.tuples(st.floats(-20, 20), st.booleans()), min_size=1, max_size=40))
def test_a_larger_margin_never_weighs_less(rows):
    """Whatever the margins; and none is turned against itself."""
    scale, shift = calibrated([margin for margin, _ in rows], [right for _, right in rows])
    assert scale >= 0
    assert abs(shift) < 1e3
    assert calibrated([1.0, 2.0], [True, True])[0] == 0.0


# ---------------------------------------------------------------------------- the fit


def lines_of(num_problems: int) -> str:
    """Return drafts, of which most are wrong in the same way: the vote is always wrong."""
    rng = random.Random(1)
    rows = []
    for number in range(num_problems):
        for right in (False, True, False, True, False):
            noise = "".join(rng.choices("0123", k=3))
            text = f"{noise}{'x' if right else 'y'} \\boxed{{{5 if right else 6}}}"
            row = {"problem_id": f"p{number}", "problem": f"{number % 10}?", "solution": text}
            rows.append(json.dumps({**row, "correct": right}))
    return "\n".join(rows)


async def test_from_drafts_to_a_judge_that_beats_the_vote(weights, tmp_path):
    """On problems that were held out; the model itself, asked, does not."""
    file, out = tmp_path / "drafts.jsonl", tmp_path / "out"
    file.write_text(lines_of(48))
    prompts = Prompts({**PROMPTS.templates, "draft": "$problem", "answer_math": ""})
    ballots = await ballots_of_lines(file, prompts)
    blank = AdapterJudge(model="m", adapter="judge", question="", scale=1, shift=0, data=("d",))
    fit = fit_adapter(ballots, quick(weights), out, judge=blank, prompts=prompts)
    assert fit.report.num_problems == 12
    assert fit.report.vote.value == 0
    assert fit.report.gain.low > 0
    assert fit.report.judges[judge.ITSELF].judged.value < fit.report.judged.value
    assert load_judge(out / "judge.json").digest == fit.judge.digest
    assert fit.judge.question == PROMPTS.templates["self_check"]
    assert (out / "adapter" / "adapter_config.json").is_file()


async def test_some_of_the_problems_may_be_enough(tmp_path):
    """The first ones, with all their drafts."""
    file = tmp_path / "drafts.jsonl"
    file.write_text(lines_of(5))
    ballots = await ballots_of_lines(file, Prompts.load())
    assert [each.problem_id for each in first_problems(ballots, 2)] == ["p0", "p1"]
    assert first_problems(ballots + ballots, 2) == (ballots[:2] + ballots[:2])
    assert first_problems(ballots, None) == ballots


async def test_drafts_without_an_answer_vote_for_nothing(tmp_path):
    """They are voters all the same; a file of them alone is refused."""
    file = tmp_path / "drafts.jsonl"
    row = {"problem_id": "a", "problem": "1+1?", "solution": "I do not know", "correct": False}
    told = {**row, "solution": "\\boxed{2}", "correct": True}
    file.write_text(f"{json.dumps(row)}\n{json.dumps(told)}\n")
    (ballot,) = await ballots_of_lines(file, Prompts.load())
    assert (ballot.voters, ballot.solutions) == (2, ("\\boxed{2}",))
    assert ballot.prompt.startswith("1+1?\n\n")
    file.write_text(json.dumps(row))
    with pytest.raises(ConfigError, match="states an answer"):
        await ballots_of_lines(file, Prompts.load())
