"""What a fork server loads before it forks: modules of the standard library that most apps load anyway.

A process that is forked finds them in `sys.modules`. So each must be the same for whoever imports it first, whatever its path, variables
and folder. Only what comes from the standard library's own folder is loaded, and nothing that when it is imported

* makes a secret (`multiprocessing` has one key for all of a process),
* looks at variables or at a venv's prefix (`zoneinfo`, `sysconfig`, `xml.sax`): they are set after the fork,
* makes a logger (`asyncio`, `concurrent.futures`): an app that configures logging disables those that are there already,
* opens or begins anything.

A mount whose own folders have a module of one of these names is not forked, see `instances.forkservers`.

Measured: `docs/explanation/processes.md`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Collection, Iterable
from importlib.machinery import all_suffixes

from isowsgi.inside.private import theirs

# What Flask, Django, SQLAlchemy, requests and pydantic import between them, by the count of `sys.modules`, without what is said above.
NAMES = (
    "abc", "argparse", "array", "ast", "base64", "bisect", "calendar", "cmath", "codecs", "collections.abc", "colorsys",
    "configparser", "contextlib", "contextvars", "copy", "copyreg", "csv", "dataclasses", "datetime", "decimal",
    "difflib", "dis", "email.message", "email.mime.multipart", "email.mime.text", "email.parser", "email.policy", "email.utils", "enum",
    "fnmatch", "fractions", "functools", "getpass", "gettext", "glob", "graphlib", "gzip", "hashlib", "heapq", "hmac", "html",
    "html.parser", "http.client", "http.cookiejar", "http.cookies", "http.server", "importlib.abc", "importlib.metadata",
    "importlib.resources", "inspect", "io", "ipaddress", "itertools", "json", "keyword", "linecache", "locale", "logging",
    "logging.config", "logging.handlers", "math", "mimetypes", "numbers", "opcode", "operator", "pathlib", "pickle", "pkgutil",
    "platform", "posixpath", "pprint", "queue", "quopri", "random", "re", "reprlib", "secrets", "select", "selectors", "shlex",
    "shutil", "signal", "smtplib", "socket", "socketserver", "sqlite3", "ssl", "stat", "statistics", "string", "stringprep", "struct",
    "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit", "token", "tokenize", "traceback", "types",
    "typing", "unicodedata", "unittest", "urllib.error", "urllib.parse", "urllib.request", "urllib.response", "uuid", "warnings",
    "weakref", "xml.dom.minidom", "xml.etree.ElementTree", "zipfile", "zlib",
)  # fmt: skip


# All names of the library, but for one that it does not import itself and that apps' folders have.
_LIBRARYS_NAMES = sys.stdlib_module_names - {"test"}

_SUFFIXES = tuple(all_suffixes())


def load() -> list[str]:
    """Import them, as far as this Python has them; return the top-level names of all that is loaded by it and was not before.

    Nothing is loaded where the path of all mounts, PYTHONPATH, has a module of the library's before the library.
    """
    modules, path = theirs("sys").modules, theirs("sys").path
    path[:] = [folder for folder in path if os.path.isabs(folder)]  # not the working directory, where an app may lie
    library = os.path.dirname(os.path.abspath(os.__file__))
    if library not in path or shadows(path[: path.index(library)], _LIBRARYS_NAMES):
        return []
    before, whole = set(modules), list(path)
    path[:] = [folder for folder in path if folder == library or os.path.basename(folder) == "lib-dynload"]
    for name in NAMES:
        try:
            importlib.import_module(name)
        except ImportError:  # left out of this build, or of this release
            continue
    path[:] = whole
    return sorted({name.partition(".")[0] for name in set(modules) - before})


def shadows(folders: Iterable[str], names: Collection[str]) -> bool:
    """Whether a folder has a module of one of these names, which an app that has the folder on its path would get instead."""
    return any(_is_shadow(folder, names) for folder in folders)


def _is_shadow(folder: str, names: Collection[str]) -> bool:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name, dot, _ = entry.name.partition(".")
                if name not in names:
                    continue
                if entry.name.endswith(_SUFFIXES) if dot else any(os.path.exists(f"{entry.path}/__init__{end}") for end in _SUFFIXES):
                    return True
    except (FileNotFoundError, PermissionError):
        return False  # nobody finds anything there
    except OSError:  # a zip file has modules too
        return True
    return False
