"""Which table of mounts is in force, if one was applied since gunicorn read its config file: a text that the master and its workers share.

Whoever writes it has decided; the others follow. The master gives it to each worker that it forks; a worker looks at it about once a
second, in case nobody told it. The text is the workers' to write, so the master believes nothing of it unchecked, and waits for nobody.
"""

from __future__ import annotations

import fcntl
import json
import mmap
from typing import Any, NamedTuple

from isowsgi.shared.sharedmemory import Text, make_memory, text_bytes

# Most bytes of a table: a thousand mounts with all their settings need about 1.5 MiB.
MAX_BYTES = 4 << 20


# Bytes whose locks say who decides just now, who watches the config files, and from which on who loads something beside
# what serves, or frees it.
_DECIDE_BYTE, _WATCH_BYTE, _FIRST_PLACE = 0, 1, 2


class Applied(NamedTuple):
    """A table that was applied.

    Attributes:
        base: the number of the config, among those that the master has read, that it was made for.
        serial: its own name.
        config: see `configuration.stored`.
        certificates: renewed and new ones, see `worker.certificates`; None: those that the master has read serve.
    """

    base: int
    serial: str
    config: Any
    certificates: Any = None


class Outvoted(Exception):
    """Another table was decided on meanwhile."""


class Deciding(Exception):
    """Another worker is deciding at this moment, perhaps on the same table: to be tried again."""


class LastApplied:
    """The shared text. Forked with the process that made it."""

    def __init__(self) -> None:
        self._fd = make_memory("isowsgi-table", text_bytes(MAX_BYTES))
        self._memory = mmap.mmap(self._fd, text_bytes(MAX_BYTES))
        self._text = Text(self._memory, 0, MAX_BYTES)
        self._read: Applied | None = None
        self._read_turn = -1  # of the text that it was made of

    def fileno(self) -> int:
        """Return the descriptor of the memory, whose locks workers have."""
        return self._fd

    def turn(self) -> int:
        """Return a number that changes with each decision; costs next to nothing."""
        return self._text.turn()

    def read(self) -> Applied | None:
        """Return what was decided last; None if nothing was, or if it is unreadable. Made once of each text: to be left as it is."""
        turn = self._text.turn()  # before the text: a newer one is read again then
        if turn != self._read_turn:
            self._read, self._read_turn = self._parse(), turn
        return self._read

    def _parse(self) -> Applied | None:
        try:
            facts = json.loads(self._text.read() or b"null")
            return Applied(facts["base"], facts["serial"], facts["config"], facts.get("certificates")) if facts is not None else None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def may_watch(self) -> bool:
        """Whether the caller's process is the one that watches the config files: one of the workers, and when it ends, another."""
        return self._lock(_WATCH_BYTE)

    def take_place(self, number: int) -> bool:
        """Take one of the places for loading, until it is given back or the caller's process ends; False if another process has it."""
        return self._lock(_FIRST_PLACE + number)

    def give_place(self, number: int) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, _FIRST_PLACE + number)

    def decide(self, table: Applied, before: str) -> bool:
        """Decide on a table, for all workers; return False if one was decided on already that has the same serial.

        Args:
            before: the serial of the decision that this one follows; "" if none was in force for this base.

        Raises:
            Outvoted: it is not.
            Deciding: nothing is known yet.
            ValueError: the table is too long.
        """
        data = json.dumps(table._asdict()).encode("ascii")
        if not self._lock(_DECIDE_BYTE):
            raise Deciding
        try:
            last = self.read()
            if last is not None and last.base > table.base:
                raise Outvoted("gunicorn has read its config file again; try again")
            now = last.serial if last is not None and last.base == table.base else ""
            if now == table.serial:
                return False  # another worker was told first
            if now != before:
                raise Outvoted("another table was applied meanwhile; try again")
            self._text.write(data)
            return True
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, _DECIDE_BYTE)

    def _lock(self, byte: int) -> bool:
        """Have the lock of a byte; False if another process has it. It is the process', and the kernel takes it back from one that dies."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except OSError:
            return False
        return True
