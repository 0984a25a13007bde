"""The process in which llama.cpp serves the embedded model.

`embedded_model` runs it under a guard, and kills it when it is done. Its argument is a JSON object.
It writes one line of JSON to its standard output: `{"address": …}` or `{"error": …}`.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any


def main(asked: dict[str, Any]) -> None:  # Any: JSON
    """Serve until killed."""
    # Whatever a library prints goes to the log; only our one line reaches the parent.
    with os.fdopen(os.dup(1), "w") as report:
        os.dup2(2, 1)
        try:
            server = _serve(asked)
        except (ImportError, RuntimeError, OSError) as error:
            report.write(json.dumps({"error": str(error)}) + "\n")
            report.flush()
            os._exit(1)  # an orderly exit may crash in the library
        report.write(json.dumps({"address": server.listening_address}) + "\n")
    threading.Event().wait()


def _serve(asked: dict[str, Any]) -> Any:  # a compiled class without types
    """Load the weights and listen on the loopback interface."""
    # libgomp spins for 300 000 turns at every barrier, about a millisecond, before it sleeps. If
    # another program wants the core, the awaited thread cannot run meanwhile: with two busy loops
    # on two cores, 16 streams fell from 150 to 12 tokens a second. With 300 turns they keep 40,
    # and an idle machine loses a tenth of one stream and nothing of 16. libgomp reads this when
    # it is loaded, which is at the next import.
    os.environ.setdefault("GOMP_SPINCOUNT", "300")
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = asked["weights"]
    params.model_alias = {asked["name"]}
    params.hostnames = ["127.0.0.1"]
    params.port = asked["port"]
    params.n_parallel = asked["slots"]
    params.n_ctx = asked["slots"] * asked["context_per_slot"]
    params.cpuparams.n_threads = asked["threads"]
    params.cpuparams_batch.n_threads = asked["threads"]
    params.cont_batching = True
    # Every open connection holds one of these. With the default, a few, a /tokenize waits until
    # generations end. They sleep, so many cost nothing.
    params.n_threads_http = 256
    params.cache_ram_mib = 256  # for prompts kept for reuse; the default is 8192
    params.ui = False
    # The hidden state of a prompt's last token at /v1/embeddings, for judges of drafts. It serves
    # chat beside it, at the same speed.
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_LAST
    params.embd_normalize = -1  # as it is
    params.api_keys = [Path(asked["key_file"]).read_text("utf-8").strip()]
    params.cors_origins = ""  # by default any web page that the user visits may call the model
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
