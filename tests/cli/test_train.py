"""`pdr-graph train` and `train-data` where no weights are needed: bad input, dry run, data."""

import json
from pathlib import Path

import pytest

from pdr_graph.errors import install_command
from tests.eval.recorded import draft, sample, write_run
from tests.train.test_settings import write_model
from tests.train.test_supervised import RIGHT, traced, write_trace

CASES = {
    "no model": ([], "no model is named; set model in the file, or --model FOLDER"),
    "no such config": (
        ["--config", "mine.toml"],
        "--config 'mine.toml' cannot be read: No such fi",
    ),
    "no such model": (
        ["--model", "nowhere"],
        "model folder 'nowhere' does not exist; download the",
    ),
    "no data": (["--model", "m"], "no problems are named; set data in the file, or --data SOURCE"),
    "no such data": (["--model", "m", "--data", "x.jsonl"], "data file 'x.jsonl' cannot be read: "),
    "no such task": (["--model", "m", "--data", "reasoning-gym:sums"], "has no task 'sums' among"),
    "unknown setting": (
        ["--model", "m", "--set", "optimizer.x=1"],
        "unknown setting 'optimizer'; p",
    ),
    "no value": (["--model", "m", "--set", "steps"], "--set 'steps' is no TABLE.FIELD=VALUE"),
    "no warm start": (
        ["--model", "m", "--warm-start", "w.jsonl"],
        "'w.jsonl' is no file; `pdr-grap",
    ),
    "nothing to do": (
        ["--model", "m", "--steps", "0"],
        "steps 0 leaves nothing to do without a war",
    ),
    "too few problems": (
        ["--model", "m", "--data", "q.jsonl"],
        "holds 3 problems, and rollouts.pro",
    ),
    "more processes": (
        ["--model", "m", "--data", "q.jsonl", "--set", "devices.processes=4"],
        "devices.processes is 4 and 1 was started; use `accelerate launch --num_processes 4 -m pdr",
    ),
    "an unknown option": (["--modle", "m"], "no such option: --modle"),
}


