"""Makes one draft; M_r of them run side by side."""

from dataclasses import dataclass, field

from langgraph.runtime import Runtime

from pdr_graph.clip import clip
from pdr_graph.config import PDRConfig
from pdr_graph.errors import CallError
from pdr_graph.llm.asker import Asker
from pdr_graph.llm.client import Reply
from pdr_graph.nodes.gate import Gates
from pdr_graph.nodes.toolbox import Toolbox, run_key
from pdr_graph.state import DraftTask, PDRState, config_of, read_shared
from pdr_graph.strategies import width_of
from pdr_graph.types import Draft, DraftError


@dataclass(frozen=True, slots=True)
class Drafter:
    """Asks for one attempt at the problem; whatever goes wrong becomes part of the draft."""

    toolbox: Toolbox
    gates: Gates = field(default_factory=Gates)

    async def __call__(self, state: DraftTask, *, runtime: Runtime[PDRConfig]) -> dict[str, object]:
        """Return the draft and what it cost."""
        shared = read_shared("problem", "config", "workspaces")
        config = config_of(shared)
        ask = self.toolbox.asker("drafter", state["round"], config)
        gate = self.gates.of_round(
            *run_key(),
            width=width_of(config, state["round"]),
            quorum=config.quorum,
        )
        template, values = self._prompt(shared, config, state)
        draft = _blank(state, ask.sampling(template, state["index"]).seed)
        call = ask.one(template, index=state["index"], **values)
        try:
            reply = await (gate.race(call) if config.quorum < 1 else call)
        except CallError as error:
            _fail(draft, "failed", str(error))
        else:
            if reply is None:
                _fail(draft, "cut", f"a quorum of {config.quorum:g} was in before it")
            else:
                await self._fill(draft, reply, ask)
        row = ask.meter.row()
        draft["seconds"] = round(row["seconds"], 3)
        if draft["error"] is None:
            gate.arrived()
        runtime.stream_writer(
            {
                "event": "draft",
                "round": draft["round"],
                "index": draft["index"],
                "answer": draft["answer"],
                "error": draft["error"],
                "detail": draft["detail"],
                "tokens": row["prompt_tokens"] + row["completion_tokens"],
                "seconds": draft["seconds"],
            }
        )
        return {"drafts": [draft], "ledger": [row]}

    def _prompt(
        self, state: PDRState, config: PDRConfig, task: DraftTask
    ) -> tuple[str, dict[str, object]]:
        values: dict[str, object] = {
            "problem": state["problem"],
            "answer_format": self.toolbox.prompts.render(f"answer_{config.answer}"),
        }
        workspaces = state.get("workspaces") or []
        if not workspaces:
            return "draft", values
        text = workspaces[task["index"] % len(workspaces)]["text"]
        return ("improve", {**values, "workspace": text}) if text else ("draft", values)

    async def _fill(self, draft: Draft, reply: Reply, ask: Asker) -> None:
        draft["tokens"] = reply.usage.completion
        draft["truncated"] = reply.truncated
        if not reply.solution.strip():
            if reply.truncated:
                _fail(draft, "truncated", "max_tokens were spent before a solution was begun")
            else:
                _fail(draft, "empty", "the model answered nothing")
            return
        answers = self.toolbox.answers(ask.config)
        draft["answer"] = answers.extract(reply.solution)
        limit = ask.config.solution_tokens
        if not reply.usage.estimated and reply.usage.completion <= limit:
            draft["solution"] = reply.solution
            return
        keep = f"Final answer: {draft['answer']}" if draft["answer"] else ""
        counter = self.toolbox.client.counter
        draft["solution"] = await clip(reply.solution, limit, counter, keep=keep)


def _blank(task: DraftTask, seed: int) -> Draft:
    return Draft(
        round=task["round"],
        index=task["index"],
        solution="",
        answer=None,
        tokens=0,
        truncated=False,
        error=None,
        detail="",
        seed=seed,
        seconds=0.0,
    )


def _fail(draft: Draft, error: DraftError, detail: str) -> None:
    draft["error"] = error
    draft["detail"] = detail
