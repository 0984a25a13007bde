"""The commands, their arguments and options: one model for each command.

Nothing here imports what carries a command out, so that the help does not wait for it.
"""

import logging
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pdr_graph.cli.options import (
    Argument,
    Command,
    Flag,
    Given,
    Implied,
    OptionGroup,
    SettingsCommand,
)
from pdr_graph.config import PAPER, RECOMMENDED, STRATEGY, PDRConfig
from pdr_graph.serve.options import ServeOptions
from pdr_graph.servers.options import UpOptions
from pdr_graph.settings import ENV_FILE, Settings

CONFIG = OptionGroup(
    PDRConfig,
    tuple(PDRConfig.model_fields),
    defaults={
        "preset": f"{RECOMMENDED}; {PAPER} where widths, distiller, finish or kappa is set, or "
        "answer is text"
    },
)
SETTINGS = OptionGroup(
    Settings, tuple(name for name in Settings.model_fields if name not in Settings.unspoken)
)
BUT_JUDGE = OptionGroup(Settings, tuple(name for name in SETTINGS.names if name != "judge"))
"""All settings but the judge: in `pdr-graph judge`, --judge names the judge to be measured."""
STORAGE = OptionGroup(Settings, ("redis_url", "encryption_key_file", "data_dir", "max_bytes"))
DEFAULTS = OptionGroup(
    PDRConfig,
    tuple(name for name in PDRConfig.model_fields if name not in {"preset", "seed", *STRATEGY}),
)
"""Fields whose values may apply to every preset."""
SIZING = OptionGroup(
    PDRConfig,
    (
        *("preset", "widths", "distiller", "finish", "verifier"),
        *("kappa", "max_tokens", "solution_tokens"),
    ),
)
"""Fields that determine a model server's context and batch size."""


class RunCommand(SettingsCommand):
    """Options of every command that runs the method."""

    trace: Annotated[Path | None, Flag(metavar="FILE")] = None
    """Append every model call in full to this file, one JSON object a line."""
    answer_only: bool = False
    """Write the answer and nothing else, for scripts."""
    config: Annotated[Given, CONFIG]
    settings: Annotated[Given, SETTINGS]

    @property
    def is_quiet(self) -> bool:
        """Whether nothing but errors is said on standard error."""
        return self.quiet or self.answer_only


class SolveCommand(RunCommand):
    """Solve a problem."""

    first: ClassVar = (
        *("preset", "widths", "max_tokens", "base_url", "model"),
        *("file", "thread", "as_json"),
    )

    problem: Annotated[str | None, Argument()] = None
    """The problem. Without it, or with `-`, it is read from standard input."""
    file: Annotated[Path | None, Flag(metavar="FILE")] = None
    """Read the problem from a file."""
    thread: str | None = Field(None, min_length=1)
    """Name of the run. Without it, the run gets a new name."""


class ResumeCommand(RunCommand):
    """Continue a run that was stopped, killed or failed. Finished calls are not repeated.

    A run that waits for a person goes on with --answer TEXT. A step of your own, such as
    --verifier package.module:attribute, is given again.
    """

    first: ClassVar = ("last", "base_url", "model", "redis_url", "trace", "as_json")

    thread: Annotated[str | None, Argument()] = None
    """The run, as `pdr-graph threads` lists it, or how its name begins."""
    last: bool = False
    """Take the run that was written last."""


class ThreadsCommand(SettingsCommand):
    """List stored runs, the latest first. Or prune, delete, export or import some."""

    threads: Annotated[tuple[str, ...], Argument()] = ()
    """Runs to prune, delete or export, or how their names begin."""
    last: bool = False
    """Take the run that was written last."""
    limit: int = Field(20, ge=1)
    """List at most this many runs."""
    prune: bool = False
    """Drop old checkpoints of the named runs. Without names, of all runs."""
    keep: int | None = Field(None, ge=1)
    """Checkpoints of each run that --prune keeps. Without it, all that `inspect` shows."""
    delete: bool = False
    """Delete the named runs."""
    export_to: Annotated[Path | None, Flag("--export", "FILE")] = None
    """Write the named run to a file, byte for byte."""
    import_from: Annotated[Path | None, Flag("--import", "FILE")] = None
    """Store an exported run, under the given name if there is one."""
    read_older: bool = False
    """With --import and encryption keys: also take values that are plain, or that version 0.1
    encrypted, and seal them. Whoever could write to the file may have put them there."""
    storage: Annotated[Given, STORAGE]


