"""`isowsgi status`, `reload`, `stop`, `start`, `stacks`, `errors`: ask every worker and say what they answered.

Exit codes: 0 done; 1 a worker said that it failed, or did not answer; 2 bad input, or nobody serves that config file.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from isowsgi.cli import client
from isowsgi.cli.answers import Answer, for_people, plain
from isowsgi.shared.sockets import Place

if TYPE_CHECKING:
    from rich.console import Group

F = TypeVar("F", bound=Callable[..., Any])

# How long a worker may take for an answer that it has at hand.
_TIMEOUT_S = 10.0

# The same for `status --watch`, which obeys Ctrl-C only in between.
_WATCH_TIMEOUT_S = 2.0

# Refusals that are the fault of who asked.
_BAD_INPUT = ("unknown-mount", "mount")


def _where(command: F) -> F:
    """Add the options that say which gunicorn is meant."""
    pidfile = click.option("--pidfile", metavar="FILE", help="Only the gunicorn whose process id is in this file.")
    config = click.option("--config", "-c", metavar="FILE", help="Config file of the running gunicorn.  [default: isowsgi.toml]")
    return config(pidfile(command))


def _one_mount(command: F) -> F:
    """Add the pattern and where to look for it."""

    @wraps(command)
    def checked(pattern: str, config: str | None, pidfile: str | None, **options: Any) -> None:
        command(pattern, _find(config, pidfile), **options)

    return click.argument("pattern")(_where(checked))  # type: ignore[return-value] # click's decorators forget the type


_timeout = click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=120.0, show_default=True, help="Seconds to wait for the result."
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print the workers' answers as JSON.")


@click.command(short_help="Show every mount with its state.")
@_where
@_as_json
@click.option("--watch", is_flag=True, help="Refresh every second, until Ctrl-C.")
def status(config: str | None, pidfile: str | None, as_json: bool, watch: bool) -> None:
    """Show every mount with its state in all workers."""
    workers = _find(config, pidfile)
    if watch:
        _watch(config, pidfile, as_json)
        return
    answers = client.ask(workers, {"do": "status"}, _TIMEOUT_S)
    if as_json:
        _print_json(answers)
    else:
        _console().print(_status_view(for_people(answers)))
    sys.exit(0 if all(answer.is_ok for answer in answers) else 1)


def _watch(config: str | None, pidfile: str | None, as_json: bool) -> None:
    """Refresh the view every second; workers and even the server may start and end meanwhile."""
    from rich.live import Live

    # Taken where we wait, so that it comes between two pictures, and also if a shell started us in the background, with SIGINT ignored.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    with Live(console=_console(), auto_refresh=False) as live:
        while True:
            try:
                answers = client.ask(client.find(config, pidfile), {"do": "status"}, _WATCH_TIMEOUT_S)
            except client.NobodyServes as exc:
                live.update(str(exc), refresh=True)
            else:
                if as_json:
                    _print_json(answers)
                else:
                    live.update(_status_view(for_people(answers)), refresh=True)
            if signal.sigtimedwait({signal.SIGINT}, 1.0) is not None:
                return


@click.command(short_help="Replace one app without losing a request.")
@_one_mount
@_timeout
def reload(pattern: str, workers: list[Place], timeout: float) -> None:
    """Load a new generation of one mount's app without losing a request, and wait until the new generation serves.

    If it cannot be loaded, the old generation keeps serving and the exit code is 1.
    """
    _do(workers, {"do": "reload", "mount": pattern}, timeout)


@click.command(short_help="Take one app out of service.")
@_one_mount
@_timeout
def stop(pattern: str, workers: list[Place], timeout: float) -> None:
    """Stop one mount's app; the mount answers 503 until `isowsgi start`."""
    _do(workers, {"do": "stop", "mount": pattern}, timeout)


@click.command(short_help="Bring one app back.")
@_one_mount
@_timeout
def start(pattern: str, workers: list[Place], timeout: float) -> None:
    """Start one mount's app after `isowsgi stop`, or at once if it is asleep or waits for a retry."""
    _do(workers, {"do": "start", "mount": pattern}, timeout)


@click.command(short_help="Show the stacks of one app's threads.")
@_one_mount
@_as_json
def stacks(pattern: str, workers: list[Place], as_json: bool) -> None:
    """Show what each thread of one mount's app is doing, even if the app is stuck."""
    answers = client.ask(workers, {"do": "stacks", "mount": pattern}, _TIMEOUT_S)
    if as_json:
        _print_json(answers)
    _fail_on_bad_input(answers)
    if not as_json:
        for answer in for_people(answers):
            _print_stacks(answer)
    sys.exit(0 if all(answer.is_ok for answer in answers) else 1)


@click.command(short_help="Show the latest errors of one app.")
@_one_mount
@_as_json
def errors(pattern: str, workers: list[Place], as_json: bool) -> None:
    """Show why one mount's app last failed to load, and its latest exceptions."""
    answers = client.ask(workers, {"do": "errors", "mount": pattern}, _TIMEOUT_S)
    if as_json:
        _print_json(answers)
    _fail_on_bad_input(answers)
    if not as_json:
        _print_errors(for_people(answers))
    sys.exit(0 if all(answer.is_ok for answer in answers) else 1)


COMMANDS = (status, reload, stop, start, stacks, errors)


# Asking.


def _find(config: str | None, pidfile: str | None) -> list[Place]:
    try:
        return client.find(config, pidfile)
    except client.NobodyServes as exc:
        _fail(str(exc), 2)


