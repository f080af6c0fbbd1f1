"""The metrics: what the board says, for Prometheus, over all workers of one gunicorn.

Counters are exact: they are in shared memory, each with one writer, and those of a worker that ended are kept by the master. So
whichever worker answers a scrape, it answers for all of them.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from isowsgi.shared import rows
from isowsgi.shared.board import Board, Reading
from isowsgi.shared.rows import BUCKET_LIMITS_S, WAIT_LIMITS_S
from isowsgi.shared.scoreboard import ZERO, Counters, wholes
from isowsgi.status.snapshot import certificates_expire, mounts_of, patterns, responses, unready

_MOUNT = ("mount",)
_BOTH = ("mount", "isolation")


class _Family(NamedTuple):
    """A counter: its name, what it counts, the word that has it, and what it is divided by."""

    name: str
    text: str
    word: int
    unit: float = 1.0


# By mount and isolation: what threads count.
_BY_BOTH = (
    _Family("isowsgi_requests_total", "Requests that were handed to the app.", rows.REQUESTS),
    _Family("isowsgi_request_body_bytes_total", "Bytes of requests' bodies that were read, chunk framing included.", rows.BYTES_IN),
    _Family("isowsgi_response_body_bytes_total", "Bytes of responses' bodies that were sent.", rows.BYTES_OUT),
    _Family("isowsgi_cpu_seconds_total", "CPU time of the threads that serve a mount.", rows.CPU_NS, 1e9),
    _Family("isowsgi_exceptions_total", "Exceptions that the app raised while serving a request.", rows.EXCEPTIONS),
)


class _Timing(NamedTuple):
    """A histogram: its name, what it is of, its limits, its buckets, and the words whose sum it is."""

    name: str
    text: str
    limits_s: Sequence[float]
    buckets: Callable[[Counters], Sequence[int]]
    sums: tuple[int, ...]


_TIMINGS = (
    _Timing("isowsgi_request_duration_seconds", "How long requests took, from their head to the end of the response.",
            BUCKET_LIMITS_S, Counters.buckets, (rows.BUSY_NS, rows.SENDING_NS)),
    _Timing("isowsgi_request_waiting_seconds", "How long requests waited for a thread before that; the sum has only waits over 1 ms.",
            WAIT_LIMITS_S, Counters.waiting_buckets, (rows.WAITING_NS,)),
    _Timing("isowsgi_request_app_seconds", "How long requests took without waiting for the client to take the response.",
            BUCKET_LIMITS_S, Counters.app_buckets, (rows.BUSY_NS,)),
    _Timing("isowsgi_request_sending_seconds",
            "How long clients were waited for while a response was sent; the sum has only waits over 1 ms.",
            WAIT_LIMITS_S, Counters.sending_buckets, (rows.SENDING_NS,)),
)  # fmt: skip

# By mount: what more than one part of a worker counts, or the main interpreter alone.
_BY_MOUNT = (
    _Family("isowsgi_request_timeouts_total", "Requests that timed out because they made no progress.", rows.TIMEOUTS),
    _Family("isowsgi_requests_turned_away_total", "Requests answered 503 because the queue was full or they waited in it too long.",
            rows.TURNED_AWAY),
    _Family("isowsgi_reloads_total", "Replacements of a serving generation that were started.", rows.RELOADS),
    _Family("isowsgi_stuck_instances_total", "Instances left behind with a thread that did not end.", rows.STUCK),
    _Family("isowsgi_boots_total", "Instances that loaded their app.", rows.BOOTS),
    _Family("isowsgi_boot_seconds_total", "Total time that these instances took to load their app.", rows.BOOT_NS, 1e9),
    _Family("isowsgi_boot_failures_total", "Instances that could not load their app.", rows.BOOT_FAILURES),
    _Family("isowsgi_tenant_starts_total", "Tenants of a template that were given an instance by a request; 0 for other mounts.",
            rows.TENANT_STARTS),
    _Family("isowsgi_tenant_evictions_total", "Tenants that were ended because another one needed the place.", rows.TENANT_EVICTIONS),
    _Family("isowsgi_crashes_total", "Crashes of a worker that are attributed to the mount.", rows.CRASHES),
)  # fmt: skip


class BoardCollector(Collector):
    """Reads the board for each scrape."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterable[Metric]:
        return families(self._board.read())


