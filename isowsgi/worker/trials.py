"""Which isolation each mount with `isolation = "auto"` gets, found in the background and remembered.

A mount that nobody knows yet boots in the best kind of interpreter, behind a guard that lets it load no extension module of a package: an
app without any is served at once. What needs more is tried in throw-away processes (`decision`), and the verdict is remembered. So no
extension module is ever loaded in a worker that was not tried before, by this worker or an earlier one.

Apps of one box mostly load the same few. A file that one app has loaded with a GIL of its own says by itself that it can do that, any
number of times; so it is vouched for, and another app that meets no other is not tried. Twenty Flask apps cost one or two trials.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from isowsgi.configuration import Mount
from isowsgi.instances.bootorder import BootOrders
from isowsgi.isolation import decision
from isowsgi.isolation.decision import Stamp, Verdict
from isowsgi.isolation.verdicts import Verdicts, key_of
from isowsgi.shared import interpreters
from isowsgi.shared.containment import Containment
from isowsgi.shared.messages import BootOrder

if TYPE_CHECKING:
    from isowsgi.worker.deployment import Deployment

# For a mount without a boot_timeout: a trial must end.
_LONGEST_LOAD_S = 600.0


class Placement:
    """Finds isolations. All methods are the acceptor thread's; the trials run in threads of their own.

    Args:
        orders: writes boot orders.
        containment: ends what a verdict's consequences raise, so that the others are heard.
    """

    def __init__(self, orders: BootOrders, containment: Containment) -> None:
        self._orders = orders
        self._containment = containment
        self._memory = Verdicts()
        self._vouched: dict[str, Stamp] = {}
        self._results: deque[tuple[Deployment, Verdict]] = deque()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # Each trial keeps a core busy; more at a time would only make all of them late, and the mounts that serve slow.
        self._turns = threading.Semaphore(max(len(os.sched_getaffinity(0)), 2))

    def fileno(self) -> int:
        """Return the descriptor that is readable when `read_verdicts` has something to read."""
        return self._bell

    def recall(self, members: Sequence[Mount]) -> Verdict | None:
        """Return what is known of the mounts of one deployment from an earlier trial."""
        verdict = self._memory.recall(key_of(self._order(members)))
        if verdict is not None:
            self._vouch(verdict)
        return verdict

    def vouched(self) -> dict[str, Stamp]:
        """Return the extension files that an app of which nothing is known may load with a GIL of its own."""
        return self._vouched

    def try_out(self, deployment: Deployment, unknown: str | None) -> None:
        """Find an isolation in the background; the result goes to the deployment's `Siting.on_verdict`.

        Args:
            unknown: the extension file that is the reason, if it is one.
        """
        order = self._order(deployment.members)
        # Modules that the app imports only later on are imported by the trial too.
        order = order.replace(loading=order.loading.replace(imports=list(deployment.siting.late_imports)))
        key = key_of(order)
        self._memory.forget(key)
        name = f"isowsgi-trial {deployment.name}"
        try:
            threading.Thread(target=self._try, args=(deployment, order, key, unknown), name=name, daemon=True).start()
        except (RuntimeError, MemoryError) as exc:  # no thread is left
            self._tell(deployment, _no_verdict(exc))

    def read_verdicts(self) -> None:
        os.eventfd_read(self._bell)
        while self._results:
            deployment, verdict = self._results.popleft()
            self._containment.call(f"{deployment.name}: the verdict", deployment.siting.on_verdict, verdict, time.monotonic())

    def _order(self, members: Sequence[Mount]) -> BootOrder:
        return self._orders.write(members, interpreters.best_isolation(), 0, 0, 0)

    def _vouch(self, verdict: Verdict) -> None:
        if verdict.isolation == interpreters.OWN_GIL:
            self._vouched = {**self._vouched, **verdict.extensions}  # other threads read it

    def _try(self, deployment: Deployment, order: BootOrder, key: str, unknown: str | None) -> None:
        with self._turns:
            try:
                verdict = self._find(deployment, order, key, unknown)
            except Exception as exc:  # no process can be started: no memory, no descriptors
                verdict = _no_verdict(exc)
        self._tell(deployment, verdict)

    def _find(self, deployment: Deployment, order: BootOrder, key: str, unknown: str | None) -> Verdict:
        siting = deployment.siting
        if unknown in self._vouched and siting.trials == 1:  # another trial has met it meanwhile
            return Verdict(isolation=interpreters.OWN_GIL, reason="it loads", extensions=self._vouched)
        decide = decision.decide if siting.is_auto else partial(decision.confirm, isolation=siting.isolation)
        verdict = decide(order, timeout_s=deployment.mount.boot_timeout or _LONGEST_LOAD_S)
        if siting.is_auto:
            self._memory.remember(key, verdict)
            self._vouch(verdict)
        return verdict

    def _tell(self, deployment: Deployment, verdict: Verdict) -> None:
        self._results.append((deployment, verdict))
        os.eventfd_write(self._bell, 1)


def _no_verdict(exc: Exception) -> Verdict:
    text = f"cannot test which isolation it supports: {type(exc).__name__}: {exc}"
    return Verdict(isolation=None, reason=text, error=text)
