"""What makes and measures a real vLLM, with a stand-in for it."""

import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cache import STAMP, cache_dir, made_once
from engine.metrics import counters, parse
from engine.prefix_reference import PrefixReference
from engine.server import VLLMServer
from pdr_graph.errors import ConfigError, LocalError
from tests.servers.processes import eventually, servers
from tests.servers.stand_in import StandIn


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PDR_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_folder_is_made_once():
    """The second caller finds what the first has made."""
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        folder.mkdir()

    assert made_once("thing", {"of": "1"}, make) == made_once("thing", {"of": "1"}, make)
    assert len(made) == 1


def test_another_recipe_makes_it_anew():
    """A folder of an older version is not taken for the new one, and nothing of it is left."""

    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / str(len(list(folder.parent.glob("file*"))))).touch()
        (folder.parent / f"file{time.monotonic_ns()}").touch()

    made_once("thing", {"of": "1"}, make)
    folder = made_once("thing", {"of": "2"}, make)
    assert sorted(file.name for file in folder.iterdir()) == ["1", STAMP]


def test_a_maker_that_is_killed_leaves_nothing_that_is_taken_for_whole(cache):
    """SIGKILL in the middle, and the next call starts from an empty folder."""
    code = (
        "import time\nfrom engine.cache import made_once\n"
        "def make(folder):\n"
        "    folder.mkdir(); (folder / 'half').touch(); print('half', flush=True); time.sleep(60)\n"
        "made_once('thing', {'of': '1'}, make)\n"
    )
    maker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    assert maker.stdout.readline() == "half\n"
    maker.kill()
    maker.communicate()
    folder = made_once("thing", {"of": "1"}, lambda folder: (folder / "whole").mkdir(parents=True))
    assert sorted(file.name for file in folder.iterdir()) == [STAMP, "whole"]


def test_a_cache_that_cannot_be_written_is_one_sentence(cache):
    """The error names the folder and the setting."""
    cache.write_text("a file")
    with pytest.raises(LocalError, match="set PDR_CACHE_DIR"):
        made_once("thing", {}, lambda folder: folder.mkdir())


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    """PDR_CACHE_DIR, else below XDG_CACHE_HOME, else below the home folder."""
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("PDR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "pdr-graph"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / ".cache" / "pdr-graph"


SERVING = """
import sys
from pathlib import Path
from engine.server import VLLMServer
server = VLLMServer(*map(Path, sys.argv[1:])).start()
print(server.base_url, flush=True)
sys.stdin.read()
"""


def test_a_server_ends_with_the_process_that_uses_it(tmp_path):
    """The process is killed, and with it go the server and a child that ignores SIGTERM."""
    stand_in = StandIn.make(tmp_path / "stand-in")
    words = [sys.executable, "-c", SERVING, stand_in.python, stand_in.model, tmp_path / "log"]
    with subprocess.Popen(words, stdin=PIPE, stdout=PIPE, text=True) as user:
        assert user.stdout.readline().startswith("http://127.0.0.1:")
        assert len(servers(stand_in.folder)) == 3  # guard, server, and its child
        user.kill()
    eventually(lambda: not servers(stand_in.folder))


def test_a_server_is_killed_and_started_again_where_it_was(tmp_path):
    """Nothing of it is left in between, and its address stays."""
    stand_in = StandIn.make(tmp_path / "stand-in")
    with VLLMServer(stand_in.python, stand_in.model, tmp_path / "log", name="tiny") as server:
        address = server.base_url
        assert httpx2.get(f"{address}/models").json() == {"data": [{"id": "tiny"}]}
        server.kill()
        assert servers(stand_in.folder) == []
        assert server.start().base_url == address
    assert servers(stand_in.folder) == []


def test_a_server_that_does_not_start_says_why(tmp_path):
    """The error in its log is in the sentence, and no process is left."""
    stand_in = StandIn.make(tmp_path / "stand-in")
    stand_in.behave("crash")
    server = VLLMServer(stand_in.python, stand_in.model, tmp_path / "log")
    with pytest.raises(LocalError, match="ValueError: User-specified max_model_len"):
        server.start()
    with pytest.raises(ConfigError, match="is no Python that has vLLM"):
        VLLMServer(tmp_path / "python", stand_in.model, tmp_path / "log").start()


def test_metrics_are_summed_over_their_labels():
    """Two engines behind one endpoint count together."""
    text = "\n".join(
        [
            "# HELP vllm:prompt_tokens_total Number of prefill tokens processed.",
            'vllm:prompt_tokens_total{engine="0",model_name="m"} 81.0',
            'vllm:prompt_tokens_total{engine="1",model_name="m"} 19.0',
            'vllm:generation_tokens_total{engine="0",model_name="a b"} 1e+03',
            'vllm:prefix_cache_queries_total{engine="0"} 100.0',
            'vllm:prefix_cache_hits_total{engine="0"} 64.0',
        ]
    )
    counted = counters(parse(text))
    assert (counted.prompt_tokens, counted.generation_tokens) == (100, 1000)
    assert (counted.prefix_queries, counted.prefix_hits) == (100, 64)


def test_equal_prompts_share_whole_blocks_but_never_their_last_token():
    """64 tokens in blocks of 32: the second prompt shares one block, of 63 common tokens."""
    reference = PrefixReference(32)
    assert reference.shareable(range(64)) == (0, 0)
    assert reference.shareable(range(64)) == (32, 63)
    assert reference.shareable(range(65)) == (64, 64)


def test_a_prefix_is_shared_with_any_earlier_prompt():
    """What a prompt shares is its longest start among all those before it."""
    reference = PrefixReference(2)
    reference.shareable([1, 2, 3, 4, 5])
    reference.shareable([1, 2, 9, 9, 9])
    assert reference.shareable([1, 2, 9, 9, 7]) == (4, 4)
    assert reference.shareable([8, 2, 3, 4, 5]) == (0, 0)


@given(
    prompts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=20), max_size=8),
    block_size=st.integers(1, 5),
)
def test_the_reference_is_the_longest_common_prefix(prompts, block_size):
    """Both counts are those of a direct comparison with every earlier prompt."""
    reference = PrefixReference(block_size)
    for position, prompt in enumerate(prompts):
        longest = whole = 0
        for earlier in prompts[:position]:
            common = 0
            while common < min(len(prompt) - 1, len(earlier)) and prompt[common] == earlier[common]:
                common += 1
            longest = max(longest, common)
            whole = max(whole, common // block_size * block_size)
        assert reference.shareable(prompt) == (whole, longest)