def registry(board: Board) -> CollectorRegistry:
    """Return a registry with the board's metrics and nothing else; not with those of the process that answers."""
    made = CollectorRegistry(auto_describe=False)
    made.register(BoardCollector(board))
    return made


def families(reading: Reading) -> Iterator[Metric]:
    """Return all metrics of one reading."""
    # A mount's own rows have no isolation; threads' rows always do.
    served = {key: counters for key, counters in reading.totals.items() if key[0] and key[1]}
    by_mount = wholes(reading.totals)
    yield from (_counter(family, _BOTH, served) for family in _BY_BOTH)
    for timing in _TIMINGS:
        yield _histogram(timing, served)
    yield _gil_waits(reading.totals.get(("", ""), ZERO))
    yield _responses(by_mount)
    yield from (_counter(family, _MOUNT, {(pattern,): counters for pattern, counters in by_mount.items()}) for family in _BY_MOUNT)
    yield _errors(reading)
    yield from _mounts(reading)
    yield from _workers(reading)


def _counter(family: _Family, labels: Sequence[str], values: Mapping[Any, Counters]) -> Metric:
    metric = CounterMetricFamily(family.name, family.text, labels=labels)
    for key, counters in values.items():
        count = counters.get(family.word)
        metric.add_metric(key, count if family.unit == 1 else count / family.unit)
    return metric


def _histogram(timing: _Timing, served: Mapping[tuple[str, str], Counters]) -> Metric:
    metric = HistogramMetricFamily(timing.name, timing.text, labels=_BOTH)
    for key, counters in served.items():
        sum_ns = sum(counters.get(word) for word in timing.sums)
        metric.add_metric(key, _cumulated(timing.limits_s, timing.buckets(counters)), sum_ns / 1e9)
    return metric


def _gil_waits(acceptor: Counters) -> Metric:
    text = "How long a thread waited for the GIL of shared-gil and main mounts; tried four times a second in each worker."
    metric = HistogramMetricFamily("isowsgi_gil_wait_seconds", text)
    metric.add_metric((), _cumulated(BUCKET_LIMITS_S, acceptor.buckets()), acceptor.get(rows.BUSY_NS) / 1e9)
    return metric


def _cumulated(limits_s: Iterable[float], counts: Iterable[int]) -> list[tuple[str, int]]:
    return list(zip((*map(str, limits_s), "+Inf"), accumulate(counts), strict=True))


def _responses(by_mount: dict[str, Counters]) -> Metric:
    text = "Responses that were begun, by status class, including those that isowsgi sends instead of the app."
    metric = CounterMetricFamily("isowsgi_responses_total", text, labels=("mount", "code"))
    for pattern, counters in by_mount.items():
        for code, count in responses(counters).items():
            metric.add_metric((pattern, code), count)
    return metric


def _errors(reading: Reading) -> Metric:
    text = "Errors of requests by the exception's type, or by kind where there is none: response, timeout, queue, refused, cut, stuck."
    metric = CounterMetricFamily("isowsgi_errors_total", text, labels=("mount", "type"))
    for key, count in reading.errors.items():
        metric.add_metric(key, count)
    return metric


