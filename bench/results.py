"""What the measurements say: medians over rounds, ratios, and whether the targets are met. Pure: from a result file's content to values.

A result is {"settings", "machine", "peers", "skipped", "notes", "measurements"}; rounds.py says what a measurement is.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]

# Cores that others may use during a calm measurement. Idle servers and kernel threads stay under a tenth of that on a quiet machine;
# 0.2 of 2 cores can cost a measurement a tenth.
CALM_CORES = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A median over the calm rounds or, if there is none, over all; the span is over all."""

    value: float
    low: float
    high: float
    rounds: int
    calm_rounds: int

    @property
    def is_calm(self) -> bool:
        return self.calm_rounds > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a figure is about: a metric of a peer in a scenario."""

    peer: str
    scenario: str
    metric: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A bound on the ratio of two figures of one run."""

    what: str
    to: str  # what it is compared with, for people
    ours: Reading
    theirs: Reading
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bound(self) -> str:
        return f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a target; without a ratio one of the two was not measured."""

    target: Target
    ours: Figure | None
    theirs: Figure | None

    @property
    def ratio(self) -> float | None:
        return self.ours.value / self.theirs.value if self.ours and self.theirs and self.theirs.value else None

    @property
    def is_met(self) -> bool | None:
        if self.ratio is None:
            return None
        if self.target.at_least is not None:
            return self.ratio >= self.target.at_least
        assert self.target.at_most is not None, "a target has a bound"
        return self.ratio <= self.target.at_most

    @property
    def is_calm(self) -> bool:
        return bool(self.ours and self.ours.is_calm and self.theirs and self.theirs.is_calm)


def _targets() -> Sequence[Target]:
    def ours(scenario: str, metric: str) -> Reading:
        return Reading(peer="isowsgi", scenario=scenario, metric=metric)

    def beside(
        what: str, scenario: str, peer: str, *, at_least: float | None = None, at_most: float | None = None, metric: str = "rps"
    ) -> Target:
        theirs = Reading(peer=peer, scenario=scenario, metric=metric)
        return Target(what=what, to=peer, ours=ours(scenario, metric), theirs=theirs, at_least=at_least, at_most=at_most)

    return (
        beside("hello, server pinned to one core", "hello-1cpu", "uwsgi", at_least=1.0),
        beside("hello, server pinned to one core", "hello-1cpu", "granian", at_least=1.5),
        beside("hello, server pinned to one core", "hello-1cpu", "gunicorn", at_least=5.0),
        beside("Flask", "flask", "uwsgi", at_least=1.3),
        beside("Flask", "flask", "gunicorn", at_least=3.0),
        beside("Django", "django", "uwsgi", at_least=1.3),
        beside("Django", "django", "gunicorn", at_least=3.0),
        beside("hello, a new connection for each request", "close", "uwsgi", at_least=1.0),
        Target(what="two CPU-bound mounts", to="one alone", ours=ours("cpu-two", "rps"), theirs=ours("cpu-one", "rps"), at_least=1.9),
        beside("two CPU-bound mounts", "cpu-two", "gunicorn-per-app", at_least=0.97),
        Target(what="p99 of hello beside a CPU hog", to="quiet", ours=ours("hog", "p99_ms"), theirs=ours("quiet", "p99_ms"), at_most=1.5),
        beside("p99 of hello beside a CPU hog", "hog", "gunicorn-per-app", at_most=1.0, metric="p99_ms"),
        Target(
            what="hello beside 32 sleeping requests", to="quiet", ours=ours("sleepers", "rps"), theirs=ours("quiet", "rps"), at_least=0.9
        ),
        beside("memory for each added Flask app", "apps", "gunicorn-per-app", at_most=0.6, metric="mib_per_app"),
        beside("start of many Flask apps until all answer", "apps", "gunicorn-per-app", at_most=0.6, metric="start_s"),
        Target(
            what="hello with many mounts", to="few mounts", ours=ours("mounts-many", "rps"), theirs=ours("mounts-few", "rps"), at_least=0.95
        ),
    )


TARGETS = _targets()


def figure(result: Result, reading: Reading) -> Figure | None:
    """Return the median of what was measured, or None if nothing was."""
    rounds = [
        (value, measurement["others_cores"] < CALM_CORES)
        for measurement in _measurements(result, reading.peer, reading.scenario)
        if (value := measurement.get(reading.metric)) is not None
    ]
    if not rounds:
        return None
    every = [value for value, _ in rounds]
    calm = [value for value, is_calm in rounds if is_calm]
    return Figure(value=statistics.median(calm or every), low=min(every), high=max(every), rounds=len(every), calm_rounds=len(calm))


def verdicts(result: Result) -> list[Verdict]:
    """Return every target in its order, measured or not."""
    return [Verdict(target=target, ours=figure(result, target.ours), theirs=figure(result, target.theirs)) for target in TARGETS]


def errors(result: Result, peer: str, scenario: str) -> dict[str, int]:
    """Return what wrk counted as errors over all rounds, by kind."""
    total: dict[str, int] = {}
    for measurement in _measurements(result, peer, scenario):
        for kind, count in measurement.get("errors", {}).items():
            total[kind] = total.get(kind, 0) + count
    return total


def _measurements(result: Result, peer: str, scenario: str) -> list[dict[str, Any]]:
    return [found for found in result["measurements"] if found["peer"] == peer and found["scenario"] == scenario]
