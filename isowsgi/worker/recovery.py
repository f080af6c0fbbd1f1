"""What happens to a mount when a part of it fails or ends unexpectedly: what serves keeps serving, and the rest is retried later.

On the acceptor's thread; nothing here waits. Time is monotonic seconds and passed in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isowsgi.instances.lifecycle import State
from isowsgi.worker.slots import Instance

if TYPE_CHECKING:
    from isowsgi.worker.deployment import Deployment


class Recovery:
    """Decides for one deployment."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    def lose_boot(self, instance: Instance, now: float) -> None:
        """An instance did not come up."""
        deployment = self._deployment
        try:
            if instance in deployment.slots.coming:
                deployment.slots.vacate(instance)
                self.stay_as_it_is(now)
            elif instance in deployment.slots.live:
                self.try_later(now)
        finally:  # requests that wait are answered, whatever happens to the mount
            deployment.surroundings.release(deployment)

    def stay_as_it_is(self, now: float) -> None:
        """Nothing came of a replacement or trial: what serves keeps serving, else it is tried again later."""
        deployment = self._deployment
        try:
            if deployment.is_serving():
                deployment.log.error("%s: generation %d keeps serving", deployment.name, deployment.slots.oldest())
            if State.STUCK in deployment.slots.states() or not (deployment.is_serving() or deployment.slots.is_booting()):
                self.try_later(now)
            else:
                deployment.go_on(now)
        finally:
            deployment.surroundings.release(deployment)

    def make_up_for(self, instance: Instance, lived_s: float, now: float) -> None:
        """Start again what ended: at once, unless it keeps ending soon after its start, or what replaces it is on its way already."""
        deployment = self._deployment
        slot = deployment.slots.live.index(instance)
        if deployment.is_ending:  # the next request starts it again, if one still comes
            deployment.slots.live[slot] = None
            return
        wait_s = deployment.backoff.after_end(lived_s, now)
        if wait_s and deployment.slots.coming[slot] is None:
            deployment.leave_line()
            text = "%s: ended %d times soon after its start; restarting in %d s"
            deployment.log.error(text, deployment.name, deployment.backoff.crashes, wait_s)
        else:
            deployment.start(now)

    def cannot_start(self, exc: Exception, now: float) -> None:
        """No instance and no trial can be started now; that is tried again later."""
        deployment = self._deployment
        deployment.upkeep.owes_release = True  # not now: the acceptor may be about to hand a connection over
        deployment.reports.cannot_start(exc)
        self.try_later(now)

    def try_later(self, now: float) -> None:
        """Plan the next try."""
        deployment = self._deployment
        if deployment.is_stopped:
            return
        deployment.leave_line()  # all that is missing is started with the next try, and not before
        wait_s = deployment.backoff.plan(now, deployment.reports.lacks and not deployment.is_serving())
        serving = len(deployment.slots.serving())
        if not serving and not deployment.is_prepared and deployment.backoff.is_worth_waiting(now):
            text = "%s: its worker lacks descriptors or threads; requests wait; retrying within a second"
            deployment.log.warning(text, deployment.name)
        elif not (deployment.is_ending or deployment.is_prepared):  # otherwise there is no retry but while requests wait
            what = "answers 503" if not serving else "some instances are missing"
            if serving == len(deployment.slots.live):  # it was to be replaced
                what = f"generation {deployment.slots.oldest()} keeps serving"
            deployment.log.error("%s: %s; retrying in %d s", deployment.name, what, wait_s)
