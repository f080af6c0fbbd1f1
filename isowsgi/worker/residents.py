"""Which tenants of a template live, which of them was used last, and which one may go when another needs its place.

Bookkeeping only, no ends and no starts. Time is monotonic seconds and passed in.
"""

from __future__ import annotations

from collections.abc import Iterator

from isowsgi.worker.deployment import Deployment

# For how many times the time that it took to load a tenant keeps its place after its last use, and for how many seconds at most: a load may
# have waited for others. So where more tenants are asked for than may live, loads take a third of the time of each place at most, and
# are not made for each request.
_RESTS = 2.0
_MOST_REST_S = 10.0

# For how long it is known that nobody may go: a look at 1000 tenants takes about 10 ms.
_LOOK_S = 0.25


class Residents:
    """One template's, the least recently used one first."""

    def __init__(self) -> None:
        self._deployments: dict[str, Deployment] = {}  # by label
        self._came_at: dict[str, float] = {}
        self._rest_s: dict[str, float] = {}  # of those that were seen serving
        self._used_at: dict[str, float] = {}
        self._requests: dict[str, int] = {}  # of each, of which is known; on connections that it keeps it serves others
        self._looks_at = 0.0  # when it is worth to look for one that may go

    def __iter__(self) -> Iterator[Deployment]:
        return iter(list(self._deployments.values()))

    def __len__(self) -> int:
        return len(self._deployments)

    def labels(self) -> list[str]:
        return list(self._deployments)

    def get(self, label: str) -> Deployment | None:
        return self._deployments.get(label)

    def use(self, label: str, now: float) -> Deployment | None:
        """Return one that a request has named; it is the most recently used one now."""
        deployment = self._deployments.get(label)
        if deployment is not None:
            self._deployments[label] = self._deployments.pop(label)
            self._used_at[label] = now
            self._requests[label] += 1
        return deployment

    def add(self, label: str, deployment: Deployment, now: float) -> None:
        self._deployments[label] = deployment
        self._came_at[label] = self._used_at[label] = now
        self._requests[label] = 1

    def pop(self, label: str) -> Deployment:
        for known in (self._came_at, self._used_at, self._rest_s, self._requests):
            known.pop(label, None)
        return self._deployments.pop(label)

    def count(self) -> int:
        """Return how many there are that the operator has not stopped."""
        return sum(not deployment.is_stopped for deployment in self)

    def note_uses(self, now: float) -> None:
        """Find out who was used on connections that it keeps; once a second is enough."""
        for label in self.labels():
            self._was_used(label, now)

    def quiet(self) -> list[str]:
        """Return those for which nobody waits just now."""
        return [label for label, deployment in self._deployments.items() if _is_quiet(deployment)]

    def who_may_go(self, now: float, is_urgent: bool) -> str | None:
        """Return the least recently used one that is quiet, and has been for long enough; None: nobody.

        Args:
            is_urgent: whether it need not have been quiet for long.
        """
        if now < self._looks_at and not is_urgent:
            return None
        for label, deployment in list(self._deployments.items()):
            if self._was_used(label, now) or not _is_quiet(deployment):
                continue
            if is_urgent or now - self._used_at[label] >= self._rest_of(label):
                return label
        self._looks_at = now + _LOOK_S
        return None

    def idle(self, now: float) -> list[str]:
        """Return those whose `idle_timeout` has passed: that sleep, or that failed and for which nobody has asked since."""
        found = []
        for label, deployment in self._deployments.items():
            limit_s = deployment.mount.idle_timeout
            has_failed = limit_s and _is_quiet(deployment) and not deployment.is_serving() and now - self._used_at[label] > limit_s
            if has_failed or (deployment.is_asleep() and not deployment.slots.all()):
                found.append(label)
        return found

    def _was_used(self, label: str, now: float) -> bool:
        """Whether it has served more than is known; that is known from now on."""
        requests = sum(instance.requests() for instance in self._deployments[label].slots.serving())
        was_used, self._requests[label] = requests > self._requests[label], requests
        if was_used:
            self.use(label, now)
            self._requests[label] = requests
        return was_used

    def _rest_of(self, label: str) -> float:
        """Return for how many seconds after its last use one keeps its place."""
        if label not in self._rest_s:
            slots = self._deployments[label].slots
            load_s = max((slots.began.get(instance, 0.0) - self._came_at[label] for instance in slots.serving()), default=None)
            if load_s is None:
                return 0.0  # it failed
            self._rest_s[label] = min(max(_RESTS * load_s, 0.0), _MOST_REST_S)
        return self._rest_s[label]


def _is_quiet(deployment: Deployment) -> bool:
    """Whether nobody waits for it: it serves no request and is not on its way, and the operator has not stopped it."""
    is_busy = any(instance.is_busy() for instance in deployment.slots.serving())
    return not (is_busy or deployment.is_under_way() or deployment.is_stopped)