def _mounts(reading: Reading) -> Iterator[Metric]:
    said = [(region, mount) for region in reading.regions for mount in mounts_of(region)]
    served = patterns(reading)

    info = GaugeMetricFamily(
        "isowsgi_mount_info", "One mount with its app and isolation; always 1.", labels=("mount", "app", "isolation", "reason")
    )
    for key in dict.fromkeys((mount["pattern"], mount["app"], mount["isolation"], mount["reason"]) for _, mount in said):
        info.add_metric(key, 1)
    yield info

    ready = GaugeMetricFamily("isowsgi_mount_ready", "1 if every worker that accepts requests can serve the mount.", labels=_MOUNT)
    missing = unready(reading)
    for pattern in served:
        ready.add_metric((pattern,), int(missing is not None and pattern not in missing))
    yield ready

    instances = GaugeMetricFamily(
        "isowsgi_instances", "Instances that have not ended, by generation and state.", labels=("mount", "isolation", "generation", "state")
    )
    tally = Tally(
        (mount["pattern"], instance["isolation"], str(instance["generation"]), instance["state"])
        for _, mount in said
        for instance in mount["instances"]
    )
    for labels, count in tally.items():
        instances.add_metric(labels, count)
    yield instances

    yield from _loads(reading, [mount for _, mount in said], served)
    yield _memory(mount for _, mount in said)
    yield from _groups([mount for _, mount in said])


def _memory(said: Iterable[dict[str, Any]]) -> Metric:
    text = "Memory of a mount's instances; mounts of one group share theirs, and each has all of it here."
    gauge = GaugeMetricFamily("isowsgi_memory_bytes", text, labels=("mount", "isolation", "group"))
    sizes: Tally[tuple[str, str, str]] = Tally()
    for mount in said:
        if mount.get("memory_bytes") is not None:
            sizes[mount["pattern"], mount["isolation"], mount.get("group") or ""] += mount["memory_bytes"]
    for labels, size in sizes.items():
        gauge.add_metric(labels, size)
    return gauge


def _groups(said: list[dict[str, Any]]) -> Iterator[Metric]:
    """Yield what the control groups of processes with limits use."""
    texts = {
        "memory_bytes": ("isowsgi_group_memory_bytes", "Memory of the control groups of a mount's processes, as limits.memory counts it."),
        "processes": ("isowsgi_group_processes", "Processes and threads in them, as limits.processes counts them."),
        "throttled_s": ("isowsgi_group_throttled_seconds", "How long processes that live have stood still for limits.cpu."),
    }
    for field, (name, text) in texts.items():
        gauge = GaugeMetricFamily(name, text, labels=_MOUNT)
        sums: Tally[tuple[str]] = Tally()
        for mount in said:
            for group in [each.get("control_group") for each in mount["instances"]]:
                if isinstance(group, dict) and isinstance(group.get(field), (int, float)):
                    sums[mount["pattern"],] += group[field]
        for labels, value in sums.items():
            gauge.add_metric(labels, value)
        yield gauge


def _loads(reading: Reading, said: list[dict[str, Any]], served: list[str]) -> Iterator[Metric]:
    """Yield how much each mount has to do just now.

    Args:
        said: what each worker says of each mount.
        served: patterns of all mounts.
    """
    busy = Tally(request.pattern for region in reading.regions for request in region.busy)
    queued: Tally[str] = Tally()
    tenants: Tally[str] = Tally()
    threads: Tally[str] = Tally()
    objects: Tally[str] = Tally()
    for region in reading.regions:
        queued.update(region.queued)
        busy.update(region.sends)
    for mount in said:
        queued[mount["pattern"]] += mount["parked"]
        if isinstance(said_of := mount.get("tenants"), dict) and isinstance(live := said_of.get("live"), int):
            tenants[mount["pattern"]] += live
        for instance in mount["instances"]:
            threads[mount["pattern"]] += mount["threads"] * (instance["state"] == "serving")
            objects[mount["pattern"]] += instance["objects"]
    gauges = (
        ("isowsgi_requests_in_flight", "Requests that are being served now.", busy),
        ("isowsgi_requests_queued", "Requests that wait for a thread, or for their app to be loaded.", queued),
        ("isowsgi_tenants", "Tenants of a template that have an instance now, in all workers; 0 for other mounts.", tenants),
        ("isowsgi_threads", "Threads that can serve the mount.", threads),
        ("isowsgi_objects", "Objects that the garbage collector knew of when last asked, mostly at boot.", objects),
    )
    for name, text, values in gauges:
        gauge = GaugeMetricFamily(name, text, labels=_MOUNT)
        for pattern in served:
            gauge.add_metric((pattern,), values[pattern])
        yield gauge


