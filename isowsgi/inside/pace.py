"""Pauses the imports of an app's next generation while others want the processor: the operator waits longer, the neighbours do not.

Imports are long stretches of nothing but CPU time. On a machine with an idle processor nothing changes: the boot pauses only where it had
to wait for a processor, or for the GIL, itself.
"""

from __future__ import annotations

import threading
import time

from isowsgi.inside.private import theirs

_app_sys = theirs("sys")

# CPU time after which a thread that imports may pause.
_STRETCH_S = 0.001

# Share of a stretch that a thread must have waited to take it that others want what it uses.
_WAITED_SHARE = 0.1

# How long it waits and pauses then in all, in stretches: a fifth of a processor is left to it. What it waited counts: on a machine where
# many want a processor it has less than that anyway, its neighbours lose little by it, and pauses would only make the load longer.
_PAUSE_SHARE = 4


class Pacer:
    """A finder that finds nothing; it is there because all imports of modules that are not loaded yet ask it first.

    Attributes:
        left_s: how long the boot may still pause in all.
    """

    def __init__(self) -> None:
        self.left_s = 0.0
        self._thread = 0
        self._ran_s = self._at = 0.0

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Pause, if it is time to."""
        thread, ran_s, at = threading.get_ident(), time.thread_time(), time.monotonic()
        stretch_s = ran_s - self._ran_s
        if thread == self._thread and stretch_s < _STRETCH_S:
            return
        waited_s = at - self._at - stretch_s
        pause_s = min(stretch_s * _PAUSE_SHARE - waited_s, self.left_s)
        if thread == self._thread and waited_s > stretch_s * _WAITED_SHARE and pause_s > 0:
            self.left_s -= pause_s
            time.sleep(pause_s)
            at = time.monotonic()
        self._thread, self._ran_s, self._at = thread, ran_s, at


def slow_down(most_s: float) -> None:
    """Have all imports of this interpreter take their time from now on.

    Args:
        most_s: for all pauses together.
    """
    _pacer.left_s = most_s
    _app_sys.meta_path.insert(0, _pacer)


def speed_up() -> None:
    """End that: what a request imports is waited for."""
    try:
        _app_sys.meta_path.remove(_pacer)
    except Exception:  # an app may have put others, or something else, in the place of all
        _pacer.left_s = 0.0


_pacer = Pacer()
