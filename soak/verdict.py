"""Which failures a kill explains, and whether what a server uses stays the same. Pure.

What a kill may cost, and nothing else:

- a worker's: every connection that it had, with the request on it;
- a child's: the requests that its threads were serving. They are answered 502, or cut off where the answer had begun. Connections that
  were idle, or that waited, go on in the next child.

A connection that was closed while idle is no failure if it had been idle for so long that the server may have given it up (keep-alive
time, or the end of its worker), or if its worker was killed.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from isowsgi.shared import loadfailures
from soak.samples import Figures, Sample
from soak.site import PROCESSES, THREADS
from soak.trouble import Journal, Kill

UNEXPLAINED = "unexplained"

# Of failed requests.
KILLED_WORKER = "in flight in a killed worker"
KILLED_CHILD = "in flight in a killed child: 502"
CUT_CHILD = "in flight in a killed child: answer cut off"

# Of connections that had answers, and were closed before a byte of the next; the request, if there was one, was sent again.
IDLE_KILLED = "of a killed worker"
IDLE_CUT = "of a killed child, which had sent an answer and not come round to say so"
IDLE_LONG = "idle for so long that its time was over, or its worker's"

IDLE_SCARCE = "idle while a hostile app had all descriptors of its worker, which closes idle ones for new ones then"

# For how long that lasts after the app's answer, or after nobody waits for it any more: the app may have to be loaded first, for its
# `boot_timeout` of 5 s at most, it gives them back after a moment, and the worker looks again once a second.
_SCARCE_S = 8.0

# How long that answer counts as waited for: the longest for which an app that is loaded has not taken its first descriptor, `boot_timeout`.
_PLAY_S = 5.0

# How long an idle connection stays open at least: a worker that ends waits 2 s for one to say something (acceptor.STOP_IDLE_S).
_IDLE_LEAST_S = 1.5

# How long after a kill its effects may still reach a client: it may be sending, or reading what the server's kernel had taken.
_EFFECT_S = 30.0


def explain(event: Mapping[str, Any], kills: Sequence[Kill], scarce: Sequence[Sequence[float]] = ()) -> str:
    """Return why a request failed, or a connection was closed while idle: one of the texts above.

    Args:
        event: "failed", "retried" or "closed-idle", as `clients` tell it.
        scarce: when a hostile app was asked to take all descriptors, until when its answer was waited for, and the process that answered;
            0 if that is not known.
    """
    by = that_hit(event, kills)
    workers = [kill for kill in by if kill.what == "worker"]
    children = [kill for kill in by if kill.what == "child" and event["mount"] in PROCESSES[kill.name]]
    is_broken = event["how"] in ("reset", "closed")
    if event["event"] == "failed":
        if workers and is_broken:
            return KILLED_WORKER
        if children and event["how"] == "status" and event["status"] == 502:
            return KILLED_CHILD
        # Nothing came: it was killed between noting that the answer begins and sending it; or the 502 was lost as the client still sent.
        if children and is_broken:
            return CUT_CHILD
        return UNEXPLAINED
    if workers:
        return IDLE_KILLED
    if event["idle_s"] >= _IDLE_LEAST_S:
        return IDLE_LONG
    # The mount is that of the next request; the one before may have been the child's.
    if any(kill.what == "child" for kill in by):
        return IDLE_CUT
    if any(_is_scarce(event, *play) for play in scarce):
        return IDLE_SCARCE
    return UNEXPLAINED


def _is_scarce(event: Mapping[str, Any], since: float, until: float, worker: float) -> bool:
    is_there = not worker or event.get("worker", 0) in (0, worker)
    return is_there and since <= event["at"] <= min(until, since + _PLAY_S) + _SCARCE_S


def that_hit(event: Mapping[str, Any], kills: Sequence[Kill]) -> list[Kill]:
    """Return the kills of processes that had the connection."""
    if not event["port"]:
        return []
    return [kill for kill in kills if event["port"] in kill.ports and event["opened_at"] <= kill.at <= event["at"] <= kill.at + _EFFECT_S]


def explain_reload(reload: Mapping[str, Any], answer: Mapping[str, Any], journal: Journal) -> str:
    """Return why a worker did not carry out a reload, or UNEXPLAINED."""
    began, ended = reload["at"], reload["at"] + reload["took_s"]
    if answer["outcome"] in ("gone", "stopping"):
        if any(kill.pid == answer["worker"] for kill in journal.kills if began - _EFFECT_S <= kill.at <= ended + 1):
            return "its worker was killed"
        if any(began - 5 <= at <= ended for at in (*journal.hups, *journal.main_reloads)):
            return "its worker was being replaced"
    if answer["outcome"] == "failed" and any(
        kill.worker == answer["worker"] and reload["mount"] in PROCESSES.get(kill.name, ()) and began <= kill.at <= ended
        for kill in journal.kills
    ):
        return "its child was killed"
    if answer["outcome"] == "failed" and loadfailures.is_lack(answer.get("text", "")):
        return "a hostile app had all descriptors of the worker"
    return UNEXPLAINED


def cost_of_kills(failures: Sequence[Mapping[str, Any]], kills: Sequence[Kill]) -> list[dict[str, Any]]:
    """Return how many requests each kill cost, with `is_too_many` for a child that had fewer threads than that."""
    lost = Counter(
        next(kill.pid for kill in that_hit(failure, kills) if (kill.what == "worker") == (failure["why"] == KILLED_WORKER))
        for failure in failures
        if failure["why"] != UNEXPLAINED
    )
    return [
        {
            "what": kill.what,
            "tag": kill.tag,
            "at": kill.at,
            "connections": len(kill.ports),
            "lost": lost[kill.pid],
            "is_too_many": kill.what == "child" and lost[kill.pid] > THREADS,
        }
        for kill in kills
    ]


# What the server uses.

# A worker is as large as it will be a while after its start: its mounts are loaded and warm, and reloaded once.
_GROWN_S = 20.0

# Most that may be added over a whole run to what a worker of the same age has, and to the master.
MOST_GROWTH_MIB = {"workers": 15.0, "master": 5.0, "life": 40.0}

# Shorter runs have too few workers that live long enough to compare.
LEAST_MINUTES = 5.0


def growth(samples: Sequence[Sample], loaded_threads: int = 0) -> dict[str, float]:
    """Return by how many MiB resident memory grew.

    Args:
        loaded_threads: of a worker whose mounts are all loaded. On a busy machine that takes most of a worker's life, and its memory grows
            by that.

    Returns:
        workers: what a worker of the same age has in the last third of the run, against the first third.
        master: the same of gunicorn's master.
        life: what a worker has in the last quarter of its life, against its first minutes; the median of those that lived for long.
    """
    samples = [sample for sample in samples if sample.workers]
    third = len(samples) // 3
    found = {"master": _median(s.master.rss_mib for s in samples[-third:]) - _median(s.master.rss_mib for s in samples[:third])}
    grown = [[w.rss_mib for s in part for w in s.workers if w.age_s >= _GROWN_S] for part in (samples[:third], samples[-third:])]
    if all(grown):
        found["workers"] = _median(grown[1]) - _median(grown[0])
    lives: dict[tuple[int, int], list[Figures]] = defaultdict(list)
    for sample in samples:
        for worker in sample.workers:
            is_loaded = worker.threads >= loaded_threads or (worker.pid, worker.started) in lives
            if worker.age_s >= _GROWN_S and is_loaded:
                lives[worker.pid, worker.started].append(worker)
    long = [life for life in lives.values() if life[-1].age_s - life[0].age_s >= _GROWN_S]
    if long:
        found["life"] = _median(
            _median(w.rss_mib for w in life[-len(life) // 4 :]) - _median(w.rss_mib for w in life[: len(life) // 4 or 1]) for life in long
        )
    return {name: round(value, 1) for name, value in found.items()}


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def at_rest(before: Sample, after: Sample) -> dict[str, list[int]]:
    """Return what the fullest worker, and the master, had at rest before the load and after it."""
    return {
        "worker's descriptors": [max(worker.descriptors for worker in sample.workers) for sample in (before, after)],
        "worker's threads": [max(worker.threads for worker in sample.workers) for sample in (before, after)],
        "child's descriptors": [max((child.descriptors for child in sample.children), default=0) for sample in (before, after)],
        "child's threads": [max((child.threads for child in sample.children), default=0) for sample in (before, after)],
        "master's descriptors": [sample.master.descriptors for sample in (before, after)],
        "processes": [1 + len(sample.workers) + len(sample.children) + sample.orphans for sample in (before, after)],
    }
