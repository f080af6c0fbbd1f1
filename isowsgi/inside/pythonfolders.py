"""Which folders and files a Python needs that is not running yet, for a sandbox in which it starts.

The operator names its executable. All else is the word of links and of a `pyvenv.cfg` (PEP 405) that may be the app's, or of whoever may
write there. So what they lead to counts only where a Python is installed, and of that only the parts that each installation has: none is
"/", and none is a folder of a site beside it.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Collection, Iterator

from isowsgi.shared import regularfiles, rootsown
from isowsgi.shared.landlock import READ, READ_DIR

_VENV = "pyvenv.cfg"

# Largest `pyvenv.cfg` that is read; `python -m venv` writes some 200 bytes.
_MOST_BYTES = 64 * 1024

# Parts of an installation: `make install`, distributions, and conda, which has certificates in ssl.
_PARTS = ("bin", "include", "lib", "lib32", "lib64", "libexec", "share", "ssl")

# Where Debian has shared libraries, as x86_64-linux-gnu: an unpacked Python may have its own C library there.
_TRIPLET = "*-linux-*"

# Packages of an installation that is some user's: these may be a neighbour's code.
_PACKAGES = frozenset(("site-packages", "dist-packages"))

# Folders that are never a venv, whoever puts a `pyvenv.cfg` there: too much else is in them.
_SHARED = frozenset(
    ("/", "/boot", "/dev", "/etc", "/home", "/media", "/mnt", "/opt", "/proc", "/root", "/run", "/srv", "/sys", "/tmp", "/usr",
     "/usr/local", "/var", "/var/lib", "/var/tmp", "/var/www")
)  # fmt: skip


def of(python: str, writable: Collection[str], known: Collection[str] = ()) -> dict[str, int]:
    """Return what a Python reads and executes, its venv's and of what its venv was made from, with the access to all beneath each.

    Args:
        python: its executable, absolute, in a folder that is no link.
        writable: what the app may write. It could put links there, so no installation of a user's counts in there.
        known: prefixes of which all parts count, whoever owns them.
    """
    folder = os.path.dirname(python)
    prefix = os.path.dirname(folder)
    if os.path.exists(os.path.join(prefix, _VENV)):
        own = [prefix]
    elif os.path.exists(os.path.join(folder, _VENV)):  # beside it, and the folder above may be anything
        own = [folder, *_real(prefix, "lib*", "python3*")]
    else:  # an installation that the operator has named
        own = [*_parts(prefix)]
    found = {path: READ for path in own if path not in _SHARED}
    bases = {os.path.dirname(os.path.dirname(os.path.realpath(python))): False}
    for home, is_roots in _homes(folder):
        base = os.path.dirname(os.path.realpath(home))
        bases[base] = bases.get(base, False) or is_roots
    for base, is_roots in bases.items():
        if is_roots or base in known or rootsown.is_roots(base):
            # Debian's has its sitecustomize in /etc/python3.11.
            found.update(dict.fromkeys((*_parts(base), *(f"/etc/{os.path.basename(path)}" for path in _libraries(base))), READ))
        elif not any(_is_in(base, os.path.realpath(place)) for place in writable):
            found = {**dict(_least(base)), **found}
    return found


def _homes(folder: str) -> Iterator[tuple[str, bool]]:
    """Yield where the Python of a venv comes from, as its files say, and whether it is root who says so."""
    for place in (folder, os.path.dirname(folder)):
        path = os.path.join(place, _VENV)
        try:
            said = dict(line.partition("=")[::2] for line in regularfiles.read(path, _MOST_BYTES).decode().splitlines())
        except (OSError, ValueError, regularfiles.NotRegular):
            continue
        home = next((value.strip() for name, value in said.items() if name.strip() == "home"), "")
        if os.path.isabs(home) and "\0" not in home:
            yield home, rootsown.is_roots(path)


def _libraries(prefix: str) -> list[str]:
    """Return the folders of the standard library of what is installed there; none: nothing is."""
    return [os.path.dirname(path) for path in _real(prefix, "lib*", "python3*", "os.py")]


def _real(prefix: str, *parts: str) -> set[str]:
    """Return what matches beneath a folder, without links, and without what these lead out of it to."""
    found = map(os.path.realpath, glob.glob(os.path.join(glob.escape(prefix), *parts)))
    return {path for path in found if path != prefix and _is_in(path, prefix)}


def _parts(prefix: str) -> set[str]:
    """Return the parts of an installation; none of a folder that has none."""
    return set().union(*(_real(prefix, part) for part in _PARTS)) if _libraries(prefix) else set()


def _least(prefix: str) -> Iterator[tuple[str, int]]:
    """Yield what an installation of a user's needs to start: its executables, shared libraries and standard library, without packages."""
    libraries = _libraries(prefix)
    if libraries:
        yield from ((path, READ) for path in _files(os.path.join(prefix, "bin"), "python3"))
        yield from ((path, READ) for path in _real(prefix, "lib*", _TRIPLET))
    for library in libraries:
        yield library, READ_DIR  # imports look for modules in there
        yield from ((path, READ) for path in _files(os.path.dirname(library), "lib", ".so"))
        with os.scandir(library) as entries:
            yield from ((entry.path, READ) for entry in entries if entry.name not in _PACKAGES and not entry.is_symlink())


def _files(folder: str, start: str, part: str = "") -> Iterator[str]:
    """Yield files of a folder by their names; what a link leads to counts by its own."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(start) and part in entry.name and stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
                yield entry.path


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))
