"""What one request asks for: model, settings, seed and problem made into one run to do."""

import base64
import hashlib
import hmac
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from urllib.parse import parse_qsl

from pdr_graph.config import PRESETS, RECOMMENDED, PDRConfig, num_rounds, width_of
from pdr_graph.conversation import Turn, problem_of, turns_of
from pdr_graph.errors import ConfigError
from pdr_graph.extensions import Extensions
from pdr_graph.llm.asker import derived_seed
from pdr_graph.llm.tokens import wellformed
from pdr_graph.run import new_thread_id
from pdr_graph.serve.protocol import MOST_OF_A_MODEL, THREAD, Inquiry
from pdr_graph.serve.refusal import RefusalError

MakeConfig = Callable[[str, Mapping[str, object]], PDRConfig]
"""From a preset's name and fields to its config."""


class Catalogue:
    """The models on offer: one for each preset, with what a request may change of it."""

    def __init__(
        self,
        make: MakeConfig,
        defaults: Mapping[str, object],
        *,
        max_drafts: int,
        steps: Extensions | None = None,
    ) -> None:
        """Make the presets with the operator's defaults.

        Args:
            make: Makes the config of a preset.
            defaults: Fields that hold for every request that does not set them.
            max_drafts: Drafts that a request may ask for, all its rounds together.
            steps: With the operator's judge, if there is one; None has none.

        Raises:
            ConfigError: no preset can be made with these defaults.
        """
        self._make = make
        self._defaults = dict(defaults)
        # What the operator names is imported, and what a request names only looked up.
        self._steps = (steps or Extensions()).with_code(self._defaults)
        self._max_drafts = max_drafts
        self.left_out: dict[str, str] = {}
        """Presets that the defaults rule out, and why."""
        names = []
        # Programs that let a user choose a model begin with the first one.
        for name in sorted(PRESETS, key=lambda each: each != RECOMMENDED):
            try:
                config = make(name, self._defaults)
                self._steps.of(config).check(config)
            except ConfigError as error:
                self.left_out[name] = str(error)
            else:
                names.append(name)
        if not names:
            raise ConfigError(next(iter(self.left_out.values())))
        self.names = tuple(names)
        """Models on offer, the recommended one first."""

    def default(self, name: str) -> PDRConfig:
        """Return the config of a model on offer whose client sets nothing."""
        return self._make(name, self._defaults)

    def resolve(
        self, model: str, asked: Mapping[str, object]
    ) -> tuple[PDRConfig, dict[str, object]]:
        """Return the config of a request, and the fields that the client insists on.

        Args:
            model: A name on offer; settings may follow a question mark.
            asked: The request's own fields, which win over those in the name.

        Raises:
            RefusalError: no such model, or more drafts than a request may ask for.
            ConfigError: a field does not fit.
        """
        if len(model) > MOST_OF_A_MODEL:
            raise RefusalError(
                400,
                f"model has {len(model)} characters, and {MOST_OF_A_MODEL} are the most",
                param="model",
            )
        name, _, query = model.partition("?")
        if name not in self.names:
            why = f" ({self.left_out[name]})" if name in self.left_out else ""
            raise RefusalError(
                404,
                f"no model {name!r}{why}; there are: {', '.join(self.names)}",
                param="model",
                code="model_not_found",
            )
        fields = {**_settings(query), **asked}
        for step in _STEPS & fields.keys():
            # `package.module:attribute` is for the operator: a client must not import code.
            if isinstance(fields[step], str) and ":" in str(fields[step]):
                raise ConfigError(f"{step} {fields[step]!r}: a request names built-in steps only")
        if (other := fields.pop("preset", None)) not in {None, name}:
            raise ConfigError(
                f"preset {other!r} is another than the model {name!r}; name it as the model"
            )
        config = self._make(name, {**self._defaults, **fields})
        self._steps.of(config).check(config)
        for setting, number in config.model_dump().items():
            numbers = number if isinstance(number, tuple) else (number,)
            if any(isinstance(each, int | float) and not each <= _MOST for each in numbers):
                raise ConfigError(f"{setting}: {_MOST} is the most")
        most = num_rounds(config, config.max_extra_rounds)
        # Each round has at least one draft, so more rounds than drafts allowed need no counting.
        drafts = (
            most
            if most > self._max_drafts
            else sum(width_of(config, number) for number in range(1, most + 1))
        )
        if drafts > self._max_drafts:
            raise RefusalError(
                400,
                f"the request asks for {'at least ' if most > self._max_drafts else ''}{drafts} "
                f"drafts, this server allows {self._max_drafts}; lower widths or max_extra_rounds",
                param="pdr",
                code="too_many_drafts",
            )
        return config, {"preset": name, **fields}


_STEPS = frozenset({"distiller", "finish", "verifier"})
"""Settings that can name code."""
_MOST = 2**40
"""Largest number in a setting of a request: sums of such numbers can be kept."""


def _settings(query: str) -> dict[str, object]:
    """Read the settings in a model's name, written as in a URL's query."""
    settings: dict[str, object] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name == "widths":
            settings[name] = [each for each in text.split(",") if each.strip()]
        else:
            settings[name] = None if text.lower() == "none" else text
    return settings


SPACE = "pdr.space"
"""Where the scope of a request holds the space of its key."""


@dataclass(frozen=True, slots=True)
class ThreadSpace:
    """The threads of one key: clients with another key cannot find, read or use them by name."""

    key: str = field(default="", repr=False)
    """Empty for the space whose threads have their plain names."""

    def place(self, name: str) -> str:
        """Return the thread of the store that a client's name stands for.

        The mark `#` is in no client's name, so that no space reaches into another.
        """
        if not self.key:
            return name
        return f"{name}#{hmac.new(self.key.encode(), name.encode(), 'sha256').hexdigest()[:16]}"


