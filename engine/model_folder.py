"""Turns the weights of a GGUF file into a folder that vLLM loads."""

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from engine.cache import made_once, say
from pdr_graph.errors import LocalError
from pdr_graph.servers.data_dir import default_data_dir
from pdr_graph.servers.weights import SMOLLM2, Weights, fetch_weights, find_weights

DEQUANTISE = Path(__file__).with_name("dequantise.py")


def smollm2_folder(python: Path) -> Path:
    """Return the embedded model, SmolLM2-135M-Instruct, as a folder (half a minute, 540 MB).

    Raises:
        LocalError: The weights cannot be had or read.
    """

    def file() -> Path:
        data_dir = default_data_dir()
        return find_weights(data_dir) or fetch_weights(data_dir, say)

    return dequantised(python, SMOLLM2, file)


def dequantised(python: Path, weights: Weights, file: Callable[[], Path]) -> Path:
    """Return weights as a folder in float32, made if need be.

    Args:
        python: The interpreter of the environment that has vLLM.
        weights: Their name and checksum.
        file: Finds or fetches them; called only if the folder is to be made.

    Raises:
        LocalError: The weights cannot be had or read.
    """
    recipe = {
        "weights": weights.sha256,
        "script": hashlib.sha256(DEQUANTISE.read_bytes()).hexdigest(),
    }

    def make(folder: Path) -> None:
        gguf = file()
        say(f"dequantising {gguf.name} to {folder}")
        folder.mkdir(parents=True)
        ran = subprocess.run(
            [python, "-P", DEQUANTISE, gguf, folder],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode != 0:
            last = (ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"])[-1]
            raise LocalError(f"{gguf.name} cannot be dequantised: {last[:300]}")

    return made_once(f"{weights.name}-f32", recipe, make)
