"""`pdr-graph train-data`: supervised data from recorded runs, with counts by role."""

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import get_args

from rich.table import Table

from pdr_graph.cli.output import Output, plain_table
from pdr_graph.errors import ConfigError
from pdr_graph.train.supervised import Example, ExampleChoice, RoleTally, examples_of
from pdr_graph.train.trajectory import Role

_NEVER: frozenset[str] = frozenset({"judge"})


def choice_of(
    roles: Sequence[str],
    per_problem: int | None,
    *,
    duplicates: bool,
    wrong_drafts: bool,
    thoughts: bool,
) -> ExampleChoice:
    """Return what was chosen; no roles are the usual ones.

    Raises:
        ConfigError: there is no such role.
    """
    known = [role for role in get_args(Role) if role not in _NEVER]
    for role in roles:
        if role not in known:
            raise ConfigError(f"unknown role {role!r}; known: {', '.join(known)}")
    chosen: frozenset[Role] = frozenset(role for role in get_args(Role) if role in roles)
    return ExampleChoice(
        roles=chosen or ExampleChoice().roles,
        per_problem=per_problem,
        duplicates=duplicates,
        wrong_drafts=wrong_drafts,
        thoughts=thoughts,
    )


def train_data_command(
    sources: Sequence[Path], out: Path, choice: ExampleChoice, model: Path | None, output: Output
) -> None:
    """Write the examples of recorded runs, and say what became of every call."""
    tally = RoleTally()
    _write(out, examples_of(sources, choice, tally, model), tally)
    if output.json:
        output.show_json({"file": str(out), **tally.to_json()})
        return
    taken = sum(tally.taken.values())
    output.show(_table(tally))
    output.say(
        f"{taken} examples of {len(tally.problems)} problems in {out}; "
        f"{tally.runs.correct} of {tally.runs.read} runs were right"
    )


def _write(out: Path, examples: Iterable[Example], tally: RoleTally) -> None:
    """Write the file beside its place and move it there: it is whole, or as it was.

    Raises:
        ConfigError: it cannot be written, or there is nothing to write.
    """
    part = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as file:
            for example in examples:
                file.write(json.dumps(example, ensure_ascii=True) + "\n")
        if not tally.taken:
            raise ConfigError(_nothing(tally))
        part.replace(out)
    except OSError as error:
        raise ConfigError(f"--out {str(out)!r} cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _nothing(tally: RoleTally) -> str:
    if not tally.runs.correct:
        return f"none of {tally.runs.read} runs was right, so there is nothing to learn from"
    left = ", ".join(f"{number} {why}" for why, number in tally.left_out.most_common())
    return f"no call is left of {tally.runs.correct} correct runs ({left or 'none recorded'})"


def _table(tally: RoleTally) -> Table:
    table = plain_table()
    table.add_column("calls of right runs")
    table.add_column("number", justify="right")
    for role, number in sorted(tally.taken.items()):
        table.add_row(role, str(number))
    for why, number in sorted(tally.left_out.items()):
        table.add_row(f"left out: {why}", str(number), style="dim")
    return table
