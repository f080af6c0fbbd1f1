"""Control groups for the processes of apps that have limits: made before the process, entered by it, removed after its end.

Where there are none, or not for all limits, the process limits itself (`inside.walls`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from isowsgi.configuration import Config, sizes
from isowsgi.configuration.walls import need_groups
from isowsgi.shared import cgroups
from isowsgi.shared.messages import BootOrder, Walls


class ControlGroups:
    """One worker's. Any thread may call `hold`.

    Args:
        log: gunicorn's logger.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._subtree: cgroups.Subtree | None = None
        self._is_known = False
        self._is_too_late = False

    def prepare_early(self, config: Config | None, cfg: Any) -> None:
        """Prepare if a mount has limits that groups are for, else change nothing of the service's tree.

        A worker that is about to give root's rights up cannot do it later, and says so when it should.

        Args:
            cfg: gunicorn's settings.
        """
        gives_up = os.geteuid() == 0 and cfg.uid != 0
        if config is not None and need_groups(config.mounts):
            self.prepare((cfg.uid, cfg.gid) if gives_up else None)
        elif gives_up:
            with contextlib.suppress(cgroups.Unavailable):  # then there would be none after SIGHUP, either
                cgroups.find()
                self._is_too_late = self._is_known = True

    def prepare(self, owner: tuple[int, int] | None = None) -> None:
        """Find out whether there are any, and move gunicorn's processes out of the way.

        Args:
            owner: user and group that the worker will have, if it has root's until then.
        """
        with self._lock:
            if self._is_known:
                return
            self._is_known = True
            try:
                subtree = cgroups.find()
            except cgroups.Unavailable:
                return  # the master has said so, if it matters
            try:
                subtree.prepare(owner)
                self._subtree = subtree
            except cgroups.Unavailable as exc:
                text = "no control groups for apps: limits.cpu has no effect, other limits are set by setrlimit(2): %s"
                self._log.warning(text, exc)

    @contextlib.contextmanager
    def hold(self, order: BootOrder) -> Iterator[tuple[BootOrder, Group | None]]:
        """Yield the order with the door of a group, and the group; the order as it is and None where its limits need none.

        Raises:
            OSError: no descriptor is left.
        """
        fds, walls = order.fds, order.walls
        if fds is None or walls is None:
            yield order, None
            return
        group = self._make(order.name, order.tag, walls)
        if group is None:
            yield order.replace(fds=fds.replace(door=-1), walls=walls.replace(grouped=[])), None  # another process' may be there
            return
        try:
            door = group.kernels.door()
            try:
                yield order.replace(fds=fds.replace(door=door), walls=walls.replace(grouped=group.limits)), group
            finally:
                os.close(door)
        finally:
            group.kernels.remove()

    def _make(self, name: str, tag: str, walls: Walls) -> Group | None:
        if not (walls.memory or walls.cpu or walls.processes):
            return None
        self.prepare()
        if self._subtree is None:
            if self._is_too_late:
                self._is_too_late = False  # told once
                text = "limits.cpu has no effect and other limits are set by setrlimit(2) until gunicorn gets SIGHUP"
                self._log.warning("%s: %s: this worker gave root's rights up when no mount had limits", tag, text)
            return None
        files = dict(cgroups.files_of(walls.memory, walls.cpu, walls.processes, self._subtree.controllers))
        limits = [word for word, file in cgroups.LIMITS.items() if file in files]
        if not limits:
            return None
        try:
            return Group(self._subtree.make(name, files.items()), limits, walls)
        except OSError as exc:
            self._log.warning("%s: no control group can be made for it, so it limits itself by setrlimit(2): %s", tag, exc)
            return None


class Group:
    """One process' group.

    Attributes:
        limits: words of `limits` that it has.
    """

    def __init__(self, kernels: cgroups.Group, limits: list[str], walls: Walls) -> None:
        self.kernels = kernels
        self.limits = limits
        self._memory = walls.memory

    def why_killed(self, status: int) -> str:
        """Return what killed its process, as the end of a sentence; "" if that was not a lack of memory. After its end, before `remove`.

        Args:
            status: of the process.
        """
        if status != -signal.SIGKILL or not self.kernels.count("memory.events", "oom_kill"):
            return ""
        if self._memory and self.kernels.count("memory.events", "oom"):  # the kernel counts that where the limit is
            return f"at its memory limit of {sizes.text(self._memory)}"
        return "by the kernel, as the service or the machine has no memory left"
