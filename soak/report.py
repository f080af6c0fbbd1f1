"""What is said of a run: the facts for machines, and a page for people. Pure."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from soak import verdict
from soak.logwatch import LogWatch
from soak.samples import Sample
from soak.site import WORKERS
from soak.trouble import Journal, Plan
from soak.verdict import UNEXPLAINED

# Failures and lines that are shown on the page; all are in the JSON file.
_MOST_SHOWN = 10

# Of the threads that a worker has at rest, whose mounts are all loaded: one of them is lazy, and may sleep under load.
_LOADED_PERCENT = 80

# Of descriptors and threads at rest: a worker inherits the heartbeat files of those that live when it is forked, old and new ones.
_REST_SLACK = 2 * WORKERS


def facts(
    *,
    machine: Mapping[str, Any],
    run: Mapping[str, Any],
    plan: Plan,
    journal: Journal,
    counts: Sequence[tuple[float, Mapping[str, int]]],
    end: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
    samples: Sequence[Sample],
    rest: tuple[Sample, Sample],
    log: LogWatch,
    mistakes: Sequence[str],
    hostile: Mapping[str, Any],
    keeps_memory: bool,
) -> dict[str, Any]:
    """Return all that is known of a run.

    The key `faults` has a line for each thing that must not be; a run without any was good.
    """
    start = run["start"]
    explained = [{**event, "why": verdict.explain(event, journal.kills, journal.scarce)} for event in events]
    failures = [event for event in explained if event["event"] == "failed"]
    reloads = _reloads(journal)
    costs = verdict.cost_of_kills(failures, journal.kills)
    lines = log.unexpected(journal.kills, keeps_memory)
    sums = _sums(end["counts"])
    is_judged = run["minutes"] >= verdict.LEAST_MINUTES and not keeps_memory

    def whys(kind: str) -> dict[str, int]:
        return dict(Counter(event["why"] for event in explained if event["event"] == kind))

    found = {
        "machine": dict(machine),
        "run": dict(run),
        "plan": asdict(plan),
        "requests": {**sums, "by_kind": _by_kind(end["counts"]), "small": end["small"]},
        "longest stall, s": end["stall_s"],
        "failures": whys("failed"),
        "sent again": whys("retried"),
        "closed while idle": whys("closed-idle"),
        "reloads": reloads,
        "hups": len(journal.hups),
        "reloads of the main interpreter": len(journal.main_reloads),
        "kills": costs,
        "growth": verdict.growth(samples, min(worker.threads for worker in rest[0].workers) * _LOADED_PERCENT // 100),
        "is growth judged": is_judged,
        "rest": verdict.at_rest(*rest),
        "orphans": max((sample.orphans for sample in samples), default=0),
        "instances left behind": log.left_behind,
        "hostile": dict(hostile),
        "workers replaced for hostile apps": log.replaced,
        "log": {"levels": dict(log.levels), "unexpected": lines},
        "mistakes": list(mistakes),
        "unexplained": [event for event in explained if event["why"] == UNEXPLAINED],
        "explained": [event for event in explained if event["why"] != UNEXPLAINED],
        "minutes": _minutes(start, plan.run_s, counts, explained, samples),
        "events": {
            "hups": [round(at - start, 2) for at in journal.hups],
            "main": [round(at - start, 2) for at in journal.main_reloads],
            "kills": [{"at": round(kill.at - start, 2), "what": kill.what} for kill in journal.kills],
        },
        "samples": [_brief(sample, start) for sample in samples],
    }
    found["faults"] = _faults(found)
    return found


def _sums(counts: Mapping[str, int]) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for name, count in counts.items():
        sums[name.rpartition(": ")[2]] += count
    return dict(sums)


def _by_kind(counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    kinds: dict[str, dict[str, int]] = {}
    for name, count in sorted(counts.items()):
        kind, colon, what = name.partition(": ")
        if colon:
            kinds.setdefault(kind, {})[what] = count
    return kinds


def _reloads(journal: Journal) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    unexplained = []
    for reload in journal.reloads:
        for answer in reload["answers"]:
            outcome = answer["outcome"]
            if outcome not in ("serving", "asleep"):
                why = verdict.explain_reload(reload, answer, journal)
                outcome = f"{outcome}: {why}"
                if why == UNEXPLAINED:
                    unexplained.append({**reload, "answers": [answer]})
            outcomes[outcome] += 1
    by_time = sorted(journal.reloads, key=lambda reload: reload["took_s"])
    return {
        "commands": len(journal.reloads),
        "late": journal.late_reloads,
        "answers of workers": dict(outcomes),
        "median_s": by_time[len(by_time) // 2]["took_s"] if by_time else 0.0,
        "longest": by_time[:-4:-1],
        "unexplained": unexplained,
    }


def _minutes(
    start: float,
    run_s: float,
    counts: Sequence[tuple[float, Mapping[str, int]]],
    events: Sequence[Mapping[str, Any]],
    samples: Sequence[Sample],
) -> list[dict[str, Any]]:
    """Return a row for each minute: requests, failures, and what the server had at most; the last has what comes to its end later too."""
    rows = []
    times = [at for at, _ in counts]
    before: dict[str, int] = {}
    minutes = math.ceil(run_s / 60)
    for minute in range(minutes):
        since, until = start + 60 * minute, start + 60 * (minute + 1) if minute + 1 < minutes else math.inf
        index = bisect.bisect_right(times, until) - 1
        if index < 0:
            continue
        now = _sums(counts[index][1])
        mine = [sample for sample in samples if since <= sample.at < until and sample.workers]
        came = [event for event in events if since <= event["at"] < until]
        rows.append(
            {
                "minute": minute + 1,
                **{what: now.get(what, 0) - before.get(what, 0) for what in ("sent", "answered", "failed", "retried", "vanished")},
                "unexplained": sum(event["why"] == UNEXPLAINED for event in came),
                "workers": max((len(sample.workers) for sample in mine), default=0),
                "worker_mib": max((worker.rss_mib for sample in mine for worker in sample.workers), default=0),
                "all_mib": max((_all_mib(sample) for sample in mine), default=0),
                "worker_fds": max((worker.descriptors for sample in mine for worker in sample.workers), default=0),
                "worker_threads": max((worker.threads for sample in mine for worker in sample.workers), default=0),
                "orphans": max((sample.orphans for sample in mine), default=0),
            }
        )
        before = now
    return rows


def _all_mib(sample: Sample) -> float:
    return round(sum(figures.rss_mib for figures in (sample.master, *sample.workers, *sample.children)), 1)


def _brief(sample: Sample, start: float) -> dict[str, Any]:
    def lists(name: str) -> dict[str, list[Any]]:
        return {kind: [getattr(figures, name) for figures in getattr(sample, kind)] for kind in ("workers", "children")}

    return {
        "at": round(sample.at - start, 1),
        "names": [f"{worker.pid}-{worker.started}" for worker in sample.workers],
        "age_s": [worker.age_s for worker in sample.workers],
        "rss_mib": lists("rss_mib") | {"master": sample.master.rss_mib},
        "descriptors": lists("descriptors") | {"master": sample.master.descriptors},
        "threads": lists("threads"),
        "orphans": sample.orphans,
    }


def _faults(found: Mapping[str, Any]) -> list[str]:
    faults = list(found["mistakes"])
    requests = found["requests"]
    settled = sum(requests.get(what, 0) for what in ("answered", "failed", "retried", "behind a close"))
    if requests.get("sent", 0) != settled:
        faults.append(f"of {requests.get('sent', 0)} requests {settled} have an outcome")
    if found["unexplained"]:
        faults.append(f"{len(found['unexplained'])} requests failed, or connections were closed, for no known reason")
    faults += [
        f"a kill of {cost['tag']} cost {cost['lost']} requests, more than it has threads" for cost in found["kills"] if cost["is_too_many"]
    ]
    if found["reloads"]["unexplained"]:
        faults.append(f"{len(found['reloads']['unexplained'])} reloads failed for no known reason")
    if found["log"]["unexpected"]:
        faults.append(f"{len(found['log']['unexpected'])} warnings or errors in the log that nothing explains")
    if found["orphans"]:
        faults.append(f"{found['orphans']} processes outlived the one that they belong to")
    if found["instances left behind"]:
        faults.append(f"{found['instances left behind']} instances were left behind")
    for what, (before, after) in found["rest"].items():
        if after > before + _REST_SLACK:
            faults.append(f"{what} at rest: {before} before the load, {after} after it")
    if found["is growth judged"]:
        for what, most in verdict.MOST_GROWTH_MIB.items():
            grown = found["growth"].get(what)
            if grown is None:
                faults.append(f"resident memory ({what}) cannot be judged: no worker had all its mounts and threads for long enough")
            elif grown > most:
                faults.append(f"resident memory ({what}) grew by {grown} MiB, more than {most:g}")
    return faults


# The page.


def page(found: Mapping[str, Any], plot: str) -> str:
    """Return the report as Markdown.

    Args:
        plot: its file; "" if there is none.
    """
    run, machine, requests, growth = found["run"], found["machine"], found["requests"], found["growth"]
    lines = [
        f"# Soak: {run['minutes']:g} minutes on CPython {machine['python']}, {machine['cores']} cores",
        "",
        "**Good.**" if not found["faults"] else "**Not good:**",
        *[f"- {_first_lines(fault)}" for fault in found["faults"]],
        "",
        "| | |",
        "|---|---|",
        f"| requests sent | {requests.get('sent', 0)} |",
        f"| answered, each answer checked | {requests.get('answered', 0)} |",
        f"| failed | {requests.get('failed', 0)} |",
        *[f"| - {why} | {count} |" for why, count in sorted(found["failures"].items())],
        f"| sent again: their connection, which had had answers, was closed before a byte of theirs | {requests.get('retried', 0)} |",
        *[f"| - {why} | {count} |" for why, count in sorted(found["sent again"].items())],
        f"| pipelined behind a request whose answer said `Connection: close` | {requests.get('behind a close', 0)} |",
        f"| connections found closed, with nothing asked on them | {sum(found['closed while idle'].values())} |",
        *[f"| - {why} | {count} |" for why, count in sorted(found["closed while idle"].items())],
        f"| clients that left without waiting for an answer | {requests.get('vanished', 0)} |",
        f"| connections | {requests.get('connections', 0)} |",
        f"| a small request on an open connection | {_latencies(requests['small'])} |",
        f"| longest time that the clients themselves were kept from running | {found['longest stall, s']:g} s |",
        f"| reload commands | {found['reloads']['commands']}, {found['reloads']['late']} late |",
        *[f"| - answered by workers: {what} | {count} |" for what, count in sorted(found["reloads"]["answers of workers"].items())],
        *[
            f"| a reload, until it serves in all workers | median {found['reloads']['median_s']} s, longest {longest[0]['took_s']} s |"
            for longest in [found["reloads"]["longest"]]
            if longest
        ],
        f"| HUPs | {found['hups']} |",
        f"| replacements of all workers by a reload of `main` | {found['reloads of the main interpreter']} |",
        f"| processes of apps killed | {_cost(found['kills'], 'child')} |",
        f"| workers killed | {_cost(found['kills'], 'worker')} |",
        f"| tricks of hostile apps, and what came of them | {_tricks(found['hostile'])} |",
        f"| workers replaced for what these left behind | {found['workers replaced for hostile apps']} |",
        f"| orphaned processes | {found['orphans']} |",
        f"| instances left behind | {found['instances left behind']} |",
        *[f"| {what} at rest, before and after | {before}, {after} |" for what, (before, after) in found["rest"].items()],
        f"| growth of workers' memory over the run | {_mib(growth, 'workers')} |",
        f"| growth of a worker within its life | {_mib(growth, 'life')} |",
        f"| growth of the master | {_mib(growth, 'master')} |",
        f"| whether growth is judged | {'yes' if found['is growth judged'] else 'no'} |",
        "",
        *_table(found["minutes"]),
        "",
        *([f"![descriptors, threads, memory, requests and failures over the run]({plot})", ""] if plot else []),
        *_details(found),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _latencies(small: Mapping[str, float]) -> str:
    return f"p50 {small['p50_ms']} ms, p99 {small['p99_ms']} ms, longest {small['max_ms']} ms" if small else "none"


def _cost(kills: Sequence[Mapping[str, Any]], what: str) -> str:
    costs = [kill["lost"] for kill in kills if kill["what"] == what]
    return f"{len(costs)}, with {sum(costs)} requests, {max(costs)} at most" if costs else "0"


def _tricks(hostile: Mapping[str, Any]) -> str:
    outcomes = ", ".join(f"{what} {count}" for what, count in sorted(hostile["outcomes"].items()))
    return f"{sum(hostile['plays'].values())} of {len(hostile['mounts'])} sorts: {outcomes}" if hostile["plays"] else "none"


def _mib(growth: Mapping[str, float], what: str) -> str:
    return f"{growth[what]:+.1f} MiB" if what in growth else "no worker lived for long enough"


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = {
        "minute": "minute",
        "sent": "sent",
        "answered": "answered",
        "failed": "failed",
        "unexplained": "unexplained",
        "retried": "sent again",
        "vanished": "left",
        "workers": "workers",
        "worker_mib": "largest worker, MiB",
        "all_mib": "all processes, MiB",
        "worker_fds": "descriptors of a worker",
        "worker_threads": "threads of a worker",
        "orphans": "orphans",
    }
    return [
        f"| {' | '.join(names.values())} |",
        f"|{' ---: |' * len(names)}",
        *[f"| {' | '.join(f'{row[name]:g}' for name in names)} |" for row in rows],
    ]


def _details(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for event in found["unexplained"][:_MOST_SHOWN]:
        lines.append(f"- {event['event']}: {event['kind']} {event['mount']}, {event['how']}: {event.get('detail', '')}; {event}")
    for reload in found["reloads"]["unexplained"][:_MOST_SHOWN]:
        lines.append(f"- reload of {reload['mount']}: {reload['answers'][0]}")
    for line in found["log"]["unexpected"][:_MOST_SHOWN]:
        lines.append(f"- log: {_first_lines(line)}")
    return ["What nothing explains:", "", *lines] if lines else []


def _first_lines(text: str) -> str:
    return " / ".join(text.strip().splitlines()[-3:])[:1000]
