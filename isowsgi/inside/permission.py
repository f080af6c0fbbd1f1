"""Asks the supervisor whether an extension file may be loaded that no trial has met; the import of it waits for the answer.

Most apps of one box load the same few. So while the first of them is tried the others wait here, in the middle of their boots, and need
not be loaded once more from the beginning.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from isowsgi.inside.extensions import Extensions
from isowsgi.shared.messages import Known, Report, Unknown


class Permission:
    """One instance's.

    Args:
        report: tells the supervisor.
    """

    def __init__(self, report: Callable[[Report], None]) -> None:
        self._report = report
        self._record: Extensions | None = None
        self._waiting: list[threading.Event] = []
        self._is_over = False

    def guard(self, record: Extensions) -> None:
        """Ask for what this record does not know."""
        self._record = record
        record.ask = self._ask

    def _ask(self, path: str) -> None:
        """Wait for an answer; on any thread that imports."""
        answered = threading.Event()
        self._waiting.append(answered)
        self._report(Unknown(path=path))
        if not self._is_over:  # whoever comes last, this or the end, sees the other
            answered.wait()

    def take(self, order: Known) -> None:
        """Take an answer, or a part of it; on the control thread."""
        if self._record is not None:
            self._record.allow(order.extensions)
        if order.is_last:
            self._wake()

    def end(self) -> None:
        """Let nobody wait any more: this instance is not wanted."""
        self._is_over = True
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            self._waiting.pop().set()
