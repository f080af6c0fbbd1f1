"""The supervisor: keeps each mount served. It makes instances, passes on what they report, and watches over all mounts together.

On the acceptor's thread; nothing here waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from isowsgi import interpreters
from isowsgi.acceptor import Acceptor, NotServing
from isowsgi.bootorder import Orders, isolation_of
from isowsgi.configfile import Config, Mount
from isowsgi.home import Home, Instance
from isowsgi.instances.interpreter import InterpreterInstance
from isowsgi.lifecycle import ENDS, State
from isowsgi.report import Reporter, rss_bytes
from isowsgi.scoreboard import REQUESTS, Scoreboard

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
        on_files: Callable[[list[str]], None] | None,
    ) -> None:
        self._limits = config.limits
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
        self.homes = [
            Home(
                mount=mount,
                make=partial(self._make, number, mount),
                released=partial(self._release, number),
                log=log,
                drain_s=drain_s,
                is_quarantined=mount.pattern in quarantined,
            )
            for number, mount in enumerate(config.mounts)
        ]

    def start(self, acceptor: Acceptor) -> None:
        """Boot every mount that is not lazy, all side by side."""
        self._acceptor = acceptor
        self._reporter = Reporter(self._board, self.homes, self._orders, acceptor)
        acceptor.watch(self._capacity, self._on_capacity)
        interpreters.preload()
        now = time.monotonic()
        for home in self.homes:
            if home.is_quarantined:
                self._log.error("%s: crashed its worker too often; it answers 503 until the next reload", home.mount.pattern)
            elif not home.mount.lazy:
                home.start(now)
        self._reporter.publish(now)

    def choose(self, mount: int) -> Instance | NotServing:
        return self.homes[mount].choose(time.monotonic())

    def replace(self, pattern: str, reason: str) -> bool:
        """Replace one mount by a new generation; False if there is no such mount."""
        homes = [home for home in self.homes if home.mount.pattern == pattern]
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
        self._look_at_memory(now)
        if self._reporter is not None:
            self._reporter.publish(now)

    def restart_reason(self) -> str | None:
        """Say why the worker should be replaced by a new one, gracefully, or None."""
        limits = self._limits
        # A boot that hangs would hang in the next worker too.
        stuck = sum(instance.state is State.STUCK and instance.is_loaded for instance in self._instances())
        if stuck > limits.max_stuck:
            return f"{stuck} instances are stuck, max_stuck is {limits.max_stuck}"
        if self._leaked > limits.max_leaked:
            return f"{self._leaked} interpreters were ended on a Python that keeps their memory, max_leaked is {limits.max_leaked}"
        if self._rss_asked and time.monotonic() > self._rss_next and (rss := _rss_mib()) > limits.max_rss:
            return f"it has {rss} MiB, max_rss is {limits.max_rss}, also after the mount that grew most was replaced"
        return None

    def is_settled(self) -> bool:
        """Whether every mount that was started serves or has failed."""
        return all(home.is_settled() for home in self.homes)

    def nothing_serves(self) -> bool:
        return not any(home.is_serving() or home.is_asleep() for home in self.homes)

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

    def _release(self, number: int) -> None:
        assert self._acceptor is not None, "instances exist since start()"
        self._acceptor.release(number)

    def _on_capacity(self) -> None:
        assert self._acceptor is not None, "watched since start()"
        os.eventfd_read(self._capacity)
        self._acceptor.on_capacity()

    def _make(self, number: int, mount: Mount, slot: int, generation: int) -> InterpreterInstance:
        assert self._acceptor is not None, "instances are made since start()"
        first_row = self._board.allot(self._orders.threads_of(mount), [number], isolation_of(mount))
        order = self._orders.write(number, mount, slot, generation, first_row)
        shared_fds = {
            "returns": self._acceptor.returns_fd,
            "lingering": self._acceptor.lingering_fd,
            "capacity": self._capacity,
            "board": self._board.fd,
        }
        instance = InterpreterInstance(order, shared_fds, self._board)
        self._acceptor.watch(instance.fileno(), partial(self._on_reports, number, instance))
        return instance

    # What instances report.

    def _on_reports(self, number: int, instance: InterpreterInstance) -> None:
        home = self.homes[number]
        now = time.monotonic()
        for report in instance.read_reports():
            event = report["event"]
            if event == "ready":
                self._log.info("%s: serving, loaded in %.2f s (%s)", instance.tag, instance.boot_s, instance.isolation)
                home.on_ready(instance, now)
            elif event == "failed" and instance.is_loaded:
                self._log.error("%s: broke off: %s\n%s", instance.tag, instance.error, instance.traceback)
            elif event == "failed":
                error = instance.error + _hint(instance.error + instance.traceback, instance.isolation)
                details = f"\n{instance.traceback}" if home.is_news(instance) else ", as before"
                self._log.error("%s: cannot load %r: %s%s", instance.tag, _app_text(home.mount), error, details)
                home.on_failed(instance, now)
            elif event == "stuck":
                self._log.error("%s: a thread is stuck in its request; the instance is replaced\n%s", instance.tag, report["stack"])
                home.on_stuck(instance, now)
            elif event == "changed":
                home.replace(f"{report['file']} has changed", now)
            elif event == "measured":
                self._on_measured(now)
            elif event == "files" and self._on_files is not None:
                self._on_files(report["files"])
            elif event == "closed":
                self._on_closed(home, instance, now)
            if self._reporter is not None:
                self._reporter.note(number, instance, report)
        if self._reporter is not None:
            self._reporter.publish_soon(now)

    def _on_closed(self, home: Home, instance: InterpreterInstance, now: float) -> None:
        assert self._acceptor is not None, "watched since start()"
        self._acceptor.unwatch(instance.fileno())
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
        if _rss_mib() <= self._limits.max_rss:
            self._rss_asked = False
        elif not self._rss_asked:
            self._rss_asked = True
            self._rss_next = now + _RSS_PAUSE_S
            for instance in self._instances():
                instance.objects = -1
                instance.measure()

    def _on_measured(self, now: float) -> None:
        """Replace the mount that has grown most since its boot, once all have answered.

        CPython cannot say how much memory an interpreter has; the number of its objects stands in for that.
        """
        serving = [(home, instance) for home in self.homes for instance in home.instances() if instance.state is State.SERVING]
        if not serving or any(instance.objects < 0 for _, instance in serving):
            return
        home, most = max(serving, key=lambda pair: pair[1].objects - pair[1].objects_at_boot)
        grown = most.objects - most.objects_at_boot
        home.replace(f"the worker has {_rss_mib()} MiB, max_rss is {self._limits.max_rss}, and it grew most: by {grown} objects", now)
        self._rss_next = now + _RSS_PAUSE_S


def _rss_mib() -> int:
    return rss_bytes() // (1024 * 1024)


def _app_text(mount: Mount) -> str:
    return f"{mount.app.target}:{mount.app.call}"


# What numpy, PyO3, and Cython and mypyc say when another interpreter of the process has loaded the same file of theirs.
_ONCE = ("cannot load module more than once per process", "PyO3 modules do not yet support subinterpreters", "Interpreter change detected")


def _hint(failure: str, isolation: str) -> str:
    """Return what to do about a refused extension module, to go behind the error.

    Args:
        failure: the error with its traceback, as packages often wrap the refusal in an error of their own.
    """
    if "failed to import from subinterpreter due to exception" in failure:
        return "; an extension module of this app works in no subinterpreter; run the app in a gunicorn of its own"
    if "does not support loading in subinterpreters" in failure and isolation == interpreters.OWN_GIL:
        return '; set isolation = "shared-gil" for this mount'
    if any(text in failure for text in _ONCE):
        return "; one installed copy of it serves one interpreter only: give this mount a venv of its own, and one instance"
    return ""
