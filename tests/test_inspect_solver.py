"""The solver of inspect-ai, with its mock model and with the embedded one.

inspect-ai is heavy: `make test-clients` installs it in an environment of its own and runs this.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("inspect_ai") is None, reason="needs inspect-ai: make test-clients"
    ),
    # It leaves streams to the garbage collector, and its dependencies warn too.
    pytest.mark.filterwarnings("ignore"),
]

SMALL = {"widths": [2], "kappa": 128, "max_tokens": 64, "solution_tokens": 48}
CALLS = 2 + 1 + 1
"""Drafts, summary, refinement."""


def said(answer: str, tokens: int = 10):
    """Return a model output with its usage."""
    from inspect_ai.model import ModelOutput, ModelUsage

    output = ModelOutput.from_content("mockllm", f"It is \\boxed{{{answer}}}.")
    output.usage = ModelUsage(input_tokens=20, output_tokens=tokens, total_tokens=20 + tokens)
    return output


def evaluate(folder: Path, reply: Callable, samples=None, scorer=None, solver=None, **options):
    """Run an evaluation against inspect's mock model and return its log."""
    import inspect_ai
    from inspect_ai.dataset import Sample
    from inspect_ai.model import get_model
    from inspect_ai.scorer import includes

    from pdr_graph.inspect_ai import pdr

    task = inspect_ai.Task(
        dataset=samples or [Sample(input="What is 2 + 3?", target="5", id="sum")],
        solver=solver or pdr(**SMALL),
        scorer=scorer or includes(),
    )
    model = get_model("mockllm/model", custom_outputs=reply)
    [log] = inspect_ai.eval(task, model=model, log_dir=str(folder), display="none", **options)
    return log


def test_usage_epochs_and_calls_are_inspects_own(tmp_path):
    """Its log has every call and token that the ledger has; each epoch draws seeds of its own."""
    configs = []

    def reply(messages, tools, choice, config):
        configs.append(config)
        return said("5")

    log = evaluate(tmp_path, reply, epochs=2)
    assert log.status == "success"
    assert log.results.scores[0].metrics["accuracy"].value == 1.0
    assert len(configs) == 2 * CALLS
    assert len({config.seed for config in configs}) == 2 * CALLS
    assert {config.max_tokens for config in configs} == {64}
    usage = log.stats.model_usage["mockllm/model"]
    assert (usage.input_tokens, usage.output_tokens) == (20 * 2 * CALLS, 10 * 2 * CALLS)
    ledgers = [sample.metadata["pdr"]["ledger"] for sample in log.samples]
    assert sum(each["b_total"] for each in ledgers) == usage.total_tokens
    assert [each["calls"] for each in ledgers] == [CALLS, CALLS]
    events = [event.event for sample in log.samples for event in sample.events]
    assert events.count("model") == 2 * CALLS
    assert [sample.messages[-1].text for sample in log.samples] == ["It is \\boxed{5}."] * 2


def test_its_options_hold_where_the_solver_is_told_nothing(tmp_path):
    """The solver's settings win over the evaluation's options, and these over the preset."""
    seen = []

    def reply(messages, tools, choice, config):
        seen.append((config.temperature, config.max_tokens))
        return said("5")

    evaluate(tmp_path, reply, temperature=0.25, max_tokens=900)
    assert set(seen) == {(0.25, 64)}


def test_a_limit_of_the_sample_ends_its_run(tmp_path):
    """A token limit is reported as one, and not as a failure of ours."""
    log = evaluate(tmp_path, lambda *_: said("5"), token_limit=70)
    [sample] = log.samples
    assert (log.status, sample.limit.type, sample.error) == ("success", "token", None)


def test_a_failing_model_is_a_failed_sample(tmp_path):
    """One sentence says why; a single failed draft would have been data."""

    def refuse(*_):
        raise ValueError("no such luck")

    log = evaluate(tmp_path, refuse, fail_on_error=False)
    [sample] = log.samples
    assert "no such luck" in sample.error.message


def test_choices_are_answered_by_their_letter(tmp_path):
    """The scorer `choice` reads the run's answer; the problem holds system messages and choices."""
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ChatMessageSystem, ChatMessageUser
    from inspect_ai.scorer import choice

    asked = []

    def reply(messages, tools, choice, config):
        asked.append(messages[-1].text)
        return said("B")

    question = [ChatMessageSystem(content="Be brief."), ChatMessageUser(content="Which is even?")]
    samples = [Sample(input=question, choices=["3", "4", "5"], target="B")]
    log = evaluate(tmp_path, reply, samples, choice())
    assert log.results.scores[0].metrics["accuracy"].value == 1.0
    assert "<instructions>\nBe brief.\n</instructions>\n\nWhich is even?" in asked[0]
    assert "(A) 3\n(B) 4\n(C) 5" in asked[0]


