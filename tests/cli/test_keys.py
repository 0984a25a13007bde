"""Secrets by file or environment: keys of stored runs, of the endpoint and of the server."""

import asyncio
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from pdr_checkpoints import RedisSaver, StoreConfigError, open_checkpointer
from pdr_checkpoints import keys as names

from pdr_graph.cli.store import encryption_keys, open_saver, with_keys
from pdr_graph.errors import ConfigError
from pdr_graph.serve.options import ServeOptions
from pdr_graph.servers import embedded_valkey
from pdr_graph.settings import load_settings, read_settings
from tests.cli.conftest import SMALL, Outcome
from tests.cli.test_env_file import Recorder, all_of, folder, stranger, write  # noqa: F401

OLD, NEW = b"o" * 32, b"n" * 32
PROBLEM = "What is 6 x 7, says nobody?"


def key_file(path: Path, *keys: bytes) -> str:
    path.unlink(missing_ok=True)
    path.touch(0o600)
    path.write_text("\n".join(key.hex() for key in keys))
    return str(path)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[tuple[Path, str]]:
    """A store of this module's own: its commands treat the whole of it."""
    own = tmp_path_factory.mktemp("own")
    loop = asyncio.new_event_loop()
    valkey = embedded_valkey(own)
    url = loop.run_until_complete(valkey.__aenter__())
    yield own, url
    loop.run_until_complete(valkey.__aexit__(None, None, None))
    loop.close()


class OwnStore:
    """What is in it, past the command line."""

    def __init__(self, url: str) -> None:
        self.url = url

    def do(self, work: Callable[[RedisSaver], Any], **options: Any) -> Any:
        async def go() -> Any:
            async with open_checkpointer(self.url, encryption_keys=(), **options) as saver:
                return await work(saver)

        return asyncio.run(go())

    def call(self, *command: Any) -> Any:
        return self.do(lambda saver: saver._store.call(*command))

    def forget(self, pattern: str) -> None:
        if found := self.call("KEYS", pattern):
            self.call("DEL", *found)

    def blobs(self, thread: str) -> dict[bytes, bytes]:
        found = self.call("HGETALL", f"checkpoint:{{.{thread}}}:data")
        return {name: blob for name, blob in found.items() if name[:1] in names.WRAPPED}

    def seals(self) -> dict[str, set[str]]:
        async def ask(saver: RedisSaver) -> dict[str, set[str]]:
            threads = [name async for name in saver.stored_threads()]
            return {name: set((await saver.sealed_by(name)).counts) for name in threads}

        return self.do(ask)


@pytest.fixture
def own(cli, server, monkeypatch, mock) -> Iterator[OwnStore]:
    monkeypatch.setenv("PDR_DATA_DIR", str(server[0]))
    monkeypatch.setenv("PDR_BASE_URL", mock.url)
    store = OwnStore(server[1])
    yield store
    store.forget("checkpoint:*")


def lines(outcome: Outcome) -> str:
    assert "Traceback" not in outcome.err
    return " ".join(outcome.err.split())


# Secrets in files


@pytest.mark.security
def test_a_key_from_a_file_goes_to_no_stranger(cli, folder, stranger, monkeypatch):  # noqa: F811
    """A `.env` that names an endpoint gets no key, wherever the user keeps it."""
    secret = folder / "secret"
    secret.touch(0o600)
    secret.write_text("sk-the-users-own-key\n")
    write(folder, PDR_BASE_URL=stranger.url, PDR_RETRIES=0)
    words = ["solve", "x", "--widths", "1", "--checkpoint", "memory", "--quiet"]
    monkeypatch.setenv("PDR_API_KEY_FILE", str(secret))
    assert "PDR_API_KEY is not sent to its PDR_BASE_URL" in lines(cli(*words))
    monkeypatch.delenv("PDR_API_KEY_FILE")
    cli(*words, "--api-key-file", str(secret))
    assert stranger.received
    assert "sk-the-users" not in all_of(stranger)
    cli(*words, "--base-url", stranger.url, "--api-key-file", str(secret))
    assert "Bearer sk-the-users-own-key" in all_of(stranger)


