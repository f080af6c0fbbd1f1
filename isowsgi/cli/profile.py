"""`isowsgi profile`: sample what one app does, in all workers and copies, and show where its time goes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click

import isowsgi
from isowsgi.cli import asking, calls
from isowsgi.cli.answers import Told, plain
from isowsgi.cli.calls import Call, Line
from isowsgi.shared import controlmessages
from isowsgi.shared.controlmessages import Error, MountProfile
from isowsgi.shared.sockets import Place

FORMATS = (".html", ".svg", ".json", ".txt")

# How long a worker may take beyond the time that is sampled.
_LONGER_S = 15.0

# Lines of each table.
_MOST_LINES = 10


class Taken(NamedTuple):
    """A profile of one mount, over all workers.

    Attributes:
        root: all calls together.
        samples: that were taken in all instances.
        notes: what whoever reads it should know.
        tags: of the instances.
    """

    root: Call
    samples: int
    notes: list[str]
    tags: list[str]


@click.command(short_help="Show where the time of one app goes.")
@asking.one_mount
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=10.0, show_default=True, help="How long to sample.")
@click.option("--rate", type=click.IntRange(1, 1000), default=100, show_default=True, help="Samples per second.")
@click.option("--cpu", is_flag=True, help="Count the time on a processor only, not the time that a request waits.")
@click.option("--by", type=click.Choice(["request"]), help="Tell requests apart, by method and path.")
@click.option(
    "--output",
    "-o",
    metavar="FILE",
    help="Write .html (flame graph), .svg (its picture), .json (speedscope) or .txt (collapsed stacks).",
)
def profile(pattern: str, workers: list[Place], seconds: float, rate: int, cpu: bool, by: str | None, output: str | None) -> None:
    """Sample the threads of one mount's app in all workers, and show the lines that take longest.

    Only threads inside a request count, and threads of the app's own while they use a processor. Nothing has to be installed
    or changed in the app. Sampling ends with this command, by Ctrl-C too.
    """
    ending = "" if output is None else os.path.splitext(output)[1].lower()
    if output is not None and ending not in FORMATS:
        raise click.BadParameter(f"expected a file that ends in {', '.join(FORMATS)}, got {output!r}", param_hint="--output")
    request = controlmessages.Profile(mount=pattern, seconds=seconds, rate=rate, cpu=cpu, by_request=by is not None)
    if output is not None:
        _check_writable(output)
    click.echo(f"sampling {plain(pattern)} for {seconds:g} s", err=True)
    answers = asking.ask_until_interrupted(workers, request, seconds + _LONGER_S)
    asking.fail_on_bad_input(answers)
    taken = _merge(answers)
    for note in taken.notes:
        click.echo(f"isowsgi: {note}", err=True)
    if not taken.tags:
        asking.fail("nothing was sampled", 1)
    folder = _folder(answers)
    facts = f"{', '.join(taken.tags)}; {seconds:g} s at {rate} samples/s, {taken.samples} taken; {_time_of(cpu)}"
    _show(taken.root, folder, facts)
    if output is not None:
        _write(output, _rendered(ending, taken.root, folder, pattern, facts))
    sys.exit(asking.exit_code(answers))


def _time_of(cpu: bool) -> str:
    return "time on a processor" if cpu else "time in requests, waiting included"


def _merge(answers: Sequence[Told[MountProfile]]) -> Taken:
    """Put together what all instances have told."""
    root, samples, tags = Call(), 0, []
    notes = [plain(line) for line in asking.silent(answers)]
    for told in answers:
        if isinstance(told.answer, Error):
            continue
        generations = sorted({each.generation for each in told.answer.instances})
        if len(generations) > 1:
            text = "was reloaded meanwhile; the profile is of the generations"
            notes.append(f"{asking.who(told)}: {plain(told.answer.mount)} {text} {', '.join(map(str, generations))}")
        for tag, each in asking.sampled([told], notes):
            try:
                tree = calls.add(root, each.profile)
            except calls.Malformed as exc:
                notes.append(f"{tag}: its profile is malformed: {plain(exc)}")
                continue
            tags.append(tag)
            samples += tree.samples
            if tree.is_cut:
                notes.append(f"{tag}: it has more different stacks than are told apart; the rest counts for what called it")
    return Taken(root, samples, notes, tags)


def _folder(answers: Sequence[Told[MountProfile]]) -> str:
    """Return the folder of the config file, below which most apps lie."""
    return next((os.path.dirname(told.worker.config) for told in answers if told.worker is not None), "")


def _tables(root: Call) -> list[tuple[str, list[Line]]]:
    """Return the lines to show, by what the table is called."""
    found = calls.lines(root)
    requests = [line for line in found if line.frame.is_request]
    tables = (
        ("requests", sorted(requests, key=lambda line: -line.total_us)),
        (
            "lines of the app, with all that they call",
            sorted((each for each in found if each.frame.is_apps), key=lambda each: -each.total_us),
        ),
        ("lines by the time in themselves", sorted((each for each in found if each.self_us), key=lambda each: -each.self_us)),
    )
    return [(title, lines[:_MOST_LINES]) for title, lines in tables if lines]


def _row(line: Line, all_us: int, folder: str) -> tuple[str, ...]:
    total, own = (f"{time_us / 1e6:.2f}" for time_us in (line.total_us, line.self_us))
    return f"{100 * line.total_us / all_us:.1f}", total, own, plain(line.frame.text(folder)).replace("\n", " ")


_HEAD = ("% total", "total s", "self s", "where")


def _show(root: Call, folder: str, facts: str) -> None:
    click.echo(facts)
    all_us = root.total_us()
    if not all_us:
        click.echo("no thread was inside a request or used a processor meanwhile")
        return
    for title, lines in _tables(root):
        asking.print_table(title, _HEAD[:-1], _HEAD[-1:], (_row(line, all_us, folder) for line in lines))


def _rendered(ending: str, root: Call, folder: str, pattern: str, facts: str) -> str:
    if ending == ".txt":
        return calls.collapsed(root, folder)
    if ending == ".json":
        return json.dumps(calls.speedscope(root, pattern, f"isowsgi {isowsgi.__version__}"))
    title, tree = f"isowsgi profile {pattern}", calls.nested(root, pattern, folder)
    if ending == ".svg":
        from isowsgi.cli import flamepicture

        return flamepicture.picture(title, facts, tree)
    from isowsgi.cli import flamegraph

    all_us = root.total_us() or 1
    tables = [flamegraph.table(head, _HEAD, [_row(line, all_us, folder) for line in lines]) for head, lines in _tables(root)]
    return flamegraph.page(title, facts, tree, "".join(tables))


def _check_writable(path: str) -> None:
    """Fail before the sampling where a file cannot be written, instead of after it."""
    is_new = not os.path.lexists(path)
    try:
        with open(path, "a", encoding="utf-8"):
            pass
        if is_new:
            os.unlink(path)
    except OSError as exc:
        asking.fail(f"{path}: cannot write it: {(exc.strerror or str(exc)).lower()}", 1)


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as exc:
        asking.fail(f"{path}: cannot write it: {(exc.strerror or str(exc)).lower()}", 1)
    click.echo(f"wrote {path}", err=True)
