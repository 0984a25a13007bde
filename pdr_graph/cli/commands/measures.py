"""Measuring: eval, compare, check."""

from pathlib import Path
from typing import Annotated

import typer

from pdr_graph.cli.commands import Json, Quiet, output_of
from pdr_graph.cli.options import BUDGET_PANEL, DEFAULTS, OUTPUT, SETTINGS, Given, takes


@takes(config=DEFAULTS, settings=SETTINGS)
def evaluate(
    config: Given,
    settings: Given,
    data: Annotated[
        str,
        typer.Argument(
            help="A file of JSON lines (`problem`, `answer`, optional `id`), "
            "`hf:org/name:split`, or `reasoning-gym:task?size=100&seed=0&knob=value`."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The run, as runs/NAME.")],
    arms: Annotated[
        list[str],
        typer.Option(
            "--arm",
            metavar="ARM",
            help="`\\[NAME=]PRESET\\[@FIELD=VALUE;FIELD=VALUE…]`, as "
            "`narrow=pdr@widths=8,4;distiller=top_k;T=8192`; repeat it for each arm.",
        ),
    ],
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Attempts of each arm at each problem.")
    ] = 1,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="From which every sample draws its own.")
    ] = 0,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="The first so many problems only.")
    ] = None,
    b_seq: Annotated[
        int | None,
        typer.Option(
            "--b-seq",
            min=1,
            help="Completion tokens on each arm's critical path; the length of its calls follows.",
            rich_help_panel=BUDGET_PANEL,
        ),
    ] = None,
    b_total: Annotated[
        int | None,
        typer.Option(
            "--b-total",
            min=1,
            help="Completion tokens of all calls of each arm; the length of its calls follows. "
            "With --b-seq, the number of drafts follows where an arm has one open round.",
            rich_help_panel=BUDGET_PANEL,
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            metavar="FIELD=VALUES",
            help="One arm for each value, in the place of every arm that it concerns, as "
            "`kappa=256,512,1024` or `widths=16;8,4`.",
        ),
    ] = None,
    share_first_round: Annotated[
        bool,
        typer.Option(
            "--share-first-round",
            help="Arms share the drafts of their first round, each asked for once in a process and "
            "charged to every arm; their samples are then dependent.",
        ),
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again for samples recorded as failed.")
    ] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Delete the thread of each sample that is recorded.")
    ] = False,
    no_trace: Annotated[
        bool, typer.Option("--no-trace", help="Do not keep the model calls in full.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Spread the samples over a Ray cluster: `auto` for this machine's, HOST:PORT of "
            "its head, `local` to start one. Endpoint and store must be within its reach.",
            rich_help_panel="Cluster",
        ),
    ] = None,
    ray_workers: Annotated[
        int | None,
        typer.Option(
            "--ray-workers",
            min=1,
            metavar="INTEGER",
            help="Workers, each with --max-in-flight calls at once; one a processor without, 16 at "
            "most.",
            rich_help_panel="Cluster",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure strategies on problems; stopped or killed, the same command goes on."""
    from pdr_graph.cli.eval import EvalRequest, eval_command

    request = EvalRequest(
        data=data,
        arms=arms,
        sweeps=sweep or [],
        samples=samples,
        out=out,
        seed=seed,
        limit=limit,
        b_seq=b_seq,
        b_total=b_total,
        share_first_round=share_first_round,
        retry_failed=retry_failed,
        forget=forget,
        no_trace=no_trace,
        ray=ray,
        ray_workers=ray_workers,
    )
    eval_command(request, config, settings, output_of(json, quiet))


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders that `pdr-graph eval` wrote.")
    ],
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            "--pair",
            metavar="REFERENCE:ARM",
            help="Two arms to compare; repeat it. Without one, every arm against the first.",
        ),
    ] = None,
    ks: Annotated[
        list[int] | None,
        typer.Option(
            "--k",
            min=1,
            metavar="INTEGER",
            help="For pass@k and maj@k; repeat it. Without one, as many as every problem has.",
        ),
    ] = None,
    confidence: Annotated[
        float,
        typer.Option(
            "--confidence", min=0.5, max=0.9999, metavar="NUMBER", help="Coverage of intervals."
        ),
    ] = 0.95,
    seed: Annotated[
        int,
        typer.Option("--seed", min=0, metavar="INTEGER", help="Of bootstrap and sign flips."),
    ] = 0,
    markdown: Annotated[
        Path | None,
        typer.Option(
            "--markdown", metavar="FILE", help="Write the tables.", rich_help_panel=OUTPUT
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            "--plots",
            metavar="FOLDER",
            help="Draw accuracy against B_seq and B_total, as PNG and SVG.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Write it all as one page.", rich_help_panel=OUTPUT
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare the arms of evaluations: accuracy, cost, differences, where answers are lost."""
    from pdr_graph.cli.compare import compare_command

    compare_command(
        runs, pairs or [], ks or [], confidence, seed, markdown, plots, html, output_of(json, quiet)
    )


def check(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="JSON lines with `gold` and `pred`, optional `id`, `mode` and `truncated`; `-` or "
            "none reads standard input."
        ),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            "--mode",
            metavar="MODE",
            help="Where the answer is, if a line does not say: `answer` looks for the final answer "
            "that `pred` states, in a box or an answer line; for `raw` it is all of `pred`.",
        ),
    ] = "answer",
    deadline: Annotated[
        float,
        typer.Option(
            "--deadline", min=0.1, metavar="NUMBER", help="Seconds after which a check is ended."
        ),
    ] = 5.0,
    workers: Annotated[
        int, typer.Option("--workers", min=1, metavar="INTEGER", help="Checks at once.")
    ] = 2,
    quiet: Quiet = False,
) -> None:
    """Check answers against gold answers: JSON lines in, `{id, correct, reason, …}` lines out."""
    from pdr_graph.cli.check import check_command

    check_command(file, mode, deadline, workers, output_of(json=True, quiet=quiet))
