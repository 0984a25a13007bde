"""Fills the templates of pages, in which no script can run, and writes the pages.

A page holds text that a model wrote, which may be hostile. Three things keep it text: every value
is escaped, the page's `Content-Security-Policy` allows no script from anywhere, and no value is
placed in an attribute that a browser follows.
"""

from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from pdr_graph.errors import ConfigError
from pdr_graph.llm.tokens import wellformed


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
        values: What the page shows; text is escaped.
    """
    page = _templates().get_template(f"{template}.html").render(values)
    return wellformed(page)


def write_page(file: Path, text: str) -> None:
    """Write a page; make its folder if there is none.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(
            f"{str(file)!r} cannot be written ({error.strerror}); name another file"
        ) from None
