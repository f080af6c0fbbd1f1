"""The plot of a run: an SVG from a result file. Run with the Python of a venv that has matplotlib.

python -m soak.plot RESULT FILE
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")  # before pyplot looks for a display

from matplotlib import pyplot
from matplotlib.axes import Axes

WORKER, CHILD, MASTER, BAD, TEXT = "#1f6feb", "#8b949e", "#bf8700", "#cf222e", "#24292f"

# Drawn twice from one result, the plot is the same bytes: no date, no random identifiers. Text stays text.
STYLE = {"svg.hashsalt": "isowsgi", "svg.fonttype": "none", "font.size": 9, "text.color": TEXT, "axes.titlesize": 10}


def draw(result: dict[str, Any], file: Path) -> None:
    with pyplot.rc_context(STYLE):
        canvas, grid = pyplot.subplots(5, 1, figsize=(9.6, 11), layout="constrained", sharex=True)
        for axes, panel in zip(grid, (_memory, _total, _descriptors, _threads, _requests), strict=True):
            panel(axes, result)
            _mark_events(axes, result["events"])
            axes.set_ylim(bottom=0)
            axes.spines[["top", "right"]].set_visible(False)
        grid[0].set_title("resident memory, MiB: each worker (blue), processes of apps (grey), gunicorn's master (yellow)", loc="left")
        grid[0].legend(loc="upper left", ncols=4, frameon=False, bbox_to_anchor=(0, 1.36))
        grid[-1].set_xlim(0, result["run"]["minutes"])
        grid[-1].set_xlabel("minutes")
        canvas.savefig(file, metadata={"Date": None})
        pyplot.close(canvas)


def _memory(axes: Axes, result: dict[str, Any]) -> None:
    _lines(axes, result, "rss_mib", with_master=True)


def _total(axes: Axes, result: dict[str, Any]) -> None:
    axes.set_title("resident memory of all processes, MiB; during a replacement old and new workers are there", loc="left")
    samples = result["samples"]
    sizes = [sample["rss_mib"] for sample in samples]
    total = [size["master"] + sum(size["workers"]) + sum(size["children"]) for size in sizes]
    axes.plot(_minutes(samples), total, color=TEXT, linewidth=0.8)


def _descriptors(axes: Axes, result: dict[str, Any]) -> None:
    axes.set_title("descriptors of each", loc="left")
    _lines(axes, result, "descriptors", with_master=True)


def _threads(axes: Axes, result: dict[str, Any]) -> None:
    axes.set_title("threads of each, and orphaned processes (red)", loc="left")
    _lines(axes, result, "threads", with_master=False)
    axes.plot(_minutes(result["samples"]), [sample["orphans"] for sample in result["samples"]], color=BAD, linewidth=1.2)


def _requests(axes: Axes, result: dict[str, Any]) -> None:
    axes.set_title("requests answered in each minute (light), failed by a kill (grey) and unexplained (red)", loc="left")
    rows = result["minutes"]
    middle = [row["minute"] - 0.5 for row in rows]
    axes.bar(middle, [row["answered"] for row in rows], width=0.9, color="#b6d4fe")
    few = axes.twinx()
    few.bar(middle, [row["failed"] - row["unexplained"] for row in rows], width=0.3, color=CHILD)
    few.bar(middle, [row["unexplained"] for row in rows], width=0.15, color=BAD)
    few.set_ylim(0, max([4 * row["failed"] for row in rows] + [10]))
    few.set_ylabel("failed")
    few.spines[["top"]].set_visible(False)


def _lines(axes: Axes, result: dict[str, Any], name: str, *, with_master: bool) -> None:
    """Draw a line for each worker's life, and the range of all children."""
    samples = result["samples"]
    minutes = _minutes(samples)
    children = [sample[name]["children"] or [0] for sample in samples]
    axes.fill_between(
        minutes, [min(values) for values in children], [max(values) for values in children], color=CHILD, alpha=0.35, linewidth=0
    )
    lives: dict[str, list[tuple[float, float]]] = {}
    for minute, sample in zip(minutes, samples, strict=True):
        for worker, value in zip(sample["names"], sample[name]["workers"], strict=True):
            lives.setdefault(worker, []).append((minute, value))
    for life in lives.values():
        axes.plot(*zip(*life, strict=True), color=WORKER, linewidth=0.8)
    if with_master:
        axes.plot(minutes, [sample[name]["master"] for sample in samples], color=MASTER, linewidth=1.0)


def _minutes(samples: Sequence[dict[str, Any]]) -> list[float]:
    return [sample["at"] / 60 for sample in samples]


def _mark_events(axes: Axes, events: dict[str, Any]) -> None:
    kills = {what: [kill["at"] for kill in events["kills"] if kill["what"] == what] for what in ("child", "worker")}
    for times, color, style, label in (
        (events["hups"], "#1a7f37", "-", "HUP"),
        (events["main"], "#1a7f37", ":", "reload of main"),
        (kills["worker"], BAD, ":", "worker killed"),
    ):
        for number, at in enumerate(times):
            axes.axvline(at / 60, color=color, linestyle=style, linewidth=0.7, alpha=0.6, label=label if number == 0 else None)


if __name__ == "__main__":
    source, target = sys.argv[1:]
    draw(json.loads(Path(source).read_text()), Path(target))
