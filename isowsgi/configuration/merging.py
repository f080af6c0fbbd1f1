"""From tables to mounts: one table over the other, what a group has in common, and what settings mean together."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any
from urllib.parse import unquote

from isowsgi.configuration import groups, places, pythons, walls
from isowsgi.configuration.checks import Pattern
from isowsgi.configuration.faults import Fault, at, place_text, spelt
from isowsgi.configuration.tables import FilesTable, Mounts, MountTable, RedirectTable, settings_of
from isowsgi.configuration.tenants import MOST_LEAVING, PLACE, PLACED
from isowsgi.configuration.values import FILES_GROUP, FILES_THREADS, MAIN_GROUP, NO_APP, Files, Mount
from isowsgi.shared import routing
from isowsgi.shared.redirects import PATH
from isowsgi.shared.rows import ROWS

# Keys whose tables are merged name by name: in a group, with the defaults, and with the defaults of an included file.
MERGED = ("env", "policy", "limits")


def mounts_of(tables: Mounts, written: list[str], defaults: dict[str, Any], folder: str) -> tuple[Mount, ...]:
    """Lay each mount's table over its group's and the defaults, and check what they mean together.

    The environment, the policy and the limits merge name by name, and all that a mount says wins over all that the defaults say: else a
    variable in `[defaults]` would beat the mount's own env_file.

    Args:
        written: the patterns as the file writes them, in its order.

    Returns:
        the mounts in that order, then those of the files that they have below them.

    Raises:
        ExceptionGroup: of faults, each with its place.
    """
    own = [settings_of(table) for _, table in tables]
    faults: list[Exception] = []
    merged = _join_groups(own, defaults, written, faults)
    mounts: list[Mount] = []
    is_https_only = defaults.get("https_only", False)
    for (addresses, table), text, said, keys in zip(tables, written, merged, own, strict=True):
        if isinstance(table, RedirectTable):
            mounts.append(Mount(number=len(mounts), app=NO_APP, lazy=True, **settings_of(table) | named(addresses)))
            continue
        if isinstance(table, FilesTable):
            mounts.append(_files_mount(len(mounts), addresses, table.files(table.static), keys.get("https_only", is_https_only)))
            continue
        by_name = {key: defaults.get(key, {}) | said.get(key, {}) for key in MERGED}
        values = {"pythonpath": (folder,), **defaults, **said, **by_name}
        for key, fault in (*joint_faults(values), *_tenant_faults(addresses, values, keys)):
            faults.append(at(("mounts", text, key) if key in keys else ("defaults", key) if key in defaults else ("mounts", text), fault))
        values.pop("static", None)  # they become mounts
        values["policy"] = {word: value for word, value in values["policy"].items() if value != "allow"}
        values["limits"] = {name: value for name, value in values["limits"].items() if value}
        if values.get("sandbox") is False:  # a default is taken back
            del values["sandbox"]
        mounts.append(Mount(number=len(mounts), **values | named(addresses) | ({"lazy": True} if "max_live" in values else {})))
    if faults:
        raise ExceptionGroup("mounts", faults)
    return (*mounts, *_files_below(mounts, tables))


def _files_below(mounts: Sequence[Mount], tables: Mounts) -> list[Mount]:
    """Return the mounts of the files that mounts have below them."""
    found: list[Mount] = []
    for mount, (addresses, table) in zip(mounts, tables, strict=True):
        for path, below in (table.static or {}).items() if isinstance(table, MountTable) else ():
            places = [Pattern(address.host, address.path + path) for address in addresses]
            found.append(_files_mount(len(mounts) + len(found), places, below.files(below.path), mount.https_only))
    return found


def _files_mount(number: int, addresses: Sequence[Pattern], files: Files, https_only: bool) -> Mount:
    """Return a mount that is only files; all of them share an interpreter, and what is said of apps is nothing to it."""
    return Mount(
        number=number,
        app=files.app(),
        files=files,
        group=FILES_GROUP,
        threads=FILES_THREADS,
        https_only=https_only,
        **named(addresses),
    )


def refuse_endless_redirects(mounts: Sequence[Mount], written: Sequence[str]) -> None:
    """Check that no redirect is followed by itself; only where all mounts are known, for another one may take its address.

    Raises:
        ExceptionGroup: of faults, each with its place.
    """
    relative = [(mount, text) for mount, text in zip(mounts, written, strict=False) if mount.redirect.startswith("/")]
    if not relative:
        return
    router = routing.Router(routing.Route(mount.number, host, mount.prefix) for mount in mounts for host in (mount.host, *mount.hosts))
    faults = []
    for mount, text in relative:
        path = unquote(mount.redirect.partition(PATH)[0].partition("?")[0], "latin-1")
        if router.match(mount.host.replace(routing.WILDCARD, "any.", 1), path) == mount.number:
            what = "is this mount's own address, so it would never end; if a proxy serves it, write its host too"
            faults.append(at(("mounts", text, "redirect"), Fault(f"{mount.redirect!r} {what}")))
    if faults:
        raise ExceptionGroup("redirects", faults)


def _join_groups(own: list[dict[str, Any]], defaults: dict[str, Any], written: list[str], faults: list[Exception]) -> list[dict[str, Any]]:
    """Give each mount what the others of its group say; contradictions are added to `faults`."""
    members: dict[str, list[int]] = {}
    for number, said in enumerate(own):
        if "app" not in said:
            continue
        both = defaults | said
        name = MAIN_GROUP if both.get("isolation") == "main" else both.get("group")
        if both.get("isolation") == "main" and "group" in both:
            faults.append(at(("mounts", written[number]), Fault("mounts of the main interpreter share it anyway; remove their group")))
        elif name is not None:
            members.setdefault(name, []).append(number)
    joined = list(own)
    for name, numbers in members.items():
        agreed, contradictions = groups.agree([own[number] for number in numbers])
        for number, said in zip(numbers, agreed, strict=True):
            joined[number] = said | {"group": name}
        for found in contradictions:
            place = ("mounts", written[numbers[found.member]], found.key, *([] if found.name is None else [found.name]))
            other = place_text(("mounts", written[numbers[found.other]]))
            faults.append(at(place, Fault(f"contradicts {other}, which says {spelt(found.theirs)}: both share the group {name!r}")))
    return joined


def joint_faults(values: dict[str, Any]) -> Iterator[tuple[str, Fault]]:
    """Yield what is wrong with a mount's settings together, with the key to blame; each alone is valid."""
    isolation, python, venv = values.get("isolation", "auto"), values.get("python"), values.get("venv")
    if python is not None and isolation not in ("auto", "process"):
        wanted = 'isolation = "process" (or "auto")'
        yield "python", Fault(f"another Python runs in its own process: expected {wanted}, got {isolation!r}")
    elif python is not None and isinstance(values.get("sandbox"), dict) and pythons.is_script(python):
        reason = "in a sandbox it cannot reach the Python that it starts"
        yield "python", Fault(f"expected a Python's executable, got the script {python!r}: {reason}; write what its sys.executable says")
    elif venv is not None:
        fault = places.venv_fault(venv, pythons.ask(python).version[:2] if python else pythons.HOST, python)
        if fault is not None:
            yield "venv", Fault(fault)
    yield from walls.faults(values)
    if values.get("user") and values["app"].is_status:
        yield "user", Fault("the status page reads what gunicorn's user has counted; write user = '' for its mount")
    if isolation == "main":
        if venv is not None:
            packages = "the packages of gunicorn's own environment"
            yield "venv", Fault(f'an app in the main interpreter has {packages}; use isolation = "process"')
        if values.get("instances", 1) > 1:
            yield "instances", Fault(f"there is one main interpreter, got {values['instances']}")
        if values.get("lazy_imports") == "all":
            reason = "the main interpreter is the worker's, and has one mode for all of its imports"
            other = 'lazy_imports = "normal" for a mount with isolation = "main"'
            yield "lazy_imports", Fault(f'{reason}; use isolation = "process", or {other}')
        if any(value != "allow" for value in values.get("policy", {}).values()):
            reason = "in the main interpreter an app's calls cannot be told from gunicorn's"
            yield "policy", Fault(f'{reason}; use isolation = "process", or policy = "allow" for a mount with isolation = "main"')


