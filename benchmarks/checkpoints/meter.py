"""Bytes and milliseconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis
from langgraph.checkpoint.base import BaseCheckpointSaver


class Timed:
    """Times the two writing methods of a saver, in ms a call."""

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
        """Bytes that the server received, or that were written to the file system."""
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
    """Return p50 and p99."""
    ordered = sorted(ms)
    return {"p50": statistics.median(ordered), "p99": ordered[int(0.99 * (len(ordered) - 1))]}
