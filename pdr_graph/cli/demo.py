"""`pdr-graph demo`: eight short problems on four strategies, with equal budgets, as they run."""

import asyncio
import math
import shlex
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pdr_graph.answers.exact import equal
from pdr_graph.cli.commands import DemoCommand
from pdr_graph.cli.live import REFRESH_S
from pdr_graph.cli.output import Output, joined, one_line, plain_table, table_of
from pdr_graph.cli.run_display import (
    RunProgress,
    answer_text,
    heading,
    result_parts,
    shown,
)
from pdr_graph.cli.signals import Stopper
from pdr_graph.cli.solve import inspect_line
from pdr_graph.cli.store import Saver, open_saver
from pdr_graph.config import RECOMMENDED, PDRConfig, preset
from pdr_graph.connect import check_settings, open_client
from pdr_graph.errors import CallError, QuorumError, counted, enumerated
from pdr_graph.eval.budgets import most_calls
from pdr_graph.events import RunEvent, is_event
from pdr_graph.extensions import Extensions
from pdr_graph.llm.client import ModelClient
from pdr_graph.run import Parts, Result, new_thread_id, solve
from pdr_graph.servers.llama import ready_weights
from pdr_graph.servers.weights import QWEN
from pdr_graph.settings import Settings, demo_model, load_settings
from pdr_graph.validation import check_problem


@dataclass(frozen=True, slots=True)
class DemoProblem:
    """A problem whose answer is known."""

    text: str
    answer: str


PROBLEMS = (
    DemoProblem("What is 48 - 19 + 27 - 6?", "50"),
    DemoProblem("What is 125 - 67 + 88?", "146"),
    DemoProblem("What is 234 + 189 - 77?", "346"),
    DemoProblem("What is 9 * 12 - 4 * 17?", "40"),
    DemoProblem("What is 13 * 6 - 29?", "49"),
    DemoProblem("Sam is 4 times as old as Tim. Tim is 9. How old will Sam be in 5 years?", "41"),
    DemoProblem("A rectangle is 9 cm long and 5 cm wide. What is its perimeter in cm?", "28"),
    DemoProblem("A pack has 6 pens. Ann buys 4 packs and gives 7 away. How many are left?", "17"),
)
"""Chosen by four drafts of the model for each problem: one to four are right, three on average.
Three problems were changed after a first run of all strategies, to be in that range."""

STRATEGIES: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "long_cot": {},
        "sr": {"widths": (1, 1)},
        "pdr": {"widths": (3,)},
        RECOMMENDED: {"widths": (3, 2, 2)},
    }
)
"""In the order they are run, with few enough calls to be watched."""
IN_FULL = "pdr"
"""The strategy whose run on a user's problem is shown in full, since it has the most parts."""

B_SEQ = 240
"""Completion tokens that each strategy may spend on its longest path, whatever its shape."""
BUDGETS: Mapping[str, object] = MappingProxyType(
    {"solution_tokens": 96, "kappa": 80, "temperature": 0.8, "seed": 7}
)
"""Small enough to be watched: minutes on two cores."""
_EXAMPLES = """Solve each problem in one line.

Problem: What is 12 + 30 - 5?
Solution: 12 + 30 = 42, 42 - 5 = 37. The answer is \\boxed{37}.

Problem: Ann has 3 bags of 4 sweets and eats 2. How many are left?
Solution: 3 * 4 = 12, 12 - 2 = 10. The answer is \\boxed{10}.
"""
PROMPTS: Mapping[str, str] = MappingProxyType(
    {
        "draft_prompt": f"{_EXAMPLES}\nProblem: $problem\nSolution:",
        "improve_prompt": (
            f"{_EXAMPLES}\nAttempts at the next problem, which may be wrong:\n$workspace\n\n"
            "Solve it in one line, as above. $answer_format\n\nProblem: $problem\nSolution:"
        ),
        "distill_prompt": (
            "Problem: $problem\n\n$candidates\n\nIn at most $words words: which final answers do "
            "these attempts reach, how many reach each, and where is a mistake?"
        ),
    }
)
"""Without examples an embedded model explains for 150 tokens what takes 30."""
SIGNIFICANT = 0.05


