"""`make bench-checkpoints`, or `python -m benchmarks.checkpoints [--quick] [--only ours,aws]`."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import benchmarks.checkpoints as package
from benchmarks.checkpoints import delta, registry, single
from benchmarks.checkpoints.report import table, targets, targets_table
from benchmarks.checkpoints.runs import QUICK, Bench, Size
from benchmarks.checkpoints.savers import SAVERS, installed, valkey

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each requested saver and show the tables."""
    asked = _parser().parse_args(arguments)
    asked.concurrency = asked.concurrency or ([1, 16] if asked.quick else [1, 16, 64, 256])
    logging.disable(logging.WARNING)
    if asked.child:
        return _measure_here(asked)
    missing = {
        name: f"{SAVERS[name]} is not installed" for name in asked.only if not installed(name)
    }
    results: dict[str, Any] = {name: {"missing": why} for name, why in missing.items()}
    present = [name for name in asked.only if name not in missing]
    histories: dict[str, Any] = {}
    interrupted, expired = False, None
    try:
        for name in present:
            results[name] = _child(asked, [name])[name]
        whole = [name for name in present if "missing" not in results[name]]
        for name, figures in (_child(asked, whole, "single") if whole else {}).items():
            results[name] |= figures
        if "ours" in whole:
            histories = _child(asked, ["ours"], "delta")
            _say("expired threads and a long one …")
            with (
                tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
                valkey(folder) as url,
            ):
                expired = asyncio.run(registry.measure(url, quick=asked.quick))
    except KeyboardInterrupt:
        interrupted = True
        _say("interrupted; the complete figures are shown")
    results = {name: found for name, found in results.items() if {"missing", "put"} & set(found)}
    _show(asked, results, histories, expired)
    return INTERRUPTED if interrupted else 0


def _child(asked: argparse.Namespace, names: Sequence[str], kind: str = "runs") -> dict[str, Any]:
    """Measure savers in another process, each on a fresh server; return figures by name."""
    what = {
        "runs": names[0],
        "single": f"single calls of {', '.join(names)}, in turn",
        "delta": "delta channels",
    }
    _say(f"{what[kind]} …")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        urls = {}
        for name in names:
            own = Path(folder, name)
            (own / "files").mkdir(parents=True)
            urls[name] = stack.enter_context(valkey(str(own)))
        command = [sys.executable, "-m", "benchmarks.checkpoints"]
        command += ["--concurrency", ",".join(map(str, asked.concurrency))]
        command += ["--seed", str(asked.seed), *(["--quick"] if asked.quick else [])]
        command += ["--child", json.dumps({"folder": folder, "urls": urls, "kind": kind})]
        with _running(command) as process:
            written, _ = process.communicate()
    if process.returncode:
        why = f"failed with exit code {process.returncode}, see above"
        return {name: {"missing": why} for name in names}
    found: dict[str, Any] = json.loads(written)
    return found


@contextmanager
def _running(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _measure_here(asked: argparse.Namespace) -> int:
    folder, urls = asked.child["folder"], asked.child["urls"]
    kind = asked.child["kind"]
    if kind == "delta":
        ours = f"{folder}/ours/files"
        times = 3 if asked.quick else delta.TIMES
        figures = asyncio.run(delta.measure(urls["ours"], ours, times=times))
    elif kind == "single":
        # SQLite keeps files, in the folder of its own.
        figures = asyncio.run(single.measure(urls, f"{folder}/sqlite/files", seed=asked.seed))
    else:
        ((name, url),) = urls.items()
        size = QUICK if asked.quick else Size()
        bench = Bench(name, url, f"{folder}/{name}/files", size, seed=asked.seed, say=_say)
        figures = {name: asyncio.run(bench.measure(asked.concurrency))}
    sys.stdout.write(json.dumps(figures))
    return 0


def _show(
    asked: argparse.Namespace,
    results: dict[str, Any],
    histories: dict[str, Any],
    expired: dict[str, float] | None,
) -> None:
    measured = [name for name in results if "missing" not in results[name]]
    compared = targets(results)
    about = {
        "versions": {SAVERS[name]: installed(name) for name in measured},
        "python": platform.python_version(),
        "platform": f"{platform.system()} on {platform.machine()}",
        "quick": asked.quick,
    }
    if asked.json is not None:
        rows = [
            {"what": each.what, "limit": each.limit, "ratio": each.ratio, "met": each.met}
            for each in compared
        ]
        written = {"about": about, "results": results, "targets": rows}
        written |= {"delta": histories, "registry": expired}
        text = json.dumps(written, indent=1)
        if str(asked.json) == "-":
            sys.stdout.write(f"{text}\n")
            return
        asked.json.write_text(text, "utf-8")
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    parts = [table(results, asked.concurrency)]
    parts += [targets_table(compared)] if compared else []
    parts += [delta.table(histories)] if histories else []
    parts += [registry.table(expired)] if expired else []
    parts.append(
        f"Python {about['python']}, {about['platform']}; {versions or 'nothing measured'}."
    )
    sys.stdout.write("\n\n".join(parts) + "\n")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in SAVERS:
            raise argparse.ArgumentTypeError(f"no saver {name!r}; savers: {', '.join(SAVERS)}")
    return list(dict.fromkeys(names))


def _levels(text: str) -> list[int]:
    try:
        levels = [int(level) for level in text.split(",")]
    except ValueError:
        levels = []
    if not levels or min(levels) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers from 1, as 1,16,64")
    return levels


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make bench-checkpoints",
        description=package.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add: Callable[..., Any] = parser.add_argument
    names = ",".join(SAVERS)
    add("--only", type=_names, default=list(SAVERS), metavar="NAMES", help=f"savers ({names})")
    add(
        "--concurrency",
        type=_levels,
        metavar="NUMBERS",
        help="runs at once (1,16,64,256; with --quick 1,16)",
    )
    add("--seed", type=int, default=0, help="seed of the order of passages (%(default)s)")
    add("--quick", action="store_true", help="measure little, to check that it works")
    add("--json", type=Path, metavar="FILE", help="also write the figures here; - prints them only")
    add("--child", type=json.loads, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
