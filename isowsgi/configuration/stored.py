"""A checked config as JSON, for another process: what it says is taken over without a look at files or Pythons."""

from __future__ import annotations

from typing import Any

from cattrs import Converter
from cattrs.errors import BaseValidationError

from isowsgi.configuration.values import Config

_converter = Converter(forbid_extra_keys=True)


class NotAConfig(ValueError):
    """What was read is no config of this release; the text says what is wrong."""


def plain(config: Config) -> dict[str, Any]:
    """Return a config as plain values: dicts, lists, strings, numbers."""
    facts: dict[str, Any] = _converter.unstructure(config)
    return facts


def restore(facts: object) -> Config:
    """Return the config that plain values are.

    Raises:
        NotAConfig: they are none.
    """
    try:
        return _converter.structure(facts, Config)
    except (BaseValidationError, TypeError, ValueError, KeyError, AttributeError, RecursionError) as exc:
        raise NotAConfig(f"expected a config of this release of isowsgi: {type(exc).__name__}: {exc}"[:500]) from exc
