r"""What README and documentation tell people to type does what it says.

Every fenced block of every page is checked by its language, so that a new block needs no new code:

    python    runs: the blocks of a page one after the other, in one namespace
    console   each line `$ command` is looked up (`COMMANDS`); lines without `$` are output
    json, toml, yaml    must parse
    text      is shown, and nothing else

`pdr-graph` runs in this process, against the mock endpoint and an embedded Valkey, in a folder of
the page's own. A block with `title="NAME"` is a file in that folder. In the place of addresses that
a page names are those of the mock endpoint and of a server in front of it (`stand_ins`).

What cannot run here is parsed or compiled, and says why in the line before:

    <!-- not run: needs a GPU -->
"""

import ast
import asyncio
import importlib.util
import inspect
import io
import json
import logging
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import tomllib
import unicodedata
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from pydantic import BaseModel
from typer.main import get_command

from pdr_graph import PRESETS, build_graph
from pdr_graph.cli import run
from pdr_graph.cli.app import make_app
from pdr_graph.servers import embedded_valkey
from tests.cli.conftest import clean  # noqa: F401
from tests.mock_endpoint import MockEndpoint

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    ROOT / "docker/README.md",
    ROOT / "checkpoints/README.md",
    *sorted(DOCS.rglob("*.md")),
]
READ_ONLY = {
    "checkpoints/README.md": "tests/test_docstrings.py runs its block",
    "docs/results/strategies-tables.md": "its commands took hours",
}
"""Pages whose blocks are read, and not run here."""
NOT_RUN = {
    "serve": "runs until it is stopped; `served` starts one",
    "up": "starts servers that stay",
    "down": "ends the servers of this machine",
    "demo": "needs the weights of the embedded model",
    "train": "needs torch",
    "train-data": "needs what `train` or an evaluation left",
}
"""Commands of ours that are read, and not run."""
FILES = {
    "problem.txt": "What is 17 + 25?\n",
    "problems.jsonl": '{"id": "sum", "problem": "What is 17 + 25?", "answer": "42"}\n',
    "tests.py": "assert double(2) == 4\n",
}
"""Files of the reader's that commands name; a page may show its own."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
COMPOSE = yaml.safe_load((ROOT / "docker/compose.yaml").read_text("utf-8"))["services"]
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))

BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n+)?"
    r"(?P<indent> *)```(?P<kind>\w*)(?P<options>[^\n]*)\n(?P<text>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    kind: str
    text: str
    title: str | None
    reason: str | None
    """Why it is not run; None where it is."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(file: Path) -> list[Block]:
    """Return the fenced blocks of a page, in its order."""
    text = file.read_text("utf-8")
    found = []
    for match in BLOCK.finditer(text):
        title = re.search(r'title="([^"]+)"', match["options"])
        found.append(
            Block(
                page=str(file.relative_to(ROOT)),
                line=text.count("\n", 0, match.start("kind")) + 1,
                kind=match["kind"],
                text=re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE),
                title=title[1] if title else None,
                reason=match["reason"],
            )
        )
    return found


BLOCKS = [block for file in PAGES for block in blocks_of(file)]


def commands_of(block: Block) -> list[str]:
    """Return the commands of a console block, each with its continued lines."""
    joined = block.text.replace("\\\n", " ")
    return [line[2:].strip() for line in joined.splitlines() if line.startswith("$ ")]


# ------------------------------------------------------------------------------ what is looked up


def words_of(command: str) -> list[str]:
    """Split a command as a shell does, without what is around it.

    That is `eval "$(…)"`, variables before it, and a pipe, file or `&` behind it.
    """
    command = re.sub(r'^eval "\$\((.*?)\)"', r"\1", command)
    command = re.sub(r"^(?:[A-Z_]+=\S+ +)+", "", command)
    words = shlex.split(command, comments=True)
    ends = [index for index, word in enumerate(words) if word in {"|", ">", ">>", "&", "&&"}]
    return words[: ends[0]] if ends else words


