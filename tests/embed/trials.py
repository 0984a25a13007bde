"""What the trials of embedding are made of: a model that counts, parents, and ways to stop them.

A trial starts a parent of some kind on one question, stops it at some point, goes on in some way,
and compares. The model answers by what it is asked, so a wrong answer shows whose it was.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from pydantic import PrivateAttr

from pdr_graph import ModelClient, PDRConfig, as_tool, build_graph, pdr_node, preset
from pdr_graph.budget import merge_rows
from pdr_graph.llm.retry import Retry
from pdr_graph.types import LedgerRow, Solution
from tests.fakes import CountBy, num_words

ANSWERS = {"ALPHA": "1", "BETA": "2", "GAMMA": "3", "DELTA": "4"}
"""The questions that the model knows, and its answers."""

_NAMES = {answer: name for name, answer in ANSWERS.items()}
_ASKED = re.compile("|".join(ANSWERS))
_STATED = re.compile(r"boxed\{(\d)\}")
PROMPT_TOKENS, COMPLETION_TOKENS = 11, 7
"""What every call costs."""


def question(name: str) -> str:
    """Return a question in words."""
    return f"What is {name}?"


def answer_in(text: str) -> str:
    """Return the question whose answer a text states."""
    (stated,) = set(_STATED.findall(text))
    return _NAMES[stated]


class RefusedError(Exception):
    """What a provider's SDK raises."""

    def __init__(self, status: int) -> None:
        self.status_code = status
        super().__init__(f"refused with {status}")


@dataclass
class Asked:
    """One call that reached the model."""

    name: str
    """The question."""
    key: tuple[str, object]
    """Prompt and seed: two calls with one key are the same call."""
    number: int
    """From 1, over all calls."""
    read: frozenset[str]
    """The questions whose answers its prompt states."""
    finished: bool = False


class Oracle(BaseChatModel):
    """Answers the last question that its prompt names; counts calls, and stops on request."""

    seed: int | None = None
    """Declared, so that each call brings its own."""
    holds_from: int | None = None
    """Calls from this number on never get a reply; None replies to all."""
    refuses_from: int | None = None
    """Calls from this number on are refused; None refuses none."""
    refuses: frozenset[int] = frozenset()
    """Numbers of single calls that are refused."""
    refuses_about: str = ""
    """A question that is refused whenever it is asked."""
    status: int = 503
    _asked: list[Asked] = PrivateAttr(default_factory=list)
    _arrived: asyncio.Condition = PrivateAttr(default_factory=asyncio.Condition)
    _after: Callable[[Asked], None] | None = PrivateAttr(None)

    @property
    def asked(self) -> list[Asked]:
        """All calls so far."""
        return self._asked

    @property
    def num_calls(self) -> int:
        """How many calls were received, finished or not."""
        return len(self._asked)

    def count(self, name: str) -> int:
        """Return how many calls were about a question."""
        return sum(each.name == name for each in self._asked)

    def num_repeated(self) -> int:
        """Return how many calls were answered that had been answered before."""
        finished = Counter(each.key for each in self._asked if each.finished)
        return finished.total() - len(finished)

    def num_mixed(self) -> int:
        """Return how many calls read the answer to another question than their own."""
        return sum(not each.read <= {each.name} for each in self._asked)

    def forget(self) -> None:
        """Take all calls so far for new ones when they are repeated."""
        for each in self._asked:
            each.finished = False

    def behave(self) -> None:
        """Hold and refuse nothing any more."""
        self.holds_from = self.refuses_from = self._after = None
        self.refuses, self.refuses_about = frozenset(), ""

    def on_reply(self, then: Callable[[Asked], None] | None) -> None:
        """Call a function at the end of each call, just before its reply is returned."""
        self._after = then

    async def arrived(self, number: int) -> None:
        """Wait until a call has been received."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: self.num_calls >= number)

    @property
    def _llm_type(self) -> str:
        return "oracle"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        raise NotImplementedError("the package asks asynchronously")

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        text = "\n".join(each.text for each in messages)
        name = _ASKED.findall(text)[-1]
        read = frozenset(_NAMES[stated] for stated in _STATED.findall(text))
        call = Asked(name, (text, kwargs.get("seed")), self.num_calls + 1, read)
        self._asked.append(call)
        async with self._arrived:
            self._arrived.notify_all()
        if self.holds_from is not None and call.number >= self.holds_from:
            await asyncio.Event().wait()
        late = self.refuses_from is not None and call.number >= self.refuses_from
        if late or call.number in self.refuses or name == self.refuses_about:
            raise RefusedError(self.status)
        await asyncio.sleep(0)
        call.finished = True
        if self._after is not None:
            self._after(call)
        usage = UsageMetadata(
            input_tokens=PROMPT_TOKENS,
            output_tokens=COMPLETION_TOKENS,
            total_tokens=PROMPT_TOKENS + COMPLETION_TOKENS,
        )
        reply = AIMessage(f"So it is.\n\n\\boxed{{{ANSWERS[name]}}}", usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=reply)])


def client_of(oracle: Oracle) -> ModelClient:
    """Return a client that asks once and counts words."""
    return ModelClient(oracle, retry=Retry(attempts=1), counter=CountBy(num_words))


FIRST = preset("pdr", widths=(2, 1), kappa=64, max_tokens=64, solution_tokens=32, seed=7)
FIRST_CALLS = 2 + 1 + 1 + 1 + 1
OTHER = preset("pdr", widths=(1,), kappa=64, max_tokens=64, solution_tokens=32, seed=8)
"""The config of a new question, so that a run that kept the old one shows."""
OTHER_CALLS = 1 + 1 + 1


class Charged(MessagesState):
    """A conversation and what it cost."""

    ledger: Annotated[list[LedgerRow], merge_rows]


class Sheet(TypedDict, total=False):
    """A state that shares its names with a run's."""

    problem: str
    solution: Solution | None
    ledger: Annotated[list[LedgerRow], merge_rows]


