"""Threads in which an app's code runs: of the app's own `threading`, and made before the app is loaded, which may patch it."""

from __future__ import annotations

import _thread
from collections.abc import Callable

from isowsgi.inside.private import theirs

# So the app's `threading` knows them, and the threads that they start are like them: no daemons.
_AppThread, _current_thread = theirs("threading").Thread, theirs("threading").current_thread


# How often who waits for a lock looks whether there is still something to wait for: an exception that an app raises in a thread may come
# just after the thread got the lock, and then nobody gives it back. That is rare, and each mount has a thread that waits for its end: with
# a look a second, a thousand of them would take 4 % of a core.
_RECHECK_S = 10.0


def introduce(name: str) -> None:
    """Tell the app's `threading` what the calling thread is called, which was made by ours."""
    try:
        _current_thread().name = name
    except Exception:  # patched
        return


class AppThread:
    """A thread that has been started.

    Args:
        run: called in it; must raise nothing.

    Raises:
        RuntimeError: the system has no room for another one.
    """

    def __init__(self, run: Callable[[], None], name: str) -> None:
        self._run = run
        self._end = Gate()
        _AppThread(target=self._bootstrap, name=name, daemon=False).start()

    def _bootstrap(self) -> None:
        try:
            self._run()
        finally:
            self._end.open()

    def join(self) -> None:
        """Wait for its end."""
        self._end.pass_through()


class Gate:
    """Closed until it is opened, once and for ever. Waiting cannot be interrupted."""

    def __init__(self) -> None:
        self._is_open = False
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def open(self) -> None:
        self._is_open = True
        self._lock.release()

    def pass_through(self) -> None:
        """Wait until it is open."""
        while not self._is_open:
            try:
                if self._lock.acquire(timeout=_RECHECK_S):
                    self._lock.release()  # for the next one
            except BaseException:
                continue
