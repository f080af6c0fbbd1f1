"""uWSGI: an ini, XML, YAML or JSON file, or an Emperor's folder of them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from isowsgi.importing import sources, uwsgiforms, uwsgioptions, uwsgisettings
from isowsgi.importing.account import Account, BadSource
from isowsgi.importing.draft import Draft, MountDraft
from isowsgi.importing.uwsgiforms import Option
from isowsgi.importing.uwsgisettings import Server

# What uWSGI takes for yes; an option without a value is one.
_YES = frozenset(("", "1", "true", "yes", "on", "y"))


def import_from(path: str, account: Account, environ: Mapping[str, str]) -> Draft:
    """Read a file, or all vassals of a folder.

    Raises:
        BadSource: a file cannot be read.
    """
    draft = Draft(source=path)
    if not os.path.isdir(path):
        server = Server(path, path, account, draft, environ)
        _take(server, server.subscribed_host(), "", "")
        return draft
    names = sorted(name for name in os.listdir(path) if name.endswith(uwsgiforms.SUFFIXES))
    if not names:
        raise BadSource(path, f"expected vassals, files that end with {', '.join(uwsgiforms.SUFFIXES)}; got none")
    servers = [Server(os.path.join(path, name), os.path.join(path, name), account, draft, environ, len(names) > 1) for name in names]
    for server in servers:
        _take(server, *_place_of(server, alone=len(servers) == 1))
    return draft


def _place_of(server: Server, *, alone: bool) -> tuple[str, str, str]:
    """Return the host and path of a vassal, and what is doubtful: what it subscribes to says it, else its file's name."""
    stem = os.path.splitext(os.path.basename(server.path))[0]
    if host := server.subscribed_host():
        return host, "", ""
    if alone:
        return "", "", ""
    doubt = "the vassal had an address of its own, and the proxy chose it; here by the"
    if re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", stem.lower()):
        return stem.lower(), "", f"{doubt} host {stem}, after the file's name: check it"
    return (
        "",
        "/" + re.sub(r"[^\w.~-]", "-", stem),
        f'{doubt} path /{stem}, after the file\'s name: put its host there, as in "example.com/"',
    )


def _take(server: Server, host: str, prefix: str, doubt: str) -> None:
    """Make mounts of what was read."""
    for option in server.options:
        if not uwsgisettings.apply(server, option):
            _judge(server, option)
    server.settings["pythonpath"] = list(dict.fromkeys([*reversed(server.folders), server.folder]))
    apps = _apps(server)
    name = os.path.splitext(os.path.basename(server.path))[0]
    shares = "single-interpreter" in server.flags and len(apps) > 1
    for pattern, option in apps:
        if doubt:
            server.account.changed(option.at, doubt)
        settings = dict(server.settings)
        if shares or sum(each == option for _, each in apps) > 1:
            settings["group"] = name
        mount = MountDraft(pattern=host + (prefix + pattern or "/"), app=_app(server, option), at=option.at, settings=settings)
        if not pattern and any(where and each == option for where, each in apps):
            mount.notes.append("What no other mount takes went to the app that was loaded first.")
        server.draft.mount(mount, server.account)
    for where, path, option in server.files:
        mount = MountDraft(pattern=host + prefix + where, app=None, at=option.at, settings={"static": path, "index": ""})
        server.account.changed(option.at, "what is not there is 404; uWSGI asked the app then")
        server.draft.files(mount, where, path, server.account)


def _judge(server: Server, option: Option) -> None:
    account = server.account
    if option.key in ("subscribe-to", "subscribe", "subscribe2") and (host := server.subscribed_host()):
        account.taken(option.at, f"the mount's host, {host}")
        return
    if (verdict := uwsgioptions.verdict(option.key)) is not None:
        account.say(option.at, *verdict)
        if option.value.lower() in _YES:
            server.flags.add(option.key)
        return
    account.hide(option.at)  # a name of the user's own, which may be one of a password
    if option.key in server.references:
        account.taken(option.at, f"%({option.key}), filled in where it is used")
    else:
        account.left(option.at, f"uWSGI has no option {option.key!r}, and no line uses it as %({option.key})")


def _apps(server: Server) -> list[tuple[str, Option]]:
    """Return the apps with their paths, "" for all paths that no other one takes, as uWSGI finds them.

    By path only with `manage-script-name`, or behind a proxy that sends SCRIPT_NAME by the uwsgi protocol. What matches none goes to
    the app that was loaded first: that of `module`, else of the first `mount`.
    """
    apps = [("", server.module)] if server.module else []
    for option in server.mounts:
        where, _, app = option.value.partition("=")
        if not where.startswith("/") or not app:
            server.account.left(option.at, f"expected /path=app, got {option.value!r}; write this mount by hand")
        else:
            apps.append((where.rstrip("/"), option._replace(value=app)))
    if not server.mounts or not apps:
        return apps
    first = apps[0][1]
    if "manage-script-name" not in server.flags and "socket" not in server.flags:
        for _, option in apps[1:]:
            server.account.left(option.at, "never reached: without manage-script-name all requests went to the app that was loaded first")
        return [("", first)]
    if "manage-script-name" not in server.flags:
        for option in server.mounts:
            server.account.changed(option.at, "uWSGI went by the SCRIPT_NAME that the proxy sent, and isowsgi goes by the path")
    if "no-default-app" not in server.flags and all(where for where, _ in apps):
        apps.append(("", first))
    return apps


def _app(server: Server, option: Option) -> str:
    if option.key in ("wsgi-file", "file") or (option.key == "mount" and option.value.endswith((".py", ".wsgi"))):
        path = sources.absolute(option.value, server.folder)
        return path if server.callable == "application" else f"{path}:{server.callable}"
    return option.value if ":" in option.value else f"{option.value}:{server.callable}"
