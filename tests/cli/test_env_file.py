"""A `.env` that a stranger wrote: where the user's key and runs go, and what the user allows."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pdr_graph.errors import ConfigError
from pdr_graph.serve.options import ServeOptions
from pdr_graph.servers.options import UpOptions
from pdr_graph.settings import EnvFile, Settings, load_settings, read_settings
from pdr_graph.types import ROLES

SECRET = "sk-the-users-own-key"
SOLVE = ["solve", "What is 6 x 7?", "--widths", "2", "--checkpoint", "memory", "--seed", "1"]


class Recorder:
    """A server of a stranger, on loopback: it keeps all that it receives."""

    def __init__(self) -> None:
        self.received: list[str] = []
        self.models = ["m"]
        received, models = self.received, self.models

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                received.append(f"{self.requestline}\n{self.headers}\n{body.decode()}")
                data = json.dumps(
                    {"object": "list", "data": [{"id": each} for each in models]}
                ).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = _answer  # noqa: N815  # as the base class calls it
            do_POST = _answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def stranger() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.close()


@pytest.fixture
def folder(cli, clean, monkeypatch):
    """The current folder, and a user's directory that trusts nothing yet."""
    monkeypatch.setenv("XDG_DATA_HOME", str(clean / "home"))
    return clean


def write(folder, **variables: object):
    (folder / ".env").write_text("".join(f"{name}={each}\n" for name, each in variables.items()))


def all_of(stranger: Recorder) -> str:
    return "\n".join(stranger.received)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"PDR_API_KEY": "${PDR_API_KEY}"},
        {"PDR_API_KEY": "of-the-stranger"},
        {"pdr_model": "${PDR_API_KEY}"},
    ],
)
@pytest.mark.parametrize("by_option", [False, True])
@pytest.mark.security
def test_the_key_does_not_go_to_an_address_of_the_folder(
    cli, folder, monkeypatch, stranger, more, by_option
):
    """However the file asks for it; the command goes on without the key, and says so."""
    write(folder, PDR_BASE_URL=stranger.url, PDR_RETRIES=0, **more)
    if not by_option:
        monkeypatch.setenv("PDR_API_KEY", SECRET)
    for name in ("API_KEY", "ADMIN_KEY"):
        monkeypatch.setenv(f"OPENAI_{name}", SECRET)  # the client's own variables
    outcome = cli(*SOLVE, *(["--api-key", SECRET] if by_option else []), "--quiet")
    assert stranger.received, outcome.err
    assert SECRET not in all_of(stranger)
    assert "PDR_API_KEY is not sent to its PDR_BASE_URL" in outcome.err
    assert "--env-file .env" in outcome.err
    assert "`pdr-graph trust`" in outcome.err
    assert SECRET not in outcome.err


@pytest.mark.parametrize(
    "url", ["{url}/${PDR_API_KEY}", "{url}/?key=${PDR_API_KEY}", "{url}/${PDR_API_KEY:-none}"]
)
@pytest.mark.security
def test_no_secret_is_part_of_an_address(folder, monkeypatch, stranger, url):
    """A variable of the environment in a value of the file counts for nothing."""
    monkeypatch.setenv("PDR_API_KEY", SECRET)
    write(folder, PDR_BASE_URL=url.replace("{url}", stranger.url), PDR_MODEL="${HOME}")
    settings = load_settings()
    assert (settings.base_url, settings.model) == (None, None)


@pytest.mark.parametrize(
    "command",
    [
        ["doctor"],
        ["demo"],
        ["up", "--store", "none"],
        ["serve", "--port", "0"],
        ["eval", "data.jsonl", "--out", "run", "--arm", "long_cot"],
    ],
)
@pytest.mark.security
def test_commands_that_reach_the_endpoint(cli, folder, monkeypatch, stranger, command):
    """None of them sends the key."""
    stranger.models.append("another")  # that ends them all
    (folder / "data.jsonl").write_text('{"problem": "6 x 7", "answer": "42"}\n')
    monkeypatch.setenv("PDR_API_KEY", SECRET)
    monkeypatch.setenv("PDR_REDIS_URL", "memory")
    write(folder, PDR_BASE_URL=stranger.url, PDR_RETRIES=0)
    outcome = cli(*command)
    assert stranger.received, outcome.err
    assert SECRET not in all_of(stranger)
    assert "PDR_API_KEY is not sent" in outcome.err


