"""Figures of a run: a line for each update, and none twice, however often the run went on."""

import json
import time
from pathlib import Path

import pytest

from pdr_graph.errors import ConfigError
from pdr_graph.train.run_folder import MetricsLog, StepTally, read_metrics
from tests.train.test_rows import row
from tests.train.test_trajectory import make_call, make_trajectory


@pytest.fixture
def log(tmp_path) -> MetricsLog:
    """The log of a stage with two updates a step."""
    pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")
    return MetricsLog(tmp_path, "rl", updates_per_step=2)


def updates(folder: Path) -> list[int]:
    """Return the updates that have a line."""
    return [line["update"] for line in read_metrics(folder / "metrics.jsonl")]


def test_a_line_has_update_step_stage_and_figures(log, tmp_path):
    """Steps are counted from 1, with as many updates as they have."""
    log.open(0)
    for update in (1, 2, 3):
        log.write(update, {"reward/run": update / 4})
    log.close()
    lines = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert [(line["update"], line["step"]) for line in lines] == [(1, 1), (2, 1), (3, 2)]
    assert lines[2]["reward/run"] == 0.75
    assert {line["stage"] for line in lines} == {"rl"}


def test_what_is_done_again_is_there_once(log, tmp_path):
    """Going on from an update cuts off what came after it; the clock of work goes on."""
    log.open(0)
    for update in (1, 2, 3, 4):
        log.write(update, {"loss": 1.0})
    log.close()
    spent = [line["seconds"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    again = MetricsLog(tmp_path, "rl", updates_per_step=2)
    again.open(2)
    assert updates(tmp_path) == [1, 2]
    assert again.write(3, {"loss": 1.0})["seconds"] >= spent[1]
    again.close()
    assert updates(tmp_path) == [1, 2, 3]


def test_the_lines_of_another_stage_stay(log, tmp_path):
    """RL that begins anew leaves the warm start's figures."""
    warm = MetricsLog(tmp_path, "warm_start")
    warm.open(0)
    warm.write(1, {"loss": 2.0})
    warm.write(2, {"loss": 1.0})
    warm.close()
    log.open(0)
    log.write(1, {"loss": 3.0})
    log.open(0)
    assert [line["stage"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [
        "warm_start"
    ] * 2


def test_tensorboard_has_the_same_figures(log, tmp_path):
    """Under their names, once for each update, after going on as well."""
    log.open(0)
    for update in (1, 2, 3):
        log.write(update, {"reward/run": float(update)})
    log.close()
    # TensorBoard reads files in the order of their names, which hold the second they began in.
    began = int(time.time())
    while int(time.time()) == began:
        time.sleep(0.02)
    again = MetricsLog(tmp_path, "rl", updates_per_step=2)
    again.open(1)
    again.write(2, {"reward/run": 20.0})
    again.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard" / "rl"))
    events.Reload()
    assert [(each.step, each.value) for each in events.Scalars("reward/run")] == [
        (1, 1.0),
        (2, 20.0),
    ]


def test_a_torn_line_is_left_out_and_other_damage_is_named(tmp_path):
    """A process that died in the middle of a line costs that line."""
    file = tmp_path / "metrics.jsonl"
    whole = json.dumps({"update": 1, "step": 1, "stage": "rl", "seconds": 1.0}) + "\n"
    file.write_text(whole + whole[:20])
    assert len(list(read_metrics(file))) == 1
    file.write_text(whole + '{"update": 2}\n')
    with pytest.raises(
        ConfigError, match=r"metrics.jsonl line 2 is damaged \(fields are missing\)"
    ):
        list(read_metrics(file))
    file.write_text("x\n")
    with pytest.raises(ConfigError, match=r"metrics.jsonl line 1 is damaged"):
        list(read_metrics(file))
    assert list(read_metrics(tmp_path / "none.jsonl")) == []


def test_the_figures_of_ranks_are_those_of_all_their_rows_together():
    """Means weigh each row alike, however many a rank has; fillers are counted apart."""
    run = make_trajectory(calls=(make_call(), make_call(token_ids=(5,), logprobs=(-1.0,))))
    one = [row("p", "draft", 1.0, tokens=4), row("p", "draft", -1.0), row("p", "refine", 1.0)]
    other = [row("q", "draft", 1.0), None]
    ranks = [StepTally.of([run], one), StepTally.of([run, run], other), StepTally.of([], [])]
    figures = StepTally.together(ranks).figures()
    assert figures == StepTally.of([run] * 3, [*one, *other]).figures()
    assert figures["reward/draft"] == pytest.approx(1 / 3)
    assert (figures["rows/trained"], figures["rows/fillers"]) == (4.0, 1.0)
    assert (figures["tokens/sampled"], figures["length/largest"]) == (9.0, 6.0)
    assert figures["groups/flat"] == pytest.approx(2 / 3)
    assert "reward/direct" not in figures
