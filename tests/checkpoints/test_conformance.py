"""LangGraph's own conformance suite, on every server at hand."""

from __future__ import annotations

from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import Capability
from pdr_checkpoints import open_checkpointer
from redis_servers import Server

KEYS = (b"k" * 32,)


async def test_every_capability_conforms(any_server: Server, prefix: str) -> None:
    """All base and extended capabilities are there, and all their tests pass."""

    @checkpointer_test(name=prefix)
    async def factory():
        async with open_checkpointer(any_server.url, prefix=prefix) as saver:
            yield saver

    report = await validate(factory)
    assert {name: result.failures for name, result in report.results.items()} == {
        capability.value: [] for capability in Capability
    }
    assert sum(result.tests_passed for result in report.results.values()) >= 81


async def test_encrypted_saver_conforms(redis_url: str, prefix: str) -> None:
    """Encryption changes nothing that the suite can see."""

    @checkpointer_test(name=prefix)
    async def factory():
        async with open_checkpointer(redis_url, prefix=prefix, encryption_keys=KEYS) as saver:
            yield saver

    report = await validate(factory)
    assert [f for result in report.results.values() for f in result.failures] == []
