"""Other projects' clients, unchanged, against the server with the embedded model.

The harnesses are heavy: `make test-clients` installs them in an environment of their own.
"""

import importlib.util
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest
from langchain_openai import ChatOpenAI

from tests.servers.conftest import model_data_dir

__all__ = ["model_data_dir"]

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
    model_args={"stream": STREAM, "responses_api": RESPONSES},
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
def served(model_data_dir) -> Iterator[str]:
    """Address of the real command with everything embedded."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("needs the extra local")
    settings = {name: text for name, text in os.environ.items() if not name.startswith("PDR_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "pdr_graph.cli", "serve", "--port", "0", "--key", KEY],
        env={**settings, "PDR_DATA_DIR": str(model_data_dir)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address, "the server did not start; what it says is above"
    yield address
    process.terminate()
    process.stdout.close()
    assert process.wait(120) == 0


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


@needs("lm_eval")  # not for itself: with the embedded model this is too slow for `make test`
def test_the_official_client(served):
    """Streaming and not, each with an answer, progress, and the run's own bill."""
    before = tokens_served(served)
    with openai.OpenAI(base_url=served, api_key=KEY) as client:
        asked = [{"role": "user", "content": QUESTIONS[0]["question"]}]
        whole = client.chat.completions.create(model=MODEL, messages=asked)
        chunks = list(
            client.chat.completions.create(
                model=MODEL, messages=asked, stream=True, stream_options={"include_usage": True}
            )
        )
    deltas = [each.choices[0].delta for each in chunks if each.choices]
    progress = "".join(getattr(each, "reasoning", None) or "" for each in deltas)
    assert whole.choices[0].message.content.strip()
    assert "".join(each.content or "" for each in deltas).strip()
    assert progress.startswith("Round 1 of 1: 2 drafts.")
    assert progress.endswith("Refining.\n")
    spent = tokens_served(served) - before
    assert whole.usage.total_tokens + chunks[-1].usage.total_tokens == spent


@needs("lm_eval")
def test_langchain(served):
    """ChatOpenAI reads the answer and what it cost."""
    before = tokens_served(served)
    with httpx2.Client(timeout=300) as http:
        model = ChatOpenAI(model=MODEL, base_url=served, api_key=KEY, http_client=http)
        message = model.invoke(QUESTIONS[1]["question"])
        pieces = [piece.text for piece in model.stream(QUESTIONS[1]["question"])]
    assert message.text.strip()
    assert "".join(pieces).strip()
    assert 0 < message.usage_metadata["total_tokens"] < tokens_served(served) - before


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
@pytest.mark.parametrize("responses", [False, True])
def test_inspect(served, tmp_path, stream, responses):
    """`openai-api` gets an answer to every question, and its usage is what the run cost."""
    before = tokens_served(served)
    task = INSPECT_TASK.replace("STREAM", str(stream)).replace("RESPONSES", str(responses))
    done = subprocess.run(
        [
            *(sys.executable, "-c", task),
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