def is_program(words: list[str]) -> None:
    """`pdr-graph …` is read as the program reads it, every option known."""
    if words[1:] in (["--version"], ["--help"]):
        return
    command = get_command(make_app(words[1])).commands[words[1]]
    if words[2:] != ["--help"]:
        command.make_context(words[1], words[2:])


def is_target(words: list[str]) -> None:
    """`make …` has a line of help."""
    names = [word for word in words[1:] if "=" not in word]
    assert names, "make without a target"
    for name in names:
        assert re.search(rf"^{re.escape(name)}:.* ## ", MAKEFILE, re.M), f"no target {name}"


def is_installed(words: list[str]) -> None:
    """`pip install …` names extras that are offered."""
    assert "install" in words
    assert any(word == "." or word.startswith(("-e", ".", "pdr-graph")) for word in words)
    for names in re.findall(r"\[([\w,-]+)\]", " ".join(words)):
        assert set(names.split(",")) <= EXTRAS.keys(), names


def is_module(words: list[str]) -> None:
    """`python -m …` names a module, and the tasks and our command line take the words.

    `python FILE` names a file that a page shows, or one of the repository.
    """
    if words[1] != "-m":
        known = {block.title for block in BLOCKS}
        assert words[1] in known or (ROOT / words[1]).is_file(), words
        return
    module = words[2]
    assert importlib.util.find_spec(module) is not None, module
    if module == "graphs.tasks":
        with chdir(ROOT):  # it reads the document that is named
            given = [word for word in words[3:] if word not in {"--tests", "tests.py"}]
            import_module("graphs.tasks.__main__").parser().parse_args(given)
    elif module == "pdr_graph.cli":
        is_program(["pdr-graph", *words[3:]])


def launches(words: list[str]) -> None:
    """`accelerate launch … -m pdr_graph.cli …` and `torchrun` start our command line."""
    is_program(["pdr-graph", *words[words.index("pdr_graph.cli") + 1 :]])


def is_in_compose(words: list[str]) -> None:
    """`docker …` names services, profiles, files and extras that are there."""
    text = " ".join(words)
    profiles = {each for service in COMPOSE.values() for each in service.get("profiles", [])}
    assert set(re.findall(r"--profile (\w+)", text)) <= profiles
    assert set(re.findall(r"compose run --rm (\w+)", text)) <= COMPOSE.keys()
    for extras in re.findall(r"--build-arg EXTRAS=([\w,]+)", text):
        assert set(extras.split(",")) <= EXTRAS.keys()
    for file in re.findall(r" -f (\S+)", text):
        assert (ROOT / file).is_file(), file


def is_our_port(words: list[str]) -> None:
    """`curl …` asks a port on which something of ours listens."""
    ports = set(re.findall(r"127\.0\.0\.1:(\d+)", " ".join(words)))
    assert ports <= {"8000", "8100", "2024"}
    assert ports


def is_registered(words: list[str]) -> None:
    """`inspect eval … --solver pdr_graph/pdr` names what the package registers."""
    solver = words[words.index("--solver") + 1]
    package, _, name = solver.partition("/")
    assert PROJECT["entry-points"]["inspect_ai"][package]
    assert f"def {name}(" in (ROOT / package / "inspect_ai/__init__.py").read_text("utf-8")


def is_any(words: list[str]) -> None:
    """A program of the system's, of which nothing of ours depends."""


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "pdr-graph": is_program,
    "make": is_target,
    "pip": is_installed,
    "uv": is_installed,
    "python": is_module,
    "accelerate": launches,
    "torchrun": launches,
    "docker": is_in_compose,
    "curl": is_our_port,
    "inspect": is_registered,
    **dict.fromkeys(("cat", "cd", "cp", "export", "git", "install"), is_any),
    **dict.fromkeys(("prometheus", "promtool"), is_any),
    **dict.fromkeys(("jq", "kill", "ls", "openssl", "vllm"), is_any),
}


def parses(block: Block) -> None:
    """A block is what its language says it is."""
    match block.kind:
        case "python":
            compiled(block)
        case "console":
            assert commands_of(block), "a console block shows a command"
            for command in commands_of(block):
                words = words_of(command)
                assert words[0] in COMMANDS, f"add {words[0]!r} to COMMANDS"
                COMMANDS[words[0]](words)
        case "json":
            for text in [block.text] if block.text.startswith("{\n") else block.text.splitlines():
                json.loads(text)
        case "toml":
            tomllib.loads(block.text)
        case "yaml":
            yaml.safe_load(block.text)
        case "text":
            pass
        case _:
            pytest.fail(f"a block of kind {block.kind!r}, for which there is no check")


def compiled(block: Block) -> object:
    """Compile Python, which may wait at its top level as in a notebook."""
    source = "\n" * block.line + block.text
    return compile(source, block.page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_is_what_it_says(block):
    """Known commands with known options, targets, extras and modules; code that compiles."""
    parses(block)


def test_what_is_not_run_says_why():
    """Each exemption gives a reason of a few words, and stands right before a block."""
    marks = [
        (file, mark)
        for file in PAGES
        for mark in re.findall(r"<!-- not run.*?-->", file.read_text("utf-8"), re.DOTALL)
    ]
    assert len(marks) == sum(block.reason is not None for block in BLOCKS)
    assert all(len(block.reason.split()) > 1 for block in BLOCKS if block.reason is not None)


# ---------------------------------------------------------------------------------- what is run


def runs_here(block: Block) -> bool:
    """Whether a block does something in this test."""
    if block.reason is not None or block.page in READ_ONLY:
        return False
    own = block.kind == "console" and any("pdr-graph" in each for each in commands_of(block))
    return block.kind == "python" or own


@dataclass
class Desk:
    """Where the blocks of one page are carried out."""

    folder: Path
    stand_ins: dict[str, str]
    """What is put in the place of what a page names."""
    loop: asyncio.AbstractEventLoop
    names: dict[str, object] = field(default_factory=lambda: {"__name__": "__main__"})
    """Of the page's Python."""

    def carry_out(self, block: Block) -> None:
        """Run a block, or write its file."""
        text = block.text
        for name, stand_in in self.stand_ins.items():
            text = text.replace(name, stand_in)
        block = Block(block.page, block.line, block.kind, text, block.title, block.reason)
        if block.title is not None:
            file = self.folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")
        if not runs_here(block):
            return
        if block.kind == "python":
            code = compiled(block)
            if code.co_flags & inspect.CO_COROUTINE:
                self.loop.run_until_complete(eval(code, self.names))
            else:
                exec(code, self.names)
            return
        for command in commands_of(block):
            words = words_of(command)
            if words[0] == "pdr-graph" and words[1] not in NOT_RUN:
                assert run(words[1:]) == 0, command


@contextmanager
def served(environment: dict[str, str]) -> Iterator[str]:
    """Run `pdr-graph serve` in a process of its own; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "pdr_graph.cli", "serve", "--port", str(port), "--quiet"]
    process = subprocess.Popen(words, env={**os.environ, **environment})
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                assert process.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def desk(clean, mock, monkeypatch) -> Iterator[Callable[[str], Desk]]:  # noqa: F811
    """Makes a page's desk: a folder, an endpoint, a store, and a server if the page asks one."""
    loop = asyncio.new_event_loop()
    opened = []

    def make(text: str) -> Desk:
        valkey = embedded_valkey(clean / "data")
        store = loop.run_until_complete(valkey.__aenter__())
        opened.append(lambda: loop.run_until_complete(valkey.__aexit__(None, None, None)))
        places = {"PDR_BASE_URL": mock.url, "PDR_DATA_DIR": str(clean / "data")}
        for name, value in places.items():
            monkeypatch.setenv(name, value)
        stand_ins = {
            "http://127.0.0.1:8000/v1": mock.url,
            "redis://127.0.0.1:6379/0": store,
            "Qwen/Qwen3-8B": "mock-model",
            "--samples 4": "--samples 1",  # as true, and four times as fast
        }
        if "http://127.0.0.1:8100/v1" in text:
            server = served(places)
            stand_ins["http://127.0.0.1:8100/v1"] = server.__enter__()
            opened.append(lambda: server.__exit__(None, None, None))
        if "http://127.0.0.1:8001/v1" in text:
            large = MockEndpoint(model="Qwen/Qwen3-32B")
            stand_ins["http://127.0.0.1:8001/v1"] = large.__enter__().url
            opened.append(lambda: large.__exit__(None, None, None))
        for name, content in FILES.items():
            (clean / name).write_text(content, "utf-8")
        return Desk(clean, stand_ins, loop)

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    loggers = [logging.getLogger(name) for name in ("", "pdr_graph", "pdr_graph.run")]
    before = [(each, each.level, list(each.handlers)) for each in loggers]
    yield make
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
    for close in reversed(opened):
        close()
    loop.close()


RUN = {
    page: [block for block in BLOCKS if block.page == page]
    for page in dict.fromkeys(block.page for block in BLOCKS if runs_here(block))
}


# A page need not close what the end of its process closes.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.redis
@pytest.mark.parametrize("page", RUN)
def test_the_blocks_of_a_page_run(page, desk, capsys):
    """One after the other, in one namespace and one folder."""
    blocks = RUN[page]
    place = desk("".join(block.text for block in blocks if runs_here(block)))
    for block in blocks:
        try:
            place.carry_out(block)
        except Exception as error:  # noqa: BLE001  # whatever it is, the block is named
            said = capsys.readouterr()
            pytest.fail(f"{block}: {type(error).__name__}: {error}\n{said.err[-2000:]}")


def test_the_first_example_prints_what_it_says(desk, capsys):
    """An answer and both budgets."""
    first = next(block for block in BLOCKS if block.page == "README.md" and block.kind == "python")
    desk(first.text).carry_out(first)
    assert re.fullmatch(r"\d+ \d+ \d+\n", capsys.readouterr().out)


# -------------------------------------------------------------------------- what is shown is true


async def test_the_picture_is_the_graph(connect):
    """Its arrows are those of the compiled graph."""
    picture = (DOCS / "assets/graph.svg").read_text("utf-8")
    drawn = {tuple(each.split()) for each in re.findall(r'data-edge="([^"]+)"', picture)}
    edges = build_graph(connect()).get_graph().edges
    assert drawn == {(edge.source.strip("_"), edge.target.strip("_")) for edge in edges}


def test_the_presets_are_all_in_the_readme():
    """One row each."""
    section = (ROOT / "README.md").read_text("utf-8").split("## Presets\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", section, re.M)
    assert rows == list(PRESETS)


def test_the_readme_is_short():
    """What is longer belongs into the documentation."""
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 160


def test_every_extra_that_is_named_is_offered():
    """In any sentence of any page."""
    for file in PAGES:
        named = re.findall(r"pdr-graph\[([\w,]+)\]", file.read_text("utf-8"))
        assert {each for names in named for each in names.split(",")} <= EXTRAS.keys(), file


def test_every_target_that_is_named_is_offered():
    """In any sentence of any page."""
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))
    for file in PAGES:
        named = re.findall(r"`make ([a-z][a-z-]*)", file.read_text("utf-8"))
        assert set(named) <= targets, file


