"""`[control] watch`: a change of the config files is applied by itself, by one worker for all: it runs `isowsgi apply`.

On the acceptor's thread; nothing here waits. Time is monotonic seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import IO, Any

from isowsgi.configuration import Config, included
from isowsgi.shared import workdir
from isowsgi.shared.applied import LastApplied

# How often the files are looked at, and how long they must stay as they are: who writes a file may take several writes for it.
LOOK_S = 0.25
_QUIET_S = 0.5

# Most of what the command says that is logged.
_MAX_OUTPUT_CHARS = 16 * 1024

# What the command says where nothing was to be done.
NO_DIFFERENCE = "no difference: what runs is what the config file says"

Signature = dict[str, tuple[int, int, int]]


class FileWatcher:
    """One worker's.

    Args:
        config: returns what is served.
        last_applied: by which one worker is chosen; None: this one is not.
        log: gunicorn's logger.
    """

    def __init__(self, config: Callable[[], Config], last_applied: LastApplied | None, log: Any) -> None:
        self._config = config
        self._last_applied = last_applied
        self._log = log
        self._is_chosen = False
        self._seen: Signature | None = None  # the first look counts as a change: there may have been one since the files were read
        self._changed_at: float | None = None
        self._command: tuple[subprocess.Popen[bytes], IO[bytes]] | None = None

    def tick(self) -> None:
        config, now = self._config(), time.monotonic()
        if not (config.control.enabled and config.control.watch):
            return
        self._look_at_command()
        signature = _signature(config)
        if signature != self._seen:
            self._seen, self._changed_at = signature, now
        elif self._changed_at is not None and now - self._changed_at >= _QUIET_S and self._command is None and self._is_mine():
            self._changed_at = None
            self._apply(config)

    def _is_mine(self) -> bool:
        """Whether this worker is the one that applies; who is not remembers that there was a change, in case it takes over."""
        if not self._is_chosen and self._last_applied is not None:
            self._is_chosen = self._last_applied.may_watch()
        return self._is_chosen

    def _apply(self, config: Config) -> None:
        output = open(os.memfd_create("isowsgi-apply"), "w+b")  # until the command has ended
        command = [sys.executable, "-m", "isowsgi", "apply", "--config", config.path, "--master", str(os.getppid())]
        try:
            process = subprocess.Popen(command, cwd=workdir.for_child(), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        except OSError as exc:
            output.close()
            self._log.error("the config files have changed, but `isowsgi apply` cannot be run: %s", exc)
            return
        self._command = process, output

    def _look_at_command(self) -> None:
        """Tell what became of the command, once it has ended."""
        if self._command is None or (status := self._command[0].poll()) is None:
            return
        output = self._command[1]
        self._command = None
        with output:
            output.seek(0)
            text = output.read().decode("utf-8", "replace").rstrip()[-_MAX_OUTPUT_CHARS:]
        if status:
            self._log.error("the changed config files were not applied, or not wholly; exit code %d:\n%s", status, text)
        elif text != NO_DIFFERENCE:
            self._log.info("the changed config files were applied:\n%s", text)


def _signature(config: Config) -> Signature:
    """Return what changes when one of the files does, comes or goes."""
    found = {}
    for path in (config.path, *included.files(config.include, os.path.dirname(config.path))):
        try:
            facts = os.stat(path)
        except OSError:
            continue
        found[path] = facts.st_mtime_ns, facts.st_size, facts.st_ino
    return found
