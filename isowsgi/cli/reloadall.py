"""`isowsgi reload --all`: every app, one after the other, so that no more than one is in memory twice in a worker."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import click

from isowsgi.cli import asking, client
from isowsgi.cli.answers import Told, for_people
from isowsgi.shared.controlmessages import Error, MountStatus, Reload, Status, WorkerStatus
from isowsgi.shared.interpreters import MAIN
from isowsgi.shared.sockets import Place

# States of a mount whose app is not in memory: what loads it next loads its new code.
_NOT_LOADED = ("asleep", "stopped", "quarantined")


def reload_all(workers: list[Place], one_at_a_time: bool, timeout_s: float) -> int:
    """Reload what serves, print what came of it, and return the exit code: 1 if anything could not be loaded.

    Args:
        one_at_a_time: whether one worker follows the other; else all of them load a mount at the same time.
        timeout_s: for each mount.
    """
    answers = for_people(client.ask(workers, Status(), asking.TIMEOUT_S))
    for told in answers:
        if isinstance(told.answer, Error):
            asking.print_error(told)
    steps = list(_steps(answers, one_at_a_time))
    failed = sum(isinstance(told.answer, Error) for told in answers)
    for number, (pattern, places) in enumerate(_shown(steps), 1):
        for outcome in for_people(client.ask(places, Reload(mount=pattern), timeout_s)):
            failed += isinstance(outcome.answer, Error)
            asking.print_outcome(outcome, f"{number}/{len(steps)} ")
    if failed:
        click.echo(f"isowsgi: {failed} of these failed; what served before keeps serving there", err=True)
    return 1 if failed else 0


def _steps(answers: Sequence[Told[WorkerStatus]], one_at_a_time: bool) -> Iterator[tuple[str, list[Place]]]:
    """Yield the pattern that is asked for next, and the workers that load it together."""
    by_worker = {told.place: list(_loaded(told.answer.mounts)) for told in answers if not isinstance(told.answer, Error)}
    if one_at_a_time:
        yield from ((pattern, [place]) for place, patterns in by_worker.items() for pattern in patterns)
        return
    for pattern in dict.fromkeys(pattern for patterns in by_worker.values() for pattern in patterns):
        yield pattern, [place for place, patterns in by_worker.items() if pattern in patterns]


def _loaded(mounts: Sequence[MountStatus]) -> Iterator[str]:
    """Yield a pattern of each app that a worker has in memory, or fails to load; of a group its first one."""
    groups = set()
    for mount in mounts:
        is_here = mount.state not in _NOT_LOADED and (mount.instances or mount.state != "serving")  # a redirect "serves" without
        if not is_here or mount.isolation == MAIN or mount.group in groups:
            continue
        if mount.group is not None:
            groups.add(mount.group)
        yield mount.mount


def _shown(steps: list[tuple[str, list[Place]]]) -> Iterator[tuple[str, list[Place]]]:
    """Yield the steps, with a bar where somebody looks."""
    if not sys.stderr.isatty():
        yield from steps
        return
    with click.progressbar(steps, label="reloading", item_show_func=lambda step: step and step[0], file=sys.stderr) as bar:
        yield from bar
