"""Compresses a round of drafts into the workspaces that the next calls read.

Where rounds are pooled, a tally counts the answers of all of them. It stays bounded: a few answers,
each with the number of drafts that gave it and the text of one of these. The early stop follows
Adaptive-Consistency (arXiv 2305.11860), which samples until the answers so far agree.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, replace

from langgraph.runtime import Runtime
from langgraph.types import Overwrite

from pdr_graph.ballot import add_votes, is_decided, share_ahead
from pdr_graph.budget import b_total
from pdr_graph.config import DRAFT_FINISHES, FREE_FINISHES, PDRConfig, drafts_needed, width_of
from pdr_graph.distill.workspace import pack
from pdr_graph.errors import QuorumError, QuorumLostError
from pdr_graph.events import NoteEvent, WorkspaceEvent
from pdr_graph.nodes.toolbox import Toolbox, charged, is_continued, tell, voting
from pdr_graph.state import PDRState, config_of, more_drafts, rounds_left, succeeded
from pdr_graph.step import Step
from pdr_graph.types import Workspace


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
        with voting(step, runtime.stream_writer, state["notes"]):
            if step.config.pool_rounds:
                tally = await add_votes(step.answers, step.tally, step.drafts)
                step = replace(step, tally=tally)
            agreed = await _consensus(step, more_drafts=more_drafts(state))
            if agreed is None and (more_rounds or step.config.finish not in DRAFT_FINISHES):
                workspaces = await self._workspaces(step)
        notes = [*state["notes"], *step.notes]
        told: dict[str, object] = {}
        if self.toolbox.models.for_run(step.config).escalates:
            told["contested"] = agreed is None and await _disagree(step)
        if agreed is not None:
            note = f"the rounds ended early: {agreed[1]:.0%} of the drafts answer {agreed[0]}"
            tell(runtime.stream_writer, NoteEvent(event="note", text=note))
            return {"consensus": agreed[0], "tally": step.tally, "notes": [*notes, note], **told}
        if workspaces is None:
            return {"workspaces": [], "tally": step.tally, "notes": notes, **told}
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
            **told,
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
    tally = await step.ballot()
    # The one voice of a guarded refinement, or of a comparison, is still to come.
    voices = {"guarded": 1, "pairwise_vote": 1} | dict.fromkeys(FREE_FINISHES, 0)
    voices_left = voices.get(step.config.finish)
    if step.tally is not None and voices_left is not None:
        decided = is_decided(step.tally, more_drafts + voices_left)
        threshold = 0.0 if decided else threshold
    answer, share = share_ahead(tally)
    return (answer, share) if answer is not None and share >= threshold else None


AGREEMENT = 0.75
"""Share of drafts with one answer that is agreement, where the config states none."""


async def _disagree(step: Step) -> bool:
    """Tell whether the drafts are contested; those without short answers never are."""
    if step.config.answer == "text":
        return False
    return share_ahead(await step.ballot())[1] < (step.config.stop_on_consensus or AGREEMENT)


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
