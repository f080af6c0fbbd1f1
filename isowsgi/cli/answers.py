"""Workers' answers, and their words made safe for a terminal: another user's program may have sent them.

Values only, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, NamedTuple, TypeVar

from isowsgi.shared.controlmessages import Answer, Error, Worker
from isowsgi.shared.sockets import Place
from isowsgi.shared.wire import Value

A = TypeVar("A", bound=Answer)


class Told(NamedTuple, Generic[A]):
    """What came of asking one worker.

    Attributes:
        worker: who it says it is; None if it did not answer, or not as it should.
        answer: or why there is none.
    """

    place: Place
    worker: Worker | None
    answer: A | Error


def no_answer(kind: str, text: str) -> tuple[None, Error]:
    return None, Error(kind=kind, text=text)


def plain(text: object) -> str:
    """Return text that a terminal shows and does not obey."""
    return "".join(char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}" for char in str(text))


def for_people(told: Iterable[Told[A]]) -> list[Told[A]]:
    """Return answers with all of their text plain; programs get it as it came, in JSON's escapes."""
    return [Told(each.place, each.worker, _shown(each.answer)) for each in told]


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list):
        return [_shown(each) for each in value]
    if isinstance(value, Value):
        return value.replace(**{name: _shown(getattr(value, name)) for name in value.fields})
    return value
