"""How a request ends: its thread and the watcher decide it between them, each thing once, by which of them comes first.

A request has three tokens, each a list of one, made for that request. The thread that pops a token has it; `list.pop` is one step under any
GIL.

- **open**: the thread takes it to end the request; the watcher to give the request up. While the watcher acts, the thread cannot
  end the request: so neither its connection nor its thread can have passed on to another one. If the thread came first, the watcher
  leaves it alone.
- **app**: is there while the thread runs the app's code. The thread takes it to come out, the watcher to raise RequestTimeout in there. So
  what is raised is raised in that request's app, and what is left of it is taken back before the thread continues.
- **status**: the taker gives the client its status. Nobody else may write a status, or a body after it.

The supervisor may cut the request off at the same time, from outside; with that they agree by the scoreboard, see `shared.judgement`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from isowsgi.shared.cfunctions import load_ctypes
from isowsgi.shared.judgement import is_cut
from isowsgi.shared.rows import ANSWERED, BY_APP, BY_WATCHER, JUDGED

# How long a thread sleeps at a time until the watcher has done what it is at: sending a few bytes and raising an exception takes
# microseconds.
_PAUSE_S = 0.0005

# How many times it looks for a token that neither of the two has. An exception that the app sends to its threads may come between a
# thread's taking it and its noting that: the token is gone then, and nobody to wait for.
_MOST_LOOKS = 20


class Ending:
    """The end of the current request of one serving thread, and of one after the other.

    Attributes:
        ident: the thread's number.
        number: of the thread's current request; each has its own.
        is_timed_out: timed out by the watcher. The client was answered and its connection shut down, or is about to be.
    """

    __slots__ = ("_app", "_is_in_app", "_is_raised", "_is_watcher_busy", "_open", "_status", "_words", "ident", "is_timed_out", "number")

    def __init__(self) -> None:
        self.ident = 0
        self._words: Any = None  # of the row of the current request; of the last one, between two
        self.number = 0
        self.is_timed_out = False
        self._is_in_app = False  # the thread's own note
        self._is_raised = False  # whether the watcher has raised an exception in the thread that may yet come
        self._is_watcher_busy = False
        self._open: list[None] = []
        self._app: list[None] = []
        self._status: list[None] = []

    # For the thread.

    def enter_thread(self) -> None:
        """Say that the calling thread is the one."""
        self.ident = threading.get_ident()

    def begin(self, words: memoryview) -> None:
        """Say that another request begins.

        Args:
            words: of its row, with the request's number.
        """
        self._words = words
        self.is_timed_out = False
        self.number += 1
        self._status = [None]
        self._open = [None]  # last: now the watcher may come

    def enter_app(self) -> bool:
        """Say that the app's code runs from here on; False if it must not, for the request has timed out."""
        self._is_in_app = True
        self._app = [None]
        return not self.is_timed_out  # looked at behind that: either we see that it is, or the watcher sees that we are in there

    def leave_app(self) -> None:
        """Say that the app's code no longer runs; nothing that the watcher raised comes after this."""
        if self._is_in_app:
            try:
                self._app.pop()  # as `_take` does, without the call that each request would pay for
            except IndexError:
                self._take(self._app)
            if self._is_raised:
                self._take_back()
            self._is_in_app = False

    def claim(self) -> bool:
        """Take the right to give the client its status; who gets True must send one."""
        try:
            self._status.pop()
        except IndexError:
            return False
        words = self._words
        words[ANSWERED] = BY_APP
        return not (words[JUDGED] and is_cut(words))

    def hold_status(self) -> bool:
        """Claim the client's status; True: it is held until `release_status`."""
        try:
            self._status.pop()
        except IndexError:
            return False
        return True

    def release_status(self) -> None:
        self._status.append(None)

    def hold_open(self) -> list[None] | None:
        """Keep the request from ending or timing out; return what `release_open` takes, or None: the request has ended or is about to."""
        token = self._open
        return token if self._take(token) else None

    def release_open(self, token: list[None]) -> None:
        """Let the request end that was kept from it: that one, for its thread waits only so long, and may be at another one by now."""
        token.append(None)

    def end(self) -> bool:
        """End the request; to be called again if an exception comes out of it, and without effect if it has ended.

        The row must already say that nothing is being served.

        Returns:
            whether the connection must be closed, since the request timed out, inside or outside.
        """
        try:
            self._open.pop()  # see `leave_app`
        except IndexError:
            self._take(self._open)
        if self._is_raised:
            self._take_back()
        words = self._words
        if words[JUDGED] and is_cut(words):
            return True
        return self.is_timed_out

    def _take(self, token: list[None]) -> bool:
        """Take a token, or wait until the watcher, who has it, has done what it took it for; return whether it is the caller's."""
        looks = 0
        while True:
            try:
                token.pop()
                return True
            except IndexError:
                pass
            # In this order: the watcher sets is_timed_out before it clears _is_watcher_busy.
            if not self._is_watcher_busy:
                looks += 1
                if self.is_timed_out or looks > _MOST_LOOKS:
                    return False
            time.sleep(_PAUSE_S)

    def _take_back(self) -> None:
        set_async_exception(self.ident, None)
        self._is_raised = False

    # For the watcher.

    def time_out(
        self, number: int, is_still: Callable[[], bool], act: Callable[[bool], None], exception: type[BaseException] | None
    ) -> bool:
        """Time a request out, unless it has ended or made progress.

        Args:
            number: of the request that was looked at.
            is_still: whether it still is as it was when that was decided; asked once the request can no longer end.
            act: shuts the connection down; its argument says whether the client gets a status first. It must raise nothing.
            exception: to be raised in the thread, if it runs the app's code.

        Returns:
            whether it was timed out.
        """
        if number != self.number:
            return False
        self._is_watcher_busy = True
        try:
            token = self._open
            try:
                token.pop()
            except IndexError:
                return False
            if number != self.number or not is_still():
                token.append(None)
                return False
            self.is_timed_out = True
            words = self._words
            words[ANSWERED] = BY_WATCHER
            if not (words[JUDGED] and is_cut(words)):
                act(self.hold_status())
            if exception is not None:
                self._raise(number, exception)
            return True
        finally:
            self._is_watcher_busy = False

    def interrupt(self, number: int, exception: type[BaseException]) -> None:
        """Raise an exception in the app of a request that was timed out without one."""
        self._is_watcher_busy = True
        try:
            self._raise(number, exception)
        finally:
            self._is_watcher_busy = False

    def _raise(self, number: int, exception: type[BaseException]) -> None:
        token = self._app
        if number != self.number:  # looked at behind that, so it is this request's token
            return
        try:
            token.pop()
        except IndexError:
            return
        self._is_raised = True
        set_async_exception(self.ident, exception)


def set_async_exception(ident: int, exception: type[BaseException] | None) -> None:
    """Raise an exception in a thread of this interpreter, between two bytecodes; None takes back one that has not come yet."""
    ctypes = load_ctypes()
    if ctypes is None:  # shutting the connection down must do
        return
    raised = None if exception is None else ctypes.py_object(exception)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), raised)
