"""What the whole board says, by mount and over all workers, as plain values for JSON: for the status page and other readers.

Pure: made from one reading of the board. Counters are those of all workers that ever lived; what is in flight, queued or stuck is the
living ones'.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from isowsgi.shared import rows
from isowsgi.shared.board import Reading
from isowsgi.shared.rows import BUCKET_LIMITS_S, RESPONSES, WAIT_LIMITS_S
from isowsgi.shared.scoreboard import ZERO, Busy, Counters, RegionReading, wholes

# The worst first: what a mount is, if it is not the same in all workers.
STATES = ("stuck", "quarantined", "failed", "stopped", "booting", "leaving", "reloading", "serving", "asleep")

# States in which a request is served, or starts what serves it. A mount that is "stuck" may be ready: a new instance serves then.
_READY = ("serving", "reloading", "asleep")

# Names of the counters in a snapshot.
_COUNTERS = {
    "bytes_in": rows.BYTES_IN,
    "bytes_out": rows.BYTES_OUT,
    "exceptions": rows.EXCEPTIONS,
    "timeouts": rows.TIMEOUTS,
    "turned_away": rows.TURNED_AWAY,
    "reloads": rows.RELOADS,
    "stuck": rows.STUCK,
    "boots": rows.BOOTS,
    "boot_failures": rows.BOOT_FAILURES,
    "crashes": rows.CRASHES,
}
_SECONDS = {
    "busy_s": (rows.BUSY_NS, rows.SENDING_NS), "cpu_s": (rows.CPU_NS,), "boot_s": (rows.BOOT_NS,), "waiting_s": (rows.WAITING_NS,),
    "sending_s": (rows.SENDING_NS,),
}  # fmt: skip

# From when on a mount is in trouble for what it answers: as many 5xx in the last minute, and such a share of all its responses. The share
# is that of the alert rule IsowsgiMountFailing.
_MANY_FAILED = 5
_FAILING_SHARE = 0.05

# Answers 503 to whoever asks whether all mounts are ready, and one is not.
_OWN_APP = "isowsgi.status:application"

# Groups of errors that are listed for a mount, the most frequent first.
_MOST_GROUPS = 10

_Said = tuple[RegionReading, dict[str, Any]]  # a worker, and what it says of a mount
_Request = tuple[RegionReading, Busy]

# Most requests in flight that are listed for a mount, the longest first.
_MOST_LISTED = 20


def responses(counters: Counters) -> dict[str, int]:
    """Return how many responses there were of each class, from "1xx" to "5xx"."""
    return {f"{place}xx": counters.get(RESPONSES + place) for place in range(1, 6)}


def mounts_of(region: RegionReading) -> list[dict[str, Any]]:
    """Return what a worker reported of each mount; none before it first did."""
    return region.report["mounts"] if region.report else []


def accepting(reading: Reading) -> list[RegionReading]:
    """Return the workers that take requests."""
    return [region for region in reading.regions if region.report and region.report["is_accepting"] and not region.report["is_stopping"]]


def unready(reading: Reading) -> list[str] | None:
    """Return the patterns that some accepting worker cannot serve; None if no worker accepts, or one could not say how its mounts are.

    A worker that is booting beside others does not accept yet, and counts for nothing.
    """
    regions = accepting(reading)
    if not regions or any(region.report and "error" in region.report for region in regions):
        return None
    return sorted({mount["pattern"] for region in regions for mount in mounts_of(region) if mount["state"] not in _READY})


def patterns(reading: Reading) -> list[str]:
    """Return the patterns of all mounts that are served now, in the order of the config file."""
    newest_first = sorted(reading.regions, key=lambda region: -(region.report or {}).get("started", 0))
    return list(dict.fromkeys(mount["pattern"] for region in newest_first for mount in mounts_of(region)))


def certificates_expire(reading: Reading) -> dict[str, float]:
    """Return by its file until when each certificate is valid, of workers that serve with different ones the earliest."""
    found: dict[str, float] = {}
    for region in reading.regions:
        told = (region.report or {}).get("certificates")
        for each in told if isinstance(told, list) else []:
            path, expires = (each.get("path"), each.get("expires")) if isinstance(each, dict) else (None, None)
            if isinstance(path, str) and isinstance(expires, (int, float)):
                found[path] = min(expires, found.get(path, expires))
    return found


def snapshot(reading: Reading, now_ms: int, now: float) -> dict[str, Any]:
    """Return all of it.

    Args:
        now_ms: monotonic milliseconds.
        now: seconds since the epoch.
    """
    acceptor = reading.totals.get(("", ""), ZERO)
    # Each looked through once: with a thousand mounts a search for each would take longer than the page's second.
    counted = wholes(reading.totals)
    said: dict[str, list[_Said]] = defaultdict(list)
    busy: dict[str, list[_Request]] = defaultdict(list)
    errors: dict[str, list[dict[str, Any]]] = defaultdict(list)
    types: dict[str, dict[str, int]] = defaultdict(dict)
    for (pattern, name), count in reading.errors.items():
        types[pattern][name] = count
    for region in reading.regions:
        for mount in mounts_of(region):
            said[mount["pattern"]].append((region, mount))
        for request in region.busy:
            busy[request.pattern].append((region, request))
        for error in region.errors:
            errors[error.pattern].append({"at": error.at, "text": error.text})
    return {
        "now": round(now, 3),
        "bucket_limits_s": BUCKET_LIMITS_S,
        "wait_limits_s": WAIT_LIMITS_S,
        "answered_by": os.getpid(),
        "workers": [_worker(region) for region in reading.regions],
        "acceptor": {
            "accepted": acceptor.get(rows.ACCEPTED),
            "tls_handshakes": acceptor.get(rows.HANDSHAKES),
            "tls_handshake_failures": acceptor.get(rows.HANDSHAKE_FAILURES),
            "responses": responses(acceptor),
            "worker_crashes": acceptor.get(rows.CRASHES),
        },
        "gil_wait_buckets": acceptor.buckets(),
        "mounts": [
            _mount(pattern, said[pattern], busy[pattern], errors[pattern], types[pattern], counted.get(pattern, ZERO), now_ms)
            for pattern in patterns(reading)
        ],
    }


def _worker(region: RegionReading) -> dict[str, Any]:
    report = {name: value for name, value in (region.report or {}).items() if name != "mounts"}
    return {**report, "worker": region.number}


def _mount(
    pattern: str,
    said: list[_Said],
    busy: list[_Request],
    errors: list[dict[str, Any]],
    error_types: dict[str, int],
    counters: Counters,
    now_ms: int,
) -> dict[str, Any]:
    newest = max(said, key=lambda pair: pair[0].report["started"] if pair[0].report else 0)[1]
    instances = [{**instance, "worker": region.number} for region, mount in said for instance in mount["instances"]]
    states = [mount["state"] for _, mount in said]
    stuck = [instance for instance in instances if instance["state"] == "stuck"]
    return {
        "pattern": pattern,
        **{name: newest[name] for name in ("app", "isolation", "reason")},
        "state": min([*states, *(["stuck"] if stuck else [])], key=STATES.index),
        "states": {state: states.count(state) for state in STATES if state in states},
        "is_ready": all(state in _READY for state in states),
        "generation": max(mount["generation"] for _, mount in said),
        "threads": sum(mount["threads"] * _live(mount["instances"]) for _, mount in said),
        "in_flight": len(busy) + sum(region.sends.get(pattern, 0) for region, _ in said),
        "queued": sum(region.queued.get(pattern, 0) for region, _ in said),
        "parked": sum(mount["parked"] for _, mount in said),
        "memory_bytes": _sum_of_known(mount.get("memory_bytes") for _, mount in said),
        # Of the worker that began last: others may have another history.
        "memory_trend": newest.get("memory_trend"),
        "requests": counters.requests,
        "responses": responses(counters),
        **{name: counters.get(word) for name, word in _COUNTERS.items()},
        **{name: round(sum(map(counters.get, words)) / 1e9, 6) for name, words in _SECONDS.items()},
        "buckets": counters.buckets(),
        "waiting_buckets": counters.waiting_buckets(),
        "app_buckets": counters.app_buckets(),
        "sending_buckets": counters.sending_buckets(),
        # What went wrong last, in a request or at a boot.
        "last_error": max([*errors, *(mount["boot_error"] for _, mount in said if mount["boot_error"])], key=_at, default=None),
        "errors": _groups(said),
        "error_types": error_types,
        "recent": (recent := _recent(said)),
        "trouble": _trouble(newest["app"], recent),
        "instances": instances,
        "requests_in_flight": _listed(busy, instances, now_ms),
    }


def _groups(said: list[_Said]) -> list[dict[str, Any]]:
    """Return a mount's errors by type and place, summed over its workers."""
    sums: dict[tuple[str, str, str], dict[str, Any]] = {}
    for _, mount in said:
        for group in mount.get("errors", ()):
            before = sums.setdefault((group["kind"], group["type"], group["place"]), {**group, "count": 0})
            last = group if group["at"] >= before["at"] else before
            before |= {**last, "count": before["count"] + group["count"], "first": min(before["first"], group["first"])}
    return sorted(sums.values(), key=lambda group: -group["count"])[:_MOST_GROUPS]