def test_a_file_that_holds_key_and_address_goes_on(cli, folder, mock, monkeypatch, stranger):
    """Its key goes to its address, also where another key is in the environment."""
    write(folder, PDR_BASE_URL=stranger.url, PDR_API_KEY="of-the-file", PDR_RETRIES=0)
    assert "trusted" not in cli(*SOLVE).err
    assert "Bearer of-the-file" in all_of(stranger)
    monkeypatch.setenv("PDR_API_KEY", SECRET)
    stranger.received.clear()
    cli(*SOLVE)
    assert "Bearer of-the-file" in all_of(stranger)
    assert SECRET not in all_of(stranger)


@pytest.mark.parametrize("how", ["file", "trust", "own address", "own folder's key"])
def test_what_the_user_allows(cli, folder, monkeypatch, stranger, how):
    """The key goes where the user said, once or for good."""
    words = [*SOLVE, *(["--env-file", ".env"] if how == "file" else [])]
    if how == "own folder's key":
        write(folder, PDR_API_KEY=SECRET, PDR_RETRIES=0)
        monkeypatch.setenv("PDR_BASE_URL", stranger.url)
    else:
        monkeypatch.setenv("PDR_API_KEY", SECRET)
        write(folder, PDR_BASE_URL=stranger.url, PDR_RETRIES=0)
    if how == "own address":
        words += ["--base-url", stranger.url]
    if how == "trust":
        assert cli("trust").code == 0
    outcome = cli(*words)
    assert f"Bearer {SECRET}" in all_of(stranger)
    assert "trusted" not in outcome.err


@pytest.mark.security
def test_trust_ends_with_the_file(cli, folder, monkeypatch):
    """A changed file is as good as a new one; forgotten trust is gone; others are not trusted."""
    write(folder, PDR_REDIS_URL="redis://127.0.0.1:1")
    trusted = cli("trust", "--json").json()
    assert trusted == {"file": str(folder / ".env"), "trusted": True, "sets": ["PDR_REDIS_URL"]}
    assert load_settings().redis_url == "redis://127.0.0.1:1"
    notes = list((folder / "home/pdr-graph/trusted").iterdir())
    assert [each.stat().st_mode & 0o777 for each in notes] == [0o600]
    (folder / "other").mkdir()
    (folder / "other/.env").write_text((folder / ".env").read_text())
    monkeypatch.chdir(folder / "other")
    assert load_settings().redis_url is None
    monkeypatch.chdir(folder)
    write(folder, PDR_REDIS_URL="redis://127.0.0.1:2")
    assert load_settings().redis_url is None
    assert EnvFile.read(folder / ".env").trust == "changed"
    assert cli("trust", str(folder)).code == 0
    assert load_settings().redis_url == "redis://127.0.0.1:2"
    assert cli("trust", "--forget").code == 0
    assert load_settings().redis_url is None


def test_nothing_to_trust(cli, folder):
    """A folder without the file, and a named file that is none, are told in a sentence."""
    assert "'.env'" in cli("trust").err or "/.env' is not there" in cli("trust").err
    outcome = cli(*SOLVE, "--env-file", "missing.env")
    assert outcome.code == 2
    assert "--env-file 'missing.env' is no file" in outcome.err