@pytest.mark.security
@pytest.mark.parametrize(
    "variable", ["PDR_API_KEY_FILE", "PDR_ENCRYPTION_KEY_FILE", "PDR_ENCRYPTION_KEYS"]
)
def test_a_folder_names_no_secret(folder, variable, caplog):  # noqa: F811
    """Neither a file to read as a secret, nor a key whose author opens what is stored."""
    value = OLD.hex() if variable.endswith("KEYS") else key_file(folder / "secret", OLD)
    before = load_settings()
    write(folder, **{variable: value})
    assert load_settings() == before
    assert f"{variable} is ignored" in caplog.text
    assert load_settings(_env_file=folder / ".env") != before


def test_the_nearest_source_decides_on_a_secret(folder, monkeypatch):  # noqa: F811
    """An option before the environment before the file, whichever way each names the secret."""
    first, second = (key_file(folder / name, key) for name, key in (("a", OLD), ("b", NEW)))
    monkeypatch.setenv("PDR_API_KEY", "of-the-environment")
    assert load_settings().api_key.get_secret_value() == "of-the-environment"
    assert load_settings(api_key_file=first).api_key.get_secret_value() == OLD.hex()
    monkeypatch.delenv("PDR_API_KEY")
    monkeypatch.setenv("PDR_API_KEY_FILE", second)
    assert load_settings().api_key.get_secret_value() == NEW.hex()
    assert load_settings(api_key="typed").api_key.get_secret_value() == "typed"
    monkeypatch.setenv("PDR_ENCRYPTION_KEYS", OLD.hex())
    assert encryption_keys(load_settings()) == (OLD,)
    assert encryption_keys(load_settings(encryption_key_file=second)) == (NEW,)
    assert encryption_keys(load_settings(encryption_key_file=None)) == ()
    write(folder, PDR_ENCRYPTION_KEY_FILE=second)
    assert encryption_keys(load_settings(_env_file=folder / ".env")) == (OLD,)
    monkeypatch.setenv("PDR_ENCRYPTION_KEY_FILE", second)
    both = "PDR_ENCRYPTION_KEYS and PDR_ENCRYPTION_KEY_FILE name one secret"
    with pytest.raises(ConfigError, match=both):
        load_settings()


@pytest.mark.security
@pytest.mark.parametrize("field", ["api_key_file", "key_file"])
def test_a_secret_file_is_for_its_owner_alone(clean, field):
    """One that others can open, is empty, no text or no file is refused in a sentence."""

    def load(path: Path) -> object:
        if field == "key_file":
            return read_settings(ServeOptions, {field: path}).key
        return load_settings(**{field: path}).api_key

    file = clean / "secret"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(file)
    for mode in (0o644, 0o640, 0o602):
        file.write_text("secret-of-mine")
        file.chmod(mode)
        with pytest.raises(ConfigError, match=f"has mode {mode:04o}.*chmod 600") as refused:
            load(file)
        assert "of-mine" not in str(refused.value)
    file.chmod(0o600)
    assert load(file).get_secret_value() == "secret-of-mine"
    wrong = {b" \n": "is empty", b"\xff": "is not UTF-8"}
    if field == "api_key_file":  # `serve` takes several keys
        wrong[b"a\nb"] = "holds"
    for content, sentence in wrong.items():
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=sentence):
            load(file)


@pytest.mark.parametrize("command", ["solve", "serve", "eval"])
def test_the_help_warns_of_secrets_that_are_typed(cli, monkeypatch, command):
    """And names the file beside each; no option takes an encryption key itself."""
    monkeypatch.setenv("COLUMNS", "200")
    shown = " ".join(cli(command, "--help").out.replace("│", " ").split())
    assert "--api-key-file" in shown
    assert "--encryption-key-file" in shown
    assert "--encryption-keys" not in shown
    assert ("--key-file" in shown) is (command == "serve")
    assert shown.count("Other users of this machine can see what you type") == (
        2 if command == "serve" else 1
    )


# Runs in an encrypted store


@pytest.mark.redis
@pytest.mark.security
def test_no_text_of_a_run_is_stored(cli, own, clean):
    """Not by `solve`; it is read with the key alone, and the refusal says how to give it."""
    file = key_file(clean / "keys", OLD)
    cli("solve", PROBLEM, *SMALL, "--thread", "t", "--encryption-key-file", file)
    assert own.seals().keys() == {"t"}
    assert "plain" not in own.seals()["t"]
    stored = b"".join(b"".join(pair) for pair in own.blobs("t").items())
    assert b"says nobody" not in stored
    for words in (["inspect", "t"], ["resume", "t"]):
        outcome = cli(*words)
        assert outcome.code == 1
        assert "--encryption-key-file / PDR_ENCRYPTION_KEY_FILE" in lines(outcome)
        other = cli(*words, "--encryption-key-file", key_file(clean / "other", NEW))
        assert "which is not in encryption_keys" in lines(other)
    shown = cli("inspect", "t", "--encryption-key-file", file)
    assert (shown.code, PROBLEM in " ".join(shown.out.split())) == (0, True)
    (listed,) = cli("threads", "--json", "--encryption-key-file", file).json()
    assert listed["state"] == "finished"


