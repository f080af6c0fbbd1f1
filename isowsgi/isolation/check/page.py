"""A report of `isowsgi check` as people read it."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from isowsgi.isolation import sharing, trial
from isowsgi.isolation.check import declares
from isowsgi.isolation.check.findings import MountReport, Report, kind_of
from isowsgi.isolation.check.lazily import Comparison
from isowsgi.isolation.decision import NAMES, missing_in, why_worse
from isowsgi.isolation.trial import Outcome
from isowsgi.shared import interpreters
from isowsgi.shared.interpreters import MAIN, PROCESS

# Of a traceback or of what a crashed process printed; the whole is in the JSON.
_TRACEBACK_LINES = 12

_COLUMNS = (interpreters.OWN_GIL, interpreters.SHARED_GIL, PROCESS)


def show(report: Report, console: Console) -> None:
    """Print a report."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("mount", "isolation", *(NAMES[isolation] for isolation in _COLUMNS)):
        table.add_column(title, overflow="fold")
    for mount in report.mounts:
        chosen = Text(NAMES[mount.isolation], "bold green") if mount.isolation else Text("none", "bold red")
        table.add_row(Text(mount.pattern), chosen, *(_cell(mount.outcomes.get(isolation)) for isolation in _COLUMNS))
    console.print(table)
    for mount in report.mounts:
        console.print()
        console.print(Text.assemble((mount.pattern, "bold"), f": {mount.reason}"), soft_wrap=True)
        for detail in _details(mount):
            for line in detail.split("\n"):
                console.print(Text("  ") + line, soft_wrap=True)
    if report.mounts:
        console.print()
        console.print(
            Text(f"Each app was loaded in throw-away processes, with {trial.VARIABLE} set in its environment.", "dim"), soft_wrap=True
        )
    for title, texts, style in (("clash", report.clashes, "bold red"), ("note", report.notes, "bold")):
        for text in texts:
            console.print()
            console.print(Text.assemble((f"{title}: ", style), text), soft_wrap=True)


def _cell(outcome: Outcome | None) -> Text:
    if outcome is None:
        return Text("not tried", "dim")
    if outcome.loaded and outcome.isolation != PROCESS and (sharing.harmful(outcome.shared) or missing_in(outcome)):
        return Text("misses a module" if missing_in(outcome) else "shares state", "yellow")
    if outcome.loaded:
        return Text(f"{outcome.boot_s:.2f} s, {outcome.memory_mib:.0f} MiB")
    return Text(kind_of(outcome), "red" if outcome.has_died or outcome.timed_out else "yellow")


def _details(mount: MountReport) -> Iterator[Text]:
    if mount.isolation is None:
        if mount.error not in mount.reason:
            yield Text(mount.error, "red")
        if mount.traceback:
            yield Text("\n".join(_most_of(mount.traceback)), "dim")
    elif mount.isolation == MAIN:
        yield Text("tried in its own process; in the main interpreter it shares modules with gunicorn")
    for isolation, outcome in mount.outcomes.items():
        if mount.isolation is None or isolation in (mount.isolation, PROCESS):
            continue
        if not outcome.loaded:
            yield Text(f"{NAMES[isolation]}: {outcome.failure.line}")
        elif worse := why_worse(outcome):
            yield Text(f"{NAMES[isolation]}: {worse}")
    for warning in mount.warnings:
        yield Text(f"warning: {warning}", "yellow")
    if mount.lazy is not None:
        yield _lazy(mount.lazy)
    if mount.fallbacks:
        yield Text(f"runs without {', '.join(mount.fallbacks)}, which cannot be loaded there", "yellow")
    if mount.extensions:
        yield _extensions(mount)
    for alternative in mount.advice:
        yield Text(f"{alternative.package}: {alternative.advice} ({alternative.source})", "cyan")


def _lazy(found: Comparison) -> Text:
    """Say in a line or two what lazy imports do to an app."""
    if found.problem:
        return Text(f"lazy imports: {found.problem}", "yellow")
    before, after = found.normal, found.lazy
    answers = ", ".join(f"{path} {status[:3]}" for _, path, status in after.answers)
    tail = f"the same answers: {answers}" if answers else "no path was asked for; give some with --url"
    seconds = f"it loads in {after.load_s:.2f} s instead of {before.load_s:.2f} s"
    memory = f"takes {after.memory_mib:.1f} MiB instead of {before.memory_mib:.1f} MiB"
    return Text(f"lazy imports: {seconds}, and {memory}; {tail}", "green" if found.saved_mib > 0 else "")


def _most_of(traceback: str) -> list[str]:
    """Return the telling lines: the end of a traceback, and of what faulthandler wrote its beginning, where the crash is."""
    lines = traceback.strip().splitlines()
    crash = next((number for number, line in enumerate(lines) if line.startswith("Fatal Python error")), None)
    return lines[-_TRACEBACK_LINES:] if crash is None else lines[crash : crash + _TRACEBACK_LINES]


def _extensions(mount: MountReport) -> Text:
    """Count the extension modules by what they declare, and name those that keep the app from an own GIL."""
    counts: dict[str, list[str]] = {}
    for extension in mount.extensions:
        counts.setdefault(extension.interpreters, []).append(extension.name)
    parts = []
    for word, names in counts.items():
        shown = "" if word == declares.OWN_GIL else f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        parts.append(f"{len(names)} {word}{shown}")
    return Text(f"extension modules by what they declare: {'; '.join(parts)}")
