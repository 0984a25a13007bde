"""Runs code that a model wrote, and tests after it, in a process of its own.

Limits on time, memory and files protect the machine from mistakes. They are no sandbox: use a
container for the code of a model that you do not trust.
"""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

REPORT = 4000
"""Characters of the output that are kept, from its end."""

MEMORY = 1 << 30
"""Bytes of address space."""
FILE = 1 << 20
"""Bytes of each file that it may write, and of its output."""

_RUN = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
resource.setrlimit(resource.RLIMIT_FSIZE, ({FILE}, {FILE}))
with open("program.py", encoding="utf-8") as program:
    exec(compile(program.read(), "program.py", "exec"), {{"__name__": "__main__"}})
"""


async def run_tests(code: str, tests: str, *, within_s: float) -> str | None:
    """Return why the tests fail, as the process printed it; None if they pass.

    Args:
        code: A Python program.
        tests: Python that raises if the program is wrong.
        within_s: Seconds after which the process and all that it started are killed.
    """
    with TemporaryDirectory(prefix="pdr-graph-tests-") as name:
        folder = Path(name)
        # From a file, so that the report quotes the lines that fail.
        program = f"{code}\n\n{tests}\n".encode(errors="replace")
        await asyncio.to_thread((folder / "program.py").write_bytes, program)
        with await asyncio.to_thread((folder / "printed").open, "w+b") as printed:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-B", "-c", _RUN),
                cwd=folder,
                env={"PATH": os.defpath, "HOME": name},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                start_new_session=True,
            )
            try:
                async with asyncio.timeout(within_s):
                    returncode = await process.wait()
            except TimeoutError:
                return f"the tests did not end within {within_s:g} s"
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
            if printed.seek(0, os.SEEK_END) >= FILE:
                return f"the tests printed more than {FILE} bytes"
            printed.seek(0)
            report = printed.read().decode(errors="replace")[-REPORT:].strip()
    return (report or f"exit code {returncode}") if returncode else None
