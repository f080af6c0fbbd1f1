"""What the keepers of child processes say, on its way to the acceptor's thread.

Not by the socket on which the child reports: the child has the same end of it, and what is shut down there is shut down here too. Then the
worker would never hear of the child's end.
"""

from __future__ import annotations

import os
import queue
from collections import deque
from collections.abc import Callable, Hashable

from isowsgi.shared.containment import Containment
from isowsgi.shared.messages import Report


class Keepers:
    """All of a worker's. On the acceptor's thread, but for `wake`, which any thread may call.

    Args:
        containment: where mistakes end that are one instance's.
    """

    def __init__(self, containment: Containment) -> None:
        self._containment = containment
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._woken: queue.SimpleQueue[Hashable] = queue.SimpleQueue()
        self._readers: dict[Hashable, Callable[[], object]] = {}

    def fileno(self) -> int:
        """Return the descriptor that is readable when `turn` has something to do."""
        return self._fd

    def expect(self, instance: Hashable, read: Callable[[], object]) -> None:
        """Have an instance read when its keeper has said something, until it is forgotten."""
        self._readers[instance] = read

    def forget(self, instance: Hashable) -> None:
        self._readers.pop(instance, None)

    def wake(self, instance: Hashable) -> None:
        """Note that an instance's keeper has said something."""
        self._woken.put(instance)
        os.eventfd_write(self._fd, 1)

    def turn(self) -> None:
        """Have the instances read whose keepers have said something."""
        os.eventfd_read(self._fd)
        while not self._woken.empty():
            if (read := self._readers.get(self._woken.get())) is not None:
                self._containment.call("the end of a process", read)


class Words:
    """What one keeper has said, and nobody has read yet.

    Args:
        wake: called after each word, on the keeper's thread.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._words: deque[Report] = deque()

    def say(self, report: Report) -> None:
        self._words.append(report)
        self._wake()

    def next(self) -> Report | None:
        return self._words.popleft() if self._words else None
