"""Names of the graph's runs in training: none is given twice, and each tells which weights drew it.

v12-s81923-p0-r3     drawn after 12 updates, by a rank's seed of the step: run 3 of problem 0
"""

import re

_NAME = re.compile(r"v(\d+)-s\d+-p\d+-r\d+")


def run_name(policy_version: int, seed: int, position: int, index: int) -> str:
    """Return the name of a run.

    Args:
        policy_version: Number of weight updates before the policy that draws.
        seed: Of the step's rollouts, on this rank.
        position: Of the problem among those that the rank asks.
        index: Of the run among those of its problem.
    """
    return f"v{policy_version}-s{seed}-p{position}-r{index}"


def version_of(name: str) -> int:
    """Return the policy version that a run was drawn by.

    Raises:
        ValueError: it is no name of a run.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no name of a run")
    return int(found[1])
