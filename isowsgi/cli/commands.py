"""`isowsgi status`, `reload`, `stop`, `start`, `stacks`, `errors`: ask every worker and say what they answered.

Exit codes: 0 done; 1 a worker said that it failed, or did not answer; 2 bad input, or nobody serves that config file.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from isowsgi.cli import asking, client, comparison
from isowsgi.cli.answers import Told, for_people
from isowsgi.cli.errors import errors
from isowsgi.shared import controlmessages
from isowsgi.shared.controlmessages import Error, MountStacks, MountStatus, Outcome, Request, WorkerStatus
from isowsgi.shared.sockets import Place

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

# How long a worker may take to answer `status --watch`, which obeys Ctrl-C only in between.
_WATCH_TIMEOUT_S = 2.0


@click.command(short_help="Show every mount with its state.")
@asking.where
@asking.as_json
@click.option("--watch", is_flag=True, help="Refresh every second, until Ctrl-C.")
def status(config: str | None, pidfile: str | None, as_json: bool, watch: bool) -> None:
    """Show every mount with its state in all workers."""
    workers = asking.find(config, pidfile)
    if watch:
        _watch(config, pidfile, as_json)
        return
    answers = client.ask(workers, controlmessages.Status(), asking.TIMEOUT_S)
    if as_json:
        asking.print_json(answers)
    else:
        asking.console().print(_status_view(for_people(answers)))
        _hint(config, workers)
    sys.exit(asking.exit_code(answers))


def _watch(config: str | None, pidfile: str | None, as_json: bool) -> None:
    """Refresh the view every second; workers and even the server may start and end meanwhile."""
    from rich.live import Live

    # Taken where we wait, so that it comes between two pictures, and also if a shell started us in the background, with SIGINT ignored.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    with Live(console=asking.console(), auto_refresh=False) as live:
        while True:
            try:
                answers = client.ask(client.find(config, pidfile), controlmessages.Status(), _WATCH_TIMEOUT_S)
            except client.NobodyServes as exc:
                live.update(str(exc), refresh=True)
            else:
                if as_json:
                    asking.print_json(answers)
                else:
                    live.update(_status_view(for_people(answers)), refresh=True)
            if signal.sigtimedwait({signal.SIGINT}, 1.0) is not None:
                return


@click.command(short_help="Replace one app without losing a request.")
@asking.one_mount
@asking.timeout
def reload(pattern: str, workers: list[Place], timeout: float) -> None:
    """Load a new generation of one mount's app without losing a request, and wait until the new generation serves.

    If it cannot be loaded, the old generation keeps serving and the exit code is 1.
    """
    _do(workers, controlmessages.Reload(mount=pattern), timeout)


@click.command(short_help="Take one app out of service.")
@asking.one_mount
@asking.timeout
def stop(pattern: str, workers: list[Place], timeout: float) -> None:
    """Stop one mount's app; the mount answers 503 until `isowsgi start`."""
    _do(workers, controlmessages.Stop(mount=pattern), timeout)


@click.command(short_help="Bring one app back.")
@asking.one_mount
@asking.timeout
def start(pattern: str, workers: list[Place], timeout: float) -> None:
    """Start one mount's app after `isowsgi stop`, or at once if it is asleep or waits for a retry."""
    _do(workers, controlmessages.Start(mount=pattern), timeout)


@click.command(short_help="Show the stacks of one app's threads.")
@asking.one_mount
@asking.as_json
def stacks(pattern: str, workers: list[Place], as_json: bool) -> None:
    """Show what each thread of one mount's app is doing, even if the app is stuck."""
    answers = client.ask(workers, controlmessages.Stacks(mount=pattern), asking.TIMEOUT_S)
    if as_json:
        asking.print_json(answers)
    asking.fail_on_bad_input(answers)
    if not as_json:
        for told in for_people(answers):
            _print_stacks(told)
    sys.exit(asking.exit_code(answers))


COMMANDS = (status, reload, stop, start, stacks, errors)


# Asking.


