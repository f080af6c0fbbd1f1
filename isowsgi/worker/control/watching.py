"""`[control] watch`: a change of the config files is applied by itself, by one worker for all: it runs `isowsgi apply`.

On the acceptor's thread; nothing here waits. Time is monotonic seconds.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO, Any

from isowsgi.configuration import Config, included
from isowsgi.shared import controlmessages, workdir
from isowsgi.shared.applied import LastApplied

# How often the files are looked at, and how long they must stay as they are: who writes a file may take several writes for it.
LOOK_S = 0.25
_QUIET_S = 0.5

# Most of what the command says that is logged.
_MAX_OUTPUT_CHARS = 16 * 1024

# How long after a failure it is tried again: this long, then twice as long each time, up to the most.
_FIRST_PAUSE_S = 1.0
_MOST_PAUSE_S = 60.0

Signature = dict[str, tuple[int, ...]]


class FileWatcher:
    """One worker's.

    Args:
        config: returns what is served.
        last_applied: by which one worker is chosen; None: this one is not.
        log: gunicorn's logger.
        more_files: that are looked at beside the config files and what these name: gunicorn's own certificate and its key.
    """

    def __init__(self, config: Callable[[], Config], last_applied: LastApplied | None, log: Any, more_files: Sequence[str] = ()) -> None:
        self._config = config
        self._more_files = more_files
        self._last_applied = last_applied
        self._log = log
        self._is_chosen = False
        self._seen: Signature | None = None  # the first look counts as a change: there may have been one since the files were read
        self._changed_at: float | None = None
        self._pause_s = 0.0  # until the next try, if that was no success
        self._said = ""  # of the last failure
        self.is_stopping = False
        self._command: tuple[subprocess.Popen[bytes], IO[bytes]] | None = None

    def tick(self) -> None:
        config, now = self._config(), time.monotonic()
        if self.is_stopping or not (config.control.enabled and config.control.watch):
            return
        self._look_at_command(now)
        signature = _signature(config, self._more_files)
        if signature != self._seen:
            self._seen, self._changed_at, self._pause_s = signature, now, 0.0
        elif (
            self._changed_at is not None
            and now - self._changed_at >= max(_QUIET_S, self._pause_s)
            and self._command is None
            and self._is_mine()
        ):
            self._changed_at = None
            try:
                self._apply(config)
            except OSError as exc:
                self._failed(f"the config files have changed, but `isowsgi apply` cannot be run: {exc}", now)

    def _is_mine(self) -> bool:
        """Whether this worker is the one that applies; who is not remembers that there was a change, in case it takes over."""
        if not self._is_chosen and self._last_applied is not None:
            self._is_chosen = self._last_applied.may_watch()
        return self._is_chosen

    def _apply(self, config: Config) -> None:
        with contextlib.ExitStack() as undo:
            output = undo.enter_context(open(os.memfd_create("isowsgi-apply"), "w+b"))
            command = [sys.executable, "-m", "isowsgi", "apply", "--keep-going", "--config", config.path]
            command += ["--master", str(os.getppid())]
            process = subprocess.Popen(command, cwd=workdir.for_child(), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            undo.pop_all()
        self._command = process, output

    def _look_at_command(self, now: float) -> None:
        """Tell what became of the command, once it has ended."""
        if self._command is None or (status := self._command[0].poll()) is None:
            return
        output = self._command[1]
        self._command = None
        with output:
            output.seek(0)
            text = output.read().decode("utf-8", "replace").rstrip()[-_MAX_OUTPUT_CHARS:]
        if status:
            self._failed(f"the changed config files were not applied, or not wholly; exit code {status}:\n{text}", now)
            return
        self._pause_s, self._said = 0.0, ""
        if text != controlmessages.NO_DIFFERENCE:
            self._log.info("the changed config files were applied:\n%s", text)

    def _failed(self, text: str, now: float) -> None:
        """Log a failure, unless it is the same again, and plan the next try: a worker may have been away, or an operator quicker."""
        if text != self._said:
            self._log.error("%s", text)
        self._said = text
        self._pause_s = min(self._pause_s * 2 or _FIRST_PAUSE_S, _MOST_PAUSE_S)
        if self._changed_at is None:
            self._changed_at = now


def _signature(config: Config, more_files: Sequence[str]) -> Signature:
    """Return what changes when one of the files does, comes or goes."""
    found: Signature = {}
    named = [path for each in config.tls for path in (each.certificate, each.key)]
    for path in (config.path, *included.files(config.include, os.path.dirname(config.path)), *more_files, *named):
        try:
            facts = os.stat(path)
        except OSError:
            continue
        found[path] = facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size, facts.st_ino
    return found
