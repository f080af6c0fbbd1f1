"""The supervisor: keeps each mount served. It makes instances, passes on what they report, and watches over all mounts together.

On the acceptor's thread; nothing here waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from isowsgi.configuration import Config, Mount
from isowsgi.instances.bootorder import Orders
from isowsgi.instances.housed import HousedInstance
from isowsgi.instances.interpreter import InterpreterInstance
from isowsgi.instances.lifecycle import ENDS, State
from isowsgi.instances.main import MainInstance
from isowsgi.instances.process import ProcessInstance
from isowsgi.isolation import sharing
from isowsgi.isolation.decision import Verdict
from isowsgi.shared import interpreters, refusals
from isowsgi.shared.scoreboard import REQUESTS, Scoreboard
from isowsgi.worker.acceptor import Acceptor, NotServing
from isowsgi.worker.deployment import Home, Instance
from isowsgi.worker.incidents import Incidents, incident
from isowsgi.worker.placement import Placement
from isowsgi.worker.report import Reporter, rss_bytes
from isowsgi.worker.turns import Turns

# Trials of a mount that loads other extension modules each time, before it goes to a process of its own.
_MOST_TRIALS = 3

# How long a replaced mount's memory may take to be given back before the next look at the whole.
_RSS_PAUSE_S = 15.0


class Supervisor:
    """Owns all instances of this worker.

    Args:
        config: the mounts.
        orders: writes what instances are told.
        board: the worker's scoreboard.
        log: gunicorn's logger.
        drain_s: how long requests of a replaced instance may take to end.
        quarantined: patterns that crashed workers too often; they are answered 503.
        moved: patterns that crashed workers too often and shall live in a process of their own.
        suspects: patterns that were being loaded when a worker died.
        on_files: takes files that, once changed, should make the worker reload; None if nobody asked.
    """

    def __init__(
        self,
        *,
        config: Config,
        orders: Orders,
        board: Scoreboard,
        log: Any,
        drain_s: float,
        quarantined: Collection[str] = (),
        moved: Collection[str] = (),
        suspects: Collection[str] = (),
        on_files: Callable[[list[str]], None] | None,
    ) -> None:
        self._limits = config.limits
        self.mounts = config.mounts
        self._orders = orders
        self._board = board
        self._log = log
        self._on_files = on_files
        self._acceptor: Acceptor | None = None
        self._reporter: Reporter | None = None
        self._capacity = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_stopping = False
        self._leaked = 0  # interpreters ended on a release that keeps their memory
        self._rss_next = 0.0
        self._rss_asked = False
        self.rss_at_start = 0  # MiB, before the first mount was loaded
        self.on_stacks: Callable[[Instance, Mapping[str, Any]], None] | None = None  # takes the answers to `Instance.ask_stacks`
        self.incidents: dict[Home, Incidents] = {}
        self._environ = dict(os.environ)  # before an app in the main interpreter changes it
        self._placement = Placement(orders, self._on_verdict)
        self._turns = Turns()
        self.homes: list[Home] = []
        self._members_of: dict[Home, list[tuple[int, Mount]]] = {}
        self._home_of: dict[int, Home] = {}  # by the mount's number; those of a group have the same one
        for members in _groups(config.mounts):
            mount = members[0][1]
            home = Home(
                members=[member for _, member in members],
                make=partial(self._make, members),
                released=partial(self._release, [number for number, _ in members]),
                log=log,
                drain_s=drain_s,
                isolation=interpreters.PROCESS if any(member.pattern in moved for _, member in members) else _isolation_of(mount),
                try_out=self._try_out,
                take_turn=self._turns.take,
                is_quarantined=any(member.pattern in quarantined for _, member in members),
                is_suspect=any(member.pattern in suspects for _, member in members),
            )
            self.homes.append(home)
            self._members_of[home] = members
            self.incidents[home] = Incidents()
            self._home_of |= dict.fromkeys((number for number, _ in members), home)

    def start(self, acceptor: Acceptor) -> None:
        """Boot every mount that is not lazy, all side by side."""
        self._acceptor = acceptor
        self._reporter = Reporter(self._board, self.mounts, self._home_of, self._orders, acceptor)
        acceptor.watch(self._capacity, self._on_capacity)
        acceptor.watch(self._placement.fileno(), self._placement.read_verdicts)
        interpreters.preload()
        self.rss_at_start = rss_mib()
        now = time.monotonic()
        for home, members in self._members_of.items():
            self._recall(home, members)  # of all of them first: what one may load, others may
        for home in self.homes:
            if home.is_quarantined:
                self._log.error("%s: crashed its worker too often; it answers 503 until the next reload", home.mount.pattern)
            elif not home.mount.lazy:
                home.start(now)  # without effect if the operator has stopped it
        self._reporter.publish(now)

    def choose(self, mount: int) -> Instance | NotServing:
        return self._home_of[mount].choose(time.monotonic())

    def replace(self, pattern: str, reason: str) -> bool:
        """Replace one mount, with those of its group, by a new generation; False if there is no such mount."""
        homes = [home for number, home in self._home_of.items() if self.mounts[number].pattern == pattern]
        for home in homes:
            home.replace(reason, time.monotonic())
        return bool(homes)

    def tick(self) -> None:
        """Do what time has made due; to be called about once a second."""
        if self._is_stopping:
            return
        now = time.monotonic()
        for home in self.homes:
            home.tick(now)
        self._turns.pass_on(now)
        self._look_at_memory(now)
        if self._reporter is not None:
            self._reporter.tick(now)

    def restart_reason(self) -> str | None:
        """Say why the worker should be replaced by a new one, gracefully, or None."""
        limits = self._limits
        for home in self.homes:
            if home.restart_reason:
                return home.restart_reason
        # A boot that hangs would hang in the next worker too.
        stuck = sum(instance.state is State.STUCK and instance.is_loaded for instance in self._instances())
        if stuck > limits.max_stuck:
            return f"{stuck} instances are stuck, max_stuck is {limits.max_stuck}"
        if self._leaked > limits.max_leaked:
            return f"{self._leaked} interpreters were ended on a Python that keeps their memory, max_leaked is {limits.max_leaked}"
        if self._rss_asked and time.monotonic() > self._rss_next and (rss := rss_mib()) > limits.max_rss:
            return f"it has {rss} MiB, max_rss is {limits.max_rss}, also after the mount that grew most was replaced"
        return None

    def is_settled(self) -> bool:
        """Whether every mount that was started serves or has failed."""
        return all(home.is_settled() for home in self.homes)

    def nothing_serves(self) -> bool:
        return not any(home.is_serving() or home.is_asleep() or home.is_stopped for home in self.homes)

    def requests(self) -> int:
        """Return how many requests the instances have begun to serve."""
        return self._board.total(REQUESTS)

    def reopen_logs(self) -> None:
        for instance in self._instances():
            instance.reopen_logs()

    def finish(self) -> None:
        """Tell every instance that its next response on each connection is the last."""
        self._is_stopping = True
        for home in self.homes:
            home.finish()
        if self._reporter is not None:
            self._reporter.stop(time.monotonic())

    def stop(self) -> None:
        """Let every instance end its threads and run its app's exit functions."""
        self._is_stopping = True
        for home in self.homes:
            home.stop()

    def lost_connections(self) -> int:
        """Return how many connections are held by threads that do not come out of their requests; their clients were answered."""
        return sum(len(instance.requests_in_flight()) for instance in self._instances() if instance.state is State.STUCK)

    def has_ended(self) -> bool:
        """Whether all that ever served has ended; an app that is still being loaded has no exit functions worth waiting for."""
        return not any(instance.is_loaded for instance in self._instances() if instance.state is not State.STUCK)

    def abandon(self) -> list[str]:
        """Give up on instances that did not end; return their tags."""
        left = [instance for instance in self._instances() if instance.is_loaded and instance.state is State.DRAINING]
        for instance in left:
            instance.abandon()
        return [instance.tag for instance in left]

    def _instances(self) -> list[Instance]:
        """Return all instances that have not ended."""
        return [instance for home in self.homes for instance in home.instances() if instance.state not in ENDS]

    def _release(self, numbers: list[int]) -> None:
        assert self._acceptor is not None, "instances exist since start()"
        for number in numbers:
            self._acceptor.release(number)

    def _on_capacity(self) -> None:
        assert self._acceptor is not None, "watched since start()"
        os.eventfd_read(self._capacity)
        self._acceptor.on_capacity()

    def _make(self, members: list[tuple[int, Mount]], isolation: str, slot: int, generation: int) -> HousedInstance:
        acceptor = self._acceptor
        assert acceptor is not None, "instances are made since start()"
        home = self._home_of[members[0][0]]
        is_known = self._recall(home, members)
        if is_known:
            isolation = home.isolation
        extensions = home.extensions if is_known or isolation != interpreters.OWN_GIL else self._placement.vouched()
        first_row = self._board.allot(self._orders.threads_of(members[0][1]), [number for number, _ in members], isolation)
        order = self._orders.write(members, isolation, slot, generation, first_row, extensions, is_replacement=home.is_serving())
        everywhere = {"board": self._board.fd, **self._orders.shared_fds}
        shared_fds = {
            **everywhere,
            "returns": acceptor.returns_fd,
            "lingering": acceptor.lingering_fd,
            "capacity": self._capacity,
        }
        instance: HousedInstance
        if isolation == interpreters.PROCESS:
            instance = ProcessInstance(order, everywhere, self._board, acceptor, self._environ)
        elif isolation == interpreters.MAIN:
            instance = MainInstance(order, shared_fds, self._board, self._log)
        else:
            instance = InterpreterInstance(order, shared_fds, self._board)
        acceptor.watch(instance.fileno(), partial(self._on_reports, home, instance))
        return instance

    def _recall(self, home: Home, members: list[tuple[int, Mount]]) -> bool:
        """Settle a home by what an earlier trial found; return whether it is settled."""
        if home.is_auto and not home.reason:
            verdict = self._placement.recall(members)
            if verdict is None or verdict.isolation is None:
                return False
            home.settle(verdict.isolation, verdict.reason, verdict.extensions)
            home.late_imports = list(verdict.imports)
        return True

    # What instances report.

    def _on_reports(self, home: Home, instance: HousedInstance) -> None:
        now = time.monotonic()
        for report in instance.read_reports():
            event = report["event"]
            if event == "ready":
                is_news = home.mount.isolation != instance.isolation != interpreters.best_isolation()
                where = f"{instance.isolation}: {home.why()}" if is_news else instance.isolation
                self._log.info("%s: serving, loaded in %.2f s (%s)", instance.tag, instance.boot_s, where)
                home.on_ready(instance, now)
                self._look_for_losses(home, instance)
            elif event == "failed" and instance.is_loaded:
                self._log.error("%s: broke off: %s\n%s", instance.tag, instance.error, instance.traceback)
            elif event == "failed":
                self._on_boot_failed(home, instance, now)
            elif event == "stuck":
                self._log.error("%s: a thread is stuck in its request; the instance is replaced\n%s", instance.tag, report["stack"])
                line, _, stack = report["stack"].partition("\n")
                self._note(home, instance, "stuck", "a thread does not come out of its request", stack, line)
                home.on_stuck(instance, now)
            elif event == "refused":
                self._on_refused(home, instance, report["name"], report["error"])
            elif event == "exception":
                self._note(home, instance, event, report["error"], report["traceback"], report["request"])
            elif event == "stacks" and self.on_stacks is not None:
                self.on_stacks(instance, report)
            elif event == "changed":
                home.replace(f"{report['file']} has changed", now)
            elif event == "measured":
                self._on_measured(now)
            elif event == "files" and self._on_files is not None:
                self._on_files(report["files"])
            elif event == "closed":
                self._on_closed(home, instance, now)
            if self._reporter is not None:
                self._reporter.note(home, instance, report)
        self._turns.pass_on(now)
        if self._reporter is not None:
            self._reporter.publish_soon(now)

    def _on_boot_failed(self, home: Home, instance: HousedInstance, now: float) -> None:
        if home.is_auto and instance.isolation == home.isolation and _is_for_trial(instance, home.trials):
            if home.trials > _MOST_TRIALS:
                home.begin_trial(instance)
                home.move(interpreters.PROCESS, "it loads other extension modules each time", {}, now)
            elif home.begin_trial(instance):
                what = f"it loads {instance.unknown_extension}" if instance.unknown_extension else instance.error
                self._log.info(
                    "%s: testing which isolation it supports, by loading it in throw-away processes (ISOWSGI_TRIAL is set there): %s",
                    instance.tag,
                    what,
                )
                self._try_out(home, instance.unknown_extension)
            return
        hint = refusals.hint(instance.error + instance.traceback, instance.isolation)
        self._say_boot_failed(home, instance.tag, instance.generation, instance.error, hint, instance.traceback)
        home.on_failed(instance, now)

    def _say_boot_failed(self, home: Home, tag: str, generation: int, error: str, hint: str, traceback: str) -> None:
        self.incidents[home].add(incident(time.time(), "boot", tag, generation, error, traceback, ""))
        details = f"\n{traceback}" if home.is_news(traceback) else ", as before"
        self._log.error("%s: cannot load %r: %s%s%s", tag, _app_text(home.mount), error, hint, details)

    def _on_verdict(self, home: Home, verdict: Verdict) -> None:
        now = time.monotonic()
        if verdict.isolation is None:
            self._say_boot_failed(home, f"{home.name} #{home.generation}", home.generation, verdict.error, "", verdict.traceback)
            home.stay_away(now)
        else:
            self._log.info("%s: its home is %s (%s)", home.name, verdict.isolation, verdict.reason)
            home.move(verdict.isolation, verdict.reason, verdict.extensions, now)

    def _look_for_losses(self, home: Home, instance: HousedInstance) -> None:
        """See what an app goes without that caught the refusals of its home, so that nothing is missing in silence."""
        for module, _, error in instance.refused:
            if home.is_auto and not home.reason and not sharing.has_fallback(module):
                self._on_refused(home, instance, module, error)
            else:
                self._log.info("%s: goes without %s: %s", instance.tag, module, error)

    def _on_refused(self, home: Home, instance: HousedInstance, module: str, error: str) -> None:
        """Find another home for a mount whose request has just failed because it imported what cannot be loaded there."""
        if module in home.late_imports or instance.state is not State.SERVING:
            return
        if home.is_auto and sharing.has_fallback(module):
            self._log.info("%s: goes without %s: %s", instance.tag, module, error)
            return
        home.late_imports.append(module)
        hint = refusals.hint(error, instance.isolation)
        if not home.is_auto:
            self._log.error("%s: a request imported %s, which is refused here: %s%s", instance.tag, module, error, hint)
        elif home.begin_trial(None):
            self._log.error("%s: a request imported %s, which is refused here: %s; another home is looked for", instance.tag, module, error)
            self._try_out(home)

    def _try_out(self, home: Home, unknown_extension: str | None = None) -> None:
        self._placement.try_out(home, self._members_of[home], home.late_imports, unknown_extension)

    def _note(self, home: Home, instance: Instance, kind: str, error: str, details: str, request: str = "") -> None:
        self.incidents[home].add(incident(time.time(), kind, instance.tag, instance.generation, error, details, request))

    def _on_closed(self, home: Home, instance: HousedInstance, now: float) -> None:
        assert self._acceptor is not None, "watched since start()"
        self._acceptor.unwatch(instance.fileno())
        if instance.state is State.FAILED and not instance.is_loaded and instance.how_it_ended:
            self._on_boot_failed(home, instance, now)
        home.on_closed(instance, now)
        if instance.threads_left:
            self._log.warning("%s: ended, but %d threads of the app's run on; it is left behind", instance.tag, instance.threads_left)
        else:
            self._board.give_back(instance.first_row)
            if not self._is_stopping:
                self._log.info("%s: ended", instance.tag)
                self._leaked += interpreters.keeps_memory(instance.isolation)
        # At a worker's exit the process goes with all it holds; ending interpreters one by one would only add risks.
        instance.dispose(destroy=not self._is_stopping)

    # The worker's memory.

    def _look_at_memory(self, now: float) -> None:
        """Over the limit, ask every instance how many objects it has; the answers decide which is replaced."""
        if not self._limits.max_rss or now < self._rss_next:
            return
        if rss_mib() <= self._limits.max_rss:
            self._rss_asked = False
        elif not self._rss_asked:
            self._rss_asked = True
            self._rss_next = now + _RSS_PAUSE_S
            for instance in self._instances():
                if instance.isolation != interpreters.PROCESS:  # that has its memory to itself
                    instance.objects = -1
                    instance.measure()

    def _on_measured(self, now: float) -> None:
        """Replace the mount that has grown most since its boot, once all have answered.

        CPython cannot say how much memory an interpreter has; the number of its objects stands in for that.
        """
        serving = [
            (home, instance)
            for home in self.homes
            for instance in home.instances()
            if instance.state is State.SERVING and instance.isolation != interpreters.PROCESS
        ]
        if not serving or any(instance.objects < 0 for _, instance in serving):
            return
        home, most = max(serving, key=lambda pair: pair[1].objects - pair[1].objects_at_boot)
        grown = most.objects - most.objects_at_boot
        home.replace(f"the worker has {rss_mib()} MiB, max_rss is {self._limits.max_rss}, and it grew most: by {grown} objects", now)
        self._rss_next = now + _RSS_PAUSE_S


