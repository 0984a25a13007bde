"""The one look of all tables: a line under the titles, and space."""

from rich.box import Box
from rich.table import Table

# Only the rule under the head is drawn; the spaces are what a box's other lines would be.
_UNDERLINED = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")


def plain_table(*, gap: int = 2) -> Table:
    """Return an empty table with `gap` spaces between its columns."""
    # A box draws one space between columns by itself.
    return Table(box=_UNDERLINED, pad_edge=False, show_edge=False, padding=(0, gap - 1, 0, 0))
