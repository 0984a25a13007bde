"""Settings of this process: model endpoint, checkpoint store, data directory, and its strategy.

The only place that reads the environment. A value that a caller passes comes first, then the
variable `PDR_…`, then the file `.env` in the current directory, then the default.

The `.env` may come from another person, together with its directory. Until the user trusts the
file, it may set only harmless values, and an endpoint together with its key. A key from elsewhere
is not sent to that endpoint.
"""

import difflib
import hashlib
import logging
import os
import re
import shlex
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar
from urllib.parse import urlsplit

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from platformdirs import user_data_path
from pydantic import Field, SecretStr, ValidationError, create_model, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError, enumerated, keep_secret, keep_secrets_of
from pdr_graph.files import written_whole
from pdr_graph.types import ROLES, ModelPrice, RoleModel
from pdr_graph.validation import Fault, is_http_address

logger = logging.getLogger(__name__)

ENV_FILE = Path(".env")
PREFIX = "PDR_"
NO_KEY = "EMPTY"
"""Stands for no API key."""

ROLE_KEYS: Mapping[str, str] = {role: f"api_key_{role}" for role in ROLES}
"""Fields of the keys that roles have of their own."""
_SECRETS = frozenset({"api_key", "key", "encryption_keys", *ROLE_KEYS.values()})
MOST_SECRET_BYTES = 65_536
"""Most bytes that are read of a file that holds a secret."""

Values = dict[str, Any]  # Any: pydantic checks what the sources hold


