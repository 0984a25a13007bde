"""Progress as a reader follows it: one line for each event of a run."""

from typing import Any

from pdr_graph.config import PDRConfig

Event = dict[str, Any]  # Any: plain data, by the name in "event"

_FINISHING = {"refine": "refining", "vote": "voting", "select": "selecting"}


class Narration:
    """Tells a run's events in lines, from the first round to the last call."""

    def __init__(self, config: PDRConfig) -> None:
        self._num_rounds = len(config.widths)
        self._width = 0
        self._done = 0

    def line(self, event: Event) -> str:
        """Return the line for an event, empty where there is nothing to tell."""
        match event.get("event"):
            case "round":
                self._width, self._done = event["width"], 0
                self._num_rounds = max(self._num_rounds, event["round"])
                drafts = "1 draft" if self._width == 1 else f"{self._width} drafts"
                return f"Round {event['round']} of {self._num_rounds}: {drafts}.\n"
            case "draft":
                return self._draft(event)
            case "workspace":
                many = f"{event['count']} workspaces, the largest" if event["count"] > 1 else ""
                return f"Distilled into {many or 'a workspace'} of {event['tokens']} tokens.\n"
            case "finish":
                doing = _FINISHING.get(event["finish"], str(event["finish"]))
                return f"{doing.capitalize()}.\n"
            case "solution":
                answer = event["answer"]
                return f"Refined: the answer is {answer}.\n" if answer else "Refined.\n"
            case "verdict" if event["accepted"] is not None:
                word = "accepted" if event["accepted"] else "rejected"
                return f"The solution was {word} by {event['verifier']}: {event['reason']}\n"
            case "note":
                return f"Note: {event['text']}.\n"
            case _:
                return ""

    def _draft(self, event: Event) -> str:
        self._done += 1
        # A resumed round tells only the drafts that were still owed.
        place = f"Draft {self._done} of {self._width}" if self._width else "Draft"
        if event["error"]:
            return f"{place}: {event['error']}.\n"
        answer = event["answer"]
        return f"{place} done{f', answer {answer}' if answer else ''}.\n"
