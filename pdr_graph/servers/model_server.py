"""The process in which llama.cpp serves the embedded model.

`model` runs it. It says one line of JSON on its standard output, `{"address": …}` or
`{"error": …}`, and ends when its standard input does.
"""

import argparse
import json
import os
import select
from typing import Any

PARENT_CHECK_S = 1.0


def main() -> None:
    """Serve until the parent is gone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--context-per-slot", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--parent", type=int, required=True)
    asked = parser.parse_args()
    # Whatever a library prints goes to the log; only our one line reaches the parent.
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        server = _serve(asked)
    except (ImportError, RuntimeError) as error:
        report.write(json.dumps({"error": str(error)}) + "\n")
        report.flush()
        os._exit(1)
    report.write(json.dumps({"address": server.listening_address}) + "\n")
    report.close()
    while os.getppid() == asked.parent:
        # A pipe ends with its last writer. A forked sibling may hold the parent's end open for
        # longer than the parent lives, hence the look at who the parent is.
        if select.select([0], [], [], PARENT_CHECK_S)[0]:
            break
    # Not an orderly shutdown: that waits for the batch in progress, and there is nothing to save.
    os._exit(0)


def _serve(asked: argparse.Namespace) -> Any:  # a compiled class without types
    """Load the weights and listen on a free port of the loopback interface."""
    # libgomp spins 300 000 turns at every barrier, about a millisecond, before it sleeps. Where
    # another program wants the core, that is time in which the awaited thread cannot run: with
    # two busy loops on two cores, 16 streams fell from 150 to 12 tokens a second. At 300 turns
    # they keep 40, and an idle machine loses a tenth of one stream and nothing of 16. libgomp
    # reads this when it is loaded, which is at the next import.
    os.environ.setdefault("GOMP_SPINCOUNT", "300")
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = asked.weights
    params.model_alias = {asked.name}
    params.hostnames = ["127.0.0.1"]
    params.port = asked.port
    params.n_parallel = asked.slots
    params.n_ctx = asked.slots * asked.context_per_slot
    params.cpuparams.n_threads = asked.threads
    params.cpuparams_batch.n_threads = asked.threads
    params.cont_batching = True
    # Every open connection holds one of these, and with the default of few a /tokenize waits for
    # generations to end; they sleep, so many cost nothing.
    params.n_threads_http = 256
    params.cache_ram_mib = 256  # of prompts kept for reuse; the default is 8192
    params.ui = False
    params.cors_origins = ""  # the default lets any web page that the user visits call the model
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
