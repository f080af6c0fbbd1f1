"""`isowsgi run`: a command outside of the server with what a mount's app has: Python, venv, variables, path and folder."""

from __future__ import annotations

import difflib
import os
import shutil
import sys
from collections.abc import Mapping
from typing import NamedTuple

import click

from isowsgi import configuration
from isowsgi.cli import asking
from isowsgi.configuration import Mount
from isowsgi.configuration.values import spellings_of
from isowsgi.shared import interpreters, slices, workdir

# Names for which the mount's own Python is taken, wherever the venv's folder has it.
_PYTHONS = ("python", "python3")

# As shells have it: the command was not found, or cannot be executed.
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126


class Surroundings(NamedTuple):
    """What a command is executed with."""

    python: str
    environ: dict[str, str]
    folder: str


@click.command(
    short_help="Run a command with the Python and environment of one mount.", context_settings={"allow_interspersed_args": False}
)
@click.option("--config", "-c", metavar="FILE", default="isowsgi.toml", show_default=True, help="The config file.")
@click.option("--chdir", metavar="FOLDER", help="Where to run it.  [default: working_directory, else the first folder of pythonpath]")
@click.argument("pattern")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(config: str, chdir: str | None, pattern: str, command: tuple[str, ...]) -> None:
    """Run a command outside of the server with one mount's Python, venv, environment variables, pythonpath, folder and umask:

    isowsgi run /shop python manage.py migrate

    Options of isowsgi's come before PATTERN; what follows is the command's own.

    Only the config file is needed; gunicorn need not run. The command takes the place of this process: signals reach it, and
    its exit code is the command's. As another user: sudo -u www-data isowsgi run ...
    """
    command = command[1:] if command[0] == "--" else command
    if not command:
        raise click.UsageError("Missing argument 'COMMAND...'.")
    path = workdir.absolute(config)
    mount = _mount(path, pattern)
    around = surroundings(mount, os.environ, os.path.dirname(path))
    folder = around.folder if chdir is None else os.path.abspath(chdir)
    if mount.umask:
        os.umask(int(mount.umask, 8))
    around.environ["PWD"] = folder  # the caller's else, which programs take for theirs
    try:
        os.chdir(folder)
    except OSError as exc:
        asking.fail(f"{folder}: cannot run it there: {(exc.strerror or str(exc)).lower()}", _NOT_EXECUTABLE)
    executable = around.python if command[0] in _PYTHONS else shutil.which(command[0], path=around.environ["PATH"])
    if executable is None:
        asking.fail(f"no such command: {command[0]!r}; PATH is {around.environ['PATH']}", _NOT_FOUND)
    sys.stdout.flush()
    if not slices.is_filtered():
        slices.restore()
    try:
        os.execve(executable, [executable if command[0] in _PYTHONS else command[0], *command[1:]], around.environ)
    except OSError as exc:
        asking.fail(f"{executable}: cannot execute it: {(exc.strerror or str(exc)).lower()}", _NOT_EXECUTABLE)


def surroundings(mount: Mount, environ: Mapping[str, str], config_folder: str) -> Surroundings:
    """Return what a mount's app has, as far as another process can have it.

    Args:
        environ: this process' own; the mount's variables come over them.
        config_folder: of the config file, where no better folder is known.
    """
    env = {**environ, **mount.env}
    python: str = sys.executable
    folders: list[str] = []
    if mount.venv is not None:
        folders.append(os.path.join(mount.venv, "bin"))
        env["VIRTUAL_ENV"] = mount.venv
        found = [path for name in _PYTHONS if os.access(path := os.path.join(folders[0], name), os.X_OK)]
        if found:  # not `python`: the packages of the venv are for its own
            python = found[0]
        elif mount.python is not None:
            python = mount.python
            folders.append(os.path.dirname(python))
    elif mount.python is not None:
        python = mount.python
        folders.append(os.path.dirname(python))
    else:
        folders.append(os.path.dirname(sys.executable))  # with the packages of gunicorn's environment, as the app has them
    if mount.venv is not None or mount.python is not None:
        env.pop("PYTHONHOME", None)  # of another Python
    env["PATH"] = os.pathsep.join([*folders, *filter(None, [env.get("PATH", os.defpath)])])
    paths = [*mount.pythonpath, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    if paths:
        env["PYTHONPATH"] = os.pathsep.join(paths)
    return Surroundings(python, env, mount.working_directory or next(iter(mount.pythonpath), config_folder))


def _mount(path: str, pattern: str) -> Mount:
    try:
        loaded = configuration.load(path, own_gil_error=interpreters.own_gil_error())
    except configuration.ConfigError as exc:
        asking.fail_by_faults(exc.faults, False, 2)
    for fault in loaded.faults:  # of other files
        click.echo(fault, err=True)
    by_pattern = {mount.pattern: mount for mount in loaded.mounts}
    mount = next((by_pattern[each] for each in spellings_of(pattern) if each in by_pattern), None)
    if mount is None:
        near = difflib.get_close_matches(pattern, by_pattern, 1)
        asking.fail(f"no mount {pattern!r} in {path}" + (f"; did you mean {near[0]!r}?" if near else ""), 2)
    if mount.files is not None:
        asking.fail(f"{pattern} is only files: it has no app", 2)
    if mount.redirect:
        asking.fail(f"{pattern} is a redirect: it has no app", 2)
    if mount.fault:
        asking.fail(f"{pattern}: its config file has a fault: {mount.fault}", 2)
    return mount
