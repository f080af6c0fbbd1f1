"""Print the path of the newest CPython on this machine that isowsgi supports; `make demo` and `make test` run with it.

It owns the choice and nothing else: it installs nothing, and runs each candidate once, with a time limit, to ask what it is.
Standard library only, and it runs on Python 3.8, because it is run by whatever `python3` happens to be.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

OLDEST = (3, 11)
NEWEST = (3, 15)
SUPPORTED = "CPython {}.{} to {}.{}".format(*OLDEST, *NEWEST)

# Names that may be a supported Python, and no other: `python3.11-config` and `python3.14-gdb.py` sit in the same folders.
NAME = re.compile(r"python(3(\.\d+)?)?")

# Where a Python may be that is not on PATH: a distribution's packages unpacked beside the system's own, or `make install`.
FIXED_PLACES = ("/opt/*/usr/bin", "/opt/*/bin", "/usr/local/bin")

# Seconds for one candidate to answer. A Python with a cold disk cache needs about one; pyenv's shims search for a second more.
ANSWER_S = 10.0

# What a candidate is asked. The three modules are those that a Python built without their C libraries lacks and real apps need.
QUESTION = """
import json, sys, sysconfig
lacks = []
for name in ("ssl", "sqlite3", "ctypes"):
    try:
        __import__(name)
    except ImportError:
        lacks.append(name)
try:
    import _interpreters
except ImportError:
    try:
        import _xxsubinterpreters
    except ImportError:
        lacks.append("subinterpreters")
print(json.dumps({
    "executable": sys.executable,
    "implementation": sys.implementation.name,
    "version": list(sys.version_info),
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "lacks": lacks,
}))
"""


class Unusable(Exception):
    """There is no Python to print, or the one that was asked for will not do; the text says why in one line."""


class Python(NamedTuple):
    """What one candidate said of itself."""

    executable: str
    implementation: str
    version: tuple[int, int, int, str, int]  # as sys.version_info
    free_threaded: bool
    lacks: tuple[str, ...]

    @property
    def release(self) -> str:
        major, minor, micro, level, serial = self.version
        return f"{major}.{minor}.{micro}" if level == "final" else f"{major}.{minor}.{micro} {level} {serial}"

    @property
    def age(self) -> tuple[bool, tuple[int, int, int, str, int]]:
        """A key that sorts the newest last; any final release is after any alpha, beta or candidate."""
        return self.version[3] == "final", self.version

    @property
    def fault(self) -> str | None:
        """Why isowsgi cannot run on it, or None."""
        if self.implementation != "cpython":
            return f"{self.implementation} {self.release}, not CPython"
        if not OLDEST <= self.version[:2] <= NEWEST:
            return f"CPython {self.release}"
        if self.free_threaded:
            return f"CPython {self.release}, free-threaded"
        if self.lacks:
            return f"CPython {self.release} without {', '.join(self.lacks)}"
        return None


def ask(path: str) -> Python | str:
    """Run a candidate and return what it is, or a few words on why it gave no answer."""
    try:
        answer = subprocess.run(
            [path, "-I", "-c", QUESTION],  # -I: PYTHONPATH and the current folder must not change the answer
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=ANSWER_S,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return f"it did not answer within {ANSWER_S:g} s"
    except subprocess.CalledProcessError as exc:
        return f"it ended with status {exc.returncode}"
    except OSError as exc:
        return f"it cannot be run: {exc.strerror}"
    try:
        said = json.loads(answer.stdout.decode())
        major, minor, micro, level, serial = said["version"]
        # A shim's own path stands for whichever Python is selected today; the executable's stays what it is.
        return Python(
            said["executable"], said["implementation"], (major, minor, micro, level, serial), said["free_threaded"], tuple(said["lacks"])
        )
    except (ValueError, KeyError, TypeError):
        return "it did not answer as a Python does"


def candidates(environ: Mapping[str, str], fixed_places: Iterable[str] = FIXED_PLACES) -> list[str]:
    """Return the paths of everything here that has a Python's name: PATH first, then pyenv's folders, then the fixed places.

    Of several paths to one file, only the first is returned.
    """
    pyenv = environ.get("PYENV_ROOT") or os.path.join(environ.get("HOME", os.path.expanduser("~")), ".pyenv")
    folders = [folder for folder in environ.get("PATH", os.defpath).split(os.pathsep) if folder]
    folders += sorted(glob.glob(os.path.join(glob.escape(pyenv), "versions", "*", "bin")))
    for place in fixed_places:
        folders += sorted(glob.glob(place))

    found: dict[str, str] = {}
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue  # PATH often names folders that do not exist
        for name in names:
            path = os.path.join(folder, name)
            if NAME.fullmatch(name) and os.access(path, os.X_OK) and not os.path.isdir(path):
                # pyenv's shims are one script under many names, and the name is what it acts on.
                is_shim = Path(folder).name == "shims"
                found.setdefault(path if is_shim else os.path.realpath(path), path)
    return list(found.values())


def pick(environ: Mapping[str, str], fixed_places: Iterable[str] = FIXED_PLACES) -> Python:
    """Return the Python that $PYTHON names or, without it, the newest supported one; raises Unusable."""
    wanted = environ.get("PYTHON")
    if wanted:
        path = shutil.which(os.path.expanduser(wanted), path=environ.get("PATH", os.defpath))
        if path is None:
            raise Unusable(f"PYTHON: expected the name or path of a Python, got {wanted!r}, which is not there or not executable")
        answer = ask(path)
        if isinstance(answer, str):
            raise Unusable(f"PYTHON: expected a working Python, got {wanted!r}: {answer}")
        if answer.fault:
            raise Unusable(f"PYTHON: expected {SUPPORTED} (not free-threaded), got {wanted!r}: {answer.fault}")
        return answer

    with ThreadPoolExecutor(8) as pool:
        answers = [answer for answer in pool.map(ask, candidates(environ, fixed_places)) if isinstance(answer, Python)]
    usable = [answer for answer in answers if answer.fault is None]
    if not usable:
        found = ", ".join(sorted({answer.fault for answer in answers if answer.fault})) or "none"
        raise Unusable(f"expected {SUPPORTED} on PATH or in pyenv's folders, found {found}; install one or set PYTHON to its path")
    return max(usable, key=lambda answer: answer.age)  # the first of equals, so PATH is preferred


def main() -> int:
    try:
        print(pick(os.environ).executable)
    except Unusable as exc:
        print(f"pick_python: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
