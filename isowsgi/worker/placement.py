"""Which home each mount with `isolation = "auto"` gets, found in the background and remembered.

A mount that nobody knows yet boots in the best kind of interpreter, behind a guard that lets it load no extension module of a package: an
app without any is served at once. What needs more is tried in processes to throw away (`decision`), and the verdict is remembered. So no
extension module is ever loaded in a worker that was not tried before, by this worker or an earlier one.

Apps of one box mostly load the same few. A file that one app has loaded with a GIL of its own says by itself that it can do that, any
number of times; so it is vouched for, and another app that meets no other is not tried. Twenty Flask apps cost one or two trials.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from isowsgi.configuration import Mount
from isowsgi.instances.bootorder import Orders
from isowsgi.isolation import decision
from isowsgi.isolation.decision import Stamp, Verdict
from isowsgi.isolation.verdicts import Verdicts, key_of
from isowsgi.shared import interpreters
from isowsgi.worker.deployment import Home

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
        self._vouched: dict[str, Stamp] = {}
        self._results: deque[_Result] = deque()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # Each trial keeps a core busy; more at a time would only make all of them late, and the mounts that serve slow.
        self._turns = threading.Semaphore(max(len(os.sched_getaffinity(0)), 2))

    def fileno(self) -> int:
        """Return the descriptor that is readable when `read_verdicts` has something to read."""
        return self._bell

    def recall(self, members: Members) -> Verdict | None:
        """Return what is known of the mounts of one home from an earlier trial."""
        verdict = self._memory.recall(key_of(self._order(members)))
        if verdict is not None:
            self._vouch(verdict)
        return verdict

    def vouched(self) -> dict[str, Stamp]:
        """Return the extension files that an app of which nothing is known may load with a GIL of its own."""
        return self._vouched

    def try_out(self, home: Home, members: Members, imports: Sequence[str], unknown: str | None) -> None:
        """Find a home in the background; `on_verdict` is told.

        Args:
            imports: modules that the app imports only later on, to be imported by the trial too.
            unknown: the extension file that is the reason, if it is one.
        """
        order = self._order(members) | {"imports": list(imports)}
        key = key_of(order)
        self._memory.forget(key)
        threading.Thread(target=self._try, args=(home, order, key, unknown), name=f"isowsgi-trial {home.name}", daemon=True).start()

    def read_verdicts(self) -> None:
        os.eventfd_read(self._bell)
        while self._results:
            self._on_verdict(*self._results.popleft())

    def _order(self, members: Members) -> dict[str, Any]:
        return self._orders.write(members, interpreters.best_isolation(), 0, 0, 0)

    def _vouch(self, verdict: Verdict) -> None:
        if verdict.isolation == interpreters.OWN_GIL:
            self._vouched = {**self._vouched, **verdict.extensions}  # other threads read it

    def _try(self, home: Home, order: dict[str, Any], key: str, unknown: str | None) -> None:
        with self._turns:
            if unknown in self._vouched and home.trials == 1:  # another trial has met it meanwhile
                verdict = Verdict(isolation=interpreters.OWN_GIL, reason="it loads", extensions=self._vouched)
                self._tell(home, verdict)
                return
            try:
                decide = decision.decide if home.is_auto else partial(decision.confirm, isolation=home.isolation)
                verdict = decide(order, timeout_s=home.mount.boot_timeout or _LONGEST_LOAD_S)
            except Exception as exc:  # no process can be started: no memory, no descriptors
                text = f"its home cannot be found out: {type(exc).__name__}: {exc}"
                verdict = Verdict(isolation=None, reason=text, error=text)
            else:
                if home.is_auto:
                    self._memory.remember(key, verdict)
                    self._vouch(verdict)
        self._tell(home, verdict)

    def _tell(self, home: Home, verdict: Verdict) -> None:
        self._results.append(_Result(home, verdict))
        os.eventfd_write(self._bell, 1)
