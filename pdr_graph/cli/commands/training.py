"""Training: train, train-data."""

from pathlib import Path
from typing import Annotated

import typer

from pdr_graph.cli.commands import Json, Quiet, output_of


def train(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Settings, as TOML: a file, or one of ours: `paper`, `one_gpu`, `cpu_smoke`.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FOLDER", help="Model to start from (model)."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="SOURCE",
            help="Problems: a file of JSON lines, `hf:org/name:split`, or "
            "`reasoning-gym:task?size=1000` (data).",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="The run; runs/ and the file's name without."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", min=0, metavar="INTEGER", help="0 ends after the warm start (steps)."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, metavar="INTEGER", help="Of the run (seed).")
    ] = None,
    warm_start: Annotated[
        Path | None,
        typer.Option(
            "--warm-start",
            metavar="FILE",
            help="Supervised data to train on first, by `train-data` (warm_start.data).",
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url", metavar="URL", help="The vLLM server that draws (policy.base_url)."
        ),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="TABLE.FIELD=VALUE",
            help="Any setting, before the file's, as `optimiser.learning_rate=1e-5`; repeat it.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check the settings, and estimate memory and tokens only."),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a model for the way it is used; stopped or killed, the same command goes on."""
    from pdr_graph.cli.train import TrainRequest, train_command

    named = {
        "model": model,
        "data": data,
        "steps": steps,
        "seed": seed,
        "warm_start.data": warm_start,
        "policy.base_url": base_url,
    }
    given = {name: value for name, value in named.items() if value is not None}
    asked = TrainRequest(config, given, tuple(override or ()), out)
    train_command(asked, dry_run=dry_run, output=output_of(json, quiet))


def train_data(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders of `pdr-graph eval` or `pdr-graph train`, or files of trajectories.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="JSON lines to write.")],
    roles: Annotated[
        list[str] | None,
        typer.Option(
            "--role",
            metavar="ROLE",
            help="Calls to take: direct, draft, refine, distill, select; repeat it. The first "
            "three without.",
        ),
    ] = None,
    per_problem: Annotated[
        int | None,
        typer.Option(
            "--per-problem",
            min=1,
            metavar="INTEGER",
            help="Calls of each role that a problem gives at most; all without.",
        ),
    ] = None,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Take what was said twice, twice.")
    ] = False,
    wrong_drafts: Annotated[
        bool,
        typer.Option("--wrong-drafts", help="Take drafts of right runs that are wrong themselves."),
    ] = False,
    no_thoughts: Annotated[
        bool, typer.Option("--no-thoughts", help="Leave the reasoning out of replies.")
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FOLDER", help="Whose tokenizer reads trajectories back."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make supervised data of recorded runs: what was said where the answer was right."""
    from pdr_graph.cli.train_data import choice_of, train_data_command

    choice = choice_of(
        roles or [],
        per_problem,
        duplicates=keep_duplicates,
        wrong_drafts=wrong_drafts,
        thoughts=not no_thoughts,
    )
    train_data_command(runs, out, choice, model, output_of(json, quiet))
