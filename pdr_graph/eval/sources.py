"""Where problems come from, by how the source is written."""

from pathlib import Path

from pdr_graph.eval import gym, hub
from pdr_graph.eval.jsonl import read_json_lines
from pdr_graph.eval.problems import Problems


def load_problems(source: str) -> Problems:
    """Load problems: a file of JSON lines, `hf:org/name:split`, or `reasoning-gym:task?knobs`.

    Raises:
        ConfigError: the source cannot be read, or what it needs is not installed.
    """
    if source.startswith(gym.PREFIX):
        return gym.make_problems(source)
    if source.startswith(hub.PREFIX):
        return hub.load_split(source)
    return read_json_lines(Path(source))
