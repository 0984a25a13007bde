"""How weights reach a policy: what is sent and asked of a server, and what is said if it fails.

That real vLLM then draws by the new weights, `tests/vllm/test_push_*.py` show.
"""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from peft import LoraConfig, get_peft_model

from pdr_graph.errors import ConfigError
from pdr_graph.train.engine import base_model, forget_adapters
from pdr_graph.train.push import DiskReload, LoraPush, PushError, VLLMAdmin, merged_weights
from tests.policy.tiny_model import tiny_model
from tests.train.given_rows import SMALL

# peft asks transformers by a name that is to go.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")

NOT_FOUND = (404, '{"detail":"Not Found"}')
LEFT = ("policy-2-f4ddc1b4", "policy-14-00c0ffee")


@dataclass
class WeightServer:
    """What stands in for vLLM where only the requests matter."""

    answers: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """By path, in order; the last one stays."""
    models: list[str] = field(default_factory=list)
    """Names of what it serves."""
    asked: list[tuple[str, Any]] = field(default_factory=list)
    root: str = ""

    @property
    def server(self) -> VLLMAdmin:
        return VLLMAdmin(f"{self.root}/v1", api_key="secret")

    def answer(self, path: str) -> tuple[int, str]:
        answers = self.answers.get(path, [(200, "done")])
        return answers.pop(0) if len(answers) > 1 else answers[0]


@contextmanager
def weight_server(*models: str, **answers: list[tuple[int, str]]) -> Iterator[WeightServer]:
    """Serve while the block lasts; names of paths are given with `__` for a slash."""
    named = {name.replace("__", "/"): each for name, each in answers.items()}
    state = WeightServer(named, list(models))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served = {"data": [{"id": name} for name in state.models]}
            self.tell(200, json.dumps(served if "models" in self.path else {}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.headers["Authorization"] == "Bearer secret"
            state.asked.append((self.path, body))
            if state.models and self.path == "/v1/unload_lora_adapter":
                state.models.remove(body["lora_name"])
            self.tell(*state.answer(self.path))

        def tell(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        state.root = f"http://127.0.0.1:{served.server_port}"
        try:
            yield state
        finally:
            served.shutdown()
            thread.join()


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


def moved_adapter(**fields):
    torch.manual_seed(2)
    config = LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", **fields)
    model = get_peft_model(tiny_model(**SMALL), config)
    for name, each in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(each, std=0.3)
    return model


def test_a_model_without_an_adapter_gives_its_own_weights():
    """Under their own names; a tied head is there once."""
    model = tiny_model(**SMALL)
    found = dict(merged_weights(model))
    assert found.keys() == dict(model.named_parameters()).keys()
    assert "lm_head.weight" not in found
    assert all(torch.equal(found[name], each) for name, each in model.named_parameters())


def test_merged_weights_are_those_that_peft_merges():
    """Under the names of a model that never had an adapter."""
    found = dict(merged_weights(moved_adapter()))
    merged = dict(moved_adapter().merge_and_unload().named_parameters())
    assert found.keys() == merged.keys() == dict(tiny_model(**SMALL).named_parameters()).keys()
    for name, each in merged.items():
        torch.testing.assert_close(found[name], each.detach())
    plain = dict(tiny_model(**SMALL).named_parameters())
    assert not torch.equal(found["model.layers.0.mlp.up_proj.weight"],
                           plain["model.layers.0.mlp.up_proj.weight"])  # fmt: skip


def test_merging_leaves_the_model_as_it_was():
    """To the last bit, which merging in place and taking out again would not."""
    model = moved_adapter()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    list(merged_weights(model))
    assert all(torch.equal(before[name], each) for name, each in model.named_parameters())


def test_a_module_that_is_trained_whole_beside_adapters_is_refused():
    """Its weights are none of the base model's."""
    with pytest.raises(ConfigError, match="is trained whole beside adapters"):
        list(merged_weights(moved_adapter(modules_to_save=["norm"])))


async def test_adapters_of_a_killed_run_are_not_the_model():
    """They are told apart by their names, and unloaded; others stay."""
    with weight_server("tiny", *LEFT, "mine") as served:
        await forget_adapters(served.server)
        assert served.models == ["tiny", "mine"]
    with weight_server("tiny", *LEFT) as served:
        assert await base_model(served.server) == "tiny"


async def test_several_models_are_to_be_told_apart_by_the_settings():
    """The sentence names the setting."""
    with (
        weight_server("tiny", "mine") as served,
        pytest.raises(
            ConfigError, match=r"serves 2 models \(tiny, mine\); name the one .*served_m"
        ),
    ):
        await base_model(served.server)
