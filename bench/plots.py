"""The plots in docs/: SVG files from a result file. Run by the report with the Python of a venv that has matplotlib.

python -m bench.plots RESULT FOLDER     prints what it wrote, a line each: file name, tab, what is to be seen
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("svg")  # before pyplot looks for a display

from matplotlib import pyplot
from matplotlib.axes import Axes

from bench.peers import PEERS
from bench.report import number_text
from bench.results import Reading, Result, figure

OURS, OTHERS, TEXT = "#1f6feb", "#b4bcc6", "#24292f"

# Plots that are drawn twice from one result are the same bytes: no date (see savefig), no random identifiers. Text stays text.
STYLE = {"svg.hashsalt": "isowsgi", "svg.fonttype": "none", "font.size": 9, "text.color": TEXT, "ytick.color": TEXT, "axes.titlesize": 10}

Value = Callable[[Result, str], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One bar for each peer that has a value."""

    title: str
    value: Value


def metric(scenario: str, name: str) -> Value:
    def value(result: Result, peer: str) -> float | None:
        found = figure(result, Reading(peer=peer, scenario=scenario, metric=name))
        return found.value if found else None

    return value


def ratio(numerator: Value, denominator: Value) -> Value:
    def value(result: Result, peer: str) -> float | None:
        above, below = numerator(result, peer), denominator(result, peer)
        return above / below if above is not None and below else None

    return value


PLOTS = {
    "throughput": (
        "Requests a second",
        [
            Panel(title="hello, pinned to one core: requests/s", value=metric("hello-1cpu", "rps")),
            Panel(title="hello, a new connection each: requests/s", value=metric("close", "rps")),
            Panel(title="Flask: requests/s", value=metric("flask", "rps")),
            Panel(title="Django: requests/s", value=metric("django", "rps")),
        ],
    ),
    "neighbours": (
        "What neighbours do to each other",
        [
            Panel(title="two CPU-bound mounts: times one alone", value=ratio(metric("cpu-two", "rps"), metric("cpu-one", "rps"))),
            Panel(title="two CPU-bound mounts: requests/s", value=metric("cpu-two", "rps")),
            Panel(title="hello's p99 beside a CPU hog: ms (less is better)", value=metric("hog", "p99_ms")),
            Panel(
                title="hello beside 32 sleeping requests: share of quiet",
                value=ratio(metric("sleepers", "rps"), metric("quiet", "rps")),
            ),
        ],
    ),
    "footprint": (
        "Memory and start",
        [
            Panel(title="each added Flask app: MiB (less is better)", value=metric("apps", "mib_per_app")),
            Panel(title="many Flask apps: seconds until all answer (less is better)", value=metric("apps", "start_s")),
        ],
    ),
}


def draw(result: Result, panels: list[Panel], file: Path) -> bool:
    """Write a plot of the panels that have a value; returns False if none has."""
    drawn = [(panel, values) for panel in panels if (values := _values(result, panel))]
    if not drawn:
        return False
    lines = (len(drawn) + 1) // 2
    height = 0.55 + 0.27 * max(len(values) for _, values in drawn)
    with pyplot.rc_context(STYLE):
        canvas, grid = pyplot.subplots(lines, 2, figsize=(9.6, lines * height), layout="constrained", squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, (panel, values) in zip(grid.flat, drawn, strict=False):
            _draw_panel(axes, panel, values)
        canvas.savefig(file, metadata={"Date": None})
        pyplot.close(canvas)
    return True


def _values(result: Result, panel: Panel) -> dict[str, float]:
    found = {peer: panel.value(result, peer) for peer in PEERS}
    return {peer: value for peer, value in found.items() if value is not None}


def _draw_panel(axes: Axes, panel: Panel, values: dict[str, float]) -> None:
    axes.set_axis_on()
    names = list(values)
    bars = axes.barh(names, list(values.values()), color=[OURS if name == "isowsgi" else OTHERS for name in names], height=0.72)
    axes.bar_label(bars, [number_text(value) for value in values.values()], padding=3)
    axes.invert_yaxis()
    axes.set_title(panel.title, loc="left")
    axes.margins(x=0.18)  # room for the numbers
    axes.xaxis.set_visible(False)
    axes.tick_params(left=False)
    axes.spines[:].set_visible(False)


def main(arguments: list[str]) -> int:
    source, folder = arguments
    result = json.loads(Path(source).read_text())
    for name, (what, panels) in PLOTS.items():
        if draw(result, panels, Path(folder) / f"{name}.svg"):
            print(f"{name}.svg\t{what}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
