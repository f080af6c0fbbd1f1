"""What went wrong in a mount recently: its last failed boot, and the errors of its requests by groups. Values only, no I/O."""

from __future__ import annotations

import time
from collections.abc import Iterable

from isowsgi.shared.controlmessages import ErrorGroup, Incident
from isowsgi.shared.errorgroups import LOGGED, Group, Groups
from isowsgi.shared.messages import Erred

# Groups of which the last error is told as an incident too, the latest.
KEPT = 20

# Groups of each mount that are told with their texts where all mounts are asked for.
WITH_TEXTS = 5

# Of a traceback its end is kept: there is the error.
_MAX_DETAILS_CHARS = 16 * 1024

# Groups of a mount that an instance's reports are compared with. No sound instance has as many; a child process may say anything.
_MOST_TOLD = 500

# Most that a count can grow by in one report: more than any instance serves between two of them.
_MOST_AT_ONCE = 10**9


class Incidents:
    """One deployment's, in one worker.

    Attributes:
        groups: errors of requests, by the mount's pattern; kept over generations, and handed on to the deployment that replaces this one.
        above: what counts the same errors, of a template's tenants all together, and its pattern.
    """

    def __init__(self) -> None:
        self.last_boot: Incident | None = None
        self.groups: dict[str, Groups] = {}
        self.above: tuple[Incidents, str] | None = None

    def add(self, incident: Incident) -> None:
        """Note why nothing could be loaded."""
        self.last_boot = incident

    def of(self, pattern: str) -> Groups:
        """Return the groups of a mount."""
        return self.groups.setdefault(pattern, Groups())

    def take_over(self, before: Incidents, patterns: Iterable[str]) -> None:
        """Go on with the groups of mounts that were another deployment's."""
        self.groups |= {pattern: before.groups[pattern] for pattern in patterns if pattern in before.groups}

    def count(
        self, pattern: str, generation: int, key: tuple[str, str, str], request: str, error: str, details: str = "", count: int = 1
    ) -> None:
        """Count errors of a mount that happened just now."""
        now = time.time()
        group = self.of(pattern).count(key, count, now)
        group.generation = generation
        group.add(count, now, request, error, details)
        if self.above is not None:
            incidents, name = self.above
            incidents.count(name, generation, key, f"{request} ({pattern})", error, details, count)

    def latest(self, pattern: str) -> Incident | None:
        """Return what went wrong last; an exception that was only logged did not."""
        both = [each for each in (self.last_boot, *self.of_requests(pattern)) if each is not None and each.kind != LOGGED]
        return max(both, key=lambda incident: incident.at, default=None)

    def of_requests(self, pattern: str | None = None) -> list[Incident]:
        """Return the last error of each group, the latest last; None: of all mounts."""
        groups = [(mount, group) for mount, each in self.groups.items() if pattern in (None, mount) for group in list(each.table.values())]
        latest = sorted(groups, key=lambda pair: pair[1].at)[-KEPT:]
        return [
            incident(group.at, group.key.kind, f"{mount} #{group.generation}", group.generation, group.error, group.details, group.request)
            for mount, group in latest
        ]

    def summary_of(self, pattern: str, changed_since: float) -> list[ErrorGroup]:
        """Return what `AllErrors` asks for of one mount."""
        groups = self.groups_of(pattern, with_details=False)
        if changed_since:
            return [group for group in groups if group.at >= changed_since]
        return groups[:WITH_TEXTS] + [group.replace(request="", error="") for group in groups[WITH_TEXTS:]]

    def groups_of(self, pattern: str, most: int | None = None, with_details: bool = True) -> list[ErrorGroup]:
        """Return the groups of a mount: failures before what was only logged, the most frequent first."""
        table = self.of(pattern).table
        if not table:
            return []
        groups = sorted(table.values(), key=lambda group: (group.key.kind == LOGGED, -group.count))
        return [_told(group, with_details) for group in groups[:most]]


class Heard:
    """What one instance has reported so far, so that each of its errors is counted once."""

    def __init__(self) -> None:
        self._counts: dict[int, dict[tuple[str, str, str], int]] = {}

    def news(self, report: Erred) -> int:
        """Return how many errors a report adds, of a mount that the instance has."""
        counts = self._counts.setdefault(report.mount, {})
        key = report.kind, report.type[:200], report.place[:500]
        if key not in counts and len(counts) >= _MOST_TOLD:
            return 0
        before = counts.get(key, 0)
        counts[key] = max(before, report.count)
        return min(max(report.count - before, 0), _MOST_AT_ONCE)


def _told(group: Group, with_details: bool) -> ErrorGroup:
    kind, type_, place = group.key
    return ErrorGroup(
        kind=kind, type=type_, place=place, count=group.count, first=group.first, at=group.at, generation=group.generation,
        request=group.request, error=group.error, details=group.details if with_details else "",
    )  # fmt: skip


def incident(at: float, kind: str, tag: str, generation: int, error: str, details: str, request: str = "") -> Incident:
    """Make one, cut to what is kept of it."""
    if len(details) > _MAX_DETAILS_CHARS:
        details = "...\n" + details[-_MAX_DETAILS_CHARS:]
    return Incident(at=at, kind=kind, tag=tag, generation=generation, error=error[:1000], details=details, request=request[:500])