@pytest.fixture
def here(clean) -> Path:
    """A folder with a model's config and three problems in it."""
    write_model(clean / "m")
    rows = [{"problem": f"What is {index} + 1?", "answer": str(index + 1)} for index in range(3)]
    (clean / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return clean


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_sentence(cli, here, case):
    """Each is told before anything heavy is imported, and leaves nothing behind."""
    words, sentence = CASES[case]
    outcome = cli("train", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ")
    assert sentence in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (here / "runs").exists()


SMALL = ("--model", "m", "--data", "q.jsonl", "--set", "rollouts.problems_per_step=2")


def test_a_dry_run_estimates_and_writes_nothing(cli, here):
    """Memory of a device, tokens of a step and of the run, and whether it fits."""
    outcome = cli("train", *SMALL, "--dry-run", "--steps", "5", "--set", "devices.memory_gib=80")
    assert (outcome.code, outcome.err) == (0, "")
    for words in ("memory of one device", "gradients", "at the peak", "fits a device of 80 GiB"):
        assert words in outcome.out
    assert (
        "a step: 2 problems of 8 rows; 1 by long CoT, 1 by plan workspace (4 draft" in outcome.out
    )
    assert "5 steps" in outcome.out
    assert not (here / "runs").exists()


def test_a_dry_run_says_what_does_not_fit(cli, here):
    """And what would help."""
    small = ["--set", "devices.memory_gib=0.001"]
    outcome = cli("train", *SMALL, "--dry-run", *small)
    assert outcome.code == 0
    assert "does not fit a device of 0.001 GiB with a tenth left free; lower" in outcome.out
    assert cli("train", *SMALL, "--dry-run", "--json", *small).json()["fits"] is False


def test_a_dry_run_as_json(cli, here):
    """Settings with all their defaults, and sizes in bytes."""
    facts = cli("train", *SMALL, "--dry-run", "--json").json()
    assert facts["settings"]["rollouts"]["problems_per_step"] == 2
    memory = facts["memory_per_device"]
    parts = ("weights", "gradients", "optimiser", "activations", "head")
    assert memory["training"] == sum(memory[name] for name in parts)
    assert memory["peak"] >= memory["training"]
    assert facts["tokens_at_most"]["drawn"] == 100 * facts["tokens_at_most"]["drawn_per_step"]
    assert facts["fits"] is None


@pytest.mark.parametrize("columns", ["60", "120"])
def test_a_dry_run_fits_the_terminal(cli, here, monkeypatch, columns):
    """No line is wider."""
    monkeypatch.setenv("COLUMNS", columns)
    lines = cli("train", *SMALL, "--dry-run").out.splitlines()
    assert max(map(len, lines)) <= int(columns)


def test_without_torch_it_says_what_to_install(cli, here):
    """The base package trains nothing, and says how it would."""
    try:
        import torch  # noqa: F401
    except ImportError:
        outcome = cli("train", *SMALL)
        assert outcome.code == 2
        last = outcome.err.splitlines()[-1]
        assert last == f"error: training needs torch: {install_command('train')}"
        assert not (here / "runs").exists()
    else:
        pytest.skip("torch is installed here")


def test_a_folder_of_an_evaluation_is_left_alone(cli, here):
    """Its records are not those of a training run."""
    write_run(here / "runs" / "train", [sample()])
    outcome = cli("train", *SMALL)
    assert outcome.code == 2
    assert "'runs/train' holds a run of `pdr-graph eval`; name another --out" in outcome.err


@pytest.fixture
def recorded(here) -> Path:
    """A right run of two calls that are right."""
    run = write_run(here / "run", [sample("pdr", "p0", drafts=[draft(0, "7")])])
    write_trace(run, traced(RIGHT, "drafter"), traced(RIGHT, "distiller"), traced(RIGHT, "refiner"))
    return run


def test_data_is_written_with_counts_by_role(cli, recorded):
    """A line for each call, as TRL's trainer reads it."""
    outcome = cli("train-data", "run", "--out", "sft/data.jsonl")
    assert outcome.code == 0
    assert [line.split() for line in outcome.out.splitlines()[2:]] == [
        ["draft", "1"],
        ["refine", "1"],
        ["left", "out:", "of", "role", "distill", "1"],
    ]
    assert outcome.err == "2 examples of 1 problem in sft/data.jsonl; right were 1 of 1 run\n"
    rows = [json.loads(line) for line in Path("sft/data.jsonl").read_text().splitlines()]
    assert [row["call"] for row in rows] == ["draft", "refine"]
    assert rows[0]["completion"] == [{"role": "assistant", "content": f"drafter 0 of {RIGHT}"}]


def test_data_as_json_and_by_role(cli, recorded):
    """Only the roles that are named."""
    facts = cli("train-data", "run", "--out", "d.jsonl", "--role", "distill", "--json").json()
    assert facts["taken"] == {"distill": 1}
    assert facts["left_out"] == {"of role draft": 1, "of role refine": 1}


def test_what_gives_no_data_leaves_the_old_file(cli, recorded):
    """An unknown role, a run that is none, nothing right: a sentence, and no file is touched."""
    out = Path("d.jsonl")
    out.write_text("old")
    (recorded / "samples.jsonl").write_text(json.dumps(sample(answer="8")) + "\n")
    for words, sentence in {
        ("run", "--role", "judge"): "unknown role 'judge'; known: direct, draft, distill, refine",
        ("nowhere",): "'nowhere' holds no recorded run; name a folder of `pdr-graph eval`",
        ("run",): "none of 1 run was right, so there is nothing to learn from",
    }.items():
        outcome = cli("train-data", *words, "--out", "d.jsonl")
        assert (outcome.code, outcome.out) == (2, "")
        assert sentence in outcome.err
    assert out.read_text() == "old"
    assert [each.name for each in Path().iterdir() if each.name.startswith(".d")] == []
    outcome = cli("train-data", "nowhere", "--out", "m/config.json/x")
    assert "--out 'm/config.json/x' cannot be written" in outcome.err


@pytest.mark.parametrize("command", ["train", "train-data"])
def test_the_help_names_every_option(cli, command, monkeypatch):
    """And exits with 0."""
    monkeypatch.setenv("COLUMNS", "120")
    outcome = cli(command, "--help")
    assert outcome.code == 0
    assert "--out" in outcome.out
    assert "--json" in outcome.out
