"""The example dashboard and alerts name what `serve` exports, and a real Prometheus reads both."""

import asyncio
import json
import re
import shutil
import socket
import time
from pathlib import Path

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pdr_graph.serve.runner import Admission, Metrics
from tests.serve.conftest import SMALL
from tests.serve.test_chat import ask

FOLDER = Path(__file__).parents[2] / "docker/monitoring"
ALERTS = yaml.safe_load((FOLDER / "alerts.yml").read_text("utf-8"))
DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text("utf-8"))
PANELS = [each for each in DASHBOARD["panels"] if "targets" in each]
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
EXPRESSIONS = [
    *(target["expr"] for panel in PANELS for target in panel["targets"]),
    *(rule["expr"] for rule in RULES),
]
OBSERVE = (Path(__file__).parents[2] / "docs/guides/observe.md").read_text("utf-8")


def exported() -> dict[str, set[str]]:
    """The series of a server that has just started: the labels of each by its name."""
    metrics = Metrics(Admission(max_runs=1, max_waiting=1))
    found = {}
    for collector in metrics._registry._collector_to_names:
        for name in metrics._registry._collector_to_names[collector]:
            found[name] = {*collector._labelnames, "le", "instance", "job"}
    return found


def test_every_metric_exists():
    """With the labels that dashboard and alerts ask for."""
    known = exported()
    for text in EXPRESSIONS:
        for name, matchers in re.findall(r"\b(pdr_\w+)(?:\{([^}]*)\})?", text):
            assert name in known, text
            labels = set(re.findall(r"(\w+)\s*=", matchers))
            assert labels <= known[name], text
        names = re.findall(r"\bpdr_\w+", text)
        for group in re.findall(r"by \(([^)]*)\)", text):
            for label in group.split(","):
                assert names or label.strip() == "instance"
                assert any(label.strip() in known[name] for name in names), text
    query = DASHBOARD["templating"]["list"][1]["query"]["query"]
    assert re.findall(r"pdr_\w+", query)[0] in known


def test_every_metric_is_described_and_shown():
    """In the guide, and in a panel."""
    families = text_string_to_metric_families(
        Metrics(Admission(max_runs=1, max_waiting=1)).text().decode()
    )
    names = {each.name for each in families if not each.name.endswith("_created")}
    shown = "\n".join(target["expr"] for panel in PANELS for target in panel["targets"])
    for name in names:
        assert name in OBSERVE
        assert name in shown


def test_an_alert_says_what_to_do():
    """Each has a summary and an action, and a name of its own."""
    for rule in RULES:
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["action"]
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool: apt install prometheus"
)


async def _run(*words: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode()


@needs_promtool
async def test_promtool_takes_rules_and_config():
    """By the checks of Prometheus itself."""
    for words in (("rules", "alerts.yml"), ("config", "prometheus.yml")):
        code, said = await _run("promtool", "check", words[0], str(FOLDER / words[1]))
        assert code == 0, said


@needs_promtool
async def test_a_guess_of_keys_raises_its_alert(tmp_path):
    """And a few failures do not; the rules run on made-up series, by promtool."""
    series = 'pdr_authentication_failures_total{reason="wrong",instance="a:1"}'
    calls = "pdr_model_calls_total{%s,instance='a:1',node='drafter'}"
    tests = {
        "rule_files": [str(FOLDER / "alerts.yml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": series, "values": "0+1x10 10+20x20"},
                    {"series": calls % "outcome='failed'", "values": "0+2x30"},
                    {"series": calls % "outcome='done'", "values": "0+8x30"},
                ],
                "alert_rule_test": [
                    {"eval_time": "10m", "alertname": "PdrKeyGuessing", "exp_alerts": []},
                    {
                        "eval_time": "20m",
                        "alertname": "PdrModelCallsFail",
                        "exp_alerts": [
                            {
                                "exp_labels": {"severity": "page", "instance": "a:1"},
                                "exp_annotations": {
                                    "summary": "20% of the model calls of a:1 fail",
                                    "action": "Look at the model server; the draft records of a "
                                    "run have its words.",
                                },
                            }
                        ],
                    },
                ],
                "promql_expr_test": [
                    {
                        "expr": 'count(ALERTS{alertname="PdrKeyGuessing",alertstate="firing"})',
                        "eval_time": "25m",
                        "exp_samples": [{"labels": "{}", "value": 1}],
                    }
                ],
            }
        ],
    }
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump(tests))
    code, said = await _run("promtool", "test", "rules", str(file))
    assert code == 0, said


@pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="needs Prometheus: apt install prometheus"
)
async def test_a_real_prometheus_reads_the_server(serve, mock, tmp_path):
    """It scrapes with a key, and every panel and alert has an answer of the right kind."""
    served = await serve(key="sesame")
    await ask(served, model=SMALL)
    async with httpx2.AsyncClient() as http:
        for _ in range(3):
            await http.get(f"{served.url}/models", headers={"Authorization": "Bearer guess"})
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text("utf-8"))
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(FOLDER / "alerts.yml")]
        [job] = config["scrape_configs"]
        job["static_configs"][0]["targets"] = [served.root.removeprefix("http://")]
        job["authorization"] = {"credentials": "sesame"}
        file = tmp_path / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        process = await asyncio.create_subprocess_exec(
            *("prometheus", f"--config.file={file}", f"--storage.tsdb.path={tmp_path / 'data'}"),
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            await _check(http, f"http://127.0.0.1:{port}/api/v1")
        finally:
            process.terminate()
            await process.wait()


async def _check(http: httpx2.AsyncClient, url: str) -> None:
    async def value(expression: str) -> list[dict]:
        try:
            reply = await http.get(f"{url}/query", params={"query": expression})
        except httpx2.TransportError:
            return []
        assert reply.json()["status"] == "success", (expression, reply.text)
        return reply.json()["data"]["result"]

    deadline = time.monotonic() + 60
    rate = "rate(pdr_authentication_failures_total{reason='wrong'}[1m])"
    while not await value(rate):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.5)
    assert (await value('up{job="pdr-graph"}'))[0]["value"][1] == "1"
    assert (await value('pdr_refusals_total{reason="invalid_api_key"}'))[0]["value"][1] == "3"
    for panel in PANELS:
        for target in panel["targets"]:
            expression = target["expr"].replace("$instance", ".*")
            assert await value(expression), (panel["title"], expression)
    rules = (await http.get(f"{url}/rules")).json()["data"]["groups"][0]["rules"]
    assert {rule["name"] for rule in rules} == {rule["alert"] for rule in RULES}
    assert {rule["lastError"] for rule in rules if "lastError" in rule} == set()