def _recent(said: list[_Said]) -> dict[str, Any]:
    """Return how many responses of a mount there were in the last minute, and how many 5xx among them."""
    told = [mount["recent"] for _, mount in said if "recent" in mount]
    return {
        "seconds": max((each["seconds"] for each in told), default=0.0),
        "responses": sum(each["responses"] for each in told),
        "failed": sum(each["failed"] for each in told),
    }


def _trouble(app: str, recent: dict[str, Any]) -> dict[str, str] | None:
    """Return what is wrong with a mount although it is ready, for a banner; None: nothing is."""
    failed, responses = recent["failed"], recent["responses"]
    if app == _OWN_APP or failed < _MANY_FAILED or failed < _FAILING_SHARE * responses:
        return None
    return {"level": "bad", "text": f"answered {failed} of {responses} requests of the last minute with 5xx"}


def _sum_of_known(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _live(instances: Iterable[dict[str, Any]]) -> int:
    return sum(instance["state"] == "serving" for instance in instances)


def _at(error: dict[str, Any]) -> float:
    at: float = error["at"]
    return at


def _listed(busy: list[_Request], instances: list[dict[str, Any]], now_ms: int) -> list[dict[str, Any]]:
    listed = []
    for region, request in sorted(busy, key=lambda pair: pair[1].since_ms)[:_MOST_LISTED]:
        owner: dict[str, Any] = next((one for one in instances if one["worker"] == region.number and _owns(one, request)), {})
        listed.append(
            {
                "worker": region.number,
                "instance": owner.get("tag"),
                "is_stuck": owner.get("state") == "stuck",
                "line": request.line,
                "age_s": round(max(now_ms - request.since_ms, 0) / 1000, 3),
                "has_head": request.has_head,
            }
        )
    return listed


def _owns(instance: dict[str, Any], request: Busy) -> bool:
    return request.row in range(instance["first_row"], instance["first_row"] + instance["rows"])
