"""Encryption keys: where they come from, and how stored threads go from one to another."""

import asyncio
import base64
import itertools
import multiprocessing
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from pdr_checkpoints import (
    CorruptCheckpointError,
    DecryptionError,
    RedisSaver,
    SaverOptions,
    StoreConfigError,
    ThreadBusyError,
    ThreadContendedError,
    keys,
    open_checkpointer,
)
from pdr_checkpoints.rotation import parse_keys, read_key_file
from redis_servers import Server
from test_saver import put
from test_stored_form import EXPORTED

OLD, NEW = b"o" * 32, b"n" * 32
TEXT = "a long enough text to be a part " * 100
FIRST = {"small": 1, "list": [TEXT + "one", TEXT + "two"], "large": TEXT}
Open = Callable[..., RedisSaver]


def config(thread: str) -> Any:
    return {"configurable": {"thread_id": thread}}


def parent_of(child: Any) -> dict[str, str]:
    return {"checkpoint_id": child["configurable"]["checkpoint_id"]}


async def fill(saver: RedisSaver, thread: str) -> None:
    """Two checkpoints, with small and large values, and pending writes of both sizes."""
    first = await put(saver, thread, FIRST)
    await saver.aput_writes(first, [("small", 2), ("large", TEXT + "written")], "task")
    second = await put(saver, thread, {**FIRST, "small": 3}, **parent_of(first))
    await saver.aput_writes(second, [("list", [TEXT + "one", "short"])], "other")


async def blobs(saver: RedisSaver, thread: str) -> dict[bytes, bytes]:
    fields = await saver._session.store.call("HGETALL", saver._session.store.thread(thread).data)
    return {name: blob for name, blob in fields.items() if name[:1] in keys.WRAPPED}


async def all_of(saver: RedisSaver, thread: str) -> list[Any]:
    return [each async for each in saver.alist(config(thread))]


async def sealed(saver: RedisSaver, thread: str) -> set[str]:
    return set((await saver.sealed_by(thread)).counts)


# Where keys come from


@pytest.mark.parametrize(
    "spelled",
    [
        OLD.hex(),
        OLD.hex().upper(),
        base64.b64encode(OLD).decode(),
        base64.b64encode(OLD).decode().rstrip("="),
        f"\n# made today\r\n  {OLD.hex()}  # mine\r\n\n",
    ],
)
def test_a_key_is_hexadecimal_or_base64(spelled: str) -> None:
    """With or without padding, space and comments around it."""
    assert parse_keys(spelled, "it") == (OLD,)


def test_every_key_can_be_written_in_every_way() -> None:
    """Random keys have digits of all kinds, the URL-safe alphabet too."""
    for _ in range(50):
        key = secrets.token_bytes(32)
        coded = (base64.b64encode(key), base64.urlsafe_b64encode(key))
        for text in (key.hex(), *(each.decode() for each in coded)):
            assert parse_keys(text, "it") == (key,)


def test_several_keys_keep_their_order() -> None:
    """One a line, or by commas; a repeated one counts once."""
    assert parse_keys(f"{NEW.hex()}\n{OLD.hex()},{NEW.hex()}", "it") == (NEW, OLD)


@pytest.mark.security
@pytest.mark.parametrize("word", ["hunter2", "z" * 64, "0" * 63, "A" * 45, "ü" * 43, "\0" * 64])
def test_what_is_no_key_is_not_repeated(tmp_path: Path, word: str) -> None:
    """The refusal names file and line, and shows nothing of what may be a key with a typo."""
    file = tmp_path / "keys"
    file.touch(0o600)
    file.write_text(f"{OLD.hex()}\n{word}\n", "utf-8")
    with pytest.raises(StoreConfigError, match=f"'{file}', line 2, has what is no") as refused:
        read_key_file(file)
    assert word not in str(refused.value)