class ResealCommand(SettingsCommand):
    """Seal stored runs anew with the first encryption key. After a stop, the same command goes on.

    To change the key, put a new one first in the key file and run this.
    When it says that nothing is left, remove the old one.
    """

    threads: Annotated[tuple[str, ...], Argument()] = ()
    """Runs to seal anew, or how their names begin. Without it, all that is stored."""
    read_older: bool = False
    """Also take values that are plain, or that version 0.1 encrypted. Whoever could write to the
    store may have put them there."""
    plain: bool = False
    """Take the encryption off instead: store all values as plain bytes."""
    storage: Annotated[Given, STORAGE]


class InspectCommand(SettingsCommand):
    """Show a run: rounds, drafts, workspaces, solution, verdict, ledger."""

    thread: Annotated[str | None, Argument()] = None
    """The run, as `pdr-graph threads` lists it, or how its name begins."""
    last: bool = False
    """Take the run that was written last."""
    full: bool = False
    """Show all texts in full."""
    watch: bool = False
    """Follow a run of another process to its end. With --json, one JSON object a line."""
    html: Annotated[Path | None, Flag(metavar="FILE")] = None
    """Write the run as one page that needs no network and runs no script."""
    storage: Annotated[Given, STORAGE]


class ServeCommand(SettingsCommand):
    """Serve presets as models of OpenAI's protocols. Requests may set all other fields."""

    first: ClassVar = (
        *("host", "port", "key", "max_runs", "base_url", "model"),
        *("redis_url", "as_json"),
    )
    panel: ClassVar = "Server"

    cors: Annotated[tuple[str, ...], Flag("--cors", "ORIGIN")] = ()
    """An origin whose web pages may call this server, such as https://app.example, or * for any.
    Repeat it for each origin. (PDR_SERVE_CORS)"""
    allowed_host: Annotated[tuple[str, ...], Flag("--allowed-host", "NAME")] = ()
    """A name by which clients may ask for this server, beside localhost and addresses, or * for
    any. Repeat it for each name. (PDR_SERVE_ALLOWED_HOSTS)"""
    options: Annotated[
        Given,
        OptionGroup(
            ServeOptions,
            tuple(
                name for name in ServeOptions.model_fields if name not in {"cors", "allowed_hosts"}
            ),
            panel="Server",
        ),
    ]
    defaults: Annotated[Given, DEFAULTS]
    settings: Annotated[Given, SETTINGS]


class UpCommand(SettingsCommand):
    """Start the model server and the store that this machine lacks. `down` stops them."""

    first: ClassVar = (
        *("model", "engine", "port", "store", "env_file"),
        *("dry_run", "status", "as_json"),
    )

    further: Annotated[tuple[str, ...], Argument("-- FLAGS")] = ()
    """Flags for vLLM itself, after `--`."""
    env_file: Annotated[Path | None, Flag(metavar="FILE")] = None
    """Also write the variables to this file, and trust it. Every command reads `.env`."""
    dry_run: bool = False
    """Show the commands without running them."""
    status: bool = False
    """Show the servers that an earlier `up` started."""
    options: Annotated[
        Given,
        OptionGroup(
            UpOptions,
            tuple(name for name in UpOptions.model_fields if name != "cache_dir"),
            panel="Server",
        ),
    ]
    strategy: Annotated[Given, SIZING]
    places: Annotated[
        Given,
        OptionGroup(
            Settings,
            ("base_url", "model", "api_key", "api_key_file", "redis_url", "data_dir"),
        ),
    ]

    @property
    def settings_file(self) -> Path | None:
        """The file that is written, if it is the folder's own `.env`; no other is read."""
        same = self.env_file is not None and self.env_file.absolute() == ENV_FILE.absolute()
        return self.env_file if same and ENV_FILE.is_file() else None


class DownCommand(SettingsCommand):
    """Stop the servers that `up` started. Stored runs stay."""

    parts: Annotated[tuple[str, ...], Argument()] = ()
    """`model` or `store`. Without it, both."""
    places: Annotated[Given, OptionGroup(Settings, ("data_dir",))]


