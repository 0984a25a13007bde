"""The child process that runs the scorers of reasoning-gym. For the protocol see `answers.worker`.

A request and its reply:

{"task": "chain_sum", "knobs": {"size": 5, "seed": 0}, "index": 2, "answer": "41"}
{"verdict": "wrong"}
"""

import json
import warnings
from collections.abc import Callable
from typing import Any

from pdr_graph.answers.worker import serve


def start() -> Callable[[str], dict[str, Any]]:
    """Import the library, and return the function that answers a request line."""
    warnings.simplefilter("ignore")
    import reasoning_gym

    made: dict[str, Any] = {}

    def reply(line: str) -> dict[str, Any]:
        request = json.loads(line)
        key = json.dumps([request["task"], request["knobs"]])
        if key not in made:
            made[key] = reasoning_gym.create_dataset(request["task"], **request["knobs"])
        data = made[key]
        try:
            score = data.score_answer(request["answer"], data[request["index"]])
        except MemoryError:
            return {"verdict": "timeout"}
        # A scorer expects replies of the form that its task asks for, and may fail on others.
        except Exception:  # noqa: BLE001
            return {"verdict": "unparseable"}
        return {"verdict": "correct" if score is not None and score >= 1.0 else "wrong"}

    return reply


if __name__ == "__main__":
    serve(start)