def test_a_file_without_keys_is_refused(tmp_path: Path) -> None:
    """Missing, a folder, empty, comments only, binary, too large: each in one sentence."""
    file = tmp_path / "keys"
    with pytest.raises(StoreConfigError, match=r"cannot be read \(No such file.*umask 077"):
        read_key_file(file)
    with pytest.raises(StoreConfigError, match=r"cannot be read \(Is a directory"):
        read_key_file(tmp_path)
    file.touch(0o600)
    for content, sentence in (
        (b"", "has no encryption key"),
        (b"# nothing\n\n", "has no encryption key"),
        (bytes(range(256)), "has what is no encryption key"),
        (OLD.hex().encode() + b"\n" * 70_000, "has more than 65536 bytes"),
    ):
        file.write_bytes(content)
        with pytest.raises(StoreConfigError, match=sentence) as refused:
            read_key_file(file)
        assert "\n" not in str(refused.value)


@pytest.mark.security
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o666, 0o610])
def test_a_key_file_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    """The sentence says its mode and the remedy; closed, it is read."""
    file = tmp_path / "keys"
    file.write_text(OLD.hex())
    file.chmod(mode)
    with pytest.raises(StoreConfigError, match=f"has mode {mode:04o}.*chmod 600 {file}"):
        read_key_file(file)
    file.chmod(0o400)
    assert read_key_file(file) == (OLD,)


