"""Lets every document, and every message, install the package from where it can be had.

Until the first release that is the repository. `python .ci/published.py --release` changes all of
it to the package index, once. Without words it says which documents do not fit; `--fix` corrects
them.
`--released` also fails where the change has not been made: no release goes out without it.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
SWITCH = ROOT / "pdr_graph/errors.py"
FLAG = re.compile(r"^IS_PUBLISHED = (True|False)$", re.MULTILINE)
REQUIREMENT = re.compile(r"'pdr-graph(\[[\w,-]+\])?(?: @ git\+[^'\s]+)?'")
BARE = re.compile(r"(?<=pip install )pdr-graph\b")
NOTICE = "There is no release yet, so every page installs from the repository.\n\n"
"""A paragraph that the release takes out."""


def documents() -> list[Path]:
    """Return what people read before they install anything."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docker/*.md"), *ROOT.glob("checkpoints/*.md")]
    found += [*ROOT.glob("docs/**/*.md"), *ROOT.glob("docs/**/*.ipynb")]
    return sorted(each for each in found if each.name != "CHANGELOG.md")


def is_published() -> bool:
    """Tell what the messages of the package say."""
    (flag,) = FLAG.findall(SWITCH.read_text("utf-8"))
    return bool(flag == "True")


def corrected(text: str, *, published: bool) -> str:
    """Return a document in which every requirement of the package has the form that works."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    where = "" if published else f" @ git+{project['urls']['Source']}"
    text = text.replace(NOTICE, "") if published else text
    text = BARE.sub("'pdr-graph'", text)
    return REQUIREMENT.sub(lambda found: f"'pdr-graph{found[1] or ''}{where}'", text)


def main(words: list[str]) -> int:
    """Check, or change."""
    word = words[0] if words else ""
    if len(words) > 1 or word not in {"", "--fix", "--release", "--released"}:
        sys.stderr.write("usage: python .ci/published.py [--fix | --release | --released]\n")
        return 2
    if word == "--release":
        SWITCH.write_text(FLAG.sub("IS_PUBLISHED = True", SWITCH.read_text("utf-8")), "utf-8")
    published, wrong = is_published(), []
    for file in documents():
        text = file.read_text("utf-8")
        right = corrected(text, published=published)
        if right != text and word in {"--fix", "--release"}:
            file.write_text(right, "utf-8")
        elif right != text:
            name = file.relative_to(ROOT)
            wrong.append(f"{name} installs from elsewhere: run published.py --fix")
    if word == "--released" and not published:
        wrong.append("people are told to install from the repository: run published.py --release")
    sys.stderr.write("".join(f"{each}\n" for each in wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