@pytest.mark.security
def test_a_store_of_the_folder_is_not_opened(cli, folder, data_dir, monkeypatch):
    """Not even connected to; the runs of the user's own store are shown."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        write(folder, PDR_REDIS_URL=f"redis://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("PDR_DATA_DIR", str(data_dir))
        for command in (["threads"], ["doctor"], ["inspect", "none"]):
            outcome = cli(*command)
            assert "PDR_REDIS_URL is ignored" in outcome.err
        with pytest.raises(TimeoutError):
            listener.accept()


HARMFUL = {
    Settings: {
        "redis_url": "redis://127.0.0.1:1",
        "api_key_file": "secret",
        "encryption_key_file": "secret",
        "encryption_keys": "00" * 32,
        "data_dir": "data",
        "tokenizer": "t.json",
        "prompts": "prompts",
        "judge": "judge.json",
        "judge_url": "http://127.0.0.1:1/v1",
        "judge_weights": "weights",
        "model_for": "refiner=theirs@http://127.0.0.1:1/v1",
        "price": "mine=1/2",
        **{f"api_key_{role}": "theirs" for role in ROLES},
        "log_file": "log",
        "otel": "true",
        "otel_content": "true",
        "max_bytes": "999999999",
    },
    ServeOptions: {
        "host": "0.0.0.0",  # what the stranger wants
        "key_file": "secret",
        "keyless": "true",
        "allowed_hosts": "*",
        "cors": "*",
        "log_prompts": "true",
        "keep_hours": "0.001",
    },
    UpOptions: {"vllm_python": "./python", "cache_dir": "cache"},
}


@pytest.mark.parametrize("kind", HARMFUL)
@pytest.mark.security
def test_every_setting_is_decided(folder, kind, caplog):
    """What is not harmless keeps its default, and the sentence names it."""
    fields = kind.model_fields
    assert {*HARMFUL[kind], *kind.harmless} == set(fields)
    before = read_settings(kind, {})
    prefix = kind.model_config["env_prefix"]
    names = {
        name: fields[name].validation_alias or f"{prefix}{name.upper()}" for name in HARMFUL[kind]
    }
    write(folder, **{names[name]: value for name, value in HARMFUL[kind].items()})
    assert read_settings(kind, {}) == before
    assert all(name in caplog.text for name in names.values())
    (folder / "secret").touch(0o600)
    (folder / "secret").write_text("11" * 32)
    named = {name: value for name, value in HARMFUL[kind].items() if name != "encryption_keys"}
    write(folder, **{names[name]: value for name, value in named.items()})
    assert read_settings(kind, {"_env_file": folder / ".env"}) != before


def test_harmless_settings_still_come_from_the_file(folder, caplog):
    """How much and how often is no danger."""
    write(folder, PDR_RETRIES=1, PDR_MAX_IN_FLIGHT=3, PDR_SERVE_PORT=1, PDR_UP_RUNS=7, OTHER=1)
    settings = load_settings()
    assert (settings.retries, settings.max_in_flight) == (1, 3)
    assert read_settings(ServeOptions, {}).port == 1
    assert read_settings(UpOptions, {}).runs == 7
    assert not caplog.records


@pytest.mark.security
def test_weights_of_the_folder_are_not_loaded(folder):
    """A model that is a file or folder is no name."""
    (folder / "model").mkdir()
    for model in ("model", "./other.gguf"):
        write(folder, PDR_MODEL=model)
        assert load_settings().model is None
        assert load_settings(base_url="http://127.0.0.1:1/v1").model == model


@pytest.mark.security
def test_a_key_whose_author_is_unknown_lets_no_machine_in(folder):
    """The file's key guards this machine; for others the user gives one."""
    write(folder, PDR_SERVE_KEY="known-to-the-author")
    assert read_settings(ServeOptions, {}).key is not None
    assert read_settings(ServeOptions, {"host": "0.0.0.0"}).key is None


@pytest.mark.security
def test_a_link_to_another_file_is_that_file(cli, folder):
    """Trust is in what is read, by whatever name."""
    (folder / "real.env").write_text("PDR_REDIS_URL=redis://127.0.0.1:1\n")
    (folder / ".env").symlink_to("real.env")
    assert cli("trust").code == 0
    assert load_settings().redis_url == "redis://127.0.0.1:1"
    (folder / ".env").unlink()
    write(folder, PDR_REDIS_URL="redis://127.0.0.1:1")
    assert load_settings().redis_url is None


def test_the_variables_of_up_count(cli, folder, mock):
    """`up --env-file .env` writes what its user then uses, for the user alone."""
    words = ["--base-url", mock.url, "--checkpoint", "memory", "--env-file", ".env"]
    assert cli("up", *words).code == 0
    assert (folder / ".env").stat().st_mode & 0o777 == 0o600
    assert EnvFile.read(folder / ".env").trust == "given"
    cli("trust", "--forget")
    (folder / "home/pdr-graph/trusted").rmdir()
    (folder / "home/pdr-graph/trusted").write_text("in the way")
    outcome = cli("up", *words)  # what was started must not be reported as failed
    assert outcome.code == 0
    assert "could not be trusted" in outcome.err


@pytest.mark.security
def test_direct_construction_is_guarded(folder, monkeypatch):
    """`Settings()` reads by the same rule; a file that the caller names is trusted."""
    monkeypatch.setenv("PDR_API_KEY", SECRET)
    write(folder, PDR_BASE_URL="http://127.0.0.1:1/v1")
    assert Settings().api_key.get_secret_value() == "EMPTY"
    assert Settings(_env_file=".env").api_key.get_secret_value() == SECRET
    assert Settings(_env_file=None).base_url is None


def test_malformed_files_stay_refused(folder):
    """Trusted or not."""
    (folder / ".env").write_text("what is this?\n")
    with pytest.raises(ConfigError, match="line 1 is no NAME=value"):
        Settings()
