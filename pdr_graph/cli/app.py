"""The commands and their options; what each does is imported when it is called."""

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from pdr_graph.cli.failure import INTERRUPTED, explain
from pdr_graph.cli.options import (
    BUDGET_PANEL,
    CONFIG,
    DATA_DIR,
    DEFAULTS,
    OUTPUT,
    PLACES,
    SERVE,
    SETTINGS,
    SIZING,
    STORAGE,
    UP,
    Given,
    takes,
)
from pdr_graph.cli.output import LogLines, Output
from pdr_graph.settings import debug_wanted

app = typer.Typer(
    name="pdr-graph",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[
    bool, typer.Option("--json", help="Write one JSON object.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show errors only.", rich_help_panel=OUTPUT)]
TraceFile = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        metavar="FILE",
        help="Append every model call in full to this file, one JSON object a line.",
        rich_help_panel=OUTPUT,
    ),
]


@app.callback(invoke_without_command=True)
def _entry(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks of errors (PDR_DEBUG).")
    ] = False,
) -> None:
    """Parallel-Distill-Refine reasoning: many drafts, one bounded workspace, a better answer."""
    if show_version:
        typer.echo(f"pdr-graph {version('pdr-graph')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("solve")
@takes(config=CONFIG, settings=SETTINGS)
def _solve(
    config: Given,
    settings: Given,
    problem: Annotated[
        str | None, typer.Argument(help="The problem; `-` or none reads standard input.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="Read the problem from a file."),
    ] = None,
    thread: Annotated[
        str | None, typer.Option("--thread", help="Name of the run; one is made up without.")
    ] = None,
    trace: TraceFile = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Solve a problem."""
    from pdr_graph.cli.problem import read_problem

    text = read_problem(problem, file)  # a mistake in it is told before the slow imports
    from pdr_graph.cli.solving import solve_command

    solve_command(text, thread, config, settings, trace, _output(json, quiet))


@app.command("resume")
@takes(config=CONFIG, settings=SETTINGS)
def _resume(
    thread: Annotated[str, typer.Argument(help="The run, as `pdr-graph threads` lists it.")],
    config: Given,
    settings: Given,
    trace: TraceFile = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a run that was stopped, killed or failed; what is done is not done again."""
    from pdr_graph.cli.solving import resume_command

    resume_command(thread, config, settings, trace, _output(json, quiet))


@app.command("threads")
@takes(storage=STORAGE)
def _threads(
    storage: Given,
    threads: Annotated[
        list[str] | None, typer.Argument(help="Runs to prune, delete or export.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, metavar="INTEGER", help="List no more than this.")
    ] = 20,
    prune: Annotated[
        bool, typer.Option("--prune", help="Drop old checkpoints of the named runs, or of all.")
    ] = False,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep",
            min=1,
            metavar="INTEGER",
            help="Checkpoints that --prune leaves; without it, what `inspect` shows.",
        ),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the named runs.")] = False,
    export_to: Annotated[
        Path | None,
        typer.Option("--export", metavar="FILE", help="Write the named run to a file, exactly."),
    ] = None,
    import_from: Annotated[
        Path | None,
        typer.Option("--import", metavar="FILE", help="Store an exported run, as named if named."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the runs that are kept, the last written first; or prune, delete or move some."""
    from pdr_graph.cli.keeping import Chore, keeping_command
    from pdr_graph.cli.listing import threads_command

    chore = Chore(prune, delete, export_to, import_from, keep)
    if chore.asked or keep is not None or threads:
        keeping_command(chore, threads or [], storage, _output(json, quiet))
    else:
        threads_command(storage, limit, _output(json, quiet))


@app.command("inspect")
@takes(storage=STORAGE)
def _inspect(
    thread: Annotated[str, typer.Argument(help="The run, as `pdr-graph threads` lists it.")],
    storage: Given,
    full: Annotated[bool, typer.Option("--full", help="Show every text whole.")] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Follow a run of another process to its end; JSON lines with --json."
        ),
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write the run as one page that needs no network and runs no script.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show a run: rounds, drafts, workspaces, solution, verdict, ledger."""
    from pdr_graph.cli.inspecting import inspect_command

    inspect_command(thread, storage, full=full, watch=watch, page=html, output=_output(json, quiet))


@app.command("serve")
@takes(serve=SERVE, defaults=DEFAULTS, settings=SETTINGS)
def _serve(
    serve: Given, defaults: Given, settings: Given, json: Json = False, quiet: Quiet = False
) -> None:
    """Answer in OpenAI's protocol, one model per preset; clients set all else in their requests."""
    from pdr_graph.cli.serving import serve_command

    serve_command(serve, defaults, settings, _output(json, quiet))


@app.command("up")
@takes(up=UP, strategy=SIZING, places=PLACES)
def _up(
    up: Given,
    strategy: Given,
    places: Given,
    further: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- FLAGS", help="Flags of vLLM's own, after `--`."),
    ] = None,
    env_file: Annotated[
        Path | None,
        typer.Option(
            "--env-file",
            metavar="FILE",
            help="Set the variables in this file too; `.env` is read by every command.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the commands and run none of them.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Show what an earlier `up` started.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Start the model server and the store that this machine lacks; `down` ends them."""
    from pdr_graph.cli.servers import commands

    asked = commands.Asked(up, strategy, places, tuple(further or ()), env_file, dry_run)
    commands.up(asked, status=status, output=_output(json, quiet))


@app.command("down")
@takes(places=DATA_DIR)
def _down(
    places: Given,
    parts: Annotated[
        list[str] | None, typer.Argument(help="`model` or `store`; both without.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """End the servers that `up` started; what they stored stays."""
    from pdr_graph.cli.servers import commands

    commands.down(parts or [], places, output=_output(json, quiet))


@app.command("eval")
@takes(config=DEFAULTS, settings=SETTINGS)
def _eval(
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
    from pdr_graph.cli.evaluating import Request, eval_command

    request = Request(
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
    eval_command(request, config, settings, _output(json, quiet))


@app.command("compare")
def _compare(
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
    from pdr_graph.cli.comparing import compare_command

    compare_command(
        runs, pairs or [], ks or [], confidence, seed, markdown, plots, html, _output(json, quiet)
    )


@app.command("check")
def _check(
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
    from pdr_graph.cli.checking import check_command

    check_command(file, mode, deadline, workers, _output(json=True, quiet=quiet))


@app.command("doctor")
@takes(settings=SETTINGS)
def _doctor(settings: Given, json: Json = False) -> None:
    """Check model, store and this machine; each line says what to do."""
    from pdr_graph.cli.doctor import doctor_command

    # What the parts below warn of is in the report, with its remedy.
    doctor_command(settings, _output(json, quiet=False, logs=logging.ERROR))


@app.command("demo")
@takes(settings=SETTINGS)
def _demo(
    settings: Given,
    problem: Annotated[
        str | None, typer.Argument(help="The problem; a sum about apples without.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show four strategies on one problem, their ledgers side by side."""
    from pdr_graph.cli.showcase import demo_command

    demo_command(problem, settings, _output(json, quiet))


def main() -> None:
    """Run the command line of this process."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # they speak to developers
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by whoever started us
            setattr(sys, stream, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; every error becomes one sentence."""
    from pdr_graph.cli.ending import RunEndedError

    debug = debug_wanted() or "--debug" in arguments
    output = Output()
    try:
        code = typer.main.get_command(app).main(
            list(arguments), prog_name="pdr-graph", standalone_mode=False
        )
    except KeyboardInterrupt:
        return INTERRUPTED
    except RunEndedError as ended:
        code = ended.exit_code
        if ended.cause is not None:
            code = _report(ended.cause, output, debug=debug)
        output.tell(ended.way_on, to_copy=True)
    # The top of the command line: nothing may leave it as a traceback.
    except Exception as error:  # noqa: BLE001
        return _report(error, output, debug=debug)
    return code if isinstance(code, int) else 0


def _report(error: Exception, output: Output, *, debug: bool) -> int:
    failure = explain(error)
    if debug:
        traceback.print_exception(error)
    output.tell(f"error: {failure.sentence}", "red")
    return failure.exit_code


def _output(json: bool, quiet: bool, logs: int = logging.WARNING) -> Output:
    output = Output(json=json, quiet=quiet)
    LogLines(output, logs).install()
    return output
