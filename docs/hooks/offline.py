"""Refuses a page that loads anything from the network; links that a reader follows are free."""

import re
from typing import Any

_LOADED = re.compile(
    r'<(?:script|img|iframe|source|link(?=[^>]+rel="(?:stylesheet|preconnect|preload)"))'
    r'[^>]+?(?:src|href)="((?:https?:)?//[^"]+)"'
)


def loaded_from_network(page: str) -> list[str]:
    """Return the addresses from which a browser would load parts of a page."""
    return _LOADED.findall(page)


def on_post_page(output: str, page: Any, config: Any) -> None:  # Any: mkdocs' own types
    """Stop the build at such a page."""
    from mkdocs.exceptions import PluginError

    addresses = loaded_from_network(output)
    if addresses:
        raise PluginError(f"{page.file.src_uri} loads {addresses[0]}; keep it in docs/assets/")