def demo_command(command: DemoCommand, output: Output) -> None:
    """Run the strategies and show what they answer and cost."""
    settings = load_settings(**command.settings)
    check_settings(settings)
    demo_model()  # a wrong name is said before anything starts
    if command.problem is None:
        _show_eight(settings, output)
        if (line := next_line(settings)) is not None:
            output.say("")
            output.say("ask the same model a problem of your own:")
            output.say(line, to_copy=True)
        return
    check_problem(command.problem)
    results = asyncio.run(_one_problem(command.problem, settings, output))
    if output.json:
        output.show_json([result.to_json() for result in results])
        return
    last = dict(zip(STRATEGIES, results, strict=True))[IN_FULL]
    inspect = inspect_line(last.thread_id, settings, command.settings)
    output.show(*problem_parts(command.problem, results, last, inspect))


def next_line(settings: Settings) -> str | None:
    """Return the command that asks the demonstration's model; None where it was another model."""
    if (file := _own_weights(settings)) is None:
        return None
    return f"pdr-graph solve --model {_in_home(file)} 'What is 17 + 25?'"


def _in_home(file: Path) -> str:
    """Return a path as a word of a shell, with `~` for the home folder."""
    with suppress(ValueError, RuntimeError):  # it is elsewhere, or there is no home
        return f"~/{shlex.quote(str(file.relative_to(Path.home())))}"
    return shlex.quote(str(file))


def _own_weights(settings: Settings) -> Path | None:
    """Return where the demonstration's own model is kept; None where the user has named another."""
    named = settings.base_url is not None or settings.model is not None
    return None if named or demo_model() == "tiny" else QWEN.path(settings.data_dir)


def problem_parts(
    problem: str, results: Sequence[Result], last: Result, inspect: str | None
) -> Iterator[RenderableType]:
    """Yield the strategies side by side on one problem, and the run of one of them in full."""
    yield from (Text(), heading(f"problem  {one_line(problem)}"), Text())
    yield from (_side_by_side(results), Text(), heading(f"{last.config.preset}, in full"))
    yield from result_parts(last, inspect)


