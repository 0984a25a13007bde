"""What fails on one of two ranks ends both, and one of them tells it."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from accelerate import Accelerator

from pdr_graph.errors import CallError, ConfigError
from pdr_graph.train.ranks import is_of_a_lost_rank, together
from pdr_graph.train.trainer import OperatorTrainer
from tests.policy.tiny_model import tiny_tokenizer
from tests.train.given_rows import GivenRows, double_model, make_problems, make_settings
from tests.train.processes import exit_code, start_ranks

BROKEN = "the server closed the connection"


def outcome(work: Callable[[], object]) -> dict[str, object]:
    """Say what some work returned or raised."""
    try:
        return {"gave": work()}
    except Exception as error:  # noqa: BLE001  # whichever it is
        notes = "".join(getattr(error, "__notes__", ()))
        return {"kind": type(error).__name__, "said": str(error), "notes": notes}


def failing(where: set[int], error: Exception, rank: int) -> Callable[[], int]:
    """Return work that fails on some ranks, and returns its rank elsewhere."""

    def work() -> int:
        if rank in where:
            raise error
        return rank

    return work


def meet(folder: Path) -> None:
    """Be one of two ranks that fail in turn, and write what came of it."""
    here = Accelerator(cpu=True)
    rank = here.process_index
    work = [
        failing(set(), CallError(BROKEN), rank),
        failing({1}, CallError(BROKEN), rank),
        failing({0}, ConfigError(BROKEN), rank),
        failing({0, 1}, KeyError("seed"), rank),
        failing(set(), CallError(BROKEN), rank),
    ]
    found = [outcome(lambda each=each: together(each, here)) for each in work]
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def collect_on_one(folder: Path) -> None:
    """Be one of two ranks of a trainer, the second of which cannot collect its second step."""

    class Failing(GivenRows):
        def __call__(self, problems, plans, *, seed: int, policy_version: int):
            if policy_version and torch.distributed.get_rank() == 1:
                raise CallError(BROKEN)
            return super().__call__(problems, plans, seed=seed, policy_version=policy_version)

    trainer = OperatorTrainer(
        double_model(),
        tiny_tokenizer(),
        make_problems(),
        Failing(),
        make_settings(3, devices={"processes": 2}),
        folder,
    )
    found = outcome(trainer.train)
    found["updates"] = trainer.state.global_step
    (folder / f"{trainer.accelerator.process_index}.json").write_text(json.dumps(found))
    os._exit(0)  # the trainer is still here, and torch may wait for ever for a thread of gloo's


def of_two_ranks(target: Callable[[Path], None], folder: Path) -> list:
    """Return what each of two ranks wrote."""
    ranks = start_ranks(2, target, folder)
    assert [exit_code(rank) for rank in ranks] == [0, 0]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_a_failure_ends_the_work_of_all_and_is_told_by_the_main_rank(tmp_path):
    """It has its own error, or the other's sentence and traceback; they can still meet later."""
    main, other = of_two_ranks(meet, tmp_path)
    assert [main[0], other[0]] == [{"gave": 0}, {"gave": 1}]
    assert (main[1]["kind"], main[1]["said"]) == ("RankError", f"rank 1: {BROKEN}")
    assert f"CallError: {BROKEN}" in main[1]["notes"]
    assert (main[2]["kind"], main[2]["said"]) == ("ConfigError", BROKEN)
    assert (main[3]["kind"], main[3]["said"]) == ("KeyError", "'seed'")
    assert [each["kind"] for each in other[1:4]] == ["RankError"] * 3
    assert other[2]["said"] == f"rank 0: {BROKEN}"
    assert other[3]["said"] == "rank 0: unexpected KeyError: 'seed'"
    assert [main[4], other[4]] == [{"gave": 0}, {"gave": 1}]


def test_rollouts_that_fail_on_one_rank_end_the_training_of_both(tmp_path):
    """Neither waits for the other, and neither trains on what is left."""
    main, other = of_two_ranks(collect_on_one, tmp_path)
    assert (main["kind"], main["said"]) == ("RankError", f"rank 1: {BROKEN}")
    assert other["kind"] == "RankError"
    assert [main["updates"], other["updates"]] == [1, 1]


def test_alone_a_failure_is_what_it_is():
    """No other rank has to hear of it."""
    alone = Accelerator(cpu=True)
    assert together(lambda: 7, alone) == 7
    with pytest.raises(KeyError, match="seed"):
        together(failing({0}, KeyError("seed"), 0), alone)


def test_a_rank_that_is_gone_is_known_by_what_the_libraries_say():
    """Torch has a type for it, gloo a place in its source."""
    closed = "[/src/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"
    assert is_of_a_lost_rank(RuntimeError(closed))
    assert is_of_a_lost_rank(torch.distributed.DistBackendError("NCCL communicator was aborted"))
    assert not is_of_a_lost_rank(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
