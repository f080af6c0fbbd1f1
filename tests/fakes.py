"""Stand-ins of our own for what a unit test does without."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from isowsgi.inside.runner import Runner
from tests.conftest import DEADLINE_S


class FakePort:
    """Stands in for an instance's service: what is fed is polled, by one thread at a time or the test fails.

    Args:
        work: serves a descriptor.
    """

    def __init__(self, work: Callable[[int], None]) -> None:
        self._work = work
        self.settled: list[int] = []  # by the holder of the baton
        self.settled_later: list[int] = []  # by a thread that had lost it
        self.polling: list[str] = []  # names of the threads inside
        self.most_polling = 0
        self.polls = 0
        self._waiting: deque[int] = deque()
        self._something = threading.Condition()
        self._poked = False

    def feed(self, *fds: int) -> None:
        with self._something:
            self._waiting.extend(fds)
            self._something.notify_all()

    def poke(self) -> None:
        """Let the thread that waits return, as the eventfd does; it stays readable until it was read."""
        with self._something:
            self._poked = True
            self._something.notify_all()

    def poll(self, wait: bool) -> list[int]:
        self.polling.append(threading.current_thread().name)
        self.most_polling = max(self.most_polling, len(self.polling))
        self.polls += 1
        with self._something:
            if wait:
                assert self._something.wait_for(lambda: self._waiting or self._poked, DEADLINE_S)
            self._poked = False
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), 16))]
        self.polling.pop()
        return batch

    def serve(self, fd: int) -> int:
        self._work(fd)
        return fd

    def settle(self, fd: int) -> None:
        assert not self.polling, "a connection is settled under the baton, and whoever polls has it"
        self.settled.append(fd)

    def settle_later(self, fd: int) -> None:
        self.settled_later.append(fd)


class Crew:
    """Threads that work for a runner."""

    def __init__(self, count: int, serve: Callable[[int], None], rouse: Callable[[], None] = lambda: None) -> None:
        self.port = FakePort(serve)
        self.runner: Runner[int] = Runner(rouse)
        self.threads = [
            threading.Thread(target=self.runner.work, args=(self.port,), name=f"crew-{number}", daemon=True) for number in range(count)
        ]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Let them end; fails if one does not."""
        self.runner.stopping = True
        self.port.poke()
        for thread in self.threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive(), f"{thread.name} did not end"


class Gate:
    """A request that lasts until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._open = threading.Event()

    def pass_through(self) -> None:
        self.entered.set()
        assert self._open.wait(DEADLINE_S)

    def wait_until_entered(self) -> None:
        assert self.entered.wait(DEADLINE_S)

    def let_go(self) -> None:
        self._open.set()
