"""The training study: its task, its intervals, its table, and the parts that need torch."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.studies.training.arms import ABLATIONS, MAIN, WARM
from benchmarks.studies.training.intervals import differences, estimated
from benchmarks.studies.training.losses import outcomes
from benchmarks.studies.training.measured import Measured, reading
from benchmarks.studies.training.pipeline import Pipeline
from benchmarks.studies.training.scale import Scale, quick
from benchmarks.studies.training.study import Study
from benchmarks.studies.training.task import (
    RIGHT,
    WRONG,
    Size,
    attempt,
    questions,
    write_questions,
)
from pdr_graph.answers import check
from pdr_graph.eval.decomposition import Outcome
from pdr_graph.train.settings import load_train_settings
from tests.eval.recorded import draft, sample, workspace


@given(seed=st.integers(0, 10_000))
def test_one_subset_of_a_question_is_right(seed):
    """No other numbers of the list have the target as their sum."""
    size = Size(numbers=5, terms=2)
    question = next(questions(seed, size))
    right = [
        subset
        for subset in itertools.combinations(question.numbers, size.terms)
        if sum(subset) == question.target
    ]
    assert right == [question.solution]


def test_an_attempt_checks_itself_truthfully():
    """The sum is the box's, and the mark says whether it is the target."""
    assert attempt((15, 26), 41) == f"\\boxed{{1526}}=41{RIGHT}"
    assert attempt((15, 18), 41) == f"\\boxed{{1518}}=33{WRONG}"


@pytest.mark.asyncio
async def test_the_checker_tells_right_attempts_from_wrong_ones():
    """The gold answer is what a right attempt boxes; the written check does not count."""
    question = next(questions(1, Size()))
    right = await check(question.gold, attempt(question.solution, question.target))
    wrong = await check(question.gold, attempt(question.solution[::-1], question.target))
    assert (right.correct, wrong.correct) == (True, False)


def test_questions_of_a_seed_are_distinct_and_the_same_again(tmp_path):
    """A file holds as many questions as asked for, none twice, and is made alike each time."""
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_questions(first, 3, 200, Size())
    write_questions(second, 3, 200, Size())
    texts = [json.loads(line)["problem"] for line in first.read_text().splitlines()]
    assert len(set(texts)) == len(texts) == 200
    assert first.read_bytes() == second.read_bytes()


def test_the_interval_of_one_seed_is_that_over_problems():
    """Student's t interval of the mean, as by hand for 0, 0, 1, 1."""
    result = estimated(np.array([[0.0, 0.0, 1.0, 1.0]]))
    half = 3.18244630528371 * np.sqrt((1 / 3) / 4)
    assert result.mean == 0.5
    assert result.high == pytest.approx(0.5 + half)


def test_seeds_that_disagree_widen_the_interval():
    """With the same mean on every problem, the spread is that of the seeds alone."""
    values_S_P = np.array([[0.1] * 50, [0.2] * 50, [0.3] * 50])
    result = estimated(values_S_P)
    assert result.mean == pytest.approx(0.2)
    assert result.high - result.mean == pytest.approx(4.30265272974946 * 0.1 / np.sqrt(3))
    assert result.by_seed == pytest.approx((0.1, 0.2, 0.3))


def test_differences_are_of_the_seeds_that_both_have():
    """A seed that one side lacks is left out."""
    first = {1: np.array([0.0, 1.0]), 2: np.array([0.0, 0.0])}
    second = {2: np.array([1.0, 0.0]), 3: np.array([1.0, 1.0])}
    assert differences(first, second).tolist() == [[1.0, 0.0]]


def test_reading_sets_refinements_beside_what_a_blind_choice_gives():
    """Of a workspace with one right draft in four, a quarter of blind choices are right."""
    drafts = [{"round": 1, "correct": index == 0} for index in range(4)]
    empty = [{"round": 1, "correct": False}] * 4
    samples = [{"drafts": drafts, "correct": True}, {"drafts": empty, "correct": False}]
    result = reading(samples)
    assert (result.right_if_held, result.blind_if_held) == (1.0, 0.25)
    assert (result.right_if_not, result.held) == (0.0, 0.5)


@pytest.mark.parametrize(
    "arm", [arm for arm in (*MAIN, *ABLATIONS) if arm.half_of is None], ids=lambda arm: arm.name
)
def test_every_arm_has_settings_that_training_takes(arm):
    """The words of an arm are settings of `pdr-graph train`, with the same rows in each."""
    words = Pipeline(Path("runs/none"), Scale(), 1).train_words(1, arm)
    given = {"model": Path(words[words.index("--model") + 1]), "steps": 1}
    overrides = [words[at + 1] for at, word in enumerate(words) if word == "--set"]
    settings = load_train_settings(Path(words[words.index("--config") + 1]), given, overrides)
    assert settings.rows_per_step == 120
    assert settings.operator_plan.num_rows == settings.direct_plan.num_rows == 15


