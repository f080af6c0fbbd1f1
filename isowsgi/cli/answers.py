"""What a worker's answers must look like before they are shown: another program may have sent them, and another user may run it.

Values only, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from isowsgi.shared.sockets import Place

# A shape is a type, a tuple of shapes of which one fits, a list with the shape of each member, or a table with those of the keys it needs.
Shape = Any

_INCIDENT = {"at": (int, float), "kind": str, "tag": str, "error": str, "details": str, "request": (str, None)}
_INSTANCE = {"tag": str, "state": str, "threads": int, "requests": int, "in_flight": [{"request": str, "for_s": (int, float)}]}
_MOUNT = {
    "mount": str,
    "state": str,
    "isolation": str,
    "generation": int,
    "reloads": int,
    "stuck": int,
    "instances": [_INSTANCE],
    "last_error": (None, {"at": (int, float), "error": str}),
}
_OUTCOME = {"mount": str, "generation": int, "text": str}
SHAPES: Mapping[str, Shape] = {
    "status": {"worker": int, "rss_mib": (int, float), "mounts": [_MOUNT]},
    "reload": _OUTCOME,
    "stop": _OUTCOME,
    "start": _OUTCOME,
    "stacks": {"instances": [{**_INSTANCE, "stacks": str, "problem": str}]},
    "errors": {"boot": (None, _INCIDENT), "requests": [_INCIDENT]},
}
_ERROR = {"kind": str, "text": str}


class Answer(NamedTuple):
    """What came of asking one worker.

    Attributes:
        message: its answer; with `ok` false also if there was none, and then `error` says why.
    """

    place: Place
    message: dict[str, Any]

    @property
    def is_ok(self) -> bool:
        return self.message.get("ok") is True

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.message["error"]
        return error


def checked(message: dict[str, Any], command: str) -> dict[str, Any]:
    """Return an answer if it has all that its command's answers have, else one that says what is wrong with it."""
    if message.get("ok") is True:
        return message if fits(message, SHAPES[command]) else no_answer("malformed", f"malformed answer to {command!r}")
    if not fits(message.get("error"), _ERROR):
        return no_answer("malformed", "malformed answer: neither a result nor an error")
    return {**message, "ok": False}


def no_answer(kind: str, text: str) -> dict[str, Any]:
    return {"ok": False, "error": {"kind": kind, "text": text}}


def fits(value: object, shape: Shape) -> bool:
    """Whether a value is of a shape; a table may hold more than that."""
    if isinstance(shape, tuple):
        return any(fits(value, each) for each in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(each, shape[0]) for each in value)
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(key in value and fits(value[key], each) for key, each in shape.items())
    return value is None if shape is None else isinstance(value, shape)


def plain(text: object) -> str:
    """Return text that a terminal shows and does not obey."""
    return "".join(char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}" for char in str(text))


def for_people(answers: Iterable[Answer]) -> list[Answer]:
    """Return answers with all of their text plain; programs get it as it came, in JSON's escapes."""
    return [Answer(answer.place, _shown(answer.message)) for answer in answers]


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list):
        return [_shown(each) for each in value]
    return {plain(key): _shown(each) for key, each in value.items()} if isinstance(value, dict) else value