@dataclass(frozen=True, slots=True)
class EnvFile:
    """One file of NAME=value lines, as it was read.

    It is trusted as direnv does it: the user says so once, for the file as it is now. A changed
    file must be trusted again. What is trusted is noted in the user's own data directory, which no
    file of settings can move.
    """

    path: Path
    """Absolute, without symbolic links."""
    content: str

    @classmethod
    def read(cls, path: Path) -> "EnvFile | None":
        """Read a file; None if there is none.

        Raises:
            ConfigError: it cannot be read, or a line is no NAME=value.
        """
        if not path.is_file():
            return None
        where = path.resolve()
        try:
            content = where.read_text("utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{str(where)!r} is not UTF-8 text; correct or remove it") from None
        except OSError as error:
            raise ConfigError(f"{str(where)!r} cannot be read: {error.strerror}") from None
        # dotenv would skip the lines that it does not understand.
        broken = [each.original for each in parse_stream(StringIO(content)) if each.error]
        if broken:
            line, text = broken[0].line, broken[0].string.strip().partition("\n")[0]
            # A broken line may still hold a secret: say where it is and how it begins, no more.
            raise ConfigError(
                f"{str(where)!r} line {line} is no NAME=value: {text[:12]!r}; correct it"
            )
        return cls(where, content)

    def variables(self, *, refer: bool) -> dict[str, str]:
        """Return what the file sets, names in upper case.

        Args:
            refer: Whether `${NAME}` in a value stands for a variable of the environment, which may
                be a secret. If not, it stands for itself.
        """
        found = dotenv_values(stream=StringIO(self.content), interpolate=refer)
        return {name.upper(): value for name, value in found.items() if value}

    @property
    def trust(self) -> Literal["given", "none", "changed"]:
        """Whether the user trusts the file; `changed` if its content is another by now."""
        try:
            noted = self._note.read_text("ascii")
        except (OSError, ValueError):
            return "none"
        return "given" if noted == self._digest else "changed"

    def give_trust(self) -> None:
        """Trust the file, as long as it does not change.

        Raises:
            ConfigError: the user's data directory cannot be written.
        """
        note = self._note
        try:
            for folder in (note.parent.parent, note.parent):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with written_whole(note, private=True) as out:
                out.write(self._digest.encode())
        except OSError as error:
            raise ConfigError(
                f"{str(note.parent)!r} cannot be written: {error.strerror}; name the file by "
                "--env-file instead"
            ) from None

    def take_trust(self) -> None:
        """Do not trust the file any more."""
        self._note.unlink(missing_ok=True)

    @property
    def _note(self) -> Path:
        folder = _data_dir() / "trusted"
        return folder / hashlib.sha256(os.fsencode(self.path)).hexdigest()

    @property
    def _digest(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()


def _data_dir() -> Path:
    return user_data_path("pdr-graph", appauthor=False)


class ProcessSettings(BaseSettings):
    """Settings that a `.env` may change only as far as it is trusted."""

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

    in_files: ClassVar[Mapping[str, str]] = {}
    """Fields of secrets, each with the field that names a file of it. The nearest source that sets
    either of the two decides on both."""
    read_later: ClassVar[frozenset[str]] = frozenset()
    """File fields of `in_files` whose file is read only when the secret is needed."""
    harmless: ClassVar[frozenset[str]] = frozenset()
    """Fields that an untrusted file may set. All others decide where data and secrets go, which
    files are read or written, what is run, or who is let in."""

    @classmethod
    def admitted(cls, filed: Mapping[str, str], others: Mapping[str, Any]) -> Values:
        """Join the values of an untrusted file with those of the other sources."""
        return {
            **{name: value for name, value in filed.items() if name in cls.harmless},
            **others,
        }

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the file last, and by its trust."""
        assert isinstance(dotenv_settings, DotEnvSettingsSource)  # as pydantic has it
        return (_AllSources(cls, init_settings, env_settings, dotenv_settings.env_file),)


T = TypeVar("T", bound=ProcessSettings)


class _AllSources(PydanticBaseSettingsSource):
    """What is given, the environment and the file, in this order."""

    def __init__(
        self,
        kind: type[ProcessSettings],
        given: PydanticBaseSettingsSource,
        environment: PydanticBaseSettingsSource,
        file: Any,  # Any: as pydantic-settings has it, one path or several
    ) -> None:
        super().__init__(kind)
        self._kind = kind
        self._others = (environment, given)
        # By identity: `--env-file .env` names the folder's own file, and so trusts it.
        self._named = file is not ENV_FILE
        self._file = None if file is None else EnvFile.read(Path(file))

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return nothing: all fields are read at once."""
        return None, field_name, False

    def __call__(self) -> Values:
        """Return the values of all sources; say in the log what was ignored."""
        others: Values = {}
        for each in self._others:
            others = _joined(self._kind, others, _with_secrets(self._kind, each()))
        if self._file is None:
            return others
        trust = "given" if self._named else self._file.trust
        filed = _fields(self._kind, self._file.variables(refer=trust == "given"))
        if trust == "given":
            return _joined(self._kind, _with_secrets(self._kind, filed), others)
        plain = {name: value for name, value in filed.items() if "${" not in value}
        values = self._kind.admitted(plain, others)
        ignored = [
            variable_of(self._kind, name)
            for name in filed
            if name not in others and name not in values
        ]
        said = []
        if ignored:
            said.append(f"{enumerated(ignored)} {'is' if len(ignored) == 1 else 'are'} ignored")
        if any(_plain(values[name]) != _plain(others[name]) for name in others):
            said.append(f"{PREFIX}API_KEY is not sent to its {PREFIX}BASE_URL")
        if said:
            why = "has changed since you trusted it" if trust == "changed" else "is not trusted"
            logger.warning(
                "%r %s: %s; to allow it, say --env-file %s, or run `pdr-graph trust` here once",
                str(self._file.path),
                why,
                ", and ".join(said),
                ENV_FILE,
                extra={"even_if_quiet": True},
            )
        return values


def variable_of(kind: type[BaseSettings], name: str) -> str:
    """Return the variable of a field."""
    field = kind.model_fields.get(name)
    alias = name if field is None else field.validation_alias
    return alias if isinstance(alias, str) else f"{kind.model_config['env_prefix']}{name.upper()}"


def _fields(kind: type[BaseSettings], variables: Mapping[str, str]) -> dict[str, str]:
    """Return the fields that variables set, by the name that pydantic takes."""
    return {
        alias if isinstance(alias := field.validation_alias, str) else name: variables[variable]
        for name, field in kind.model_fields.items()
        if (variable := variable_of(kind, name)) in variables
    }


def _with_secrets(kind: type[ProcessSettings], values: Mapping[str, Any]) -> Values:
    """Read the secrets that a source names by files.

    Raises:
        ConfigError: it names a secret twice, or a file cannot be read.
    """
    found = dict(values)
    for secret, file in kind.in_files.items():
        if found.get(file) is None:
            continue
        if found.get(secret) is not None:
            both = f"{variable_of(kind, secret)} and {variable_of(kind, file)}"
            raise ConfigError(f"{both} name one secret; leave one of them out")
        if file not in kind.read_later:
            found[secret] = SecretStr(secret_in(Path(str(found[file]))))
    return found


def _joined(kind: type[ProcessSettings], far: Mapping[str, Any], near: Mapping[str, Any]) -> Values:
    """Join two sources; the near one decides on a secret and its file together."""
    decided = {
        name for pair in kind.in_files.items() if not near.keys().isdisjoint(pair) for name in pair
    }
    return {**{name: value for name, value in far.items() if name not in decided}, **near}


def secret_in(path: Path) -> str:
    """Return the secret that a file holds, without white space around it.

    Raises:
        ConfigError: the file cannot be read, is open to other users, or is empty.
    """
    where = f"key file {str(path)!r}"
    try:
        with path.open("rb") as source:
            about = os.fstat(source.fileno())
            mode = stat.S_IMODE(about.st_mode)
            # Where root keeps a secret for a service, its group may read it.
            by_root = about.st_uid == 0 and os.geteuid() != 0
            if mode & (0o037 if by_root else 0o077):
                raise ConfigError(
                    f"{where} has mode {mode:04o}, so that other users can read or change it; "
                    f"run `chmod 600 {shlex.quote(str(path))}`, and replace the key if somebody "
                    "may have read it"
                )
            text = source.read(MOST_SECRET_BYTES).decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ConfigError(f"{where} is not UTF-8 text; write the key there, and no more") from None
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}") from None
    if not text:
        raise ConfigError(f"{where} is empty; write the key there")
    return text


