"""Unit's routes: which hosts and paths lead to which app. Values only, no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from isowsgi.importing.jsontext import Path

# Routes that lead to routes.
_MOST_DEPTH = 20

# What a match may ask that a mount cannot.
_BY_MORE = frozenset(("method", "headers", "cookies", "arguments", "query", "scheme", "source", "destination"))


@dataclass(frozen=True, kw_only=True)
class Lead:
    """A pass that an app may be reached by.

    Attributes:
        hosts: patterns; none: every host.
        prefixes: of paths, "" for all.
        app: the path of the application or target in the configuration.
        at: the path of the pass.
    """

    hosts: tuple[str, ...]
    prefixes: tuple[str, ...]
    app: Path
    at: Path


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of files.

    Attributes:
        hosts, prefixes: as of a `Lead`.
        template: the path of a file, with `$uri` for the request's path at its end, or without it.
        settings: of the mount, beside the folder.
        at: the path of the share.
    """

    hosts: tuple[str, ...]
    prefixes: tuple[str, ...]
    template: str
    settings: dict[str, Any]
    at: Path

    def path(self, prefix: str) -> str:
        """Return the folder, or the file, that is served below a prefix."""
        return self.template.removesuffix("$uri") + prefix if self.template.endswith("$uri") else self.template


@dataclass(frozen=True, kw_only=True)
class Remark:
    """What is to be said of a place, or of all below it.

    Attributes:
        outcome: "taken", "changed" or "left".
        whole: whether it holds for all below the place.
        location: for nginx, if it is to serve something.
    """

    at: Path
    outcome: str
    note: str
    whole: bool = False
    location: tuple[str, str] | None = None


def leads(config: dict[str, Any], start: Path, target: str) -> Iterator[Lead | Share | Remark]:
    """Yield where a pass leads, in the order in which Unit tries it.

    Args:
        start: the path of the pass in the configuration.
        target: its value.
    """
    yield from _from(config, start, target, (), ("",), 0)


def _from(
    config: dict[str, Any], at: Path, target: Any, hosts: tuple[str, ...], prefixes: tuple[str, ...], depth: int
) -> Iterator[Lead | Share | Remark]:
    kind, _, name = str(target).partition("/")
    if depth > _MOST_DEPTH:
        yield Remark(at=at, outcome="left", note="routes lead to each other without an end")
    elif kind == "applications" and name:
        app, _, wanted = name.partition("/")
        yield Lead(hosts=hosts, prefixes=prefixes, app=("applications", app, *(("targets", wanted) if wanted else ())), at=at)
    elif kind == "routes":
        routes = config.get("routes", [])
        place: Path = ("routes", name) if name else ("routes",)
        steps = routes.get(name) if name and isinstance(routes, dict) else routes
        if not isinstance(steps, list):
            yield Remark(at=at, outcome="left", note=f"there is no {target!r}")
            return
        yield Remark(at=at, outcome="taken", note="followed to the apps; a mount's pattern is what leads to its app")
        for number, step in enumerate(steps):
            if isinstance(step, dict):
                yield from _step(config, (*place, number), step, hosts, prefixes, depth + 1)
    else:
        yield Remark(at=at, outcome="left", note="the proxy's: proxy_pass, or a variable that it knows")


def _step(
    config: dict[str, Any], at: Path, step: dict[str, Any], hosts: tuple[str, ...], prefixes: tuple[str, ...], depth: int
) -> Iterator[Lead | Share | Remark]:
    match = step.get("match", {})
    more = sorted(_BY_MORE & set(match)) if isinstance(match, dict) else ["match"]
    if more:
        note = f"by {', '.join(more)}: only host and path choose a mount; the proxy can choose by more"
        yield Remark(at=at, outcome="left", note=note, whole=True)
        return
    own_hosts, own_prefixes = _listed(match.get("host")), _listed(match.get("uri"))
    if own_hosts:
        if bad := [host for host in own_hosts if not re.fullmatch(r"(\*\.)?[\w-]+(\.[\w-]+)*(:\d+)?", host)]:
            yield Remark(at=at, outcome="left", note=f"hosts as {bad[0]!r}: write a mount for each host", whole=True)
            return
        yield from _said(at, "host", "a host of the mounts", own_hosts)
        if any(host.startswith("*") for host in own_hosts):
            yield Remark(at=(*at, "match", "host"), outcome="changed", note="a star takes one label more, and not several", whole=True)
        hosts = tuple(host.partition(":")[0].lower() for host in own_hosts)
    if own_prefixes:
        found = [_prefix(uri) for uri in own_prefixes]
        if None in found:
            bad_uri = own_prefixes[found.index(None)]
            yield from _action_of_files(at, step, own_prefixes)
            yield Remark(at=at, outcome="left", note=f"paths as {bad_uri!r}: a mount takes a path and all below it", whole=True)
            return
        yield from _said(at, "uri", "the path of the mounts", own_prefixes)
        exact = [uri for uri in own_prefixes if not uri.endswith("*") and f"{uri}/*" not in own_prefixes]
        loose = [uri for uri in own_prefixes if uri.endswith("*") and not uri.endswith("/*") and uri != "*"]
        alone = [uri for uri in own_prefixes if uri.endswith("/*") and uri != "/*" and uri[:-2] not in own_prefixes]
        for uris, note in (
            (exact, "was this path alone, and is all below it too"),
            (loose, "takes whole segments of paths now"),
            (alone, "takes the path without the slash at its end too"),
        ):
            if uris:
                yield Remark(at=(*at, "match", "uri"), outcome="changed", note=f"{', '.join(uris)} {note}", whole=True)
        prefixes = tuple(dict.fromkeys(prefix for prefix in found if prefix is not None))
    yield from _action(config, (*at, "action"), step.get("action", {}), hosts, prefixes, depth)