@pytest.mark.redis
@pytest.mark.security
@pytest.mark.parametrize("kind", [b"c", b"v", b"p"])
def test_a_planted_plain_value_is_refused(cli, own, clean, kind):
    """By every command that reads; the sentence names thread, field and remedy."""
    file = key_file(clean / "keys", OLD)
    words = ["--encryption-key-file", file]
    cli("solve", PROBLEM * 60, *SMALL, "--thread", "t", *words)
    cli("solve", PROBLEM, *SMALL, "--thread", "plain")
    blobs, planted = own.blobs("t"), {}

    async def forge(saver: RedisSaver) -> None:
        envelope = saver._session.envelope.of("t")
        async with open_checkpointer(own.url, encryption_keys=[OLD]) as keyed:
            opened = keyed._session.envelope.of("t")
            for name, blob in blobs.items():
                if name[:1] == kind:
                    planted[name] = envelope.wrap(opened.unwrap(blob, name), name)
        for name, blob in planted.items():
            await saver._store.call("HSET", saver._store.thread("t").data, name, blob)

    own.do(forge)
    assert planted
    for command in (["inspect", "t"], ["resume", "t"], ["inspect", "plain"]):
        outcome = cli(*command, *words)
        assert outcome.code == 1
        assert f"of thread '{command[1]}' cannot be read: it is not encrypted" in lines(outcome)
        assert "pdr-graph reseal --read-older" in lines(outcome)
    outcome = cli("reseal", *words)
    assert outcome.code == 1
    assert "t is left: " in lines(outcome)
    assert "plain is left: " in lines(outcome)


