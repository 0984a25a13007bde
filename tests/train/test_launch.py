"""Training on two processes, killed, begun again by `accelerate launch`, stopped, and refused."""

import os
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from tests.cli.test_train_run import (
    command,
    figures,
    lines_of,
    same,
    wait_for,
    weights,
)
from tests.train.processes import exit_code, free_port, start, start_ranks
from tests.train.toy_run import Toy, write_toy

TWO = ("--set", "devices.processes=2")


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Toy:
    """A tiny model, and what it is trained on."""
    return write_toy(tmp_path_factory.mktemp("toy"))


def words_of(toy: Toy, out: Path, *more: str) -> list[str]:
    """Return what is typed after `pdr-graph`."""
    return ["train", "--config", str(toy.config), "--out", str(out), *TWO, *more]


RL = ("--set", "optimiser.micro_batch_rows=3")


def accelerate(words: list[str], said: str) -> None:
    """Be `accelerate launch` of two processes; what all say goes to the file `said`.err."""
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{said}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
    from accelerate.commands.accelerate_cli import main

    # Without a second GPU it starts one process, unless it is told that there are several.
    launch = ["launch", "--multi_gpu", "--num_processes", "2", "--main_process_port"]
    sys.argv = ["accelerate", *launch, str(free_port()), "-m", "pdr_graph.cli", *words]
    main()


def launch(toy: Toy, out: Path, *more: str) -> BaseProcess:
    """Start a launcher, which starts two processes."""
    return start(accelerate, words_of(toy, out, *more), str(out))


def told(out: Path) -> list[str]:
    """Return the lines that are our own, of whichever process."""
    ours = ("error: ", "loading ", "opening ", "stopping: ", "stopped", "training: ", "rank ")
    return [line for line in Path(f"{out}.err").read_text().splitlines() if line.startswith(ours)]


def test_a_process_that_is_killed_ends_the_run_and_the_same_command_goes_on(toy, tmp_path):
    """The other one says so, once; weights, figures and runs are those of two left alone."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    ranks = start_ranks(2, command, words_of(toy, out, *RL), str(out))
    wait_for(ranks[0], out, 3)  # so that there is a checkpoint, after 2
    ranks[1].kill()
    assert [exit_code(each) for each in ranks] == [1, -signal.SIGKILL]
    lines = told(out)
    assert lines[:2] == ["loading torch, transformers and trl", f"opening {toy.model}"]
    assert lines[-2:] == [
        "error: another process of the run has ended, or cannot be reached any more; the launcher "
        "says which, and what ended it",
        f"training: {lines[-1].split()[1]} is done; the same command continues",
    ]
    assert not (out / "model").exists()

    assert exit_code(launch(toy, out, *RL)) == 0, Path(f"{out}.err").read_text()
    lines = told(out)
    assert lines[:2] == ["loading torch, transformers and trl", f"opening {toy.model}"]
    assert lines[2].startswith("training: continues after ")
    assert [line.split()[1] for line in lines if "tokens/s" in line].count("4/4") == 1
    left_alone = start_ranks(2, command, words_of(toy, whole, *RL), str(whole))
    assert [exit_code(each) for each in left_alone] == [0, 0]
    assert same(out / "model", whole / "model")
    assert figures(out) == figures(whole)
    assert runs_of(out) == runs_of(whole)


def runs_of(folder: Path) -> list[tuple[str, object]]:
    """Return the recorded runs by name; which process wrote first is not theirs to decide."""
    return sorted((each["thread_id"], each) for each in lines_of(folder / "trajectories.jsonl"))


def test_what_is_wrong_on_every_process_is_told_by_one(toy, tmp_path):
    """And the launcher ends the other one before it says it again."""
    out = tmp_path / "run"
    began = time.monotonic()
    assert exit_code(launch(toy, out, *RL, "--set", "rollouts.problems_per_step=3")) == 1
    assert told(out) == [
        "error: rollouts.problems_per_step 3 cannot be spread over 2 processes; use 4"
    ]
    assert time.monotonic() - began < 300.0
    assert not out.exists()


def test_a_warm_start_on_two_processes_is_that_of_one(toy, tmp_path):
    """The same rows in each update: the weights differ by the order of sums alone."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(toy.supervised.read_text().splitlines(keepends=True)[:8]))
    more = ("--steps", "0", "--warm-start", str(rows), "--set", "warm_start.epochs=4")
    more += ("--set", "warm_start.batch_rows=4", "--set", "warm_start.micro_batch_rows=2")
    one, two = tmp_path / "one", tmp_path / "two"
    alone = ["train", "--config", str(toy.config), "--out", str(one), *more]
    processes = [start(command, alone, str(one))]
    processes += start_ranks(2, command, words_of(toy, two, *more), str(two))
    assert [exit_code(each) for each in processes] == [0, 0, 0]
    before, single, double = (weights(each) for each in (toy.model, one / "model", two / "model"))
    moved = max(float((single[name] - before[name]).abs().max()) for name in single)
    gap = max(float((single[name] - double[name]).abs().max()) for name in single)
    assert gap < 1e-3 * moved
    assert [line["update"] for line in figures(two)] == list(range(1, 9))


def test_the_main_process_alone_shows_that_it_stops(toy, tmp_path):
    """Ctrl-C reaches all; each lets the update end, and one says so and how to go on."""
    out = tmp_path / "run"
    ranks = start_ranks(2, command, words_of(toy, out, *RL), str(out))
    wait_for(ranks[0], out, 2)
    for each in ranks:
        os.kill(each.pid, signal.SIGINT)
    assert [exit_code(each) for each in ranks] == [130, 130]
    lines = told(out)
    assert sum(line.startswith("stopping: ") for line in lines) == 1
    assert [line for line in lines if line.endswith("the same command continues")] == lines[-1:]
