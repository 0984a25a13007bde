"""Several keys: no client finds, takes or reads the runs of another by their names."""

import asyncio

import openai
import pytest
from langgraph.checkpoint.memory import InMemorySaver

from tests.serve.conftest import ASK, CALLS, SMALL
from tests.serve.test_chat import stream, text_of

pytestmark = pytest.mark.security

KEYS = "# alice\nalpha\n\n# bob\nbravo\n"
NAMED = {"metadata": {"thread_id": "t1"}}
OTHER = [{"role": "user", "content": "What is 2 + 2?"}]


@pytest.fixture
async def clients():
    """Makes a client of each key."""
    opened = []

    def make(served, *keys: str) -> list[openai.AsyncOpenAI]:
        opened.extend(
            openai.AsyncOpenAI(base_url=served.url, api_key=key, max_retries=0) for key in keys
        )
        return opened[-len(keys) :]

    yield make
    for each in opened:
        await each.close()


async def ask(client, **fields):
    body = {"model": SMALL, "messages": ASK, **NAMED, **fields}
    return await client.chat.completions.create(**body)


async def test_one_name_is_two_runs(serve, mock, clients):
    """Under two keys; each goes on with its own, and is told its own name alone."""
    saver = InMemorySaver()
    alice, bob = clients(await serve(saver, key=KEYS), "alpha", "bravo")
    hers = await ask(alice, seed=1)
    # Neither 409 (hers is another problem), nor a replay.
    his = await ask(bob, messages=OTHER, seed=2)
    assert mock.stats()["calls"] == 2 * CALLS
    assert hers.pdr["thread_id"] == his.pdr["thread_id"] == "t1"
    again = await ask(bob, messages=OTHER)
    assert again.choices[0].message.content == his.choices[0].message.content
    assert (await ask(alice)).choices[0].message.content == hers.choices[0].message.content
    assert mock.stats()["calls"] == 2 * CALLS
    first, second = sorted(saver.storage)
    assert first == "t1"
    assert second.startswith("t1#")
    with pytest.raises(openai.ConflictError, match="thread 't1' holds a run of another problem"):
        await ask(bob)


async def test_the_first_key_has_the_runs_of_before(serve, mock, clients):
    """Those of a server with one key, or none; adding a key and changing it loses none."""
    saver = InMemorySaver()
    (nobody,) = clients(await serve(saver), "none")
    first = await ask(nobody)
    (alone,) = clients(await serve(saver, key="alpha"), "alpha")
    both = await serve(saver, key="changed\nbravo")
    (alice,) = clients(both, "changed")
    for each in (alone, alice):
        assert (await ask(each)).choices[0].message.content == first.choices[0].message.content
    assert mock.stats()["calls"] == CALLS


async def test_a_run_of_one_key_keeps_no_other_waiting(serve, mock, clients):
    """While the one is running, the other has the name too; its own second request is refused."""
    mock.configure(delay_s=0.3)
    alice, bob = clients(await serve(key=KEYS), "alpha", "bravo")
    runs = [asyncio.create_task(ask(each)) for each in (alice, bob)]
    await mock.until(lambda stats: stats["in_flight"] >= 4)
    for each in (alice, bob):
        with pytest.raises(openai.ConflictError, match="thread 't1' is being run"):
            await ask(each)
    assert all("boxed" in each.choices[0].message.content for each in await asyncio.gather(*runs))


async def test_no_name_reaches_into_another_space(serve, mock, clients):
    """The thread of the store is no name that a client may send."""
    saver = InMemorySaver()
    alice, bob = clients(await serve(saver, key=KEYS), "alpha", "bravo")
    await ask(bob)
    (place,) = saver.storage
    for each in (alice, bob):
        with pytest.raises(openai.BadRequestError, match="thread_id"):
            await ask(each, metadata={"thread_id": place})


async def test_a_response_belongs_to_its_key(serve, mock, clients):
    """Others can neither read, continue, cancel nor delete it, by its id either."""
    alice, bob = clients(await serve(key=KEYS), "alpha", "bravo")
    for owner, other in ((alice, bob), (bob, alice)):
        reply = await owner.responses.create(model=SMALL, input="What is 17 + 25?")
        thread = reply.pdr["thread_id"]
        assert "#" not in thread
        for attempt in (
            other.responses.retrieve(reply.id),
            other.responses.cancel(reply.id),
            other.responses.delete(reply.id),
        ):
            with pytest.raises(openai.NotFoundError):
                await attempt
        with pytest.raises(openai.BadRequestError, match="previous_response_id: no response"):
            await other.responses.create(
                model=SMALL, input="Double it.", previous_response_id=reply.id
            )
        found = await owner.responses.retrieve(reply.id)
        assert (found.output_text, found.pdr["thread_id"]) == (reply.output_text, thread)
        more = await owner.responses.create(
            model=SMALL, input="Double it.", previous_response_id=reply.id
        )
        assert "boxed" in more.output_text
        await owner.responses.delete(reply.id)
        with pytest.raises(openai.NotFoundError):
            await owner.responses.retrieve(reply.id)


async def test_no_reply_tells_what_the_store_calls_a_thread(serve, mock, clients):
    """Neither a header, nor a stream, nor an error."""
    served = await serve(key=KEYS, timeout_s=30)
    _, bob = clients(served, "alpha", "bravo")
    raw = await bob.chat.completions.with_raw_response.create(model=SMALL, messages=ASK, **NAMED)
    assert raw.headers["x-pdr-thread-id"] == "t1"
    assert "#" not in raw.text
    own = served.__class__(served.url, served.runner, served.server, served.running, bob)
    chunks = await stream(own, **NAMED)
    assert "boxed" in text_of(chunks)
    assert "t1#" not in str(chunks)
    mock.configure(status=[{"match": {}, "status": 400}])
    with pytest.raises(openai.InternalServerError, match='"thread_id": "t2"') as failed:
        await ask(bob, metadata={"thread_id": "t2"})
    assert "t2#" not in failed.value.message


async def test_repeats_are_counted_by_key(serve, mock, clients):
    """The seed of a request does not tell whether another client has sent the same."""
    alice, bob = clients(await serve(key=KEYS), "alpha", "bravo")
    fields = {"model": SMALL, "messages": ASK, "seed": 5}
    hers = await alice.chat.completions.create(**fields)
    his = await bob.chat.completions.create(**fields)
    again = await bob.chat.completions.create(**fields)
    assert his.choices[0].message.content == hers.choices[0].message.content
    assert mock.stats()["calls"] == 3 * CALLS
    assert again.pdr["thread_id"] != his.pdr["thread_id"]


async def test_every_key_is_one_whole_line(serve, mock, clients):
    """Comments, and parts of keys, are none."""
    served = await serve(key=KEYS)
    for key in ("alpha\tbravo", "# alice", "#", "alph", "alphabravo"):
        (wrong,) = clients(served, key.replace("\t", "%09"))
        with pytest.raises(openai.AuthenticationError):
            await wrong.models.list()
