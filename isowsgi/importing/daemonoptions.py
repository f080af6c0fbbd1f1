"""The options of WSGIDaemonProcess: each becomes a mount's setting, one of gunicorn's, or is told to be neither."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from isowsgi.importing.account import Account, At, BadSource
from isowsgi.importing.apacheconfig import Told
from isowsgi.importing.draft import Draft

_MOUNT = {
    "threads": ("threads", ""),
    "request-timeout": ("request_timeout", "it ends the request alone, and not the process"),
    "queue-timeout": ("queue_timeout", ""),
    "inactivity-timeout": ("idle_timeout", "the app is ended, and loaded again for the next request"),
    "startup-timeout": ("boot_timeout", "for each app"),
    "maximum-requests": ("max_requests", "the app is replaced, without a gap, and not the process"),
    "restart-interval": ("max_age", "the app is replaced, without a gap, and not the process"),
}
_SERVER = {"graceful-timeout": "graceful_timeout", "listen-backlog": "backlog"}

_SYSTEMD = "systemd's: "
_NOT = {
    "interrupt-timeout": "request_timeout does that",
    "deadlock-timeout": "an app that holds its GIL is found by request_timeout",
    "shutdown-timeout": "gunicorn's graceful_timeout",
    "eviction-timeout": "gunicorn's graceful_timeout",
    "connect-timeout": "the proxy's proxy_connect_timeout",
    "socket-timeout": "body_timeout and send_timeout of a mount",
    "response-socket-timeout": "send_timeout of a mount",
    "cpu-time-limit": _SYSTEMD + "LimitCPU=",
    "cpu-priority": _SYSTEMD + "Nice=",
    "memory-limit": "max_rss in [worker], or MemoryMax= of systemd",
    "virtual-memory-limit": "max_rss in [worker], or MemoryMax= of systemd",
    "stack-size": _SYSTEMD + "LimitSTACK=",
    "chroot": _SYSTEMD + "RootDirectory=",
    "supplementary-groups": _SYSTEMD + "SupplementaryGroups=",
    "script-user": "no user is asked for a script's owner",
    "script-group": "no group is asked for a script's",
    "socket-user": "there is no socket between Apache and a daemon process",
    "umask": "gunicorn's umask, for all apps",
    "python-eggs": "set PYTHON_EGG_CACHE in env",
    "display-name": "gunicorn's proc_name, for all workers",
    "server-metrics": "isowsgi status and its Prometheus metrics",
    "switch-interval": "it is isowsgi's",
}  # fmt: skip


@dataclass
class Daemon:
    """A daemon process.

    Attributes:
        settings: of the mounts that run in it.
    """

    name: str
    at: At
    settings: dict[str, Any] = field(default_factory=dict)


def read(told: Told, draft: Draft, account: Account) -> Daemon:
    """Return a daemon process; what its options become is in the account.

    Raises:
        BadSource: an option without a value, or a number that is none.
    """
    daemon = Daemon(told.words[0], told.at, {"pythonpath": []})
    account.taken(told.at, "settings of the mounts that run in it")
    home = ""
    for word in told.words[1:]:
        name, equals, value = word.partition("=")
        value = value.strip("'\"")
        if not equals:
            raise BadSource(told.at, f"expected name=value in WSGIDaemonProcess, got {word!r}")
        if name == "home":
            home = value
        _option(name, value, daemon, draft, account)
    if home:
        if draft.server.get("chdir", home) == home:
            draft.set_server("chdir", home, account, told.at)
        else:
            account.changed(
                told.at, f"home: only its part in sys.path; the working directory is one for all apps, {draft.server['chdir']!r}"
            )
        daemon.settings["pythonpath"] = [home, *daemon.settings["pythonpath"]]
    return daemon


def _option(name: str, value: str, daemon: Daemon, draft: Draft, account: Account) -> None:
    at = daemon.at
    if name in _MOUNT or name in _SERVER or name == "processes":
        if not re.fullmatch(r"\d{1,9}", value):
            raise BadSource(at, f"expected a whole number for {name}, got {value!r}")
        number = int(value)
    if name in _MOUNT:
        key, note = _MOUNT[name]
        daemon.settings[key] = number
        (account.changed if note else account.taken)(at, key + (f": {note}" if note else ""))
    elif name in _SERVER:
        draft.set_server(_SERVER[name], number, account, at)
    elif name == "processes":
        draft.set_server("workers", number, account, at)
    elif name in ("user", "group"):
        value = value.removeprefix("#")
        draft.set_account(name, int(value) if value.isdigit() else value, daemon.settings, account, at)
    elif name == "python-home":
        daemon.settings["venv"] = value
        account.taken(at, "venv")
    elif name == "python-path":
        daemon.settings["pythonpath"] = [folder for folder in value.split(":") if folder]
        account.taken(at, "pythonpath")
    elif name == "lang":
        daemon.settings.setdefault("env", {})["LANG"] = value
        account.changed(at, "env.LANG, for the app; its process' locale is that of the service")
    elif name == "locale":
        account.changed(at, f"locale: set LC_ALL={value} in the service's environment, for all apps")
    elif name.endswith("-buffer-size"):
        account.changed(at, f"{name}: not taken: an inside matter of mod_wsgi; nothing to do")
    elif name != "home":
        account.changed(at, f"{name}: not taken: {_NOT.get(name, 'mod_wsgi has no such option')}")
