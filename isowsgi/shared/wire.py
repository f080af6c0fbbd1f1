"""How typed messages are written as JSON and read back: one encoding and one decoding for all that isowsgi's parts say to each other.

A kind of message is a class made of `Value`. Who reads trusts nothing: the sender may be broken, hostile, or of another release. What does
not fit the types is a `MessageError`, and nothing of it is taken in. `messages` and `controlmessages` have the kinds.

Instances import this, so its classes are made by hand. Some 25 of them cost 0.5 ms; by `dataclasses` they cost 9 to 22 ms for each mount,
and by NamedTuple 2 to 3 (CPython 3.11, 3.14, 3.15). NamedTuples would also take one order without facts for another: both equal ().
Annotations are read when a kind is made, so modules with kinds do without `from __future__ import annotations`. It runs on Python 3.10 too.
"""

import json
import math
import types
from _json import encode_basestring, make_encoder  # bound here, so that an app that patches `json` changes nothing
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from isowsgi.shared.routing import Route

if TYPE_CHECKING:
    from typing import dataclass_transform
else:

    def dataclass_transform(**_: object) -> Any:  # new in 3.11, and only type checkers need it
        return lambda cls: cls


# Integers end up in the scoreboard's words.
_MOST = 2**63 - 1


def _refuse(value: object) -> Any:
    raise TypeError(f"JSON has no {type(value).__name__}")


# C code, which finds its parts here and not in `json`.
_encode: Any = make_encoder(None, _refuse, encode_basestring, None, ": ", ", ", False, False, True)
_scan: Any = json.JSONDecoder().scan_once  # type: ignore[attr-defined] # typeshed does not know it

V = TypeVar("V", bound="Value")


class MessageError(Exception):
    """What came is none of the messages that its receiver takes; the text says why not."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Value:
    """A frozen value; its fields are the annotations of its class, in order, after those of the class that it extends."""

    fields: ClassVar[dict[str, Any]] = {}  # type by name
    is_open: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.fields = {**cls.fields, **cls.__annotations__}

    def __init__(self, **values: Any) -> None:
        wrong = values.keys() - self.fields.keys()
        missing = [name for name in self.fields if name not in values and not hasattr(type(self), name)]
        if wrong or missing:
            raise TypeError(f"{type(self).__name__}: unknown {sorted(wrong)}, missing {missing}")
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen; use replace()")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(getattr(self, name) == getattr(other, name) for name in self.fields)

    __hash__ = None  # type: ignore[assignment] # some have dicts

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.fields)})"

    def replace(self: V, **changes: Any) -> V:
        """Return a copy with other values in some fields."""
        return type(self)(**{**{name: getattr(self, name) for name in self.fields}, **changes})


class OpenValue(Value):
    """A value that another release may have written: fields that are not known are ignored, and those with a default may be missing.

    A field whose default is None is left out while it is None.
    """

    is_open = True


def plain(value: Any) -> Any:
    """Return a value as JSON has it: dicts, lists, and what is in them."""
    if isinstance(value, Value):
        facts = {name: getattr(value, name) for name in value.fields}
        return {name: plain(each) for name, each in facts.items() if each is not None or not _may_be_left_out(type(value), name)}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value


def _may_be_left_out(kind: type[Value], name: str) -> bool:
    return kind.is_open and getattr(kind, name, ...) is None


def encode(facts: dict[str, Any]) -> bytes:
    """Return an object as JSON in UTF-8. A surrogate, which stands for a byte of a file's name, passes."""
    # Letters are not escaped: six or twelve bytes for each are too many for a long traceback.
    return "".join(_encode(facts, 0)).encode("utf-8", "surrogatepass")


def text(value: Value) -> str:
    """Return a value as JSON that is a part of a message."""
    return "".join(_encode(plain(value), 0))


def decode(data: bytes) -> object:
    """Return what was encoded.

    Raises:
        MessageError: it is no JSON.
    """
    try:
        text = data.decode("utf-8", "surrogatepass")
        facts, end = _scan(text, 0)
    except (ValueError, StopIteration, RecursionError) as exc:  # ValueError: not UTF-8, a syntax error, an int of too many digits
        raise MessageError(f"expected JSON in UTF-8, got {data[:40]!r}") from exc
    if end != len(text):
        raise MessageError("expected one JSON object, got text after it")
    return facts


def read(facts: object, kind: type[V]) -> V:
    """Return the value of a kind that an object from JSON is.

    Raises:
        MessageError: it is none.
    """
    return _value(facts, kind, kind.__name__)


def shown(value: object) -> str:
    """Return as much of a value from JSON as an error says. Not its `str`: that of a deeply nested one does not fit the stack."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "an array"
    return repr(str(value)[:40])


def _value(facts: object, kind: type[V], where: str) -> V:
    if not isinstance(facts, dict):
        raise _misfit(where, "an object", facts)
    if kind.is_open:
        missing = [name for name in kind.fields if name not in facts and not hasattr(kind, name)]
        if missing:
            raise MessageError(f"{where}: expected the fields {', '.join(kind.fields)}; missing: {', '.join(missing)}")
    elif facts.keys() != kind.fields.keys():
        odd = sorted(facts.keys() ^ kind.fields.keys())
        raise MessageError(f"{where}: expected the fields {', '.join(kind.fields) or '(none)'}; odd: {', '.join(odd)[:200]}")
    return kind(**{name: _fit(facts[name], each, f"{where}.{name}") for name, each in kind.fields.items() if name in facts})


def _fit(value: Any, kind: Any, where: str) -> Any:
    """Return a value that came from JSON as one of a type: a `Value`, a plain one, or one made of such."""
    if kind is Any:
        return value
    if isinstance(kind, types.UnionType):
        inner = next(each for each in kind.__args__ if each is not type(None))
        return None if value is None else _fit(value, inner, where)
    arguments = getattr(kind, "__args__", ())
    if arguments:
        return _fit_many(value, kind.__origin__, arguments, where)
    if issubclass(kind, Value):
        return _value(value, kind, where)
    if kind is Route:
        return Route(*_fit_many(value, tuple, (int, str, str), where))
    if kind is float and type(value) is int and abs(value) <= _MOST:
        return float(value)
    if type(value) is not kind or (kind is int and abs(value) > _MOST) or (kind is float and not math.isfinite(value)):
        raise _misfit(where, kind.__name__, value)
    return value


def _fit_many(value: Any, origin: Any, arguments: tuple[Any, ...], where: str) -> Any:
    if origin is dict:
        if not isinstance(value, dict):
            raise _misfit(where, "an object", value)
        return {name: _fit(each, arguments[1], where) for name, each in value.items()}
    if not isinstance(value, list):
        raise _misfit(where, "an array", value)
    if origin is list:
        return [_fit(each, arguments[0], where) for each in value]
    if len(value) != len(arguments):
        raise _misfit(where, f"an array of {len(arguments)}", value)
    return tuple(_fit(each, kind, where) for each, kind in zip(value, arguments, strict=True))


def _misfit(where: str, expected: str, value: object) -> MessageError:
    return MessageError(f"{where}: expected {expected}, got {shown(value)}")