def test_an_arm_that_goes_on_from_another_has_as_many_steps_in_all():
    """Half of the steps are the other arm's, whose checkpoint it starts from."""
    scale = quick()
    continued = next(arm for arm in MAIN if arm.after)
    words = Pipeline(Path("runs/none"), scale, 1).train_words(1, continued)
    assert words[words.index("--model") + 1] == "runs/none/seed1/rl/checkpoint-6"
    assert words[words.index("--steps") + 1] == "6"
    assert scale.steps == 12


def test_ablations_are_held_against_the_first_half_of_the_main_arms():
    """Their references need no training: they are checkpoints after as many steps."""
    pipeline = Pipeline(Path("runs/none"), Scale(), 1)
    references = {arm.name: pipeline.model(1, arm.name) for arm in ABLATIONS if arm.half_of}
    assert references == {
        "rl_half": Path("runs/none/seed1/rl/checkpoint-60"),
        "operator_half": Path("runs/none/seed1/operator/checkpoint-60"),
    }
    words = pipeline.train_words(1, next(arm for arm in ABLATIONS if arm.half_of is None))
    assert words[words.index("--steps") + 1] == "60"


def test_seeds_of_the_replication_are_tested_by_themselves():
    """A study of some seeds holds no other's samples, and no arm without any."""
    sample = Measured({"pdr_1": []})
    study = Study({"rl": {1: sample, 4: sample}, "operator": {1: sample}})
    replication = study.of(Scale().replication)
    assert replication.models == {"rl": {4: sample}}
    assert (study.seeds, replication.seeds) == ([1, 4], [4])


def test_classes_of_loss_are_those_of_the_samples_of_all_seeds():
    """Where a draft was right: one refinement kept it, the other lost it."""
    drafts = [draft(0, "7"), draft(1, "5")]
    kept, lost = (
        sample("pdr_1", answer=answer, drafts=drafts, workspaces=[workspace(True)])
        for answer in ("7", "8")
    )
    study = Study({"rl": {1: Measured({"pdr_1": [kept]}), 2: Measured({"pdr_1": [lost]})}})
    assert outcomes(study.samples("rl", "pdr_1")) == {
        Outcome.CORRECT_WITH_MAJORITY: 1,
        Outcome.LOST_IN_REFINEMENT: 1,
    }


def test_models_are_evaluated_with_the_prompts_they_were_trained_with():
    """The words of an evaluation name the templates of the training runs."""
    words = Pipeline(Path("runs/none"), Scale(), 1).eval_words(1, WARM)
    assert words[words.index("--improve-prompt") + 1] == "$problem\n$workspace"
    assert "pdr_2=pdr@widths=4,4;distiller=answers" in words


def test_the_tokenizer_reads_back_what_it_wrote():
    """An attempt is eight tokens with its end, none of them unknown, and decodes to itself."""
    pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")
    from benchmarks.studies.training.model import make_tokenizer

    tokenizer = make_tokenizer()
    text = attempt((15, 26), 41)
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == 7
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_a_warm_start_that_was_killed_ends_as_one_that_was_not(tmp_path):
    """From the state that was kept the same weights come out, to the bit."""
    torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")
    from safetensors.torch import load_file

    from benchmarks.studies.training.demos import Habits
    from benchmarks.studies.training.model import Shape
    from benchmarks.studies.training.supervised import Curriculum, warm_start

    class KilledError(Exception):
        """What stands for the kill."""

    def kill(line: str) -> None:
        if "update 4" in line:
            raise KilledError

    def make(folder: Path, tell) -> None:
        warm_start(
            folder,
            1,
            Curriculum(updates=6, rows=4, save_every=2),
            size=Size(),
            shape=Shape(hidden=16, layers=1, heads=2),
            habits=Habits(),
            tell=tell,
        )

    torch.set_num_threads(1)
    make(tmp_path / "whole" / "warm", lambda line: None)
    with pytest.raises(KilledError):
        make(tmp_path / "killed" / "warm", kill)
    assert not (tmp_path / "killed" / "warm").exists()
    make(tmp_path / "killed" / "warm", lambda line: None)
    whole, killed = (
        load_file(tmp_path / name / "warm" / "model.safetensors") for name in ("whole", "killed")
    )
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
