"""One run from its store to its result, and what to tell when it ends before that."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pdr_graph.cli.display import shown
from pdr_graph.cli.ending import RunEndedError
from pdr_graph.cli.output import Output
from pdr_graph.cli.progress import STARTING, Progress
from pdr_graph.cli.signals import Stopper
from pdr_graph.cli.stores import MEMORY, Saver, alone, open_saver
from pdr_graph.connect import open_client
from pdr_graph.errors import ConfigError, DrainedError, ThreadExistsError
from pdr_graph.llm.client import ModelClient
from pdr_graph.prompts import Prompts
from pdr_graph.result import Result
from pdr_graph.run import Parts
from pdr_graph.settings import Settings
from pdr_graph.trace import Trace

Check = Callable[[Saver], Awaitable[Progress]]
"""Looks at the thread before a model is started; returns the progress that the run starts from."""

Start = Callable[[ModelClient, Saver, Parts], Awaitable[Result]]
"""Starts the run, or goes on with it."""


@dataclass(slots=True)
class Session:
    """What a run needs from its surroundings."""

    settings: Settings
    output: Output
    thread_id: str
    resume_command: str
    prompts: Prompts | None
    trace: Trace | None
    progress: Progress | None = None
    """None until the run begins."""

    async def carry_out(self, check: Check, start: Start) -> Result:
        """Run to the end.

        Raises:
            RunEndedError: the run was stopped, or failed once it had begun.
        """
        stopper = Stopper(self.output.tell)
        with stopper.listening():
            try:
                return await self._run(check, start, stopper)
            except DrainedError as error:
                raise self._ended(stopper.exit_code, None) from error
            except asyncio.CancelledError:
                if stopper.received is None:
                    raise
                raise self._ended(stopper.exit_code, None) from None
            except (ConfigError, ThreadExistsError):
                raise
            # Whatever ended the run, the top of the command line says it; here we add the way on.
            except Exception as error:
                if not self._asked_anything:
                    raise
                raise self._ended(None, error) from error

    async def _run(self, check: Check, start: Start, stopper: Stopper) -> Result:
        say = self.output.say
        async with open_saver(self.settings, say) as saver:
            before = await check(saver)
            async with (
                alone(saver, self.thread_id, say),
                open_client(self.settings, announce=say) as client,
                shown(self.output, before) as on_event,
            ):
                parts = Parts(
                    prompts=self.prompts,
                    trace=self.trace,
                    on_event=on_event,
                    control=stopper.control,
                )
                self.progress = before
                with stopper.draining():
                    return await start(client, saver, parts)

    def _ended(self, exit_code: int | None, cause: Exception | None) -> RunEndedError:
        if self.progress is None:
            way_on = "stopped before the run had begun"
        elif self.settings.redis_url == MEMORY:
            way_on = "the run was kept in memory and cannot be resumed; --checkpoint URL keeps one"
        else:
            way_on = f"resume with: {self.resume_command}"
        return RunEndedError(way_on, exit_code, cause)

    @property
    def _asked_anything(self) -> bool:
        """Whether the run came so far that going on with it makes sense."""
        return self.progress is not None and self.progress.doing != STARTING
