"""`isowsgi errors`: what went wrong in the apps' requests, by groups over all workers, the worst first."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import click

from isowsgi.cli import asking, client
from isowsgi.cli.answers import Told, for_people
from isowsgi.cli.statusview import when
from isowsgi.shared import wire
from isowsgi.shared.controlmessages import AllErrors, Error, ErrorGroup, Errors, Incident, MountErrors, WorkerErrors
from isowsgi.shared.errorgroups import EXCEPTION, LOGGED
from isowsgi.shared.sockets import Place

# How often `--follow` asks; it obeys Ctrl-C in between.
_PERIOD_S = 1.0

# Groups of each mount that are listed where all mounts are.
_MOST_OF_EACH = 5

# Columns of output that goes to no terminal: nothing is cut there that a program may look for.
_WIDE = 400


class _Sum(NamedTuple):
    """A group over all workers."""

    times: int
    first: float
    last: ErrorGroup  # the worker's where it happened last


@click.command(short_help="Show what went wrong in the apps' requests.")
@click.argument("pattern", required=False)
@asking.where
@asking.as_json
@click.option("--follow", "-f", is_flag=True, help="Then print each group of errors that grows, once a second, until Ctrl-C.")
def errors(pattern: str | None, config: str | None, pidfile: str | None, as_json: bool, follow: bool) -> None:
    """Show the errors of one mount's requests by type and place, with the last traceback of each; without a pattern those of all mounts.

    Exceptions that frameworks catch and answer with 500 are among them, and what isowsgi answers with 503 and 504 itself.
    """
    workers, asked = asking.find(config, pidfile), time.time()
    answers = _ask(workers, pattern)
    if as_json and follow:
        click.echo(json.dumps(asking.as_facts(answers)))
    elif as_json:
        asking.print_json(answers)
    asking.fail_on_bad_input(answers)
    if not as_json:
        _print(for_people(answers), pattern)
    if follow:
        _follow(config, pidfile, pattern, as_json, answers, asked)
    sys.exit(asking.exit_code(answers))


Answers = Sequence[Told[Any]]  # to `Errors` or to `AllErrors`


def _ask(workers: list[Place], pattern: str | None, changed_since: float = 0.0) -> Answers:
    if pattern is None:
        return client.ask(workers, AllErrors(changed_since=changed_since), asking.TIMEOUT_S)
    return client.ask(workers, Errors(mount=pattern, changed_since=changed_since), asking.TIMEOUT_S)


def _follow(config: str | None, pidfile: str | None, pattern: str | None, as_json: bool, before: Answers, asked: float) -> None:
    """Print a line for each group that grows; workers and even the server may start and end meanwhile.

    Args:
        asked: seconds since the epoch when the answers before were asked for.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # taken where we wait, as in `status --watch`
    seen = _counts(before)
    while signal.sigtimedwait({signal.SIGINT}, _PERIOD_S) is None:
        try:
            workers = client.find(config, pidfile)
        except client.NobodyServes:
            continue
        since, asked = asked - _PERIOD_S, time.time()
        answers = _ask(workers, pattern, since)
        counts = _counts(answers)
        news = {key: count - known if count >= (known := seen.get(key, 0)) else count for key, count in counts.items()}
        _print_news(_by_mount(for_people(answers)), news, as_json)
        alive = {worker.worker for worker in workers}
        seen = {key: count for key, count in seen.items() if key[0] in alive} | counts


def _print_news(by_mount: dict[str, list[_Sum]], news: dict[tuple[object, ...], int], as_json: bool) -> None:
    for mount, sums in by_mount.items():
        for one in sums:
            more = sum(count for key, count in news.items() if key[1:] == _key(mount, one.last))
            if more and as_json:
                click.echo(json.dumps({"mount": mount, "more": more, **wire.plain(one.last.replace(details=""))}))
            elif more:
                times = f" ({more:,} times)" if more > 1 else ""
                click.echo(_cut(f"{_time(one.last.at)} {mount}: {one.last.request}: {_what(one.last)}{times}", _WIDE))


def _mounts_of(answer: MountErrors | WorkerErrors | Error) -> list[MountErrors]:
    if isinstance(answer, Error):
        return []
    if isinstance(answer, WorkerErrors):
        return answer.mounts
    if answer.requests and not answer.groups:  # a worker of an earlier release
        return [answer.replace(groups=[_alone(incident) for incident in answer.requests])]
    return [answer]


def _alone(incident: Incident) -> ErrorGroup:
    """Return a group of one error."""
    return ErrorGroup(
        kind=incident.kind, type="", place="", count=1, first=incident.at, at=incident.at, generation=incident.generation,
        request=incident.request, error=incident.error, details=incident.details,
    )  # fmt: skip


