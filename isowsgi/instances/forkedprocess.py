"""A process of the worker's own that a fork server has forked."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import threading


class ForkFailed(Exception):
    """A server did not do what it was asked for.

    Args:
        for_good: whether another one would not either.
    """

    def __init__(self, reason: str, for_good: bool = False) -> None:
        super().__init__(reason)
        self.for_good = for_good


class ForkedProcess:
    """One of them: what of `subprocess.Popen` an instance uses.

    It is known by a descriptor and not by its number. An app in the worker may wait for any child, `os.wait()`; it takes this one's status
    then, and the number may soon be another process'.

    Args:
        pid: of a child of this process.

    Raises:
        ChildProcessError: it is none.
        ForkFailed: this kernel has no such descriptors.
        OSError: no descriptor is left; the process was killed.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        self._lock = threading.Lock()
        try:
            self._fd: int | None = os.pidfd_open(pid)
        except OSError as exc:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            if exc.errno in (errno.ENOSYS, errno.EPERM):  # before Linux 5.3; a container's filter of system calls
                raise ForkFailed("the kernel does not let it have pidfd_open(2)", for_good=True) from exc
            raise

    def kill(self) -> None:
        """Kill it, if it is still there. Any thread may call it."""
        with self._lock:
            if self._fd is not None:
                with contextlib.suppress(ProcessLookupError):  # somebody else has waited for it
                    signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def wait(self, limit_s: float | None = None) -> int:
        """Wait for its end, and return its exit status as `subprocess` has it: negative for a signal, 0 if somebody else has taken it.

        By one thread, and once.

        Raises:
            subprocess.TimeoutExpired: it has not ended within the limit.
        """
        assert self._fd is not None, "it was not waited for"
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(None if limit_s is None else limit_s * 1000):
            raise subprocess.TimeoutExpired(str(self.pid), limit_s or 0.0)
        with self._lock:
            fd, self._fd = self._fd, None
        try:
            end = os.waitid(os.P_PIDFD, fd, os.WEXITED)
        except ChildProcessError:
            return 0
        finally:
            os.close(fd)
        assert end is not None, "it has ended"
        return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
