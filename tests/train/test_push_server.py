"""What is asked of a server for each push, and what is said where it does not do it.

That real vLLM then draws by the new weights, `tests/vllm/test_push_*.py` show.
"""

import socket

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from peft import LoraConfig, get_peft_model

from pdr_graph.errors import ConfigError
from pdr_graph.train.push import DiskReload, LoraPush, PushError, VLLMAdmin
from tests.policy.tiny_model import tiny_model
from tests.train.given_rows import SMALL
from tests.train.weight_server import weight_server

# peft asks transformers by a name that is to go.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")

NOT_FOUND = (404, '{"detail":"Not Found"}')


def adapted():
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    return get_peft_model(tiny_model(**SMALL), config)


def untied():
    return tiny_model(tie_word_embeddings=False, **SMALL)


def test_each_version_of_an_adapter_has_a_name_of_its_own(tmp_path):
    """Also one that is pushed a second time; the one before is unloaded, and its folder is gone."""
    used = []
    with weight_server() as served:
        push = LoraPush(served.server, tmp_path, used.append)
        model = adapted()
        for version in (0, 4, 4):
            push.push(model, version)
            assert (tmp_path / used[-1] / "adapter_model.safetensors").exists()
    assert len(set(used)) == 3
    assert [name.rsplit("-", 1)[0] for name in used] == ["policy-0", "policy-4", "policy-4"]
    loads = [body for path, body in served.asked if path == "/v1/load_lora_adapter"]
    assert loads == [{"lora_name": n, "lora_path": str(tmp_path / n)} for n in used]
    unloads = [body for path, body in served.asked if path == "/v1/unload_lora_adapter"]
    assert unloads == [{"lora_name": name} for name in used[:2]]
    assert [path.name for path in tmp_path.iterdir()] == [used[-1]]


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
    """Adapters from the server as well, if it still has them; weights from the disk."""
    (tmp_path / "policy-6-0123abcd").mkdir()
    (tmp_path / "weights-6").mkdir()
    gone = (404, '{"error": {"message": "The lora adapter cannot be found."}}')
    with weight_server(__v1__unload_lora_adapter=[gone]) as served:
        push = LoraPush(served.server, tmp_path, print)
        push.push(adapted(), 4)
        DiskReload(served.server, tmp_path).push(untied(), 4)
        with pytest.raises(PushError, match=r"cannot be unloaded: .*HTTP 404"):
            push.push(adapted(), 5)
    unloads = [body for path, body in served.asked if path == "/v1/unload_lora_adapter"]
    assert unloads[0] == {"lora_name": "policy-6-0123abcd"}
    assert {path.name[:8] for path in tmp_path.iterdir()} == {"policy-4", "policy-5"}


def test_calls_keep_the_old_adapter_where_the_new_one_is_refused(tmp_path):
    """The sentence has what the server said."""
    used = []
    refused = (400, '{"error": {"message": "LoRA rank 2 is greater than max_lora_rank 1"}}')
    with weight_server(__v1__load_lora_adapter=[(200, "ok"), refused]) as served:
        push = LoraPush(served.server, tmp_path, used.append)
        push.push(adapted(), 0)
        with pytest.raises(PushError, match=r"HTTP 400: .*greater than max_lora_rank 1"):
            push.push(adapted(), 1)
    assert len(used) == 1
    assert used[0] in push.cause


def test_a_model_without_an_adapter_has_none_to_send(tmp_path):
    """Before anything is asked of the server."""
    with weight_server() as served, pytest.raises(ConfigError, match="ForCausalLM has none"):
        LoraPush(served.server, tmp_path, print).push(tiny_model(**SMALL), 0)
    assert served.asked == []


def test_a_reload_reads_a_folder_and_empties_the_prefix_cache(tmp_path):
    """Tried again while a call holds a part of it; the folder is gone afterwards."""
    busy, free = (200, '{"success": false}'), (200, '{"success": true}')
    with weight_server(__reset_prefix_cache=[busy, busy, free]) as served:
        DiskReload(served.server, tmp_path).push(untied(), 3)
    path = str(tmp_path / "weights-3")
    reload = {"method": "reload_weights", "kwargs": {"weights_path": path}}
    assert served.asked == [("/collective_rpc", reload), *[("/reset_prefix_cache", {})] * 3]
    assert list(tmp_path.iterdir()) == []


def test_a_reload_is_refused_where_the_head_is_tied(tmp_path):
    """And where there is an adapter, which a reload would leave out."""
    with weight_server() as served:
        push = DiskReload(served.server, tmp_path)
        with pytest.raises(ConfigError, match="tied to the embedding"):
            push.push(tiny_model(**SMALL), 0)
        with pytest.raises(ConfigError, match="adapters go by push 'lora'"):
            push.push(adapted(), 0)
    assert served.asked == []


def test_a_server_that_does_not_know_a_path_is_told_how_to_be_started(tmp_path):
    """Both are off unless asked for."""
    with weight_server(__v1__load_lora_adapter=[NOT_FOUND], __collective_rpc=[NOT_FOUND]) as served:
        with pytest.raises(PushError, match=r"no /v1/load_lora_adapter; start it .*--enable-lora"):
            LoraPush(served.server, tmp_path, print).push(adapted(), 0)
        with pytest.raises(PushError, match="no /collective_rpc; start it with VLLM_SERVER_DEV"):
            DiskReload(served.server, tmp_path).push(untied(), 0)


def test_a_server_that_is_not_there_is_a_sentence(tmp_path):
    """With its address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        root = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(PushError, match=f"the server at {root} does not take weights"):
            LoraPush(VLLMAdmin(f"{root}/v1"), tmp_path, print).push(adapted(), 0)
