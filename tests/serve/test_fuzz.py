"""The server against its own OpenAPI document, by schemathesis: `make test-clients`."""

import os
import subprocess
import sys

import pytest

from tests.mock_endpoint import MockEndpoint

pytest.importorskip("schemathesis", reason="needs schemathesis: make test-clients")


@pytest.mark.parametrize("seed", [1, 3])
def test_what_the_document_promises_holds(tmp_path, seed):
    """Whatever is sent: no failure of the server, and only statuses and shapes of the document."""
    with MockEndpoint(record=False, completion_tokens=24, reasoning_tokens=0) as mock:
        settings = {name: text for name, text in os.environ.items() if name[:4] != "PDR_"}
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "pdr_graph.cli", "serve", "--port", "0", "--quiet"),
                *("--checkpoint", "memory", "--base-url", mock.url, "--max-drafts", "50"),
            ],
            env=settings,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        root = process.stdout.readline().strip().removesuffix("/v1")
        try:
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "schemathesis.cli", "run", f"{root}/openapi.json"),
                    *("--seed", str(seed), "--max-examples", "60", "--workers", "1"),
                    # What a schema cannot say (which models there are, which settings fit
                    # together) is refused with 400, and not every such refusal is a defect.
                    *("--exclude-checks", "positive_data_acceptance"),
                ],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
                timeout=400,
            )
            assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
            assert process.poll() is None
        finally:
            process.terminate()
            process.stdout.close()
            process.wait(30)