def _tenant_faults(addresses: tuple[Pattern, ...], values: dict[str, Any], own: Collection[str]) -> Iterator[tuple[str, Fault]]:
    """Yield what is wrong with a template, or with what would be one.

    Args:
        values: also those of `[defaults]`.
        own: the keys that the mount's table has.
    """
    if "max_live" not in values:
        if "exists" in values:
            yield "exists", Fault("it is for tenants; set max_live too: how many of them have an instance at a time")
        paths = {"app": [values["app"].target], "pythonpath": values["pythonpath"], "touch": [values.get("touch") or ""]}
        for key, texts in paths.items():
            if any(PLACE in text for text in texts):
                yield key, Fault(f"{PLACE!r} stands for a tenant's label; set max_live too, or write the path without it")
        if PLACE in (values.get("user") or ""):
            yield "user", Fault(f"{PLACE!r} stands for a tenant's label; set max_live too, or write a user's name")
        return
    yield from _template_faults(addresses, values, own)


def _template_faults(addresses: tuple[Pattern, ...], values: dict[str, Any], own: Collection[str]) -> Iterator[tuple[str, Fault]]:
    """Yield what is wrong with a template, see above."""
    if not addresses[0].host.startswith(routing.WILDCARD):
        yield (
            "max_live",
            Fault(f"tenants are the hosts of a wildcard: expected a pattern such as '*.example.com/', got {str(addresses[0])!r}"),
        )
    if len(addresses) > 1:
        yield "hosts", Fault("a tenant has one host; remove hosts, or write one more pattern")
    if PLACE in (values.get("user") or "") and "exists" not in values:
        yield "user", Fault(f"with {PLACE!r} in it set exists too: else whoever sends a request chooses which user runs the app")
    if values.get("group") not in (None, MAIN_GROUP):
        yield "group", Fault("each tenant has its own instance; remove the group")
    if values.get("isolation") == "main":
        yield "isolation", Fault("there is one main interpreter, and each tenant has its own instance")
    if values.get("static"):
        yield "static", Fault("a template of tenants has no files of its own; write one more pattern, for them")
    if PLACE not in values.get("exists", PLACE):
        yield "exists", Fault(f"expected a path with {PLACE!r} for the tenant's label, got {values['exists']!r}")
    if values.get("lazy") is False and "lazy" in own:
        yield "lazy", Fault("a tenant is always loaded at its first request; remove lazy")
    for key in sorted({*own} - {*PLACED}):
        if PLACE in str(values.get(key)):
            where = f"{', '.join(PLACED[1:])} and a script's path"
            yield key, Fault(f"{PLACE!r} does not stand for the tenant here; it may stand in {where}")
    rows = (values["max_live"] + MOST_LEAVING) * values.get("instances", 1) * (values.get("threads") or 1)
    if rows > ROWS // 2:
        text = f"max_live x instances x threads are too many threads for a worker: expected at most {ROWS // 2}, got {rows}"
        yield "max_live", Fault(f"{text}, with {MOST_LEAVING} tenants that are ending")


def named(addresses: Sequence[Pattern]) -> dict[str, Any]:
    """Return what a mount is called, and what it takes, as its fields."""
    own = addresses[0]
    return {
        "pattern": str(own),
        "host": own.host,
        "prefix": own.path.encode().decode("latin-1"),
        "hosts": tuple(address.host for address in addresses[1:]),
    }