REMEMBERED = 65_536
"""Requests whose repeats are counted; the least recent is forgotten first."""


class Repeats:
    """Gives each repeat of a request a seed of its own.

    Evaluation harnesses send one constant seed with every request, even where they ask for several
    samples of one problem. Taken as it is, all of them would be the same sample. So the first
    request has the seed that it names, and each repeat has one derived from that seed and its own
    number. A whole evaluation can thus be repeated from the start of the server.
    """

    def __init__(self, *, repeatable: bool = False) -> None:
        """Begin to count; if `repeatable`, every repeat has the seed that it names."""
        self._repeatable = repeatable
        self._counts: OrderedDict[bytes, int] = OrderedDict()
        self._lock = Lock()

    def seed(self, seed: int, request: str) -> int:
        """Return the seed of a run.

        Args:
            seed: The one that the client names.
            request: Whatever else tells requests apart.
        """
        number = 0 if self._repeatable else self._count(f"{seed} {request}")
        if number == 0:
            return seed if 0 <= seed < 2**31 else derived_seed(seed)
        return derived_seed(seed, "repeat", number)

    def _count(self, request: str) -> int:
        key = hashlib.sha256(request.encode("utf-8", "surrogatepass")).digest()
        with self._lock:  # requests are understood in threads
            number = self._counts.pop(key, 0)
            self._counts[key] = number + 1
            if len(self._counts) > REMEMBERED:
                self._counts.popitem(last=False)
        return number


@dataclass(frozen=True, slots=True)
class SolveRequest:
    """One run to do, and how its answer is to be sent."""

    model: str
    """As the client names it."""
    problem: str
    config: PDRConfig
    insisted: dict[str, object]
    """Fields that the client named: a resumed run must have been started with them."""
    thread_id: str
    """The run's name, as its client knows it."""
    place: str
    """The thread of the store, which has this name in the space of the client's key."""
    named: bool
    """Whether the client named the thread, which may then already hold a run."""
    stops: tuple[str, ...]
    """Texts before which the answer ends."""
    stored: bool
    """Whether the run may be kept if it has no name."""
    composed: bool
    """Whether the problem was made of several turns; else it is one message as it stands."""


def understand(
    inquiry: Inquiry, catalogue: Catalogue, repeats: Repeats, space: ThreadSpace
) -> SolveRequest:
    """Read what is asked for.

    Args:
        inquiry: The request.
        catalogue: The models on offer.
        repeats: Tells repeats of a request apart.
        space: The threads of the client's key.

    Raises:
        RefusalError: something in it cannot be honoured.
        ConfigError: a setting does not fit.
    """
    try:
        problem = problem_of(inquiry.turns)
    except ConfigError as error:
        raise RefusalError(400, str(error), param=inquiry.turns_field) from None
    asked = {name: value for name, value in inquiry.sampling.items() if value is not None}
    config, insisted = catalogue.resolve(inquiry.model, {**asked, **inquiry.pdr})
    # Each request may draw a new seed, and a resumed run keeps its own.
    insisted.pop("seed", None)
    if config.seed is None and inquiry.seed is not None:
        told_apart = f"{space.place('')}{problem} {config.model_dump_json()}"
        config = config.model_copy(update={"seed": repeats.seed(inquiry.seed, told_apart)})
    thread_id = inquiry.thread_id or new_thread_id()
    return SolveRequest(
        model=inquiry.model,
        problem=problem,
        config=config,
        insisted=insisted,
        thread_id=thread_id,
        place=space.place(thread_id),
        named=inquiry.thread_id is not None,
        stops=inquiry.stops,
        stored=inquiry.stored,
        composed=len([turn for turn in inquiry.turns if turn.text.strip()]) > 1,
    )


@dataclass(frozen=True, slots=True)
class ResponseId:
    """Names a response by its thread and its problem: a thread's name alone opens no response."""

    thread_id: str
    digest: bytes
    """Of the problem."""
    rules: int
    """Characters of the request's own instructions at the beginning of the problem; negative where
    the problem is one message as it stands."""

    @classmethod
    def of(cls, asked: SolveRequest, rules: int) -> "ResponseId":
        """Return the id of the response to a request with so many characters of instructions."""
        return cls(asked.thread_id, _digest(asked.problem), rules if asked.composed else -1)

    @classmethod
    def read(cls, text: str) -> "ResponseId | None":
        """Read an id; None if it is none of ours."""
        packed = text.removeprefix("resp_")
        try:
            raw = base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True)
            thread_id = raw[12:].decode()
        except ValueError:
            return None
        found = cls(thread_id, raw[:8], int.from_bytes(raw[8:12], "big", signed=True))
        return found if re.match(THREAD, thread_id) and str(found) == text else None

    def __str__(self) -> str:
        return f"resp_{self.suffix}"

    @property
    def suffix(self) -> str:
        """What the ids of its items end with."""
        raw = self.digest + self.rules.to_bytes(4, "big", signed=True) + self.thread_id.encode()
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    def names(self, problem: str) -> bool:
        """Tell whether the problem of its thread is the one that it was made for."""
        return self.digest == _digest(problem)

    def conversation(self, problem: str, answer: str) -> list[Turn]:
        """Return the turns up to an answer, without the instructions of the request itself."""
        whole = self.rules < 0
        said = [Turn("user", problem)] if whole else turns_of(problem, skip=self.rules)
        return [*said, Turn("assistant", answer)]


def _digest(problem: str) -> bytes:
    return hashlib.sha256(wellformed(problem).strip().encode()).digest()[:8]