def _plain(value: object) -> object:
    return value.get_secret_value().strip() if isinstance(value, SecretStr) else value


def _each(value: object) -> Sequence[Any]:
    """Return the parts of a list that a variable holds as text."""
    if not isinstance(value, str):
        return value if isinstance(value, Sequence) else [value]
    return [part for part in re.split(r"[,\s]+", value) if part]


def _refuse_twice(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} {name!r} is given twice; leave one of them out")
        seen.add(name)


class Settings(ProcessSettings):
    """Where the parts of this process are; not recorded with a run."""

    harmless: ClassVar[frozenset[str]] = frozenset(
        {
            *("base_url", "model", "api_key", "max_in_flight", "retries", "priority"),
            *("idle_timeout_s", "reply_timeout_s"),
        }
    )

    in_files: ClassVar[Mapping[str, str]] = {
        "api_key": "api_key_file",
        "encryption_keys": "encryption_key_file",
    }
    read_later: ClassVar[frozenset[str]] = frozenset({"encryption_key_file"})
    unspoken: ClassVar[frozenset[str]] = frozenset({"encryption_keys", *ROLE_KEYS.values()})
    """Fields without an option: other users can see what is typed on a command line."""

    base_url: str | None = None
    """OpenAI-compatible endpoint of the model, with its `/v1`. Without one, a small embedded model
    runs."""
    model: str | None = None
    """Name of the model; optional where the endpoint serves only one. Without an endpoint: a .gguf
    file, or the folder of a small transformers model, to run here."""
    api_key: SecretStr = SecretStr(NO_KEY)
    """API key of the endpoint. Other users of this machine can see what you type, so name a
    file or set the variable instead."""
    api_key_file: Path | None = None
    """File that holds the API key and that nobody else can read."""
    model_for: Annotated[tuple[RoleModel, ...], NoDecode] = ()
    """Model of a role: drafter, contested, distiller, refiner, verifier or judge. Without @URL it
    is served at the base URL; a .gguf file runs here. `contested` drafts where the drafts before
    did not agree. At another host, the refiner's key is in PDR_API_KEY_REFINER, and so on. Repeat
    it for each role."""
    price: Annotated[tuple[ModelPrice, ...], NoDecode] = ()
    """What a model costs per million prompt and completion tokens. The ledger then has costs.
    Repeat it for each model."""
    api_key_drafter: SecretStr | None = None
    """API key of the drafter's endpoint, where `model_for` names one. The key above is sent to the
    host of the base URL alone. There is no option for it."""
    api_key_contested: SecretStr | None = None
    """The same for drafts that follow on disagreement."""
    api_key_distiller: SecretStr | None = None
    """The same for the distiller."""
    api_key_refiner: SecretStr | None = None
    """The same for the refiner."""
    api_key_verifier: SecretStr | None = None
    """The same for the verifier."""
    api_key_judge: SecretStr | None = None
    """The same for the judge."""
    redis_url: str | None = None
    """Store of the runs: redis://…, rediss://…, unix://…, or `memory`, which keeps none. Without
    one, an embedded Valkey keeps them in the data directory."""
    max_bytes: int = Field(256 * 1024 * 1024, ge=1)
    """Memory that the values of one checkpoint may take when they are read. What would take more is
    refused before it is built."""
    encryption_key_file: Path | None = None
    """File of the keys that encrypt stored runs, one a line: the first seals, all open. `openssl
    rand -hex 32` makes one. Nobody else may be able to read it. PDR_ENCRYPTION_KEYS takes the keys
    themselves."""
    encryption_keys: SecretStr | None = None
    """The same keys as text, separated by spaces or commas. There is no option for it."""
    data_dir: Path = Field(default_factory=_data_dir)
    """Folder of the embedded parts: their checkpoints, weights and logs."""
    tokenizer: Path | None = None
    """A tokenizer.json to count tokens with. Without one, the endpoint counts them."""
    prompts: Path | None = None
    """Folder whose NAME.md files replace built-in prompts."""
    judge: Path | None = None
    """Weigh drafts by this judge, which `pdr-graph judge fit` has made."""
    judge_url: str | None = None
    """OpenAI-compatible endpoint of embeddings, with its `/v1`, where a judge of hidden states has
    drafts read: the same model in vLLM's pooling runner or llama.cpp's embedding mode, or a copy of
    its first layers."""
    judge_weights: Path | None = None
    """Model folder or .gguf file in which such a judge reads drafts in this process, by torch."""
    max_in_flight: int = Field(256, ge=1)
    """Most calls to the model at the same time."""
    retries: int = Field(3, ge=0)
    """Retries of a call after a temporary error."""
    idle_timeout_s: float = Field(3600.0, gt=0)
    """Longest time of a streamed reply without a piece of the answer, in seconds."""
    reply_timeout_s: float = Field(21_600.0, gt=0)
    """Longest time of one request to the model, in seconds."""
    priority: bool | None = None
    """Tell the endpoint how far a run is, so that it serves begun runs before new ones. Needs vLLM
    with `--scheduling-policy priority`. By default only the vLLM of `pdr-graph up` is told."""
    log_file: Path | None = None
    """Append each step of each run to this file as a JSON line, without its texts."""
    otel: bool = False
    """Send spans of runs and calls with OpenTelemetry, as its OTEL_… variables say."""
    otel_content: bool = False
    """Include prompts and replies in these spans."""

    def model_post_init(self, context: object, /) -> None:
        """Let no error show the key, or a password in an address."""
        keep_secret(self.api_key.get_secret_value())
        for field in ROLE_KEYS.values():
            if (key := getattr(self, field)) is not None:
                keep_secret(key.get_secret_value())
        for url in (self.base_url, self.redis_url, self.judge_url):
            keep_secrets_of(url or "")

    def key_for(self, asked: RoleModel) -> SecretStr:
        """Return the key of a role's endpoint: its own, or that of the settings at the same host.

        A key is never sent to a host that it was not given for. `NO_KEY` stands for none.
        """
        own: SecretStr | None = getattr(self, ROLE_KEYS[asked.role])
        if own is not None:
            return own
        same = asked.base_url is None or _host(asked.base_url) == _host(self.base_url or "")
        return self.api_key if same and self.base_url is not None else SecretStr(NO_KEY)

    @field_validator("model_for", mode="before")
    @classmethod
    def _read_models(cls, value: object) -> tuple[RoleModel, ...]:
        found = tuple(
            each if isinstance(each, RoleModel) else RoleModel.parse(str(each))
            for each in _each(value)
        )
        _refuse_twice("role", (each.role for each in found))
        return found

    @field_validator("price", mode="before")
    @classmethod
    def _read_prices(cls, value: object) -> tuple[ModelPrice, ...]:
        found = tuple(
            each if isinstance(each, ModelPrice) else ModelPrice.parse(str(each))
            for each in _each(value)
        )
        _refuse_twice("model", (each.name for each in found))
        return found

    @field_validator("base_url", "judge_url")
    @classmethod
    def _is_address(cls, url: str | None) -> str | None:
        if url is not None and not is_http_address(url):
            keep_secrets_of(url)
            raise ValueError("this is no http address; write it like http://127.0.0.1:8000/v1")
        return url

    @field_validator("api_key", *ROLE_KEYS.values())
    @classmethod
    def _key_fits_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        if key is None:
            return None
        text = key.get_secret_value().strip()
        if not (text.isascii() and text.isprintable()):
            raise ValueError("an API key holds printable ASCII characters only")
        return SecretStr(text or NO_KEY)

    @classmethod
    def admitted(cls, filed: Mapping[str, str], others: Mapping[str, Any]) -> Values:
        """Send an endpoint that only the file names no other key than the file's."""
        values = super().admitted(filed, others)
        if "base_url" in filed and "base_url" not in others and "api_key" in others:
            values["api_key"] = filed.get("api_key", NO_KEY)
        # With an endpoint it is a name; without one it is loaded here.
        if "model" not in others and values.get("base_url") is None:
            name = values.get("model", "")
            # Not pathlib's: it raises where a name is no path at all.
            if name.endswith(".gguf") or os.path.exists(os.path.expanduser(name)):  # noqa: PTH110, PTH111
                values.pop("model", None)
        return values


