"""The embedded model's weights as a folder that vLLM loads."""

import hashlib
import os
import subprocess
from pathlib import Path

from engine.cache import made_once, say
from pdr_graph.errors import LocalError
from pdr_graph.local.data_dir import default_data_dir
from pdr_graph.local.weights import SMOLLM2, fetch_weights, find_weights

DEQUANTISE = Path(__file__).with_name("dequantise.py")


def smollm2_folder(python: Path) -> Path:
    """Return SmolLM2-135M-Instruct dequantised to float32, made if need be (half a minute, 540 MB).

    Args:
        python: The interpreter of the environment that has vLLM.

    Raises:
        LocalError: the weights cannot be had or read.
    """
    recipe = {
        "weights": SMOLLM2.sha256,
        "script": hashlib.sha256(DEQUANTISE.read_bytes()).hexdigest(),
    }

    def make(folder: Path) -> None:
        data_dir = default_data_dir()
        weights = find_weights(data_dir) or fetch_weights(data_dir, say)
        say(f"dequantising {weights.name} to {folder}")
        folder.mkdir(parents=True)
        ran = subprocess.run(
            [python, "-P", DEQUANTISE, weights, folder],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode != 0:
            last = (ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"])[-1]
            raise LocalError(f"{weights.name} cannot be dequantised: {last[:300]}")

    return made_once(f"{SMOLLM2.name}-f32", recipe, make)
