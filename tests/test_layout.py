"""The grain of the code: modules that stand for themselves, names that mean one thing."""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = {"pdr_graph": ROOT / "pdr_graph", "pdr_checkpoints": ROOT / "checkpoints/pdr_checkpoints"}
MOST_MODULES = 190
MOST_LINES = 400
"""Of a module that is one concept."""

ALONE = {
    "process": """
        pdr_graph.answers.worker
        pdr_graph.eval.gym_worker
        pdr_graph.process_guard
        pdr_graph.servers.keeper
        pdr_graph.servers.model_server
    """,
    "optional dependency": """
        pdr_graph.eval.ray_cluster
        pdr_graph.policy.vllm_policy
        pdr_graph.serve.server
        pdr_graph.train.judge
        pdr_graph.telemetry.spans
    """,
    "public face": """
        pdr_checkpoints.saver
        pdr_graph.distill.notes
        pdr_graph.sync
    """,
    "node": """
        pdr_graph.nodes.distiller
        pdr_graph.nodes.drafter
        pdr_graph.nodes.solution
    """,
    "command": """
        pdr_graph.cli.check
        pdr_graph.cli.compare
        pdr_graph.cli.demo
        pdr_graph.cli.doctor
        pdr_graph.cli.eval
        pdr_graph.cli.inspect
        pdr_graph.cli.judge
        pdr_graph.cli.serve
        pdr_graph.cli.solve
        pdr_graph.cli.threads
        pdr_graph.cli.train
        pdr_graph.cli.up
    """,
    "size": """
        pdr_checkpoints.batch
        pdr_checkpoints.writer
        pdr_graph.answers.checker
        pdr_graph.answers.equality
        pdr_graph.answers.words
        pdr_graph.cli.app
        pdr_graph.cli.doctor_checks
        pdr_graph.cli.eval_board
        pdr_graph.cli.up_plan
        pdr_graph.serve.app
        pdr_graph.serve.chat
        pdr_graph.serve.responses
        pdr_graph.servers.choice
        pdr_graph.train.engine
        pdr_graph.train.session
        pdr_graph.train.steps
        pdr_graph.train.trainer
        pdr_graph.train.warm_start
    """,
}
"""Why a module stands alone that fewer than two others import.

A process is started by its path or name. An optional dependency is imported where it is asked for.
A public face is what a package shows, or a registry of names that users write. `size`: its only
importer's file would pass `MOST_LINES` with it."""


@cache
def modules() -> dict[str, tuple[Path, ast.Module]]:
    """Return file and syntax tree of every module, by name."""
    found = {}
    for folder in FOLDERS.values():
        for file in sorted(folder.rglob("*.py")):
            path = file.relative_to(folder.parent).with_suffix("")
            name = ".".join(path.parts).removesuffix(".__init__")
            found[name] = (file, ast.parse(file.read_text("utf-8")))
    return found


@cache
def importers() -> dict[str, set[str]]:
    """Return which modules import each module, at their top or inside a function."""
    found: dict[str, set[str]] = {name: set() for name in modules()}
    for importer, (_, tree) in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                whole = [f"{node.module}.{each.name}" for each in node.names]
                names = [name if name in found else node.module for name in whole]
            else:
                continue
            for name in names:
                if name in found and name != importer:
                    found[name].add(importer)
    return found


def num_lines(name: str) -> int:
    return len(modules()[name][0].read_text("utf-8").splitlines())


def test_no_class_name_means_two_things():
    """In the whole distribution, private ones too."""
    classes = Counter(
        node.name
        for _, tree in modules().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in classes.items() if count > 1] == []


def test_a_module_is_named_by_a_noun():
    """Never by a participle."""
    assert [name for name in modules() if name.endswith("ing")] == []


def test_a_module_has_two_importers_or_a_reason_to_stand_alone():
    """Otherwise its content belongs in its only importer; every reason is still needed."""
    lone = {
        name
        for name, (file, _) in modules().items()
        if len(importers()[name]) < 2 and file.name not in ("__init__.py", "__main__.py")
    }
    listed = {name for names in ALONE.values() for name in names.split()}
    assert (sorted(lone - listed), sorted(listed - lone)) == ([], [])


def test_reasons_to_stand_alone_hold():
    """Those that the code shows."""
    for name in ALONE["process"].split():
        assert '__name__ == "__main__"' in modules()[name][0].read_text("utf-8"), name
    for name in ALONE["size"].split():
        (importer,) = importers()[name]
        assert num_lines(name) + num_lines(importer) > MOST_LINES, name


def test_modules_are_few():
    """A stranger can hold them in mind."""
    assert len(modules()) <= MOST_MODULES


def test_the_architecture_page_names_every_module_once():
    """A stranger meets each module where the data passes it, and none that is not there."""
    text = (ROOT / "docs/explanation/architecture.md").read_text("utf-8")
    named = Counter(re.findall(r"`([\w/]+\.py)`", text))
    there = {
        str(file.relative_to(FOLDERS["pdr_graph"]))
        if name.startswith("pdr_graph")
        else str(file.relative_to(FOLDERS["pdr_checkpoints"].parent))
        for name, (file, _) in modules().items()
    }
    faces = {name for name in there if name.endswith("__init__.py")}
    assert sorted(set(named) - there - {"tests/mock_endpoint.py"}) == []
    assert sorted(there - faces - set(named)) == []
    assert [name for name, count in named.items() if count > 1] == []
