"""Finds or fetches the weights ahead of time: `python -m pdr_graph.local.weights`."""

import argparse
import sys
from pathlib import Path

from pdr_graph.errors import LocalError
from pdr_graph.local.data_dir import default_data_dir
from pdr_graph.local.weights import SMOLLM2, fetch_weights, find_weights


def main(arguments: list[str] | None = None) -> int:
    """Find or fetch the weights of the embedded model, and print where they are."""
    parser = argparse.ArgumentParser("python -m pdr_graph.local.weights", description=main.__doc__)
    parser.add_argument("--data-dir", type=Path, default=default_data_dir())
    data_dir: Path = parser.parse_args(arguments).data_dir
    try:
        path = find_weights(data_dir) or fetch_weights(data_dir, _say)
    except LocalError as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        _say("fetching the weights was called off")
        return 130
    sys.stdout.write(f"{SMOLLM2.name}: {path}\n")
    return 0


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
