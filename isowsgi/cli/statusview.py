"""The table of `isowsgi status`: a row for each mount, from two answers of each worker.

Rates and latencies are what was counted between the two; `--json` has the counters themselves.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from isowsgi.cli import asking
from isowsgi.cli.answers import Told
from isowsgi.shared.controlmessages import Error, LastError, MountCounts, MountStatus, WorkerStatus
from isowsgi.shared.rows import BUCKET_LIMITS_S

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, Group, RenderResult
    from rich.table import Table
    from rich.text import Text

Answers = Sequence[Told[WorkerStatus]]

_STYLES = {"serving": "green", "asleep": "dim", "booting": "cyan", "reloading": "cyan", "leaving": "yellow"}

# Where a row has the isolation, which is left out on a narrow terminal; and a width that no table has.
_ISOLATION, _ANY_WIDTH = 2, 10_000

# Share of 5xx from which on a mount is marked, as the page marks it; and a latency that is marked, in seconds.
_FAILING_SHARE = 0.05
_SLOW_S = 1.0


class Figures(NamedTuple):
    """What a mount did between two answers, over all workers; None: nothing is known."""

    rate: float | None = None
    p50: float | None = None
    p99: float | None = None
    failing: float | None = None  # share of responses with 5xx
    cpu: float | None = None  # processors
    memory: int | None = None  # bytes


SORTS: dict[str, Callable[[str, Figures], tuple[float, str]]] = {
    "name": lambda pattern, figures: (0, pattern),
    "cpu": lambda pattern, figures: (-(figures.cpu or 0), pattern),
    "memory": lambda pattern, figures: (-(figures.memory or 0), pattern),
    "p99": lambda pattern, figures: (-(figures.p99 or 0), pattern),
    "errors": lambda pattern, figures: (-(figures.failing or 0), pattern),
    "requests": lambda pattern, figures: (-(figures.rate or 0), pattern),
}


def view(answers: Answers, before: Answers = (), sort: str | None = None) -> Group:
    """Draw the table, below it the last errors and the workers that did not answer.

    Args:
        before: what was answered a while ago.
        sort: one of `SORTS`; None keeps the order of the config file.
    """
    from rich.console import Group
    from rich.text import Text

    workers, previous = _of_workers(answers), _of_workers(before)
    masters = ", ".join(str(master) for master in sorted({told.place.master for told in answers}))
    rss = ", ".join(f"{pid}: {worker.rss_mib} MiB" for pid, worker in workers.items())
    by_mount: dict[str, list[tuple[int, MountStatus]]] = {}
    for pid, worker in workers.items():
        for mount in worker.mounts:
            by_mount.setdefault(mount.mount, []).append((pid, mount))
    earlier = {(pid, mount.mount): mount.counts for pid, worker in previous.items() for mount in worker.mounts}
    spans = {pid: worker.at - previous[pid].at for pid, worker in workers.items() if pid in previous}
    figures = {pattern: _figures(found, earlier, spans) for pattern, found in by_mount.items()}
    patterns = list(by_mount)
    if sort is not None:
        patterns.sort(key=lambda pattern: SORTS[sort](pattern, figures[pattern]))
    has_memory = any(each.memory is not None for each in figures.values())
    table, narrow = _empty_table(has_memory, True), _empty_table(has_memory, False)
    errors = []
    for pattern in patterns:
        mounts = [mount for _, mount in by_mount[pattern]]
        row = _row(pattern, mounts, figures[pattern], has_memory)
        table.add_row(*row)
        narrow.add_row(*row[:_ISOLATION], *row[_ISOLATION + 1 :])
        if last := _last_error(mounts):
            errors.append(Text(f"{when(last.at)} {pattern}: {last.error}"))
    title = Text(f"{len(workers)} of {len(answers)} workers of gunicorn {masters} ({rss})")
    below = [Text("\nlast errors:"), *errors] if errors else []
    return Group(title, Text(), _Fitting(table, narrow), *below, *map(Text, asking.silent(answers)))


def when(at: float) -> str:
    """Return a time that a worker tells, for people."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    except (OverflowError, ValueError, OSError):  # no time that a worker would tell
        return "at an unknown time"


def _of_workers(answers: Answers) -> dict[int, WorkerStatus]:
    return {told.place.worker: told.answer for told in answers if not isinstance(told.answer, Error)}


def _last_error(mounts: list[MountStatus]) -> LastError | None:
    return max((mount.last_error for mount in mounts if mount.last_error), key=lambda error: error.at, default=None)


