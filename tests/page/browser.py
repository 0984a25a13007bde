"""A real headless browser, where the machine has one."""

import os
import shutil
import subprocess
from pathlib import Path

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

QUIET = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def dom_of(page: Path | str, profile: Path, *options: str) -> str:
    """Return what the browser made of a page, after its scripts, if any, have run.

    Args:
        page: A file, or the address of a page.
        profile: A folder for what the browser keeps.
        options: Further options of the browser.
    """
    assert CHROMIUM is not None
    address = page if isinstance(page, str) else page.as_uri()
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [
            *(CHROMIUM, *QUIET, *sandbox, f"--user-data-dir={profile}"),
            *(*options, "--dump-dom", address),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout
