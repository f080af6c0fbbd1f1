"""What imports leave behind, or change, in a process that is going to fork: a fork would cut it off, or give it to all."""

from __future__ import annotations

import _locale
import os
import signal
import time
from collections.abc import Collection, Mapping

from isowsgi.inside.private import theirs

app_signal, app_socket, app_threading = theirs("signal"), theirs("socket"), theirs("threading")  # see `private`

# How long child processes may take to end before they are killed, in seconds: a mount's instances wait for it.
_END_S = 1.0
_LOOK_S = 0.01


def what_is_left(known: Collection[int]) -> str:
    """Say what an import has left behind that a fork would cut off or double, beyond these descriptors; "" if nothing."""
    if has_threads():
        return "a thread"
    for number, target in descriptors().items():
        if number not in known and not _is_code(target):
            return kind_of(target) if target.startswith(("socket:", "pipe:")) else f"an open file ({target})"
    return "a process" if has_children() else ""


def has_threads() -> bool:
    """Whether there is more than the one thread; threads that are no Python's, too."""
    return len(os.listdir("/proc/self/task")) > 1


def names_of_threads() -> list[str]:
    """Return what Python knows of the other threads; a C library's have no name here."""
    try:
        return [str(thread.name) for thread in app_threading.enumerate()][1:]
    except Exception:  # an app may have put anything in its place
        return []


def has_children() -> bool:
    """Whether there is a child process that nobody has waited for."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def end_children() -> None:
    """Ask the child processes to end, and kill those that do not."""
    try:
        with open("/proc/thread-self/children", "rb") as file:
            pids = [int(pid) for pid in file.read().split()]
    except OSError:  # this kernel does not tell them
        return
    for pid in pids:
        _send(pid, signal.SIGTERM)
    until = time.monotonic() + _END_S
    while (left := [pid for pid in pids if not _has_ended(pid)]) and time.monotonic() < until:
        time.sleep(_LOOK_S)
    for pid in left:
        _send(pid, signal.SIGKILL)


def _send(pid: int, number: int) -> None:
    """Send a child process a signal. It is not reaped here, so the number is still its own."""
    try:
        os.kill(pid, number)
    except OSError:  # the app's handler of SIGCHLD has reaped it, or it is another user's now
        pass


def _has_ended(pid: int) -> bool:
    """Whether a child process has ended."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # reaped by a handler of the app's
        return True


def kind_of(target: str) -> str:
    """Return what something open is called: "a socket", "an eventpoll"."""
    kind, _, rest = target.partition(":")
    name = rest.strip("[]") if kind == "anon_inode" else kind
    return f"{'an' if name[:1] in 'aeio' else 'a'} {name}"


def descriptors() -> dict[int, str]:
    """Return what is open: "/folder/file", "socket:[1]", "pipe:[2]", "anon_inode:[eventpoll]"."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # that of the folder
            continue
    return found


def _is_code(path: str) -> bool:
    """Whether a file is a library that is loaded: libffi opens its own, to map more of it for callbacks, and never closes it."""
    if not path.startswith("/"):
        return False
    with open("/proc/self/maps", "rb") as file:  # address perms offset dev inode path (proc(5))
        mapped = [line.rstrip(b"\n").split(maxsplit=5) for line in file]
    return any(b"x" in line[1] and line[-1] == os.fsencode(path) for line in mapped)


def state() -> dict[str, object]:
    """Return what is the whole process', so that a package that changes it when it is imported does so for apps that never import it."""
    umask = os.umask(0o077)
    os.umask(umask)
    with open("/proc/self/limits", encoding="ascii") as file:
        limits = file.read()
    return {
        "the umask": umask,
        "signal handlers": {number: app_signal.getsignal(number) for number in app_signal.valid_signals()},
        "resource limits": limits,
        "the locale": _locale.setlocale(_locale.LC_ALL, None),
        "the default timeout of sockets": app_socket.getdefaulttimeout(),
        "the working directory": os.getcwd(),
    }


def harm(known: Collection[int], before: Mapping[str, object]) -> str:
    """Say what an import has done that all processes would have; "" if nothing.

    Args:
        known: descriptors that were open before it.
        before: the state of before.
    """
    if left := what_is_left(known):
        return f"its import leaves {left} behind"
    now = state()
    changed = [what for what in now if now[what] != before[what]]
    return f"its import changes {changed[0]}, for apps too that do not import it" if changed else ""
