"""`pdr-graph judge`: fits judges of drafts, and says what one is worth."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from pdr_graph.cli.commands import EvalCommand, JudgeCommand
from pdr_graph.cli.compare import need
from pdr_graph.cli.live import Bar, Board, LiveDisplay
from pdr_graph.cli.output import Output, table_of
from pdr_graph.connect import judge_places, open_client
from pdr_graph.errors import ConfigError, counted
from pdr_graph.judge import DraftJudge, JudgePlaces, read_judge
from pdr_graph.judge.adapter import AdapterJudge
from pdr_graph.prompts import Prompts
from pdr_graph.settings import Settings, load_settings

if TYPE_CHECKING:
    from pdr_graph.eval.judge_fit import JudgeReport, SelfChecker, StateSource
    from pdr_graph.eval.records import EvalRun
    from pdr_graph.eval.stats import Estimate, PairedDifference


def judge_command(command: JudgeCommand, output: Output) -> None:
    """Fit a judge or measure one, and show what it is worth.

    Raises:
        ConfigError: an option is missing, a run or judge cannot be read or does not fit, a library
            is missing, or a file cannot be written.
        RunEndedError: drafts were to be sampled, and that was stopped.
    """
    _check(command)
    packages = ["numpy", "scipy", "sklearn", *(["matplotlib"] if command.plots else [])]
    need("a judge", *packages, of="judge")
    from pdr_graph.eval.records import read_run

    settings = load_settings(**command.settings)
    folders = command.runs if command.data is None else (_sampled(command, output),)
    written: list[Path] = []
    if command.kind == "adapter" and command.action == "fit":
        report = _trained(command, folders, settings, output)
        assert command.out is not None  # checked above
        written.append(command.out)
        return _show(command, report, written, output)
    places = judge_places(settings)
    runs = [read_run(folder) for folder in folders]
    if command.action == "fit":
        report = asyncio.run(_fit(command, runs, settings, places, output))
        assert command.out is not None  # checked above
        written.append(command.out)
    else:
        report = asyncio.run(_score(command, runs, settings, output))
    _show(command, report, written, output)


def _show(
    command: JudgeCommand, report: "JudgeReport", written: list[Path], output: Output
) -> None:
    if command.plots is not None:
        from pdr_graph.eval.comparison_page import draw_report

        try:
            written += draw_report(report, command.plots)
        except OSError as error:
            raise ConfigError(
                f"{str(command.plots)!r} cannot be written ({error.strerror}); name another place"
            ) from None
    if output.json:
        output.show_json({**report.to_json(), "written": [str(file) for file in written]})
    else:
        output.show(*report_parts(report))
    for file in written:
        output.say(f"written: {file}", to_copy=True)


def _check(command: JudgeCommand) -> None:
    """Refuse what is missing or of no use, before anything is read.

    Raises:
        ConfigError: one sentence names the option.
    """
    fits = command.action == "fit"
    needed, other = (command.out, command.judge) if fits else (command.judge, command.out)
    if needed is None or other is not None:
        wanted, unwanted = ("--out", "--judge") if fits else ("--judge", "--out")
        why = f"needs {wanted} FILE" if needed is None else f"takes no {unwanted}"
        raise ConfigError(f"judge {command.action} {why}")
    if command.data is not None and (not fits or command.runs):
        what = "takes no --data" if not fits else "takes RUN or --data, not both"
        raise ConfigError(f"judge {command.action} {what}")
    if command.further and (not fits or command.kind != "signals"):
        raise ConfigError("--with goes with judge fit --kind signals alone")
    if command.limit is not None and command.data is None and command.kind != "adapter":
        raise ConfigError("--limit goes with --data, or with judge fit --kind adapter")
    if not command.runs and command.data is None:
        raise ConfigError(f"judge {command.action} needs a RUN, a folder that pdr-graph eval wrote")


def _sampled(command: JudgeCommand, output: Output) -> Path:
    """Sample drafts for the fit, all that are still owed, and return their run."""
    assert command.out is not None  # checked before
    assert command.data is not None
    from pdr_graph.cli.eval import evaluate

    folder = command.out.with_name(f"{command.out.stem}-drafts")
    evaluate(
        EvalCommand(
            data=command.data,
            out=folder,
            arms=(f"drafts=majority@widths={command.drafts};finish=weighted_vote",),
            limit=command.limit,
            seed=command.seed,
            forget=True,
            quiet=command.quiet,
            config=command.config,
            settings=command.settings,
        ),
        output,
    )
    return folder


async def _fit(
    command: JudgeCommand,
    runs: Sequence["EvalRun"],
    settings: Settings,
    places: JudgePlaces,
    output: Output,
) -> "JudgeReport":
    async with AsyncExitStack() as stack:
        checker = None
        if command.further:
            from pdr_graph.eval.judge_fit import DraftAsker, SelfChecker

            client = await stack.enter_async_context(open_client(settings, announce=output.say))
            question = Prompts.load(settings.prompts).templates["self_check"]
            checker = SelfChecker(DraftAsker(client, output.say), question)
        return await _fitted(command, runs, places, checker, output)


async def _fitted(
    command: JudgeCommand,
    runs: Sequence["EvalRun"],
    places: JudgePlaces,
    checker: "SelfChecker | None",
    output: Output,
) -> "JudgeReport":
    from pdr_graph.eval.judge_fit import NUM_FOLDS, fit_judge

    source = None
    if command.kind == "hidden" or (command.kind == "best" and (places.states or places.url)):
        source = await _source(places, command.layers, runs, output)
    made = await fit_judge(
        runs,
        kind="signals" if command.kind == "adapter" else command.kind,
        source=source,
        checker=checker,
        folds=command.folds or NUM_FOLDS,
        seed=command.seed,
    )
    assert command.out is not None
    made.judge.save(command.out)
    return made.report


def _trained(
    command: JudgeCommand, folders: Sequence[Path], settings: Settings, output: Output
) -> "JudgeReport":
    """Train an adapter on the drafts of runs, or of a file of JSON lines.

    Raises:
        ConfigError: no weights are named, the drafts or the weights cannot be read, or too few
            problems have right and wrong drafts.
    """
    weights = settings.judge_weights
    if weights is None or not weights.is_dir():
        named = "" if weights is None else f", and {str(weights)!r} is none"
        raise ConfigError(
            "judge fit --kind adapter trains an adapter of the model whose drafts it judges; name "
            f"the model's folder by --judge-weights{named}"
        )
    need("an adapter", "torch", "peft", of="train")
    assert command.out is not None  # checked before
    prompts = Prompts.load(settings.prompts)
    board = _FitBoard()
    with LiveDisplay(output, board) as display:
        from pdr_graph.train.judge import JudgeTraining, fit_adapter
        from pdr_graph.train.judge_data import first_problems, kept_drafts

        ballots, model, data = asyncio.run(kept_drafts(folders, prompts))
        ballots = first_problems(ballots, command.limit)
        training = JudgeTraining(
            weights.expanduser(),
            folds=command.folds or 1,
            epochs=command.epochs,
            first_layer=command.first_layer,
            learning_rate=command.learning_rate,
            threads=command.threads,
            seed=command.seed,
        )
        judge = AdapterJudge(
            model=settings.model or model or weights.name,
            adapter=command.adapter,
            question="",
            scale=1.0,
            shift=0.0,
            data=data,
        )

        def tell(line: str, *, milestone: bool) -> None:
            board.line = line
            if milestone:
                display.say(line)

        made = fit_adapter(ballots, training, command.out, judge=judge, prompts=prompts, tell=tell)
    assert isinstance(made.judge, AdapterJudge)  # as it was handed in
    output.say("serve the adapter beside its model:")
    output.say(made.judge.command(str(command.out)), to_copy=True)
    return made.report


class _FitBoard(Board):
    """How far a training is."""

    silence_s = 10.0
    line = "loading torch, transformers and peft"

    def bars(self) -> Sequence[Bar]:
        """Return it as one line."""
        return [Bar(self.line)]

    def lines(self) -> Sequence[str]:
        """Return it as it is."""
        return [self.line]


async def _score(
    command: JudgeCommand, runs: Sequence["EvalRun"], settings: Settings, output: Output
) -> "JudgeReport":
    from pdr_graph.eval.judge_fit import DraftAsker, one_model, score_judge
    from pdr_graph.judge.hidden import HiddenJudge

    assert command.judge is not None
    judge: DraftJudge = read_judge(command.judge).opened(places := judge_places(settings))
    judge.check(one_model(runs))  # before a model is opened for nothing
    source = asker = None
    async with AsyncExitStack() as stack:
        if isinstance(judge, HiddenJudge):
            layers = () if judge.layer is None else (judge.layer,)
            source = await _source(places, layers, runs, output, last=judge.layer is None)
        elif judge.asks:
            client = await stack.enter_async_context(open_client(settings, announce=output.say))
            asker = DraftAsker(client, output.say)
        report = await score_judge(judge, runs, source=source, asker=asker, seed=command.seed)
    if seen := {run.header["data"]["sha256"] for run in runs} & set(judge.data):
        output.say(
            f"! the judge was fitted on {len(seen)} of these sets of problems; that flatters it"
        )
    return report


async def _source(
    places: JudgePlaces,
    layers: Sequence[int],
    runs: Sequence["EvalRun"],
    output: Output,
    *,
    last: bool = False,
) -> "StateSource":
    """Return where the drafts are read.

    Raises:
        ConfigError: no place is named, or an endpoint is to read behind several layers.
    """
    from pdr_graph.eval.judge_fit import StateSource
    from pdr_graph.judge.hidden import EndpointStates
    from pdr_graph.policy.hidden_states import TransformersStates

    reader, chosen = places.states, tuple(layers) or (None,)
    if isinstance(reader, TransformersStates) and not layers and not last:
        chosen = (max(1, await reader.num_layers() // 2),)
    if reader is None and places.url is not None:
        if len(chosen) > 1:
            raise ConfigError(
                "an endpoint serves one layer, the last that its model has; name one --layer, or "
                "read several here by --judge-weights"
            )
        model = runs[0].header["model"]
        reader = EndpointStates(places.url, api_key=places.api_key, model=model)
    if reader is None:
        raise ConfigError(
            "judge fit --kind hidden has drafts read by their model; name an endpoint of "
            "embeddings by --judge-url, or its folder or .gguf file by --judge-weights"
        )
    return StateSource(reader, chosen, folder=runs[0].folder, tell=output.say)


def report_parts(report: "JudgeReport") -> Iterator[RenderableType]:
    """Yield whether the judge beats the vote, and the tables behind that."""
    yield Text(report.verdict, "bold")
    yield Text(
        f"{counted(report.num_drafts, 'draft')} of {counted(report.num_problems, 'problem')}; "
        "judged by what was fitted on others",
        "dim",
    )
    for note in report.notes:
        yield Text(note, "dim")
    yield Text()
    judged = [
        (f"vote weighted by {name}", *_share(each.judged), _points(each.gain))
        for name, each in report.judges.items()
    ]
    yield table_of(
        ["right, of 100 problems", "mean", "95 %", "against the vote"],
        [
            ("plain vote", *_share(report.vote), ""),
            ("vote, ties to the likeliest draft", *_share(report.tie_break), ""),
            *judged,
            ("any draft (the best choice)", *_share(report.best), ""),
        ],
    )
    yield Text()
    yield table_of(
        ["tells right from wrong drafts (0.5 is chance)", "all", "of one problem", "ahead"],
        [
            (
                name,
                f"{each.pooled:.2f}",
                f"{each.within.value:.2f}",
                "–" if each.overturn is None else f"{each.overturn:.2f}",
            )
            for name, each in report.discrimination.items()
        ],
    )
    yield Text("ahead: against wrong drafts of an answer with as many drafts or more", "dim")
    if report.learning:
        yield Text()
        yield table_of(
            ["problems learned from", "of one problem", "points against the vote"],
            [
                (f"{each.num_problems:,}", f"{each.within:.2f}", f"{100 * each.gain:+.1f}")
                for each in report.learning
            ],
        )
        yield Text(report.outlook, "dim")


def _share(estimate: "Estimate") -> tuple[str, str]:
    ends = estimate.interval
    spread = "–" if ends is None else f"[{100 * ends.low:.1f}, {100 * ends.high:.1f}]"
    return f"{100 * estimate.value:.1f}", spread


def _points(gain: "PairedDifference") -> str:
    low, high = gain.low or 0.0, gain.high or 0.0
    return f"{100 * gain.value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
