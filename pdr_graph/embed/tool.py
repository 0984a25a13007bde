"""PDR as a tool of agents: `create_agent(model, tools=[as_tool(preset("pdr"), model=model)])`."""

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, StructuredTool, ToolException
from langgraph.config import get_stream_writer
from langgraph.prebuilt import ToolRuntime
from langgraph.types import Command
from pydantic import BaseModel, ConfigDict

from pdr_graph.config import PDRConfig
from pdr_graph.embed.subrun import charge, check_given, report, subrun
from pdr_graph.errors import ConfigError
from pdr_graph.extensions import Extensions
from pdr_graph.graph import build_graph
from pdr_graph.llm.client import ModelClient
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
    config: PDRConfig | None = None,
    *,
    model: BaseChatModel | ModelClient,
    name: str = "think_hard",
    description: str = DESCRIPTION,
    return_direct: bool = False,
    extensions: Extensions | None = None,
    prompts: Prompts | None = None,
    trace: Trace | None = None,
) -> BaseTool:
    """Return a tool that answers a question by a run of PDR.

    In an agent of LangGraph (`create_agent`, `ToolNode`) the run is a subgraph: the agent's
    checkpointer keeps it, the agent's stream tells it, and a resumed agent resumes it half-way. Its
    cost goes to the channel `ledger: Annotated[list[LedgerRow], merge_rows]` of the agent's state,
    if there is one. Called by hand, the run is not kept. The artifact of the tool's message holds
    answer, verdict and ledger.

    Args:
        config: None is `PDRConfig()`.
        model: What reasons; it need not be the agent's model.
        name: Name of the tool for the agent's model.
        description: Tells the agent's model when to use the tool.
        return_direct: Whether the agent ends with the tool's answer.
        extensions: Distillers, finishes and verifiers of your own.
        prompts: None is the built-in ones.
        trace: Receives every model call in full; None keeps nothing.

    Raises:
        ConfigError: the config names an unknown part, or the model is none.
    """
    config = PDRConfig() if config is None else config
    extensions = extensions or Extensions()
    check_given(config, model, extensions)
    graph = build_graph(model, extensions=extensions, prompts=prompts, trace=trace)

    async def think(
        question: str,
        runtime: ToolRuntime = None,  # type: ignore[assignment]  # absent where no agent calls
    ) -> tuple[Any, Any]:
        if not question.strip():
            raise ToolException("the question is empty; state it in full")
        if runtime is None:
            result = await drive(graph, question, config, new_thread_id())
            return result.solution, report(result)
        result = await subrun(graph, question, config, write=get_stream_writer())
        message = ToolMessage(
            result.solution, tool_call_id=runtime.tool_call_id, artifact=report(result)
        )
        # LangGraph ignores keys that are no channel of the agent.
        return Command(update={"messages": [message], "ledger": [charge(result)]}), None

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
