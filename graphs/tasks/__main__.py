"""The command line of the three tasks."""

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage
from langgraph.graph.state import CompiledStateGraph

from graphs.opening import form_config
from graphs.tasks import __doc__ as usage
from graphs.tasks import code, plan, summary
from pdr_graph import Models, PDRConfig, PDRError
from pdr_graph.connect import open_models
from pdr_graph.events import Narration, is_event

TASK = "Write a function fib(n) that returns the n-th Fibonacci number, with fib(0) = 0."
TESTS = "assert [fib(n) for n in range(8)] == [0, 1, 1, 2, 3, 5, 8, 13]"
_VERDICTS = {True: "accepted", False: "rejected", None: "undecided"}


async def write_plan(models: Models, asked: argparse.Namespace) -> int:
    """Print a plan."""
    config = form_config(preset="pdr", **plan.FIELDS)
    entry = {"messages": [HumanMessage(f"Make a plan: {asked.goal}")]}
    state = await _carry_out(plan.build(models, config), entry, config)
    message = state["messages"][-1]
    _print(message.text)
    accepted = message.response_metadata["pdr"]["verdict"]["accepted"]
    _say(f"the judge: {_VERDICTS[accepted]}")
    return 0


async def write_summary(models: Models, asked: argparse.Namespace) -> int:
    """Print a summary."""
    config = form_config(preset="pdr", **summary.FIELDS)
    entry = {"document": asked.document, "words": asked.words}
    state = await _carry_out(summary.build(models, config), entry, config)
    _print(state["summary"])
    _say(f"tokens: {state['tokens']}")
    return 0


async def write_code(models: Models, asked: argparse.Namespace) -> int:
    """Print code; return 1 if it fails its tests."""
    config = form_config(preset="pdr", **code.FIELDS)
    entry = {"task": asked.task, "tests": asked.tests or TESTS}
    state = await _carry_out(code.build(models, config), entry, config)
    _print(state["code"])
    _say(state["report"])
    return 0 if state["passed"] else 1


# Any: each graph has a state of its own.
async def _carry_out(
    graph: CompiledStateGraph[Any, None, Any, Any], entry: dict[str, Any], config: PDRConfig
) -> dict[str, Any]:
    """Run a graph, tell the events of the run inside it, and return its last state."""
    narration, state = Narration(len(config.widths)), entry
    async for part in graph.astream(entry, stream_mode=["custom", "values"], version="v2"):
        if part["type"] == "values":
            state = part["data"]
        elif is_event(part["data"]) and (line := narration.line(part["data"])):
            _say(line.splitlines()[0])
    return state


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _text_of(path: str) -> str:
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{path!r} cannot be read: {error}") from None
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{path!r} holds no text")
    return text


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m graphs.tasks",
        description=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(required=True, metavar="plan|summary|code")
    kind = kinds.add_parser("plan", help="a plan, judged by the model")
    kind.add_argument("goal", help="what is to be planned")
    kind.set_defaults(write=write_plan)
    kind = kinds.add_parser("summary", help="a summary of a document")
    kind.add_argument(
        "document", type=_text_of, metavar="FILE", help="text, or - for standard input"
    )
    kind.add_argument("--words", type=int, default=80, help="about how long (default: 80)")
    kind.set_defaults(write=write_summary)
    kind = kinds.add_parser("code", help="code that must pass tests; exit code 1 if it fails")
    kind.add_argument("task", nargs="?", default=TASK, help=f"default: {TASK}")
    tests = f"Python that raises if the code is wrong; default: {TESTS}"
    kind.add_argument("--tests", type=_text_of, metavar="FILE", help=tests)
    kind.set_defaults(write=write_code)
    return parser


async def main(asked: argparse.Namespace) -> int:
    """Carry out one task on the configured model."""
    async with open_models(announce=_say) as models:
        exit_code: int = await asked.write(models, asked)
    return exit_code


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main(parser().parse_args())))
    except PDRError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
