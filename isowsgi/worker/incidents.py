"""What went wrong in a mount recently: its last failed boot and its last exceptions, for `isowsgi errors`. Values only, no I/O."""

from __future__ import annotations

from collections import deque

from isowsgi.shared.controlmessages import Incident

# Exceptions of requests that are kept for each mount, the latest.
KEPT = 20

# Of a traceback its end is kept: there is the error.
_MAX_DETAILS_CHARS = 16 * 1024


class Incidents:
    """One mount's, in one worker."""

    def __init__(self) -> None:
        self.last_boot: Incident | None = None
        self._requests: deque[Incident] = deque(maxlen=KEPT)

    def add(self, incident: Incident) -> None:
        if incident.kind == "boot":
            self.last_boot = incident
        else:
            self._requests.append(incident)

    def latest(self) -> Incident | None:
        """Return what went wrong last."""
        both = [incident for incident in (self.last_boot, *self._requests) if incident is not None]
        return max(both, key=lambda incident: incident.at, default=None)

    def of_requests(self) -> list[Incident]:
        """Return those of requests, the latest last."""
        return list(self._requests)


def incident(at: float, kind: str, tag: str, generation: int, error: str, details: str, request: str = "") -> Incident:
    """Make one, cut to what is kept of it."""
    if len(details) > _MAX_DETAILS_CHARS:
        details = "...\n" + details[-_MAX_DETAILS_CHARS:]
    return Incident(at=at, kind=kind, tag=tag, generation=generation, error=error[:1000], details=details, request=request[:500])
