"""What every command shows at 60, 80 and 120 columns, kept as text under `screens/`.

`SCREENS=update pytest tests/cli/test_screens.py` writes the files anew. Look at each change.
"""

import io
import json
import os
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from rich.cells import cell_len
from rich.console import Console, RenderableType

from pdr_graph.cli import app
from pdr_graph.cli.demo import board_parts, problem_parts
from pdr_graph.cli.doctor import CheckTable
from pdr_graph.cli.eval_board import ArmsBoard, ArmTable
from pdr_graph.cli.inspect import run_parts
from pdr_graph.cli.live import BoardView
from pdr_graph.cli.output import PIPE_WIDTH, Output
from pdr_graph.cli.run_display import RunProgress, result_parts
from pdr_graph.cli.threads import RunTable
from pdr_graph.cli.train import TrainBoard, change_table
from pdr_graph.cli.up import StatusTable
from pdr_graph.eval.records import ArmTally
from pdr_graph.servers.valkey import PROGRAMS, find_binary, find_redis
from tests.cli import shown
from tests.eval.recorded import draft as graded
from tests.eval.recorded import sample, write_run
from tests.servers.processes import eventually, servers
from tests.servers.stand_in import StandIn
from tests.train.test_settings import write_model
from tests.train.test_supervised import RIGHT, traced, write_trace

FOLDER = Path(__file__).resolve().parent / "screens"
UPDATE = os.environ.get("SCREENS") == "update"
WIDTHS = (60, 80, 120)
COMMANDS = ["", *typer.main.get_command(app.make_app()).commands]


