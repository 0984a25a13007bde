"""Asks pip-audit for known vulnerabilities in each lock: exit status 1 if there are any.

Where no database can be reached, a sentence says that nothing was audited. What the database does
not know is named. Arguments are handed on to pip-audit.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
NO_DATABASE = ("VulnServiceConnectionError", "Could not connect to", "ConnectionError")


def audit(lock: Path, more: list[str]) -> list[dict[str, object]] | None:
    """Return pip-audit's report on a lock, by package; None if it reached no database."""
    words = [str(Path(sys.executable).with_name("pip-audit")), "--progress-spinner=off"]
    done = subprocess.run(
        [*words, "--disable-pip", "--format=json", "--requirement", str(lock), *more],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        reported: list[dict[str, object]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        if any(word in done.stderr for word in NO_DATABASE):
            return None
        sys.exit(f"error: pip-audit failed on {lock.name}: {done.stderr.strip()[-2000:]}")
    return reported


def say(line: str) -> None:
    """Write a line to standard output."""
    sys.stdout.write(line + "\n")


def main(more: list[str]) -> int:
    """Audit all locks, and print what was found."""
    known, unknown, vulnerable = set(), set(), set()
    for lock in sorted((ROOT / "locks").glob("*.txt")):
        reported = audit(lock, more)
        for each in reported or []:
            name = f"{each['name']} {each.get('version', '')}".strip()
            (unknown if "skip_reason" in each else known).add(name)
            for found in each.get("vulns", []):
                fixed = ", ".join(found["fix_versions"]) or "no version yet"
                vulnerable.add(f"{name} has {found['id']}, fixed by {fixed}")
    if not known:
        say("skipped: no database of vulnerabilities can be reached; nothing was audited")
        return 0
    for line in sorted(vulnerable):
        say(line)
    if unknown:
        say(f"not audited, as the database does not know them: {', '.join(sorted(unknown))}")
    say(f"{len(known)} packages audited, {len(vulnerable)} vulnerabilities found")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
