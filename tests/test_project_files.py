"""What the files beside the code say of the project is true: workflows, citation, rules."""

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pdr_graph import PRESETS
from pdr_graph.distill import DISTILLERS
from pdr_graph.errors import IS_PUBLISHED, install_command

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):.* ## ", MAKEFILE, re.M))
LOCKED = dict(re.findall(r"call compiled,([a-z]+),(.*)\)", MAKEFILE))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def workflow(name: str) -> dict[str, Any]:
    """Read a workflow; YAML takes its key `on` for a truth value."""
    read = yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text("utf-8"))
    return {"on" if key is True else key: value for key, value in read.items()}


def steps(read: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the steps of all jobs."""
    return [step for job in read["jobs"].values() for step in job["steps"]]


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)


def makes(text: str) -> list[str]:
    """Return the targets that lines of a shell, or commands in a text, name."""
    return re.findall(r"(?:^|`|\$ )make ([a-z][a-z-]*)", text, re.M)


def test_there_are_the_three_workflows():
    """Tests, documentation, release."""
    assert [file.stem for file in WORKFLOWS] == ["docs", "release", "tests"]


@pytest.mark.parametrize("name", [file.stem for file in WORKFLOWS])
def test_a_workflow_is_sound(name):
    """It says when it runs, what it may do and how long, and names actions by their commits."""
    read = workflow(name)
    assert read["on"]
    assert read["permissions"] == {"contents": "read"}
    for job in read["jobs"].values():
        assert job["runs-on"] == "ubuntu-latest"
        assert 0 < job["timeout-minutes"] <= 60
        assert set([job["needs"]] if "needs" in job else []) <= read["jobs"].keys()
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
    text = (ROOT / f".github/workflows/{name}.yml").read_text("utf-8")
    for action in [step["uses"] for step in steps(read) if "uses" in step]:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action)
        assert re.search(rf"{action} # v\d+\.\d+\.\d+$", text, re.M), "readers want the version"


@pytest.mark.parametrize("name", [file.stem for file in WORKFLOWS])
def test_a_workflow_names_targets_that_exist(name):
    """What it asks make for."""
    named = makes("\n".join(step.get("run", "") for step in steps(workflow(name))))
    assert set(named) <= TARGETS
    expected = {
        "tests": {"check", "test", "test-security", "test-long", "test-train", "audit"},
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


def test_what_is_released_is_locked_checked_and_attested():
    """The version first; no package without its hash; attested by its builder, and on PyPI."""
    jobs = workflow("release")["jobs"]
    build = jobs["build"]["steps"]
    commands = "\n".join(step.get("run", "") for step in build)
    assert commands.index("GITHUB_REF_NAME") < commands.index("python -m build --no-isolation")
    for line in re.findall(r".*pip install.*", commands):
        assert "--require-hashes" in line or line.endswith("--no-deps dist/*.whl"), line
    (attest,) = [step for step in build if "attest-build-provenance" in step.get("uses", "")]
    assert attest["with"]["subject-path"] == "dist/*"
    assert jobs["build"]["permissions"]["attestations"] == "write"
    assert jobs["publish"]["steps"][-1]["with"]["attestations"] is True


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
    named = re.findall(r"\btests/[\w/]+(?:\.py)?", MAKEFILE)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def required(words: str) -> list[Requirement]:
    """Return what `make lock` is asked to lock: the package, its extras and groups, flat."""
    extras = re.findall(r"--extra (\S+)", words)
    lines = [*PROJECT["dependencies"]] if extras else []
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    for group in re.findall(r"--group (\S+)", words):
        lines += PYPROJECT["dependency-groups"][group]
    found: list[Requirement] = []
    for line in lines:
        if isinstance(line, dict):
            found += required(f"--group {line['include-group']}")
        elif (each := Requirement(line)).name == PROJECT["name"]:
            found += required(" ".join(f"--extra {extra}" for extra in each.extras))
        else:
            found.append(each)
    return found


def pins(lock: str) -> list[tuple[Requirement, str]]:
    """Return the requirements of a lock, each with its hashes."""
    text = (ROOT / f"locks/{lock}.txt").read_text("utf-8")
    entries = re.findall(r"^(\w[^\n]*?) \\\n((?:    --hash\S+(?: \\)?\n)+)", text, re.M)
    assert len(entries) == len(re.findall(r"^\w", text, re.M)), "an entry has no hashes"
    return [(Requirement(line), hashes) for line, hashes in entries]


def misfits(asked: list[Requirement], held: list[Requirement]) -> list[str]:
    """Return what is required and not locked, or locked in a version that does not do."""
    left_out = set((ROOT / "locks/not-locked.in").read_text("utf-8").split())
    versions: dict[str, list[str]] = {}
    for pin in held:
        version = str(pin.specifier).removeprefix("==")
        versions.setdefault(canonicalize_name(pin.name), []).append(version)
    return [
        str(each)
        for each in asked
        if each.name not in left_out
        and not any(
            each.specifier.contains(version, prereleases=True)
            for version in versions.get(canonicalize_name(each.name), [])
        )
    ]


@pytest.mark.parametrize("lock", LOCKED)
def test_a_lock_fits_what_is_required(lock):
    """Else: `make lock`, and commit what it writes."""
    assert misfits(required(LOCKED[lock]), [pin for pin, _ in pins(lock)]) == []


def test_a_lock_that_does_not_fit_is_noticed():
    """A higher floor, and a new requirement."""
    asked = [Requirement("pytest>=9000"), Requirement("left-pad"), Requirement("pytest>=9")]
    assert misfits(asked, [pin for pin, _ in pins("dev")]) == ["pytest>=9000", "left-pad"]


@pytest.mark.security
def test_locks_hold_versions_and_hashes_and_no_addresses():
    """So a package is the same from whatever index the machine uses, or is refused."""
    files = sorted((ROOT / "locks").glob("*.txt"))
    assert {file.stem for file in files} == LOCKED.keys() | {"torch"}
    for file in files:
        text = file.read_text("utf-8")
        assert not re.search(r"://|--(extra-)?index|--find-links|--trusted", text)
        for pin, hashes in pins(file.stem):
            assert re.fullmatch(r"==[^,*]+", str(pin.specifier)), pin
            assert pin.url is None
            assert all(
                re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each)
                for each in hashes.replace("\\", "").split()
            ), pin


@pytest.mark.security
def test_make_installs_by_hash():
    """All but the oldest versions, and what benchmarks compare us with."""
    recipes = MAKEFILE.replace("\\\n", " ").replace("$(UV)", "uv pip install")
    installs = [line for line in recipes.splitlines() if re.search(r"\bpip .*install ", line)]
    free = ("/lowest", "/bench", "UV     :=")
    kept = [line for line in installs if not any(word in line for word in free)]
    assert len(kept) == 5
    for line in kept:
        assert "--require-hashes" in line or line.endswith("--no-deps $(BUILD) -e ."), line


@pytest.mark.security
def test_a_package_that_was_exchanged_is_not_installed(tmp_path):
    """The real uv, by the flags of the Makefile: the same name and version, other bytes."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        pytest.skip("no uv: pip install uv")
    wheel = tmp_path / "wheels/thing-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    lock = tmp_path / "lock.txt"

    def build(body: str) -> str:
        info = "thing-1.0.dist-info"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("thing.py", body)
            head = "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n"
            archive.writestr(f"{info}/METADATA", head)
            tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            archive.writestr(f"{info}/WHEEL", tag)
            archive.writestr(f"{info}/RECORD", "")
        return hashlib.sha256(wheel.read_bytes()).hexdigest()

    def install() -> subprocess.CompletedProcess[str]:
        words = [uv, "pip", "install", "--no-index", "--find-links", str(wheel.parent)]
        words += ["--no-cache", "--python", sys.executable, "--target", str(tmp_path / "site")]
        return run([*words, "--no-deps", "--require-hashes", "-r", str(lock)])

    lock.write_text(f"thing==1.0 --hash=sha256:{build('right = True')}\n")
    assert install().returncode == 0
    shutil.rmtree(tmp_path / "site")
    build("wrong = True")
    refused = install()
    assert refused.returncode != 0
    assert "Hash mismatch" in refused.stderr
    assert not (tmp_path / "site/thing.py").exists()


VULNERABLE = {"name": "a", "version": "1", "vulns": [{"id": "X-1", "fix_versions": ["2"]}]}
UNKNOWN = {"name": "a", "skip_reason": "not found"}
UNREACHED = "requests.exceptions.ConnectionError: no route"


@pytest.mark.parametrize(
    ("reported", "error", "status", "told"),
    [
        ([VULNERABLE, UNKNOWN], None, 1, "a 1 has X-1, fixed by 2"),
        ([VULNERABLE | {"vulns": []}], None, 0, "1 packages audited, 0 vulnerabilities found"),
        ([UNKNOWN], None, 0, "nothing was audited"),
        (None, UNREACHED, 0, "nothing was audited"),
        (None, "KeyError: 1", 1, "error: pip-audit failed on one.txt: KeyError: 1"),
        ([UNKNOWN, VULNERABLE], UNREACHED, 1, "a 1 has X-1"),
    ],
)
def test_an_audit_hides_nothing(tmp_path, reported, error, status, told):
    """A finding and a defect fail; a database out of reach, or one that knows nothing, is told."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks/one.txt").write_text("a==1\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    program = tmp_path / "bin/pip-audit"
    report = json.dumps({"dependencies": reported}) if reported else ""
    program.write_text(f"#!{sys.executable}\nprint({report!r})\nraise SystemExit({error!r})\n")
    program.chmod(0o755)
    done = run([str(tmp_path / "bin/python"), str(tmp_path / ".ci/audit.py")])
    assert done.returncode == status, done.stderr
    assert told in done.stdout + done.stderr


def test_no_test_is_left_out():
    """What `make test` leaves to the attacks and to the long tests runs in `.ci/run` too."""
    runs = (ROOT / ".ci/run").read_text("utf-8")
    assert {"test", "test-security", "test-long"} <= set(makes(runs))
    recipes = dict(re.findall(r"^([a-z-]+):.*\n((?:\t.*\n)+)", MAKEFILE, re.M))
    assert '-m "not security" $(LONG:%=--ignore=%)' in recipes["test"]
    assert "-m security tests" in recipes["test-security"]
    assert " $(LONG) " in recipes["test-long"]
    for target in ("test", "test-security", "test-long"):
        assert not re.search(r" -k |--deselect", recipes[target])


# ------------------------------------------------------------------------------- installation


def published():
    """The script that says where the package is installed from."""
    spec = importlib.util.spec_from_file_location("published", ROOT / ".ci/published.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_document_installs_from_where_the_package_is():
    """From the repository until there is a release; the short form then."""
    done = run([sys.executable, str(ROOT / ".ci/published.py")])
    assert done.returncode == 0, done.stderr


def test_every_message_names_an_extra_by_one_function():
    """So that all of them change with the release."""
    named = [
        str(file.relative_to(ROOT))
        for file in [*ROOT.glob("pdr_graph/**/*.py"), *ROOT.glob("checkpoints/**/*.py")]
        if "pip install 'pdr-graph" in file.read_text("utf-8")
    ]
    assert named == ["pdr_graph/errors.py"]


def test_a_message_and_the_documents_agree():
    """The address is that of the project's own file."""
    script, command = published(), install_command("local")
    assert command in (ROOT / "README.md").read_text("utf-8")
    assert script.is_published() is IS_PUBLISHED
    assert (PROJECT["urls"]["Source"] in command) is not IS_PUBLISHED


def test_a_release_gives_documents_the_short_form():
    """Requirements lose the address, and the notice goes; a bare name is found, too."""
    script = published()
    url = PROJECT["urls"]["Source"]
    bare = "pip install pdr-graph\n"
    before = f"{script.NOTICE}$ pip install 'pdr-graph[local,eval] @ git+{url}'\n{bare}"
    after = "$ pip install 'pdr-graph[local,eval]'\npip install 'pdr-graph'\n"
    assert script.corrected(before, published=True) == after
    assert script.corrected(after, published=False) == (
        f"$ pip install 'pdr-graph[local,eval] @ git+{url}'\npip install 'pdr-graph @ git+{url}'\n"
    )


def test_a_release_needs_the_short_form():
    """The workflow asks before it builds; as long as nothing is published, the answer is no."""
    commands = [step.get("run", "") for step in workflow("release")["jobs"]["build"]["steps"]]
    asks = commands.index("python .ci/published.py --released")
    assert asks < commands.index("python -m build --no-isolation")
    done = run([sys.executable, str(ROOT / ".ci/published.py"), "--released"])
    assert done.returncode == int(not IS_PUBLISHED)