@pytest.mark.redis
def test_a_server_keeps_its_runs_encrypted(cli, own, clean, mock):
    """By files alone: nothing secret is on its command line."""
    words = ["--port", "0", "--encryption-key-file", key_file(clean / "keys", OLD)]
    (clean / "client").touch(0o600)
    (clean / "client").write_text("of-the-clients\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "pdr_graph.cli", "serve", *words, "--key-file", "client"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        body = {"model": "pdr?widths=2", "messages": [{"role": "user", "content": PROBLEM}]}
        with (
            openai.OpenAI(base_url=address, api_key="wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.chat.completions.create(**body)
        with openai.OpenAI(base_url=address, api_key="of-the-clients", max_retries=0) as client:
            client.chat.completions.create(**body, metadata={"thread_id": "served"})
            answer = client.responses.create(model="pdr?widths=2", input=PROBLEM)
            assert client.responses.retrieve(answer.id).output_text == answer.output_text
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert len(own.seals()) == 2
    assert all("plain" not in seals for seals in own.seals().values())


@pytest.mark.redis
def test_a_worker_elsewhere_needs_no_file(own, clean):
    """What is sent to it holds the keys, and shows them in no message."""
    file = key_file(clean / "keys", NEW, OLD)
    settings = with_keys(load_settings(encryption_key_file=file))
    Path(file).unlink()
    sent = pickle.loads(pickle.dumps(settings))
    assert OLD.hex() not in repr(sent)

    async def opened() -> Any:
        async with open_saver(sent, lambda line: None) as saver:
            assert isinstance(saver, RedisSaver)
            return saver.options.encryption_keys

    assert asyncio.run(opened()) == (NEW, OLD)


@pytest.mark.parametrize("command", ["threads", "reseal", "inspect", "solve", "doctor"])
def test_a_key_file_that_cannot_be_used_is_one_sentence(own, cli, clean, command):
    """Of every command, before anything is done."""
    file = clean / "keys"
    file.write_text(OLD.hex())
    file.chmod(0o644)
    words = {"solve": ["x"], "inspect": ["t"]}.get(command, [])
    outcome = cli(command, *words, "--encryption-key-file", str(file))
    said = outcome.out + outcome.err
    assert outcome.code == (1 if command == "doctor" else 2)
    assert "has mode 0644" in " ".join(said.split())
    assert "Traceback" not in said


# Rotation


@pytest.mark.redis
def test_a_store_goes_from_plain_to_a_key_to_another_and_back(cli, own, clean):
    """Each step by one command, which says what is left; its repetition changes nothing."""
    for thread in ("a", "b"):
        cli("solve", PROBLEM, *SMALL, "--thread", thread)
    shown = cli("inspect", "a", "--json").json()
    file = key_file(clean / "keys", OLD)
    refused = cli("reseal", "--encryption-key-file", file, "--json")
    assert refused.code == 1
    assert {each["thread"] for each in refused.json()["left"]} == {"a", "b"}
    assert "keep the other keys, and run the same command again" in lines(refused)
    names_seen = []
    for keys, flags in (([OLD], ["--read-older"]), ([NEW, OLD], []), ([NEW, OLD], ["--plain"])):
        words = ["--encryption-key-file", key_file(clean / "keys", *keys), *flags]
        done = cli("reseal", *words, "--json")
        assert (done.code, done.json()["left"], done.json()["threads"]) == (0, [], 2)
        assert done.json()["values"] > 10
        seal = done.json()["sealed_by"]
        names_seen.append(seal)
        assert own.seals() == {"a": {seal}, "b": {seal}}
        again = cli("reseal", *words)
        assert "; changed: 0" in lines(again)
        assert "nothing is left that is sealed otherwise" in lines(again)
        alone = ["--encryption-key-file", key_file(clean / "one", keys[0])]
        reading = [] if flags == ["--plain"] else alone
        assert cli("inspect", "a", "--json", *reading).json() == shown
    assert names_seen[2] == "plain"
    assert len(set(names_seen)) == 3


@pytest.mark.redis
def test_some_runs_are_sealed_anew_by_name(cli, own, clean):
    """The others stay; a name that is not there is refused first."""
    for thread in ("a", "b"):
        cli("solve", PROBLEM, *SMALL, "--thread", thread)
    words = ["--read-older", "--encryption-key-file", key_file(clean / "keys", OLD)]
    assert cli("reseal", "a", "absent", *words).code == 1
    assert own.seals() == {"a": {"plain"}, "b": {"plain"}}
    assert cli("reseal", "a", *words).code == 0
    assert own.seals()["b"] == {"plain"}
    assert "plain" not in own.seals()["a"]


def test_reseal_needs_a_store_and_a_key(cli, own, clean):
    """Both are said with the option that names them."""
    assert "name a store by --checkpoint" in lines(cli("reseal", "--checkpoint", "memory"))
    assert "there is no encryption key; name a file" in lines(cli("reseal", "--plain"))


@pytest.mark.redis
def test_a_killed_rotation_goes_on(cli, own, clean):
    """SIGKILL in the middle: every run can be read, and the same command ends the work."""
    old = ["--encryption-key-file", key_file(clean / "old", OLD)]
    cli("solve", PROBLEM, *SMALL, "--thread", "a", *old)

    async def copies(saver: RedisSaver) -> None:
        async with open_checkpointer(own.url, encryption_keys=[OLD]) as keyed:
            await asyncio.gather(*(keyed.acopy_thread("a", f"c{each}") for each in range(20)))

    own.do(copies)
    both = ["--encryption-key-file", key_file(clean / "keys", NEW, OLD)]
    before = own.seals()["a"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *both], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    changed = [seals != before for seals in own.seals().values()]
    assert any(changed)
    assert not all(changed)
    found = cli("threads", "--limit", "50", "--json", *both).json()
    assert [run["state"] for run in found] == ["finished"] * 21
    own.forget("*:lease")  # as if it had run out
    assert cli("reseal", *both).code == 0
    assert len(set(map(frozenset, own.seals().values()))) == 1
    assert before not in own.seals().values()


KILLED = """
import os, signal, sys
from pdr_graph.cli import run
from pdr_checkpoints import rotation

carry_out, started = rotation._Resealing.carry_out, []

async def mortal(self):
    started.append(self)
    if len(started) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return await carry_out(self)

rotation._Resealing.carry_out = mortal
run(["reseal", *sys.argv[1:]])
"""


@pytest.mark.redis
def test_a_stop_says_how_to_go_on(own, clean, mock):
    """Ctrl-C in the middle: one line, and no traceback."""
    ended = subprocess.run(
        [sys.executable, "-c", STOPPED], capture_output=True, text=True, cwd=clean, timeout=60
    )
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("stopped; the same command goes on, and")


STOPPED = f"""
import asyncio, os, signal, sys
from pdr_graph.cli import run, store

async def interrupted(self):
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(60)

store.Reseal.carry_out = interrupted
os.environ["PDR_ENCRYPTION_KEYS"] = "{OLD.hex()}"
sys.exit(run(["reseal"]))
"""


@pytest.mark.redis
@pytest.mark.security
def test_a_plain_file_is_taken_on_request_alone(cli, own, clean):
    """By a store with keys; then it is sealed, and nothing of a refused file is kept."""
    cli("solve", PROBLEM, *SMALL, "--thread", "a")
    cli("threads", "a", "--export", "a.run")
    cli("threads", "a", "--delete")
    words = ["--encryption-key-file", key_file(clean / "keys", OLD)]
    refused = cli("threads", "--import", "a.run", *words)
    assert refused.code == 1
    assert "threads --import FILE --read-older" in lines(refused)
    assert own.seals() == {}
    assert cli("threads", "--import", "a.run", "--read-older", *words).code == 0
    assert cli("inspect", "a", *words).code == 0
    assert "plain" not in own.seals()["a"]
    assert "add --import FILE" in lines(cli("threads", "--read-older", *words))


# The doctor


@pytest.mark.redis
def test_the_doctor_tells_how_a_store_is_encrypted(cli, own, clean):
    """Empty, plain, encrypted by a given key, an older, an unknown one, mixed; each its remedy."""

    def encryption(*keys: bytes) -> dict[str, str]:
        words = ["--encryption-key-file", key_file(clean / "keys", *keys)] if keys else []
        checks = json.loads(cli("doctor", "--json", *words).out)["checks"]
        return next(each for each in checks if each["name"] == "encryption")

    assert encryption()["detail"] == "no run is stored; new ones are not encrypted"
    assert "new ones are encrypted by key" in encryption(OLD)["detail"]
    cli("solve", PROBLEM, *SMALL, "--thread", "a")
    plain = encryption()
    assert plain["status"] == "ok"
    assert plain["detail"].startswith("none: of 1 stored run 1 not encrypted")
    refused = encryption(OLD)
    assert refused["status"] == "warn"
    assert refused["remedy"].startswith("`pdr-graph reseal --read-older`")
    words = ["--encryption-key-file", key_file(clean / "old", OLD)]
    cli("solve", PROBLEM, *SMALL, "--thread", "b", *words)
    assert encryption(OLD)["detail"].startswith(
        "mixed: of 2 stored runs 1 encrypted, 1 not encrypted"
    )
    cli("reseal", "--read-older", *words)
    assert encryption(OLD)["status"] == "ok"
    assert encryption(OLD)["detail"].startswith("all: of 2 stored runs 2 encrypted")
    assert encryption(NEW, OLD)["remedy"] == "`pdr-graph reseal`, then remove the older keys"
    for keys, remedy in (((), "name the file of the keys by"), ((NEW,), "add what is missing")):
        found = encryption(*keys)
        assert found["status"] == "fail"
        assert found["remedy"].startswith(remedy)


@pytest.mark.redis
def test_the_doctor_says_that_it_looked_at_a_sample(cli, own, clean):
    """Of a store with more runs than it looks at."""
    cli("solve", PROBLEM, *SMALL, "--thread", "a")

    async def copies(saver: RedisSaver) -> None:
        await asyncio.gather(*(saver.acopy_thread("a", f"c{each}") for each in range(60)))

    own.do(copies)
    detail = next(
        each["detail"]
        for each in cli("doctor", "--json").json()["checks"]
        if each["name"] == "encryption"
    )
    assert "of 50 stored runs" in detail
    assert "50 of 61 runs" in detail


def test_the_keys_of_both_openers_are_the_same(clean):
    """The command line and the opener of LangGraph's server read one format."""
    file = key_file(clean / "keys", NEW, OLD)
    assert encryption_keys(load_settings(encryption_key_file=file)) == (NEW, OLD)
    with pytest.raises(StoreConfigError, match="PDR_ENCRYPTION_KEYS, line 1"):
        encryption_keys(load_settings(encryption_keys="xyz"))
