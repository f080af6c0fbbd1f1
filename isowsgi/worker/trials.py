"""Which isolation each mount with `isolation = "auto"` gets, found in the background and remembered.

A mount that nobody knows yet boots in the best kind of interpreter, behind a guard that lets it load no extension module of a package: an
app without any is served at once. At the first of them the boot waits (`inside.permission`), and the app is tried as a whole in throw-away
processes (`decision`). If that is where it can live, the boot continues; else it fails, and the app is loaded where it can. The verdict is
remembered. So no extension module is ever loaded in a worker that was not tried before, by this worker or an earlier one.

Apps of one box mostly load the same few. A file that one app has loaded with a GIL of its own says by itself that it can do that, any
number of times; so it is vouched for, and another app that meets no other is not tried. A file because of which alone an app can be in no
interpreter has others that meet it in a process at once. Apps that meet a file while the first of them is tried wait for that, and so does
another mount of the same app. Twenty Flask apps cost one trial, and so do twenty with pydantic.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from isowsgi.configuration import Mount
from isowsgi.inside.extensions import stamp_of
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


# For how many trials, one after the other, mounts wait that come to the same file, before each of them is tried.
_MOST_IN_VAIN = 2


@dataclass(slots=True, eq=False)
class _Trial:
    """One that is under way.

    Attributes:
        key: of the app, and modules that it imports later on; None: its verdict is nobody else's.
        unknown: the extension file that is the reason, if it is one.
        found: its verdict, where that is known; it is only to be remembered.
        followers: mounts that wait for it, and the file at which each does.
    """

    deployment: Deployment
    key: tuple[str, tuple[str, ...]] | None
    unknown: str | None
    found: Verdict | None = None
    followers: list[tuple[Deployment, tuple[str, tuple[str, ...]], str | None]] = field(default_factory=list)


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
        self._unfit: dict[str, tuple[Stamp, str]] = {}  # files that are good for no interpreter, with their stamps, and why
        self._trials: list[_Trial] = []
        self._in_vain: Counter[str] = Counter()  # trials that began with a file and did not vouch for it
        self._results: deque[tuple[_Trial, Verdict]] = deque()
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

    def try_out(self, deployment: Deployment, unknown: str | None) -> bool:
        """Find an isolation in the background; the result goes to the deployment's `Siting.on_verdict`.

        Args:
            unknown: the extension file that is the reason, if it is one.

        Returns:
            whether a trial is made for it; else what others have found, or are about to, is enough.
        """
        siting = deployment.siting
        order = self._order(deployment.members)
        # Modules that the app imports only later on are imported by the trial too.
        order = order.replace(loading=order.loading.replace(imports=list(siting.late_imports)))
        name, key = key_of(order), None
        if siting.is_auto:
            key = name, tuple(siting.late_imports)
            if deployment.slots.asking and self._is_vouched(unknown):
                self._tell(_Trial(deployment, None, unknown), self._by_others())
                return False
            for trial in self._trials:
                if trial.key == key or self._may_vouch(trial, unknown):
                    trial.followers.append((deployment, key, unknown))
                    return False
        self._memory.forget(name)
        trial = _Trial(deployment, key, unknown, found=self._by_unfit(unknown) if key else None)
        title = f"isowsgi-trial {deployment.name}"
        try:
            threading.Thread(target=self._try, args=(trial, order, name), name=title, daemon=True).start()
        except (RuntimeError, MemoryError) as exc:  # no thread is left
            self._tell(trial, _no_verdict(exc))
        else:
            self._trials.append(trial)
        return trial.found is None

    def read_verdicts(self) -> None:
        os.eventfd_read(self._bell)
        while self._results:
            trial, verdict = self._results.popleft()
            if trial in self._trials:
                self._trials.remove(trial)
            self._containment.call(f"{trial.deployment.name}: the verdict", self._settle, trial, verdict)

    def _settle(self, trial: _Trial, verdict: Verdict) -> None:
        """Let all mounts know that wait for a trial; for those that it does not concern another one begins."""
        if trial.key is not None:
            self._vouch(verdict)
            if trial.unknown is not None and not self._is_vouched(trial.unknown):
                self._in_vain[trial.unknown] += 1
        call = self._containment.call
        call(f"{trial.deployment.name}: the verdict", trial.deployment.siting.on_verdict, verdict, time.monotonic())
        for deployment, key, unknown in trial.followers:
            if key == trial.key:
                call(f"{deployment.name}: the verdict", deployment.siting.on_verdict, verdict, time.monotonic())
            else:
                call(f"{deployment.name}: its trial", self._try_out_again, deployment, unknown)

    def _try_out_again(self, deployment: Deployment, unknown: str | None) -> None:
        try:
            if self.try_out(deployment, unknown):
                deployment.siting.tell_of_trial()
        except Exception as exc:
            deployment.siting.on_verdict(_no_verdict(exc), time.monotonic())
            raise

    def _may_vouch(self, trial: _Trial, unknown: str | None) -> bool:
        """Whether a trial that is under way may tell enough of a file for others."""
        if unknown is None or trial.key is None or trial.unknown != unknown:
            return False
        return self._in_vain[unknown] < _MOST_IN_VAIN and interpreters.best_isolation() == interpreters.OWN_GIL

    def _by_others(self) -> Verdict:
        return Verdict(isolation=interpreters.OWN_GIL, reason="it loads", extensions=self._vouched, is_shared=True)

    def _by_unfit(self, path: str | None) -> Verdict | None:
        """Return the verdict on an app that loads a file which is good for no interpreter; None: it is no such file, as far as is known."""
        if path is None or path not in self._unfit:
            return None
        stamp, reason = self._unfit[path]
        if list(stamp) != stamp_of(path):
            return None
        return Verdict(isolation=interpreters.PROCESS, reason=reason, extensions={path: stamp}, unfit={path: stamp}, is_shared=True)

    def _is_vouched(self, path: str | None) -> bool:
        stamp = None if path is None else self._vouched.get(path)
        return stamp is not None and path is not None and list(stamp) == stamp_of(path)

    def _order(self, members: Sequence[Mount]) -> BootOrder:
        return self._orders.write(members, interpreters.best_isolation(), 0, 0, 0)

    def _vouch(self, verdict: Verdict) -> None:
        own_gil = {**verdict.own_gil, **(verdict.extensions if verdict.isolation == interpreters.OWN_GIL else {})}
        if own_gil:
            self._vouched = {**self._vouched, **own_gil}
        self._unfit.update({path: (stamp, verdict.reason) for path, stamp in verdict.unfit.items()})

    def _try(self, trial: _Trial, order: BootOrder, name: str) -> None:
        if trial.found is not None:
            self._memory.remember(name, trial.found)
            self._tell(trial, trial.found)
            return
        with self._turns:
            try:
                verdict = self._find(trial.deployment, order, name)
            except Exception as exc:  # no process can be started: no memory, no descriptors
                verdict = _no_verdict(exc)
        self._tell(trial, verdict)

    def _find(self, deployment: Deployment, order: BootOrder, name: str) -> Verdict:
        siting = deployment.siting
        decide = decision.decide if siting.is_auto else partial(decision.confirm, isolation=siting.isolation)
        verdict = decide(order, timeout_s=deployment.mount.boot_timeout or _LONGEST_LOAD_S)
        if siting.is_auto:
            self._memory.remember(name, verdict)
        return verdict

    def _tell(self, trial: _Trial, verdict: Verdict) -> None:
        self._results.append((trial, verdict))
        os.eventfd_write(self._bell, 1)


def _no_verdict(exc: Exception) -> Verdict:
    text = f"cannot test which isolation it supports: {type(exc).__name__}: {exc}"
    return Verdict(isolation=None, reason=text, error=text)
