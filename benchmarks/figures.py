"""What a benchmark does with its figures."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from engine.cache import say
from pdr_graph.errors import PDRError

Figures = dict[str, object]


def tell(measure: Callable[[], Figures], table: Callable[[Figures], str], file: Path | None) -> int:
    """Measure, and print the table; return the exit status.

    Args:
        measure: Returns the figures.
        table: Lays them out for a terminal.
        file: Where they are also written, as JSON; None writes none.
    """
    try:
        figures = measure()
    except (PDRError, ValueError) as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("called off; vLLM is stopped")
        return 130
    sys.stdout.write(table(figures) + "\n")
    if file:
        file.write_text(json.dumps(figures, indent=1) + "\n")
    return 0