def _do(workers: list[Place], request: Request[Outcome], timeout_s: float) -> None:
    """Ask all workers to do something, and print each worker's result."""
    answers = for_people(client.ask(workers, request, timeout_s))
    may_hint = not isinstance(request, controlmessages.Stop)
    if may_hint and asking.is_bad_input(answers):  # a mount that is only in the file, perhaps
        _hint(click.get_current_context().params["config"], workers)
    asking.fail_on_bad_input(answers)
    for told in answers:
        if isinstance(told.answer, Error):
            asking.print_error(told)
        else:
            click.echo(f"{asking.who(told)}: {told.answer.mount} #{told.answer.generation}: {told.answer.text}")
    if may_hint:
        _hint(click.get_current_context().params["config"], workers)
    sys.exit(asking.exit_code(answers))


def _hint(config: str | None, workers: list[Place]) -> None:
    """Say if the config file differs from what runs: whoever has just edited it may take that for what runs."""
    for line in comparison.hints(config, workers):
        click.echo(f"isowsgi: {line}", err=True)


# Printing.


_STYLES = {"serving": "green", "asleep": "dim", "booting": "cyan", "reloading": "cyan"}


def _status_view(answers: Sequence[Told[WorkerStatus]]) -> Group:
    """Draw a row for each mount, summed over all workers that answered; below it the last errors and the workers that did not answer."""
    from rich.console import Group
    from rich.text import Text

    workers = [(told.place.worker, told.answer) for told in answers if not isinstance(told.answer, Error)]
    masters = ", ".join(str(master) for master in sorted({told.place.master for told in answers}))
    memory = ", ".join(f"{pid}: {worker.rss_mib} MiB" for pid, worker in workers)
    table = _empty_table()
    by_mount: dict[str, list[MountStatus]] = {}
    for _, worker in workers:
        for mount in worker.mounts:
            by_mount.setdefault(mount.mount, []).append(mount)
    errors = []
    for pattern, mounts in by_mount.items():
        table.add_row(*_row(pattern, mounts))
        if last := max((mount.last_error for mount in mounts if mount.last_error), key=lambda error: error.at, default=None):
            errors.append(Text(f"{_when(last.at)} {pattern}: {last.error}"))
    title = Text(f"{len(workers)} of {len(answers)} workers of gunicorn {masters} ({memory})")
    below = [Text("\nlast errors:"), *errors] if errors else []
    return Group(title, Text(), table, *below, *map(Text, asking.silent(answers)))


def _empty_table() -> Table:
    from rich.table import Table

    # The first column yields when the terminal is narrow: half a number is worth less than a folded pattern.
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("mount", overflow="fold")
    for column in ("state", "isolation"):
        table.add_column(column, no_wrap=True)
    for column in ("gen", "busy", "requests", "reloads", "stuck"):
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _row(pattern: str, mounts: list[MountStatus]) -> list[str | Text]:
    """Return the cells of a mount, by what each worker says of it."""
    from rich.text import Text

    states = Counter(mount.state for mount in mounts)
    state = next(iter(states)) if len(states) == 1 else ", ".join(f"{number} {name}" for name, number in states.most_common())
    instances = [instance for mount in mounts for instance in mount.instances]
    generations = sorted({mount.generation for mount in mounts})
    return [
        Text(pattern),
        Text(state, style=_STYLES.get(state, "bold red")),
        ", ".join(sorted({mount.isolation for mount in mounts})),
        str(generations[0]) if len(generations) == 1 else f"{generations[0]}-{generations[-1]}",
        f"{sum(len(instance.in_flight) for instance in instances)}/{sum(instance.threads for instance in instances)}",
        str(sum(instance.requests for instance in instances)),
        str(sum(mount.reloads for mount in mounts)),
        str(sum(mount.stuck for mount in mounts)),
    ]


def _print_stacks(told: Told[MountStacks]) -> None:
    if isinstance(told.answer, Error):
        click.echo(f"{asking.who(told)}: {told.answer.text}", err=True)
        return
    if not told.answer.instances:
        click.echo(f"{asking.who(told)}: the mount has no instance")
    for instance in told.answer.instances:
        click.echo(f"{asking.who(told)}, {instance.tag} ({instance.state}):")
        for request in instance.in_flight:
            click.echo(f"  in flight for {request.for_s} s: {request.request}")
        if instance.problem:
            click.echo(f"  {instance.problem}")
        click.echo(instance.stacks.rstrip() + "\n" if instance.stacks else "")


def _when(at: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    except (OverflowError, ValueError, OSError):  # no time that a worker would tell
        return "at an unknown time"