class EvalCommand(SettingsCommand):
    """Measure strategies on problems. After a stop or crash, the same command continues.

    An arm is a strategy to measure. It may have a name of its own, and other fields than its
    preset:

    --arm '[NAME=]PRESET[@FIELD=VALUE;FIELD=VALUE]'
    --arm pdr
    --arm 'narrow=pdr@widths=8,4;kappa=1024'
    """

    first: ClassVar = (
        *("arms", "samples", "limit", "out", "base_url", "model"),
        *("redis_url", "as_json"),
    )
    panel: ClassVar = "Evaluation"

    data: Annotated[str, Argument()]
    """A file of JSON lines (`problem`, `answer`, optional `id`), `hf:org/name:split`, or
    `reasoning-gym:task`, with knobs after it, as in `?size=100`, joined by `&`."""
    out: Annotated[Path, Flag(metavar="FOLDER")]
    """Folder of the run, such as runs/NAME."""
    arms: Annotated[tuple[str, ...], Flag("--arm", "ARM")]
    """A strategy, written as shown above. `T` is its thinking budget: max_tokens is T and the
    tokens of the solution. Repeat it for each arm."""
    samples: int = Field(1, ge=1)
    """Attempts of each arm at each problem."""
    seed: int = Field(0, ge=0)
    """Seed of the run, from which every sample derives its own."""
    limit: int | None = Field(None, ge=1)
    """Use only this many problems, from the first on."""
    b_seq: int | None = Field(None, ge=1)
    """Completion tokens on each arm's critical path. This sets max_tokens of its calls."""
    b_total: int | None = Field(None, ge=1)
    """Completion tokens of all calls of each arm. This sets max_tokens of its calls. With --b-seq
    it also sets the number of drafts of an arm that leaves one width open."""
    sweep: Annotated[tuple[str, ...], Flag(metavar="FIELD=VALUES")] = ()
    """Replace every arm that has this field by one arm for each value, as in
    `kappa=256,512,1024` or `widths=16;8,4`."""
    share_first_round: bool = False
    """Let arms share the drafts of their first round. Each draft is made once in a process and
    charged to every arm, so the samples of these arms depend on each other."""
    retry_failed: bool = False
    """Repeat samples that are recorded as failed."""
    forget: bool = False
    """Delete the thread of each sample once it is recorded."""
    no_trace: bool = False
    """Do not record the model calls in full."""
    ray: Annotated[str | None, Flag(metavar="ADDRESS")] = None
    """Spread the samples over a Ray cluster: `auto` for one on this machine, HOST:PORT of its
    head, or `local` to start one. Its workers must reach endpoint and store."""
    ray_workers: int | None = Field(None, ge=1)
    """Workers, each with up to --max-in-flight calls at once. Without it, one for each processor,
    at most 16."""
    config: Annotated[Given, DEFAULTS]
    settings: Annotated[Given, SETTINGS]


class CompareCommand(Command):
    """Compare the arms of evaluations: accuracy, cost, differences, and where answers are lost."""

    runs: Annotated[tuple[Path, ...], Argument("RUN")]
    """Folders that `pdr-graph eval` wrote."""
    pairs: Annotated[tuple[str, ...], Flag("--pair", "REFERENCE:ARM")] = ()
    """Two arms to compare. Repeat it for more pairs. Without it, every arm is compared with the
    first."""
    ks: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Flag("--k", "INTEGER")] = ()
    """k of pass@k and maj@k. Repeat it for more values. Without it, as many samples as every
    problem has."""
    confidence: float = Field(0.95, ge=0.5, le=0.9999)
    """Coverage of the intervals."""
    seed: int = Field(0, ge=0)
    """Seed of bootstrap and sign flips."""
    markdown: Annotated[Path | None, Flag(metavar="FILE")] = None
    """Write the tables as Markdown."""
    plots: Annotated[Path | None, Flag(metavar="FOLDER")] = None
    """Plot accuracy against B_seq and B_total, as PNG and SVG."""
    html: Annotated[Path | None, Flag(metavar="FILE")] = None
    """Write tables and plots as one page."""


