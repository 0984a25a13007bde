"""What keepers write down is read back, and nothing else is taken for it."""

import json
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.errors import LocalError
from pdr_graph.process import Process
from pdr_graph.servers.data_dir import key_file, own_key
from pdr_graph.servers.record import ServerPlan, ServerRecord, Shelf

TEXT = st.text(max_size=20)
PROCESS = st.builds(Process, pid=st.integers(1, 2**22), created=st.floats(0, 2e9))


@given(
    record=st.builds(
        ServerRecord,
        part=st.just("model"),
        kind=st.sampled_from(["vllm", "embedded model"]),
        state=st.sampled_from(["starting", "ready", "failed"]),
        keeper=PROCESS,
        server=st.none() | PROCESS,
        url=TEXT,
        command=st.lists(TEXT, max_size=3).map(tuple),
        asked=st.dictionaries(TEXT, TEXT, max_size=3),
        since=st.floats(0, 2e9),
        error=TEXT,
    )
)
def test_a_record_is_read_as_it_was_written(record, tmp_path_factory):
    """Whatever a record holds survives the file."""
    shelf = Shelf(tmp_path_factory.mktemp("data")).made()
    shelf.write(record)
    assert shelf.read("model") == record


@given(
    plan=st.builds(
        ServerPlan,
        part=st.just("store"),
        kind=st.just("redis"),
        url=TEXT,
        command=st.lists(TEXT, max_size=3).map(tuple),
        environment=st.dictionaries(TEXT, TEXT, max_size=3),
        notes=st.lists(TEXT, max_size=2).map(tuple),
    )
)
def test_a_plan_reaches_its_keeper(plan):
    """A plan is the same on the other side of a pipe."""
    assert ServerPlan.from_json(plan.to_json()) == plan


@pytest.mark.security
def test_a_shown_plan_keeps_its_key():
    """The key of an endpoint is not shown with its command."""
    plan = ServerPlan("model", "vllm", command=("vllm",), environment={"VLLM_API_KEY": "hidden"})
    assert plan.shown() == "VLLM_API_KEY=*** vllm"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"keeper": 1}'])
def test_another_file_in_its_place(tmp_path, text):
    """What no keeper wrote is named, and not acted on."""
    shelf = Shelf(tmp_path).made()
    (shelf.home / "model.json").write_text(text)
    with pytest.raises(LocalError, match=r"model\.json' is not a record of `pdr-graph up`"):
        shelf.read("model")


def test_a_part_is_kept_as_long_as_its_lock_is_held(tmp_path):
    """The kernel says whether there is a keeper."""
    shelf = Shelf(tmp_path).made()
    assert not shelf.is_kept("model")
    with shelf.lock("model") as lock:
        assert lock.try_exclusive()
        assert shelf.is_kept("model")
        assert not shelf.is_kept("store")
    assert not shelf.is_kept("model")


def test_others_cannot_read_a_record(tmp_path):
    """Records hold command lines, which may hold more than everybody should know."""
    shelf = Shelf(tmp_path).made()
    shelf.write(ServerRecord("model", "vllm", "ready", Process(1, 0.0)))
    assert (shelf.home / "model.json").stat().st_mode & 0o077 == 0
    assert shelf.home.stat().st_mode & 0o077 == 0


@pytest.mark.security
def test_a_key_is_sent_only_to_the_server_that_asks_for_it(tmp_path):
    """At the address of its record; a record of before there were keys has none, and is read."""
    shelf = Shelf(tmp_path).made()
    key, url = own_key(tmp_path), "http://127.0.0.1:8000/v1"
    this = Process.of(os.getpid())
    record = ServerRecord(
        "model", "embedded model", "ready", this, url=url, key_file=str(key_file(tmp_path))
    )
    shelf.write(record)
    assert shelf.key_of(url) == ""  # its keeper is gone
    with shelf.lock("model") as lock:
        assert lock.try_exclusive()
        assert shelf.key_of(url) == shelf.key_of("http://localhost:8000/v1/") == key
        assert shelf.key_of("http://127.0.0.1:8001/v1") == shelf.key_of("http://evil:8000/v1") == ""
        file = shelf.home / "model.json"
        fields = json.loads(file.read_text())
        del fields["key_file"]
        file.write_text(json.dumps(fields))
        assert shelf.read("model") is not None
        assert shelf.key_of(url) == ""


@pytest.mark.security
def test_a_key_that_others_could_read_is_replaced(tmp_path):
    """So is a folder of ours that they could look into."""
    first = own_key(tmp_path)
    assert own_key(tmp_path) == first
    key_file(tmp_path).chmod(0o644)
    key_file(tmp_path).parent.chmod(0o755)
    assert own_key(tmp_path) != first
    assert stat.S_IMODE(key_file(tmp_path).stat().st_mode) == 0o600
    assert stat.S_IMODE(key_file(tmp_path).parent.stat().st_mode) == 0o700
