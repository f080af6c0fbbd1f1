"""What becomes of each line of a source: taken over, changed in meaning, or not taken; and nothing else.

A line that no one has judged counts as not taken, so a line cannot be dropped in silence. Values only, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Any, NamedTuple


class Outcome(IntEnum):
    """Of a line; one with several settings has the gravest of theirs."""

    TAKEN = 0
    CHANGED = 1
    LEFT = 2


class At(NamedTuple):
    """A statement's place.

    Attributes:
        file: as the user named it, or as a file that was named includes it.
        lines: of the file, from 1: all that the statement extends over, the end of a section included.
    """

    file: str
    lines: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.file}:{self.lines[0]}"


class Entry(NamedTuple):
    at: At
    text: str  # of the first line, without white space around it
    outcome: Outcome
    notes: tuple[str, ...]
    has_secret: bool = False  # whether values of variables are in its lines


class BadSource(Exception):
    """A source cannot be read.

    Args:
        where: a file, or a file and line as `At` shows it.
        expected: what was expected, and what is there.
    """

    def __init__(self, where: object, expected: str) -> None:
        super().__init__(f"{where}: {expected}")


UNKNOWN = "isowsgi import does not know this line; look it up in the other server's manual"

# What a report shows of a line.
_MOST_CHARS = 2000


class Account:
    """All lines of all files of a source, and what has been said of them."""

    def __init__(self) -> None:
        self.paths: dict[str, str] = {}  # of the files, absolute, by the name that is shown
        self._texts: dict[str, list[str]] = {}
        self._counted: dict[str, set[int]] = {}
        self._leaders: dict[tuple[str, int], int] = {}
        self._said: dict[tuple[str, int], list[tuple[Outcome, str]]] = {}
        self._secret: set[tuple[str, int]] = set()

    def open(self, file: str, path: str, text: str, counted: Iterable[int]) -> bool:
        """Enter a file.

        Args:
            file: how it is shown.
            counted: the numbers of its lines that say something: not blank, no comment, no mere bracket.

        Returns:
            Whether it is new.
        """
        if file in self._texts:
            return False
        self.paths[file] = path
        self._texts[file] = lines_of(text)
        self._counted[file] = set(counted)
        return True

    def join(self, at: At) -> None:
        """Make the lines of a statement one entry."""
        for line in at.lines:
            self._leaders[at.file, line] = at.lines[0]

    def taken(self, at: At, note: str) -> None:
        self.say(at, Outcome.TAKEN, note)

    def changed(self, at: At, note: str) -> None:
        self.say(at, Outcome.CHANGED, note)

    def left(self, at: At, note: str) -> None:
        self.say(at, Outcome.LEFT, note)

    def say(self, at: At, outcome: Outcome, note: str) -> None:
        said = self._said.setdefault(self._leader(at), [])
        if (outcome, note) not in said:
            said.append((outcome, note))

    def hide(self, at: At) -> None:
        """Note that a statement has the value of a variable, or of what stands for one, which may be a secret."""
        self._secret.add(self._leader(at))

    def _leader(self, at: At) -> tuple[str, int]:
        first = (at.file, at.lines[0])
        return at.file, self._leaders.get(first, first[1])

    def quiet_lines(self) -> int:
        """Return how many lines are blank, comments or mere brackets."""
        return sum(len(lines) - len(self._counted[file]) for file, lines in self._texts.items())

    def entries(self) -> list[Entry]:
        """Return one entry for each statement, in the order of the files; each counted line is in exactly one."""
        entries = []
        for file, lines in self._texts.items():
            grouped: dict[int, list[int]] = {}
            for line in sorted(self._counted[file]):
                grouped.setdefault(self._leaders.get((file, line), line), []).append(line)
            for leader, members in sorted(grouped.items()):
                said = self._said.get((file, leader)) or [(Outcome.LEFT, UNKNOWN)]
                gravest = max(outcome for outcome, _ in said)
                notes = tuple(note for outcome, note in said if outcome is gravest)
                others = tuple(note for outcome, note in said if outcome is not gravest)
                text = " ".join(lines[leader - 1].split())[:_MOST_CHARS]
                entries.append(Entry(At(file, tuple(members)), text, gravest, notes + others, (file, leader) in self._secret))
        return entries


def lines_of(text: str) -> list[str]:
    """Split as every reader here counts lines: at line feeds only."""
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


def as_json(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    return [
        {
            "file": entry.at.file,
            "lines": list(entry.at.lines),
            "text": entry.text,
            "outcome": NAMES[entry.outcome],
            "notes": list(entry.notes),
        }
        for entry in entries
    ]


NAMES = {Outcome.TAKEN: "taken over", Outcome.CHANGED: "changed in meaning", Outcome.LEFT: "not taken"}
