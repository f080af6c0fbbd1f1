"""Writes a draft: the config file with comments, and gunicorn's own settings file. Text only, no I/O."""

from __future__ import annotations

import json
from typing import Any

import tomlkit
from tomlkit.items import Item, Table

from isowsgi.importing.draft import Draft, MountDraft, TlsDraft

# The order of a mount's keys in the file; others follow as they come.
_ORDER = (
    "redirect",
    "status",
    "static",
    "index",
    "hosts",
    "pythonpath",
    "venv",
    "python",
    "env",
    "env_file",
    "group",
    "isolation",
    "threads",
    "instances",
)


def config_file(draft: Draft, title: str) -> str:
    """Return the config file's text.

    Args:
        title: its first line, a comment.
    """
    document = tomlkit.document()
    document.add(_comment(title))
    for name, values in draft.tables.items():
        document.add(tomlkit.nl())
        table = tomlkit.table()
        for key, value in values.items():
            table.add(key, _item(value))
        document.add(name, table)
    mounts = tomlkit.table(is_super_table=True)
    refused = [mount for mount in draft.mounts if "app" in mount.unusable]
    for mount in draft.mounts:
        if mount not in refused:
            mounts.add(mount.pattern, _mount(mount))
    if len(mounts):
        document.add(tomlkit.nl())
        document.add("mounts", mounts)
    served = tomlkit.aot()
    for each in draft.tls:
        if not each.unusable:
            served.append(_certificate(each))
    if len(served):
        document.add("tls", served)
    # Comments last: after the tables they stand alone, and no key that is uncommented falls into another table.
    text: str = tomlkit.dumps(document)
    return text + "".join([*(_refused(mount) for mount in refused), *(_refused_tls(each) for each in draft.tls if each.unusable)])


def _mount(mount: MountDraft) -> Table:
    table = tomlkit.table()
    for note in mount.notes:
        table.add(_comment(note))
    if mount.app is not None:
        table.add("app", _item(mount.app))
    for key in sorted(mount.settings, key=_rank):
        value = _item(mount.settings[key])
        if key in mount.unusable:
            table.add(_comment(f"{key} = {value.as_string()}"))
            table.add(_comment(f"  {mount.unusable[key]}"))
        else:
            table.add(key, value)
    table.add(tomlkit.nl())
    return table


def _refused(mount: MountDraft) -> str:
    """Return a mount that cannot be served here, as comments."""
    document = tomlkit.document()
    mounts = tomlkit.table(is_super_table=True)
    table = tomlkit.table()
    for key, value in (({"app": mount.app} if mount.app else {}) | mount.settings).items():
        table.add(key, _item(value))
    mounts.add(mount.pattern, table)
    document.add("mounts", mounts)
    return _commented([mount.unusable["app"], *tomlkit.dumps(document).splitlines()])


def _certificate(tls: TlsDraft) -> Table:
    table = tomlkit.table()
    for key, value in {"hosts": tls.hosts, "certificate": tls.certificate, "key": tls.key}.items():
        table.add(key, _item(value))
    table.add(tomlkit.nl())
    return table


def _refused_tls(tls: TlsDraft) -> str:
    document = tomlkit.document()
    tables = tomlkit.aot()
    tables.append(_certificate(tls))
    document.add("tls", tables)
    return _commented([tls.unusable, *tomlkit.dumps(document).rstrip().splitlines()])


def _commented(lines: list[str]) -> str:
    return "".join(_comment(line).as_string().rstrip("\n") + "\n" for line in ["", *lines])


def _rank(key: str) -> int:
    return _ORDER.index(key) if key in _ORDER else len(_ORDER)


def _comment(text: str) -> tomlkit.items.Comment:
    """Return a comment; what is in it may come from another's file, and must not end it."""
    return tomlkit.comment("".join(char if char.isprintable() else " " for char in text))


def _item(value: Any) -> Item:
    if isinstance(value, dict):
        table = tomlkit.inline_table()
        for name, each in value.items():
            table.add(name, _item(each))
        return table
    if isinstance(value, list):
        array = tomlkit.array()
        for each in value:
            array.append(_item(each))
        return array
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    item: Item = tomlkit.item(value)
    return item


def gunicorn_file(draft: Draft, config: str, title: str) -> str:
    """Return gunicorn's own settings file.

    Args:
        config: the config file's path, as gunicorn will be told it.
    """
    settings = {"wsgi_app": f"isowsgi:config({json.dumps(config)})", "worker_class": "isowsgi.Worker", **draft.server}
    lines = [_comment(title).as_string().strip(), "# Start it: gunicorn --config gunicorn.conf.py", ""]
    return "\n".join(lines + [f"{name} = {value!r}" for name, value in settings.items()]) + "\n"
