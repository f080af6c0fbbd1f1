"""What Apache makes of its files: Define, Include, conditions, and which virtual host, folder or location a directive is of."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from isowsgi.importing import apacheoptions, apachetext, sources
from isowsgi.importing.account import Account, At, BadSource, Outcome
from isowsgi.importing.apachetext import Directive, words

# Files within files: Apache's own limit (AP_MAX_INCLUDE_DEPTH).
_MOST_NESTED = 20

_HERE = frozenset(("directory", "directorymatch", "location", "locationmatch", "files", "filesmatch", "wsgiinterpreteroptions"))
_UNKNOWN_WHEN = frozenset(
    ("if", "elseif", "else", "proxy", "proxymatch", "limit", "limitexcept", "requireall", "requireany", "requirenone", "authnprovideralias")
)


@dataclass(kw_only=True)
class Told:
    """A directive of mod_wsgi's or its kin, with its words, and where it holds.

    Attributes:
        here: ("directory", "/srv/shop") and its like; None: everywhere in its host.
        files: an expression for the names of files, if it is about some only.
    """

    name: str
    words: list[str]
    at: At
    here: tuple[str, str] | None = None
    files: str = ""


@dataclass(kw_only=True)
class Host:
    """A virtual host, or the main server.

    Attributes:
        address: as <VirtualHost> has it; "" for the main server.
        names: of ServerName and ServerAlias, in lower case, without port.
        told: in the order of the files.
        unsure: what may have something run, and is not told: SetHandler and AddHandler in sections that cannot be decided here, and
            what amounts to them.
    """

    address: str
    at: At | None = None
    names: list[str] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    unsure: list[Told] = field(default_factory=list)

    def words(self, name: str) -> list[str]:
        """Return the first word of each directive of a name that is in no section."""
        return [told.words[0] for told in self.told if told.name == name and told.words and told.here is None]


# What code deals with; all else is judged by its name.
_WANTED = frozenset(
    (
        *("wsgiscriptalias", "wsgiscriptaliasmatch", "wsgidaemonprocess", "wsgiprocessgroup", "wsgiapplicationgroup", "wsgicallableobject"),
        *("wsgipythonhome", "wsgipythonpath", "wsgiscriptreloading", "setenv", "alias", "redirect", "documentroot", "keepalivetimeout"),
        *("user", "group", "sslcertificatefile", "sslcertificatekeyfile", "sethandler", "addhandler"),
    )
)


class Reading:
    """One Apache's configuration.

    Args:
        environ: for ${NAME} that no Define has set.
    """

    def __init__(self, account: Account, environ: Mapping[str, str]) -> None:
        self.account = account
        self.main = Host(address="")
        self.hosts: list[Host] = []
        self._defined: dict[str, str] = {}
        self._environ = environ
        self._root = ""
        self._nested = 0
        self._files = ""  # of the <Files> section that is being read

    def file(self, path: str, shown: str, at: At | None = None) -> None:
        """Read a file, and those that it includes.

        Raises:
            BadSource: it cannot be read, or a line of it.
        """
        self._read(path, shown, self.main, None, at)

    def _read(self, path: str, shown: str, host: Host, here: tuple[str, str] | None, at: At | None) -> None:
        if self._nested > _MOST_NESTED:
            raise BadSource(at or shown, f"expected at most {_MOST_NESTED} files within files; does one include itself?")
        self._root = self._root or os.path.dirname(os.path.abspath(path))
        text = sources.read(path)
        directives, counted = apachetext.parse(shown, text)
        self.account.open(shown, os.path.abspath(path), text, counted)
        self._all(directives, host, here)

    def _all(self, directives: list[Directive], host: Host, here: tuple[str, str] | None) -> None:
        for directive in directives:
            self.account.join(directive.at)
            if directive.children is None:
                self._line(directive, host, here)
            else:
                self._section(directive, directive.children, host, here)

    def _section(self, section: Directive, children: list[Directive], host: Host, here: tuple[str, str] | None) -> None:
        name, text = section.name, self._filled(section.text)
        if name == "virtualhost":
            inner = Host(address=" ".join(words(text)), at=section.at)
            self.hosts.append(inner)
            self.account.taken(section.at, "a host: its names are in the patterns of its mounts")
            self._all(children, inner, None)
        elif name in _HERE:
            self.account.taken(section.at, "what it says is told line by line")
            outer = self._files
            here, self._files = _narrowed(name, words(text), here, outer)
            self._all(children, host, here)
            self._files = outer
        elif name.startswith("if") and name not in _UNKNOWN_WHEN:
            self._condition(section, children, text, host, here)
        elif name == "macro":
            self._leave(section, "mod_macro is not taken: write what each Use line stands for in its place, and import that", host, here)
        else:
            self._leave(section, f"what <{section.shown}> decides is the proxy's or the app's; write it there", host, here)

    def _condition(self, section: Directive, children: list[Directive], text: str, host: Host, here: tuple[str, str] | None) -> None:
        wants = not text.startswith("!")
        wanted = words(text.removeprefix("!").strip())
        holds = self._holds(section, wanted)
        if holds is None:
            self._leave(section, f"<{section.shown}> cannot be decided here; write what counts without it, and import that", host, here)
        elif holds == wants:
            self.account.changed(section.at, "decided once, now: it holds")
            self._all(children, host, here)
        else:
            self._leave(section, f"does not count: <{section.shown} {text}> does not hold while importing", host, here)
            self.account.changed(section.at, "decided once, now: it does not hold")

    def _holds(self, section: Directive, wanted: list[str]) -> bool | None:
        first = wanted[0] if wanted else ""
        if section.name == "ifdefine":
            return first in self._defined
        if section.name == "ifmodule":  # what is loaded is not known; who writes a module's settings mostly has it
            return not re.fullmatch(r"(mod_)?(mpm_)?(prefork|worker|itk|winnt|php\d*|perl|ruby|fcgid|passenger)(_module|\.c)?", first)
        if section.name == "iffile":
            return os.path.exists(os.path.join(self._root, first))
        if section.name == "ifversion":
            return _version_holds(wanted)
        return None

    def _leave(self, left: Directive, note: str, host: Host, here: tuple[str, str] | None) -> None:
        """Leave a section with all that is in it, but for the handlers: Apache may decide otherwise, and have something run."""
        self.account.left(left.at, note)
        self._note_handler(left, host, here)
        outer = self._files
        if left.name in _HERE:
            here, self._files = _narrowed(left.name, words(self._filled(left.text)), here, outer)
        for child in left.children or ():
            self.account.join(child.at)
            self._leave(child, note, host, here)
        self._files = outer

    def _note_handler(self, directive: Directive, host: Host, here: tuple[str, str] | None) -> None:
        if (found := _as_handler(directive.name, self._filled(directive.text))) is not None:
            name, said = found
            host.unsure.append(Told(name=name, words=said, at=directive.at, here=here, files=self._files))

    def _line(self, directive: Directive, host: Host, here: tuple[str, str] | None) -> None:
        name, at = directive.name, directive.at
        text = self._filled(directive.text)
        told = words(text)
        if name in ("define", "undefine") and told:
            self.account.taken(at, f"${{{told[0]}}}, filled in where it is used")
            if name == "define":
                self.account.hide(at)
                self._defined[told[0]] = " ".join(told[1:])
            else:
                self._defined.pop(told[0], None)
        elif name in ("include", "includeoptional") and told:
            self._include(told[0], host, here, at)
        elif name == "serverroot" and told:
            self._root = told[0]
            self.account.taken(at, "paths of Include lines begin there")
        elif name in ("servername", "serveralias") and told and here is None:
            self._names([re.sub(r"^\w+://|:\d+$", "", word).lower() for word in told], host, at)
        elif name == "use":
            self.account.left(at, "mod_macro is not taken: write what the macro's lines say in its place, and import that")
        elif name in _WANTED:
            host.told.append(Told(name=name, words=told, at=at, here=here, files=self._files))
        else:
            self._note_handler(directive, host, here)
            unknown = Outcome.LEFT, f"isowsgi import does not know the directive {directive.shown}; most such are the proxy's"
            self.account.say(at, *(apacheoptions.verdict(name, text) or unknown))

    def _names(self, names: list[str], host: Host, at: At) -> None:
        self.account.taken(at, "a host of the mounts" if host.address else "the name of the server itself; nothing to write")
        for name in names:
            if not re.fullmatch(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:]+\]", name):
                self.account.left(at, f"{name}: write the hosts that this stands for; of wildcards there is '*.example.com'")
                continue
            host.names.append(name)
            if name.startswith("*"):
                self.account.changed(at, f"{name} takes hosts with one label more only; Apache's star takes dots too")

    def _include(self, pattern: str, host: Host, here: tuple[str, str] | None, at: At) -> None:
        path = os.path.join(self._root, pattern)
        found = sorted(glob.glob(path))
        files = [file for each in found for file in (_below(each) if os.path.isdir(each) else [each])]
        if not files:
            self.account.left(at, f"no such file here: {path}")
            return
        self.account.taken(at, f"read too: {', '.join(map(os.path.basename, files))}")
        self._nested += 1
        for file in files:
            self._read(file, file, host, here, at)
        self._nested -= 1

    def _filled(self, text: str) -> str:
        def value(found: re.Match[str]) -> str:
            name = found[1]
            return self._defined[name] if name in self._defined else self._environ.get(name, found[0])

        return re.sub(r"\$\{(\w+)\}", value, text)


def _as_handler(name: str, text: str) -> tuple[str, list[str]] | None:
    """Return the SetHandler or AddHandler that a directive amounts to, or None."""
    said, is_added = text.lower(), name.startswith("add")
    is_type = name in ("addtype", "forcetype") and "x-httpd-" in said
    is_filter = name in ("addoutputfilter", "setoutputfilter") and "includes" in said
    if name in ("sethandler", "addhandler") or is_type or is_filter:
        return "addhandler" if is_added else "sethandler", words(text)
    if name == "rewriterule" and (found := re.search(r"[\[,]\s*(?:h|handler)=([^,\]]+)", said)) is not None:
        return "sethandler", [found[1]]
    return None


def _narrowed(name: str, told: list[str], here: tuple[str, str] | None, files: str) -> tuple[tuple[str, str] | None, str]:
    """Return where what is in a section of files, a folder or a location holds, and for which names."""
    place = next((word for word in told if word != "~"), "")
    kind = name.removesuffix("match") + ("match" if "~" in told or name.endswith("match") else "")
    if not name.startswith("files"):
        return (kind, place), files
    return here, place if kind == "filesmatch" else fnmatch.translate(place)


def _below(folder: str) -> list[str]:
    """Return all files below a folder, as Include reads them: by name."""
    return [os.path.join(path, name) for path, _, names in sorted(os.walk(folder)) for name in sorted(names)]


def _version_holds(wanted: list[str]) -> bool | None:
    """Return whether Apache 2.4, of which this is, has a version."""
    operator, version = wanted if len(wanted) == 2 else ("=", "".join(wanted))
    found = re.match(r"(\d+)\.?(\d+)?", version)
    if found is None:
        return None
    ours, theirs = (2, 4), (int(found[1]), int(found[2] or 0))
    return {">=": ours >= theirs, ">": ours > theirs, "<=": ours <= theirs, "<": ours < theirs}.get(operator, ours == theirs)
