"""Models by role on the command line: options, keys, what is refused, and a run that is killed."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pdr_graph.connect import open_models
from pdr_graph.errors import ConfigError
from pdr_graph.eval.records import read_run
from pdr_graph.settings import NO_KEY, load_settings
from pdr_graph.types import ModelPrice, Price, RoleModel
from tests.cli.conftest import CALLS, wait_for
from tests.cli.conftest import SMALL as FEW
from tests.mock_endpoint import MockEndpoint

PROBLEM = "What is 6 x 7?"
SMALL = ["--preset", "pdr", *FEW]


@pytest.fixture(scope="module")
def _large() -> Iterator[MockEndpoint]:
    with MockEndpoint(model="large") as endpoint:
        yield endpoint


@pytest.fixture
def large(_large: MockEndpoint) -> Iterator[MockEndpoint]:
    """A second endpoint, which serves the model `large`."""
    _large.reset()
    yield _large
    _large.reset()


def tokens(mock: MockEndpoint) -> dict[str, int]:
    stats = mock.stats()
    return {name: stats[name] for name in ("calls", "prompt_tokens", "completion_tokens")}


def told(models: dict, name: str) -> dict[str, int]:
    return {key: models[name][key] for key in ("calls", "prompt_tokens", "completion_tokens")}


def test_the_ledger_by_model_is_what_each_endpoint_served(stored, mock, large):
    """One role at another endpoint, with prices, from one command."""
    done = stored(
        *("solve", PROBLEM, *SMALL, "--model-for", f"refiner=large@{large.url}"),
        *("--price", "mock-model=1/2", "--price", "large=10/20", "--json"),
    )
    assert done.code == 0, done.err
    ledger = done.json()["ledger"]
    assert told(ledger["models"], "mock-model") == tokens(mock)
    assert told(ledger["models"], "large") == tokens(large)
    assert large.stats()["calls"] == 1
    small, big = tokens(mock), tokens(large)
    cost = small["prompt_tokens"] + 2 * small["completion_tokens"]
    cost += 10 * big["prompt_tokens"] + 20 * big["completion_tokens"]
    assert ledger["cost"] == pytest.approx(cost / 1e6)


def test_the_screen_shows_each_model(stored, mock, large):
    """A line for each, with its cost; `inspect` and the page name them."""
    words = ("--model-for", f"judge=large@{large.url}", "--price", "large=10/20")
    thread = "shown-by-role"
    done = stored("solve", PROBLEM, *SMALL, "--verifier", "judge", *words, "--thread", thread)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert any(line.startswith("mock-model · ") and "8 calls" in line for line in lines)
    assert any(line.startswith("large · ") and "cost 0.00" in line for line in lines)
    assert "mock-model (judge: large)" in stored("inspect", thread).out
    stored("inspect", thread, "--html", "run.html")
    assert "mock-model (judge: large)" in Path("run.html").read_text("utf-8")


def test_the_environment_names_models_too(stored, mock, large, monkeypatch):
    """Several roles in one variable; an option takes its place."""
    monkeypatch.setenv("PDR_MODEL_FOR", f"drafter=large@{large.url}, refiner=large@{large.url}")
    monkeypatch.setenv("PDR_PRICE", "large=1/1")
    done = stored("solve", PROBLEM, *SMALL, "--json")
    assert done.code == 0, done.err
    assert told(done.json()["ledger"]["models"], "large") == tokens(large)
    assert large.stats()["calls"] == 6
    assert large.stats()["models_calls"] == 1  # opened once for both roles


def test_a_killed_run_of_two_models_is_resumed(stored, spawn, mock, large):
    """SIGKILL in the second round; the models are named again, and no call is made twice."""
    words = ("--model-for", f"contested=large@{large.url}")
    large.configure(status=[{"status": "hang"}])
    process = spawn("solve", PROBLEM, *SMALL, *words, "--thread", "killed-by-role")
    wait_for(large, in_flight=2)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = mock.stats()["calls"]
    large.reset()
    refused = stored("resume", "killed-by-role")
    assert refused.code == 2
    assert "was started with another model of contested ('large', now 'mock-model')" in refused.err
    done = stored("resume", "killed-by-role", *words, "--json")
    assert done.code == 0, done.err
    assert before == 4
    assert tokens(mock)["calls"] + tokens(large)["calls"] == CALLS
    models = done.json()["ledger"]["models"]
    assert told(models, "mock-model") == tokens(mock)
    assert told(models, "large") == tokens(large)


def test_the_way_on_names_the_models(stored, spawn, mock, large):
    """The command that a stopped run prints is whole, but for passwords."""
    large.configure(delay_s=30)
    with_password = large.url.replace("://", "://user:hidden-word@")
    process = spawn(
        *("solve", PROBLEM, *SMALL, "--thread", "way-on"),
        *("--model-for", f"refiner=large@{with_password}"),
    )
    wait_for(large, in_flight=1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "hidden-word" not in err
    assert "--model-for refiner=large@http://" in err.replace("'", "")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model-for", "writer=x"], "there is no role 'writer'; known: drafter, contested, d"),
        (["--model-for", "refiner"], "write it as ROLE=NAME[@URL], such as refiner=large@http"),
        (["--model-for", "refiner="], "write it as ROLE=NAME[@URL]"),
        (["--model-for", "refiner=x@localhost:8000"], "begins with http:// or https://"),
        (["--model-for", "refiner=http://h/v1"], "an @ separates NAME and URL"),
        (["--model-for", "judge=a", "--model-for", "judge=b"], "role 'judge' is given twice"),
        (["--model-for", "judge=nobody"], "model of role judge: model 'nobody' is not served at"),
        (
            ["--model-for", "judge=x@http://127.0.0.1:1/v1"],
            "model of role judge: no model endpoint answers at http://127.0.0.1:1/v1 (connection "
            "refused); start the server or set --model-for / PDR_MODEL_FOR",
        ),
        (["--price", "x=1"], "write it as NAME=IN/OUT"),
        (["--price", "x=-1/2"], "write it as NAME=IN/OUT"),
        (["--price", "gpt=1/2"], "--price names 'gpt', and no role is asked of that model; asked"),
    ],
)
def test_bad_input_gets_one_sentence(stored, mock, words, sentence):
    """It names the role, the value and the remedy, before any call."""
    done = stored("solve", PROBLEM, *SMALL, *words)
    assert done.code in {1, 2}
    (line,) = [each for each in done.err.splitlines() if each.startswith("error: ")]
    assert sentence in line
    assert mock.stats()["calls"] == 0


# ------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("base_url", "url", "own", "sent"),
    [
        ("http://here:1/v1", None, None, "mine"),
        ("http://here:1/v1", "http://here:2/v1", None, "mine"),
        ("http://here:1/v1", "http://there:1/v1", None, NO_KEY),
        ("https://here/v1", "http://here/v1", None, NO_KEY),
        ("http://here:1/v1", "http://there:1/v1", "other", "other"),
        ("http://here:1/v1", "http://here:1/v1", "other", "other"),
        (None, "http://there:1/v1", None, NO_KEY),
    ],
)
def test_a_key_goes_to_the_host_that_it_was_given_for(clean, base_url, url, own, sent):
    """A role at another host has a key of its own, or none."""
    given = {"api_key_refiner": own} if own else {}
    settings = load_settings(base_url=base_url, api_key="mine", **given)
    assert settings.key_for(RoleModel("refiner", "x", url)).get_secret_value() == sent


async def test_a_withheld_key_is_announced(clean, mock, large, monkeypatch):
    """The user learns why the other host may refuse, and what its key is called."""
    large.configure(api_key="theirs")
    elsewhere = large.url.replace("127.0.0.1", "localhost")
    words = {"base_url": mock.url, "api_key": "mine", "model_for": f"judge=large@{elsewhere}"}
    said: list[str] = []
    with pytest.raises(ConnectionError, match=r"role judge: .*refuses the API key.*_API_KEY_JUDGE"):
        async with open_models(load_settings(**words), announce=said.append):
            pass
    assert any("PDR_API_KEY is not sent to http://localhost" in line for line in said)
    monkeypatch.setenv("PDR_API_KEY_JUDGE", "theirs")
    async with open_models(load_settings(**words)) as models:
        assert models.summary == "mock-model (judge: large)"


def test_a_folder_cannot_choose_models(cli, mock, large):
    """A `.env` that nobody trusts names no endpoints of roles, as it names no store."""
    lines = f"PDR_MODEL_FOR=refiner=large@{large.url}\nPDR_API_KEY_REFINER=x\n"
    Path(".env").write_text(lines, "utf-8")
    settings = load_settings(base_url=mock.url)
    assert settings.model_for == ()
    assert settings.api_key_refiner is None
    assert load_settings(_env_file=".env").model_for == (RoleModel("refiner", "large", large.url),)


async def test_the_model_of_the_settings_is_not_opened_where_no_role_needs_it(clean, large):
    """The embedded model, for one, is then not started."""
    roles = ("drafter", "distiller", "refiner", "verifier")
    named = [f"{role}=large@{large.url}" for role in roles]
    async with open_models(load_settings(model_for=named, base_url="http://127.0.0.1:1/v1")) as all:
        assert [each.name for each in all.clients] == ["large"]
        assert all.names == {}
    assert large.stats()["models_calls"] == 1


async def test_a_model_that_no_endpoint_serves_is_a_file(clean):
    """Without any endpoint a name alone says nothing."""
    roles = ("drafter", "distiller", "refiner", "verifier")
    settings = load_settings(model_for=[f"{role}=x" for role in roles])
    sentence = "model of role drafter: no endpoint is named that serves model 'x'; set --model-for"
    with pytest.raises(ConfigError, match=sentence):
        async with open_models(settings):
            pass


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("judge=org/name", RoleModel("judge", "org/name", None)),
        ("judge=claude@20250219", RoleModel("judge", "claude@20250219", None)),
        ("judge=a@1@https://h/v1", RoleModel("judge", "a@1", "https://h/v1")),
        ("judge=@http://h/v1", RoleModel("judge", None, "http://h/v1")),
        ("refiner=~/q.gguf", RoleModel("refiner", "~/q.gguf", None)),
    ],
)
def test_a_role_is_read(text, parsed):
    """Names have an @ too; an URL begins at its scheme."""
    assert RoleModel.parse(text) == parsed


def test_a_price_is_read():
    """Names have an equals sign too."""
    assert ModelPrice.parse("a=b=0.5/1.5") == ModelPrice("a=b", Price(0.5, 1.5))


# ------------------------------------------------------------------------------------- eval


def test_an_evaluation_records_models_and_costs(stored, quiz_file, mock, large, tmp_path):
    """Each sample's ledger is by model; the same command goes on, another one is refused."""
    out = str(tmp_path / "runs" / "roles")
    arms = ("--arm", "narrow=pdr@widths=2", "--arm", "majority@widths=2")
    arms += ("--arm", "plain=pdr@widths=2;models=refiner=mock-model")
    short = ("--max-tokens", "256", "--kappa", "256", "--solution-tokens", "128")
    words = ("eval", str(quiz_file), *arms, *short, "--out", out)
    by_role = ("--model-for", f"refiner=large@{large.url}", "--price", "large=10/20")
    done = stored(*words, *by_role)
    assert done.code == 0, done.err
    samples = read_run(Path(out)).samples
    ledgers = [sample["ledger"] for sample in samples]
    for name, endpoint in (("mock-model", mock), ("large", large)):
        found = [each["models"][name] for each in ledgers if name in each.get("models", {})]
        for key, value in tokens(endpoint).items():
            assert sum(each[key] for each in found) == value
    header = read_run(Path(out)).header
    calls = {sample["arm"]: sample["ledger"]["models"].keys() for sample in samples}
    assert calls == {
        "narrow": {"mock-model", "large"},
        "majority@widths=2": {"mock-model"},
        "plain": {"mock-model"},
    }
    assert header["model"] == "mock-model"
    assert header["models"]["refiner"] == "large"
    assert stored(*words, *by_role).code == 0
    refused = stored(*words)
    assert refused.code == 2
    assert "another model of refiner ('large', now 'mock-model')" in refused.err


@pytest.fixture
def quiz_file(tmp_path):
    """Two problems."""
    file = tmp_path / "quiz.jsonl"
    rows = [{"problem": f"What is {n} + {n}?", "answer": str(2 * n)} for n in (2, 3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file
