"""What Apache runs instead of sending it: an Alias may lead to programs, and as files their source would be there for everybody.

So an Alias leads to files only if nothing that may hold for it, or for anything below it, has something run, and if all of it could be
looked at.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from isowsgi.importing import foldertree
from isowsgi.importing.account import Outcome
from isowsgi.importing.apacheconfig import Host, Told
from isowsgi.importing.apachesections import Spot, has_variable, may_hold, normal, rank, spot_below, surely_holds

WSGI = "wsgi-script"

# What Apache itself does with a file. The first only undoes what another SetHandler says, and not what AddHandler does.
_NONE = "none"
_FILES = frozenset((_NONE, "default-handler"))

# Debian and Fedora have these run everywhere, by a file that a site does not include.
_PHP = re.compile(r"\.(php\d?|phtml|phar)$", re.IGNORECASE)

# A line of .htaccess that has something run.
_RUNS = re.compile(
    r"(?im)^\s*(?:SetHandler\s+(?![\"']?(?:none|default-handler)\b)|AddHandler\s|Action\s|"
    r"(?:AddType|ForceType)\s.*x-httpd|(?:Add|Set)OutputFilter\s.*includes|RewriteRule\s.*[\[,]\s*H(?:andler)?=)"
)

# Apache reads more of a .htaccess; one that is longer counts as one that could not be looked at.
_MOST_HTACCESS_CHARS = 65536


@dataclass(kw_only=True)
class Target:
    """What an Alias leads to.

    Attributes:
        handler: what runs it, or some of it; "": all are files.
        scripts: the apps, if that is `WSGI`; relative to the folder, or the file's name.
        others: files that are none.
        is_folder: whether it is a folder.
        fault: why it could not be looked at; "" if it could.
    """

    handler: str = ""
    scripts: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    is_folder: bool = False
    fault: str = ""

    @property
    def hidden(self) -> str:
        """Return a file that Apache reads or has others read, and does not send, such as .htaccess; "" if there is none."""
        return next((name for name in self.others if os.path.basename(name).startswith(".ht")), "")

    @property
    def is_app(self) -> bool:
        """Whether it is an app, or a folder with some."""
        return self.handler == WSGI and bool(self.scripts)


def reason(target: Target) -> str:
    """Return why an Alias is not taken over as files."""
    if target.fault:
        return (
            f"not all of it could be looked at ({target.fault}), and of programs that Apache ran everybody could read the source: "
            "run the import where its files are, as a user who may read them, or write the mount"
        )
    if target.handler == WSGI:
        return "Apache ran apps in it, and none is a script directly in this folder or one that ends with .wsgi: write a mount for each"
    return f"Apache ran programs in it ({target.handler}): they need a server of their own, and as files everybody could read them"


class Handlers:
    """All SetHandler and AddHandler of a configuration.

    Args:
        main: what is said outside of all hosts.
    """

    def __init__(self, main: Host, hosts: list[Host]) -> None:
        self._main, self._hosts = main, hosts
        self._known: dict[int, Target] = {}
        self._used: set[int] = set()

    def target(self, alias: Told, host: Host) -> Target:
        """Return what an Alias of a host leads to."""
        if len(alias.words) != 2:
            return Target(fault="expected a path and a folder or file")
        if id(alias) not in self._known:
            where, path = alias.words
            self._known[id(alias)] = self._look(normal("/" + where), normal(path), host)
        return self._known[id(alias)]

    def verdict(self, told: Told) -> tuple[Outcome, str]:
        """Return what becomes of a SetHandler or AddHandler, once all that an Alias leads to is known."""
        handler = _handler(told)
        if handler == WSGI:
            if id(told) in self._used:
                return Outcome.TAKEN, "the script is a mount"
            return Outcome.LEFT, "no Alias leads to a script that it ran; write a mount for each one that no WSGIScriptAlias names"
        if handler in _FILES:
            return Outcome.TAKEN, "files are sent as they are"
        if handler.startswith("server-"):
            return Outcome.LEFT, "a status page: see isowsgi status and its metrics"
        return Outcome.LEFT, "not Python: it needs a server of its own"

    def _look(self, url: str, path: str, host: Host) -> Target:
        is_folder = os.path.isdir(path)
        if not os.path.isabs(path) or not (is_folder or os.path.isfile(path)):
            return Target(fault=f"{path}: no such file or folder here")
        folder, name = (path, "") if is_folder else os.path.split(path)
        tree = foldertree.look(path) if is_folder else foldertree.Tree([], [name])
        if tree.fault:
            return Target(is_folder=is_folder, fault=tree.fault)
        files = {each: _file(folder, each, _below(url, each) if is_folder else url) for each in tree.files}
        folders = [Spot(os.path.join(folder, each), _below(url, each)) for each in tree.folders]
        handlers = {"PHP"} if any(map(_PHP.search, tree.files)) else set()
        handlers |= _of_htaccess(folder, tree.files)
        scripts: dict[str, Told] = {}
        for rules in self._contexts(host):
            handlers.add(rules.of_all(files, [*folders, *(rules.spots_below(Spot(folder, url)) if is_folder else ())], scripts))
        if is_folder:
            scripts = {each: told for each, told in scripts.items() if _is_script(each, told)}
        others = [each for each in tree.files if each not in scripts]
        return Target(handler=self._judge(handlers, scripts), scripts=list(scripts), others=others, is_folder=is_folder)

    def _contexts(self, host: Host) -> list[_Rules]:
        """Return what holds for a host's Alias; one outside of all hosts is there in each of them."""
        if host is not self._main:
            return [_Rules(self._main, host)]
        return [_Rules(self._main), *(_Rules(self._main, each) for each in self._hosts)]

    def _judge(self, handlers: set[str], scripts: dict[str, Told]) -> str:
        """Return the one handler that decides; note what made apps, if these are all that is run."""
        others = sorted(handlers - {"", WSGI})
        if others or WSGI not in handlers:
            return others[0] if others else ""
        if handlers != {WSGI}:
            return f"{WSGI}, in some hosts only"
        self._used |= {id(told) for told in scripts.values()}
        return WSGI


