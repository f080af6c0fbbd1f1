"""An application of Unit's: its settings as those of a mount, and scripts for apps that see the whole path."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Protocol

from isowsgi.importing import sources
from isowsgi.importing.account import Account, At, BadSource
from isowsgi.importing.draft import Draft
from isowsgi.importing.jsontext import Path

_SYSTEMD = "systemd's: "

_SCRIPT = '''\
"""Made by isowsgi import. NGINX Unit gave this app the whole path in PATH_INFO; isowsgi takes the mount's path off."""

{load}

PREFIX = {prefix!r}


def application(environ, start_response):
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    environ["SCRIPT_NAME"], environ["PATH_INFO"] = PREFIX, path[len(PREFIX) :]
    return app(environ, start_response)
'''


class Speaker(Protocol):
    """Who says what becomes of a value of the configuration."""

    draft: Draft
    account: Account
    folder: str
    places: dict[Path, At]

    def say(self, outcome: str, place: Path, note: str) -> None: ...
    def say_all(self, outcome: str, place: Path, note: str) -> None: ...


@dataclass(kw_only=True)
class App:
    """What a mount of the app is.

    Attributes:
        group: of all its mounts and targets, which one process of Unit's has together.
        module, name: of the callable; with `factory` the name is called.
        prefix: SCRIPT_NAME, of requests below it.
    """

    group: str
    module: str
    name: str
    factory: bool
    prefix: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def target(self) -> str:
        return f"{self.module}:{self.name}{'()' if self.factory else ''}"

    def places(self, prefix: str) -> list[tuple[str, str]]:
        """Return the mounts' paths for a prefix that routes lead to the app by, each with a script or ""."""
        if prefix == self.prefix:
            return [(prefix, "")]
        if self.prefix.startswith(prefix + "/"):
            return [(prefix, self._script("") if prefix else ""), (self.prefix, "")]
        own = self.prefix if prefix.startswith(self.prefix + "/") else ""
        return [(prefix, self._script(own))]

    def _script(self, prefix: str) -> str:
        load = f"from {self.module} import {self.name} as app"
        if self.factory:
            load = f"from {self.module} import {self.name}\n\napp = {self.name}()"
        return _SCRIPT.format(load=load, prefix=prefix)


def read(speaker: Speaker, place: Path, table: dict[str, Any]) -> App | None:
    """Return an app, or None if it is none of Python's that speaks WSGI.

    Args:
        place: of the app, or of one of its targets.

    Raises:
        BadSource: names that are none of Python's.
    """
    whole = place[:2]
    target = table.get("targets", {}).get(place[3], {}) if len(place) == 4 else table
    own = place if len(place) == 4 else whole
    if not re.fullmatch(r"python( ?[\d.]+)?", str(table.get("type", ""))) or "asgi" in (table.get("protocol"), target.get("protocol")):
        speaker.say_all("left", whole, "not Python that speaks WSGI: it needs a server of its own")
        return None
    module, name = str(target.get("module", "")), str(target.get("callable", "application"))
    for text, key in ((module, "module"), (name, "callable")):
        if not all(part.isidentifier() for part in text.split(".")) or (key == "callable" and "." in text):
            raise BadSource(speaker.places.get((*own, key), whole[-1]), f"expected a name of Python's for {key}, got {text!r}")
    app = App(
        group=re.sub(r"[^A-Za-z0-9_.-]", "-", str(whole[1]))[:64],
        module=module,
        name=name,
        factory=target.get("factory") is True,
        prefix=str(target.get("prefix", "")).rstrip("/"),
    )
    for key in ("module", "callable", "factory", "protocol", "prefix"):
        if key in target:
            speaker.say("taken", (*own, key), {"prefix": "SCRIPT_NAME: the mount's path"}.get(key, "app"))
    _common(speaker, whole, table, app)
    return app


def _common(speaker: Speaker, place: Path, table: dict[str, Any], app: App) -> None:
    """Take over what all targets of an app have."""
    folder = sources.absolute(str(table.get("working_directory", "")), speaker.folder)
    paths = table.get("path", [])
    app.settings["pythonpath"] = [sources.absolute(str(each), folder) for each in (paths if isinstance(paths, list) else [paths])]
    for key, value in table.items():
        at = (*place, key)
        if key == "type":
            speaker.say("changed", at, "the Python that gunicorn runs on, or python of the mount")
        elif key == "path":
            speaker.say_all("taken", at, "pythonpath")
        elif key == "home":
            app.settings["venv"] = sources.absolute(str(value), folder)
            speaker.say("taken", at, "venv")
        elif key == "threads" and isinstance(value, int):
            app.settings["threads"] = value
            speaker.say("taken", at, "threads")
        elif key == "environment" and isinstance(value, dict):
            app.settings["env"] = {name: str(text) for name, text in value.items()}
            for name in value:
                speaker.account.hide(speaker.places[*at, name])
            speaker.say_all("taken", at, "env")
        elif key == "processes":
            _processes(speaker, at, value, app)
        elif key == "limits" and isinstance(value, dict):
            _limits(speaker, at, value, app)
        elif key in ("user", "group"):
            speaker.draft.set_account(key, str(value), app.settings, speaker.account, speaker.places[at], "for all apps that name no other")
            speaker.say("changed", at, f"gunicorn's {key}, or the mount's user where another app has another one")
        elif key == "working_directory":
            _directory(speaker, at, folder)
        elif key in ("stdout", "stderr"):
            app.settings["log"] = sources.absolute(str(value), folder)
            speaker.say("taken", at, "log")
        elif key == "isolation":
            speaker.say_all("left", at, _SYSTEMD + 'see systemd.exec(5); isolation = "process" is a process of its own, without namespaces')
        elif key == "thread_stack_size":
            speaker.say("left", at, _SYSTEMD + "LimitSTACK=")
        elif key == "targets":
            continue
        elif key not in ("module", "callable", "factory", "protocol", "prefix"):
            speaker.say_all("left", at, "isowsgi has nothing for it; see Unit's manual")


def _processes(speaker: Speaker, at: Path, value: Any, app: App) -> None:
    most = value.get("max", 1) if isinstance(value, dict) else value
    if not isinstance(most, int) or most < 1:
        raise BadSource(speaker.places[at], f"expected a number of processes, got {most!r}")
    speaker.draft.set_server("workers", most, speaker.account, speaker.places[at])
    speaker.say_all("changed", at, "every app is in each of gunicorn's workers; instances of a mount are copies in one worker")
    if isinstance(value, dict) and isinstance(value.get("idle_timeout"), int) and value.get("spare") == 0:
        app.settings |= {"lazy": True, "idle_timeout": value["idle_timeout"]}


def _limits(speaker: Speaker, at: Path, value: dict[str, Any], app: App) -> None:
    for key, number in value.items():
        if key == "timeout" and isinstance(number, int):
            app.settings["request_timeout"] = number
            speaker.say("changed", (*at, key), "request_timeout: it counts from the last progress")
        elif key == "requests" and isinstance(number, int):
            app.settings["max_requests"] = number
            speaker.say("changed", (*at, key), "max_requests: the app is replaced, without a gap, and not a process")
        else:
            speaker.say_all("left", (*at, key), _SYSTEMD + "MemoryMax= and its like")


def _directory(speaker: Speaker, at: Path, folder: str) -> None:
    if speaker.draft.server.get("chdir", folder) == folder:
        speaker.draft.set_server("chdir", folder, speaker.account, speaker.places[at])
        speaker.say("changed", at, "gunicorn's chdir: the working directory is one for all apps")
    else:
        speaker.say("left", at, "the working directory is one for all apps; build paths from __file__")