def _figures(found: list[tuple[int, MountStatus]], earlier: dict[tuple[int, str], MountCounts | None], spans: dict[int, float]) -> Figures:
    """Return what a mount did.

    Args:
        found: the mount in each worker, with the worker's process id.
        earlier: what was counted before, by process id and pattern.
        spans: seconds between a worker's two answers, by process id.
    """
    known = [mount.memory_bytes for _, mount in found if mount.memory_bytes is not None]
    memory = sum(known) if known else None
    rate = cpu = 0.0
    responses = failed = 0
    buckets = [0] * (len(BUCKET_LIMITS_S) + 1)
    is_known = False
    for pid, mount in found:
        now, then, seconds = mount.counts, earlier.get((pid, mount.mount)), spans.get(pid, 0.0)
        if now is None or then is None or seconds <= 0:
            continue
        is_known = True
        rate += max(now.requests - then.requests, 0) / seconds
        cpu += max(now.cpu_s - then.cpu_s, 0) / seconds
        responses += max(sum(now.responses) - sum(then.responses), 0)
        failed += max(sum(now.responses[4:]) - sum(then.responses[4:]), 0)
        if len(now.buckets) == len(then.buckets) == len(buckets):
            buckets = [sum_ + max(one - other, 0) for sum_, one, other in zip(buckets, now.buckets, then.buckets, strict=True)]
    if not is_known:
        return Figures(memory=memory)
    share = failed / responses if responses else None
    return Figures(rate, quantile(buckets, 0.5), quantile(buckets, 0.99), share, cpu, memory)


def quantile(buckets: Sequence[int], share: float) -> float | None:
    """Return how long a share of requests took at most, in seconds, as far as their buckets tell; None if there were none."""
    wanted = share * sum(buckets)
    if not wanted:
        return None
    below = 0
    for place, count in enumerate(buckets[:-1]):
        if below + count >= wanted:
            low = BUCKET_LIMITS_S[place - 1] if place else 0.0
            return low + (BUCKET_LIMITS_S[place] - low) * (wanted - below) / count
        below += count
    return BUCKET_LIMITS_S[-1]


class _Fitting:
    """A table that leaves a column out where the terminal is too narrow for all of them."""

    def __init__(self, whole: Table, narrow: Table) -> None:
        self._whole, self._narrow = whole, narrow

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widest = self._whole.__rich_measure__(console, options.update(max_width=_ANY_WIDTH)).maximum
        yield self._whole if widest <= options.max_width else self._narrow


def _empty_table(has_memory: bool, has_isolation: bool) -> Table:
    from rich.table import Table

    # The first column yields when the terminal is narrow: half a number is worth less than a folded pattern.
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("mount", overflow="fold")
    for column in ("state", *(("isolation",) if has_isolation else ())):
        table.add_column(column, no_wrap=True)
    for column in ("gen", "busy", "req/s", "p50", "p99", "5xx", "CPU", *(("memory",) if has_memory else ())):
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _row(pattern: str, mounts: list[MountStatus], figures: Figures, has_memory: bool) -> list[str | Text]:
    """Return the cells of a mount, by what each worker says of it. What is wrong has a `!` beside it: not every terminal has colours."""
    from rich.text import Text

    states = Counter(mount.state for mount in mounts)
    state = max(states, key=lambda name: (name not in _STYLES, name != "serving", states[name]))
    instances = [instance for mount in mounts for instance in mount.instances]
    generations = sorted({mount.generation for mount in mounts})
    stuck = sum(mount.stuck for mount in mounts)
    busy, threads = sum(len(instance.in_flight) for instance in instances), sum(instance.threads for instance in instances)
    is_wrong = state not in _STYLES or stuck > 0
    of_all = f" {states[state]}/{len(mounts)}" if len(states) > 1 else ""
    return [
        Text(pattern),
        Text(
            f"{state}{'!' if is_wrong else ''}{of_all}{f' ({stuck} stuck)' if stuck else ''}",
            style="bold red" if is_wrong else _STYLES[state],
        ),
        ", ".join(sorted({mount.isolation for mount in mounts})),
        str(generations[0]) if len(generations) == 1 else f"{generations[0]}-{generations[-1]}",
        _marked(f"{busy}/{threads}", bool(threads) and busy >= threads),
        "-" if figures.rate is None else f"{figures.rate:.0f}" if figures.rate >= 10 else f"{figures.rate:.1f}",
        _duration(figures.p50),
        _marked(_duration(figures.p99), (figures.p99 or 0) > _SLOW_S),
        _marked(_percent(figures.failing), (figures.failing or 0) >= _FAILING_SHARE),
        _percent(figures.cpu),
        *([_memory(figures.memory)] if has_memory else []),
    ]


def _marked(text: str, is_wrong: bool) -> Text:
    from rich.text import Text

    return Text(f"{text}!", style="bold red") if is_wrong else Text(text)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.1f}s" if seconds >= 1 else f"{seconds * 1000:.0f}ms" if seconds >= 0.01 else f"{seconds * 1000:.1f}ms"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share * 100:.0f}%"


def _memory(octets: int | None) -> str:
    return "-" if octets is None else f"{octets / (1 << 20):.0f}M"
