"""Asks the model on behalf of a node: renders the prompt, seeds, meters and traces the call.

Nodes, distillers, finishes and verifiers all call the model through an `Asker`.
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pdr_graph.config import PDRConfig
from pdr_graph.errors import CallError, raised_by
from pdr_graph.llm.client import ModelClient, OnChunk, Reply, Sampling
from pdr_graph.llm.usage import Meter, Spent
from pdr_graph.prompts import ONE_TOKEN, Prompts
from pdr_graph.trace import Trace, TraceRecord


@dataclass(frozen=True, slots=True)
class Asker:
    """The model, as one node in one super-step sees it."""

    client: ModelClient
    prompts: Prompts
    trace: Trace | None
    config: PDRConfig
    meter: Meter
    node: str
    round_number: int
    thread_id: str
    logprobs: bool = False
    """Whether the log-probabilities of replies are asked for."""
    on_chunk: OnChunk | None = None
    """Receives the reply of `one` piece by piece; None waits for the whole reply."""
    told_apart: bool = False
    """Whether the run asks several models, so that the trace names each call's."""

    async def one(self, template: str, *, index: int = 0, **values: object) -> Reply:
        """Make one call, in sequence with the calls before it.

        Raises:
            CallError: it failed for good; its cost is in the meter.
        """
        spent = Spent()
        try:
            return await self._ask(template, index, values, spent, self.on_chunk)
        finally:
            self.meter.add([spent])

    async def each(self, template: str, calls: Sequence[Mapping[str, object]]) -> list[Reply]:
        """Make calls in parallel, one for each set of values.

        Raises:
            CallError: one failed for good; raised once all have ended, the first in order.
        """
        bills = [Spent() for _ in calls]
        try:
            replies = await asyncio.gather(
                *(
                    self._ask(template, index, values, spent)
                    for index, (values, spent) in enumerate(zip(calls, bills, strict=True))
                ),
                return_exceptions=True,
            )
        finally:
            self.meter.add(bills)
        good = []
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
            good.append(reply)
        return good

    def sampling(self, template: str, index: int) -> Sampling:
        """Return how the call at `index` is sampled: by the config, with a seed of its own."""
        config = self.config
        priority = priority_of(config, self.node, self.round_number)
        own = config.refine_temperature if self.node == "refiner" else None
        sampling = Sampling(
            max_tokens=config.max_tokens,
            temperature=config.temperature if own is None else own,
            top_p=config.top_p,
            seed=derived_seed(config.seed or 0, template, self.node, self.round_number, index),
            thinking_token_budget=config.thinking_token_budget,
            priority=priority if self.client.priorities else None,
            logprobs=self.logprobs or None,
        )
        return sampling.one_token() if template in ONE_TOKEN else sampling

    async def _ask(
        self,
        template: str,
        index: int,
        values: Mapping[str, object],
        spent: Spent,
        on_chunk: OnChunk | None = None,
    ) -> Reply:
        prompt = self.prompts.render(template, **values)
        sampling = self.sampling(template, index)
        reply: Reply | None = None
        failure = "cancelled"
        try:
            reply = await self.client.ask(prompt, sampling, spent, on_chunk)
            failure = ""
            return reply
        except CallError as error:
            failure = str(error)
            raise
        finally:
            self.client.tell_refused(spent, self.thread_id)
            record = TraceRecord(
                thread_id=self.thread_id,
                round=self.round_number,
                node=self.node,
                index=index,
                template=template,
                prompt=prompt,
                thought=reply.thought if reply else "",
                solution=reply.solution if reply else "",
                finish_reason=reply.finish_reason if reply else "",
                prompt_tokens=sum(usage.prompt for usage in spent.usage),
                completion_tokens=sum(usage.completion for usage in spent.usage),
                seed=sampling.seed,
                seconds=round(spent.seconds, 3),
                error=failure,
            )
            if self.told_apart:
                record["model"] = self.client.name
            if reply is not None and reply.sampled is not None:
                record["prompt_ids"] = reply.sampled.prompt_ids
                record["token_ids"] = reply.sampled.token_ids
                record["logprobs"] = reply.sampled.logprobs
            if self.trace is not None:
                with raised_by("record of the trace"):
                    await self.trace.record(record)


STEPS = ("drafter", "distiller", "refiner", "verifier")
"""The steps of a round that ask the model, in their order."""


def priority_of(config: PDRConfig, node: str, round_number: int) -> int:
    """Return the scheduling priority of a call; the server serves the lowest first.

    A run that has begun goes before all new ones: minus the steps that it has behind it, where each
    round counts for all four. New runs wait by their size: the number of drafts that they plan.
    """
    # A run that plans no rounds has its answer behind it when it is granted the first.
    rounds = max(round_number - 1 if config.widths else round_number, 0)
    is_first = rounds == 0 and (node == "drafter" or (node == "refiner" and round_number == 0))
    return sum(config.widths) if is_first else -len(STEPS) * rounds - STEPS.index(node)


def derived_seed(seed: int, *parts: object) -> int:
    """Return a seed in [0, 2**31) that depends on the run's seed and on the call it is for."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
