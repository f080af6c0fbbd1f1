"""Takes the censuses of an app that `isowsgi memory` asks for, look by look, on the control thread; nothing of it is loaded before."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from isowsgi.shared import wire
from isowsgi.shared.census import Census

if TYPE_CHECKING:
    from isowsgi.inside.census import Counting, Holders, Tracing


class Growth:
    """Takes the censuses that a command asks for.

    Args:
        report: tells the number of the question, and what was counted, or None while that is not all.
        isolation: of the app.
    """

    def __init__(self, report: Callable[[int, str | None], None], isolation: str) -> None:
        self._report = report
        self._is_process = isolation == "process"
        self._tracing: Tracing | None = None
        self._ask = 0
        self._counting: Counting | None = None
        self._holders: Holders | None = None
        self._lines: list[tuple[str, int, int, int]] = []
        self._took_s = 0.0

    def look(self, ask: int, trace_s: float, now: float) -> None:
        """Have one look; the last one of a census is followed by what was found.

        Args:
            trace_s: how long allocations are traced after it, at most; 0: what was traced until now is told.
        """
        started = time.thread_time()
        if self._counting is None or ask != self._ask:
            self._begin(ask)
        assert self._counting is not None, "just made"
        if self._holders is None:
            if self._counting.look():
                self._holders = _census().Holders()
            is_whole = False
        else:
            is_whole = self._holders.look()
        self._took_s += time.thread_time() - started
        if not is_whole:
            self._report(ask, None)
            return
        found = self._found(now, with_lines=not trace_s)
        self._counting = self._holders = None
        if trace_s and self._is_process:
            self._tracing = self._tracing or _census().Tracing()
            self._tracing.start(trace_s, now)
        self._report(ask, wire.text(found))

    def drop(self, ask: int) -> None:
        """Forget all; nobody wants it."""
        if ask == self._ask:
            self._counting = self._holders = None
            self._lines = []
            if self._tracing is not None:
                self._tracing.stop()

    def is_tracing(self, now: float) -> bool:
        return self._tracing is not None and self._tracing.is_on(now)

    def _begin(self, ask: int) -> None:
        self._ask, self._took_s = ask, 0.0
        self._counting, self._holders = _census().Counting(), None
        # First of all: else what is counted would be traced too.
        self._lines = self._tracing.take() if self._tracing is not None else []

    def _found(self, now: float, with_lines: bool) -> Census:
        assert self._counting is not None, "its last look was had"
        assert self._holders is not None, "as above"
        types = [(name, round(number), int(size)) for name, (number, size) in self._counting.types.items()]
        types.sort(key=lambda each: -each[2])
        holders = sorted(self._holders.found.values(), key=lambda each: -each[4])
        most_types, most_holders = _census().MOST_TYPES, _census().MOST_HOLDERS
        return Census(
            at=now,
            took_s=round(self._took_s, 4),
            is_cut=len(types) > most_types or len(holders) > most_holders,
            types=types[:most_types],
            holders=holders[:most_holders],
            lines=self._lines if with_lines else [],
            traced=self._tracing.problem if with_lines and self._tracing is not None else "",
        )


def _census() -> Any:
    from isowsgi.inside import census  # late: few apps are ever asked

    return census
