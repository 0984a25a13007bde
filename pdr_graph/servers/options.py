"""What `pdr-graph up` is told: which servers, where, and for how much work."""

from pathlib import Path
from typing import Literal

from platformdirs import user_cache_path
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from pdr_graph.settings import ENV_FILE

Engine = Literal["auto", "vllm", "embedded"]
Store = Literal["auto", "redis", "embedded", "none"]


class UpOptions(BaseSettings):
    """What to start; from options, then `PDR_UP_…`, then `.env`."""

    model_config = SettingsConfigDict(
        env_prefix="PDR_UP_",
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
        str_strip_whitespace=True,
    )

    engine: Engine = "auto"
    """What serves the model: `vllm`, `embedded`, or `auto`: vLLM where a model for it is named."""
    store: Store = "auto"
    """What keeps runs: `redis` (a redis-server on the path), `embedded`, `none`, or `auto`."""
    port: int | None = Field(None, ge=1, le=65535)
    """Port of the model server; without one 8000, or a free one where that is taken."""
    redis_port: int | None = Field(None, ge=1, le=65535)
    """Port of the Redis that is started; without one it listens on a Unix socket."""
    vllm_python: Path | None = None
    """Python of the environment that has vLLM; without one ours, then those made for it."""
    runs: int = Field(1, ge=1)
    """Runs at the same time that the model server is sized for."""
    problem_tokens: int = Field(1024, ge=1)
    """Longest problem that the model server is sized for, in model tokens."""
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    """Share of a GPU's memory that vLLM takes; without one its own default."""
    start_timeout_s: float = Field(1800.0, gt=0)
    """Seconds that the model server may take to start, downloads of weights included."""
    cache_dir: Path = Field(
        default_factory=lambda: user_cache_path("pdr-graph", appauthor=False),
        validation_alias="PDR_CACHE_DIR",
    )
    """Folder in which environments made for vLLM are found."""
