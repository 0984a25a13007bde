"""Lines of a terminal: prose is wrapped, and what a reader copies stays in one piece.

A newline inside a command or a path would be copied with it. A piece that is longer than a line has
a line of its own, which the terminal shows on several without a newline.
"""

import re

from rich.cells import cell_len

_PIECES = re.compile(
    r"(?:→ )?(?:`[^`]*`"  # a command in a sentence
    r"|pip install (?:'[^']*'|\S+)"  # the command of `install_command`, which no marks enclose
    r"|(?<!\w)'[^']*'(?!\w)"  # a path or a value, as `repr` writes it
    r"|\S)+"
)


def wrapped(text: str, width: int) -> list[str]:
    """Break a text at its spaces, but not within commands and quotations.

    Args:
        text: One line.
        width: Columns of each line; only a piece that is longer takes more.
    """
    lines = [""]
    for piece in _PIECES.findall(text):
        longer = f"{lines[-1]} {piece}" if lines[-1] else piece
        if not lines[-1] or cell_len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(piece)
    return lines