def _host(url: str) -> tuple[str, str]:
    """Return scheme and host of an address; a key for https is no key for http."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url, ""
    return parts.scheme, parts.hostname or ""


def load_settings(**given: object) -> Settings:
    """Read the settings; `given` values come before the environment.

    `_env_file` names a file that is read, and trusted, in place of the current directory's `.env`.

    Raises:
        ConfigError: a value or the file is malformed or missing; one sentence names it.
    """
    return read_settings(Settings, given)


def read_settings(kind: type[T], given: Mapping[str, object]) -> T:
    """Read settings of any kind; `given` values come before the environment.

    Raises:
        ConfigError: a value or the file is malformed or missing; one sentence names it.
    """
    values: Values = dict(given)
    named = values.get("_env_file")
    if named is not None and not Path(str(named)).is_file():
        raise ConfigError(f"--env-file {str(named)!r} is no file; name one that exists")
    # pydantic reads it before we do, and has no sentence for a malformed one.
    EnvFile.read(ENV_FILE if named is None else Path(str(named)))
    try:
        return kind(**values)
    except ValidationError as error:
        fault = Fault.of(error)
        name = fault.path[0]
        called = name if name in given else variable_of(kind, name)
        raise ConfigError(fault.sentence(called, secret=name in _SECRETS)) from None


class _StrategyBase(ProcessSettings):
    """Fields of `PDRConfig` for the commands that take them, as text; None where unset."""

    @classmethod
    def admitted(cls, filed: Mapping[str, str], others: Mapping[str, Any]) -> Values:
        """Leave out values that name code: `package.module:attribute` would be imported."""
        steps = {"distiller", "finish", "verifier"}
        plain = {name: text for name, text in filed.items() if name not in steps or ":" not in text}
        return {**plain, **others}


_FIELDS: Any = dict.fromkeys(PDRConfig.model_fields, (str | None, None))  # Any: as pydantic has it
StrategySettings = create_model("StrategySettings", __base__=_StrategyBase, **_FIELDS)


def strategy_variables(env_file: Path | None = None) -> dict[str, str]:
    """Return the fields of `PDRConfig` that the environment or a file sets, as text.

    Args:
        env_file: A file that is read, and trusted, in place of the current directory's `.env`.

    Raises:
        ConfigError: the file is malformed or missing.
    """
    found = read_settings(StrategySettings, {} if env_file is None else {"_env_file": env_file})
    return {name: text for name, text in found if text is not None}


def unknown_variables(
    kinds: Iterable[type[BaseSettings]], env_file: Path | None = None
) -> dict[str, str]:
    """Return variables `PDR_…` that are no setting, each with the nearest one, "" if none is near.

    Args:
        kinds: The settings that there are, beside the strategy's.
        env_file: As for `strategy_variables`.

    Raises:
        ConfigError: the file is malformed.
    """
    every: list[type[BaseSettings]] = [*kinds, StrategySettings]
    known = {variable_of(kind, name) for kind in every for name in kind.model_fields}
    file = EnvFile.read(env_file or ENV_FILE)
    names: Collection[str] = {*os.environ, *(file.variables(refer=False) if file else ())}
    unknown = sorted(
        name
        for name in names
        if name.startswith(PREFIX) and name not in known and not name.startswith(_NO_SETTINGS)
    )
    return {name: _nearest(name, known) for name in unknown}


def _nearest(name: str, known: Iterable[str]) -> str:
    # Without the common prefix, which would make short names look alike.
    bare = [each.removeprefix(PREFIX) for each in known]
    found = difflib.get_close_matches(name.removeprefix(PREFIX), bare, 1)
    return PREFIX + found[0] if found else ""


_NO_SETTINGS = ("PDR_DEBUG", "PDR_DEMO", "PDR_TEST_", "PDR_VERIFY_", "PDR_VLLM_", "PDR_STEPS")
"""Variables of the command line itself, of `make`, and of the tests."""


def debug_wanted() -> bool:
    """Tell whether `PDR_DEBUG` asks for tracebacks; read alone, since settings may be malformed."""
    return os.environ.get(f"{PREFIX}DEBUG", "").strip().lower() not in {"", "0", "false", "no"}


DEMO_MODELS = ("usual", "tiny")


def demo_model() -> str:
    """Return which model the demonstration runs on, as `PDR_DEMO` says.

    Raises:
        ConfigError: it names no such model.
    """
    name = os.environ.get(f"{PREFIX}DEMO", "").strip().lower() or DEMO_MODELS[0]
    if name not in DEMO_MODELS:
        raise ConfigError(
            f"{PREFIX}DEMO is {name!r}; it may be {' or '.join(DEMO_MODELS)}, or left out"
        )
    return name
