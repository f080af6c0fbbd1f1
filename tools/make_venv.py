"""Make a venv for a given CPython and install into it, or do nothing at once if it is already as asked.

    make_venv.py PYTHON DIR [ARGUMENT...]

The arguments are those of `pip install`: requirements, folders, `-e .`, `--group pyproject.toml:test`.

The given Python may have neither pip nor ensurepip (Debian packages them apart), so the venv is made without pip, and a pip is fetched
once, by whichever Python here can, to a folder beside the venv. pip is run from that folder by the venv's own Python: a pip of
the machine's may be too old for that Python, and one pip for five venvs is quicker than five.

A stamp in the venv says what it was made from. It is written last, so a venv that was interrupted is made again.
Requirements without a version are not looked up again while the stamp holds: remove the folder for newer releases.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

STAMP = "made-by-isowsgi.json"

# The first pip that knows --group (PEP 735).
PIP = "pip>=25.1"

# Installs at a time. They wait for the network about as long as they unpack and compile, so a few more than the usual two cores.
AT_ONCE = 4

# Lines of a failed command's output that are shown; pip puts the reason into the last few.
TAIL_LINES = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Venv:
    """One venv as it should be."""

    folder: Path
    arguments: tuple[str, ...]  # of `pip install`
    contents: str  # the same for people: "Flask 2.2, Werkzeug 2.2"

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"


class Failed(Exception):
    """A command failed; the text is one line and `output` the end of what the command wrote."""

    def __init__(self, text: str, output: str = "") -> None:
        super().__init__(text)
        self.output = output


class Commands:
    """The child processes that run now, so that an interrupt can end all of them at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._is_stopped = False

    def run(self, *command: str | Path) -> str:
        """Run a command to its end and return what it wrote; raises Failed."""
        with self._lock:
            if self._is_stopped:
                raise Failed("stopped")
            try:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    env=_environ(),
                    start_new_session=True,  # Ctrl-C is for us; pip would answer it with a page of traceback
                )
            except OSError as exc:
                raise Failed(f"cannot run {str(command[0])!r}: {exc.strerror}") from exc
            self._running.add(child)
        with child:
            output, _ = child.communicate()
        with self._lock:
            self._running.discard(child)
        if child.returncode:
            raise Failed(f"{Path(command[0]).name} ended with status {child.returncode}", output)
        return output

    def stop(self) -> None:
        """End every child, and let no other start."""
        with self._lock:
            self._is_stopped = True
            for child in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)


