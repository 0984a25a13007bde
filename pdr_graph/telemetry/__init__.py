"""What an observer of many runs sees: spans by OpenTelemetry, and a log of JSON lines.

Off by default; nothing of OpenTelemetry is imported until it is asked for:

    with observed():
        await solve("What is 6 x 7?", model=model)
"""

from pdr_graph.telemetry.log_file import logged_to
from pdr_graph.telemetry.switch import exported, observed

__all__ = ["exported", "logged_to", "observed"]