def _groups(mounts: Sequence[Mount]) -> Iterable[list[tuple[int, Mount]]]:
    """Return the mounts with their numbers, in a list those that share an instance."""
    groups: dict[str | int, list[tuple[int, Mount]]] = {}
    for number, mount in enumerate(mounts):
        groups.setdefault(number if mount.group is None else mount.group, []).append((number, mount))
    return groups.values()


def _isolation_of(mount: Mount) -> str:
    if mount.python is not None:
        return interpreters.PROCESS
    return interpreters.best_isolation() if mount.isolation == "auto" else mount.isolation


def rss_mib() -> int:
    """Return this process's resident memory."""
    return rss_bytes() // (1024 * 1024)


def _app_text(mount: Mount) -> str:
    return f"{mount.app.target}:{mount.app.call}"


def _is_for_trial(instance: HousedInstance, trials: int) -> bool:
    """Whether a boot's failure may be due to the home, and not to the app.

    Args:
        trials: made since it was last loaded. After one there is nothing new to learn, but from an extension module that it did not meet.
    """
    if instance.isolation == interpreters.PROCESS:
        return False
    if instance.unknown_extension is not None or instance.refused:
        return True
    if trials or instance.failed_in_hook:
        return False
    return refusals.classify(instance.error, instance.traceback).kind != refusals.BROKEN
