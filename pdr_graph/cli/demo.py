"""`pdr-graph demo`: four strategies on one problem, their ledgers side by side."""

import asyncio
from collections.abc import Mapping
from types import MappingProxyType

from rich import box
from rich.table import Table
from rich.text import Text

from pdr_graph.cli.options import Given
from pdr_graph.cli.output import Output, one_line
from pdr_graph.cli.progress import Progress, shown
from pdr_graph.cli.render import answer_text, heading, result_parts
from pdr_graph.cli.solve import command_line
from pdr_graph.cli.store import MEMORY, open_saver
from pdr_graph.connect import open_client
from pdr_graph.run import Parts, Result, new_thread_id, solve
from pdr_graph.servers.llama import small_config
from pdr_graph.settings import load_settings

PROBLEM = "Tom has 3 boxes with 4 apples in each box. How many apples does Tom have?"

STRATEGIES: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "long_cot": {},
        "sr": {"widths": (1,)},
        "majority": {"widths": (4,), "verifier": "consensus"},
        "pdr": {"widths": (4, 2), "verifier": "consensus"},
    }
)
"""What is shown, in this order; the last is shown whole."""

BUDGETS: Mapping[str, object] = MappingProxyType(
    {"max_tokens": 128, "solution_tokens": 128, "kappa": 192, "seed": 7}
)
"""Small enough for a minute on two cores."""


def demo_command(problem: str | None, given_settings: Given, output: Output) -> None:
    """Run each strategy on the problem and show what it answers and costs."""
    settings = load_settings(**given_settings)
    results = asyncio.run(_run_all(problem or PROBLEM, given_settings, output))
    if output.json:
        output.show_json([result.to_json() for result in results])
        return
    last = results[-1]
    kept = settings.redis_url != MEMORY
    storage = {name: value for name, value in given_settings.items() if name != "api_key"}
    output.show(
        Text(),
        heading(f"problem  {one_line(problem or PROBLEM)}"),
        Text(),
        _side_by_side(results),
        Text(),
        heading(f"{last.config.preset}, whole"),
        *result_parts(last, command_line("inspect", last.thread_id, storage) if kept else None),
    )


async def _run_all(problem: str, given: Given, output: Output) -> list[Result]:
    settings = load_settings(**given)
    results = []
    async with (
        open_saver(settings, output.say) as saver,
        open_client(settings, announce=output.say) as client,
    ):
        for name, fields in STRATEGIES.items():
            config = small_config(name, {**BUDGETS, **fields})
            output.say(f"{name}: widths {','.join(map(str, config.widths)) or 'none'}")
            async with shown(output, Progress(len(config.widths))) as on_event:
                results.append(
                    await solve(
                        problem,
                        config,
                        model=client,
                        checkpointer=saver,
                        thread_id=f"demo-{name}-{new_thread_id()}",
                        parts=Parts(on_event=on_event),
                    )
                )
    return results


def _side_by_side(results: list[Result]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    table.add_column("strategy", no_wrap=True)
    table.add_column("answer", overflow="ellipsis", no_wrap=True, max_width=12)
    for title in ("calls", "B_total", "B_seq", "seconds"):
        table.add_column(title, justify="right", no_wrap=True)
    for result in results:
        ledger = result.ledger
        table.add_row(
            result.config.preset,
            answer_text(result.answer),
            str(sum(row["calls"] for row in ledger.rows)),
            f"{ledger.b_total:,}",
            f"{ledger.b_seq:,}",
            f"{result.seconds:.1f}",
        )
    return table
