"""What the TOML of a config file says, and in which order its faults are told."""

import re
import tomllib
from typing import Any

from isowsgi.configuration.faults import ConfigError, Place, place_text, walk
from isowsgi.shared import regularfiles


def parse(shown: str, absolute: str) -> dict[str, Any]:
    """Return what the TOML of a file says."""
    try:
        content = regularfiles.read(absolute, regularfiles.MAX_CONFIG_BYTES)
    except FileNotFoundError:
        raise ConfigError((f"{shown}: no such file, looked for {absolute!r}",)) from None
    except regularfiles.NotRegular as exc:
        raise ConfigError((f"{shown}: expected a config file, got {exc}",)) from exc
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        raise ConfigError((f"{shown}: cannot read it: {(getattr(exc, 'strerror', None) or str(exc)).lower()}",)) from exc
    try:
        return tomllib.loads(content.decode("utf-8-sig"))  # some editors put a byte order mark before it
    except (ValueError, RecursionError) as exc:  # ValueError: not UTF-8, a syntax error, an int of too many digits
        raise ConfigError((f"{shown}: {_syntax_fault(exc)}",)) from exc


def _syntax_fault(exc: Exception) -> str:
    if isinstance(exc, RecursionError):
        return "not valid TOML: nested too deeply"
    if isinstance(exc, UnicodeDecodeError):
        return f"not valid TOML: expected UTF-8, got byte {exc.object[exc.start]:#04x} at offset {exc.start}"
    text = " ".join(str(exc).split())
    found = re.fullmatch(r"(?P<what>.*) \(at (?P<where>line \d+, column \d+|end of document)\)", text)
    where, what = (found["where"] + ": ", found["what"]) if found else ("", text)
    return f"{where}not valid TOML: {what[:1].lower()}{what[1:]}"


def texts_of(shown: str, data: dict[str, Any], group: ExceptionGroup[Exception]) -> tuple[str, ...]:
    """Return the faults of a file, in its order."""
    faults = sorted(walk(group), key=lambda fault: _position(data, fault[0]))
    return tuple(f"{shown}: {place_text(place)}: {text}" for place, text in faults)


def _position(data: Any, place: Place) -> list[int]:
    """Return a key that sorts faults as the file does; what is missing comes last in its table."""
    position = []
    for part in place:
        if isinstance(data, dict):
            position.append(list(data).index(part) if part in data else len(data))
            data = data.get(part)
        elif isinstance(part, int):
            position.append(part)
    return position
