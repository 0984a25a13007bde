"""Compresses a round of drafts into the workspaces that the next calls read.

Where rounds are pooled, a tally counts the answers of all of them. It stays bounded: a few answers,
each with the number of drafts that gave it and the text of one of these. The early stop follows
Adaptive-Consistency (arXiv 2305.11860), which samples until the answers so far agree.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from langgraph.runtime import Runtime
from langgraph.types import Overwrite

from pdr_graph.answers import AnswerKind, agreement, clusters
from pdr_graph.budget import b_total
from pdr_graph.config import DRAFT_FINISHES, PDRConfig
from pdr_graph.distill.workspace import pack
from pdr_graph.errors import QuorumError, QuorumLostError
from pdr_graph.events import NoteEvent, WorkspaceEvent
from pdr_graph.nodes.toolbox import Toolbox, charged, is_continued, tell, voting
from pdr_graph.state import PDRState, config_of, more_drafts, rounds_left, succeeded
from pdr_graph.step import Step
from pdr_graph.strategies import drafts_needed, width_of
from pdr_graph.types import Draft, Tally, Vote, Workspace

MAX_ANSWERS = 8
"""Different answers that a tally keeps; drafts with rarer ones are counted and forgotten."""


async def add_votes(kind: AnswerKind, tally: Tally | None, drafts: Sequence[Draft]) -> Tally:
    """Return the tally with a round of drafts added, the most common answer first.

    A tie goes to the answer that came first. Drafts without an answer count as voters, as they do
    in `agreement`.
    """
    votes = list(tally["votes"]) if tally else []
    votes += [
        Vote(answer=draft["answer"], count=1, solution=draft["solution"])
        for draft in drafts
        if draft["answer"] is not None
    ]
    groups = await clusters(kind, [vote["answer"] for vote in votes])
    counted = [
        Vote({**votes[group[0]], "count": sum(votes[index]["count"] for index in group)})
        for group in groups
    ]
    counted.sort(key=lambda vote: vote["count"], reverse=True)
    voters = (tally["voters"] if tally else 0) + len(drafts)
    return Tally(voters=voters, votes=counted[:MAX_ANSWERS])


def is_decided(tally: Tally, more_drafts: int) -> bool:
    """Tell whether `more_drafts` further drafts cannot change who wins the vote.

    False where none are to come: there is nothing to skip.
    """
    votes = tally["votes"]
    if not votes:
        return False
    second = votes[1]["count"] if len(votes) > 1 else 0
    return votes[0]["count"] - second > more_drafts > 0


@dataclass(frozen=True, slots=True)
class DistillerNode:
    """Makes the workspaces of this round's drafts, or finds that the drafts agree."""

    toolbox: Toolbox

    async def __call__(self, state: PDRState, *, runtime: Runtime[PDRConfig]) -> dict[str, object]:
        """Return the new workspaces, or the answer that ends the rounds.

        Raises:
            QuorumError: too few drafts succeeded; a continued run asks for the others again.
        """
        if (shortage := _shortage(state)) is not None:
            if is_continued():
                return {"phase": "short"}
            raise shortage
        step = self.toolbox.step("distiller", state)
        more_rounds, workspaces = rounds_left(state) > 0, None
        with voting(step, runtime.stream_writer):
            if step.config.pool_rounds:
                tally = await add_votes(step.answers, step.tally, step.drafts)
                step = replace(step, tally=tally)
            agreed = await _consensus(step, more_drafts=more_drafts(state))
            if agreed is None and (more_rounds or step.config.finish not in DRAFT_FINISHES):
                workspaces = await self._workspaces(step)
        notes = [*state["notes"], *step.notes]
        if agreed is not None:
            note = f"the rounds ended early: {agreed[1]:.0%} of the drafts answer {agreed[0]}"
            tell(runtime.stream_writer, NoteEvent(event="note", text=note))
            return {"consensus": agreed[0], "tally": step.tally, "notes": [*notes, note]}
        if workspaces is None:
            return {"workspaces": [], "tally": step.tally, "notes": notes}
        row = charged(step.ask.meter, estimated=any(w["estimated"] for w in workspaces))
        tell(
            runtime.stream_writer,
            WorkspaceEvent(
                event="workspace",
                round=state["round"],
                count=len(workspaces),
                tokens=max((workspace["tokens"] for workspace in workspaces), default=0),
                spent=b_total([row]),
                seconds=round(row["seconds"], 3),
            ),
        )
        update: dict[str, object] = {
            "workspaces": workspaces,
            "tally": step.tally,
            "ledger": [row],
            "notes": notes,
        }
        if more_rounds and step.config.finish not in DRAFT_FINISHES:
            # A distilled draft must not be checkpointed in the next round too. A vote keeps its
            # drafts until the next ones come, in case the budget ends the rounds here.
            update["drafts"] = Overwrite([])
        return update

    async def _workspaces(self, step: Step) -> list[Workspace]:
        distiller = self.toolbox.operators.distiller(step.config.distiller)
        texts = await distiller.distil(step)
        kappa = step.config.kappa
        return list(await asyncio.gather(*(pack(each, kappa, step.counter) for each in texts)))


async def _consensus(step: Step, *, more_drafts: int) -> tuple[str, float] | None:
    """Return the answer that ends the rounds and its share of the drafts; None to go on."""
    threshold = step.config.stop_on_consensus
    if threshold is None:
        return None
    if step.tally is not None:
        votes, voters = step.tally["votes"], step.tally["voters"]
        answer, share = (votes[0]["answer"], votes[0]["count"] / voters) if votes else (None, 0.0)
        if step.config.finish == "vote" and is_decided(step.tally, more_drafts):
            threshold = 0.0
    else:
        answer, share = await agreement(step.answers, [draft["answer"] for draft in step.drafts])
    return (answer, share) if answer is not None and share >= threshold else None


def _shortage(state: PDRState) -> QuorumError | None:
    """Return the error of a round with too few drafts; None where there are enough."""
    config = config_of(state)
    width, needed = width_of(config, state["round"]), drafts_needed(config, state["round"])
    good = succeeded(state)
    if len(good) >= needed:
        return None
    lost = [draft for draft in state.get("drafts", []) if draft["error"] is not None]
    reasons = Counter(draft["detail"] for draft in lost).most_common(2)
    why = "; ".join(f"{count} x {detail}" for detail, count in reasons) or "none were asked for"
    refused = not good and bool(lost) and all(draft.get("refused") for draft in lost)
    made = QuorumError if refused else QuorumLostError
    return made(state["round"], len(good), needed, width, why)
