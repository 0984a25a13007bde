"""Fills the templates: everything that comes from outside is escaped, and no script can run.

A page holds text that a model wrote, which may be hostile. Three things keep it text: every value
is escaped, the page's policy (`Content-Security-Policy`) allows no script from anywhere, and no
value is ever placed in an attribute that a browser follows.

Writes a page where the user wants it.
"""

from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from pdr_graph.errors import ConfigError


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("pdr_graph.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )


def render(template: str, **values: object) -> str:
    """Return a whole page.

    Args:
        template: Name of a file of `templates`, without its suffix.
        values: What it shows; text is escaped.
    """
    page = _templates().get_template(f"{template}.html").render(values)
    # Half of a surrogate pair, which a model's reply may hold, is in no encoding of a file.
    return page.encode("utf-8", "replace").decode("utf-8")


def write_page(file: Path, text: str) -> None:
    """Write a page, its folder made if need be.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(
            f"{str(file)!r} cannot be written ({error.strerror}); name another file"
        ) from None
