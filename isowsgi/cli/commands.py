"""`isowsgi status`, `reload`, `stop`, `start`, `stacks`, `errors`: ask every worker and say what they answered.

Exit codes: 0 done; 1 a worker said that it failed, or did not answer; 2 bad input, or nobody serves that config file.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import click

from isowsgi.cli import asking, client, comparison, statusview
from isowsgi.cli.answers import Told, for_people
from isowsgi.cli.errors import errors
from isowsgi.cli.reloadall import reload_all
from isowsgi.shared import controlmessages
from isowsgi.shared.controlmessages import Error, MountStacks, Outcome, Request, WorkerStatus
from isowsgi.shared.sockets import Place

# How long a worker may take to answer `status --watch`, which obeys Ctrl-C only in between.
_WATCH_TIMEOUT_S = 2.0

# How far apart the two answers are that rates are made of, in seconds; and how many `--watch` keeps for them, as the status page does.
_BETWEEN_S = 1.0
_WATCHED = 30


@click.command(short_help="Show every mount with its state.")
@asking.where
@asking.as_json
@click.option("--watch", is_flag=True, help="Refresh every second, until Ctrl-C.")
@click.option("--sort", type=click.Choice(list(statusview.SORTS)), help="What takes most first; or by name.")
def status(config: str | None, pidfile: str | None, as_json: bool, watch: bool, sort: str | None) -> None:
    """Show every mount with its state in all workers.

    Rates and latencies are those of the second that the command takes.
    """
    workers = asking.find(config, pidfile)
    if watch:
        _watch(config, pidfile, as_json, sort)
        return
    answers = client.ask(workers, controlmessages.Status(), asking.TIMEOUT_S)
    if as_json:
        asking.print_json(answers)
    else:
        before = for_people(answers)
        if not all(isinstance(told.answer, Error) for told in answers):
            time.sleep(_BETWEEN_S)
            answers = client.ask(workers, controlmessages.Status(), asking.TIMEOUT_S)
        asking.console().print(statusview.view(for_people(answers), before, sort))
        _hint(config, answers)
    sys.exit(asking.exit_code(answers))


def _watch(config: str | None, pidfile: str | None, as_json: bool, sort: str | None) -> None:
    """Refresh the view every second; workers and even the server may start and end meanwhile."""
    from rich.live import Live

    # Taken where we wait, so that it comes between two pictures, and also if a shell started us in the background, with SIGINT ignored.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    before: deque[list[Told[WorkerStatus]]] = deque(maxlen=_WATCHED)
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
                    before.append(for_people(answers))
                    live.update(statusview.view(before[-1], before[0], sort), refresh=True)
            if signal.sigtimedwait({signal.SIGINT}, 1.0) is not None:
                return


@click.command(short_help="Replace one app, or each, without losing a request.")
@click.argument("pattern", required=False)
@asking.where
@asking.timeout
@click.option("--all", "every", is_flag=True, help="Each app that is loaded, one after the other; PATTERN is left out.")
@click.option("--one-at-a-time", is_flag=True, help="With --all: also one worker after the other.")
def reload(pattern: str | None, config: str | None, pidfile: str | None, timeout: float, every: bool, one_at_a_time: bool) -> None:
    """Load a new generation of one mount's app without losing a request, and wait until the new generation serves.

    If it cannot be loaded, the old generation keeps serving and the exit code is 1. --timeout is for each mount.
    """
    if every:  # what stands in the pattern's place is the config file
        sys.exit(reload_all(asking.find(asking.one_of(pattern, config), pidfile), one_at_a_time, timeout))
    if pattern is None or one_at_a_time:
        raise click.UsageError("name a mount's pattern, or --all" if pattern is None else "--one-at-a-time needs --all")
    _do(asking.find(config, pidfile), controlmessages.Reload(mount=pattern), timeout)


@click.command(short_help="Take one app out of service.")
@asking.one_mount
@asking.timeout
@click.option(
    "--drain", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS", help="Serve on for so long, while /ready answers 503."
)
def stop(pattern: str, workers: list[Place], timeout: float, drain: float) -> None:
    """Stop one mount's app; the mount answers 503 until `isowsgi start`.

    With --drain a balancer that asks /ready?mount=PATTERN sends its clients elsewhere before. Ctrl-C meanwhile keeps the app in service.
    """
    _do(workers, controlmessages.Stop(mount=pattern, drain_s=drain), drain + timeout)


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
    answers = for_people(asking.ask_until_interrupted(workers, request, timeout_s))
    may_hint = not isinstance(request, controlmessages.Stop)
    if may_hint and asking.is_bad_input(answers):  # a mount that is only in the file, perhaps
        _hint(click.get_current_context().params["config"], answers)
    asking.fail_on_bad_input(answers)
    for told in answers:
        asking.print_outcome(told)
    if may_hint:
        _hint(click.get_current_context().params["config"], answers)
    sys.exit(asking.exit_code(answers))


def _hint(config: str | None, answers: Sequence[Told[Any]]) -> None:
    """Say if the config file differs from what runs: whoever has just edited it may take that for what runs.

    Args:
        answers: of the workers to ask; those that gave none are not waited for once more.
    """
    for line in comparison.hints(config, [told.place for told in answers if told.worker is not None]):
        click.echo(f"isowsgi: {line}", err=True)


# Printing.


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
