"""Stand-ins that are handed in the way the real parts are, and fit in the head."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from hypothesis import strategies as st
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from pdr_graph.answers import answer_kind
from pdr_graph.budget import empty_row
from pdr_graph.config import make_config
from pdr_graph.llm.asker import Asker
from pdr_graph.llm.client import ModelClient
from pdr_graph.llm.retry import Retry
from pdr_graph.llm.tokens import Source, TokenCounter, estimate_tokens
from pdr_graph.llm.usage import Meter
from pdr_graph.prompts import Prompts
from pdr_graph.step import Step
from pdr_graph.trace import TraceRecord
from pdr_graph.types import Draft, LedgerRow, Solution

NO_WAIT = Retry(attempts=3, backoff_s=0.001, max_wait_s=0.01)
"""Retries without waiting for it."""

PROMPTS = Prompts.load()


class ScriptedChat(BaseChatModel):
    """Answers from a list, in order, and remembers what it was asked; an exception is raised."""

    replies: list[Any] = Field(default_factory=list)
    """Texts, messages or exceptions; the last one is repeated."""
    prompts: list[str] = Field(default_factory=list)
    parameters: list[dict[str, Any]] = Field(default_factory=list)
    """The keyword arguments of each call."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        reply = self.replies[min(len(self.prompts), len(self.replies) - 1)]
        self.prompts.append(messages[0].text)
        self.parameters.append(kwargs)
        if isinstance(reply, BaseException):
            raise reply
        message = reply if isinstance(reply, AIMessage) else AIMessage(reply)
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._generate(messages, stop, None, **kwargs)


@dataclass
class CountBy:
    """A token counter made of a function; `asked` is how often it counted."""

    length: Callable[[str], int]
    source: Source = "file"
    asked: int = 0

    async def count(self, text: str) -> int:
        """Return the function's count."""
        self.asked += 1
        return self.length(text)


def num_words(text: str) -> int:
    """Count words."""
    return len(text.split())


def num_bytes(text: str) -> int:
    """Count UTF-8 bytes, the densest that a tokenizer can be."""
    return len(text.encode("utf-8", "surrogatepass"))


def every(k: int) -> Callable[[str], int]:
    """Count one token for every k characters begun."""
    return lambda text: -(-len(text) // k)


def uneven(text: str) -> int:
    """Count every byte of a mark, one token for seven of anything else: density jumps about."""
    marks = "".join(each for each in text if not each.isalnum() and not each.isspace())
    return num_bytes(marks) + -(-(len(text) - len(marks)) // 7)


LENGTHS: Mapping[str, Callable[[str], int]] = {
    "estimate": estimate_tokens,
    "words": num_words,
    "bytes": num_bytes,
    "every 3rd": every(3),
    "every 40th": every(40),
    "uneven": uneven,
}
"""Ways to count tokens that differ as tokenizers do, and more."""

_MARKS = "a 7 Reasoning $x^2$ }{ \\boxed{ <think> [...] 😀 שלום مرحبا 漢字 é word"
_BLANKS = " |\t|\n|\n\n|\x00|\u202e|\u0301|\u200d|\ud800|\udfff"
ODD_PIECES = (*_MARKS.split(), *_BLANKS.split("|"))
"""What models and users may write: marks, emoji, right-to-left text, halves of a character."""

odd_texts = st.one_of(
    st.text(st.characters(codec=None), max_size=300),
    st.lists(st.sampled_from(ODD_PIECES), max_size=100).map("".join),
    st.tuples(st.sampled_from(ODD_PIECES), st.integers(1, 2000)).map(
        lambda each: each[0] * each[1]
    ),
)
"""Any text at all, short or long, lone surrogates included."""


def write_tokenizer(file: Path) -> None:
    """Train a byte-level tokenizer on the Python manual, in half a second, and write it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=6000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(topics.values(), trainer)
    # As many models have it: a token in front, which counts only with special tokens.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(file))


@dataclass
class ListTrace:
    """Keeps every record in a list."""

    records: list[TraceRecord] = field(default_factory=list)

    async def record(self, call: TraceRecord) -> None:
        """Keep one call."""
        self.records.append(call)


def make_draft(index: int, answer: str | None = None, solution: str | None = None) -> Draft:
    """Return a usable draft; without a solution one is made up around the answer."""
    if solution is None:
        stated = f"\n\nThe answer is \\boxed{{{answer}}}." if answer else ""
        solution = f"Attempt number {index} reasons its way.{stated}"
    return Draft(
        round=1,
        index=index,
        solution=solution,
        answer=answer,
        tokens=10,
        truncated=False,
        error=None,
        detail="",
        seed=index,
        seconds=0.1,
    )


def drafts_with(*answers: str | None) -> list[Draft]:
    """Return one draft for each answer."""
    return [make_draft(index, answer) for index, answer in enumerate(answers)]


def make_step(
    drafts: Sequence[Draft] = (),
    replies: Sequence[object] = (),
    *,
    problem: str = "What is 6 x 7?",
    next_width: int = 1,
    counter: TokenCounter | None = None,
    window: int | None = None,
    solution: Solution | None = None,
    client: ModelClient | None = None,
    seed: int = 0,
    **fields: object,
) -> Step:
    """Return a step over a scripted model, or a real one; loose fields are those of the config."""
    config = make_config(**{"seed": seed, **fields})
    client = client or ModelClient(
        ScriptedChat(replies=list(replies)),
        counter=counter or CountBy(estimate_tokens),
        retry=NO_WAIT,
        window=window,
    )
    ask = Asker(
        client=client,
        prompts=PROMPTS,
        trace=ListTrace(),
        config=config,
        meter=Meter("distiller", 1, 2),
        node="distiller",
        round_number=1,
        thread_id="t",
    )
    return Step(
        problem=problem,
        problem_tokens=client.counter.length(problem) if isinstance(counter, CountBy) else 8,
        config=config,
        drafts=list(drafts),
        workspaces=[],
        next_width=next_width,
        answers=answer_kind(config.answer),
        ask=ask,
        rng=random.Random(seed),
        solution=solution,
    )


def prompts_of(step: Step) -> list[str]:
    """Return what the step's model was asked."""
    model = step.ask.client.model
    assert isinstance(model, ScriptedChat)
    return model.prompts


def make_row(**fields: object) -> LedgerRow:
    """Return an empty ledger row with some fields set."""
    row = empty_row(1, "drafter", 1)
    row.update(fields)  # type: ignore[typeddict-item]  # names are the test's own
    return row