def _counts(answers: Answers) -> dict[tuple[object, ...], int]:
    """Return the counts of all groups, by worker and what `_key` says."""
    return {
        (told.place.worker, *_key(mount.mount, group)): group.count
        for told in for_people(answers)
        for mount in _mounts_of(told.answer)
        for group in mount.groups
    }


def _key(mount: str, group: ErrorGroup) -> tuple[str, str, str, str]:
    return mount, group.kind, group.type, group.place


def _by_mount(answers: Answers) -> dict[str, list[_Sum]]:
    """Return each mount's groups over all workers, the worst mount and the most frequent group first."""
    found: dict[str, dict[tuple[str, ...], _Sum]] = {}
    for told in answers:
        for mount in _mounts_of(told.answer):
            sums = found.setdefault(mount.mount, {})
            for group in mount.groups:
                key = _key(mount.mount, group)
                before = sums.get(key, _Sum(0, group.first, group))
                # One without texts says less, however late it is.
                last = max(before.last, group, key=lambda each: (bool(each.request or each.error), each.at))
                sums[key] = _Sum(before.times + group.count, min(before.first, group.first), last)
    ordered = {mount: sorted(sums.values(), key=lambda one: (one.last.kind == LOGGED, -one.times)) for mount, sums in found.items()}
    return dict(sorted(ordered.items(), key=lambda pair: -_failures(pair[1])))


def _failures(sums: Iterable[_Sum]) -> int:
    return sum(one.times for one in sums if one.last.kind != LOGGED)


# Printing.


def _print(answers: Answers, pattern: str | None) -> None:
    for line in asking.silent(answers):
        click.echo(line, err=True)
    boots = [(told.place.worker, mount.boot) for told in answers for mount in _mounts_of(told.answer) if mount.boot]
    by_mount = {mount: sums for mount, sums in _by_mount(answers).items() if sums}
    if not boots and not by_mount and any(not isinstance(told.answer, Error) for told in answers):
        click.echo("no errors so far")
    for pid, boot in boots:
        _print_boot(pid, boot, with_details=pattern is not None)
    for mount, sums in by_mount.items():
        _print_mount(mount, sums, with_details=pattern is not None)
    if by_mount and pattern is None:
        click.echo("`isowsgi errors PATTERN` shows all groups of a mount with their tracebacks")


def _print_boot(pid: int, boot: Incident, with_details: bool) -> None:
    click.echo(f"{when(boot.at)} worker {pid}, {boot.tag}: could not be loaded: {boot.error}")
    if with_details:
        click.echo(boot.details.rstrip() + "\n")


def _print_mount(mount: str, sums: list[_Sum], with_details: bool) -> None:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDE
    failures, logged = _failures(sums), sum(one.times for one in sums if one.last.kind == LOGGED)
    also = f", and {logged:,} logged in requests that did not fail" if logged else ""
    click.echo(
        _cut(f"{mount}: {_plural(failures, 'error')} in {_plural(sum(one.last.kind != LOGGED for one in sums), 'group')}{also}", width)
    )
    shown = sums if with_details else sums[:_MOST_OF_EACH]
    for one in shown:
        group = one.last
        since = f"since {_time(one.first)}, last {_time(group.at)}" if one.times > 1 else f"at {_time(group.at)}"
        click.echo(_cut(f"{one.times:>8,}  {_what(group)}", width))
        if group.place:
            click.echo(_cut_left(f"          {group.place}", 10, width))
        click.echo(_cut(f"          {since}: {group.request}", width))
        if with_details and group.details:
            click.echo("\n" + group.details.rstrip() + "\n")
    if len(shown) < len(sums):
        click.echo(f"          and {_plural(len(sums) - len(shown), 'group')} more")


def _what(group: ErrorGroup) -> str:
    if group.kind == EXCEPTION:
        return group.error or group.type
    if group.kind == LOGGED:
        return f"logged: {group.error or group.type}"
    return f"{group.kind}: {group.error or group.type}"


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _cut(line: str, width: int) -> str:
    line = line.replace("\n", " ")
    return line if len(line) <= width else line[: width - 3] + "..."


def _cut_left(line: str, indent: int, width: int) -> str:
    """Cut a place where it is least missed: at the folders that it begins with."""
    return line if len(line) <= width else line[:indent] + "..." + line[len(line) - width + indent + 3 :]


def _time(at: float) -> str:
    """Return a time; with its day if that is not today."""
    return when(at).removeprefix(time.strftime("%Y-%m-%d "))
