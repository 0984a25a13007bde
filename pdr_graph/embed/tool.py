"""PDR as a tool of agents: `create_agent(model, tools=[as_tool(preset("pdr"), model=model)])`."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, ToolCall, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool, ToolException
from langgraph._internal._constants import PUSH
from langgraph.config import get_stream_writer
from langgraph.prebuilt import ToolRuntime
from langgraph.types import Command
from pydantic import BaseModel, ConfigDict

from pdr_graph.config import PDRConfig, default_config
from pdr_graph.embed.subrun import (
    charges,
    ledger_channel,
    report,
    subrun,
)
from pdr_graph.errors import ConfigError
from pdr_graph.extensions import Extensions, Parts, RunOrder
from pdr_graph.graph import build_graph
from pdr_graph.judge import DraftJudge
from pdr_graph.llm.client import ModelClient
from pdr_graph.llm.models import Models, ModelsByRole
from pdr_graph.nodes.toolbox import task_id
from pdr_graph.prompts import Prompts
from pdr_graph.run import drive, new_thread_id
from pdr_graph.trace import Trace

DESCRIPTION = (
    "Think hard about one question: many attempts side by side, compared and refined. Slow and "
    "costly; for questions that need several steps of reasoning, such as mathematics, planning "
    "or code. It sees nothing of the conversation, so state the question in full."
)


class Question(BaseModel):
    """What the agent's model fills in."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    question: str
    """The question, in full, with everything that is needed to answer it."""


def as_tool(
    config: PDRConfig | str | Mapping[str, object] | None = None,
    *,
    model: BaseChatModel | ModelClient | Models | str,
    models: ModelsByRole | None = None,
    name: str = "think_hard",
    description: str = DESCRIPTION,
    return_direct: bool = False,
    parts: Parts | None = None,
    extensions: Extensions | None = None,
    judge: DraftJudge | None = None,
    prompts: Prompts | None = None,
    trace: Trace | None = None,
    ledger: str | None = None,
) -> BaseTool:
    """Return a tool that answers a question by a run of PDR.

    In an agent of LangGraph (`create_agent`, `ToolNode`) the run is a subgraph: the agent's
    checkpointer keeps it, the agent's stream tells it, and a resumed agent resumes it half-way. Its
    cost goes to the channel `pdr_ledger: Annotated[list[LedgerRow], merge_rows]` of the agent's
    state, or to `ledger` if that is declared so. Called by hand, the run is not kept. The artifact
    of the tool's message holds answer, verdict and ledger.

    Args:
        config: A `PDRConfig`, the name of a preset, or a dict of fields; None is the recommended
            preset, `vote_first`.
        model: What reasons; it need not be the agent's model.
        models: Models of their own for some roles, such as `{"refiner": large}`; `types.ROLES` has
            the roles.
        name: Name of the tool for the agent's model.
        description: Tells the agent's model when to use the tool.
        return_direct: Whether the agent ends with the tool's answer.
        parts: Extensions, prompts and trace in one object, as `solve` takes them.
        extensions: Distillers, finishes and verifiers of your own.
        judge: Weighs drafts, for the parts that use weights; None leaves all drafts alike.
        prompts: None is the built-in ones.
        trace: Receives every model call in full; None keeps nothing.
        ledger: The channel for the cost; None looks for the two above.

    Raises:
        ConfigError: the config names an unknown part, a role is unknown, or a model or a part has
            the wrong form.
    """
    order = RunOrder.of(
        config,
        model=model,
        models=models,
        parts=parts,
        extensions=extensions,
        judge=judge,
        drops=f"the tool {name}",
        prompts=prompts,
        trace=trace,
    )
    asked = order.config or default_config()
    order.extensions.check(asked)
    graph, beside = build_graph(order.models, parts=order.parts), _RunsOfTasks()

    async def think(
        question: str,
        runtime: ToolRuntime = None,  # type: ignore[assignment]  # absent where no agent calls
    ) -> tuple[Any, Any]:
        if not question.strip():
            raise ToolException("the question is empty; state it in full")
        if runtime is None:
            result = await drive(graph, question, asked, new_thread_id())
            return result.solution, report(result)
        messages = _messages_key(runtime)
        channel = ledger_channel(ledger) if messages is not None else None
        async with beside.run(runtime.tool_call_id):
            result = await subrun(
                graph,
                question,
                asked,
                write=get_stream_writer(),
                ledger=channel,
                call_id="" if _is_alone(runtime) else runtime.tool_call_id,
            )
        if channel is None or messages is None:
            return result.solution, report(result)
        message = ToolMessage(
            result.solution, tool_call_id=runtime.tool_call_id, artifact=report(result)
        )
        return Command(update={messages: [message], channel: charges(result)}), None

    def refuse(
        question: str,
        runtime: ToolRuntime = None,  # type: ignore[assignment]  # as above
    ) -> tuple[Any, Any]:
        raise ConfigError(f"{name} is asynchronous; call it, or its agent, by ainvoke or astream")

    return StructuredTool.from_function(
        func=refuse,
        coroutine=think,
        name=name,
        description=description,
        args_schema=Question,
        return_direct=return_direct,
        response_format="content_and_artifact",
        handle_tool_error=True,
    )