class JudgeCommand(SettingsCommand):
    """Fit a judge of drafts on evaluations, or say what one is worth on others."""

    first: ClassVar = (
        *("action", "runs", "kind", "out", "judge_url", "judge_weights", "layers"),
        *("data", "drafts", "limit", "judge", "plots", "as_json"),
    )
    panel: ClassVar = "Measurement"

    action: Annotated[Literal["fit", "score"], Argument("fit|score")]
    """`fit` makes a judge of the runs, and measures it on problems that it has not seen. `score`
    measures a judge on other runs."""
    runs: Annotated[tuple[Path, ...], Argument("RUN")] = ()
    """Folders that `pdr-graph eval` wrote, of one model. A judge of signals needs arms that ask for
    log-probabilities, as vote_first does; one of hidden states needs their traces."""
    kind: Literal["signals", "hidden", "best", "adapter"] = "signals"
    """What `fit` looks at: log-probabilities, which are free; hidden states, which cost one prefill
    a draft and need --judge-url or --judge-weights; or whichever makes the better vote. `adapter`
    trains a LoRA adapter of --judge-weights to say Yes or No, and writes the folder --out."""
    further: Annotated[tuple[Literal["self_check"], ...], Flag("--with", "SIGNAL")] = ()
    """A further signal for a judge of signals, which costs calls: `self_check` asks the model at
    --base-url about each draft, for one token."""
    layers: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Flag("--layer", "INTEGER")] = ()
    """Layers that a hidden state has passed. Repeat it, and the fit chooses. Without it, the last
    of an endpoint, and the middle of weights that are read here."""
    data: str | None = None
    """Problems to sample drafts of for the fit, as for `eval`, in place of runs. They are kept in a
    folder beside --out, and the same command continues."""
    drafts: int = Field(8, ge=2)
    """Drafts that --data samples of each problem."""
    limit: int | None = Field(None, ge=1)
    """Use only this many problems, from the first on: of --data, or of what an adapter is trained
    on."""
    out: Annotated[Path | None, Flag(metavar="FILE")] = None
    """Where `fit` writes the judge."""
    judge: Annotated[Path | None, Flag(metavar="FILE")] = None
    """The judge that `score` measures. An adapter is asked at --base-url, and so is the model of a
    judge with a self-check."""
    plots: Annotated[Path | None, Flag(metavar="FOLDER")] = None
    """Plot reliability and learning curve, as PNG and SVG."""
    folds: int | None = Field(None, ge=2)
    """Parts that the problems are divided into, to measure what is fitted. Without it, 10. An
    adapter is trained once, and a quarter of the problems is held out."""
    epochs: int = Field(4, ge=1)
    """Most epochs in which an adapter is trained."""
    first_layer: int = Field(0, ge=0)
    """Layers before this one get no adapter, which makes training cheaper."""
    learning_rate: float = Field(2e-4, gt=0.0)
    """Learning rate of an adapter."""
    threads: int | None = Field(None, ge=1)
    """Threads of torch while an adapter is trained on a CPU."""
    adapter: str = Field("judge", min_length=1)
    """Name under which the server of the model is to serve the adapter."""
    seed: int = Field(0, ge=0)
    """Seed of the division, of training, and of the intervals."""
    config: Annotated[Given, DEFAULTS]
    settings: Annotated[Given, BUT_JUDGE]


class CheckCommand(Command):
    """Check answers against gold answers: JSON lines in, verdicts as JSON lines out.

    Each says `id`, `correct`, `reason`, what was `extracted`, and how the prediction was `read`.
    """

    as_json: Annotated[bool, Implied()] = True

    file: Annotated[Path | None, Argument()] = None
    """JSON lines with `gold` and `pred`, optional `id`, `mode` and `truncated`. Without it, or
    with `-`, they are read from standard input."""
    mode: str = "auto"
    """What `pred` holds, where a line does not say: `answer` is a text that states the answer in
    a box or an answer line; `raw` is the answer itself; `auto` is `raw` for one line that reads as
    an answer and has no box, else `answer`."""
    deadline: float = Field(5.0, ge=0.1)
    """Seconds after which a check is stopped."""
    workers: int = Field(2, ge=1)
    """Checks at the same time."""


