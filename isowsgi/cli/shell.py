"""`isowsgi shell`: a Python console inside one running app. The lines are edited here, and executed there."""

from __future__ import annotations

import contextlib
import secrets
import sys
import threading
import time

import click

from isowsgi.cli import asking, client
from isowsgi.cli.answers import Told, for_people, plain
from isowsgi.shared import controlmessages
from isowsgi.shared.controlmessages import Error, Outcome, Shell, ShellLine
from isowsgi.shared.sockets import Place

# How long an input may take: as long as the session.
_SESSION_S = 3700.0

# How long a worker may take to open a session.
_OPEN_S = 10.0
_LOOK_S = 0.05


@click.command(short_help="Open a Python console inside one app.")
@asking.one_mount
@click.option("--worker", type=int, metavar="PID", help="In this worker.  [default: the first one]")
def shell(pattern: str, workers: list[Place], worker: int | None) -> None:
    """Open a Python console inside one mount's running app, in its interpreter or process; its WSGI callable is `app`.

    Needs [control] shell = true. Ctrl-D or exit() ends it; so does Ctrl-C while something is executed, which is interrupted.
    Input that is no terminal is executed line by line; the exit code is 1 if any of it failed. The log has every input.
    """
    chosen = [place for place in workers if worker in (None, place.worker)][:1]
    if not chosen:
        asking.fail(f"no worker {worker}; there are {', '.join(str(place.worker) for place in workers)}", 2)
    session = Session(chosen[0], pattern)
    session.open()
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # a Python may have been built without it
            import readline  # noqa: F401 # `input` uses it

        who = f"worker {chosen[0].worker} of gunicorn {chosen[0].master}{client.of_whom(chosen[0])}"
        click.echo(f"{who}, {plain(pattern)}: Python inside the app; Ctrl-D ends it", err=True)
    try:
        code = session.converse()
    except KeyboardInterrupt:
        click.echo("\ninterrupted; the session has ended", err=True)
        code = 1
    sys.exit(code)


class Session:
    """One command's session: a request that stays open, and one for each input.

    Args:
        place: the worker's.
    """

    def __init__(self, place: Place, pattern: str) -> None:
        self._place = place
        self._request = Shell(mount=pattern, serial=secrets.token_hex(16))
        self._over: list[Told[Outcome]] = []
        # A daemon: the process' end closes its connection, and that ends the session.
        self._holder = threading.Thread(target=self._hold, daemon=True)

    def open(self) -> None:
        """Begin; ends this command if that is refused."""
        self._holder.start()
        deadline = time.monotonic() + _OPEN_S
        why = Error(kind="timeout", text=f"no session within {_OPEN_S:g} s")
        while time.monotonic() < deadline:
            answer = self._send("", max(deadline - time.monotonic(), _LOOK_S))
            if not isinstance(answer, Error):
                return
            if answer.kind != "no-session":
                why = answer
            if answer.kind == "timeout":
                text = f"the app's console does not answer within {_OPEN_S:g} s; C code may hold its GIL: see isowsgi stacks"
                why = Error(kind="timeout", text=text)
            if self._over or answer.kind != "no-session":
                break
            time.sleep(_LOOK_S)
        [told] = for_people(self._over) or [Told(self._place, None, why)]
        asking.fail_on_bad_input([told])
        if isinstance(told.answer, Error):
            asking.print_error(told)
        sys.exit(1)

    def converse(self) -> int:
        """Read and send inputs until they end; return the exit code."""
        is_terminal = sys.stdin.isatty()
        code = 0
        is_end = False
        lines: list[str] = []
        while not is_end:
            try:
                lines.append(input(("... " if lines else ">>> ") if is_terminal else ""))
            except EOFError:
                is_end = True
                if is_terminal:
                    click.echo()
                if not lines or is_terminal:
                    break
                lines.append("")  # ends a block, as Python does at the end of a file
            except KeyboardInterrupt:
                click.echo("\nKeyboardInterrupt")
                lines = []
                continue
            answer = self._send("\n".join(lines), _SESSION_S)
            if isinstance(answer, Error) and answer.kind == "malformed":  # too long: the session is still open
                click.echo(f"isowsgi: {plain(answer.text)}", err=True)
                lines, code = [], 0 if is_terminal else 1
                continue
            if isinstance(answer, Error):
                over = for_people(self._over)
                click.echo(f"isowsgi: {plain(over[0].answer.text if over else answer.text)}", err=True)
                return 1
            if answer.outcome == "failed" and not is_terminal:
                code = 1
            if not answer.is_more:
                lines = []
                click.echo(plain(answer.text), nl=False)
                is_end = is_end or answer.outcome == "exit"
        if lines and not is_terminal:
            click.echo("isowsgi: the input ends within a statement, which was not executed", err=True)
            return 1
        return code

    def _hold(self) -> None:
        self._over.append(Told(self._place, *client.ask_one(self._place, self._request, _SESSION_S)))

    def _send(self, source: str, timeout_s: float) -> controlmessages.ShellAnswer | Error:
        return client.ask_one(self._place, ShellLine(serial=self._request.serial, source=source), timeout_s)[1]
