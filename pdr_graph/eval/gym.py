"""Procedural problems of reasoning-gym: `reasoning-gym:chain_sum?size=200&seed=7&min_terms=3`.

Any knob of the task's config may follow the question mark; values are read as JSON, else as text.
The same source is the same problems. An answer counts only if the task's own scorer gives it 1.0
or more, or if it equals the task's answer as a number or as text: scorers give part of a point to
a reply that merely contains the answer. Scorers run in processes that can be killed
(`gym_worker.py`), as some take their input for an expression.

https://github.com/open-thought/reasoning-gym
"""

import asyncio
import json
import warnings
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from pdr_graph.answers import CheckVerdict, Limits, WorkerPool, exact
from pdr_graph.errors import ConfigError
from pdr_graph.eval.problems import Problem, Problems, checked, hash_of

PREFIX = "reasoning-gym:"
SIZE = 100
"""Problems where the source does not say."""
ANY = "(any that the task's scorer accepts)"
"""Stands for the gold answer of a task that has many."""

_WORKER = Path(__file__).with_name("gym_worker.py")


def make_problems(source: str) -> Problems:
    """Make the problems that a source describes.

    Raises:
        ConfigError: reasoning-gym is not installed, or there is no such task or knob.
    """
    task, _, query = source.removeprefix(PREFIX).partition("?")
    knobs = {"size": SIZE, "seed": 0, **_knobs(query, source)}
    problems = [
        Problem(
            id=f"{task}-{index}",
            text=str(entry["question"]),
            gold=ANY if entry["answer"] is None else str(entry["answer"]),
            index=index,
        )
        for index, entry in enumerate(_entries(task, knobs))
    ]
    return Problems(
        source=source,
        problems=checked(problems, source),
        sha256=hash_of(problems),
        scored_by=(
            f"an answer counts if reasoning-gym's scorer of {task} gives 1.0 or more, or if it "
            "equals the task's answer"
        ),
        score=GymScorer(task, knobs),
        packages=("reasoning-gym",),
    )


class GymScorer:
    """Judges answers by the task's own scorer."""

    def __init__(self, task: str, knobs: dict[str, Any]) -> None:
        self._task, self._knobs = task, knobs
        # reasoning-gym reserves more than the checker's default of address space.
        self._pool = WorkerPool(Limits(memory_bytes=4 << 30), _WORKER)
        self._known: dict[tuple[int, str], CheckVerdict] = {}

    def __reduce__(self) -> tuple[object, ...]:
        """Say how it is made anew in another process, with workers of its own."""
        return GymScorer, (self._task, self._knobs)

    async def __call__(self, problem: Problem, answer: str) -> CheckVerdict:
        """Return the verdict on an extracted answer."""
        if problem.gold != ANY and exact.equal(problem.gold, answer):
            return CheckVerdict.CORRECT
        key = problem.index, answer
        if key not in self._known:
            self._known[key] = await self._ask(problem.index, answer)
        return self._known[key]

    async def _ask(self, index: int, answer: str) -> CheckVerdict:
        request = {
            "task": self._task,
            "knobs": self._knobs,
            "index": index,
            "answer": answer,
        }
        reply = await asyncio.wrap_future(self._pool.submit(request))
        return CheckVerdict.TIMEOUT if reply is None else CheckVerdict(reply["verdict"])


def _knobs(query: str, source: str) -> dict[str, Any]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise ConfigError(f"{source!r} is malformed: {error}; write task?size=100&seed=0") from None
    knobs: dict[str, Any] = {}
    for name, text in pairs:
        try:
            knobs[name] = json.loads(text)
        except ValueError:
            knobs[name] = text
    for name in ("size", "seed"):
        value = knobs.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < (name == "size"):
            least = "of 1 or more" if name == "size" else "of 0 or more"
            raise ConfigError(f"{source!r}: {name} is {value!r}, it must be a whole number {least}")
    return knobs


def _entries(task: str, knobs: dict[str, Any]) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependencies compile with syntax warnings
        try:
            import reasoning_gym
            from reasoning_gym.factory import DATASETS
        except ImportError:
            raise ConfigError(
                "procedural problems need reasoning-gym: pip install 'pdr-graph[eval]'"
            ) from None
        if task not in DATASETS:
            near = get_close_matches(task, DATASETS, n=5, cutoff=0.3) or sorted(DATASETS)
            raise ConfigError(
                f"reasoning-gym has no task {task!r} among its {len(DATASETS)}; perhaps one of "
                f"{', '.join(near)}"
            )
        try:
            return [dict(entry) for entry in reasoning_gym.create_dataset(task, **knobs)]
        # Whatever a task's config raises on a knob it does not like, assertions included.
        except Exception as error:  # noqa: BLE001
            shown = ", ".join(f"{name}={value!r}" for name, value in knobs.items())
            raise ConfigError(f"reasoning-gym refuses {task} with {shown}: {error}") from None
