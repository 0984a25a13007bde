"""Pages of runs and comparisons: one HTML file each, without scripts."""

from pdr_graph.page.render import render, write_page
from pdr_graph.page.run_page import run_page

__all__ = ["render", "run_page", "write_page"]
