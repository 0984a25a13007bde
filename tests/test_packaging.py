"""What a wheel and an editable install provide: two packages, with the files that they read."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"pdr_graph": ROOT / "pdr_graph", "pdr_checkpoints": ROOT / "checkpoints/pdr_checkpoints"}
DATA = {
    "pdr_graph": {"prompts/*.md", "page/templates/*.html", "page/templates/*.css"}
    | {"train/configs/*.toml"},
    "pdr_checkpoints": set(),
}
"""Files that are no code, beside the `py.typed` of each package."""


def shipped() -> set[str]:
    """Return the files that a wheel holds, as git keeps them."""
    found = set()
    for package, folder in FOLDERS.items():
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
        found |= {f"{package}/{name}" for name in listed.stdout.split() if (folder / name).exists()}
    return found


def test_the_packages_hold_code_and_the_data_that_it_reads():
    """Nothing else lies in their folders, and no pattern of data is without a file."""
    data = {name for name in shipped() if not name.endswith((".py", "/py.typed"))}
    expected = {
        f"{package}/{file.relative_to(FOLDERS[package])}"
        for package, patterns in DATA.items()
        for pattern in patterns
        for file in FOLDERS[package].glob(pattern)
    }
    assert data == expected
    assert all(
        any(FOLDERS[p].glob(pattern)) for p, patterns in DATA.items() for pattern in patterns
    )
    assert {f"{package}/py.typed" for package in FOLDERS} <= shipped()


def test_the_wheel_is_configured_to_hold_both_packages():
    """And the folder around the saver is none: `import checkpoints` is the user's own."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]
    folders = {str(folder.relative_to(ROOT)) for folder in FOLDERS.values()}
    assert set(build["targets"]["wheel"]["packages"]) == folders
    assert {"pdr_graph", "checkpoints"} <= set(build["targets"]["sdist"]["include"])
    assert not (ROOT / "checkpoints/__init__.py").exists()


def build(target: str, source: Path, folder: Path) -> Path:
    """Build without network, by the backend that pyproject.toml names."""
    pytest.importorskip("hatchling", reason="hatchling is not installed: pip install hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.iterdir()
    return built


def contents(wheel: Path) -> set[str]:
    """Return the files of a wheel, less its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_a_wheel_holds_both_packages_and_nothing_else(tmp_path):
    """Built from the tree, or from the source distribution."""
    wheel = build("wheel", ROOT, tmp_path / "wheel")
    assert contents(wheel) == shipped()
    with tarfile.open(build("sdist", ROOT, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    assert contents(build("wheel", source, tmp_path / "again")) == shipped()


def test_an_editable_install_finds_both_packages(tmp_path):
    """From any folder: both parents are on the path."""
    pytest.importorskip("editables", reason="editables is not installed: pip install editables")
    wheel = build("wheel:editable", ROOT, tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        (path_file,) = [name for name in archive.namelist() if name.endswith(".pth")]
        places = archive.read(path_file).decode().split()
    assert {Path(place) for place in places} == {folder.parent for folder in FOLDERS.values()}
