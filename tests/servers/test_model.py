"""The embedded model: a real llama.cpp, in a process that ends with ours."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from time import monotonic

import httpx2
import pytest
import pytest_asyncio

from pdr_graph.errors import ConfigError, LocalError
from pdr_graph.judge.hidden import EndpointStates, judged_turns
from pdr_graph.llm.usage import Spent
from pdr_graph.servers import Endpoint, embedded_model
from tests.servers.processes import Holder, eventually, servers

pytestmark = [pytest.mark.local, pytest.mark.asyncio(loop_scope="module")]

Call = Callable[..., httpx2.Response]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def endpoint(model_data_dir: Path) -> AsyncIterator[Endpoint]:
    async with embedded_model(model_data_dir, slots=3, context_per_slot=256) as endpoint:
        yield endpoint


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def http(endpoint: Endpoint) -> AsyncIterator[httpx2.AsyncClient]:
    key = {"Authorization": f"Bearer {endpoint.api_key}"}
    async with httpx2.AsyncClient(timeout=60, trust_env=False, headers=key) as http:
        yield http


@pytest.mark.security
async def test_it_answers_nobody_without_its_key(
    endpoint: Endpoint, http: httpx2.AsyncClient, model_data_dir: Path
) -> None:
    """The key is its owner's alone, in a file and not on the command line."""
    root = endpoint.base_url.removesuffix("/v1")
    asked = {"chat/completions": asking(endpoint), "completions": {"prompt": "a"}}
    asked["embeddings"] = {"input": "a"}
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer EMPTY"}):
        for path, body in asked.items():
            answer = await http.post(f"{endpoint.base_url}/{path}", json=body, headers=headers)
            assert answer.status_code == 401
        assert (await http.get(f"{root}/slots", headers=headers)).status_code == 401
    file = model_data_dir / "stack" / "model.key"
    assert file.read_text() == f"{endpoint.api_key}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    said = [word for each in servers(model_data_dir) for word in each.cmdline()]
    assert said
    assert not any(endpoint.api_key in word for word in said)


def asking(endpoint: Endpoint, text: str = "Name a colour.", **options: object) -> dict:
    message = {"role": "user", "content": text}
    return {"model": endpoint.model, "messages": [message], "max_tokens": 6, **options}


