"""A checked config as JSON, for another process: what it says is taken over without a look at files or Pythons."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

import attrs
from cattrs import Converter
from cattrs.errors import BaseValidationError
from cattrs.gen import make_dict_unstructure_fn, override

from isowsgi.configuration.values import App, Certificate, Config, Files, Mount
from isowsgi.shared import scoreboard

# Lists, not tuples, so that what is told equals what is read of it.
_converter = Converter(forbid_extra_keys=True, unstruct_collection_overrides={tuple: list})
# Without what is as it is by default, which is most of a mount: with it 200 mounts were 0.2 MB, and each worker reads that and compares it
# between requests. And without the numbers, which are the mounts' places: else all that follow one that is gone would differ.
_converter.register_unstructure_hook(
    Mount, make_dict_unstructure_fn(Mount, _converter, _cattrs_omit_if_default=True, number=override(omit=True))
)

# Of the digest: 64 bits, against an accident; whoever may apply a table may also write this.
_FORM_CHARS = 16

# What says nothing of what is served.
_ASIDE: dict[type[Config | Mount], set[str]] = {
    cls: {field.name for field in attrs.fields(cls) if field.eq is False} for cls in (Config, Mount)
}

_NOT_OURS = "it is none of this release; if isowsgi was upgraded, restart gunicorn"


class NotAConfig(ValueError):
    """What was read is no config of this release; the text says what is wrong."""


Known = Mapping[str, tuple[dict[str, Any], Mount]]
"""Mounts by their patterns, each with its plain values."""


def plain(config: Config, before: Known = MappingProxyType({})) -> dict[str, Any]:
    """Return a config as plain values: dicts, lists, strings, numbers.

    Args:
        before: mounts whose plain values are there.
    """
    facts: dict[str, Any] = _converter.unstructure(attrs.evolve(config, mounts=()))
    facts["form"] = form()
    facts["mounts"] = [plain_mount(mount, before.get(mount.pattern)) for mount in config.mounts]
    return facts


@cache
def form() -> str:
    """Return a digest of all fields and their defaults: what is left out of plain values means the same only where that is the same."""
    classes = (Config, Mount, App, Files, Certificate)
    fields = [(cls.__name__, field.name, _default(field)) for cls in classes for field in attrs.fields(cls)]
    return hashlib.sha256(repr(fields).encode()).hexdigest()[:_FORM_CHARS]


def warm_up() -> None:
    """Have the code made that writes and reads a config: 10 ms of CPU time, which is too long between requests."""
    app = App(kind="module", target="", call="")
    restore(plain(Config(path="", mounts=(Mount(pattern="/", app=app),))))


def _default(field: Any) -> Any:
    default = field.default
    return default.factory() if isinstance(default, attrs.Factory) else default  # type: ignore[arg-type]  # attrs' stubs say: a function


def plain_mount(mount: Mount, before: tuple[dict[str, Any], Mount] | None = None) -> dict[str, Any]:
    """Return one mount of a config as plain values."""
    if before is not None and before[1] is mount:
        return before[0]
    facts: dict[str, Any] = _converter.unstructure(mount)
    return facts


def differing(one: Any, other: Any) -> set[str] | None:
    """Return the patterns of mounts that only one of two configs has, or that differ; None if anything else does. Order is nothing here.

    Args:
        one, other: as `plain` has them. Either may be anything.
    """
    if one == other:  # mostly, and in a tenth of the time
        return set()
    try:
        ones, others = ({mount["pattern"]: _served(mount, Mount) for mount in config["mounts"]} for config in (one, other))
        tables = [{**_served(config, Config), "mounts": None} for config in (one, other)]
    except (TypeError, KeyError, AttributeError):
        return None
    return {pattern for pattern in {*ones, *others} if ones.get(pattern) != others.get(pattern)} if tables[0] == tables[1] else None


def _served(facts: dict[str, Any], cls: type[Config | Mount]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in _ASIDE[cls]}


def known(config: Config, mounts: Sequence[dict[str, Any]]) -> Known:
    """Return what `restore` need not make again of a config.

    Args:
        mounts: the plain values of its mounts, in order.
    """
    return {mount.pattern: (said, mount) for said, mount in zip(mounts, config.mounts, strict=True)}


def restore(facts: Any, before: Known = MappingProxyType({})) -> Config:
    """Return the config that plain values are.

    Args:
        before: what it may have parts of: to make 200 mounts takes 4 ms, to compare them a tenth of that. Its mounts keep the numbers that
            they have.

    Returns:
        the config. Its mounts' numbers are not their places: whoever serves it gives each one its own.

    Raises:
        NotAConfig: they are none, or of a release in which what they leave out means something else.
    """
    try:
        facts = {**facts}
        if facts.pop("form") != form():
            raise NotAConfig(f"{_NOT_OURS} (other settings or defaults)")
        mounts = []
        for said in facts["mounts"]:
            was, mount = before.get(said["pattern"], (None, None))
            mounts.append(mount if mount is not None and was == said else _converter.structure(said, Mount))
        config = attrs.evolve(_converter.structure({**facts, "mounts": []}, Config), mounts=tuple(mounts))
        patterns = [mount.pattern for mount in config.mounts]
        if len(set(patterns)) < len(patterns) or scoreboard.faults(patterns):
            raise NotAConfig("its mounts are too many, or two have the same pattern")
        return config
    except NotAConfig:
        raise
    except (BaseValidationError, TypeError, ValueError, KeyError, AttributeError, RecursionError) as exc:
        raise NotAConfig(f"{_NOT_OURS} ({type(exc).__name__}: {exc})"[:500]) from exc