class _Rules:
    """What decides, in one host, which handler a file has."""

    def __init__(self, main: Host, host: Host | None = None) -> None:
        both = [(told, each is host) for each in (main, host) if each is not None for told in each.told]
        both.sort(key=lambda pair: rank(*pair))
        self._set = [told for told, _ in both if told.name == "sethandler" and told.words]
        self._add = [told for told, _ in both if told.name == "addhandler" and told.words]
        self._unsure = [told for each in (main, host) if each is not None for told in each.unsure if _handler(told) not in _FILES]

    def of_all(self, files: dict[str, Spot], folders: Iterable[Spot], scripts: dict[str, Told]) -> str:
        """Return what runs some of the files, or what may come to be in a folder; the gravest, and "" if there is nothing.

        Args:
            files: by name.
            scripts: takes up the names of apps, with the directive that says so.
        """
        worst = ""
        for name, spot in [*files.items(), *(("", spot) for spot in folders)]:
            handler, told = self.of(spot)
            if handler and handler != WSGI:
                return handler
            if handler:
                worst = WSGI
            if told is not None and name:
                scripts[name] = told
        return worst

    def spots_below(self, top: Spot) -> list[Spot]:
        """Return the places below a folder that a section names."""
        return [spot for told in (*self._set, *self._unsure) if (spot := spot_below(told, top)) is not None]

    def of(self, spot: Spot) -> tuple[str, Told | None]:
        """Return what runs a file, "" if it is sent, with the directive that says so."""
        for told in self._unsure:
            if may_hold(told, spot) and (told.name == "sethandler" or _may_have_suffix(told, spot.name)):
                return _handler(told), None
        last: Told | None = None
        for told in self._set:
            if _counts(told, spot):
                last = told
        if last is not None and _handler(last) != _NONE:
            return ("", None) if _handler(last) in _FILES else (_handler(last), last)
        added: dict[str, Told] = {}
        for told in self._add:
            if _counts(told, spot):
                added |= dict.fromkeys(_suffixes(told) & _parts_of(spot.name), told)
        ran = [told for told in added.values() if _handler(told) not in _FILES]
        return min(((_handler(told), told) for told in ran), key=lambda pair: pair[0] == WSGI, default=("", None))


def _handler(told: Told) -> str:
    """Return what a directive names, in lower case, as Apache compares it."""
    return told.words[0].lower() if told.words else ""


def _counts(told: Told, spot: Spot) -> bool:
    """Whether a directive counts for a spot: one that has it sent as a file only if it surely holds there."""
    return surely_holds(told, spot) if _handler(told) in _FILES else may_hold(told, spot)


def _is_script(name: str, told: Told) -> bool:
    """Whether a file of a folder is meant to be an app, and no module of one that lies in a folder below.

    Args:
        told: has it run as an app.
    """
    if name.endswith(".wsgi"):
        return True
    return "/" not in name and (told.name == "addhandler" or told.files != "" or name.endswith(".py"))


def _suffixes(told: Told) -> set[str]:
    return {suffix.lstrip(".").lower() for suffix in told.words[1:]}


def _parts_of(name: str) -> set[str]:
    """Return what is between dots and after them: each may be a suffix to Apache's mod_mime."""
    return set(name.lower().split(".")[1:])


def _may_have_suffix(told: Told, name: str) -> bool:
    return bool(_suffixes(told) & _parts_of(name)) or any(map(has_variable, told.words[1:]))


def _file(folder: str, name: str, url: str) -> Spot:
    below, name = os.path.split(name)
    return Spot(os.path.join(folder, below), url, name)


def _below(url: str, name: str) -> str:
    return f"{url.rstrip('/')}/{name}" if name else url


def _of_htaccess(folder: str, names: Iterable[str]) -> set[str]:
    """Return which files .htaccess, in a folder, above it and below it, have something run."""
    above = [folder]
    while (parent := os.path.dirname(above[-1])) != above[-1]:
        above.append(parent)
    inside = (os.path.join(folder, name) for name in names if os.path.basename(name) == ".htaccess")
    return {path for path in {*inside, *(os.path.join(each, ".htaccess") for each in above)} if _runs_something(path)}


def _runs_something(path: str) -> bool:
    """Whether a .htaccess has something run; also if that cannot be told."""
    if not os.path.isfile(path):  # a pipe would keep us waiting
        return os.path.lexists(path)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(_MOST_HTACCESS_CHARS + 1)
    except OSError:
        return True
    return len(text) > _MOST_HTACCESS_CHARS or _RUNS.search(text) is not None
