"""Settings of this process: model endpoint, checkpoint store, data directory.

The only place that reads the environment. A value that a caller passes comes first, then the
variable `PDR_…`, then the file `.env` in the current directory, then the default.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from dotenv.parser import parse_stream
from platformdirs import user_data_path
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pdr_graph.errors import ConfigError
from pdr_graph.validation import Fault

ENV_FILE = Path(".env")
PREFIX = "PDR_"

_SECRETS = frozenset({"api_key", "key"})

T = TypeVar("T", bound=BaseSettings)


class Settings(BaseSettings):
    """Where the parts of this process are; not recorded with a run."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
        str_strip_whitespace=True,
    )

    base_url: str | None = None
    """OpenAI-compatible endpoint of the model, with its `/v1`. Without one, a small embedded model
    runs."""
    model: str | None = None
    """Name of the model; optional where the endpoint serves only one. Without an endpoint: a .gguf
    file, or the folder of a small transformers model, to run here."""
    api_key: SecretStr = SecretStr("EMPTY")
    """API key of the endpoint."""
    redis_url: str | None = None
    """Store of the runs: redis://…, rediss://…, unix://…, or `memory`, which keeps none. Without
    one, an embedded Valkey keeps them in the data directory."""
    data_dir: Path = Field(default_factory=lambda: user_data_path("pdr-graph", appauthor=False))
    """Folder of the embedded parts: their checkpoints, weights and logs."""
    tokenizer: Path | None = None
    """A tokenizer.json to count tokens with. Without one, the endpoint counts them."""
    prompts: Path | None = None
    """Folder whose NAME.md files replace built-in prompts."""
    max_in_flight: int = Field(256, ge=1)
    """Most calls to the model at the same time."""
    retries: int = Field(3, ge=0)
    """Retries of a call after a temporary error."""
    priority: bool | None = None
    """Tell the endpoint how far a run is, so that it serves begun runs before new ones. Needs vLLM
    with `--scheduling-policy priority`. By default only the vLLM of `pdr-graph up` is told."""
    log_file: Path | None = None
    """Append each step of each run to this file as a JSON line, without its texts."""
    otel: bool = False
    """Send spans of runs and calls with OpenTelemetry, as its OTEL_… variables say."""
    otel_content: bool = False
    """Include prompts and replies in these spans."""

    @field_validator("api_key")
    @classmethod
    def _key_fits_a_header(cls, key: SecretStr) -> SecretStr:
        text = key.get_secret_value().strip()
        if not (text.isascii() and text.isprintable()):
            raise ValueError("an API key holds printable ASCII characters only")
        return SecretStr(text or "EMPTY")


def load_settings(**given: object) -> Settings:
    """Read the settings; `given` values come before the environment.

    Raises:
        ConfigError: a value or the file `.env` is malformed; one sentence names it.
    """
    return read_settings(Settings, given)


def read_settings(kind: type[T], given: Mapping[str, object]) -> T:
    """Read settings of any kind; `given` values come before the environment.

    Raises:
        ConfigError: a value or the file `.env` is malformed; one sentence names it.
    """
    check_env_file(ENV_FILE)
    values: dict[str, Any] = dict(given)  # Any: pydantic checks what a caller passes
    try:
        return kind(**values)
    except ValidationError as error:
        prefix = kind.model_config.get("env_prefix", PREFIX)
        fault = Fault.of(error)
        name = fault.path[0]
        called = name if name in given else f"{prefix}{name.upper()}"
        raise ConfigError(fault.sentence(called, secret=name in _SECRETS)) from None


def debug_wanted() -> bool:
    """Tell whether `PDR_DEBUG` asks for tracebacks; read alone, since settings may be malformed."""
    return os.environ.get(f"{PREFIX}DEBUG", "").strip().lower() not in {"", "0", "false", "no"}


def check_env_file(file: Path) -> None:
    """Refuse a malformed file: dotenv would skip the lines that it does not understand.

    Raises:
        ConfigError: it cannot be read, or a line is no NAME=value.
    """
    if not file.is_file():
        return
    try:
        with file.open(encoding="utf-8") as lines:
            broken = [each.original for each in parse_stream(lines) if each.error]
    except UnicodeDecodeError:
        raise ConfigError(
            f"{str(file.resolve())!r} is not UTF-8 text; correct or remove it"
        ) from None
    except OSError as error:
        raise ConfigError(f"{str(file.resolve())!r} cannot be read: {error.strerror}") from None
    if broken:
        line, text = broken[0].line, broken[0].string.strip().partition("\n")[0]
        # A broken line may still hold a secret: say where it is and how it begins, no more.
        raise ConfigError(
            f"{str(file.resolve())!r} line {line} is no NAME=value: {text[:12]!r}; correct it"
        )
