"""Makes vLLM's environment and model folder ahead of time: `python -m engine`."""

import json
import sys

from engine.cache import say
from engine.environment import vllm_environment
from engine.model_folder import smollm2_folder
from pdr_graph.errors import LocalError


def main() -> int:
    """Make both, and print their paths as JSON."""
    try:
        python = vllm_environment()
        model = smollm2_folder(python)
    except LocalError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("stopped; vLLM's environment is made anew at the next try")
        return 130
    sys.stdout.write(json.dumps({"python": str(python), "model": str(model)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
