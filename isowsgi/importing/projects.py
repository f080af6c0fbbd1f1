"""A folder of projects: what apps are in it, by its files alone. Source is parsed, and never imported or run."""

from __future__ import annotations

import ast
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

from isowsgi.importing import sources, uwsgi
from isowsgi.importing.account import Account, At, BadSource
from isowsgi.importing.draft import Draft, MountDraft
from isowsgi.shared import regularfiles

# How deep below the folder projects are looked for, and how many files at most are.
_MOST_DEPTH = 3
_MOST_FILES = 5000

# Folders that hold no project of this one's.
_NOT_PROJECTS = frozenset(
    ("node_modules", "__pycache__", "site-packages", "static", "media", "migrations", "tests", "docs", "dist", "build")
)
_VENVS = (".venv", "venv", "env")

# Names of factories and callables that Flask and others look for, in that order.
_FACTORIES = ("create_app", "make_app")
_CALLABLES = ("application", "app")
_FRAMEWORKS = frozenset(("Flask", "Bottle", "Falcon", "App", "API", "Dash", "Quart", "Chalice", "Eve", "Connexion", "FlaskApp"))


@dataclass(kw_only=True)
class Project:
    """An app that was found.

    Attributes:
        folder: of the project; its modules are imported from there.
        why: what shows that it is one, for a comment.
        also: what else was found there.
    """

    folder: str
    app: str
    why: str
    env: dict[str, str] = field(default_factory=dict)
    also: list[str] = field(default_factory=list)


def propose(folder: str) -> Draft:
    """Return a draft with a mount for each project.

    Raises:
        BadSource: it is no folder, or has no project.
    """
    if not os.path.isdir(folder):
        raise BadSource(folder, "expected a folder with projects")
    root = os.path.abspath(folder)
    projects = list(_projects(root))
    if not projects:
        looked = "manage.py with a wsgi.py, an app or create_app() of Flask's, a .wsgi file, a Procfile or a uwsgi.ini"
        raise BadSource(folder, f"expected a project: {looked}; found none up to {_MOST_DEPTH} folders below")
    draft, account = Draft(source=folder), Account()
    for project in projects:
        name = os.path.basename(project.folder)
        pattern = "/" if len(projects) == 1 else "/" + re.sub(r"[^\w.~-]", "-", name)
        settings: dict[str, object] = {"pythonpath": [project.folder]}
        if (venv := _venv_of(project.folder, root)) is not None:
            settings["venv"] = venv
        if project.env:
            settings["env"] = project.env
        notes = [f"{project.why}.", *(f"Found there too: {each}." for each in project.also)]
        mount = MountDraft(pattern=pattern, app=project.app, at=At(project.folder, (1,)), settings=settings, notes=notes)
        while any(other.pattern == mount.pattern for other in draft.mounts):
            mount.pattern += "-2"
        draft.mount(mount, account)
    return draft


def _projects(root: str) -> Iterator[Project]:
    left = _MOST_FILES
    for folder, folders, names in os.walk(root):
        depth = folder[len(root) :].count(os.sep)
        left -= len(names)
        if "pyvenv.cfg" in names or left < 0:
            folders.clear()
            continue
        found = list(_found_in(folder, sorted(names)))
        if found:
            first, *others = found
            first.also = [f"{other.app} ({other.why})" for other in others if other.app != first.app]
            yield first
        hidden = {name for name in folders if name.startswith(".") or name.lower() in _NOT_PROJECTS or name in _VENVS}
        # What lies in a project is the project's.
        folders[:] = [] if found or depth >= _MOST_DEPTH else sorted(set(folders) - hidden)


def _found_in(folder: str, names: list[str]) -> Iterator[Project]:
    """Yield the apps of a folder, the surest first."""
    for name in names:
        if name in ("uwsgi.ini", "uwsgi.yaml", "uwsgi.xml"):
            yield from _of_uwsgi(os.path.join(folder, name))
    if "Procfile" in names:
        yield from _of_procfile(folder)
    if "manage.py" in names:
        yield from _of_django(folder)
    for name in names:
        if name.endswith(".wsgi"):
            yield Project(folder=folder, app=os.path.join(folder, name), why=f"{name}, a script as for mod_wsgi")
    for name in names:
        if name.endswith(".py") and name not in ("manage.py", "setup.py", "conftest.py", "__init__.py") and not name.startswith("test"):
            yield from _of_module(folder, name[:-3], os.path.join(folder, name))
    for package in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name.isidentifier()):
        for module, path in ((package, "__init__.py"), (f"{package}.app", "app.py"), (f"{package}.wsgi", "wsgi.py")):
            file = os.path.join(folder, package, path)
            if os.path.isfile(os.path.join(folder, package, "__init__.py")) and os.path.isfile(file):
                yield from _of_module(folder, module, file)


