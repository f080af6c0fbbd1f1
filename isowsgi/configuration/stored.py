"""A checked config as JSON, for another process: what it says is taken over without a look at files or Pythons."""

from __future__ import annotations

from typing import Any

import attrs
from cattrs import Converter
from cattrs.errors import BaseValidationError

from isowsgi.configuration.values import Config
from isowsgi.shared import scoreboard

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
        config = _converter.structure(facts, Config)
        patterns = [mount.pattern for mount in config.mounts]
        if len(set(patterns)) < len(patterns) or scoreboard.faults(patterns):
            raise NotAConfig("its mounts are too many, or two have the same pattern")
        return attrs.evolve(config, mounts=tuple(attrs.evolve(mount, number=number) for number, mount in enumerate(config.mounts)))
    except NotAConfig:
        raise
    except (BaseValidationError, TypeError, ValueError, KeyError, AttributeError, RecursionError) as exc:
        text = "it is none of this release; if isowsgi was upgraded, restart gunicorn"
        raise NotAConfig(f"{text} ({type(exc).__name__}: {exc})"[:500]) from exc
