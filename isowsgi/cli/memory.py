"""`isowsgi memory`: what grows in one app, in all workers and copies, between two moments."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import click

from isowsgi.cli import asking
from isowsgi.cli.answers import Told, plain
from isowsgi.cli.growth import Grown, Growth
from isowsgi.shared import controlmessages
from isowsgi.shared.controlmessages import MountMemory
from isowsgi.shared.sockets import Place
from isowsgi.shared.wire import MessageError

# How long a worker may take beyond the time between the two censuses, which may take 60 s each.
_LONGER_S = 130.0

_KIB = 1024

_COST = """\
counting the objects of {pattern} twice, {seconds:g} s apart
cost: some 0.4 s of the app's CPU time for 100,000 objects, twice, in looks of 8 ms; neighbours pay nothing but that share of a processor
      where isolation is "process", allocations are traced in between: the app takes 2 to 4 times as much CPU time meanwhile"""

_NO_LINES = (
    'by type and container only: tracing allocations by line would slow all interpreters of the worker, so it needs isolation = "process"'
)


@click.command(short_help="Show what grows in one app.")
@asking.one_mount
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=30.0, show_default=True, help="How long to wait in between.")
@click.option("--top", type=click.IntRange(1, 1000), default=20, show_default=True, help="Rows of each table.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
def memory(pattern: str, workers: list[Place], seconds: float, top: int, as_json: bool) -> None:
    """Count the objects of one mount's app at two moments, and show what has grown: types, containers of its modules, and lines.

    Lines that allocated what is still there are known of an app with a process of its own only. What runs in the app for this ends
    with this command, by Ctrl-C too.
    """
    click.echo(_COST.format(pattern=plain(pattern), seconds=seconds), err=True)
    answers = asking.ask_until_interrupted(workers, controlmessages.Memory(mount=pattern, seconds=seconds), seconds + _LONGER_S)
    asking.fail_on_bad_input(answers)
    growth, instances, notes = _merge(answers)
    if as_json:
        click.echo(json.dumps(_facts(growth, instances, notes, pattern, top), indent=2))
    else:
        for note in notes:
            click.echo(f"isowsgi: {note}", err=True)
    if not instances:
        asking.fail("nothing was counted", 1)
    if not as_json:
        _show(growth, instances, top)
    sys.exit(asking.exit_code(answers))


def _merge(answers: Sequence[Told[MountMemory]]) -> tuple[Growth, list[str], list[str]]:
    """Put together what all instances have told; return it, whose it is, and what whoever reads it should know."""
    growth, instances = Growth(), []
    notes = [plain(line) for line in asking.silent(answers)]
    for tag, each in asking.sampled(answers, notes):
        try:
            seconds, traced = growth.add(each)
        except MessageError as exc:
            notes.append(f"{tag}: what it told is malformed: {plain(str(exc))}")
            continue
        instances.append(f"{tag} within {seconds:.1f} s")
        if traced != "whole":
            notes.append(f"{tag}: {plain(traced) or _NO_LINES}")
    if growth.is_cut:
        notes.append("an instance has more types or containers than are told apart; the smallest are left out")
    return growth, instances, notes


def _facts(growth: Growth, instances: list[str], notes: list[str], pattern: str, top: int) -> dict[str, object]:
    return {
        "mount": pattern,
        "instances": instances,
        "notes": notes,
        "objects": growth.objects,
        "cpu_s": round(growth.cpu_s, 3),
        "lines": [each._asdict() for each in growth.lines(top)],
        "containers": [each._asdict() for each in growth.holders(top)],
        "types": [each._asdict() for each in growth.types(top)],
    }


def _show(growth: Growth, instances: list[str], top: int) -> None:
    click.echo("\n".join(instances))
    click.echo(f"{growth.objects:,} objects; counting them twice took {growth.cpu_s:.2f} s of CPU time")
    _table("by line: allocated meanwhile, and still there", "blocks", growth.lines(top))
    _table("by container: what modules, their classes and their objects hold; sizes are estimates", "entries", growth.holders(top))
    _table("by type", "objects", growth.types(top))


def _table(title: str, counted: str, rows: list[Grown]) -> None:
    if not rows:
        return
    has_place = any(each.where for each in rows)
    cells = ((f"{each.bytes / _KIB:,.0f}", f"{each.more:,}", f"{each.now:,}", plain(each.what), plain(each.where)) for each in rows)
    heads = ("+ KiB", f"+ {counted}", f"{counted} now"), ("what", "grows at")[: 1 + has_place]
    asking.print_table(title, *heads, (row[: 4 + has_place] for row in cells))
