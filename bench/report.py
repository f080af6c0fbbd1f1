"""The page in docs/: targets, peers and a table for each scenario, from a result file. Pure text; plots.py draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bench.peers import PEERS
from bench.results import CALM_CORES, Figure, Reading, Result, Verdict, errors, figure, verdicts
from bench.scenarios import APPS, FEW, LOADS, MOUNTS_BOTH, MOUNTS_FEW, MOUNTS_MANY, TITLES

HEAD = """\
<!-- Written by `make bench` from bench/report.py; do not edit here. -->

# Benchmarks

isowsgi beside other ways to serve several WSGI apps from one place. `make bench` measures all of it again and writes this page
(`make bench ARGS=--help` tells more); what is not installed is left out by name.
"""

METHOD = """\
- Every server has one worker process and {threads} request threads, and serves the same six apps (`bench/apps/`). gunicorn behind
  nginx has that for each app, isowsgi has the threads for each app, Apache has its event MPM's 25.
- The load is wrk with one thread, closed loop, on the same machine through the loopback interface; keep-alive and 8 connections
  unless said.
- Each round starts all servers afresh, and each scenario is measured on one server right after the other, while the rest idle.
  A figure is the median over the rounds, a ratio one of medians of this run.
- A measurement is calm when processes that are neither the server's nor wrk's used less than {calm_cores:g} of a core meanwhile. Medians
  are over the calm rounds if there is one; a figure without any is marked with a `?`.
- Memory is the proportional set size (PSS) of all processes of a server, half a second after each app has answered once;
  for each added app: the difference between {apps} and {few} apps, divided by {added}.
- Pinned to one core, a server's threads cannot hand the GIL from core to core, and wrk, on another core, takes nothing from it. It is the
  steadier measure of what a request costs; two free cores are what a user sees.
"""


def page(result: Result, images: Sequence[tuple[str, str]]) -> str:
    """Return the page in Markdown.

    Args:
        images: what is to be seen on each, and its path from the page.
    """
    settings, machine = result["settings"], result["machine"]
    parts = [HEAD]
    parts.append(
        f"This run: {result['when']}, CPython {machine['python']}, Linux {machine['kernel']}, {machine['cores']} cores, "
        f"wrk {machine['wrk']}; {settings['seconds']} s for each load, rounds: {settings['rounds']}.\n"
    )
    parts.append("## Targets\n\nRatios of isowsgi's figure to the other's.\n\n" + _targets(verdicts(result)))
    parts += [f"![{what}]({path})\n" for what, path in images]
    method = METHOD.format(calm_cores=CALM_CORES, few=FEW, added=settings["apps"] - FEW, **settings)
    parts.append(f"## How it is measured\n\n{method}\n{_peers(result)}")
    parts.append("## Figures")
    parts += [section for section in _sections(result) if section]
    if result["notes"]:
        parts.append("## What went wrong\n\n" + "".join(f"- {note}\n" for note in result["notes"]))
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _targets(all_verdicts: Iterable[Verdict]) -> str:
    rows = []
    for verdict in all_verdicts:
        met = {True: "yes", False: "**no**", None: "not measured"}[verdict.is_met]
        ratio = "" if verdict.ratio is None else f"{verdict.ratio:.3g}" + ("" if verdict.is_calm else "?")
        target = verdict.target
        rows.append([target.what, target.to, target.bound, ratio, _value(verdict.ours), _value(verdict.theirs), met])
    return table(["what", "compared with", "target", "ratio", "isowsgi", "other", "met"], rows, left=2)


def _peers(result: Result) -> str:
    rows = [[f"`{name}`", PEERS[name].title, PEERS[name].apart, versions] for name, versions in result["peers"].items()]
    text = table(["peer", "what it is", "what separates its apps", "versions"], rows, left=4)
    skipped = "".join(f"- `{name}`: {reason}\n" for name, reason in result["skipped"].items())
    return text + (f"\nLeft out:\n\n{skipped}" if skipped else "")


def _sections(result: Result) -> Iterable[str]:
    for load in LOADS:
        columns = {"requests/s": "rps", "p50 ms": "p50_ms", "p99 ms": "p99_ms", "server's cores": "server_cores"}
        columns |= {"its requests/s": "beside_rps"} if load.beside else {"CPU us a request": "cpu_us"}
        yield _section(result, load.title, {name: (load.name, name) for name in PEERS}, columns)
    settings = result["settings"]
    yield _section(
        result,
        f"{settings['apps']} Flask apps",
        {name: (APPS, name) for name in PEERS},
        {
            "start until all answer, s": "start_s",
            "until the first does, s": "first_s",
            "CPU s": "server_s",
            f"MiB with {FEW}": "few_mib",
            f"MiB with {settings['apps']}": "pss_mib",
            "MiB for each added": "mib_per_app",
        },
    )
    yield _section(
        result,
        TITLES[MOUNTS_BOTH],
        {f"{FEW} mounts": (MOUNTS_FEW, "isowsgi"), f"{settings['mounts']:,} mounts": (MOUNTS_MANY, "isowsgi")},
        {"requests/s": "rps", "p50 ms": "p50_ms", "p99 ms": "p99_ms", "start until all answer, s": "start_s"},
    )


def _section(result: Result, title: str, rows: Mapping[str, tuple[str, str]], columns: Mapping[str, str]) -> str:
    """Return a scenario's table: a row for each (scenario, peer) that was measured; empty if none was."""
    lines = []
    for label, (scenario, peer) in rows.items():
        figures = [figure(result, Reading(peer=peer, scenario=scenario, metric=metric)) for metric in columns.values()]
        first = next((found for found in figures if found), None)
        if first is None:
            continue
        count = ", ".join(f"{number:,} {kind}" for kind, number in errors(result, peer, scenario).items())
        span = f"{number_text(first.low)} to {number_text(first.high)}"
        lines.append([f"`{label}`", *map(_value, figures), span, f"{first.calm_rounds}/{first.rounds}", count or "0"])
    if not lines:
        return ""
    head = ["", *columns, "span of the first", "calm rounds", "errors"]
    return f"### {title}\n\n" + table(head, lines, left=1)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int) -> str:
    """Return a table in Markdown, its first `left` columns flush left."""
    rule = ["---" if column < left else "---:" for column in range(len(head))]
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, rule, *rows])


def _value(found: Figure | None) -> str:
    return "-" if found is None else number_text(found.value) + ("" if found.is_calm else "?")


def number_text(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"