class TrainCommand(Command):
    """Train a model to draft and refine. After a stop or crash, the same command continues."""

    first: ClassVar = (
        *("config", "model", "data", "out", "steps"),
        *("override", "dry_run", "as_json"),
    )
    panel: ClassVar = "Training"

    config: Annotated[Path | None, Flag(metavar="FILE")] = None
    """Settings in TOML: a file, or one of ours: `paper`, `one_gpu`, `cpu_smoke`."""
    model: Annotated[Path | None, Flag(metavar="FOLDER")] = None
    """Model to start from (model)."""
    data: Annotated[str | None, Flag(metavar="SOURCE")] = None
    """Problems: a file of JSON lines, `hf:org/name:split`, or `reasoning-gym:task?size=1000`
    (data)."""
    out: Annotated[Path | None, Flag(metavar="FOLDER")] = None
    """Folder of the run. Without it, runs/NAME after the file of settings."""
    steps: int | None = Field(None, ge=0)
    """Steps to train; 0 stops after the warm start (steps)."""
    seed: int | None = Field(None, ge=0)
    """Seed of the run (seed)."""
    warm_start: Annotated[Path | None, Flag(metavar="FILE")] = None
    """Supervised data to train on first, as `train-data` writes it (warm_start.data)."""
    base_url: Annotated[str | None, Flag(metavar="URL")] = None
    """The vLLM server that samples rollouts (policy.base_url)."""
    override: Annotated[tuple[str, ...], Flag("--set", "TABLE.FIELD=VALUE")] = ()
    """Any setting, such as `optimiser.learning_rate=1e-5`; overrides the file. Repeat it for
    more."""
    dry_run: bool = False
    """Only check the settings and estimate memory and tokens."""

    @property
    def given(self) -> Given:
        """Return the settings that have an option of their own, by their place in the file."""
        named = {
            "model": self.model,
            "data": self.data,
            "steps": self.steps,
            "seed": self.seed,
            "warm_start.data": self.warm_start,
            "policy.base_url": self.base_url,
        }
        return {name: value for name, value in named.items() if value is not None}

    @property
    def folder(self) -> Path:
        """Return the folder of the run."""
        return self.out or Path("runs") / (self.config.stem if self.config else "train")


class TrainDataCommand(Command):
    """Make supervised data from recorded runs: the calls of runs with a right answer."""

    runs: Annotated[tuple[Path, ...], Argument("RUN")]
    """Folders of `pdr-graph eval` or `pdr-graph train`, or files of trajectories."""
    out: Annotated[Path, Flag(metavar="FILE")]
    """File of JSON lines to write."""
    roles: Annotated[tuple[str, ...], Flag("--role", "ROLE")] = ()
    """Calls to take: direct, draft, refine, distill or select. Repeat it for more. Without it,
    the first three."""
    per_problem: int | None = Field(None, ge=1)
    """Most calls of one role that a problem gives. Without it, all."""
    keep_duplicates: bool = False
    """Keep repeated replies."""
    wrong_drafts: bool = False
    """Also take wrong drafts of right runs."""
    no_thoughts: bool = False
    """Leave the reasoning out of replies."""
    model: Annotated[Path | None, Flag(metavar="FOLDER")] = None
    """Model whose tokenizer decodes trajectories."""


class TrustCommand(Command):
    """Trust the `.env` of a folder, as it is now. All that it sets then counts."""

    folder: Annotated[Path, Argument()] = Path()
    """The folder. Without it, the current one."""
    forget: bool = False
    """Do not trust it any more."""


class DoctorCommand(SettingsCommand):
    """Check model, store and this machine. Each finding says what to do."""

    first: ClassVar = ("base_url", "model", "redis_url", "as_json")
    logs: ClassVar = logging.ERROR  # what the parts below warn of is in the report

    no_calls: bool = False
    """Make no call to the model. Without this, up to eight tiny ones show what it honours."""
    quiet: Annotated[bool, Implied()] = False
    settings: Annotated[Given, SETTINGS]


class DemoCommand(SettingsCommand):
    """Compare four strategies on eight short problems, or on one of yours, at equal budgets.

    Without an endpoint it runs on Qwen2.5-Coder-0.5B-Instruct, 491 MB that are fetched once.
    PDR_DEMO=tiny takes the embedded model, 98 MB, which gets nearly all of them wrong.
    """

    first: ClassVar = ("base_url", "model", "as_json")

    problem: Annotated[str | None, Argument()] = None
    """A problem. Without it, eight whose answers are known."""
    settings: Annotated[Given, SETTINGS]
