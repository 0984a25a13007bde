"""Shows what a training run needs: `pdr-graph train --dry-run`."""

from rich.table import Table
from rich.text import Text

from pdr_graph.cli.output import Output
from pdr_graph.cli.tables import plain_table
from pdr_graph.train.estimate import GIB, Estimate, Memory, Tokens
from pdr_graph.train.preparation import Prepared, Rollouts
from pdr_graph.train.settings import TrainSettings

FREE = 0.9
"""Share of a device that an estimate may fill; the rest is for what it does not count."""


def show_estimate(prepared: Prepared, output: Output) -> None:
    """Show memory and tokens, or that there is nothing to estimate."""
    rl = prepared.rl
    if output.json:
        facts = {} if rl is None else rl.estimate.to_json()
        facts |= {} if rl is None else {"fits": _fits(prepared.settings, rl.estimate)}
        output.show_json({"settings": prepared.settings.model_dump(mode="json"), **facts})
        return
    if rl is None:
        output.show(Text("The settings are possible; a warm start alone is not estimated."))
        return
    output.show(
        Text(_summary(prepared, rl)),
        Text(""),
        _memory_table(rl.estimate.memory),
        Text(_verdict(prepared.settings, rl.estimate), "bold"),
        Text(""),
        _token_table(rl.estimate.tokens),
        Text("Every call as long as it may be; nothing was loaded, and nothing written.", "dim"),
    )


def _summary(prepared: Prepared, rl: Rollouts) -> str:
    settings, estimate, rollouts = prepared.settings, rl.estimate, prepared.settings.rollouts
    trained = f"{estimate.trained_parameters:,} of adapters"
    if settings.lora is None:
        trained = "all of them"
    operator = int(rollouts.operator_fraction * rollouts.problems_per_step + 0.5)
    plan = settings.operator_plan
    roles = ", ".join(f"{number} {role}" for role, number in plan.rows.items())
    by_plan = f", {operator} by plan {plan.kind} ({roles} each)" if operator else ""
    counted = "counted by its tokenizer" if rl.size.exact else "estimated"
    return "\n".join(
        [
            f"{settings.model}: {estimate.parameters:,} weights, trained are {trained}",
            f"a step: {rollouts.problems_per_step} problems of {rollouts.rows_per_problem} rows; "
            f"{rollouts.problems_per_step - operator} by long CoT{by_plan}",
            f"rows of up to {estimate.row_tokens:,} tokens; prompts {counted}",
        ]
    )


def _memory_table(memory: Memory) -> Table:
    table = plain_table()
    table.add_column("memory of one device")
    table.add_column("GiB", justify="right")
    rows = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimiser": memory.optimiser,
        "activations": memory.activations,
        "head": memory.head,
        "KV cache": memory.kv_cache,
        "weights that draw": memory.drawing_weights,
        "taken by the engine": memory.reserved,
    }
    for name, size in rows.items():
        if size:
            table.add_row(name, _gib(size))
    table.add_row(Text("at the peak", "bold"), Text(_gib(memory.peak), "bold"))
    return table


def _token_table(tokens: Tokens) -> Table:
    table = plain_table()
    table.add_column("tokens at most")
    table.add_column("a step", justify="right")
    table.add_column(f"{tokens.steps:,} steps", justify="right")
    for name, number in (
        ("drawn", tokens.drawn_per_step),
        ("read as prompts", tokens.read_per_step),
        ("trained on", tokens.trained_per_step),
        ("calls", tokens.calls_per_step),
    ):
        table.add_row(name, f"{number:,}", f"{number * tokens.steps:,}")
    return table


def _fits(settings: TrainSettings, estimate: Estimate) -> bool | None:
    """Tell whether the peak leaves a tenth of a device; None where its size is not said."""
    size = settings.devices.memory_gib
    return None if size is None else estimate.memory.peak <= FREE * size * GIB


def _verdict(settings: TrainSettings, estimate: Estimate) -> str:
    size = settings.devices.memory_gib
    fits = _fits(settings, estimate)
    if fits is None:
        return "set devices.memory_gib to hear whether it fits"
    if fits:
        return f"fits a device of {size:g} GiB"
    return (
        f"does not fit a device of {size:g} GiB with a tenth left free; lower "
        "optimiser.micro_batch_rows or strategy.max_tokens, add [lora], or shard over more devices"
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size >= GIB // 100 else f"{size / GIB:.4f}"