def _of_uwsgi(path: str) -> Iterator[Project]:
    try:
        draft = uwsgi.import_from(path, Account(), {})
    except BadSource:
        return
    for mount in draft.mounts[:1]:
        env = {str(name): str(value) for name, value in mount.settings.get("env", {}).items()}
        folder = str(mount.settings.get("pythonpath", [os.path.dirname(path)])[0])
        why = f"{os.path.basename(path)}; all of it: isowsgi import {shlex.quote(path)}"
        yield Project(folder=folder, app=mount.app or "", why=why, env=env)


def _of_procfile(folder: str) -> Iterator[Project]:
    text = _text(os.path.join(folder, "Procfile"))
    line = next((line for line in text.splitlines() if re.match(r"web\s*:", line)), "")
    if not re.search(r"\b(gunicorn|uwsgi|waitress-serve|mod_wsgi-express)\b", line):
        return
    found = re.search(r"(?<=\s)['\"]?([A-Za-z_][\w.]*:[A-Za-z_]\w*(?:\(\))?|[A-Za-z_]\w*\.wsgi)['\"]?(?=\s|$)", line)
    if found is not None:
        app = found[1] if ":" in found[1] else f"{found[1]}:application"
        yield Project(folder=folder, app=app, why="the line `web` of Procfile")


def _of_django(folder: str) -> Iterator[Project]:
    for entry in sorted(os.scandir(folder), key=lambda each: each.name):
        path = os.path.join(entry.path, "wsgi.py")
        if entry.is_dir() and entry.name.isidentifier() and os.path.isfile(path) and "get_wsgi_application" in _text(path):
            files = "static files: manage.py collectstatic, and static = { ... } here, or the proxy"
            why = f"Django: manage.py, and {entry.name}/wsgi.py; {files}"
            yield Project(folder=folder, app=f"{entry.name}.wsgi:application", why=why)


def _of_module(folder: str, module: str, path: str) -> Iterator[Project]:
    """Yield the app of a module: a callable of a framework's, a function of (environ, start_response), or a factory."""
    try:
        tree = ast.parse(_text(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    names, factories = set(), set()
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
            made = node.value.func
            maker = made.id if isinstance(made, ast.Name) else made.attr if isinstance(made, ast.Attribute) else ""
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if maker in _FRAMEWORKS or maker in (*_FACTORIES, "get_wsgi_application", "make_wsgi_app"):
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.FunctionDef):
            needed = len(node.args.posonlyargs) + len(node.args.args) - len(node.args.defaults)
            if node.name in _FACTORIES and needed == 0:
                factories.add(node.name)
            elif node.name in _CALLABLES and [argument.arg for argument in node.args.args] == ["environ", "start_response"]:
                names.add(node.name)
    shown = os.path.relpath(path, folder)
    for name in sorted(names, key=lambda each: (_CALLABLES.index(each) if each in _CALLABLES else 9, each)):
        yield Project(folder=folder, app=f"{module}:{name}", why=f"{shown} makes {name!r}")
    for name in sorted(factories):
        yield Project(folder=folder, app=f"{module}:{name}()", why=f"{shown} has the factory {name}()")


def _venv_of(folder: str, root: str) -> str | None:
    """Return the venv beside a project, or in a folder above it up to the one that was asked for."""
    while True:
        for name in _VENVS:
            if os.path.isfile(os.path.join(folder, name, "pyvenv.cfg")):
                return os.path.join(folder, name)
        if folder == root or len(folder) <= len(root):
            return None
        folder = os.path.dirname(folder)


def _text(path: str) -> str:
    try:
        return sources.read(path)[: regularfiles.MAX_CONFIG_BYTES]
    except BadSource:
        return ""
