"""The settings of a training run: a TOML file, which the command line may override.

Nothing here needs torch: a run that cannot work is refused before anything heavy is imported.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from pdr_graph.config import PDRConfig, make_config
from pdr_graph.errors import ConfigError
from pdr_graph.extensions import Extensions
from pdr_graph.train.plan import ProblemPlan, Schedule
from pdr_graph.validation import Fault

PolicyKind = Literal["transformers", "vllm-http", "vllm-colocate"]
Push = Literal["none", "colocate", "lora", "disk"]
Precision = Literal["fp32", "bf16"]
DraftCredit = Literal["outcome", "own", "none"]
DistillCredit = Literal["outcome", "none"]

_SET_BY_TRAINING = frozenset(
    {
        *("preset", "widths", "finish", "verifier", "seed", "quorum", "max_extra_rounds"),
        *("stop_on_consensus", "pool_rounds", "max_total_tokens", "deadline_s"),
        "thinking_token_budget",
    }
)
"""Fields that a plan decides, or that would end a run early or make it longer."""


class Table(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PolicySettings(Table):
    """The policy that draws the tokens, and how it gets the new weights."""

    kind: PolicyKind = "transformers"
    """`transformers`: the trained model itself, in this process. `vllm-http`: a vLLM server.
    `vllm-colocate`: vLLM in this process, on the same device."""
    push: Push | Literal["auto"] = "auto"
    """How new weights reach it; `auto` picks the way that fits policy and adapters."""
    base_url: str | None = None
    """OpenAI endpoint of the server, with its `/v1`; only for `vllm-http`."""
    served_model: str | None = None
    """The server's name for the model; not needed if it serves only one."""
    max_in_flight: int = Field(64, ge=1)
    """Calls at once, in each process."""
    chat_template: dict[str, Any] = Field(default_factory=dict)  # Any: the template's own
    """Variables of the model's chat template, such as `enable_thinking = false`."""
    gpu_memory_share: float = Field(0.35, gt=0.0, lt=1.0)
    """Share of the device that `vllm-colocate` takes."""

    @field_validator("push", mode="before")
    @classmethod
    def _nccl_is_gone(cls, push: object) -> object:
        if push == "nccl":
            raise ValueError(
                "this push was never run and was removed; set 'auto', and the table [lora] to "
                "train adapters"
            )
        return push


class RolloutSettings(Table):
    """How many problems a step has, and how the rows of each are spent (`plan.py`)."""

    problems_per_step: int = Field(8, ge=1)
    """Problems of one step, over all processes."""
    rows_per_problem: int = Field(8, ge=2)
    """K, the calls of a problem that are trained on."""
    num_drafts: int = Field(4, ge=1)
    """M, the drafts in one workspace."""
    operator_plan: Literal["workspace", "rounds"] = "workspace"
    """`workspace`: M drafts, and K − M refinements of one workspace. `rounds`: K/(M + 1) runs."""
    operator_fraction: float = Field(0.5, ge=0.0, le=1.0)
    """Share of a step's problems that run PDR; the others run long CoT."""
    record: bool = False
    """Whether to keep every trajectory, in `trajectories.jsonl`."""


class ObjectiveSettings(Table):
    """The loss and its rewards (`objective.py`, `rows.py`)."""

    alpha: float = Field(0.1, ge=0.0)
    """Weight of the likelihood of correct rollouts."""
    epsilon_max: float = Field(5.0, ge=1.0)
    """Upper bound on the ratio of the policy to the one that drew a token."""
    draft_credit: DraftCredit = "own"
    """What a draft is rewarded for: its own answer, the run's (`outcome`, only with the plan
    `rounds`), or nothing (`none`: drafts are not trained on)."""
    distill_credit: DistillCredit = "none"
    """What a distiller's call is rewarded for: the run's answer, or nothing."""


