"""The models on offer: one per preset, with what a request may change of each."""

from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl

from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError
from pdr_graph.extensions import Extensions
from pdr_graph.serve.refusal import RefusalError
from pdr_graph.strategies import PRESETS

MakeConfig = Callable[[str, Mapping[str, object]], PDRConfig]
"""Makes the config of a preset with some fields given."""


class Catalogue:
    """What this server offers."""

    def __init__(
        self, make: MakeConfig, defaults: Mapping[str, object], *, max_drafts: int
    ) -> None:
        """Make the presets with the operator's defaults.

        Args:
            make: From a preset's name and fields to its config.
            defaults: Fields that hold for every request that does not set them.
            max_drafts: Drafts that a request may ask for, all its rounds together.

        Raises:
            ConfigError: no preset can be made with these defaults.
        """
        self._make = make
        self._defaults = dict(defaults)
        self._max_drafts = max_drafts
        self.left_out: dict[str, str] = {}
        """Presets that the defaults rule out, and why."""
        names = []
        for name in PRESETS:
            try:
                Extensions().check(make(name, self._defaults))
            except ConfigError as error:
                self.left_out[name] = str(error)
            else:
                names.append(name)
        if not names:
            raise ConfigError(next(iter(self.left_out.values())))
        self.names = tuple(names)
        """Models on offer."""

    def default(self, name: str) -> PDRConfig:
        """Return the config of a model on offer whose client sets nothing."""
        return self._make(name, self._defaults)

    def resolve(
        self, model: str, asked: Mapping[str, object]
    ) -> tuple[PDRConfig, dict[str, object]]:
        """Return the config of a request, and the fields that the client insists on.

        Args:
            model: A name on offer, with settings behind a question mark if need be.
            asked: Fields of the request's own, which come before those in the name.

        Raises:
            RefusalError: no such model, or more drafts than a request may ask for.
            ConfigError: a field does not fit.
        """
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
        for field, value in fields.items():
            # `package.module:attribute` is for the operator: a client must not import code.
            if isinstance(value, str) and ":" in value:
                raise ConfigError(f"{field} {value!r}: a request names built-in steps only")
        fields.pop("preset", None)
        config = self._make(name, {**self._defaults, **fields})
        Extensions().check(config)
        self._check_size(config)
        return config, {"preset": name, **fields}

    def _check_size(self, config: PDRConfig) -> None:
        last = config.widths[-1] if config.widths else 1
        drafts = sum(config.widths) + config.max_extra_rounds * last
        if drafts > self._max_drafts:
            raise RefusalError(
                400,
                f"the request asks for {drafts} drafts, this server allows {self._max_drafts}; "
                "lower widths or max_extra_rounds",
                param="pdr",
                code="too_many_drafts",
            )


def _settings(query: str) -> dict[str, object]:
    """Read the settings in a model's name, written as in a URL's query."""
    settings: dict[str, object] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name == "widths":
            settings[name] = [each for each in text.split(",") if each.strip()]
        else:
            settings[name] = None if text.lower() == "none" else text
    return settings
