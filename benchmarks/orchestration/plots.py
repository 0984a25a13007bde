"""The figures as pictures, for whoever has matplotlib."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Data = dict[str, Any]


def draw(results: dict[str, Data], folder: Path) -> list[Path]:
    """Write a PNG for each case that has a picture; none without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return []
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for letter, (name, size, paint) in PICTURES.items():
        if letter not in results:
            continue
        figure, axes = plt.subplots(1, 2, figsize=size, layout="constrained")
        paint(list(axes), results[letter])
        for each in axes:
            each.spines[["top", "right"]].set_visible(False)
            each.grid(alpha=0.3)
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=110)
        plt.close(figure)
        written.append(path)
    return written


def _at_once(axes: list[Any], data: Data) -> None:
    styles = {"pdr": ("C0", "o"), "bar": ("0.3", "s"), "its": ("C1", "^"), "opt": ("C2", "v")}
    lines = ["-", "--", ":"]
    seen: dict[str, int] = {}
    for subject, cells in data["subjects"].items():
        color, marker = styles[subject[:3]]
        style = lines[seen.get(color, 0) % len(lines)]
        seen[color] = seen.get(color, 0) + 1
        good = {int(level): cell for level, cell in cells.items() if cell.get("done")}
        for axis, name in zip(axes, ("cpu_ms_per_call", "calls_per_s"), strict=True):
            values = [
                cell["served"]["choices"] / cell["wall_s"] if name == "calls_per_s" else cell[name]
                for cell in good.values()
            ]
            axis.plot(list(good), values, style, color=color, marker=marker, label=subject)
    for axis, label in zip(axes, ("client CPU, ms a call", "completions a second"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="runs at once", ylabel=label)
        levels = [int(level) for level in next(iter(data["subjects"].values()))]
        axis.set_xticks(levels, [str(level) for level in levels])
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _growth(axes: list[Any], data: Data) -> None:
    for axis, (name, each) in zip(axes, data.items(), strict=True):
        axis.plot(each["sizes"], each["cpu_ms"], "o", color="C0")
        ends = [0, each["sizes"][-1]]
        line = [each["ms_fixed"] + each["ms_each"] * end for end in ends]
        label = f"{each['ms_each']:.1f} ms each, R² = {each['r_squared']:.4f}"
        axis.plot(ends, line, color="0.4", label=label)
        axis.set(xlabel=name, ylabel="client CPU of a run, ms", xlim=(0, None), ylim=(0, None))
        axis.legend(frameon=False)


def _tails(axes: list[Any], data: Data) -> None:
    quorums = data["quorums"]
    for color, (quorum, each) in zip(("0.4", "C0"), quorums.items(), strict=True):
        latencies = sorted(each["latencies_s"])
        share = [(n + 1) / len(latencies) for n in range(len(latencies))]
        axes[0].step(latencies, share, color=color, where="post", label=f"quorum {quorum}")
    axes[0].set(xlabel="latency of a run, s", ylabel="share of runs", xlim=(0, None), ylim=(0, 1))
    axes[0].legend(frameon=False)
    used = [
        (each["completion_tokens"] - each["wasted_tokens"]) / each["runs"]
        for each in quorums.values()
    ]
    cut = [each["wasted_tokens"] / each["runs"] for each in quorums.values()]
    names = [f"quorum {quorum}" for quorum in quorums]
    axes[1].bar(names, used, color="C0", width=0.5, label="finished")
    axes[1].bar(names, cut, bottom=used, color="C1", width=0.5, label="cut off")
    axes[1].set(ylabel="completion tokens a run")
    axes[1].legend(frameon=False)


Paint = Callable[[list[Any], Data], None]

PICTURES: dict[str, tuple[str, tuple[float, float], Paint]] = {
    "b": ("runs-at-once", (10, 3.4), _at_once),
    "e": ("growth", (8, 3.2), _growth),
    "f": ("quorum", (8, 3.2), _tails),
}
"""File name, size in inches, and painter of each case that has a picture."""