def _said(at: Path, key: str, note: str, values: list[str]) -> Iterator[Remark]:
    yield Remark(at=(*at, "match", key), outcome="taken", note=f"{note}: {', '.join(values)}", whole=True)


def _action_of_files(at: Path, step: dict[str, Any], uris: list[str]) -> Iterator[Remark]:
    action = step.get("action", {})
    for share in _listed(action.get("share")) if isinstance(action, dict) else []:
        yield Remark(at=(*at, "action"), outcome="left", note=f"let the proxy serve {share} for {', '.join(uris)}")


def _action(
    config: dict[str, Any], at: Path, action: Any, hosts: tuple[str, ...], prefixes: tuple[str, ...], depth: int
) -> Iterator[Lead | Share | Remark]:
    if not isinstance(action, dict):
        return
    for key in action:
        if key == "pass":
            yield from _from(config, (*at, "pass"), action["pass"], hosts, prefixes, depth)
        elif key == "share":
            yield from _share(at, action, hosts, prefixes)
        elif key == "fallback" and "share" in action:
            yield from _fallback(config, (*at, key), action, hosts, prefixes, depth)
        elif key in ("index", "follow_symlinks") and "share" in action:
            yield Remark(at=(*at, key), outcome="taken", note=f"{key} of the mount")
        else:
            yield Remark(at=(*at, key), outcome="left", note=f"the proxy's: {_ACTIONS.get(key, key)}", whole=True)


def _share(at: Path, action: dict[str, Any], hosts: tuple[str, ...], prefixes: tuple[str, ...]) -> Iterator[Share | Remark]:
    """Yield a share as a mount of files, or remarks on one that is none."""
    where, shares = (*at, "share"), _listed(action["share"])
    later = action.get("fallback")
    text = ""
    if len(shares) != 1:
        text = "a mount serves one folder"
    elif "$" in shares[0].removesuffix("$uri"):
        text = "variables choose its folder"
    elif isinstance(later, dict) and "pass" in later:
        text = "an app answers what no file does, and a mount takes all below its path"
    if text:
        for share in shares:
            path = prefixes[0] + "/"
            folder = _folder_of(share, path)
            note = f"let the proxy serve {share}: a location line is below; {text}"
            yield Remark(at=where, outcome="left", note=note, whole=True, location=(path, folder))
        return
    settings: dict[str, Any] = {}
    if "index" in action:
        settings["index"] = str(action["index"])
    if action.get("follow_symlinks") is True:
        settings["follow_symlinks"] = True
    elif "follow_symlinks" not in action and "chroot" not in action:
        note = "a link that leads out of the folder is 403, unless the mount has follow_symlinks = true"
        yield Remark(at=where, outcome="changed", note=note, whole=True)
    file = _file_of(later)
    folder = _folder_of(shares[0], prefixes[0])
    if file is not None and file.startswith(folder + "/") and len(prefixes) == 1:
        settings["fallback"] = file[len(folder) :]
    yield Share(hosts=hosts, prefixes=prefixes, template=shares[0], settings=settings, at=where)


def _folder_of(share: str, path: str) -> str:
    """Return the folder that a share has for a path."""
    return share.removesuffix("$uri").rstrip("/") + (path if share.endswith("$uri") else "")


def _file_of(fallback: Any) -> str | None:
    """Return the file that a fallback shares; None: it does something else."""
    if not isinstance(fallback, dict) or set(fallback) != {"share"}:
        return None
    shares = _listed(fallback["share"])
    return shares[0] if len(shares) == 1 and "$" not in shares[0] else None


def _fallback(
    config: dict[str, Any], at: Path, action: dict[str, Any], hosts: tuple[str, ...], prefixes: tuple[str, ...], depth: int
) -> Iterator[Lead | Share | Remark]:
    """Yield what becomes of what a share has no file for."""
    fallback = action["fallback"]
    shares = _listed(action["share"])
    if _file_of(fallback) is not None and len(shares) == 1 and len(prefixes) == 1:
        yield Remark(at=at, outcome="taken", note="fallback of the mount, if it is in the same folder", whole=True)
    elif isinstance(fallback, dict) and "pass" in fallback:
        yield Remark(at=at, outcome="taken", note="what no file answers goes to the app: try_files of nginx")
        yield from _action(config, at, fallback, hosts, prefixes, depth + 1)
    else:
        note = "what there is no file for is 404, or the mount's fallback: a file of the same folder"
        yield Remark(at=at, outcome="left", note=note, whole=True)


_ACTIONS = {
    "return": "return",
    "location": "return",
    "proxy": "proxy_pass",
    "rewrite": "rewrite",
    "response_headers": "add_header",
    "index": "index",
    "types": "types",
    "chroot": "root, with disable_symlinks",
    "follow_symlinks": "disable_symlinks",
    "traverse_mounts": "disable_symlinks",
}


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]


def _prefix(uri: str) -> str | None:
    """Return the path that a pattern is of, "" for all, or None if it is not of the kind of a mount."""
    path = uri[:-1] if uri.endswith("*") else uri
    if uri in ("*", "/*"):
        return ""
    if not path.startswith("/") or set(path) & set("*!~"):
        return None
    return path.rstrip("/")
