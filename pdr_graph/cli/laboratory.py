"""Where the samples of an evaluation are run: in this process, or by workers of a Ray cluster."""

from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from functools import partial

from langgraph.runtime import RunControl

from checkpoints import RedisSaver, ThreadBusyError
from pdr_graph.cli.output import Output
from pdr_graph.cli.stores import LEASE_S, MEMORY, Saver, open_saver
from pdr_graph.connect import EMBEDDED_SLOTS
from pdr_graph.errors import ConfigError, EndpointError
from pdr_graph.eval.judging import Judge
from pdr_graph.eval.problems import Score
from pdr_graph.eval.runner import Claim, Laboratory
from pdr_graph.eval.sample import Facts, Lab
from pdr_graph.extensions import Extensions
from pdr_graph.llm.chat_vllm import ChatVLLM
from pdr_graph.llm.client import ModelClient
from pdr_graph.llm.endpoint import probe_endpoint
from pdr_graph.llm.pool import make_http_client
from pdr_graph.prompts import Prompts
from pdr_graph.run import Parts
from pdr_graph.settings import Settings
from pdr_graph.trace import Trace


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray cluster that this process is connected to."""

    num_workers: int


@dataclass(frozen=True, slots=True)
class Equipment:
    """What a sample is run with, wherever it is."""

    client: ModelClient
    saver: Saver
    settings: Settings
    kind: str
    """Kind of answer."""
    score: Score | None
    prompts: Prompts
    trace: Trace | None
    control: RunControl
    facts: Facts

    def here(self) -> Lab:
        """Return what runs samples in this process."""
        return Lab(
            client=self.client,
            saver=self.saver,
            judge=Judge.of_kind(self.kind, self.score),
            extensions=Extensions(),
            parts=Parts(prompts=self.prompts, trace=self.trace, control=self.control),
            facts=self.facts,
        )

    def on(self, cluster: Cluster, output: Output) -> AbstractAsyncContextManager[Laboratory]:
        """Return what has workers of a cluster run them."""
        from pdr_graph.eval.ray_cluster import ray_lab
        from pdr_graph.eval.ray_worker import Kit

        kit = Kit(
            settings=self.settings,
            open_store=open_unannounced,
            # A worker that died holds its threads until its leases run out.
            claim=partial(by_lease, wait_s=LEASE_S + 1),
            answer=self.kind,
            score=self.score,
            templates=dict(self.prompts.templates),
            facts=self.facts,
            traced=self.trace is not None,
        )
        return ray_lab(
            kit,
            cluster.num_workers,
            saver=self.saver,
            control=self.control,
            trace=self.trace,
            say=output.say,
        )

    @asynccontextmanager
    async def opened(self, cluster: Cluster | None, output: Output) -> AsyncIterator[Laboratory]:
        """Open what runs samples for as long as the block lasts."""
        if cluster is None:
            yield self.here()
        else:
            async with self.on(cluster, output) as lab:
                yield lab

    async def alive(self) -> bool:
        """Tell whether the endpoint answers now."""
        model = self.client.model
        if not isinstance(model, ChatVLLM) or model.openai_api_base is None:
            return True
        http = make_http_client()
        try:
            await probe_endpoint(
                http,
                model.openai_api_base,
                api_key=self.settings.api_key.get_secret_value(),
                model=self.client.name,
            )
        except EndpointError:
            return False
        finally:
            await http.aclose()
        return True

    def places(self, cluster: Cluster | None) -> int:
        """Return how many calls may be made at once; more would wait within the server."""
        limit = self.settings.max_in_flight
        if self.settings.base_url is None:
            limit = min(limit, EMBEDDED_SLOTS)
        return limit * (cluster.num_workers if cluster else 1)

    def claim(self, cluster: Cluster | None) -> Claim | None:
        """Return how this process holds a thread; None where it need not."""
        named = self.settings.redis_url is not None
        return by_lease(self.saver) if named and cluster is None else None


@contextmanager
def cluster_of(address: str, num_workers: int | None, settings: Settings) -> Iterator[Cluster]:
    """Connect to a Ray cluster for as long as the block lasts.

    Raises:
        ConfigError: there is none, or its workers could not reach model or store.
    """
    if settings.base_url is None:
        raise ConfigError(
            f"--ray {address} needs a model endpoint that its workers can reach; set --base-url / "
            "PDR_BASE_URL"
        )
    if settings.redis_url in {None, MEMORY}:
        raise ConfigError(
            f"--ray {address} needs a store that its workers can reach; set --checkpoint / "
            "PDR_REDIS_URL to redis://…"
        )
    from pdr_graph.eval.ray_connection import MOST_WORKERS, connect, disconnect

    processors = connect(address)
    try:
        yield Cluster(num_workers or max(1, min(processors, MOST_WORKERS)))
    finally:
        disconnect()


def by_lease(saver: Saver, wait_s: float = 0.0) -> Claim | None:
    """Return how a thread is held against other machines; None where the store cannot."""
    if not isinstance(saver, RedisSaver):
        return None

    @asynccontextmanager
    async def claim(thread_id: str) -> AsyncIterator[bool]:
        async with AsyncExitStack() as held:
            try:
                await held.enter_async_context(saver.lease(thread_id, ttl_s=LEASE_S, wait_s=wait_s))
            except ThreadBusyError:
                mine = False
            else:
                mine = True
            yield mine

    return claim


def open_unannounced(settings: Settings) -> AbstractAsyncContextManager[Saver]:
    """Open the store of the settings on a worker, where nobody reads along."""
    return open_saver(settings, lambda line: None)