def _workers(reading: Reading) -> Iterator[Metric]:
    acceptor = reading.totals.get(("", ""), ZERO)
    text = "Connections that were accepted."
    yield CounterMetricFamily("isowsgi_connections_accepted_total", text, value=acceptor.get(rows.ACCEPTED))
    text = "TLS handshakes that succeeded."
    yield CounterMetricFamily("isowsgi_tls_handshakes_total", text, value=acceptor.get(rows.HANDSHAKES))
    text = "TLS handshakes that failed, including plain HTTP requests on a TLS port."
    yield CounterMetricFamily("isowsgi_tls_handshake_failures_total", text, value=acceptor.get(rows.HANDSHAKE_FAILURES))
    text = "Until when a certificate is valid, since the epoch; of workers that serve with different ones the earliest."
    expires = GaugeMetricFamily("isowsgi_certificate_expiry_timestamp_seconds", text, labels=("certificate",))
    for path, at in certificates_expire(reading).items():
        expires.add_metric((path,), at)
    yield expires
    text = "Internal errors of isowsgi that were contained; each is in the log with its traceback."
    mistakes = sum(counters.get(rows.INTERNAL_ERRORS) for counters in reading.totals.values())
    yield CounterMetricFamily("isowsgi_internal_errors_total", text, value=mistakes)
    refused = CounterMetricFamily(
        "isowsgi_refusals_total", "Requests that were answered before their mount was known: no such mount, or a bad or slow head.",
        labels=("code",),
    )  # fmt: skip
    for code, count in responses(acceptor).items():
        refused.add_metric((code,), count)
    yield refused
    yield CounterMetricFamily("isowsgi_worker_crashes_total", "Workers that died unexpectedly.", value=acceptor.get(rows.CRASHES))

    reports = [(str(region.number), region.report) for region in reading.regions if region.report]
    yield GaugeMetricFamily("isowsgi_workers", "Workers that are running.", value=len(reading.regions))
    info = GaugeMetricFamily(
        "isowsgi_worker_info", "A worker and what it runs on; always 1.", labels=("worker", "pid", "version", "python")
    )
    accepts = GaugeMetricFamily("isowsgi_worker_accepting", "1 if the worker accepts connections.", labels=("worker",))
    started = GaugeMetricFamily("isowsgi_worker_start_time_seconds", "When the worker began, since the epoch.", labels=("worker",))
    updated = GaugeMetricFamily("isowsgi_worker_report_time_seconds", "When it last reported, since the epoch.", labels=("worker",))
    rss = GaugeMetricFamily("isowsgi_worker_resident_memory_bytes", "Resident memory of the worker.", labels=("worker",))
    cpu = CounterMetricFamily("isowsgi_worker_cpu_seconds_total", "CPU time of the worker.", labels=("worker",))
    open_ = GaugeMetricFamily("isowsgi_worker_connections", "Open connections of the worker.", labels=("worker",))
    for worker, report in reports:
        info.add_metric((worker, str(report["pid"]), report["isowsgi"], report["python"]), 1)
        accepts.add_metric((worker,), int(report["is_accepting"] and not report["is_stopping"]))
        started.add_metric((worker,), report["started"])
        updated.add_metric((worker,), report["updated"])
        rss.add_metric((worker,), report["rss_bytes"])
        cpu.add_metric((worker,), report["cpu_s"])
        open_.add_metric((worker,), report["connections"]["open"])
    yield from (info, accepts, started, updated, rss, cpu, open_)
