"""The options of `pdr-graph up`: which servers, where, and for how much work."""

from pathlib import Path
from typing import ClassVar, Literal

from platformdirs import user_cache_path
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from pdr_graph.settings import ProcessSettings

Engine = Literal["auto", "vllm", "embedded"]
Store = Literal["auto", "redis", "embedded", "none"]


class UpOptions(ProcessSettings):
    """What to start: options first, then the variables `PDR_UP_…`, then `.env`."""

    model_config = ProcessSettings.model_config | SettingsConfigDict(env_prefix="PDR_UP_")

    harmless: ClassVar[frozenset[str]] = frozenset(
        {
            *("engine", "store", "port", "redis_port", "runs", "problem_tokens"),
            *("gpu_memory_utilization", "start_timeout_s"),
        }
    )

    engine: Engine = "auto"
    """Server of the model: `vllm`, `embedded`, or `auto`, which is vLLM if a model is named."""
    store: Store = "auto"
    """Store of the runs: `redis` (a redis-server on the path), `embedded`, `none`, or `auto`."""
    port: int | None = Field(None, ge=1, le=65535)
    """Port of the model server; by default 8000, or a free one if 8000 is taken."""
    redis_port: int | None = Field(None, ge=1, le=65535)
    """Port of the Redis that is started; by default it listens on a Unix socket."""
    vllm_python: Path | None = None
    """Python of an environment that has vLLM; by default ours, then those made for vLLM."""
    runs: int = Field(1, ge=1)
    """Runs at once that the model server is sized for."""
    problem_tokens: int = Field(1024, ge=1)
    """Longest problem that the model server is sized for, in model tokens."""
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    """Share of a GPU's memory that vLLM takes; by default vLLM decides."""
    start_timeout_s: float = Field(1800.0, gt=0)
    """Longest start of the model server in seconds, with the download of its weights."""
    cache_dir: Path = Field(
        default_factory=lambda: user_cache_path("pdr-graph", appauthor=False),
        validation_alias="PDR_CACHE_DIR",
    )
    """Folder of the environments made for vLLM."""
