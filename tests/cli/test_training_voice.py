"""Of the processes of a training run one tells what ended it."""

import pytest

from pdr_graph.cli.failure import RunEndedError
from pdr_graph.cli.train import one_voice
from pdr_graph.errors import CallError, ConfigError
from pdr_graph.train.launch import Launch, RankError

MAIN, OTHER = Launch(world_size=2, rank=0), Launch(world_size=2, rank=1)


def test_the_main_process_tells_what_it_has_to():
    """Its error is the very one that was raised."""
    error = RankError("rank 1: the server is gone")
    with pytest.raises(RankError) as raised, one_voice(MAIN):
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RankError("rank 1: the server is gone"), 1),
        (RunEndedError("stopped", None, RankError("rank 0: the server is gone")), 1),
        (RunEndedError("stopped", 143, None), 143),
    ],
    ids=["before it began", "since", "by a signal"],
)
def test_another_process_is_silent_where_the_main_one_knows(error, code):
    """It ends by the exit code alone, and at once."""
    with pytest.raises(SystemExit) as raised, one_voice(OTHER, patience_s=600.0):
        raise error
    assert raised.value.code == code


def test_another_process_tells_what_only_it_can_know():
    """With its rank, as the kind of error that it was, and with the way on."""
    with (
        pytest.raises(ConfigError, match=r"^rank 1: model folder 'm' does not exist$"),
        one_voice(OTHER, patience_s=0.0),
    ):
        raise ConfigError("model folder 'm' does not exist")
    with pytest.raises(RunEndedError) as raised, one_voice(OTHER, patience_s=0.0):
        raise RunEndedError("stopped; the same command goes on", None, CallError("no answer"))
    assert str(raised.value.cause) == "rank 1: no answer"
    assert raised.value.way_on == "stopped; the same command goes on"


def test_what_goes_well_passes():
    """On every process."""
    for launch in (MAIN, OTHER):
        with one_voice(launch):
            pass
