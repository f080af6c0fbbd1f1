"""What differs between two config files, or between the one that runs and the one on disk.

Both are compared as text, after all of their settings have been merged and checked: a value that moved from a mount to `[defaults]` is no
difference. Variables of the apps' environments are compared by a digest, so that a worker need not tell them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from isowsgi.configuration import costs, sizes
from isowsgi.configuration.costs import Cost
from isowsgi.configuration.values import Certificate, Config, Mount
from isowsgi.shared import policies

# Characters of a digest: enough that two values differ by it, and no use for whoever wants to know them.
_DIGEST_CHARS = 16

# Tables of the file that are not mounts, by their field of `Config`.
_TABLES = {"limits": "worker", "control": "control", "status": "status", "log": "log"}

# What certificate clients get that ask for no host of any `[[tls]]`, among that table's settings. gunicorn's `certfile` goes before it.
OTHER_HOSTS = "other hosts"

# Settings by name, as TOML writes them; those with their default are left out.
Settings = dict[str, str]


@attrs.frozen(kw_only=True)
class Summary:
    """All that a config file says.

    Attributes:
        tables: settings by table ("worker").
        mounts: settings by pattern.
    """

    tables: dict[str, Settings]
    mounts: dict[str, Settings]


@attrs.frozen(kw_only=True)
class Setting:
    """A setting that differs. A value is None where it has its default; that of a variable is never told."""

    name: str
    old: str | None
    new: str | None

    @property
    def is_secret(self) -> bool:
        return self.name.startswith("env.")


@attrs.frozen(kw_only=True)
class Difference:
    """One mount or table that differs.

    Attributes:
        sign: "+" it is new, "-" it is gone, "~" some of its settings differ.
        name: a mount's pattern, or a table as the file writes it ("[worker]").
        settings: by name; for a new mount what it says, for one that is gone nothing.
        cost: what taking it up does.
        group: of the mount, if it has one.
    """

    sign: str
    name: str
    settings: tuple[Setting, ...] = ()
    cost: Cost
    group: str | None = None


def summary(config: Config, salt: str) -> Summary:
    """Return what a config says.

    Args:
        salt: of the digests; those of two summaries can be compared only if they have the same.
    """
    return Summary(tables=tables_of(config, salt), mounts={mount.pattern: settings_of(mount, salt) for mount in config.mounts})


def tables_of(config: Config, salt: str) -> dict[str, Settings]:
    """Return the tables of a `Summary`."""
    tables = {table: settings_of(getattr(config, field), salt) for field, table in _TABLES.items()}
    tables["tls"] = _certificates_of(config.tls)
    tables["acceptor"] = {"head_timeout": text_of(config.head_timeout)}
    tables["include"] = {"include": text_of(list(config.include))} if config.include else {}
    return tables


def _certificates_of(tls: Sequence[Certificate]) -> Settings:
    """Return the files of each host's certificate, which tells more than the place of a table; and which one others get."""
    said: Settings = {}
    for each in tls:
        files = each.certificate if each.key == each.certificate else [each.certificate, each.key]
        said |= {f"hosts.{host}": text_of(files) for host in each.hosts}
    return said | ({OTHER_HOSTS: text_of(tls[0].certificate)} if tls else {})


def differences(old: Summary, new: Summary) -> list[Difference]:
    """Return what must change for the one to become the other: tables, then mounts in the new one's order, then those that are gone."""
    found = []
    for name, said in new.tables.items():
        changed = _changed(old.tables.get(name, {}), said)
        cost = costs.of_table(name, [setting.name for setting in changed], new)
        found.append(Difference(sign="~", name="[[tls]]" if name == "tls" else f"[{name}]", settings=changed, cost=cost))
    of_mounts = costs.of_mounts(old, new)
    for pattern, said in new.mounts.items():
        before = old.mounts.get(pattern)
        facts: dict[str, Any] = {"cost": of_mounts[pattern], "group": said.get("group")}
        found.append(Difference(sign="+" if before is None else "~", name=pattern, settings=_changed(before or {}, said), **facts))
    gone = [
        Difference(sign="-", name=pattern, cost=of_mounts[pattern], group=said.get("group"))
        for pattern, said in old.mounts.items()
        if pattern not in new.mounts
    ]
    return [each for each in found if each.settings or each.sign == "+"] + gone


def _changed(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[Setting, ...]:
    return tuple(
        Setting(name=name, old=old.get(name), new=new.get(name)) for name in dict.fromkeys([*new, *old]) if old.get(name) != new.get(name)
    )


def settings_of(table: Any, salt: str) -> Settings:
    """Return what differs from the defaults of a table's class; of a mapping, each of its names by itself."""
    said: Settings = {}
    for field in attrs.fields(type(table)):
        value = getattr(table, field.name)
        if value is field.default:  # nearly all of a mount's, so it says nothing
            continue
        if field.name == "files" and value is not None:
            said |= {"static": text_of(value.path)} | {name: each for name, each in settings_of(value, salt).items() if name != "path"}
        elif field.name == "app" and isinstance(table, Mount) and table.files is not None:
            continue  # it is what says the same to an interpreter
        elif field.name == "app":
            said |= {"app": text_of(f"{value.target}:{value.call}")} if value.target else {}
        elif field.name == "env":
            said |= {f"env.{name}": _digest(salt, each) for name, each in value.items()}
        elif field.name == "max_memory" and value:
            said["max_memory"] = text_of(sizes.text(value))
        elif field.name == "sandbox" and isinstance(value, Mapping):
            said |= {"sandbox": "true"} | {f"sandbox.{word}": text_of(list(each)) for word, each in value.items()}
        elif field.name == "limits":
            said |= {f"limits.{name}": text_of(_limit(name, each)) for name, each in value.items()}
        elif isinstance(value, Mapping):
            said |= _of_words(field.name, value)
        elif field.name == "file":
            said |= {"file": text_of(value)} if value is not None else {}  # a mount that moves to another file is not loaded again
        elif field.eq is not False and value != field.default and not (isinstance(table, Mount) and field.name in _OF_THE_PATTERN):
            said[field.name] = text_of(value)
    return said


# Parts of the pattern, which is the mount's name here.
_OF_THE_PATTERN = ("pattern", "host", "prefix")


def _of_words(name: str, values: Mapping[str, str]) -> Settings:
    """Return the settings of a policy: one if all words have the same value, as the file may write it."""
    if len(values) == len(policies.WORDS) and len(kinds := set(values.values())) == 1:
        return {name: text_of(*kinds)}
    return {f"{name}.{word}": text_of(value) for word, value in values.items()}


def _limit(name: str, value: Any) -> Any:
    """Return a limit as the config file may write it."""
    if name in ("memory", "file_size"):
        return sizes.text(int(value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


def text_of(value: Any) -> str:
    """Return a value as a summary has it."""
    # What JSON writes of strings, numbers, switches and lists of them is TOML too.
    return json.dumps(value, ensure_ascii=False)


def _digest(salt: str, value: str) -> str:
    return hashlib.sha256(f"{salt}\0{value}".encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_CHARS]
