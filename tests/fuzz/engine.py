"""Draws cases for a target, checks them, keeps those that reach new code, and says what came of it."""

from __future__ import annotations

import ast
import hashlib
import pprint
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any, Protocol

import gunicorn

import isowsgi

FOUND = Path(__file__).parent / "found"

# Code whose new lines make a case worth keeping.
_WATCHED = tuple(str(Path(str(package.__file__)).parent) for package in (isowsgi, gunicorn))

# A case that takes longer, twice, is a failure: the longest take 0.1 s, as long as a peek may be.
SLOW_S = 1.0

# A case that is not done by then hangs; it is interrupted.
HANG_S = 10

_PROGRESS_S = 10.0
_MOST_KEPT = 3000


class Hang(Exception):
    """A case took longer than HANG_S."""


class Slow(AssertionError):
    """A case took longer than SLOW_S."""


class Target(Protocol):
    """Something to fuzz. A case is a dict that `ast.literal_eval` can read."""

    name: str

    def draw(self, rng: random.Random) -> dict[str, Any]:
        """Return a case."""

    def change(self, case: dict[str, Any], rng: random.Random) -> dict[str, Any]:
        """Return a changed copy of a case."""

    def check(self, case: dict[str, Any]) -> list[str]:
        """Try a case and return what kind of thing it was; raise whatever is wrong."""

    def close(self) -> None:
        """Close what is open."""


@dataclass(slots=True)
class Figures:
    """What came of a run.

    Attributes:
        kinds: how often which kind of thing was seen; a case may be several.
        kept: cases that reached new code.
        failure: the case that failed, and how; the run ends with it.
    """

    inputs: int = 0
    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    slowest_s: float = 0.0
    slowest: dict[str, Any] = field(default_factory=dict)
    grown_mib: float = 0.0
    failure: tuple[dict[str, Any], str] | None = None

    def __str__(self) -> str:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in self.kinds.most_common())
        return (
            f"{self.inputs:,} inputs in {self.seconds:.0f} s, {self.inputs / max(self.seconds, 0.001):,.0f}/s ({kinds}); "
            f"{self.kept} kept for new lines; slowest {self.slowest_s * 1000:.1f} ms; grown by {self.grown_mib:.0f} MiB"
        )


class _NewLines:
    """Notes whether code ran that never ran before; sees nothing before Python 3.12.

    Each place is told once and then switched off, so that it costs nothing later.
    """

    _TOOL = 4

    def __init__(self) -> None:
        self.seen = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        monitoring = getattr(sys, "monitoring", None)
        if monitoring is None or monitoring.get_tool(self._TOOL) is not None:
            yield
            return
        events = monitoring.events
        wanted = [events.LINE]
        if hasattr(events, "BRANCH_LEFT"):  # 3.14: each way of a branch by itself
            wanted += [events.BRANCH_LEFT, events.BRANCH_RIGHT]
        monitoring.use_tool_id(self._TOOL, "isowsgi fuzz")
        try:
            for event in wanted:
                monitoring.register_callback(self._TOOL, event, self._note)
            monitoring.set_events(self._TOOL, sum(wanted))
            monitoring.restart_events()
            yield
        finally:
            monitoring.set_events(self._TOOL, 0)
            monitoring.free_tool_id(self._TOOL)

    def _note(self, code: CodeType, *where: int) -> Any:
        if code.co_filename.startswith(_WATCHED):
            self.seen = True
        return sys.monitoring.DISABLE  # type: ignore[attr-defined] # only where 3.12 or newer runs it


def run(
    target: Target,
    rng: random.Random,
    *,
    seconds: float,
    most: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Figures:
    """Fuzz a target until the time is over, so many inputs were tried, or one failed.

    Args:
        say: takes a line of progress now and then.
    """
    figures = Figures()
    kept: list[dict[str, Any]] = []
    new = _NewLines()
    rss_mib = 0.0
    began = last = said = time.perf_counter()
    with new.watching(), _interrupting(lambda: figures.inputs):
        while last - began < seconds and (most is None or figures.inputs < most):
            case = target.change(rng.choice(kept), rng) if kept and rng.random() < 0.3 else target.draw(rng)
            new.seen = False
            now = time.perf_counter()
            try:
                figures.kinds.update(target.check(case))
                last = time.perf_counter()
                if last - now > SLOW_S:
                    _try_again(target, case)
            except Exception:
                figures.failure = case, traceback.format_exc()
                last = time.perf_counter()
            if last - now > figures.slowest_s:
                figures.slowest_s, figures.slowest = last - now, case
            figures.inputs += 1
            if figures.failure is not None:
                break
            if new.seen and len(kept) < _MOST_KEPT:
                kept.append(case)
            if last - said >= _PROGRESS_S:
                if not rss_mib:
                    rss_mib = _rss_mib()
                said, figures.seconds, figures.kept = last, last - began, len(kept)
                say(str(figures))
    figures.seconds, figures.kept = last - began, len(kept)
    figures.grown_mib = _rss_mib() - rss_mib if rss_mib else 0.0
    return figures


def _try_again(target: Target, case: dict[str, Any]) -> None:
    """Fail if a case is slow once more: others may have had the processor."""
    began = time.thread_time()
    target.check(case)
    took_s = time.thread_time() - began
    if took_s > SLOW_S:
        raise Slow(f"took {took_s:.1f} s")


@contextmanager
def _interrupting(count: Callable[[], int]) -> Iterator[None]:
    """Raise Hang if the count stands still for HANG_S; in the main thread only."""
    seen, since = -1, 0.0

    def look(*_: object) -> None:
        nonlocal seen, since
        if count() != seen:
            seen, since = count(), time.monotonic()
        elif time.monotonic() - since > HANG_S:
            raise Hang(f"not done after {HANG_S} s")

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, 1, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _rss_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def save(target: Target, case: dict[str, Any], why: str, folder: Path = FOUND) -> Path:
    """Write a case down for `replay`; what went wrong stands before it as comments."""
    text = pprint.pformat(case, width=136)
    path = folder / f"{target.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.case"
    folder.mkdir(exist_ok=True)
    path.write_text("".join(f"# {line}\n" for line in why.splitlines()[-1:]) + text + "\n")
    return path


def replay(target: Target, path: Path) -> list[str]:
    """Check a case that was written down."""
    return target.check(ast.literal_eval(path.read_text()))
