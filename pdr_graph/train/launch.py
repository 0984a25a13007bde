"""What `accelerate launch` or `torchrun` told this process: its rank, and how many there are."""

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pdr_graph.errors import ConfigError, PDRError
from pdr_graph.train.settings import TrainSettings
from pdr_graph.validation import Fault


class Launch(BaseSettings):
    """The launcher's variables, `WORLD_SIZE` and so on; without them there is one process."""

    model_config = SettingsConfigDict(env_ignore_empty=True, frozen=True, extra="ignore")

    world_size: int = Field(1, ge=1)
    rank: int = Field(0, ge=0)
    accelerate_use_fsdp: bool = False
    accelerate_use_deepspeed: bool = False
    accelerate_mixed_precision: str | None = None
    """None without `accelerate launch`, which always sets it."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0


class RankError(PDRError, RuntimeError):
    """Another rank failed, or the main one reports the failure of this one."""


class LostRankError(PDRError, ConnectionError):
    """Another rank ended without reporting why."""

    def __init__(self) -> None:
        super().__init__(
            "another process of the run has ended, or cannot be reached any more; the launcher "
            "says which, and what ended it"
        )


def read_launch() -> Launch:
    """Read what the launcher set.

    Raises:
        ConfigError: a variable is malformed.
    """
    try:
        return Launch()
    except ValidationError as error:
        fault = Fault.of(error)
        raise ConfigError(
            f"{fault.sentence(fault.name.upper())}; it is set by `accelerate launch`"
        ) from None


def check_launch(launch: Launch, settings: TrainSettings) -> None:
    """Refuse a number of processes, or a sharding, other than the settings'.

    Raises:
        ConfigError: the sentence has the command or the setting that fits.
    """
    asked = settings.devices.processes
    if launch.world_size != asked:
        started = "1 was" if launch.world_size == 1 else f"{launch.world_size} were"
        words = f"accelerate launch --num_processes {asked}"
        why = "; use"
        if launch.world_size == 1 and launch.accelerate_mixed_precision is not None:
            # It says nothing about it.
            words = f"torchrun --nproc_per_node {asked}"
            why = ": `accelerate launch` starts no more with --cpu, or without a second GPU; use"
        raise ConfigError(
            f"devices.processes is {asked} and {started} started{why} `{words} -m pdr_graph.cli "
            f"train …`, or set devices.processes {launch.world_size}"
        )
    if launch.accelerate_use_deepspeed:
        raise ConfigError(
            "the launcher uses DeepSpeed, which training does not support; use `accelerate launch "
            "--multi_gpu …`, or for a warm start alone `--use_fsdp`"
        )
    if settings.devices.sharded and not launch.accelerate_use_fsdp:
        raise ConfigError(
            "devices.sharded needs FSDP: `accelerate launch --use_fsdp …`, or a file of "
            "`accelerate config`"
        )
    if launch.accelerate_use_fsdp and not settings.devices.sharded:
        raise ConfigError(
            "the launcher shards the model by FSDP and devices.sharded is false; set "
            "devices.sharded true"
        )