def _do(workers: list[Place], request: Mapping[str, Any], timeout_s: float) -> None:
    """Ask all workers to do something, and print each worker's result."""
    answers = for_people(client.ask(workers, request, timeout_s))
    _fail_on_bad_input(answers)
    for answer in answers:
        if answer.is_ok:
            click.echo(f"{_who(answer)}: {answer.message['mount']} #{answer.message['generation']}: {answer.message['text']}")
        else:
            click.echo(f"{_who(answer)}: {answer.error['text']}", err=True)
            if traceback := answer.error.get("traceback"):
                click.echo(str(traceback).rstrip(), err=True)
    sys.exit(0 if all(answer.is_ok for answer in answers) else 1)


def _fail_on_bad_input(answers: list[Answer]) -> None:
    """End with one line if all workers refuse what was asked for in the same way."""
    kinds = {answer.error["kind"] for answer in answers if not answer.is_ok}
    if len(kinds) == 1 and kinds <= {*_BAD_INPUT} and not any(answer.is_ok for answer in answers):
        _fail(plain(answers[0].error["text"]), 2)


def _fail(text: str, code: int) -> NoReturn:
    click.echo(f"isowsgi: {text}", err=True)
    sys.exit(code)


# Printing.


def _console() -> Any:
    from rich.console import Console

    # Output that goes to no terminal must not be folded to 80 columns.
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=200)


def _print_json(answers: list[Answer]) -> None:
    click.echo(json.dumps({"workers": [{"pid": answer.place.worker, **answer.message} for answer in answers]}, indent=2))


def _who(answer: Answer) -> str:
    return f"worker {answer.place.worker} of gunicorn {answer.place.master}{client.of_whom(answer.place)}"


def _silent(answers: list[Answer]) -> list[str]:
    return [f"{_who(answer)}: {answer.error['text']}" for answer in answers if not answer.is_ok]


_STYLES = {"serving": "green", "asleep": "dim", "booting": "cyan", "reloading": "cyan"}


def _status_view(answers: list[Answer]) -> Group:
    """Draw a row for each mount, summed over all workers that answered; below it the last errors and the workers that did not answer."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    told = [answer.message for answer in answers if answer.is_ok]
    masters = ", ".join(str(master) for master in sorted({answer.place.master for answer in answers}))
    memory = ", ".join(f"{message['worker']}: {message['rss_mib']} MiB" for message in told)
    # The first column yields when the terminal is narrow: half a number is worth less than a folded pattern.
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("mount", overflow="fold")
    for column in ("state", "isolation"):
        table.add_column(column, no_wrap=True)
    for column in ("gen", "busy", "requests", "reloads", "stuck"):
        table.add_column(column, justify="right", no_wrap=True)
    by_mount: dict[str, list[dict[str, Any]]] = {}
    for message in told:
        for mount in message["mounts"]:
            by_mount.setdefault(mount["mount"], []).append(mount)
    errors = []
    for pattern, mounts in by_mount.items():
        states = Counter(mount["state"] for mount in mounts)
        state = next(iter(states)) if len(states) == 1 else ", ".join(f"{number} {name}" for name, number in states.most_common())
        instances = [instance for mount in mounts for instance in mount["instances"]]
        generations = sorted({mount["generation"] for mount in mounts})
        table.add_row(
            Text(pattern),
            Text(state, style=_STYLES.get(state, "bold red")),
            ", ".join(sorted({mount["isolation"] for mount in mounts})),
            str(generations[0]) if len(generations) == 1 else f"{generations[0]}-{generations[-1]}",
            f"{sum(len(instance['in_flight']) for instance in instances)}/{sum(instance['threads'] for instance in instances)}",
            str(sum(instance["requests"] for instance in instances)),
            str(sum(mount["reloads"] for mount in mounts)),
            str(sum(mount["stuck"] for mount in mounts)),
        )
        if last := max((mount["last_error"] for mount in mounts if mount["last_error"]), key=lambda error: error["at"], default=None):
            errors.append(Text(f"{_when(last['at'])} {pattern}: {last['error']}"))
    title = Text(f"{len(told)} of {len(answers)} workers of gunicorn {masters} ({memory})")
    below = [Text("\nlast errors:"), *errors] if errors else []
    return Group(title, Text(), table, *below, *map(Text, _silent(answers)))


def _print_stacks(answer: Answer) -> None:
    if not answer.is_ok:
        click.echo(f"{_who(answer)}: {answer.error['text']}", err=True)
        return
    if not answer.message["instances"]:
        click.echo(f"{_who(answer)}: the mount has no instance")
    for instance in answer.message["instances"]:
        click.echo(f"{_who(answer)}, {instance['tag']} ({instance['state']}):")
        for request in instance["in_flight"]:
            click.echo(f"  in flight for {request['for_s']} s: {request['request']}")
        if instance["problem"]:
            click.echo(f"  {instance['problem']}")
        click.echo(instance["stacks"].rstrip() + "\n" if instance["stacks"] else "")


def _print_errors(answers: list[Answer]) -> None:
    for line in _silent(answers):
        click.echo(line, err=True)
    told = [answer for answer in answers if answer.is_ok]
    found = [(incident, answer) for answer in told for incident in [answer.message["boot"], *answer.message["requests"]] if incident]
    if not found and told:
        click.echo("no errors so far")
    for incident, answer in sorted(found, key=lambda pair: pair[0]["at"]):
        what = "could not be loaded" if incident["kind"] == "boot" else incident["request"]
        click.echo(f"{_when(incident['at'])} worker {answer.place.worker}, {incident['tag']}: {what}: {incident['error']}")
        click.echo(incident["details"].rstrip() + "\n")


def _when(at: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    except (OverflowError, ValueError, OSError):  # no time that a worker would tell
        return "at an unknown time"