Graph = Any  # LangGraph's compiled graph, of whatever state
Saver = BaseCheckpointSaver[str]


def root(client: ModelClient, config: PDRConfig, saver: Saver | None, extensions: Any) -> Graph:
    """Return the graph itself."""
    return build_graph(client, default=config, checkpointer=saver, extensions=extensions)


def graph_node(
    client: ModelClient, config: PDRConfig, saver: Saver | None, extensions: Any
) -> Graph:
    """Return a parent that holds the compiled graph as a node."""
    builder = StateGraph(Sheet, context_schema=PDRConfig)
    builder.add_node("pdr", build_graph(client, default=config, extensions=extensions))
    builder.add_edge(START, "pdr")
    return builder.compile(checkpointer=saver)


def node(client: ModelClient, config: PDRConfig, saver: Saver | None, extensions: Any) -> Graph:
    """Return a parent that holds `pdr_node`, between two nodes of its own."""
    builder = StateGraph(Charged)
    builder.add_node("before", lambda state: {})
    builder.add_node("reason", pdr_node(config, model=client, extensions=extensions))
    builder.add_node("after", lambda state: {})
    builder.add_edge(START, "before")
    builder.add_edge("before", "reason")
    builder.add_edge("reason", "after")
    return builder.compile(checkpointer=saver)


def between(client: ModelClient, config: PDRConfig, saver: Saver | None, extensions: Any) -> Graph:
    """Return a parent whose node is a graph that holds `pdr_node` and shares the ledger."""
    middle = StateGraph(Charged)
    middle.add_node("reason", pdr_node(config, model=client, extensions=extensions))
    middle.add_edge(START, "reason")
    builder = StateGraph(Charged)
    builder.add_node("middle", middle.compile())
    builder.add_edge(START, "middle")
    return builder.compile(checkpointer=saver)


def calls_for(messages: Sequence[BaseMessage]) -> list[ToolCall]:
    """Return a call of the tool for each question of the user's last message."""
    asked = next(each for each in reversed(messages) if isinstance(each, HumanMessage))
    return [
        ToolCall(name="think_hard", args={"question": question(name)}, id=f"{name}-{len(messages)}")
        for name in _ASKED.findall(asked.text)
    ]


def caller(state: Charged) -> dict[str, Any]:
    """Call the tool as an agent's model would."""
    return {"messages": [AIMessage("", tool_calls=calls_for(state["messages"]))]}


def tool(client: ModelClient, config: PDRConfig, saver: Saver | None, extensions: Any) -> Graph:
    """Return a parent that calls PDR as a tool in a `ToolNode`."""
    builder = StateGraph(Charged)
    builder.add_node("caller", caller)
    tools = [as_tool(config, model=client, extensions=extensions)]
    builder.add_node("tools", ToolNode(tools))
    builder.add_edge(START, "caller")
    builder.add_edge("caller", "tools")
    return builder.compile(checkpointer=saver)


@dataclass(frozen=True)
class Parent:
    """A graph around PDR, or PDR's own."""

    build: Callable[[ModelClient, PDRConfig, Saver | None, Any], Graph]
    questions: tuple[str, ...] = ("ALPHA",)
    """Asked in one input."""
    new: tuple[str, ...] = ("BETA",)
    """Asked by the input that comes after the stop."""
    by_context: bool = False
    """Whether the config is the graph's context, and the state names a problem."""
    is_ours: bool = False
    """Whether it is the graph itself, without a parent."""

    def entry(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the input that asks these questions."""
        text = " ".join(map(question, names))
        return {"problem": text} if self.by_context else {"messages": [("user", text)]}

    def answers(self, state: dict[str, Any], names: Sequence[str]) -> dict[str, str]:
        """Return whose answer each of the last input's questions got."""
        if self.by_context:
            return {names[0]: answer_in(state["solution"]["text"])}
        called = {
            each.tool_call_id.partition("-")[0]: answer_in(each.text)
            for each in state["messages"]
            if isinstance(each, ToolMessage) and each.name == "think_hard"
        }
        if called:
            return {name: called[name] for name in names if name in called}
        return {names[0]: answer_in(state["messages"][-1].text)}


PARENTS = {
    "root": Parent(root, by_context=True, is_ours=True),
    "graph-node": Parent(graph_node, by_context=True),
    "node": Parent(node),
    "between": Parent(between),
    "tool": Parent(tool),
    "tools": Parent(tool, ("ALPHA", "BETA"), ("GAMMA", "DELTA")),
}
