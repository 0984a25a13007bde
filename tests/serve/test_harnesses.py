"""Evaluation harnesses, unchanged, against the server with the embedded model.

They are heavy: `make test-clients` installs them in an environment of their own and runs this.
"""

import importlib.util
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

MODEL = "pdr?widths=2&max_tokens=64&solution_tokens=48&kappa=128"
KEY = "sesame"
QUESTIONS = [
    {"question": "What is 2 + 3? Answer with one number.", "answer": "5"},
    {"question": "What is 7 - 4? Answer with one number.", "answer": "3"},
]

LM_EVAL_TASK = """
task: sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["Question:"]
  max_gen_toks: 64
  temperature: 0.7
  do_sample: true
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""

INSPECT_TASK = """
import sys
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
import json
rows = json.loads(sys.argv[1])
samples = [Sample(input=row["question"], target=row["answer"]) for row in rows]
[log] = eval(
    Task(dataset=samples, scorer=includes()),
    model="openai-api/served/" + sys.argv[2],
    log_dir=sys.argv[3], display="none", max_tokens=64, seed=7, epochs=2,
    model_args={"stream": STREAM},
)
usage = list(log.stats.model_usage.values())[0]
print(json.dumps({
    "status": log.status, "error": log.error and log.error.message,
    "samples": len(log.samples), "tokens": usage.total_tokens,
    "texts": [sample.output.completion for sample in log.samples],
}))
"""


def needs(module: str):
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"needs {module}: make test-clients")


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[str]:
    """Address of the real command with everything embedded."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("needs the extra local")
    settings = {name: text for name, text in os.environ.items() if not name.startswith("PDR_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "pdr_graph.cli", "serve", "--port", "0", "--key", KEY],
        env={
            **settings,
            "PDR_DATA_DIR": os.environ.get("PDR_DATA_DIR") or str(tmp_path_factory.mktemp("data")),
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.terminate()
    process.stdout.close()
    assert process.wait(60) == 0


def tokens_served(url: str) -> float:
    """What the server says that its calls cost."""
    request = urllib.request.Request(
        url.removesuffix("/v1") + "/metrics", headers={"Authorization": f"Bearer {KEY}"}
    )
    with urllib.request.urlopen(request) as reply:
        lines = reply.read().decode().splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("pdr_model_tokens_total{")
    )


@needs("lm_eval")
def test_lm_eval(served, tmp_path):
    """`local-chat-completions` gets an answer to every question, several at once."""
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    (tmp_path / "sums.yaml").write_text(LM_EVAL_TASK.format(file=data))
    arguments = {
        "model": MODEL,
        "base_url": f"{served}/chat/completions",
        "num_concurrent": 2,
        "max_retries": 1,
        "tokenized_requests": False,
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "run", "--model", "local-chat-completions"),
            *("--model_args", json.dumps(arguments), "--tasks", "sums", "--apply_chat_template"),
            *("--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")),
            *("--log_samples", "--seed", "1234"),
        ],
        env={**os.environ, "OPENAI_API_KEY": KEY, "HF_HOME": str(tmp_path / "hf")}
        | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [file] = Path(tmp_path / "out").rglob("samples_sums_*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == len(QUESTIONS)
    assert all(row["resps"][0][0].strip() for row in rows)


@needs("inspect_ai")
@pytest.mark.parametrize("stream", [False, True])
def test_inspect(served, tmp_path, stream):
    """`openai-api` gets an answer to every question, and its usage is what the run cost."""
    before = tokens_served(served)
    done = subprocess.run(
        [
            *(sys.executable, "-c", INSPECT_TASK.replace("STREAM", str(stream))),
            *(json.dumps(QUESTIONS), MODEL, str(tmp_path)),
        ],
        env={**os.environ, "SERVED_BASE_URL": served, "SERVED_API_KEY": KEY},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    log = json.loads(done.stdout.splitlines()[-1])
    assert (log["status"], log["error"], log["samples"]) == ("success", None, 4)
    assert all(text.strip() for text in log["texts"])
    assert log["tokens"] == tokens_served(served) - before
