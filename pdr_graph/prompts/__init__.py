"""The prompts: one Markdown file for each kind of call.

The problem comes first and what differs comes last (paper section 3), so that the calls of a run
share a prefix in the server's cache. A folder of the user's own may replace any of the files.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template
from types import MappingProxyType

from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError

VARIABLES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "draft": frozenset({"problem", "answer_format"}),
        "improve": frozenset({"problem", "workspace", "answer_format"}),
        "summary": frozenset({"problem", "candidates", "words"}),
        "critique": frozenset({"problem", "candidates", "words"}),
        "top_k": frozenset({"problem", "candidates", "k"}),
        "compare": frozenset({"problem", "candidates"}),
        "select": frozenset({"problem", "candidates"}),
        "judge": frozenset({"problem", "candidates"}),
        "self_check": frozenset({"problem", "candidates"}),
        "prefer": frozenset({"problem", "candidates"}),
        "answer_math": frozenset(),
        "answer_choice": frozenset(),
        "answer_text": frozenset(),
    }
)
"""The templates, each with the variables that it may use."""

ONE_TOKEN = frozenset({"self_check", "prefer"})
"""Templates whose reply is one token, a choice, of which the likelihood counts."""

_NEEDED = frozenset({"problem", "workspace", "candidates"})
"""Variables that a template must use if it has them."""

_FIELDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "draft_prompt": ("draft",),
        "improve_prompt": ("improve",),
        "distill_prompt": ("summary", "critique"),
        "judge_prompt": ("judge",),
    }
)
"""Fields of `PDRConfig`, each with the templates that it replaces."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """The templates of one process, by name."""

    templates: Mapping[str, str]

    @classmethod
    def load(cls, folder: Path | None = None) -> "Prompts":
        """Read the built-in templates; a file `NAME.md` in `folder` replaces the one of its name.

        Raises:
            ConfigError: the folder, a file in it or a variable in a file is unknown.
        """
        texts = dict(_built_in())
        if folder is not None:
            texts.update(_own_templates(folder))
        return cls(MappingProxyType(texts))

    def of_run(self, config: PDRConfig) -> "Prompts":
        """Return the templates of one run, whose config may replace some.

        Raises:
            ConfigError: a template of the config uses an unknown variable or leaves out a needed
                one.
        """
        own = {
            name: _checked(text, f"{field} {_shortened(text)!r}", name)
            for field, names in _FIELDS.items()
            if (text := getattr(config, field)) is not None
            for name in names
        }
        return Prompts(MappingProxyType({**self.templates, **own})) if own else self

    def render(self, name: str, **values: object) -> str:
        """Fill the template `name`.

        Text that is filled in is not read as a template, so that a draft may hold `$x`.
        """
        return Template(self.templates[name]).substitute(values).strip()

    @property
    def own(self) -> list[str]:
        """Names of the templates that are not the built-in ones."""
        return [name for name, text in _built_in().items() if self.templates[name] != text]

    def hashes(self) -> dict[str, str]:
        """Return the first 16 hex digits of each template's sha256, by name."""
        return {
            name: hashlib.sha256(text.encode()).hexdigest()[:16]
            for name, text in sorted(self.templates.items())
        }


@cache
def _built_in() -> Mapping[str, str]:
    # Cached: every run of a process needs them.
    folder = Path(__file__).parent
    return {name: (folder / f"{name}.md").read_text("utf-8") for name in VARIABLES}


def _own_templates(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise ConfigError(f"prompt folder {str(folder)!r} does not exist")
    texts = {}
    for file in sorted(folder.glob("*.md")):
        if file.stem not in VARIABLES:
            raise ConfigError(
                f"prompt file {str(file)!r} is named for no call; names: {', '.join(VARIABLES)}"
            )
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"prompt file {str(file)!r} cannot be read: {error}") from None
        texts[file.stem] = _checked(text, f"prompt file {str(file)!r}", file.stem)
    if not texts:
        raise ConfigError(f"prompt folder {str(folder)!r} holds no NAME.md file")
    return texts


def _checked(text: str, what: str, name: str) -> str:
    template = Template(text)
    if not template.is_valid():
        raise ConfigError(f"{what} has a stray $; write $$ for a dollar sign")
    unknown = set(template.get_identifiers()) - VARIABLES[name]
    if unknown:
        raise ConfigError(
            f"{what} uses ${min(unknown)}, which this call does not fill; "
            f"known: {', '.join(sorted(VARIABLES[name])) or 'none'}"
        )
    missing = (VARIABLES[name] & _NEEDED) - set(template.get_identifiers())
    if missing:
        raise ConfigError(f"{what} leaves out ${max(missing)}, which the call needs; add it")
    return text


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"
