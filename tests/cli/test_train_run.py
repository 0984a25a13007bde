"""`pdr-graph train` as a user has it: killed, stopped, begun again, on several processes."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from pdr_graph.cli import run
from pdr_graph.policy.folder import open_folder
from tests.train.processes import exit_code, free_port, start, start_ranks
from tests.train.toy_run import Toy, write_toy

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries below, in this process

# What a run imports is imported once, by the process that all others are forked from.
multiprocessing.get_context("forkserver").set_forkserver_preload(
    ["tests.train.drawn_rows", "pdr_graph.train.session", "pdr_graph.cli.train", __name__]
)

TIMING = ("seconds", "tokens_per_second", "total_flos")


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Toy:
    """A tiny model, and what it is trained on."""
    return write_toy(tmp_path_factory.mktemp("toy"))


def command(words: list[str], said: str) -> None:
    """Run a command in this process, what it says going to files `said`.out and .err."""
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{said}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  # as long as the process
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    code = run(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def begin(toy: Toy, out: Path, *words: str) -> BaseProcess:
    """Start a training run."""
    return start(
        command, ["train", "--config", str(toy.config), "--out", str(out), *words], str(out)
    )


def done(toy: Toy, out: Path, *words: str) -> str:
    """Run to the end; returns what was said on standard error."""
    code = exit_code(begin(toy, out, *words))
    err = Path(f"{out}.err").read_text()
    assert code == 0, err
    return err


def lines_of(file: Path) -> list[dict[str, Any]]:
    """Read whole lines of JSON."""
    data = file.read_bytes() if file.exists() else b""
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def figures(run: Path) -> list[dict[str, Any]]:
    """Return the figures of a run, without those of the clock."""
    return [
        {name: value for name, value in line.items() if not name.startswith(TIMING)}
        for line in lines_of(run / "metrics.jsonl")
    ]


def wait_for(process: BaseProcess, run: Path, number: int, stage: str = "rl") -> None:
    """Wait until so many updates of a stage are made, or the process has ended."""
    deadline = time.monotonic() + 300
    while sum(line["stage"] == stage for line in lines_of(run / "metrics.jsonl")) < number:
        assert time.monotonic() < deadline
        assert process.is_alive(), "it ended before it could be stopped"
        time.sleep(0.005)


def weights(folder: Path) -> dict[str, Any]:
    """Return the tensors of a model folder, or of an adapter's."""
    from safetensors.torch import load_file

    return load_file(next(folder.glob("*.safetensors")))