def demo_config(name: str, fields: Mapping[str, object] = MappingProxyType({})) -> PDRConfig:
    """Return a strategy within the budgets of the demonstration.

    Each may write `B_SEQ` tokens on its longest path: few long calls, or many short ones.
    """
    config = preset(name, **{**BUDGETS, **PROMPTS, **fields})
    calls = most_calls(config, Extensions()).sequential
    return config.model_copy(update={"max_tokens": B_SEQ // calls})


@asynccontextmanager
async def _opened(settings: Settings, output: Output) -> AsyncIterator[tuple[Saver, ModelClient]]:
    """Open the store, and then the demonstration's model where the user has named none.

    In this order, so that a store that cannot work is reported before a model is fetched.
    """
    async with open_saver(settings, output.say) as saver:
        if _own_weights(settings) is not None:
            file = await ready_weights(settings.data_dir, output.say, weights=QWEN)
            settings = settings.model_copy(update={"model": str(file)})
        async with open_client(settings, announce=output.say) as client:
            yield saver, client


# ----------------------------------------------------------------------------- one problem


async def _one_problem(problem: str, settings: Settings, output: Output) -> list[Result]:
    results = []
    async with _opened(settings, output) as (saver, client):
        for name, fields in STRATEGIES.items():
            config = demo_config(name, fields)
            output.say(f"{name}: widths {','.join(map(str, config.widths)) or 'none'}")
            with shown(output, RunProgress(len(config.widths))) as on_event:
                result = await solve(
                    problem,
                    config,
                    model=client,
                    checkpointer=saver,
                    thread_id=f"demo-{name}-{new_thread_id()}",
                    parts=Parts(on_event=on_event),
                )
            results.append(result)
    return results


def _side_by_side(results: Sequence[Result]) -> Table:
    titles = ("strategy", "answer", "calls", "B_total", "B_seq", "seconds")
    rows = [
        (
            result.config.preset,
            answer_text(result.answer),
            str(_calls(result)),
            f"{result.ledger.b_total:,}",
            f"{result.ledger.b_seq:,}",
            f"{result.seconds:.1f}",
        )
        for result in results
    ]
    return table_of(titles, rows, text=("answer",))


def _calls(result: Result) -> int:
    return sum(row["calls"] for row in result.ledger.rows)


# ---------------------------------------------------------------------------- eight problems


@dataclass(slots=True)
class DemoRun:
    """One strategy at one problem."""

    problem: DemoProblem
    latest: str | None = None
    """The answer that came last, of whatever draft; None before the first."""
    result: Result | None = None
    """None until the run has ended."""
    failure: str = ""
    """Why there is no result; empty where there is one, or may be one."""

    @property
    def is_right(self) -> bool:
        """Whether the final answer is the known one."""
        found = None if self.result is None else self.result.answer
        return found is not None and bool(equal(found, self.problem.answer))

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.result is not None or bool(self.failure)

    def take(self, event: RunEvent) -> None:
        """Keep the answer of a draft or of the solution."""
        if is_event(event) and event["event"] in {"draft", "solution"}:
            self.latest = event["answer"] or self.latest


@dataclass(slots=True)
class StrategyRuns:
    """One strategy at all problems."""

    name: str
    config: PDRConfig
    runs: list[DemoRun]
    seconds: float = 0.0
    """Wall-clock time of all runs side by side."""

    @property
    def results(self) -> list[Result]:
        """The runs that have ended well."""
        return [run.result for run in self.runs if run.result is not None]

    @property
    def right(self) -> int:
        """Problems with the right answer."""
        return sum(run.is_right for run in self.runs)

    @property
    def b_total(self) -> int:
        """Prompt and completion tokens of all calls."""
        return sum(result.ledger.b_total for result in self.results)

    @property
    def written(self) -> int:
        """Completion tokens of all calls."""
        return sum(result.ledger.total()["completion_tokens"] for result in self.results)

    @property
    def b_seq(self) -> int:
        """Tokens on a run's longest path, as the mean of the runs."""
        return round(sum(each.ledger.b_seq for each in self.results) / max(1, len(self.results)))

    def to_json(self) -> dict[str, Any]:  # Any: plain JSON data
        """Return the row of the table as `--json` prints it."""
        return {
            "strategy": self.name,
            "right": self.right,
            "of": len(self.runs),
            "calls": sum(map(_calls, self.results)),
            "completion_tokens": self.written,
            "b_total": self.b_total,
            "b_seq_mean": self.b_seq,
            "b_seq_allotted": B_SEQ,
            "seconds": round(self.seconds, 3),
        }


@dataclass(slots=True)
class DemoBoard:
    """All answers, as they come: a line for each problem, a column for each strategy."""

    strategies: list[StrategyRuns]
    began: float = field(default_factory=perf_counter)

    @classmethod
    def of(cls, problems: Sequence[DemoProblem]) -> "DemoBoard":
        """Return the board on which nothing has run."""
        return cls(
            [
                StrategyRuns(name, demo_config(name, fields), [DemoRun(each) for each in problems])
                for name, fields in STRATEGIES.items()
            ]
        )

    @property
    def is_over(self) -> bool:
        """Whether every run has ended."""
        return all(run.is_over for run in self._all())

    def _all(self) -> Iterator[DemoRun]:
        return chain.from_iterable(each.runs for each in self.strategies)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # On a narrow terminal columns stand closer, and problems are cut.
        gap = 2 if options.max_width >= 76 else 1
        answers = [one_line(run.problem.answer) for run in self.strategies[0].runs]
        wide = max(map(len, ("answer", *answers)))
        columns = [max(6, len(each.name)) for each in self.strategies]
        room = options.max_width - sum(columns) - wide - gap * (len(columns) + 1)
        table = plain_table(gap=gap)
        table.add_column("problem", no_wrap=True)
        titles = ("answer", *(each.name for each in self.strategies))
        for title, width in zip(titles, (wide, *columns), strict=True):
            # Full width from the start, so that the table does not jump as answers come.
            table.add_column(title, justify="right", no_wrap=True, min_width=width)
        for index, answer in enumerate(answers):
            problem = Text(one_line(self.strategies[0].runs[index].problem.text))
            problem.truncate(max(8, room), overflow="ellipsis")
            cells = (_cell(each.runs[index], options) for each in self.strategies)
            table.add_row(problem, answer, *cells)
        yield table

    def facts(self) -> str:
        """Say in one line how far it is."""
        over = sum(run.is_over for run in self._all())
        tokens = sum(each.written for each in self.strategies)
        seconds = perf_counter() - self.began
        every = sum(len(each.runs) for each in self.strategies)
        return f"{over} of {every} runs · {tokens:,} tokens written · {seconds:.0f} s"


CELL = 6
"""Characters of an answer with its mark on a terminal; a pipe gets the whole answer."""


def _cell(run: DemoRun, options: ConsoleOptions) -> Text:
    """Return an answer with its mark; a dim one is of a draft, and may change."""
    ascii_only = options.ascii_only
    if run.result is None:
        text = (run.failure and "failed") or (run.latest and _short(run.latest, options)) or ""
        return Text(text, "yellow" if run.failure else "dim")
    mark, style = ("+", "green") if run.is_right else ("-", "red")
    if not ascii_only:
        mark = {"+": "✓", "-": "✗"}[mark]
    answer = run.result.answer
    return Text(f"{_short(answer, options) if answer else 'none'} {mark}", style)


def _short(answer: str, options: ConsoleOptions) -> str:
    answer, most = one_line(answer), CELL - 2
    if len(answer) <= most or not options.is_terminal:
        return answer
    return answer[: most - 1] + ("~" if options.ascii_only else "…")


class _LiveBoard:
    """A board with a line of facts beneath it."""

    def __init__(self, board: DemoBoard) -> None:
        self._board = board

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._board
        yield Text(self._board.facts(), "dim", no_wrap=True, overflow="ellipsis")


@contextmanager
def _live(output: Output, board: DemoBoard) -> Iterator[None]:
    """Show the board on a terminal while the block lasts."""
    if not output.is_live:
        yield
        return
    with Live(
        _LiveBoard(board),
        console=output.stderr,
        refresh_per_second=1 / REFRESH_S,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    ):
        yield


def _show_eight(settings: Settings, output: Output) -> None:
    board = DemoBoard.of(PROBLEMS)
    try:
        asyncio.run(_run_board(board, settings, output))
    finally:
        # Whatever ended it: what is done so far is shown.
        if any(each.results for each in board.strategies):
            _show_board(board, output)


async def _run_board(board: DemoBoard, settings: Settings, output: Output) -> None:
    stopper = Stopper(output.tell)

    def way_on() -> str:
        return "the demonstration was stopped; run it again to see all of it"

    with stopper.ending(way_on, lambda: False):
        async with _opened(settings, output) as (saver, client):
            with _live(output, board):
                for strategy in board.strategies:
                    await _run_strategy(strategy, client, saver, output)


async def _run_strategy(
    strategy: StrategyRuns, client: ModelClient, saver: Saver, output: Output
) -> None:
    """Run a strategy on all problems at once, so that the model always has something to do."""
    began = perf_counter()

    async def go(number: int, run: DemoRun) -> None:
        try:
            run.result = await solve(
                run.problem.text,
                strategy.config,
                model=client,
                checkpointer=saver,
                thread_id=f"demo-{strategy.name}-{number}-{new_thread_id()}",
                parts=Parts(on_event=run.take),
            )
        except (CallError, QuorumError) as error:
            run.failure = one_line(str(error))
        strategy.seconds = perf_counter() - began
        if not output.is_live:
            output.say(f"{strategy.name}, problem {number}: {_said(run)}")

    tasks = [
        asyncio.create_task(go(number, run)) for number, run in enumerate(strategy.runs, start=1)
    ]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    failures = [run.failure for run in strategy.runs if run.failure]
    if failures:
        failed = f"{counted(len(failures), 'run')} failed"
        output.say(f"{strategy.name}: {failed}, whose tokens are not counted: {failures[0]}")


def _said(run: DemoRun) -> str:
    if run.result is None:
        return f"failed, {run.failure}"
    answer = one_line(run.result.answer or "no answer")
    right = "right" if run.is_right else f"wrong, it is {run.problem.answer}"
    tokens = run.result.ledger.b_total
    return joined([f"{answer} is {right}", f"{tokens:,} tokens", f"{run.result.seconds:.1f} s"])


def _show_board(board: DemoBoard, output: Output) -> None:
    done = [each for each in board.strategies if each.results]
    if output.json:
        output.show_json(
            {
                "runs": [
                    {
                        "problem": run.problem.text,
                        "gold": run.problem.answer,
                        "right": run.is_right,
                        **run.result.to_json(),
                    }
                    for each in done
                    for run in each.runs
                    if run.result is not None
                ],
                "table": [each.to_json() for each in done],
                "seen": _sentence(board),
            }
        )
        return
    output.show(*board_parts(board))


def board_parts(board: DemoBoard) -> Iterator[RenderableType]:
    """Yield all answers, what each strategy cost, and a sentence on what was seen."""
    done = [each for each in board.strategies if each.results]
    yield from (Text(), board, Text(), _totals(done), Text())
    words = (
        "tokens: of prompts and answers, all problems together (B_total). B_seq: those on a run's "
        f"longest path, mean of a problem. Each strategy may write {B_SEQ} tokens on that path."
    )
    yield from (Text(words, "dim"), Text(), Text(_sentence(board), "bold"))


def _sentence(board: DemoBoard) -> str:
    done = [each for each in board.strategies if each.results]
    return seen(done) if board.is_over else stopped_sentence(board)


def _totals(strategies: Sequence[StrategyRuns]) -> Table:
    titles = ("strategy", "right", "calls", "written", "tokens", "B_seq", "seconds")
    rows = [
        (
            each.name,
            f"{each.right} of {len(each.runs)}",
            str(sum(map(_calls, each.results))),
            f"{each.written:,}",
            f"{each.b_total:,}",
            f"{each.b_seq:,}",
            f"{each.seconds:.1f}",
        )
        for each in strategies
    ]
    return table_of(titles, rows, gap=2)


def seen(strategies: Sequence[StrategyRuns]) -> str:
    """Return the sentence on what was seen, whichever strategy did best."""
    of = len(strategies[0].runs)
    ranked = sorted(strategies, key=lambda each: (-each.right, each.b_total))
    best, last = ranked[0], ranked[-1]
    if best.right == last.right:
        return (
            f"All were right on {best.right} of {of}, and {best.name} spent the fewest tokens, "
            f"{best.b_total:,}."
        )
    leaders = [each for each in ranked if each.right == best.right]
    others = [each for each in ranked if each.right != best.right]
    named = [f"{each.name} ({each.b_total:,} tokens)" for each in leaders]
    lead = enumerated(named)
    rest = ", ".join(f"{each.name} on {each.right} ({each.b_total:,})" for each in others)
    chance = _by_luck(best, last)
    luck = (
        f"with {of} problems even that may be luck"
        if chance > SIGNIFICANT
        else f"more than luck between the first and the last (sign test, p = {chance:.2f})"
    )
    return f"Most right: {lead}, on {best.right} of {of}; then {rest}; {luck}."


def _by_luck(one: StrategyRuns, other: StrategyRuns) -> float:
    """Return the two-sided p of a sign test over the problems on which two strategies differ."""
    pairs = [
        (left.is_right, right.is_right) for left, right in zip(one.runs, other.runs, strict=True)
    ]
    wins, losses = pairs.count((True, False)), pairs.count((False, True))
    num = wins + losses
    tail = sum(math.comb(num, each) for each in range(max(wins, losses), num + 1))
    return min(1.0, 2.0 * tail / float(2**num))


def stopped_sentence(board: DemoBoard) -> str:
    """Return the sentence for a demonstration that was stopped."""
    runs = [run for each in board.strategies for run in each.runs]
    return f"Stopped after {sum(run.is_over for run in runs)} of {len(runs)} runs: no comparison."