def _environ() -> dict[str, str]:
    # A Python or pip setting of the user's own that would send packages elsewhere, or refuse to install them, is not for these folders.
    environ = {name: value for name, value in os.environ.items() if name not in {"PYTHONHOME", "PYTHONPATH", "PIP_TARGET", "PIP_PREFIX"}}
    return environ | {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


class Progress:
    """One line for each step with the seconds it took; while steps run, the lines are redrawn in place if `out` is a terminal."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._is_live = out.isatty() and os.environ.get("TERM", "dumb") != "dumb"

    def run(self, steps: Sequence[tuple[str, Callable[[], object]]], commands: Commands) -> None:
        """Do all steps, some at a time; when one fails, the others are finished first and then its Failed is raised."""
        began: dict[int, float] = {}
        ended: dict[int, float] = {}
        failures: dict[int, Failed] = {}

        def do(number: int) -> None:
            began[number] = time.monotonic()
            try:
                steps[number][1]()
            except Failed as exc:
                failures[number] = Failed(f"{steps[number][0]}: {exc}", exc.output)
            except OSError as exc:
                failures[number] = Failed(f"{steps[number][0]}: {exc}")
            finally:
                ended[number] = time.monotonic()

        def line(number: int) -> str:
            text = steps[number][0]
            if number not in began:
                return text
            outcome = "failed after " if number in failures else ""
            return f"{text} ... {outcome}{ended.get(number, time.monotonic()) - began[number]:.1f} s"

        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                futures = [pool.submit(do, number) for number in range(len(steps))]
                told: set[int] = set()
                while True:
                    is_over = all(future.done() for future in futures)
                    if self._is_live:
                        self._redraw([line(number) for number in range(len(steps))], is_first=not told)
                        told.add(0)
                    else:
                        for number in sorted(ended.keys() - told):
                            print(line(number), file=self._out, flush=True)
                            told.add(number)
                    if is_over:
                        break
                    time.sleep(0.1)  # how often a terminal is redrawn; nothing waits for it but the person
            except BaseException:
                commands.stop()
                raise
        for future in futures:
            future.result()  # an exception that is not a Failed is a mistake of ours, and is shown as one
        if failures:
            raise failures[min(failures)]

    def _redraw(self, lines: Sequence[str], *, is_first: bool) -> None:
        width = shutil.get_terminal_size().columns - 1  # a line that wraps would put the cursor's way back out of step
        back = "" if is_first else f"\x1b[{len(lines)}A"
        self._out.write(back + "".join(f"\r{line[:width]}\x1b[K\n" for line in lines))
        self._out.flush()


def make(python: str, venvs: Sequence[Venv], progress: Progress) -> bool:
    """Make or refresh venvs, in parallel; returns False if all were up to date. Raises Failed.

    An exception in the calling thread (KeyboardInterrupt is one) ends the running commands before it propagates.
    """
    commands = Commands()
    identity = commands.run(python, "-I", "-c", "import os, sys; print(os.path.realpath(sys.executable), sys.version)").strip()
    stamps = {venv.name: _stamp(identity, venv.arguments) for venv in venvs}
    stale = [venv for venv in venvs if _stamped(venv) != stamps[venv.name]]
    if not stale:
        return False

    parent = stale[0].folder.parent
    pip = parent / ".pip" / "pip"
    if any(venv.arguments for venv in stale) and not (pip / "__main__.py").exists():
        progress.run([("pip: fetching a new one", lambda: _fetch_pip(python, pip.parent, commands))], commands)

    def step(venv: Venv) -> tuple[str, Callable[[], object]]:
        return f"{venv.name}: installing {venv.contents}", lambda: _make_one(python, venv, stamps[venv.name], pip, commands)

    progress.run([step(venv) for venv in stale], commands)
    return True


def _make_one(python: str, venv: Venv, stamp: dict[str, str], pip: Path, commands: Commands) -> None:
    old = _stamped(venv)
    (venv.folder / STAMP).unlink(missing_ok=True)
    # When only a checkout's files changed, its new state is installed over the old one; all else starts from an empty folder.
    if old is None or old | {"sources": ""} != stamp | {"sources": ""}:
        commands.run(python, "-m", "venv", "--without-pip", "--clear", venv.folder)
        (venv.folder / ".gitignore").write_text("*\n")  # venv does so itself from 3.13 on
    if venv.arguments:
        commands.run(venv.python, pip, "install", *venv.arguments)
    (venv.folder / STAMP).write_text(json.dumps(stamp, indent=1) + "\n")


def _stamp(identity: str, arguments: Sequence[str]) -> dict[str, str]:
    digest = hashlib.sha256()
    for file in _sources(arguments):
        digest.update(f"{file}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return {"python": identity, "arguments": json.dumps(list(arguments)), "sources": digest.hexdigest()}


def _stamped(venv: Venv) -> dict[str, str] | None:
    """Return the stamp of a venv that is there and whole, or None."""
    try:
        stamp = json.loads((venv.folder / STAMP).read_text())
    except (OSError, ValueError):
        return None
    # The link breaks when the Python it was made from goes away.
    return stamp if isinstance(stamp, dict) and venv.python.exists() else None


def _sources(arguments: Sequence[str]) -> Iterator[Path]:
    """Yield the local files that an install depends on: a folder's pyproject.toml and the packages in it, a group's pyproject.toml."""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        if before == "--group":
            file = Path(argument.rpartition(":")[0] or "pyproject.toml")
            if file.exists():
                yield file
            continue
        folder = Path(argument)
        if not (folder / "pyproject.toml").exists():
            continue
        yield folder / "pyproject.toml"
        if before in {"-e", "--editable"}:
            continue  # its modules are read where they are
        for package in sorted(folder.glob("*/__init__.py")):
            yield from sorted(
                file for file in package.parent.rglob("*") if file.is_file() and file.suffix != ".pyc" and "__pycache__" not in file.parts
            )


def _fetch_pip(python: str, folder: Path, commands: Commands) -> None:
    """Put a new pip into `folder`, with any pip that some Python here has or, where none has one, can unpack (ensurepip)."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    failures: list[Failed] = []
    pythons = list(dict.fromkeys(name for name in (python, sys.executable, shutil.which("python3"), shutil.which("python")) if name))
    version = commands.run(python, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".pip-") as work:
        new = Path(work) / "new"

        def fetch_with(candidate: str | Path) -> bool:
            # --python-version: a wheel for the venv's Python, whatever Python runs this pip; and so nothing compiled by the latter either.
            try:
                commands.run(
                    *(candidate, "-m", "pip", "install", "--quiet", "--target", new, "--python-version", version),
                    *("--only-binary", ":all:", "--no-deps", "--no-compile", PIP),
                )
            except Failed as exc:
                failures.append(exc)
                return False
            (new / ".gitignore").write_text("*\n")
            new.rename(folder)
            return True

        if any(fetch_with(candidate) for candidate in pythons):
            return
        for number, candidate in enumerate(pythons):
            helper = Path(work) / f"helper{number}"
            try:
                commands.run(candidate, "-m", "venv", helper)
            except Failed:
                continue  # no ensurepip either
            if fetch_with(helper / "bin" / "python"):
                return
    # A pip that tried and could not says more than a Python that has none.
    tried = [failure for failure in failures if "No module named pip" not in failure.output]
    if tried:
        raise tried[-1]
    raise Failed(f"no pip in any of {', '.join(pythons)}: install one, such as Debian's python3-pip or python3-venv")


def fail(tool: str, failure: Failed) -> NoReturn:
    """Show a failure, with the end of the failed command's output, and end with status 1."""
    tail = failure.output.rstrip().splitlines()[-TAIL_LINES:]
    if tail:
        print("\n".join(f"    {line}" for line in tail), file=sys.stderr)
    print(f"{tool}: {failure}", file=sys.stderr)
    sys.exit(1)


def main(argv: Sequence[str]) -> int:
    if len(argv) < 2 or argv[0].startswith("-"):
        print("usage: make_venv.py PYTHON DIR [ARGUMENT OF pip install...]", file=sys.stderr)
        return 2
    python, folder, *arguments = argv
    venv = Venv(folder=Path(folder).absolute(), arguments=tuple(arguments), contents=" ".join(arguments) or "nothing")
    try:
        make(python, [venv], Progress(sys.stdout))
    except Failed as exc:
        fail("make_venv", exc)
    except KeyboardInterrupt:
        print("make_venv: stopped", file=sys.stderr)
        return 130  # as a shell says of a command that SIGINT ended
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