def same(one: Path, other: Path) -> bool:
    """Tell whether two folders hold the same weights, to the last bit."""
    left, right = weights(one), weights(other)
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory) -> Path:
    """A run that nobody stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done(toy, out)
    return out


def test_a_run_leaves_model_metrics_and_trajectories(toy, whole):
    """The model moved, every update has its figures, every run of the graph is kept."""
    assert not same(whole / "model", toy.model)
    assert [line["update"] for line in figures(whole)] == list(range(1, 9))
    assert [line["step"] for line in figures(whole)] == [1, 1, 2, 2, 3, 3, 4, 4]
    first = figures(whole)[0]
    assert first["drift/largest"] < 1e-4
    wanted = {"reward/direct", "reward/refine", "reward/run", "policy/entropy", "policy/clipped"}
    assert wanted | {"groups/flat", "tokens/sampled"} <= first.keys()
    assert any(each.match("events*") for each in (whole / "tensorboard" / "rl").iterdir())
    trajectories = lines_of(whole / "trajectories.jsonl")
    # 2 problems by long CoT with 6 runs each and 2 by one workspace, in each of 4 steps.
    assert len(trajectories) == 4 * (2 * 6 + 2)
    assert len({each["thread_id"] for each in trajectories}) == len(trajectories)
    assert open_folder(whole / "model").name == "model"
    card = (whole / "model" / "README.md").read_text()
    assert card.startswith('---\nbase_model: "model"\n')
    assert "| rl | reward/run |" in card


def test_killed_three_times_it_ends_the_same(toy, whole, tmp_path):
    """SIGKILL between, amid and after steps: weights, figures and trajectories are the same."""
    out = tmp_path / "run"
    for updates in (1, 4, 6):
        process = begin(toy, out)
        wait_for(process, out, updates)
        process.kill()
        assert exit_code(process) == -signal.SIGKILL
        assert not (out / "model").exists()
    said = done(toy, out)
    assert "training: continues after " in said
    assert same(out / "model", whole / "model")
    assert figures(out) == figures(whole)
    assert lines_of(out / "trajectories.jsonl") == lines_of(whole / "trajectories.jsonl")


def test_a_signal_lets_the_update_end(toy, whole, tmp_path):
    """A checkpoint is written, in the middle of a step as well; the same command continues."""
    out = tmp_path / "run"
    process = begin(toy, out)
    wait_for(process, out, 3)
    os.kill(process.pid, signal.SIGINT)
    assert exit_code(process) == 130
    said = Path(f"{out}.err").read_text().splitlines()
    assert said[-2].startswith("stopping: the current update is finished and a checkpoint writ")
    assert said[-1].endswith("/4 is done; the same command continues")
    done(toy, out)
    assert same(out / "model", whole / "model")
    assert figures(out) == figures(whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_it_imports_a_signal_ends_it_at_once(toy, tmp_path, number):
    """It has nothing to lose: no update is waited for, and the usual line says how to go on."""
    words = ["train", "--config", str(toy.config), "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "pdr_graph.cli", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "loading torch, transformers and trl\n"
        process.send_signal(number)
        rest = process.stderr.read()
    assert process.returncode == 128 + number
    assert rest == "stopped; the same command continues\n"
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_while_it_waits_for_other_processes_a_signal_ends_it_at_once(toy, tmp_path):
    """Then no code of Python runs in its main thread."""
    out = tmp_path / "run"
    words = ["train", "--config", str(toy.config), "--out", str(out)]
    words += ["--set", "devices.processes=2", "--set", "optimiser.micro_batch_rows=3"]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    alone = start(command, words, str(out), RANK="0", LOCAL_RANK="0", **meeting)
    deadline = time.monotonic() + 300
    while not listens(int(meeting["MASTER_PORT"])):
        assert time.monotonic() < deadline
        assert alone.is_alive()
        time.sleep(0.02)
    os.kill(alone.pid, signal.SIGTERM)
    assert exit_code(alone, within_s=60) == 128 + signal.SIGTERM
    said = Path(f"{out}.err").read_text().splitlines()
    assert said[-1] == "stopped; the same command continues"


def listens(port: int) -> bool:
    """Tell whether somebody listens at a port of this machine."""
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def test_a_finished_run_is_shown_again(toy, whole, capsys):
    """The same command trains no more, and says what came of it."""
    words = ["train", "--config", str(toy.config), "--out", str(whole)]
    before = (whole / "metrics.jsonl").read_bytes()
    assert run([*words, "--json"]) == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert facts["model"] == str(whole / "model")
    assert facts["stages"]["rl"]["updates"] == 8
    assert facts["stages"]["rl"]["first"].keys() == facts["stages"]["rl"]["last"].keys()
    assert f"{str(whole)!r} is done; name another --out to train again" in said.err
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_other_settings_are_refused_and_named(toy, whole, capsys):
    """All that differs, with both values; what is only a matter of how, is not."""
    words = ["train", "--config", str(toy.config), "--out", str(whole), "--quiet"]
    assert run([*words, "--seed", "3", "--set", "optimiser.learning_rate=1"]) == 2
    said = capsys.readouterr().err
    assert (
        "holds a run with another seed (0, now 3), another optimiser.learning_rate (0.001, " in said
    )
    assert "repeat its settings, or name another --out" in said
    assert run([*words, "--set", "policy.max_in_flight=5"]) == 0


def test_two_processes_do_not_train_in_one_folder(toy, tmp_path, capsys):
    """The second is told, and the first goes on."""
    out = tmp_path / "run"
    process = begin(toy, out)
    wait_for(process, out, 1)
    os.kill(process.pid, signal.SIGSTOP)
    assert run(["train", "--config", str(toy.config), "--out", str(out)]) == 2
    assert f"another process trains in '{out}'; wait until it has ended" in capsys.readouterr().err
    os.kill(process.pid, signal.SIGCONT)
    assert exit_code(process) == 0


def test_adapters_are_trained_alone(toy, tmp_path):
    """What is left is an adapter over its base, which opens as a model."""
    out = tmp_path / "run"
    done(toy, out, "--set", "lora.rank=4", "--set", "optimiser.learning_rate=0.01", "--steps", "2")
    assert (out / "model" / "adapter_config.json").is_file()
    assert all("lora" in name for name in weights(out / "model"))
    assert any(
        bool(each.any()) for name, each in weights(out / "model").items() if "lora_B" in name
    )
    assert open_folder(out / "model").name == "model"


WARM = ("--set", "warm_start.epochs=10", "--set", "warm_start.batch_rows=4")
WARM_MORE = ("--set", "warm_start.learning_rate=3e-3", "--set", "warm_start.save_every=5")


def test_a_warm_start_that_was_killed_ends_the_same(toy, tmp_path):
    """Killed in the warm start and killed in what follows; then as if never killed."""
    words = ["--warm-start", str(toy.supervised), *WARM, *WARM_MORE, "--steps", "2"]
    done(toy, tmp_path / "whole", *words)
    for number, stage in ((8, "warm_start"), (1, "rl")):
        process = begin(toy, tmp_path / "killed", *words)
        wait_for(process, tmp_path / "killed", number, stage)
        process.kill()
        exit_code(process)
    done(toy, tmp_path / "killed", *words)
    assert same(tmp_path / "killed" / "model", tmp_path / "whole" / "model")
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")
    assert sum(line["stage"] == "warm_start" for line in figures(tmp_path / "whole")) == 30


def test_a_warm_start_alone_leaves_its_model(toy, tmp_path):
    """`--steps 0` ends there; the model is in its place."""
    out = tmp_path / "run"
    said = done(toy, out, "--steps", "0", "--warm-start", str(toy.supervised), *WARM, *WARM_MORE)
    assert "warm start on 10 rows" in said
    assert {line["stage"] for line in figures(out)} == {"warm_start"}
    assert not same(out / "model", toy.model)
    assert "| warm_start | loss |" in (out / "model" / "README.md").read_text()
    assert "warm start, 30 updates" in Path(f"{out}.out").read_text()


def test_two_processes_train_as_one(toy, tmp_path):
    """One writes; each draws its share; the figures are those of all rows."""
    out = tmp_path / "run"
    words = ["train", "--config", str(toy.config), "--out", str(out), "--steps", "2"]
    words += ["--set", "devices.processes=2", "--set", "optimiser.micro_batch_rows=3"]
    ranks = start_ranks(2, command, words, str(out))
    assert [exit_code(each) for each in ranks] == [0, 0], Path(f"{out}.err").read_text()
    assert [line["update"] for line in figures(out)] == [1, 2, 3, 4]
    assert figures(out)[0]["rows/trained"] == 24
    assert len(lines_of(out / "trajectories.jsonl")) == 2 * (2 * 6 + 2)
    assert (out / "model" / "config.json").is_file()


def test_lines_of_a_pipe_are_whole(toy, whole):
    """Where there is no terminal, progress is lines that hold every figure, without a repaint."""
    err = Path(f"{whole}.err").read_text()
    assert "\x1b" not in err
    assert "\r" not in err
    last = [line for line in err.splitlines() if line.startswith("training: ")][-1]
    for fact in (
        "4/4",
        "reward ",
        "direct ",
        "refine ",
        "entropy ",
        "clipped ",
        "drift ",
        "flat gr",
    ):
        assert fact in last
    assert "tokens/s sampled" in last