async def test_the_opener_takes_keys_of_the_environment(
    redis_url: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As text or as a file, not both; an argument comes first, and an empty one means none."""
    file = tmp_path / "keys"
    file.touch(0o600)
    file.write_text(NEW.hex())
    found = []
    for variables in ({"PDR_ENCRYPTION_KEYS": OLD.hex()}, {"PDR_ENCRYPTION_KEY_FILE": str(file)}):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            for given in ({}, {"encryption_keys": ()}, {"encryption_keys": [OLD]}):
                async with open_checkpointer(redis_url, prefix=prefix, **given) as saver:
                    found.append(tuple(saver.options.encryption_keys))
    assert found == [(OLD,), (), (OLD,), (NEW,), (), (OLD,)]
    monkeypatch.setenv("PDR_ENCRYPTION_KEYS", OLD.hex())
    monkeypatch.setenv("PDR_ENCRYPTION_KEY_FILE", str(file))
    with pytest.raises(StoreConfigError, match="are both set: unset one"):
        async with open_checkpointer(redis_url, prefix=prefix):
            pass


# Sealing anew

BEFORE: list[Any] = [
    pytest.param({"encryption_keys": [OLD]}, {}, id="an older key"),
    pytest.param({}, {"read_older": True}, id="plain"),
]


async def test_every_kind_of_server_is_sealed_anew(any_server: Server, prefix: str) -> None:
    """Redis of several versions and Valkey."""
    for order in ([OLD], [NEW, OLD]):
        async with open_checkpointer(
            any_server.url, prefix=prefix, encryption_keys=order, read_older=True
        ) as saver:
            if order == [OLD]:
                await fill(saver, "t")
            assert [name async for name in saver.stored_threads()] == ["t"]
            await saver.reseal_thread("t")
            found = await saver.seals()
            assert [(each.thread_id, set(each.counts)) for each in found.sample] == [
                ("t", {saver.seal_name})
            ]
            assert len(await all_of(saver, "t")) == 2
            await saver.acopy_thread("t", "copy")
            await saver.adelete_thread("copy")


@pytest.mark.security
def test_keys_are_in_no_message() -> None:
    """The options of a saver are shown in logs and tracebacks; their keys are not."""
    options = SaverOptions(encryption_keys=[OLD])
    assert "oooo" not in repr(options) + str(options)
    assert OLD.hex() not in repr(options)


@pytest.mark.parametrize(("before", "after"), BEFORE)
async def test_every_value_goes_to_the_first_key(
    open_saver: Open, before: dict[str, Any], after: dict[str, Any]
) -> None:
    """Records, values, pending writes and parts; the old key opens nothing any more."""
    await fill(open_saver(**before), "t")
    expected = await all_of(open_saver(**before), "t")
    former = await blobs(open_saver(), "t")
    saver = open_saver(encryption_keys=[NEW, OLD], **after)
    assert await saver.reseal_thread("t") == len(former)
    assert await all_of(open_saver(encryption_keys=[NEW]), "t") == expected
    now = await blobs(saver, "t")
    assert {(blob[0], blob[2:6].hex()) for blob in now.values()} == {(2, saver.seal_name)}
    assert {name[:1] for name in now} == {b"c", b"v", b"w", b"p"}
    assert len(now) == len(former)
    # A part's name would still tell who has the old key, or a guess, what it holds.
    parts = [{name for name in each if name[:1] == b"p"} for each in (former, now)]
    assert not parts[0] & parts[1]
    index = await saver._store.members(saver._store.thread("t").index)
    assert {name for name in index if name[:1] in keys.WRAPPED} == {
        name for name in now if name[:1] != b"v"
    }
    assert await saver.reseal_thread("t") == 0
    await saver.aprune(["t"])
    assert await saver.aget_tuple(config("t")) == expected[0]


async def test_what_version_0_1_encrypted_is_bound_to_its_thread(open_saver: Open) -> None:
    """Where it is asked for; its states stay what they were."""
    file = EXPORTED["encrypted"]
    await open_saver().import_thread(each([file]))
    key = b"k" * 32
    with pytest.raises(DecryptionError, match=r"early release.*reseal --read-older"):
        await open_saver(encryption_keys=[NEW, key]).reseal_thread("t")
    older = open_saver(encryption_keys=[NEW, key], read_older=True)
    expected = await all_of(older, "t")
    assert len(expected) == 4
    assert await sealed(older, "t") == {"early"}
    await older.reseal_thread("t")
    assert await all_of(open_saver(encryption_keys=[NEW]), "t") == expected
    await older.adelete_thread("t")
    await older.import_thread(each([file]))
    assert await all_of(open_saver(encryption_keys=[NEW]), "t") == expected


async def test_encryption_can_be_taken_off(open_saver: Open) -> None:
    """By an explicit call, from all keys that are given; a saver without keys then reads all."""
    await fill(open_saver(encryption_keys=[OLD]), "t")
    saver = open_saver(encryption_keys=[NEW, OLD])
    expected = await all_of(saver, "t")
    await saver.reseal_thread("t", plain=True)
    assert await saver.reseal_thread("t", plain=True) == 0
    assert await all_of(open_saver(), "t") == expected
    assert await sealed(saver, "t") == {"plain"}
    with pytest.raises(DecryptionError, match="of thread 't' cannot be read: it is not encrypted"):
        await saver.aget_tuple(config("t"))


async def test_sealing_needs_a_key(open_saver: Open) -> None:
    """Without one the refusal says how to give it; nothing changes."""
    await fill(open_saver(), "t")
    for plain in (False, True):
        with pytest.raises(StoreConfigError, match="--encryption-key-file"):
            await open_saver().reseal_thread("t", plain=plain)
    assert await open_saver(encryption_keys=[OLD]).reseal_thread("absent") == 0


@pytest.mark.security
@pytest.mark.parametrize("kind", [b"c", b"v", b"w", b"p"])
@pytest.mark.parametrize("forged", ["plain", "moved", "altered"])
async def test_sealing_anew_blesses_nothing(open_saver: Open, kind: bytes, forged: str) -> None:
    """A planted value is refused by name, not sealed; `read_older` takes the plain alone."""
    old = open_saver(encryption_keys=[OLD])
    await fill(old, "t")
    await fill(old, "other")
    name = next(name for name in await blobs(old, "t") if name[:1] == kind)
    mine = (await blobs(old, "t"))[name]
    body = old._session.envelope.of("t").unwrap(mine, name)
    planted = {
        "plain": open_saver()._session.envelope.of("t").wrap(body, name),
        "moved": old._session.envelope.of("other").wrap(body, name),
        "altered": mine[:-1] + bytes((mine[-1] ^ 1,)),
    }[forged]
    await old._store.call("HSET", old._store.thread("t").data, name, planted)
    saver = open_saver(encryption_keys=[NEW, OLD])
    with pytest.raises(DecryptionError, match="of thread 't' cannot be read"):
        await saver.reseal_thread("t")
    assert (await blobs(saver, "t"))[name] == planted
    older = open_saver(encryption_keys=[NEW, OLD], read_older=True)
    if forged == "plain":
        await older.reseal_thread("t")
        assert await sealed(saver, "t") == {saver.seal_name}
    else:
        with pytest.raises(DecryptionError):
            await older.reseal_thread("t")


class CutStoreError(Exception):
    """Stands for a kill between two writes."""


@pytest.mark.parametrize(("before", "after"), BEFORE)
async def test_a_thread_that_is_cut_short_can_be_read_and_goes_on(
    open_saver: Open, monkeypatch: pytest.MonkeyPatch, before: dict[str, Any], after: dict[str, Any]
) -> None:
    """After each single write: all is readable with both keys, and the next call ends the work."""
    expected: list[Any] = []
    for most in itertools.count():
        thread = f"t{most}"
        await fill(open_saver(**before), thread)
        saver = open_saver(encryption_keys=[NEW, OLD], **after)
        expected = await all_of(saver, thread)
        left = most
        write = type(saver._store).write

        async def cut(*args: Any, **kwargs: Any) -> bool:
            nonlocal left
            if left == 0:
                raise CutStoreError
            left -= 1
            return await write(*args, **kwargs)  # noqa: B023

        with monkeypatch.context() as patch:
            patch.setattr("pdr_checkpoints.rotation.AT_ONCE", 0)
            patch.setattr(type(saver._store), "write", cut)
            try:
                await saver.reseal_thread(thread)
            except CutStoreError:
                pass
            else:
                break
        assert await all_of(open_saver(encryption_keys=[NEW, OLD], **after), thread) == expected
        await saver.reseal_thread(thread)
        assert await all_of(open_saver(encryption_keys=[NEW]), thread) == expected
        parts = [name for name in await blobs(saver, thread) if name[:1] == b"p"]
        assert len(parts) == 4
    assert most > 10


async def test_a_thread_that_is_run_is_left_alone(open_saver: Open) -> None:
    """Its holder is named; it is waited for if that is wanted."""
    holder = open_saver(encryption_keys=[OLD])
    await fill(holder, "t")
    saver = open_saver(encryption_keys=[NEW, OLD])
    async with holder.lease("t"):
        with pytest.raises(ThreadBusyError):
            await saver.reseal_thread("t")
        waiting = asyncio.create_task(saver.reseal_thread("t", wait_s=5))
        await asyncio.sleep(0.1)
    assert await waiting > 0


async def test_a_run_without_a_lease_loses_nothing(open_saver: Open) -> None:
    """What it writes meanwhile is kept, and its parts are sent again; or the thread is left."""
    running = open_saver(encryption_keys=[OLD])
    await fill(running, "t")
    saver = open_saver(encryption_keys=[NEW, OLD])
    done = asyncio.Event()

    async def run() -> int:
        count, latest = 0, (await all_of(running, "t"))[0].config
        while not done.is_set():
            latest = await put(running, "t", {**FIRST, "small": count}, **parent_of(latest))
            count += 1
        return count

    writing = asyncio.create_task(run())
    for _ in range(5):
        try:
            await saver.reseal_thread("t")
        except ThreadContendedError:
            continue
    done.set()
    count = await writing
    await saver.reseal_thread("t")
    alone = open_saver(encryption_keys=[NEW])
    found = await all_of(alone, "t")
    assert len(found) == 2 + count
    assert all(each.checkpoint["channel_values"]["large"] == TEXT for each in found)


async def test_pruning_meanwhile_loses_nothing(open_saver: Open) -> None:
    """Between any two writes: a new part that nothing refers to yet is not taken for a dead one."""
    expected: list[Any] = []
    for number in range(8):
        thread = f"t{number}"
        await fill(open_saver(encryption_keys=[OLD]), thread)
        saver, other = (open_saver(encryption_keys=[NEW, OLD]) for _ in range(2))
        write, count = saver._store.write, itertools.count()

        async def pruned_after(*args: Any, **kwargs: Any) -> bool:
            done = await write(*args, **kwargs)  # noqa: B023
            if next(count) == number:  # noqa: B023
                await other.aprune([thread], keep=1)  # noqa: B023
            return done

        saver._store.write = pruned_after  # type: ignore[method-assign]
        await saver.reseal_thread(thread)
        alone = open_saver(encryption_keys=[NEW])
        found = await all_of(alone, thread)
        expected = expected or [found[0].checkpoint["channel_values"]]
        assert found[0].checkpoint["channel_values"] == expected[0]
        assert found[0].pending_writes
        before = await blobs(saver, thread)
        await alone.aprune([thread], keep=2)
        assert (await blobs(saver, thread)).keys() == before.keys()


async def test_readers_go_on_meanwhile(open_saver: Open) -> None:
    """A reader with both keys never meets an error, whatever it reads between two writes."""
    await fill(open_saver(encryption_keys=[OLD]), "t")
    expected = await all_of(open_saver(encryption_keys=[OLD]), "t")
    done = asyncio.Event()

    async def read() -> int:
        reader, count = open_saver(encryption_keys=[NEW, OLD]), 0
        while not done.is_set():
            assert await all_of(reader, "t") == expected
            count += 1
        return count

    reading = asyncio.create_task(read())
    for order in ([NEW, OLD], [OLD, NEW]) * 10:
        await open_saver(encryption_keys=order).reseal_thread("t")
    done.set()
    assert await reading > 1


async def test_a_thread_that_is_deleted_stays_away(open_saver: Open) -> None:
    """Nothing of it is written again by a call that had begun."""
    saver = open_saver(encryption_keys=[NEW, OLD])
    for _ in range(5):
        await fill(open_saver(encryption_keys=[OLD]), "t")
        work = asyncio.create_task(saver.reseal_thread("t"))
        await asyncio.sleep(0.003)
        await open_saver().adelete_thread("t")
        await work
        assert await blobs(saver, "t") == {}


async def test_a_time_to_live_stays(open_saver: Open) -> None:
    """Neither the values nor the index of a thread lives for ever afterwards."""
    old = open_saver(encryption_keys=[OLD], ttl_s=60)
    await fill(old, "t")
    await open_saver(encryption_keys=[NEW, OLD]).reseal_thread("t")
    thread = old._store.thread("t")
    left = [await old._store.call("PTTL", key) for key in (thread.data, thread.index)]
    assert all(0 < each <= 60_000 for each in left)


def reseal_for_ever(url: str, prefix: str, begun: Any) -> None:
    async def work() -> None:
        for order in ([NEW, OLD], [OLD, NEW]) * 1000:
            options = SaverOptions(prefix=prefix, encryption_keys=order, lease_ttl_s=1.0)
            async with RedisSaver(url, options=options) as saver:
                await saver.reseal_thread("t")
                begun.set()

    asyncio.run(work())


async def test_a_killed_process_leaves_a_readable_thread(open_saver: Open, redis_url: str) -> None:
    """SIGKILL at any time: both keys read all, and the next process ends the work."""
    await fill(open_saver(encryption_keys=[OLD]), "t")
    expected = await all_of(open_saver(encryption_keys=[OLD]), "t")
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    prefix = open_saver().options.prefix
    process = context.Process(target=reseal_for_ever, args=(redis_url, prefix, begun))
    process.start()
    assert await asyncio.to_thread(begun.wait, 30)
    await asyncio.sleep(0.0137)
    process.kill()
    await asyncio.to_thread(process.join)
    both = open_saver(encryption_keys=[NEW, OLD])
    assert await all_of(both, "t") == expected
    await both.reseal_thread("t", wait_s=3)
    assert await all_of(open_saver(encryption_keys=[NEW]), "t") == expected


# What is sealed how


async def test_seals_are_counted_by_their_keys(open_saver: Open) -> None:
    """Plain, by a known key, by another; and whether a value can be read."""
    plain, old = open_saver(), open_saver(encryption_keys=[OLD])
    await fill(plain, "plain")
    await fill(old, "old")
    name = old.seal_name
    for saver, unread in (
        (plain, {"old": "encryption_keys is not set"}),
        (old, {"plain": "is not encrypted"}),
        (open_saver(encryption_keys=[NEW]), {"old": f"key {name}, which", "plain": "is not"}),
        (open_saver(encryption_keys=[NEW, OLD], read_older=True), {}),
    ):
        found = await saver.seals()
        assert found.num_threads == 2
        by_thread = {each.thread_id: each for each in found.sample}
        assert {thread: set(each.counts) for thread, each in by_thread.items()} == {
            "plain": {"plain"},
            "old": {name},
        }
        assert {thread for thread, each in by_thread.items() if each.unread} == set(unread)
        for thread, words in unread.items():
            assert words in str(by_thread[thread].unread)


async def test_every_stored_thread_is_found(open_saver: Open) -> None:
    """Whatever its name, and if no list has it; of this prefix alone."""
    saver = open_saver()
    names = {"t", "a b", "{x}", "*", "ü/…", "\ud800", ":data", "a:{.b}:data"}
    for name in names:
        await put(saver, name, {"a": 1})
    await saver._store.call("DEL", keys.registry_keys(saver.options.prefix).threads)
    await put(open_saver(prefix=saver.options.prefix + "x"), "of another", {"a": 1})
    assert {name async for name in saver.stored_threads()} == names


async def test_a_prefix_is_no_pattern(open_saver: Open, prefix: str) -> None:
    """Its characters stand for themselves."""
    for own in (f"{prefix}[ab]*?\\", f"{prefix}a"):
        await put(open_saver(prefix=own), "of " + own, {"a": 1})
    saver = open_saver(prefix=f"{prefix}[ab]*?\\")
    assert [name async for name in saver.stored_threads()] == ["of " + saver.options.prefix]


# Files


async def file_of(saver: RedisSaver, thread: str) -> list[bytes]:
    return [chunk async for chunk in saver.export_thread(thread)]


async def each(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@pytest.mark.security
@pytest.mark.parametrize("name", [None, "renamed"])
async def test_an_import_brings_no_value_that_the_keys_do_not_open(
    open_saver: Open, prefix: str, name: str | None
) -> None:
    """A plain file, and one of another's key, are refused before anything of them is kept."""
    for before in ({}, {"encryption_keys": [OLD]}):
        await fill(open_saver(**before), "t")
        chunks = await file_of(open_saver(**before), "t")
        there = open_saver(prefix=prefix + "-there", encryption_keys=[NEW])
        with pytest.raises(DecryptionError, match="of thread 't' cannot be read: it is"):
            await there.import_thread(each(chunks), thread_id=name)
        assert [thread async for thread in there.stored_threads()] == []
        await open_saver().adelete_thread("t")


async def test_a_plain_file_is_sealed_on_its_way_in(open_saver: Open, prefix: str) -> None:
    """Where that is asked for, under its own name too."""
    await fill(open_saver(), "t")
    expected = await all_of(open_saver(), "t")
    chunks = await file_of(open_saver(), "t")
    older = open_saver(prefix=prefix + "-there", encryption_keys=[NEW], read_older=True)
    await older.import_thread(each(chunks))
    there = open_saver(prefix=prefix + "-there", encryption_keys=[NEW])
    assert await all_of(there, "t") == expected
    assert await sealed(there, "t") == {there.seal_name}


async def test_half_a_thread_is_not_sealed_anew(open_saver: Open) -> None:
    """What an import that was killed has left is named."""
    saver = open_saver(encryption_keys=[OLD])
    await fill(saver, "t")
    thread = saver._store.thread("t")
    await saver._store.call("HDEL", thread.data, keys.UPDATED)
    with pytest.raises(CorruptCheckpointError, match="thread 't' cannot be read: it is not whole"):
        await saver.reseal_thread("t")
