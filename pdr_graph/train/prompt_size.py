"""How long the prompts of a run get: counted by the model's tokenizer, where there is a file of it.

Nothing heavy is imported: what reads a `tokenizer.json` is a library of its own.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pdr_graph.config import PDRConfig
from pdr_graph.eval.problems import Problem
from pdr_graph.llm.tokens import EstimateCounter, FileCounter, TokenCounter
from pdr_graph.prompts import Prompts

CHAT_TOKENS = 32
"""Charged for what a chat template puts around a prompt; a system prompt of its own is more."""
_LONGEST = 16
"""Problems that are counted: those with the most characters."""


@dataclass(frozen=True, slots=True)
class PromptSize:
    """Model tokens of the longest prompts."""

    direct: int
    """Without a workspace: long CoT, and drafts."""
    refine: int
    """With a workspace of kappa tokens."""
    problem: int
    """The longest problem alone."""
    exact: bool
    """Whether they were counted; an estimate is above the truth for most tokenizers."""


def prompt_size(model: Path, config: PDRConfig, problems: Sequence[Problem]) -> PromptSize:
    """Measure the longest prompts that a config makes of problems.

    Args:
        model: Folder; its `tokenizer.json` counts, without one lengths are estimated.
        config: The strategy, with the templates of its own.
        problems: One or more.

    Raises:
        ConfigError: a template is malformed, or the tokenizer is.
    """
    prompts = Prompts.load().of_run(config)
    counter = _counter(model)
    answer_format = prompts.render(f"answer_{config.answer}")
    longest = sorted(problems, key=lambda each: len(each.text), reverse=True)[:_LONGEST]

    async def most(name: str, **values: str) -> int:
        texts = [
            prompts.render(name, problem=each.text, answer_format=answer_format, **values)
            for each in longest
        ]
        return max([await counter.count(text) for text in texts]) + CHAT_TOKENS

    async def all_three() -> tuple[int, int, int]:
        problem = max([await counter.count(each.text) for each in longest])
        return await most("draft"), await most("improve", workspace=""), problem

    direct, refine, problem = asyncio.run(all_three())
    return PromptSize(direct, refine + config.kappa, problem, counter.source == "file")


def _counter(model: Path) -> TokenCounter:
    if not (model / "tokenizer.json").is_file():
        return EstimateCounter()
    try:
        import tokenizers  # noqa: F401  # the counter's own sentence names another extra
    except ImportError:
        return EstimateCounter()
    return FileCounter(model)