def test_every_file_that_is_named_is_there():
    """Paths of the repository, in any sentence of any page; the changelog speaks of the past."""
    path = r"`((?:pdr_graph|checkpoints|benchmarks|graphs|docker|engine|tests|docs)/[\w./-]*)`"
    for file in PAGES:
        if file.name != "CHANGELOG.md":
            for name in re.findall(path, file.read_text("utf-8")):
                assert (ROOT / name).exists(), f"{file}: {name}"


def test_every_module_that_is_named_is_there():
    """`pdr_graph.module` and `pdr_graph.module.name`, in any sentence of any page."""
    for file in PAGES:
        if file.name != "CHANGELOG.md":
            text = file.read_text("utf-8")
            for name in re.findall(r"`((?:pdr_graph|pdr_checkpoints)(?:\.\w+)+)`", text):
                assert is_there(name), f"{file}: {name}"


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or something that its parent defines; imports nothing."""
    top = ROOT / "checkpoints" if name.startswith("pdr_checkpoints") else ROOT
    parts = name.split(".")
    home = top.joinpath(*parts)
    if home.with_suffix(".py").is_file() or (home / "__init__.py").is_file():
        return True
    parent = top.joinpath(*parts[:-1])
    file = parent / "__init__.py" if parent.is_dir() else parent.with_suffix(".py")
    return file.is_file() and re.search(rf"\b{parts[-1]}\b", file.read_text("utf-8")) is not None


# --------------------------------------------------------------------------------- the site


@cache
def hook(name: str) -> ModuleType:
    """Import a script of the site's."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"hooks/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def sources() -> dict[Path, str]:
    """Return the text of every page, those that the site generates too."""
    generated = {DOCS / path: text for path, text in hook("reference").pages().items()}
    return {file: file.read_text("utf-8") for file in PAGES} | generated


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as Markdown's `toc` and GitHub make them."""
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    found = set(re.findall(r"\{ *#([\w-]+)", plain))
    for heading in re.findall(r"^#+ +(.*?)(?: *\{.*\})?$", plain, re.M):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        ascii_only = unicodedata.normalize("NFKD", shown).encode("ascii", "ignore").decode()
        kept = re.sub(r"[^\w\s-]", "", ascii_only).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", kept))
        found.add(re.sub(r"[^\w\- ]", "", shown).strip().lower().replace(" ", "-"))
    return found


