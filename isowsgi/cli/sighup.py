"""SIGHUP to gunicorn, for what only that can apply: each process is looked at first, and if one will not do, none is told.

Each is held by a descriptor meanwhile, so that no other process can get its number and the signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Mapping

import click

from isowsgi.cli import asking, client
from isowsgi.cli.answers import plain
from isowsgi.shared import conffile, regularfiles
from isowsgi.shared.sockets import Place


def send(places: Iterable[Place], conf_files: Iterable[str]) -> None:
    """Have the gunicorns of some workers read their settings and the config file again.

    Args:
        conf_files: of gunicorn's settings, which they will read: a fault in one would end the gunicorn.
    """
    for path in conf_files:
        if fault := _fault_of(path):
            asking.fail(f"nothing was changed: gunicorn would end at SIGHUP: {plain(path)}: {plain(fault)}", 1)
    _send({place.master: _whether_of(place) for place in places})


def send_unseen(master: int) -> None:
    """Have a gunicorn do so that has no worker with a control socket."""
    fault = "is no running gunicorn with isowsgi's worker, as far as this user can see"
    _send({master: lambda: "" if client.has_our_memory(master) else fault})


def _whether_of(place: Place) -> Callable[[], str]:
    return lambda: "" if client.may_signal(place) else f"is no gunicorn of {client.user(place.owner)}'s"


def _send(masters: Mapping[int, Callable[[], str]]) -> None:
    """Signal processes.

    Args:
        masters: what says why one must not be signalled, or "", by process id.
    """
    with contextlib.ExitStack() as stack:
        held = {}
        for pid, fault in masters.items():
            try:
                held[pid] = os.pidfd_open(pid)
                stack.callback(os.close, held[pid])
                reason = fault()
                signal.pidfd_send_signal(held[pid], 0)  # it lives, and we may
            except OSError as exc:
                reason = f"cannot be sent SIGHUP: {exc.strerror}"
            if reason:
                asking.fail(f"nothing was changed: process {pid} {reason}", 1)
        for pid, fd in held.items():
            try:
                signal.pidfd_send_signal(fd, signal.SIGHUP)
            except OSError as exc:
                asking.fail(f"cannot send SIGHUP to gunicorn {pid}: {exc.strerror}", 1)
            click.echo(f"sent SIGHUP to gunicorn {pid}: it loads all apps again; its error log says how that went")


def _fault_of(path: str) -> str:
    """Say why Python cannot read a file of gunicorn's settings, or return ""; it is not run: whose word its path is may be anybody."""
    try:
        compile(regularfiles.read(path, conffile.MOST_BYTES), path, "exec", dont_inherit=True)
    except OSError as exc:
        return f"cannot read it: {exc.strerror}"
    except SyntaxError as exc:
        return f"line {exc.lineno}: {exc.msg}"
    except (ValueError, regularfiles.NotRegular) as exc:
        return str(exc)
    return ""
