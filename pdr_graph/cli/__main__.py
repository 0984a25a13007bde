"""`python -m pdr_graph.cli`, where the script is not on the path."""

from pdr_graph.cli import main

main()
