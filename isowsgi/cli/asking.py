"""What the commands have in common that ask the workers of a running gunicorn: their options, and how an outcome is printed."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from typing import Any, NoReturn, TypeVar

import click

from isowsgi.cli import client
from isowsgi.cli.answers import A, Told, plain
from isowsgi.shared import controlmessages
from isowsgi.shared.controlmessages import Error, Outcome, Request
from isowsgi.shared.sockets import Place

F = TypeVar("F", bound=Callable[..., Any])

# How long a worker may take for an answer that it has at hand.
TIMEOUT_S = 10.0

# What has rich take any output for a terminal's.
_ASK_FOR_TERMINAL = ("FORCE_COLOR", "TTY_COMPATIBLE")

# Refusals that are the fault of who asked.
_BAD_INPUT = ("unknown-mount", "mount")


def where(command: F) -> F:
    """Add the options that say which gunicorn is meant; its config file may be an argument, too."""

    @wraps(command)
    def one_file(file: str | None, config: str | None, **others: Any) -> None:
        command(config=one_of(file, config), **others)

    pidfile = click.option("--pidfile", metavar="FILE", help="Only the gunicorn whose process id is in this file.")
    config = click.option("--config", "-c", metavar="FILE", help="Config file of the running gunicorn.  [default: isowsgi.toml]")
    return click.argument("file", required=False)(config(pidfile(one_file)))  # type: ignore[return-value] # click's decorators forget the type


def config_file(command: F) -> F:
    """Add the config file, as an argument and as --config, to a command that asks nobody; the command gets its path as `config`."""

    @wraps(command)
    def one_file(file: str | None, config: str | None, **others: Any) -> None:
        command(config=one_of(file, config) or "isowsgi.toml", **others)

    config = click.option("--config", "-c", metavar="FILE", help="The same as the argument.  [default: isowsgi.toml]")
    return click.argument("file", required=False)(config(one_file))  # type: ignore[return-value] # click's decorators forget the type


def one_of(file: str | None, config: str | None) -> str | None:
    """Return the config file that is named by an argument or by the option.

    Raises:
        click.UsageError: they differ, or the argument is rather a mount's pattern.
    """
    if file is not None and not file.endswith(".toml") and not os.path.exists(file):
        raise click.UsageError(f"there is no config file {file!r}; this command takes one, and no pattern of a mount")
    if file is not None and config is not None and file != config:
        raise click.UsageError(f"two config files: {file!r} and --config {config!r}")
    return file if config is None else config


def master(command: F) -> F:
    """Add what a worker, or systemd, says when it runs a command itself: which gunicorn is meant."""
    # As a signal's target, 0 and less are groups of processes, or all of them.
    pid = click.IntRange(min=1)
    return click.option("--master", type=pid, metavar="PID", help="Only the gunicorn whose master has this process id.")(command)


def one_mount(command: F) -> F:
    """Add the pattern and where to look for it."""

    @wraps(command)
    def checked(pattern: str, config: str | None, pidfile: str | None, **options: Any) -> None:
        command(pattern, find(config, pidfile), **options)

    return click.argument("pattern")(where(checked))  # type: ignore[return-value] # click's decorators forget the type


timeout = click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=120.0, show_default=True, help="Seconds to wait for the result."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print the workers' answers as JSON.")


def find(config: str | None, pidfile: str | None, master: int | None = None) -> list[Place]:
    try:
        return client.find(config, pidfile, master)
    except client.NobodyServes as exc:
        fail(str(exc), 2)


def ask_until_interrupted(workers: Iterable[Place], request: Request[A], timeout_s: float) -> list[Told[A]]:
    """Ask workers for what takes long; Ctrl-C ends this process at once, and with its connections what was begun."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    answers = client.ask(workers, request, timeout_s)
    signal.signal(signal.SIGINT, before)
    return answers


def exit_code(answers: Sequence[Told[Any]]) -> int:
    return 1 if any(isinstance(told.answer, Error) for told in answers) else 0


def is_bad_input(answers: Sequence[Told[Any]]) -> bool:
    """Whether all workers refuse what was asked for in the same way."""
    kinds = {told.answer.kind if isinstance(told.answer, Error) else None for told in answers}
    return len(kinds) == 1 and kinds <= {*_BAD_INPUT}


def fail_on_bad_input(answers: Sequence[Told[Any]]) -> None:
    """End with one line if all workers refuse what was asked for in the same way."""
    if is_bad_input(answers):
        fail(plain(answers[0].answer.text), 2)


def fail_by_faults(faults: Sequence[str], as_json: bool, code: int) -> NoReturn:
    """End with the faults of a config file."""
    if as_json:
        click.echo(json.dumps({"faults": list(faults)}, indent=2))
    else:
        click.echo("\n".join(faults), err=True)
    sys.exit(code)


def print_error(told: Told[Any]) -> None:
    """Print why a worker did not do what it was asked for; of an answer that is one, see `answers.for_people`."""
    click.echo(f"{who(told)}: {told.answer.text}", err=True)
    if told.answer.traceback:
        click.echo(told.answer.traceback.rstrip(), err=True)


def print_outcome(told: Told[Outcome], before: str = "") -> None:
    """Print what became of a mount in a worker, or why nothing did; of an answer for people.

    Args:
        before: what the line begins with, if that is no error.
    """
    if isinstance(told.answer, Error):
        print_error(told)
    else:
        click.echo(f"{before}{who(told)}: {told.answer.mount} #{told.answer.generation}: {told.answer.text}")


def fail(text: str, code: int) -> NoReturn:
    click.echo(f"isowsgi: {text}", err=True)
    sys.exit(code)


def is_for_files() -> bool:
    """Whether what is printed goes to no terminal for certain: then rich, a tenth of a command's CPU time, is not needed for it."""
    return not sys.stdout.isatty() and not any(name in os.environ for name in _ASK_FOR_TERMINAL)


def console() -> Any:
    from rich.console import Console

    # Output that goes to no terminal must not be folded to 80 columns.
    shown = Console(highlight=False, markup=False, emoji=False)
    return shown if shown.is_terminal else Console(highlight=False, markup=False, emoji=False, width=200)


def print_table(title: str, numbers: Sequence[str], texts: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table below its title.

    Args:
        numbers: heads of the first columns, which are numbers.
        texts: heads of the others, which are folded where the terminal is narrow.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for name in texts:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    shown = console()
    shown.print(f"\n{title}", style="bold")
    shown.print(table)


def print_json(answers: Sequence[Told[Any]]) -> None:
    click.echo(json.dumps(as_facts(answers), indent=2))


def as_facts(answers: Sequence[Told[Any]]) -> dict[str, Any]:
    """Return answers as JSON has them."""
    return {"workers": [{"pid": told.place.worker, **controlmessages.facts(told.worker, told.answer)} for told in answers]}


def who(told: Told[Any]) -> str:
    return f"worker {told.place.worker} of gunicorn {told.place.master}{client.of_whom(told.place)}"


def sampled(answers: Sequence[Told[Any]], notes: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield what each instance has told with how it is called, and note the problems of the others."""
    for told in answers:
        for each in () if isinstance(told.answer, Error) else told.answer.instances:
            tag = f"{plain(each.tag)} in worker {told.place.worker} ({plain(each.isolation)})"
            if each.problem:
                notes.append(f"{tag}: {plain(each.problem)}")
            else:
                yield tag, each


def silent(answers: Sequence[Told[Any]]) -> list[str]:
    return [f"{who(told)}: {told.answer.text}" for told in answers if isinstance(told.answer, Error)]