def test_reasoning_stays_out_of_the_workspace(tmp_path):
    """What the model thought is no part of what the next call reads."""
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessageAssistant,
        ContentReasoning,
        ContentText,
        ModelOutput,
        ModelUsage,
    )

    from pdr_graph.inspect_ai import pdr

    asked = []

    def reply(messages, tools, choice, config):
        asked.append(messages[-1].text)
        content = [ContentReasoning(reasoning="secret thought"), ContentText(text=r"\boxed{5}")]
        return ModelOutput(
            model="mockllm",
            choices=[ChatCompletionChoice(message=ChatMessageAssistant(content=content))],
            usage=ModelUsage(input_tokens=9, output_tokens=8, total_tokens=17, reasoning_tokens=3),
        )

    log = evaluate(tmp_path, reply, solver=pdr(distiller="random_k", **SMALL))
    assert log.samples[0].output.completion == r"\boxed{5}"
    assert len(asked) == 3
    assert not any("secret" in text for text in asked)
    rows = log.samples[0].metadata["pdr"]["ledger"]["rows"]
    assert sum(row["reasoning_tokens"] for row in rows) == 3 * 3


async def test_a_picture_in_a_call_is_not_dropped_in_silence():
    """A step of a user's own may show the model one; the model reads that it was there."""
    from inspect_ai.model import get_model
    from langchain_core.messages import HumanMessage

    from pdr_graph.inspect_ai import InspectChat

    asked = []

    def reply(messages, tools, choice, config):
        asked.append(messages[-1].text)
        return said("5")

    model = get_model("mockllm/model", custom_outputs=reply)
    picture = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}
    content = [{"type": "text", "text": "What is this?"}, picture]
    await InspectChat(model_name="m", inspected=model).ainvoke([HumanMessage(content)])
    assert asked == ["What is this?\n[an image, which is not shown here]\n"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"preset": "pdrr"}, "unknown preset 'pdrr'"),
        ({"kapa": 3}, "unknown setting 'kapa'"),
        ({"tokenizer": "nowhere.json"}, "tokenizer file 'nowhere.json' does not exist"),
    ],
)
def test_a_wrong_setting_is_told_before_any_sample(settings, said):
    """In one sentence."""
    from pdr_graph.errors import ConfigError
    from pdr_graph.inspect_ai import pdr

    with pytest.raises(ConfigError, match=said):
        pdr(**settings)


TASK = """
import json
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes

@task
def sums():
    return Task(dataset=[Sample(input="What is 2 + 3?", target="5")], scorer=includes())
"""

EMBEDDED = """
import asyncio, os, subprocess, sys
from pdr_graph.servers import embedded_model
from pdr_graph.servers.data_dir import default_data_dir

async def main():
    async with embedded_model(default_data_dir(), slots=2, context_per_slot=2048) as endpoint:
        os.environ["SERVED_BASE_URL"] = endpoint.base_url
        os.environ["SERVED_API_KEY"] = endpoint.api_key
        words = [*sys.argv[1:], "--model", "openai-api/served/" + endpoint.model]
        sys.exit(subprocess.call([sys.executable, "-m", "inspect_ai", *words]))

asyncio.run(main())
"""


def test_its_command_line_finds_the_solver_and_runs_the_embedded_model(tmp_path):
    """By the entry point alone, as a user calls it; tokens are counted by the server."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("needs the extra local")
    (tmp_path / "sums.py").write_text(TASK)
    words = ["eval", "sums.py", "--solver", "pdr_graph/pdr", "--display", "none", "--epochs", "2"]
    options = ["-S", "widths=2", "-S", "max_tokens=48", "-S", "kappa=128", "-S",
               "solution_tokens=48", "--log-dir", "logs", "--log-format", "json"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", EMBEDDED, *words, *options],
        cwd=tmp_path, env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    [file] = (tmp_path / "logs").glob("*.json")
    log = json.loads(file.read_text())
    assert log["status"] == "success"
    assert log["eval"]["solver"] == "pdr_graph/pdr"
    [usage] = log["stats"]["model_usage"].values()
    ledgers = [sample["metadata"]["pdr"]["ledger"] for sample in log["samples"]]
    assert [each["calls"] for each in ledgers] == [CALLS, CALLS]
    assert sum(each["b_total"] for each in ledgers) == usage["total_tokens"]
    assert usage["output_tokens"] > 8
