"""What the files beside the code say of the project is true: workflows, citation, rules."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from pdr_graph import PRESETS
from pdr_graph.distill import DISTILLERS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
TARGETS = set(re.findall(r"^([a-z-]+):.* ## ", (ROOT / "Makefile").read_text("utf-8"), re.M))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def workflow(name: str) -> dict[str, Any]:
    """Read a workflow; YAML takes its key `on` for a truth value."""
    read = yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text("utf-8"))
    return {"on" if key is True else key: value for key, value in read.items()}


def steps(read: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the steps of all jobs."""
    return [step for job in read["jobs"].values() for step in job["steps"]]


def makes(text: str) -> list[str]:
    """Return the targets that lines of a shell, or commands in a text, name."""
    return re.findall(r"(?:^|`|\$ )make ([a-z][a-z-]*)", text, re.M)


def test_there_are_the_three_workflows():
    """Tests, documentation, release."""
    assert [file.stem for file in WORKFLOWS] == ["docs", "release", "tests"]


@pytest.mark.parametrize("name", [file.stem for file in WORKFLOWS])
def test_a_workflow_is_sound(name):
    """It says when it runs, what it may do and how long, and pins what it uses by major version."""
    read = workflow(name)
    assert read["on"]
    assert read["permissions"] == {"contents": "read"}
    for job in read["jobs"].values():
        assert job["runs-on"] == "ubuntu-latest"
        assert 0 < job["timeout-minutes"] <= 60
        assert set([job["needs"]] if "needs" in job else []) <= read["jobs"].keys()
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
    for action in [step["uses"] for step in steps(read) if "uses" in step]:
        assert re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", action)


@pytest.mark.parametrize("name", [file.stem for file in WORKFLOWS])
def test_a_workflow_names_targets_that_exist(name):
    """What it asks make for."""
    named = makes("\n".join(step.get("run", "") for step in steps(workflow(name))))
    assert set(named) <= TARGETS
    expected = {
        "tests": {"check", "test", "test-long", "test-train"},
        "docs": {"docs"},
        "release": set(),
    }
    assert set(named) == expected[name]


def test_the_tests_run_on_every_python_that_is_promised():
    """The matrix is the list of classifiers."""
    promised = [
        each.rpartition(" ")[2]
        for each in PROJECT["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", each)
    ]
    matrix = workflow("tests")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert matrix == promised
    assert PROJECT["requires-python"] == f">={promised[0]}"


def test_no_workflow_needs_a_secret():
    """PyPI and the pages trust the workflow itself."""
    for file in WORKFLOWS:
        assert "secrets." not in file.read_text("utf-8")
    publish = workflow("release")["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["environment"]["name"] == "pypi"
    assert publish["steps"][-1]["uses"].startswith("pypa/gh-action-pypi-publish@")


def test_the_site_that_is_published_is_the_one_that_is_built():
    """The folder of the artifact is mkdocs'."""
    (upload,) = [
        step for step in steps(workflow("docs")) if "upload-pages-artifact" in step.get("uses", "")
    ]
    site = re.search(r"^site_dir: (\S+)", (ROOT / "mkdocs.yml").read_text("utf-8"), re.M)
    assert upload["with"]["path"] == site[1]


def test_one_version_everywhere():
    """Package, citation and the newest heading of the changelog."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert citation["version"] == PROJECT["version"] == headings[0]
    assert headings == sorted(headings, key=lambda v: [*map(int, v.split("."))], reverse=True)


def test_the_citation_is_complete():
    """What Citation File Format 1.2.0 asks for, and the paper."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == PROJECT["license"]
    assert citation["repository-code"] == PROJECT["urls"]["Source"]
    (paper,) = citation["references"]
    assert paper["url"] == "https://arxiv.org/abs/2510.01123"


@pytest.mark.parametrize("file", ["AGENTS.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_the_targets_that_a_page_names_exist(file):
    """Each has a line in `make help`."""
    named = set(makes((ROOT / file).read_text("utf-8")))
    assert named <= TARGETS | {"help"}
    if file != "SECURITY.md":
        assert {"check", "test", "docs"} <= named


@pytest.mark.parametrize("file", ["AGENTS.md", "CONTRIBUTING.md"])
def test_the_files_that_a_page_names_exist(file):
    """Paths in backticks, from the top of the repository or from the package."""
    text = (ROOT / file).read_text("utf-8")
    for path in re.findall(r"`([\w./]+(?:/|\.\w+))`", text):
        if "/" in path or path.endswith((".md", ".toml", ".cff", ".py")):
            assert any((base / path).exists() for base in (ROOT, ROOT / "pdr_graph")), path


def test_the_page_of_the_method_names_every_part():
    """A row for each preset, with its widths, and for each distiller."""
    text = (ROOT / "docs/explanation/method.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.M))
    assert rows.keys() == PRESETS.keys() | DISTILLERS.keys()
    family = text.partition("## The family")[2]
    for name, widths in re.findall(r"^\| `(\w+)` \| ([^|]+) \|", family, re.M):
        listed = PRESETS[name]["widths"]
        said = {"none": (), "ten of 16": (16,) * 10}.get(widths)
        assert listed == (said if said is not None else tuple(map(int, widths.split(", "))))


def test_the_makefile_names_tests_that_are_there():
    """A renamed file must not leave a target without tests."""
    named = re.findall(r"\btests/[\w/]+(?:\.py)?", (ROOT / "Makefile").read_text("utf-8"))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
