"""Which home each mount with `isolation = "auto"` gets, found in the background and remembered.

A mount that nobody knows yet boots in the best kind of interpreter, behind a guard that lets it load no extension module of a package: an
app without any is served at once. What needs more is tried in processes to throw away (`housing`), and the verdict is remembered. So no
extension module is ever loaded in a worker that was not tried before, by this worker or an earlier one.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from isowsgi import housing, interpreters
from isowsgi.bootorder import Orders
from isowsgi.configfile import Mount
from isowsgi.home import Home
from isowsgi.housing import Verdict
from isowsgi.verdicts import Verdicts, key_of

# For a mount without a boot_timeout: a trial must end.
_LONGEST_LOAD_S = 600.0

Members = Sequence[tuple[int, Mount]]


class _Result(NamedTuple):
    home: Home
    verdict: Verdict


class Placement:
    """Decides where homes are. All methods are the acceptor thread's; the trials run in threads of their own.

    Args:
        orders: writes what instances are told.
        on_verdict: takes a home and the verdict on it; called by `read_verdicts`.
    """

    def __init__(self, orders: Orders, on_verdict: Callable[[Home, Verdict], None]) -> None:
        self._orders = orders
        self._on_verdict = on_verdict
        self._memory = Verdicts()
        self._results: deque[_Result] = deque()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # Each trial keeps a core busy; more at a time would only make all of them late, and the mounts that serve slow.
        self._turns = threading.Semaphore(max(len(os.sched_getaffinity(0)), 2))

    def fileno(self) -> int:
        """Return the descriptor that is readable when `read_verdicts` has something to read."""
        return self._bell

    def recall(self, members: Members) -> Verdict | None:
        """Return what is known of the mounts of one home from an earlier trial."""
        return self._memory.recall(key_of(self._order(members)))

    def try_out(self, home: Home, members: Members, imports: Sequence[str]) -> None:
        """Find a home in the background; `on_verdict` is told.

        Args:
            imports: modules that the app imports only later on, to be imported by the trial too.
        """
        order = self._order(members) | {"imports": list(imports)}
        key = key_of(order)
        self._memory.forget(key)
        threading.Thread(target=self._try, args=(home, order, key), name=f"isowsgi-trial {home.name}", daemon=True).start()

    def read_verdicts(self) -> None:
        os.eventfd_read(self._bell)
        while self._results:
            self._on_verdict(*self._results.popleft())

    def _order(self, members: Members) -> dict[str, Any]:
        return self._orders.write(members, interpreters.best_isolation(), 0, 0, 0)

    def _try(self, home: Home, order: dict[str, Any], key: str) -> None:
        with self._turns:
            try:
                decide = housing.decide if home.is_auto else partial(housing.confirm, isolation=home.isolation)
                verdict = decide(order, timeout_s=home.mount.boot_timeout or _LONGEST_LOAD_S)
            except Exception as exc:  # no process can be started: no memory, no descriptors
                text = f"its home cannot be found out: {type(exc).__name__}: {exc}"
                verdict = Verdict(isolation=None, reason=text, error=text)
            else:
                if home.is_auto:
                    self._memory.remember(key, verdict)
        self._results.append(_Result(home, verdict))
        os.eventfd_write(self._bell, 1)
