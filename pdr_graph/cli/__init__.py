"""The command line `pdr-graph`."""

from pdr_graph.cli.app import main, run

__all__ = ["main", "run"]
