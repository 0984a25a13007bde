"""vLLM as a policy of this process: `python -m tests.vllm.policy_in_process SITE FOLDER`.

SITE is the folder of packages of vLLM's environment, which has the same torch: its packages are
found after this one's own. Prints what was found as JSON.
"""

import asyncio
import contextlib
import json
import sys
from pathlib import Path


def main(site: str, folder: Path) -> None:
    """Collect rollouts from the graph on an engine, and score their tokens by transformers."""
    sys.path.append(site)
    # What the libraries print is no part of the result.
    with contextlib.redirect_stdout(sys.stderr):
        found = _found(folder)
    print(json.dumps(found))  # noqa: T201


def _found(folder: Path) -> dict[str, object]:
    # Here, for they are found only now.
    from vllm import LLM

    from pdr_graph.errors import ConfigError
    from pdr_graph.policy.chat import policy_client
    from pdr_graph.policy.vllm_policy import VLLMPolicy, open_engine
    from tests.policy.forward_pass import largest_difference
    from tests.policy.tiny_model import tiny_tokenizer, write_tiny_model
    from tests.vllm.recorded import collected

    # vLLM's attention on CPUs takes heads of 32 and more.
    path = write_tiny_model(folder / "model", hidden_size=128)
    engine = open_engine(path, max_num_seqs=16)
    client = policy_client(VLLMPolicy(engine), tiny_tokenizer(), name="tiny")
    first = asyncio.run(collected(client))
    again = asyncio.run(collected(client))
    calls = [row.call for rows in first.rows for row in rows]
    try:
        VLLMPolicy(LLM(model=str(path), dtype="float32", enforce_eager=True))
        refused = ""
    except ConfigError as error:
        refused = str(error)
    return {
        "roles": [call.role for call in calls],
        "window": client.window,
        "ended": [call.finish_reason for call in calls],
        "lengths": [len(call.token_ids) for call in calls],
        "difference": largest_difference(path, calls, temperature=0.7),
        "same": [row.call.token_ids for rows in again.rows for row in rows]
        == [call.token_ids for call in calls],
        "refused": refused,
    }


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