def drawn(width: int, parts: Iterable[RenderableType], *, terminal: bool = True) -> str:
    """Return what a terminal of that width, or a pipe, gets to see."""
    console = Console(
        file=io.StringIO(),
        width=width,
        height=40,
        force_terminal=terminal,
        color_system=None,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for part in parts:
        console.print(part, crop=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def compared(name: str, screens: dict[str, str]) -> None:
    """Compare screens, by their heading, with those that are kept."""
    text = "".join(
        f"===== {title} =====\n{without_trailing_space(screen)}"
        for title, screen in screens.items()
    )
    file = FOLDER / f"{name}.txt"
    if UPDATE:
        file.write_text(text, "utf-8")
    assert text == file.read_text("utf-8"), f"{file.name} differs; update it and look at it"


def without_trailing_space(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def too_long(text: str, width: int) -> list[str]:
    """Return the lines that a terminal of that width would break."""
    return [line for line in text.splitlines() if cell_len(line.rstrip()) > width]


@pytest.fixture
def asked(cli, monkeypatch) -> Callable[..., str]:
    """Runs a command as on a terminal without colour, and returns all that it writes."""

    def call(width: int, *words: str, stdin: str | None = None) -> str:
        for name, value in {
            "COLUMNS": str(width),
            "LINES": "40",
            "TERM": "dumb",
            "TTY_COMPATIBLE": "1",
        }.items():
            monkeypatch.setenv(name, value)
        outcome = cli(*words, stdin=stdin)
        parts = [f"$ pdr-graph {' '.join(words)}\n", outcome.out, outcome.err]
        code = f"[exit code {outcome.code}]\n" if outcome.code else ""
        return "".join([*parts, code]).replace(str(Path.cwd()), "/here")

    return call


# ------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize("command", COMMANDS)
def test_help(asked, command):
    """Every option is whole at every width: nothing is cut, and no line is too long."""
    words = [*([command] if command else []), "--help"]
    screens = {f"{width} columns": asked(width, *words) for width in WIDTHS}
    compared(f"help{'-' * bool(command)}{command}", screens)
    wide = asked(400, *words).count("…")
    for width, screen in zip(WIDTHS, screens.values(), strict=True):
        assert too_long(screen, width) == []
        assert screen.count("…") == wide, "a word of the help is cut"


# --------------------------------------------------------------------------------------- results


def board(what: str) -> BoardView:
    """Return the live display of a run in its first round, or of an evaluation."""
    if what == "progress":
        progress = RunProgress(2, round=1, width=8, tokens=41_250, doing="drafting")
        answers = ["7", "7", "17", "x = \\frac{1}{2} + \\sqrt{3}", "7"]
        progress.drafts = {index: (answer, None) for index, answer in enumerate(answers)}
        return BoardView(progress)
    if what == "training":
        training = TrainBoard(Output(quiet=True))
        training.begins("rl", 0, 400, 2)
        figures = {name: last for name, (_, last) in shown.TRAINED.items()}
        speed = {"tokens_per_second/sampled": 2_410.0, "tokens_per_second/trained": 15_230.0}
        training.told({"stage": "rl", "update": 84, "seconds": 61.5, **figures, **speed})
        return BoardView(training)
    arms = ArmsBoard(list(shown.ARMS), 240, Output())
    for place, arm in enumerate(arms.arms.values()):
        arm.done_here = 60
        arm.records = {
            ("arm", str(number), 0): (number % 3 > 0, number % 20 == place, 11_000)
            for number in range(60)
        }
    return BoardView(arms)


def report_of(*, fitted: bool) -> Iterable[RenderableType]:
    """Return what `judge fit` or `judge score` shows."""
    pytest.importorskip("numpy")
    from pdr_graph.cli.judge import report_parts

    return report_parts(shown.judged(fitted=fitted))


TALLIES = [
    ArmTally(
        arm=name,
        samples=240,
        correct=round(240 * share),
        accuracy=share,
        no_answer=0.0125,
        failed=2,
        b_seq=4_000.0 * (place + 1),
        b_total=12_000.0 * (place + 1),
        b_seq_nominal=1.0,
        b_total_nominal=1.0,
        seconds=12.5,
    )
    for place, (name, share) in enumerate(shown.ARMS.items())
]
SCREENS: dict[str, Callable[[], Iterable[RenderableType]]] = {
    "solve": lambda: result_parts(shown.RESULT, f"pdr-graph inspect {shown.RESULT.thread_id}"),
    "solve-text": lambda: result_parts(
        replace(
            shown.RESULT, answer=None, config=shown.CONFIG.model_copy(update={"answer": "text"})
        ),
        None,
    ),
    "inspect": lambda: run_parts(shown.HISTORY, 6),
    "inspect-full": lambda: run_parts(shown.HISTORY, None),
    "threads": lambda: [RunTable(shown.RUNS, shown.NOW)],
    "up-status": lambda: [StatusTable(shown.SERVERS, shown.NOW.timestamp())],
    "eval": lambda: [ArmTable(TALLIES)],
    "doctor": lambda: [CheckTable(shown.CHECKS)],
    "judge-fit": lambda: report_of(fitted=True),
    "judge-score": lambda: report_of(fitted=False),
    "demo": lambda: board_parts(shown.demonstrated()),
    "demo-stopped": lambda: board_parts(shown.demonstrated(over=False)),
    "demo-of-a-problem": lambda: problem_parts(
        shown.PROBLEM, problem := shown.one_problem(), problem[2], "pdr-graph inspect 9f3c2b1a7e4d"
    ),
    "train": lambda: [
        change_table("rl", 200, *({k: v[n] for k, v in shown.TRAINED.items()} for n in (0, 1)))
    ],
    "progress-of-training": lambda: [board("training")],
    "progress": lambda: [board("progress")],
    "progress-of-arms": lambda: [board("arms")],
}


@pytest.mark.parametrize("name", SCREENS)
def test_screen(name):
    """A screen says the same at every width, and breaks no line; a pipe gets every line whole."""
    screens = {f"{width} columns": drawn(width, SCREENS[name]()) for width in WIDTHS}
    screens = {title: without_times(text) for title, text in screens.items()}
    for width, screen in zip(WIDTHS, screens.values(), strict=True):
        assert too_long(screen, width) == []
    if not name.startswith("progress"):
        screens["in a pipe"] = drawn(PIPE_WIDTH, SCREENS[name](), terminal=False)
    compared(name, screens)


def without_times(text: str) -> str:
    """Return a screen with the same time of every clock that runs."""
    if "tokens ·" in text:
        text = re.sub(r"\b\d+\.\d s$", "1.0 s", text, flags=re.MULTILINE)
    return re.sub(r"\b\d+ s left", "9 s left", text)


def test_names_of_runs_are_whole_in_a_pipe():
    """Whatever else a line holds."""
    text = drawn(60, [RunTable(shown.RUNS, shown.NOW)], terminal=False)
    assert [line.split()[0] for line in text.splitlines()[2:]] == [
        run.thread_id for run in shown.RUNS
    ]


@pytest.mark.parametrize("width", [8, 20, 33, 47, 60])
@pytest.mark.parametrize("what", ["progress", "arms"])
def test_the_progress_never_wraps(what, width):
    """A bar takes one line at any width, and so does each line of facts."""
    assert too_long(drawn(width, [board(what)]), width) == []
    wide = drawn(200, [board(what)]).splitlines()
    bars = [line for line in drawn(width, [board(what)]).splitlines() if line.strip()]
    assert what == "progress" or len(bars) == len(wide)


# -------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("width", WIDTHS)
def test_compare(asked, tmp_path, width):
    """Five arms fit 80 columns; accuracy and differences come first."""
    pytest.importorskip("scipy")
    shown.evaluation(tmp_path / "runs")
    screen = asked(width, "compare", "runs")
    assert too_long(screen, width) == []
    assert screen.index("Accuracy") < screen.index("Differences") < screen.index("Cost")
    compared(f"compare-{width}", {f"{width} columns": screen})


CASES = """\
{"gold": "7", "pred": "It is \\\\boxed{7}."}
{"gold": "1/2", "pred": "0.5"}
{"gold": "7", "pred": "I am not sure."}
"""
WORDS: dict[str, tuple[list[str], str | None]] = {
    "check": (["check", "--workers", "1"], CASES),
    "threads-none": (["threads", "--checkpoint", "memory"], None),
    "inspect-nothing": (["inspect"], None),
    "reseal-no-key": (["reseal", "--data-dir", "data"], None),
    "resume-nothing": (["resume"], None),
    "compare-no-run": (["compare", "runs/one"], None),
    "eval-wrong-arm": (["eval", "p.jsonl", "--arm", "pdr@width=4", "--out", "runs/one"], None),
    "train-data-no-run": (["train-data", "runs/one", "--out", "data.jsonl"], None),
    "train-no-model": (["train"], None),
    "judge-no-out": (["judge", "fit", "runs/one"], None),
    "judge-no-run": (["judge", "score", "runs/one", "--judge", "judge.json"], None),
    "demo-wrong-endpoint": (["demo", "--base-url", "localhost:8000"], None),
    "doctor-wrong-value": (["doctor", "--retries", "many"], None),
    "serve-no-key": (["serve", "--host", "0.0.0.0"], None),
    "solve-wrong-preset": (["solve", "x", "--preset", "pdrr"], None),
    "solve-wrong-value": (["solve", "x", "--widths", "a,b"], None),
    "solve-wrong-option": (["solve", "x", "--width", "4"], None),
    "solve-two-forms": (["solve", "x", "--answer-only", "--json"], None),
    "up-no-folder": (["up", "--model", "./nowhere", "--dry-run"], None),
    "up-status-none": (["up", "--status", "--data-dir", "data"], None),
    "down-no-such-server": (["down", "models"], None),
    "down-none": (["down", "--data-dir", "data"], None),
    "unknown-command": (["slove"], None),
}


@pytest.fixture
def model_folder(clean) -> None:
    """A folder with a model's config, and one with problems, in the current folder."""
    write_model(clean / "m")
    rows = [{"problem": f"What is {index} + 1?", "answer": str(index + 1)} for index in range(3)]
    (clean / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


TRAIN = ["train", "--model", "m", "--data", "q.jsonl", "--set", "rollouts.problems_per_step=2"]


def test_dry_run_of_training(asked, model_folder):
    """It says what a step takes, and whether that fits."""
    words = [*TRAIN, "--dry-run", "--set", "devices.memory_gib=8"]
    screens = {f"{width} columns": asked(width, *words) for width in WIDTHS}
    for width, screen in zip(WIDTHS, screens.values(), strict=True):
        assert too_long(screen.split("\n", 1)[1], width) == []
    compared("train-dry-run", screens)


@pytest.mark.skipif(find_spec("torch") is not None, reason="torch is installed")
def test_training_without_torch(asked, model_folder, monkeypatch):
    """It is refused before anything is loaded, with the command that installs it."""
    monkeypatch.setattr("pdr_graph.errors.IS_PUBLISHED", True)
    compared("train-refused", {f"{width} columns": asked(width, *TRAIN) for width in WIDTHS})


def test_data_for_training(asked, clean):
    """What became of the calls of the right runs."""
    run = write_run(clean / "runs", [sample("pdr", "p0", drafts=[graded(0, "7")])])
    write_trace(run, *(traced(RIGHT, node) for node in ("drafter", "distiller", "refiner")))
    words = ["train-data", "runs", "--out", "data.jsonl"]
    compared("train-data", {f"{width} columns": asked(width, *words) for width in WIDTHS})


@pytest.mark.parametrize("width", WIDTHS)
def test_start_of_a_server(spawn, monkeypatch, mock, width):
    """It says what it serves before its address, and that it has stopped."""
    mock.configure(max_model_len=4096)
    for name, value in {"COLUMNS": width, "LINES": 40, "TERM": "dumb", "TTY_COMPATIBLE": 1}.items():
        monkeypatch.setenv(name, str(value))
    words = ["serve", "--port", "0", "--checkpoint", "memory"]
    process = spawn(*words)
    address = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    text = f"$ pdr-graph {' '.join(words)}\n{err}[standard output]\n{address}{out}"
    text = text.replace(mock.url, "http://127.0.0.1:8000/v1")
    text = re.sub(r"http://127\.0\.0\.1:\d{5}", "http://127.0.0.1:54321", text)
    assert process.returncode == 0
    compared(f"serve-{width}", {f"{width} columns": text})


@pytest.mark.parametrize("name", WORDS)
def test_command(asked, name):
    """A command that can do nothing says why in a sentence, and what to do."""
    words, stdin = WORDS[name]
    screens = {f"{width} columns": asked(width, *words, stdin=stdin) for width in WIDTHS}
    fixed = {
        title: re.sub(r'"seconds": [\d.e-]+|median [\d.]+ ms', "…", text)
        for title, text in screens.items()
    }
    compared(name, fixed)


# --------------------------------------------------------------------------------------- servers

PLACE = "/home/user/projects/pdr-graph/my-project"
"""How the current folder is shown."""
ADDRESS = "127.0.0.1:54321"


@pytest.fixture
def project(clean, monkeypatch) -> Iterator[Path]:
    """The current folder, whose path is as long as `PLACE`: where a line breaks depends on it."""
    above = Path(tempfile.mkdtemp(prefix="pdr-", dir="/tmp")).resolve()
    folder = above / ("x" * (len(PLACE) - len(f"{above}/")))
    folder.mkdir()
    for name in ("home", "no cache"):
        (folder / name).mkdir()
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "home"))
    monkeypatch.setenv("PDR_CACHE_DIR", str(folder / "no cache"))
    monkeypatch.setenv("PDR_DATA_DIR", str(folder / "data"))
    monkeypatch.chdir(folder)
    yield folder
    monkeypatch.chdir("/tmp")  # what works in the folder is looked for, and this process is none
    try:
        eventually(lambda: not servers(folder), within_s=30)
    finally:
        for process in servers(folder):
            process.kill()
        shutil.rmtree(above)


@pytest.fixture
def asked_there(asked, project) -> Callable[..., str]:
    """Runs a command in that folder; what differs between machines is shown alike."""

    def call(width: int, *words: str) -> str:
        text = asked(width, *words).replace("/here", PLACE)
        text = re.sub(r"127\.0\.0\.1:\d{5}", ADDRESS, re.sub(r"--port \d{5}", "--port 54321", text))
        text = re.sub(r"KVCACHE_SPACE=\d+", "KVCACHE_SPACE=1", text).replace(" --dtype float32", "")
        return re.sub(rf"^\S+/({'|'.join(PROGRAMS)})", "redis-server", text, flags=re.MULTILINE)

    return call


@pytest.fixture
def can_start(project, monkeypatch) -> list[str]:
    """Words that start a stand-in for vLLM; there is a Redis beside it."""
    stand_in = StandIn.make(project / "engine")
    stand_in.model.rename("tiny")
    monkeypatch.setenv("PDR_UP_VLLM_PYTHON", str(stand_in.python))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if find_redis() is None:
        monkeypatch.setenv("PATH", str(find_binary().parent), prepend=os.pathsep)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    budgets = "--widths 4,2 --kappa 256 --max-tokens 512 --solution-tokens 128"
    return [*["up", "--model", "tiny", "--port"], str(port), *budgets.split()]


def test_trust(asked_there, project):
    """The file is named whole, whether it is trusted, not any more, or not there."""
    screens = {f"{width} columns, no file": asked_there(width, "trust") for width in WIDTHS}
    (project / ".env").write_text("PDR_BASE_URL=http://127.0.0.1:8000/v1\nPDR_MODEL=m\n")
    for width in WIDTHS:
        for words in (["trust"], ["trust", "--forget"]):
            screens[f"{width} columns"] = screens.get(f"{width} columns", "") + asked_there(
                width, *words
            )
    compared("trust", screens)


def test_plan_of_servers(asked_there, can_start):
    """Each command is one line, to be copied."""
    words = [*can_start, "--dry-run"]
    compared("up-dry-run", {f"{width} columns": asked_there(width, *words) for width in WIDTHS})


@pytest.mark.redis
def test_servers_from_start_to_end(asked_there, can_start):
    """They start, run already, are other ones, show how they stand, and stop."""
    steps = (
        can_start,
        ["up"],
        ["up", "--runs", "3"],
        ["up", "--status"],
        ["down", "store"],
        ["down"],
    )
    screens = {}
    for width in WIDTHS:
        text = "".join(asked_there(width, *words) for words in steps)
        text = re.sub(r"\b\d+ s( *)", lambda found: "9 s".ljust(len(found[0])), text)
        text = re.sub(r"^\w+: \w+ starts, .*\n", "", text, flags=re.MULTILINE)  # a slow machine
        # Whichever is ready first.
        text = re.sub(
            r"(model: .* has started .*\n)(store: .* has started .*(?:\nunix.*)?\n)", r"\2\1", text
        )
        screens[f"{width} columns"] = text
    compared("up", screens)


# ------------------------------------------------------------------------------------------- all


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_every_command_has_a_screen_beside_its_help(command):
    """Whoever adds a command keeps what it shows."""
    kept = [file for file in FOLDER.glob(f"{command}*.txt") if f"{command}-data" not in file.stem]
    kept += FOLDER.glob(f"{command}-data*.txt") if command.endswith("-data") else []
    assert kept
    assert any(
        f"$ pdr-graph {command}" in file.read_text("utf-8") or file.stem in SCREENS for file in kept
    )
