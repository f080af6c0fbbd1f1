"""The original of a mount's copies, as a worker has it: started with the first of them, and ended with the last (`copies = "fork"`).

Nothing depends on it. If the app cannot be loaded there, leaves a thread behind, or the original dies, each process loads the app by
itself, as without it, and the log says so in a line.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from isowsgi.instances.controlgroups import ControlGroups
from isowsgi.instances.forkedprocess import ForkedProcess, ForkFailed
from isowsgi.instances.forkserver import ForkServer, ModulesDropped, Replaceable
from isowsgi.instances.privatefolder import with_folder
from isowsgi.shared.births import FIRST_PLACE, LoadOrder
from isowsgi.shared.messages import BootOrder, Descriptors


class Original(ForkServer):
    """A process that has loaded the apps of a mount, and forks its copies.

    Args:
        base: a warm server, from which it is forked.
        order: of a copy.
    """

    def __init__(self, base: ForkServer, order: BootOrder) -> None:
        super().__init__(base.key.python, base.environ, {})
        self._base = base
        self._order = order

    def _launch(self, socket_of_server: socket.socket) -> ForkedProcess:
        boot = self._order
        door = -1 if boot.fds is None else boot.fds.door
        fds = [*dict.fromkeys([*boot.log_files.values(), *([door] if door >= 0 else [])])]
        boot = boot.replace(fds=None if door < 0 else Descriptors(board=-1, channel=-1, door=door))
        boot = boot.renumbered({fd: FIRST_PLACE + 1 + place for place, fd in enumerate(fds)})
        order = LoadOrder(release=boot.release, server=-1, worker_pid=os.getpid(), boot=boot)
        return self._base.fork_server(order, socket_of_server, fds)


def begin(base: ForkServer, order: BootOrder) -> Original:
    """Return one that loads the apps, from now on; errors are those of `ForkServer.fork`."""
    made = Original(base, order)
    try:
        made.launch()
    except BaseException:
        made.end()
        raise
    return made


class Edition:
    """One loading of a mount's app, of which its instances are copies. Any thread may call it.

    Attributes:
        limit_s: how long the app may take to be loaded; 0: without limit.
        groups: of the worker, for what limits the original.
    """

    def __init__(self) -> None:
        self.limit_s = 0.0
        self.groups: ControlGroups | None = None
        self._lock = threading.Lock()
        self._copies = 0
        self._reset()

    def _reset(self) -> None:
        self._original: Original | None = None
        self._has_begun = False
        self._is_given_up = False
        self._is_settled = threading.Event()
        self._owned = contextlib.ExitStack()

    @contextlib.contextmanager
    def membership(self) -> Iterator[None]:
        """Be one of its copies; the original is there for as long as one of them is."""
        with self._lock:
            self._copies += 1
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._copies -= 1
            if self._copies:
                return
            original, owned = self._original, self._owned
            self._reset()
        with owned:
            if original is not None:
                original.end()

    def fork(self, order: BootOrder, begin: Callable[[BootOrder], Original | None], log: Any) -> ForkedProcess | None:
        """Return a new process that is a copy of the app, and about to boot; None: load it there. For who is in a `membership`; it waits.

        Args:
            order: with descriptors by their numbers here; they stay the caller's.
            begin: starts an original; None if there is no server for it.
            log: gunicorn's logger.
        """
        with self._lock:
            is_first, self._has_begun = not self._has_begun, True
        if is_first:
            self._load(order, begin, log)
        self._is_settled.wait(self.limit_s or None)
        original = self._original
        if original is None or not original.is_warm(0.0):
            return None
        try:
            return original.fork(order.replace(loading=order.loading.replace(pause_s=0.0)))  # it has nothing to load
        except (ForkFailed, Replaceable) as exc:
            with self._lock:
                was_first, self._original = self._original is original, None
            original.end()
            if was_first:
                text = "%s: new copies are not forked any more, so each loads the app by itself until the next reload: its original: %s"
                log.warning(text, order.tag, exc)
        except OSError:  # no descriptor or no memory is left; a start may need less
            pass
        return None

    def give_up(self) -> None:
        """Wait no longer for the app to be loaded; does not wait."""
        with self._lock:
            original = None if self._is_settled.is_set() else self._original
            self._is_given_up = True
        if original is not None:
            original.kill()

    def _load(self, order: BootOrder, begin: Callable[[BootOrder], Original | None], log: Any) -> None:
        """Start the original, and wait until it has loaded the app."""
        original, problem = None, "there is no fork server for it"
        try:
            order = self._owned.enter_context(with_folder(order))
            if self.groups is not None:
                order, _ = self._owned.enter_context(self.groups.hold(order))
            original = begin(order)
            if original is not None:
                with self._lock:
                    self._original = original
                original.wait_warm(self.limit_s or None)
                original.is_settled.set()
                return
        except (ForkFailed, ModulesDropped, OSError) as exc:
            problem = str(exc)
        finally:
            if original is not None and not original.is_warm(0.0):
                self._original = None
                original.end()
            self._is_settled.set()
        if not self._is_given_up:
            log.warning("%s: copies are not forked, so each loads the app by itself: %s", order.tag, problem)
