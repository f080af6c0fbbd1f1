"""An original: a process that has loaded the apps of a mount and forks its copies (`copies = "fork"`), which share that memory.

It is confined and prepared as any process of the mount, before the first import, and loads the apps in its one thread. Then it waits as a
fork server does, see there. A copy continues where the app is loaded: with hooks, warm-up and threads of its own.
"""

from __future__ import annotations

import os
import time

from isowsgi.inside import boot, child, forks, loading, pace, remains
from isowsgi.inside.walls import CannotConfine
from isowsgi.shared.cfunctions import load_ctypes
from isowsgi.shared.containment import one_line
from isowsgi.shared.messages import BootOrder

# How long threads and child processes of an import may take to end: such as have done their work already.
_SETTLE_S = 1.0
_LOOK_S = 0.01


class CannotCopy(Exception):
    """Copies of what was loaded would not be sound, or it cannot be loaded; the text says why."""


def load(order: BootOrder) -> None:
    """Load the apps of a mount; from now on each fork of this process is one of its copies.

    Args:
        order: of a copy; without descriptors but those of log files.

    Raises:
        CannotCopy: end the process.
    """
    try:
        order = child.confine(order)
    except CannotConfine as exc:
        raise CannotCopy(str(exc)) from exc
    child.watch()
    load_ctypes()  # before the app is loaded, see `private`
    ground = boot.Ground(order)
    known = remains.descriptors()
    if order.loading.pause_s:
        pace.slow_down(order.loading.pause_s)
    try:
        ground.apps = {member.mount: loading.load(member.app, member.mount) for member in order.members}
    except BaseException as exc:  # SystemExit too: a script that exits has not loaded
        if forks.is_copy:
            forks.leave()
        raise CannotCopy(one_line(exc)) from exc
    if forks.is_copy:
        forks.leave()
    if order.loading.pause_s:
        pace.speed_up()
    ground.end_lines()
    if obstacle := _obstacle(known, "post_fork" in order.hooks):
        raise CannotCopy(obstacle)
    child.ground = ground


def _obstacle(known: dict[int, str], has_hook: bool) -> str:
    """Say what the apps have left behind at their import that copies cannot do with; "" if nothing.

    Args:
        known: descriptors that were open before.
        has_hook: whether the mount has a hook that closes in a copy what must not be shared.
    """
    until = time.monotonic() + _SETTLE_S
    while (remains.has_threads() or remains.has_children()) and time.monotonic() < until:
        time.sleep(_LOOK_S)
    if remains.has_threads():
        names = ", ".join(remains.names_of_threads()) or "of a C library"
        return f"its import starts a thread ({names}), which a fork would cut off; start it in post_fork"
    if remains.has_children():
        remains.end_children()  # each process will start its own
        return "its import starts a process that still runs, and would be no copy's child; start it in post_fork"
    shared = [target for fd, target in remains.descriptors().items() if known.get(fd) != target and not target.startswith(os.sep)]
    if shared and not has_hook:
        return (
            f"its import leaves {remains.kind_of(shared[0])} open, which all copies would share; open it later, or have post_fork close it"
        )
    return ""
