"""What `pdr_graph` offers by name."""

import subprocess
import sys

import pytest

import pdr_graph


@pytest.mark.parametrize("name", pdr_graph.__all__)
def test_a_public_name_is_found(name):
    """On first use, and as what it is."""
    assert type(getattr(pdr_graph, name)).__name__ != "module"


def test_no_module_hides_a_public_name():
    """A module of that name would take its place as soon as anything imports it."""
    code = (
        "import pkgutil, pdr_graph\n"
        "for each in pkgutil.iter_modules(pdr_graph.__path__):\n"
        "    if not each.ispkg:\n"
        "        __import__(f'pdr_graph.{each.name}')\n"
        "found = {name: type(getattr(pdr_graph, name)).__name__ for name in pdr_graph.__all__}\n"
        "assert 'module' not in found.values(), found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