class _RunsOfTasks:
    """The runs that a tool makes side by side in one task of the agent.

    `ToolNode` ends with the first error and leaves the other tools running, beyond the end of the
    agent. So a run that fails raises its error only after the runs beside it have ended. If another
    tool failed, the continued agent waits for the run that is still going on, and takes its result.
    """

    def __init__(self) -> None:
        self._under_way: dict[str, dict[str | None, asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def run(self, call_id: str | None) -> AsyncIterator[None]:
        """Make a run of the calling task, for this call of the tool."""
        runs = self._under_way.setdefault(task_id(), {})
        loop = asyncio.get_running_loop()
        while (left := runs.get(call_id)) is not None and left.get_loop() is loop:
            await asyncio.wait([left])
        runs[call_id] = ended = loop.create_future()
        self._under_way[task_id()] = runs  # the run that was waited for has taken them away
        try:
            yield
        except Exception:
            self._end(runs, call_id, ended)
            if runs:
                await asyncio.wait(runs.values())
            raise
        finally:
            self._end(runs, call_id, ended)

    def _end(
        self,
        runs: dict[str | None, asyncio.Future[None]],
        call_id: str | None,
        ended: asyncio.Future[None],
    ) -> None:
        if runs.get(call_id) is ended:
            del runs[call_id]
        if not ended.done():
            ended.set_result(None)
        if not runs:
            self._under_way.pop(task_id(), None)


def _is_alone(runtime: ToolRuntime) -> bool:
    """Tell whether the calling task runs this tool and no other beside it."""
    path = runtime.config.get("metadata", {}).get("langgraph_path", ())
    if path and path[0] == PUSH:
        return True  # an agent of LangChain sends each call to a task of its own
    return any(len(calls) == 1 for calls in _calls(runtime).values())


def _messages_key(runtime: ToolRuntime) -> str | None:
    """Return the state's key of the messages that the tool is called from; None for a list."""
    return next(iter(_calls(runtime)), None) if isinstance(runtime.state, Mapping) else None


def _calls(runtime: ToolRuntime) -> dict[str, list[ToolCall]]:
    """Return the calls of the message that calls the tool, by the state's key of that message."""
    state = runtime.state if isinstance(runtime.state, Mapping) else {"": runtime.state}
    found: dict[str, list[ToolCall]] = {}
    for key, value in state.items():
        for message in reversed(value if isinstance(value, list) else []):
            if isinstance(message, AIMessage) and runtime.tool_call_id in [
                call["id"] for call in message.tool_calls
            ]:
                found[key] = message.tool_calls
                break
    return found