async def test_it_answers_under_its_name(endpoint: Endpoint, http: httpx2.AsyncClient) -> None:
    """Counts come with the answer, those of the cached prompt too."""
    models = (await http.get(f"{endpoint.base_url}/models")).json()
    assert [model["id"] for model in models["data"]] == ["SmolLM2-135M-Instruct"]
    url = f"{endpoint.base_url}/chat/completions"
    first, second = [(await http.post(url, json=asking(endpoint))).json() for _ in range(2)]
    assert first["choices"][0]["message"]["content"]
    assert first["usage"]["completion_tokens"] <= 6
    prompt = first["usage"]["prompt_tokens"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == prompt - 1


async def test_it_counts_tokens(endpoint: Endpoint, http: httpx2.AsyncClient) -> None:
    """In llama.cpp's form, beside /v1."""
    url = endpoint.base_url.removesuffix("/v1") + "/tokenize"
    answer = await http.post(url, json={"content": "hello world"})
    assert answer.json() == {"tokens": [28120, 905]}


async def test_it_tells_the_hidden_state_of_a_draft(endpoint: Endpoint) -> None:
    """Beside chat, for a judge: of the last token, with the tokens that were read."""
    reader, spent = EndpointStates(endpoint.base_url, api_key=endpoint.api_key), Spent()
    right, wrong, again = [
        (await reader.read(judged_turns("2 + 2?", each), (None,), spent))[0]
        for each in ("4", "5", "4")
    ]
    assert len(right) == 576
    assert right == pytest.approx(again, abs=0.05)
    assert right != pytest.approx(wrong, abs=0.05)
    assert [usage.estimated for usage in spent.usage] == [False] * 3
    assert spent.usage[0].prompt == spent.usage[2].prompt > 30


async def test_a_seed_gives_one_text(endpoint: Endpoint, http: httpx2.AsyncClient) -> None:
    """Alone and beside others, so a run can be repeated."""
    url = f"{endpoint.base_url}/chat/completions"

    async def text(seed: int) -> str:
        body = asking(endpoint, seed=seed, temperature=0.8, max_tokens=16)
        answer = await http.post(url, json=body)
        return answer.json()["choices"][0]["message"]["content"]

    alone = await text(7)
    beside, other, _ = await asyncio.gather(text(7), text(8), text(9))
    assert beside == alone
    assert other != alone


async def test_a_prompt_beyond_the_context_is_refused(
    endpoint: Endpoint, http: httpx2.AsyncClient
) -> None:
    """The refusal has both numbers."""
    url = f"{endpoint.base_url}/chat/completions"
    answer = await http.post(url, json=asking(endpoint, "word " * 400))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "exceed_context_size_error"
    assert error["n_ctx"] == 256
    assert error["n_prompt_tokens"] > 400


async def test_a_dropped_stream_frees_its_slot(
    endpoint: Endpoint, http: httpx2.AsyncClient
) -> None:
    """The generation stops at the server, long before its end, and does not only go unread."""
    url, base = f"{endpoint.base_url}/chat/completions", endpoint.base_url.removesuffix("/v1")
    endless = asking(endpoint, max_tokens=200, stream=True, ignore_eos=True)
    alone = {"Connection": "close"}  # the server may be closing one that was used before
    began = monotonic()
    async with http.stream("POST", url, json=endless, headers=alone) as answer:
        await answer.aread()
    whole_s = monotonic() - began
    async with http.stream("POST", url, json=endless, headers=alone) as answer:
        async for _ in answer.aiter_lines():
            break
    await asyncio.sleep(whole_s / 3)
    slots = (await http.get(f"{base}/slots", headers=alone)).json()
    assert [slot["is_processing"] for slot in slots] == [False, False, False]


async def test_counting_does_not_wait_for_generations(
    endpoint: Endpoint, http: httpx2.AsyncClient
) -> None:
    """More calls than slots leave the server able to answer something short."""
    base = endpoint.base_url.removesuffix("/v1")
    long = asking(endpoint, max_tokens=100, ignore_eos=True, stream=True)

    async def call() -> None:
        url = f"{endpoint.base_url}/chat/completions"
        async with http.stream("POST", url, json=long) as answer:
            await answer.aread()

    calls = [asyncio.create_task(call()) for _ in range(40)]
    await asyncio.sleep(0.5)
    answer = await asyncio.wait_for(http.post(f"{base}/tokenize", json={"content": "x"}), 5)
    assert answer.status_code == 200
    assert not any(call.done() and call.exception() for call in calls)
    for task in calls:
        task.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize("killed", ["parent", "guard", "parent and guard"])
async def test_it_ends_when_its_parent_is_killed(
    model_data_dir: Path, tmp_path: Path, hold: Callable[[str, Path], Holder], killed: str
) -> None:
    """Or its guard, or both on Linux; and Ctrl-C in the terminal reaches the parent alone."""
    folder = tmp_path / "other dir"
    folder.mkdir()
    (folder / "weights").symlink_to(model_data_dir / "weights")
    holder = hold("model", folder)
    await asyncio.to_thread(holder.where)
    working = servers(folder)
    (guard,) = (each for each in working if each.ppid() == holder.process.pid)
    assert len(working) == 2
    assert {os.getsid(each.pid) for each in working} == {guard.pid}
    if "parent" in killed:
        holder.kill()
    if "guard" in killed:
        guard.kill()
    await asyncio.to_thread(eventually, lambda: not servers(folder))


async def test_it_ends_with_the_context(model_data_dir: Path) -> None:
    """One line tells of it, and says what kind of model it is."""
    said: list[str] = []
    before = servers(model_data_dir)
    async with embedded_model(
        model_data_dir, slots=1, context_per_slot=64, announce=said.append
    ) as endpoint:
        assert len(servers(model_data_dir)) == len(before) + 2  # the server and its guard
    assert servers(model_data_dir) == before
    address = endpoint.base_url.removesuffix("/v1")
    assert said == [
        f"model: SmolLM2-135M-Instruct in llama.cpp at {address}, "
        "a demonstration model that is often wrong"
    ]


async def test_a_file_that_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    """It says where the server's log is."""
    bad = tmp_path / "bad.gguf"
    bad.write_text("garbage")
    with pytest.raises(LocalError, match="the embedded model cannot be loaded: ") as caught:
        async with embedded_model(tmp_path / "data", model_file=bad):
            pass
    assert f"its log is {str(tmp_path / 'data' / 'model-server.log')!r}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"slots": 0}, "the embedded model needs at least 1 slot, not 0"),
        ({"context_per_slot": 9000}, "the embedded model reads 1 to 8192 tokens, not 9000"),
    ],
)
async def test_bounds_are_named(tmp_path: Path, options: dict[str, int], sentence: str) -> None:
    """Before anything is started."""
    with pytest.raises(ConfigError, match=sentence):
        async with embedded_model(tmp_path, **options):
            pass
