"""`replace = "stop-first"`: what served has gone before the next generation is loaded; requests wait meanwhile.

For an app that locks its data, and so cannot be loaded beside itself. Gone is a process when it has ended, and an interpreter when it is
destroyed, for a file that the app has open is closed only then; one that is left behind is waited for no longer.

On the acceptor's thread; nothing here waits. Time is monotonic seconds and passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from isowsgi.instances.lifecycle import State
from isowsgi.worker.slots import Instance

if TYPE_CHECKING:
    from isowsgi.worker.deployment import Deployment


class Succession:
    """The gap between two generations of one deployment."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._leaving: list[Instance] = []

    @property
    def is_open(self) -> bool:
        """Whether what served is going, and nothing has come yet."""
        return bool(self._leaving)

    def begin(self, reason: str, now: float) -> None:
        """Let what serves end; the next generation is loaded when it has gone."""
        deployment = self._deployment
        text = "%s: ending generation %d, then loading its successor (%s); requests wait"
        deployment.log.info(text, deployment.name, deployment.slots.oldest(), reason)
        # Noted before what they give back is looked at: nothing may be loaded beside them.
        leaving = self._leaving = deployment.slots.clear()
        for instance in leaving:
            deployment.retire(instance, now)

    def follow(self, before: Sequence[Deployment]) -> None:
        """Take the place of deployments that leave: load when all of them has gone."""
        self._leaving = [instance for each in before for instance in each.slots.all()]

    def cancel(self) -> None:
        """Have nothing follow."""
        self._leaving = []

    def look(self, now: float) -> None:
        """Load the next generation if the last of those before it has gone."""
        if not self._leaving:
            return
        self._leaving = [instance for instance in self._leaving if not _has_gone(instance)]
        if not self._leaving:
            self._deployment.start(now)
            self._deployment.hurry()  # requests wait for it


def _has_gone(instance: Instance) -> bool:
    return instance.has_gone or instance.is_overdue or (instance.state is State.STUCK and not instance.can_be_killed)