class OptimiserSettings(Table):
    """AdamW, its schedule, and how a step's rows are split."""

    updates_per_step: int = Field(1, ge=1)
    """Updates of the weights on one step's rows."""
    micro_batch_rows: int = Field(8, ge=1)
    """Rows in one forward pass of one process; changes only memory."""
    learning_rate: float = Field(1e-6, gt=0.0)
    """Peak rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate falls after warm-up."""
    warmup_updates: int = Field(0, ge=0)
    """Updates over which the rate rises from 0."""
    weight_decay: float = Field(0.0, ge=0.0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(1.0, ge=0.0)
    """Largest norm of an update's gradient; 0 does not clip."""
    beta2: float = Field(0.95, gt=0.0, lt=1.0)
    """Decay of AdamW's second moment."""
    gradient_checkpointing: bool = True
    """Whether activations are recomputed instead of kept."""


class LoraSettings(Table):
    """Low-rank adapters; without this table all weights are trained."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0.0)
    """Scale: the adapter is multiplied by `alpha / rank`."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Leave it at 0 for RL: with dropout, the trained policy is not the one that drew."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Linear modules by the end of their names, or all but the head."""


class DriftSettings(Table):
    """How often the policy that draws is compared with the trained model (`steps.py`)."""

    every: int = Field(1, ge=0)
    """Steps between checks; 0 never checks."""
    rows: int = Field(4, ge=1)
    """Rows that each process scores again."""
    tolerance: float | None = Field(None, gt=0.0)
    """Bound on the difference of log-probabilities, in nats: of the largest in fp32 (None is 1e-3),
    of the mean in bf16 (None is 0.05)."""


class DeviceSettings(Table):
    """What training runs on; `accelerate launch` starts the processes."""

    processes: int = Field(1, ge=1)
    """One for each device, over all machines."""
    sharded: bool = False
    """Whether FSDP shards weights, gradients and optimiser; only for a warm start."""
    memory_gib: float | None = Field(None, gt=0.0)
    """Memory of one device, to compare the estimate with; None does not compare."""
    precision: Precision = "fp32"
    """`bf16` computes in bfloat16; trained weights stay fp32, frozen ones become bf16."""


class WarmStartSettings(Table):
    """Supervised training on `pdr-graph train-data`'s file before RL, or instead of it."""

    data: Path
    """JSON lines with `prompt` and `completion`, each a list of messages."""
    epochs: float = Field(1.0, gt=0.0)
    """Passes over the file."""
    batch_rows: int = Field(32, ge=1)
    """Rows of one update, over all processes."""
    micro_batch_rows: int = Field(4, ge=1)
    """Rows in one forward pass of one process."""
    learning_rate: float = Field(1e-5, gt=0.0)
    """Peak rate; it falls linearly to 0."""
    warmup_share: float = Field(0.03, ge=0.0, lt=1.0)
    """Share of the updates over which the rate rises from 0."""
    max_tokens: int | None = Field(None, ge=2)
    """Longer rows are left out and counted; None is the model's window."""
    save_every: int = Field(100, ge=1)
    """Updates between checkpoints."""


class TrainSettings(Table):
    """One training run."""

    model: Path
    """Folder of the model to start from, as transformers saves it."""
    data: str | None = None
    """Problems, as `pdr-graph eval` reads them; not needed if `steps` is 0."""
    limit: int | None = Field(None, ge=1)
    """Use only the first so many problems."""
    steps: int = Field(100, ge=0)
    """Steps, each of rollouts and the updates on them. 0 ends after the warm start."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Decides the order of problems and every draw."""
    save_every: int = Field(10, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints to keep."""
    strategy: dict[str, Any] = Field(default_factory=dict)  # Any: checked by make_config
    """Fields of `PDRConfig` for both plans: kappa, max_tokens, distiller, answer …"""
    policy: PolicySettings = PolicySettings()
    rollouts: RolloutSettings = RolloutSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    lora: LoraSettings | None = None
    drift: DriftSettings = DriftSettings()
    devices: DeviceSettings = DeviceSettings()
    warm_start: WarmStartSettings | None = None

    @model_validator(mode="after")
    def _strategy_and_plans_are_possible(self) -> Self:
        try:
            _ = self.config, self.direct_plan, self.operator_plan
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def config(self) -> PDRConfig:
        """Return the strategy that every run shares.

        All drafts go into the workspace, unless `k` or `distiller` says otherwise.

        Raises:
            ConfigError: a field of `strategy` is unknown, or set by training.
        """
        for name in self.strategy:
            if name in _SET_BY_TRAINING:
                raise ConfigError(f"strategy.{name} is set by training itself; leave it out")
        drafts = self.rollouts.num_drafts
        all_of_them = {"distiller": "top_k", "k": drafts}
        return make_config(widths=(drafts,), **(all_of_them | self.strategy))

    @property
    def direct_plan(self) -> ProblemPlan:
        """Return how a problem that runs long CoT spends its rows."""
        return ProblemPlan("direct", self.rollouts.rows_per_problem)

    @property
    def operator_plan(self) -> ProblemPlan:
        """Return how a problem that runs PDR spends its rows."""
        rollouts = self.rollouts
        if not rollouts.operator_fraction:
            return self.direct_plan
        plan = rollouts.operator_plan
        return ProblemPlan(plan, rollouts.rows_per_problem, rollouts.num_drafts, self._num_distills)

    def schedule(self, num_problems: int) -> Schedule:
        """Return which problems each step asks, and by which plans.

        Raises:
            ConfigError: there are fewer problems than a step has.
        """
        return Schedule(
            num_problems,
            self.rollouts.problems_per_step,
            self.direct_plan,
            self.operator_plan,
            self.rollouts.operator_fraction,
            self.seed,
        )

    @property
    def rows_per_step(self) -> int:
        """Return the rows of a step, over all processes."""
        return self.rollouts.problems_per_step * self.rollouts.rows_per_problem

    @property
    def micro_batches(self) -> int:
        """Return the micro-batches of an update in one process."""
        rows = self.rows_per_step // self.devices.processes // self.optimiser.updates_per_step
        return rows // self.optimiser.micro_batch_rows

    @property
    def _num_distills(self) -> int:
        """Return how many distiller calls of one workspace are trained on."""
        if self.objective.distill_credit == "none":
            return 0
        config = self.config
        return (
            Extensions()
            .with_code(config)
            .distiller(config.distiller)
            .max_calls(self.rollouts.num_drafts, 1, config.k)
        )


HOW_ONLY = frozenset(
    {"policy.base_url", "policy.max_in_flight", "devices.memory_gib", "keep_checkpoints"}
)
"""Settings that may change when a run is resumed: what is learnt does not depend on them."""


def load_train_settings(
    file: Path | None, given: Mapping[str, object], overrides: Sequence[str] = ()
) -> TrainSettings:
    """Read the settings of a run.

    Args:
        file: A TOML file, or the name of one that comes with the package; None is an empty one.
        given: Settings by name; they override the file.
        overrides: Items `table.field=value`; they override both. A value is read as TOML, or else
            as text.

    Raises:
        ConfigError: the file cannot be read, or a setting is unknown or impossible.
    """
    values = _read(file) if file is not None else {}
    for name, value in given.items():
        _put(values, name.split("."), value, name)
    for override in overrides:
        name, equals, text = override.partition("=")
        if not (equals and name.strip()):
            raise ConfigError(
                f"--set {override!r} is no TABLE.FIELD=VALUE; write --set objective.alpha=0.1"
            )
        _put(values, name.strip().split("."), _value(text), f"--set {name.strip()}")
    if "model" not in values:
        raise ConfigError("no model is named; set model in the file, or --model FOLDER")
    try:
        return TrainSettings.model_validate(values)
    except ValidationError as error:
        where = f"{file}: " if file is not None else ""
        fault = Fault.of(error)
        raise ConfigError(f"{where}{fault.sentence(model=TrainSettings)}") from None


def reference_configs() -> dict[str, Path]:
    """Return the settings files that come with the package, by name."""
    return {file.stem: file for file in sorted(Path(__file__).with_name("configs").glob("*.toml"))}


def _read(file: Path) -> dict[str, Any]:
    ours = reference_configs()
    if not file.exists() and str(file) in ours:
        file = ours[str(file)]
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--config {str(file)!r} cannot be read: {error.strerror}; name a file, or one of "
            f"{', '.join(ours)}"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"--config {str(file)!r} is not UTF-8 text; convert it") from None
    except tomllib.TOMLDecodeError as error:
        where = str(error)[:1].lower() + str(error)[1:]
        raise ConfigError(f"--config {str(file)!r} is no TOML: {where}") from None


def _put(values: dict[str, Any], path: Sequence[str], value: object, name: str) -> None:
    *tables, last = path
    for table in tables:
        inner = values.setdefault(table, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"{name}: {table!r} is a setting and no table; leave out what follows"
            )
        values = inner
    values[last] = value


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()
