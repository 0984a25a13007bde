"""The tree of errors, as its docstring draws it."""

import ast
import re
from pathlib import Path

import pdr_graph
from pdr_graph import errors

PACKAGE = Path(pdr_graph.__file__).parent


def drawn() -> dict[str, tuple[str, str, str]]:
    """Return each error's parent, standard type and file, read off the docstring."""
    # A leaf's text may go on in the next line, beneath its branch.
    tree = re.sub(r"\n[ │]+(?![ │├└])", " ", errors.__doc__ or "")
    found, above = {}, ["PDRError"]
    for line in tree.splitlines():
        if leaf := re.match(r" +((?:│   )*)[├└]── (\w+)(?: \((\w+)\))?", line):
            depth, name = len(leaf[1]) // 4, leaf[2]
            place = re.search(r"\((\S+\.py)\)$", line)
            found[name] = above[depth], leaf[3] or "", place[1] if place else "errors.py"
            above[depth + 1 :] = [name]
    return found


def written() -> dict[str, tuple[str, str, str]]:
    """Return the same of every public error class, read off the code."""
    classes = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = [each.id for each in node.bases if isinstance(each, ast.Name)]
                classes[node.name] = bases, str(file.relative_to(PACKAGE))
    ours = {"PDRError"}
    while more := {n for n, (bases, _) in classes.items() if ours & set(bases)} - ours:
        ours |= more
    return {
        name: (bases[0], "".join(bases[1:]), place)
        for name, (bases, place) in classes.items()
        if name in ours and name != "PDRError" and not name.startswith("_")
    }


def test_the_tree_is_drawn_whole():
    """Every public error has its line, with its parent, its standard type and its file."""
    assert drawn() == written()