def links(text: str) -> list[str]:
    """Return where a page's links and pictures lead, web addresses left out."""
    plain = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    plain = re.sub(r"`[^`\n]*`", "", plain)
    found = re.findall(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", plain)
    found += re.findall(r'(?:src|href)="([^"]+)"', plain)
    return [each for each in found if not re.match(r"[a-z+]+:", each)]


@pytest.mark.parametrize("file", [*PAGES, *(DOCS / path for path in hook("reference").pages())],
                         ids=lambda file: str(file.relative_to(ROOT)))  # fmt: skip
def test_links_lead_somewhere(file):
    """To pages, files and headings that are there."""
    for link in links(sources()[file]):
        path, _, anchor = link.partition("#")
        target = Path(os.path.normpath(file.parent / path)) if path else file
        assert target in sources() or target.exists(), f"{link}: nothing is there"
        if anchor and target in sources() and ":::" not in sources()[target]:
            assert anchor in anchors(sources()[target]), f"{link}: no such heading"
        if file.is_relative_to(DOCS):
            assert target.is_relative_to(DOCS), f"{link} leaves the site"


def nav(entries: object) -> Iterator[str]:
    """Yield the paths of the site's navigation."""
    match entries:
        case str():
            yield entries
        case dict():
            for each in entries.values():
                yield from nav(each)
        case list():
            for each in entries:
                yield from nav(each)


def test_every_page_is_in_the_navigation():
    """Once, and the navigation names no other."""
    pages = [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]
    there = {str(file.relative_to(DOCS)) for file in pages} | hook("reference").pages().keys()
    named = list(nav(SITE["nav"]))
    assert len(named) == len(set(named))
    assert set(named) == there


def test_the_reference_names_what_there_is():
    """Each `::: name` can be imported, and the page of the package has all that it exports."""
    for file, text in sources().items():
        for name in re.findall(r"^::: ([\w.]+)$", text, re.M):
            module, _, attribute = name.rpartition(".")
            assert (importlib.util.find_spec(name) if not module else None) or resolves(
                module, attribute, name
            ), f"{file}: {name}"
    own = (DOCS / "reference/pdr_graph.md").read_text("utf-8")
    exported = set(import_module("pdr_graph").__all__)
    elsewhere = {"PDRError", "PRESETS"}
    assert set(re.findall(r"^::: pdr_graph\.(\w+)$", own, re.M)) == exported - elsewhere


def resolves(module: str, attribute: str, name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    return hasattr(import_module(module), attribute) or bool(importlib.util.find_spec(name))


def test_the_reference_of_commands_is_whole():
    """A section for each command, and each of its options."""
    text = hook("reference").cli_page()
    for name, command in get_command(make_app()).commands.items():
        section = text.split(f"\n## pdr-graph {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            for flag in [each for each in parameter.opts if each.startswith("-")]:
                assert f"`{flag}`" in section or flag in {"--help", "-h"}, (name, flag)


def test_the_reference_of_settings_is_whole():
    """A row for each field, with its text."""
    from pdr_graph.config import PDRConfig
    from pdr_graph.serve.options import ServeOptions
    from pdr_graph.settings import Settings
    from pdr_graph.train.settings import TrainSettings

    text = hook("reference").settings_page()
    for model in (PDRConfig, Settings, ServeOptions):
        for name in model.model_fields:
            assert re.search(rf"^\| `{name}`(?:<br>`\w+`)? \| \S", text, re.M), name
    for name, info in TrainSettings.model_fields.items():
        nested = isinstance(info.default, BaseModel) or name in {"lora", "warm_start"}
        assert (f"\n### {name}\n" if nested else f"\n| `{name}` |") in text


def test_a_notebook_becomes_a_page():
    """Text, code, and what the code printed."""
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {
            "cell_type": "code",
            "source": "1 + 1",
            "outputs": [{"data": {"text/plain": ["2"]}}, {"text": "said\n"}],
        },
    ]
    page = hook("notebook").markdown_of({"cells": cells})
    assert page == (
        "# Title\ntext\n\n```python\n1 + 1\n```\n\n```text\n2\n```\n\n```text\nsaid\n```\n"
    )


@pytest.mark.parametrize(
    ("page", "loads"),
    [
        ('<script src="https://a.example/b.js"></script>', True),
        ('<link href="//a.example/b.css" rel="stylesheet">', True),
        ('<img alt="x" src="https://a.example/b.png">', True),
        ('<a href="https://a.example/">a</a><script src="assets/b.js"></script>', False),
        ('<link rel="canonical" href="https://a.example/">', False),
    ],
)
def test_a_page_that_loads_from_the_network_is_found(page, loads):
    """Scripts, styles and pictures; not the links that a reader follows."""
    assert bool(hook("offline").loaded_from_network(page)) is loads


def test_the_commands_of_the_containers_name_what_there_is():
    """Files, profiles and the port that is asked are those of the compose file."""
    text = (ROOT / "docker/README.md").read_text("utf-8")
    assert any("8100}:8100" in each for each in COMPOSE["app"]["ports"])
    profiles = {each for service in COMPOSE.values() for each in service.get("profiles", [])}
    assert set(re.findall(r"--profile (\w+)", text)) == profiles
    assert set(re.findall(r"docker compose run --rm (\w+)", text)) <= COMPOSE.keys()
    assert (ROOT / "docker/.env.example").is_file()
    built = re.search(r"--build-arg EXTRAS=([\w,]+) -f (\S+)", text)
    assert set(built[1].split(",")) <= EXTRAS.keys()
    assert (ROOT / built[2]).is_file()
