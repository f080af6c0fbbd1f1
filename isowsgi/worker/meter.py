"""How much memory each instance has: measured a little at a time, and only after the worker has grown or shrunk.

Until it has been measured, an instance counts as much as its number of objects suggests.

An interpreter measures itself, see `inside.heap`: it is asked for one look after the other, with pauses between. What it has grown by since
is estimated, see `freshpages`.
A process is what the kernel says of it: its own pages, and its share of those that others have too (PSS). Interpreters that share a GIL
share the allocator of small blocks: what it has grown by since the last time is divided among those whose objects have grown. So they are
measured in rounds, one after the other; who has grown again by the end of a round is for the next one. What the objects of those that were
looked at do not account for waits for the others.

On the acceptor's thread; nothing here waits. Time is monotonic seconds and passed in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from isowsgi.instances.lifecycle import ENDS, State
from isowsgi.shared import messages, pymalloc
from isowsgi.shared.interpreters import OWN_GIL, PROCESS
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.freshpages import FreshPages
from isowsgi.worker.processmemory import NEWS_BYTES, Processes, rss_bytes
from isowsgi.worker.slots import Instance

# By how much the worker's memory must have changed since an interpreter was measured before it is again: NEWS_BYTES, and a part of the
# whole.
_NEWS_SHARE = 64

# How long after an interpreter began to serve it is measured for the first time, if nothing asks for it earlier. One that has had no
# request is not at all, if the guess is good enough: 20 apps that nobody asks for need no second of CPU time after each start.
_FIRST_S = 20.0

# By how much the worker may grow while interpreters are loaded, for the guesses to be good: so many times as much as they say, and some.
# With hello it is 1.3 times as much: free room, stacks. More has an app with a large table that it made when it was imported.
_GUESSES, _BESIDE_GUESSES_BYTES = 2, 32 * 1024 * 1024

# What an object that the garbage collector knows stands for, with all that it refers to: 460 to 540 bytes in interpreters with nothing
# but isowsgi and in those with Flask, Django and Jinja (CPython 3.11.7, 3.14.10, 3.15.2).
_BYTES_AN_OBJECT = 490

# Nobody is measured again within so many times as long as it took: 2 % of an app's time.
_ROUND_PAUSES = 50

# How many are measured at a time. One, where they share a GIL; and of those that have served nothing, of which there may be hundreds: four
# at a time took a fifth of a core.
_AT_A_TIME = 4

# An interpreter that serves requests is asked after so long in any case: one app may have grown by what another has given back.
_OLDEST_S = 600.0

# A pause after each look, as a multiple of how long it took, and at least: so an app loses 6 % of its time while it is measured.
_PAUSES, _LEAST_PAUSE_S, _LONGEST_PAUSE_S = 15, 0.02, 5.0

# How long to wait for one look: C code may hold the GIL.
_ANSWER_S = 5.0

# An instance that did not answer is left alone for so long, and twice as long each time: others wait for it that share its GIL.
_SILENCE_S, _LONGEST_SILENCE_S = 30.0, 1800.0

# Those that share a GIL and are loaded at the same time are measured together, so that what they share is divided among all of them; for
# one whose load takes longer than this the others do not wait. What the worker grows or shrinks by while interpreters are loaded or end
# is no news either, for as long.
_LOADING_S = 30.0

# How many times as much as its weight an interpreter may have grown in small blocks, if not all that share them were looked at: a number in
# a list weighs 8 bytes, and takes 32 more.
_MOST_OF_WEIGHT = 4

Later = Callable[[float, Callable[[], object]], None]  # calls back after so many seconds


class _Last(NamedTuple):
    """When an instance was last measured: when its round began."""

    requests: int  # that it had served
    at: float
    level: int  # of the worker's memory, see `Level`
    not_before: float = 0.0  # the next time
    is_measured: bool = True  # False: it was only seen
    small: int = -1  # bytes of its allocator by the round's first look; -1: not known


class _Silence(NamedTuple):
    """Of an instance that did not answer."""

    until: float
    lasts_s: float


class Level:
    """The worker's memory, less what isowsgi has done to it itself: what is left changes by what apps do.

    Without that, interpreters were measured twice and more after a start: looks at the first ones made the worker grow.
    """

    def __init__(self) -> None:
        self._explained = self._looks = 0
        self._seen: int | None = None  # the worker's memory at the last tick
        self._was_changing = False
        self._known: set[Instance] | None = None  # the interpreters at the last tick
        self._changing: dict[Instance, float] = {}  # since when interpreters are being loaded, or end
        self._loaded = 0  # bytes that came and went with them, since it was last said

    def tick(self, instances: Sequence[Instance], now: float) -> None:
        """Take in whether interpreters are loaded or end, or have been since the last tick.

        Args:
            instances: those that are being freed too.
        """
        present = {each for each in instances if each.isolation != PROCESS and not each.has_gone}
        self._changing = {each: self._changing.get(each, now) for each in present if each.state is not State.SERVING}
        is_changing, rss = any(now - since < _LOADING_S for since in self._changing.values()), rss_bytes()
        has_changed, self._known = self._known is not None and present != self._known, present
        if self._seen is not None and (is_changing or has_changed or self._was_changing):
            self._explained += rss - self._seen
            self._loaded += rss - self._seen
        self._seen, self._was_changing = rss, is_changing

    def take(self, grown: int) -> None:
        """Take in what one look has changed it by."""
        self._explained += grown
        self._looks += grown
        if self._seen is not None:
            self._seen += grown

    def bytes(self) -> int:
        return rss_bytes() - self._explained

    def bytes_with_looks(self) -> int:
        """Return the same, and what looks have changed: on a busy machine one lasts long, and what an app grows by then is among it."""
        return self.bytes() + self._looks

    def take_loaded(self) -> int | None:
        """Return by how much it has changed with interpreters since this was last asked; None: some are still being loaded, or end."""
        if self._was_changing:
            return None
        loaded, self._loaded = self._loaded, 0
        return loaded

    def is_any_sharer_loading(self, now: float) -> bool:
        return any(
            each.state is State.BOOTING and each.isolation != OWN_GIL and now - since < _LOADING_S for each, since in self._changing.items()
        )


class Meter:
    """Measures the instances of one worker.

    Args:
        deployments: returns all that have instances.
        is_limited: whether a deployment's instances have a limit of memory, so that it matters how much they have when they are loaded.

    Attributes:
        departing: returns those that have ended, and are being freed.
    """

    def __init__(
        self, deployments: Callable[[], Sequence[Deployment]], is_limited: Callable[[Deployment], bool] = lambda deployment: False
    ) -> None:
        self._deployments = deployments
        self._is_limited = is_limited
        self.departing: Callable[[], Sequence[Instance]] = list
        self._level = Level()
        self._later: Later = lambda delay_s, callback: None
        self._asked: dict[Instance, float] = {}  # when each that is being measured was asked for its latest look
        self._wanted: set[Instance] = set()  # those that shall be measured whatever they have done
        self._last: dict[Instance, _Last] = {}
        self._began: dict[Instance, _Last] = {}  # of those that are being measured: what comes after that is not in the figure
        self._silent: dict[Instance, _Silence] = {}
        self._costs: dict[Instance, float] = {}  # of the rounds that they are in, and then of the last one: CPU seconds
        self._idle: set[Instance] = set()  # those that have served nothing, and are measured as nobody has
        self._idle_not_before = 0.0  # when the next such are
        self._guessed: dict[Instance, int] = {}  # how much it is of those that the worker has grown by since the guesses were last good
        self._doubted: set[Instance] = set()  # those that have not been measured, and the guesses were not good
        self._queue: list[Instance] = []  # of those with their own GIL, the next one last; made anew each second
        self._round: list[Instance] = []  # the same of those that share one; made anew when it is done
        self._sharers = Sharers()
        self._processes = Processes()
        self._fresh = FreshPages()

    def start(self, later: Later) -> None:
        """Begin; before the first mount is loaded."""
        self._later = later
        self._sharers.note(pymalloc.bytes_in_use())

    @property
    def is_measuring(self) -> bool:
        """Whether any of those is left that `sweep` has asked for."""
        return bool(self._wanted)

    def is_unknown(self, instance: Instance) -> bool:
        """Whether an interpreter may have more than is known: it was never measured, does not answer, or `sweep` still waits for it."""
        is_known = instance.memory >= 0 and instance.memory_at_boot >= 0 and instance not in self._wanted and instance not in self._silent
        return instance.isolation != PROCESS and not is_known

    def sweep(self, now: float) -> None:
        """Measure all interpreters, from now on."""
        self._wanted = set(self._interpreters())
        self._round = [each for each in self._wanted if each.isolation != OWN_GIL and each not in self._asked]
        for _ in self._look_around(now):
            continue

    def look(self, now: float) -> Iterator[None]:
        """Look at some processes, and ask interpreters that may have changed; about once a second, in pieces."""
        yield from self._processes.read(self._instances())
        self._forget()
        self._level.tick([*self._instances(), *self.departing()], now)
        yield
        for deployment in self._deployments():
            if deployment.trend.is_due(now):
                deployment.trend.add(memory_of(deployment) if _is_measured(deployment) else None, now)
                yield
        for instance in [each for each, at in self._asked.items() if now - at > _ANSWER_S or each.state in ENDS]:
            del self._asked[instance]
            self._give_up(instance, now)
        yield from self._look_around(now)

    def _give_up(self, instance: Instance, now: float) -> None:
        self._wanted.discard(instance)
        before = self._silent.get(instance)
        lasts_s = _SILENCE_S if before is None else min(2 * before.lasts_s, _LONGEST_SILENCE_S)
        self._silent[instance] = _Silence(now + lasts_s, lasts_s)

    def on_measured(self, instance: Instance, report: messages.Measured, now: float) -> None:
        """Take in what one look has found. An answer that nobody waits for changes nothing."""
        if instance not in self._asked:
            return
        self._level.take(report.grown)
        self._costs[instance] = self._costs.get(instance, 0.0) + report.took_s
        if report.problem:
            self._leave(instance, report.problem)
            self._ask_some(now)
            return
        if not report.is_whole:
            if instance.isolation == OWN_GIL and instance.memory_at_boot >= 0 and report.small >= 0:
                self._fresh.see(instance, report.small + report.large)  # of the round before
            if (began := self._began[instance]).small < 0:
                self._began[instance] = began._replace(small=report.small)
            pause_s = min(max(_PAUSES * report.took_s, _LEAST_PAUSE_S), _LONGEST_PAUSE_S)
            self._asked[instance] = now + pause_s
            self._later(pause_s, lambda: self._look_again(instance))
            return
        del self._asked[instance]
        self._wanted.discard(instance)
        self._idle.discard(instance)
        self._silent.pop(instance, None)
        began = self._began.pop(instance)
        self._last[instance] = began._replace(not_before=now + _ROUND_PAUSES * self._costs[instance])
        instance.objects = report.objects
        if instance.isolation == OWN_GIL:
            small = report.small if report.small >= 0 else report.weight
            self._settle(instance, small + report.large, now, known=max(small - began.small, 0) if began.small >= 0 else 0)
        else:
            self._sharers.take(instance, report)
        self._ask_some(now)

    def _leave(self, instance: Instance, problem: str) -> None:
        """Measure it no more: what keeps it from being measured would do so again."""
        del self._asked[instance]
        self._wanted.discard(instance)
        self._silent[instance] = _Silence(math.inf, math.inf)
        instance.memory = -1
        log = next((each.log for each in self._deployments() if instance in each.slots.all()), None)
        if log is not None:
            text = "%s: its memory cannot be measured, so no figure is shown for it and max_memory has no effect: %s"
            log.warning(text, instance.tag, problem)

    def _look_around(self, now: float) -> Iterator[None]:
        """See who may have grown, the likeliest first: those that have served most since; and ask them."""
        self._see(now)
        requests = {each: each.requests() for each in self._interpreters()}
        self._fresh.tick(requests, self._level.bytes_with_looks(), now)
        yield
        # One may have been measured since its requests were counted.
        served = {each: max(count - self._last[each].requests, 0) for each, count in requests.items() if each.state is State.SERVING}
        found = sorted(self._candidates(served, now), key=served.__getitem__)
        self._queue = [each for each in found if each.isolation == OWN_GIL]
        if not self._round and not self._is_any_sharer_asked():
            self._divide(now)
            self._round = [each for each in found if each.isolation != OWN_GIL]
        self._ask_some(now)

    def _ask_some(self, now: float) -> None:
        """Ask as many as may be measured at a time."""
        while self._round and len(self._asked) < _AT_A_TIME and not self._is_any_sharer_asked():
            self._ask(self._round.pop(), now)
        while self._queue and len(self._asked) < (1 if self._queue[-1] in self._idle else _AT_A_TIME):
            self._ask(self._queue.pop(), now)
        if not self._round and not self._is_any_sharer_asked():
            self._divide(now)

    def _divide(self, now: float) -> None:
        for instance, size in self._sharers.divide().items():
            self._settle(instance, size, now)

    def _settle(self, instance: Instance, size: int, now: float, known: int = 0) -> None:
        self._fresh.settle(instance, size, known, self._level.bytes_with_looks(), now)
        if instance.memory_at_boot < 0:
            instance.memory_at_boot = self._at_boot(instance, size)

    def _at_boot(self, instance: Instance, size: int) -> int:
        """Return what an instance had when it was loaded, now that it has been measured for the first time.

        What it has kept of requests before that is not of its load: if it has served any, what was guessed then is nearer.
        """
        guess = _guess_of(instance)
        has_served = self._last[instance].requests > 0
        return guess if has_served and 0 < guess < size and instance not in self._doubted else size

    def _is_any_sharer_asked(self) -> bool:
        return any(each.isolation != OWN_GIL for each in self._asked)

    def _candidates(self, served: Mapping[Instance, int], now: float) -> set[Instance]:
        """Return which instances shall be measured.

        Args:
            served: how many requests each has had since it was.
        """
        found = [each for each in served if each not in self._asked and not ((silence := self._silent.get(each)) and now < silence.until)]
        chosen = self._new(found, served, now) | self._stale(found, served, now) | (self._wanted & {*found})
        old = {each for each in found if now - self._last[each].at > _OLDEST_S and served[each]}
        if any(each.isolation != OWN_GIL for each in chosen | old) and not self._level.is_any_sharer_loading(now):
            # What they share is divided among all.
            chosen |= {each for each in found if each.isolation != OWN_GIL and not self._last[each].is_measured}
        return chosen | old

    def _new(self, found: list[Instance], served: Mapping[Instance, int], now: float) -> set[Instance]:
        """Return those that shall be measured for the first time."""
        limited = {each for deployment in self._deployments() if self._is_limited(deployment) for each in deployment.slots.all()}
        is_any_loading = self._level.is_any_sharer_loading(now)
        return {
            each
            for each in found
            if not (last := self._last[each]).is_measured
            and (each in limited or (now - last.at >= _FIRST_S and (served[each] or each in self._doubted)))
            and (each.isolation == OWN_GIL or not is_any_loading)
        }

    def _stale(self, found: list[Instance], served: Mapping[Instance, int], now: float) -> set[Instance]:
        """Return those that may have grown or shrunk since they were measured, as the worker has."""
        level, news = self._level.bytes(), max(NEWS_BYTES, rss_bytes() // _NEWS_SHARE)
        stale = {each for each in found if abs(level - self._last[each].level) > news and now >= self._last[each].not_before}
        if busy := {each for each in stale if served[each]}:
            return busy
        # Who has served nothing has hardly changed; but if nobody has, some thread of an app's has been at work. It is one of many.
        self._idle &= stale
        if stale and not self._idle and now >= self._idle_not_before:
            self._idle_not_before = now + _ROUND_PAUSES * sum(self._costs.get(each, 0.0) for each in stale)
            self._idle = set(stale)
        return set(self._idle)

    def _see(self, now: float) -> None:
        """Note the interpreters that have begun to serve, and how much they may have; and whether that is enough."""
        for instance in self._interpreters():
            if instance not in self._last:
                self._last[instance] = _Last(0, now, self._level.bytes(), is_measured=False)
                self._guessed[instance] = _guess_of(instance)
                if instance.memory < 0 and instance.objects_at_boot > 0:
                    instance.memory = self._guessed[instance]
        if self._guessed and (loaded := self._level.take_loaded()) is not None:
            if loaded > _GUESSES * sum(self._guessed.values()) + _BESIDE_GUESSES_BYTES:
                self._doubted |= self._guessed.keys()
            self._guessed = {}

    def _ask(self, instance: Instance, now: float) -> None:
        if instance.state is State.SERVING and instance.tell(messages.Measure()):
            self._asked[instance] = now
            if instance not in self._began:
                self._began[instance] = _Last(instance.requests(), now, self._level.bytes())
                self._fresh.begin(instance, self._level.bytes_with_looks(), now)
                self._costs[instance] = 0.0

    def _look_again(self, instance: Instance) -> None:
        if self._asked.pop(instance, None) is not None:
            self._ask(instance, time.monotonic())
            if instance not in self._asked:  # it ends, and others wait for their turn
                self._ask_some(time.monotonic())

    def _instances(self) -> list[Instance]:
        return [each for deployment in self._deployments() for each in deployment.slots.all()]

    def _interpreters(self) -> list[Instance]:
        return [each for each in self._instances() if each.state is State.SERVING and each.isolation != PROCESS]

    def _forget(self) -> None:
        alive = set(self._instances())
        tables: tuple[dict[Instance, Any], ...] = (self._last, self._began, self._silent, self._costs)
        for table in tables:
            for gone in table.keys() - alive:
                del table[gone]
        self._wanted = {each for each in self._wanted & alive if each.state is State.SERVING}
        self._doubted &= alive
        self._idle &= alive
        self._sharers.forget(alive)
        self._processes.forget(alive)
        self._fresh.forget(alive)


class Sharers:
    """Divides among interpreters what the allocator that they share has grown by.

    The main interpreter shares it too: what it has before the first mount is loaded is no mount's.
    """

    def __init__(self) -> None:
        self._total: int | None = None  # what the allocator had when it was last divided
        self._weights: dict[Instance, int] = {}  # then
        self._small: dict[Instance, float] = {}
        self._reports: dict[Instance, messages.Measured] = {}  # since

    def note(self, total: int | None) -> None:
        self._total = total

    def take(self, instance: Instance, report: messages.Measured) -> None:
        """Take in what was found of one of them."""
        self._reports[instance] = report

    def forget(self, alive: set[Instance]) -> None:
        """Take what belonged to instances that have ended for given back."""
        for gone in self._weights.keys() - alive:
            del self._weights[gone]
            if self._total is not None:
                self._total -= int(self._small.get(gone, 0.0))
            self._small.pop(gone, None)
            self._reports.pop(gone, None)

    def divide(self) -> dict[Instance, int]:
        """Return the sizes of those of which something was found since the last time."""
        reports, self._reports = self._reports, {}
        if not reports:
            return {}
        # What came after the first of them was looked at is for the next time: else those that were looked at later had it with the others.
        now = min(report.small for report in reports.values())
        changes = {each: report.weight - self._weights.get(each, 0) for each, report in reports.items()}
        if self._total is None or now < 0:  # then the objects' own sizes must do
            self._small |= {each: float(report.weight) for each, report in reports.items()}
        else:
            parts = self._parts(changes, now - self._total, is_of_all=self._weights.keys() <= reports.keys())
            for each, part in parts.items():
                self._small[each] = max(self._small.get(each, 0.0) + part, 0.0)
        self._weights |= {each: report.weight for each, report in reports.items()}
        return {each: int(self._small.get(each, 0.0)) + report.large for each, report in reports.items()}

    def _parts(self, changes: Mapping[Instance, int], grown: int, is_of_all: bool) -> dict[Instance, float]:
        """Return by how much each has grown or shrunk, and have that divided.

        Args:
            changes: of the weights of those that were looked at.
            grown: by the allocator.
            is_of_all: whether all that share it were looked at; else what the objects of these do not account for waits for the others.
        """
        assert self._total is not None, "else nothing is divided"
        takers = {each: change for each, change in changes.items() if change * grown > 0}
        parts = {each: grown * change / sum(takers.values()) for each, change in takers.items()}
        if is_of_all:
            self._total += grown
            return parts
        parts = {each: math.copysign(min(abs(part), _MOST_OF_WEIGHT * abs(takers[each])), part) for each, part in parts.items()}
        self._total += int(sum(parts.values()))
        return parts


def _guess_of(instance: Instance) -> int:
    """Return how many bytes an interpreter had when it was loaded, by its number of objects; 0: that is not known."""
    return instance.objects_at_boot * _BYTES_AN_OBJECT


def _is_measured(deployment: Deployment) -> bool:
    serving = [each for each in deployment.slots.all() if each.state is State.SERVING]
    return bool(serving) and all(each.memory_at_boot >= 0 for each in serving)


def size_of(instance: Instance) -> int | None:
    """Return what an instance has, with what it is estimated to have grown by since it was measured; None: nothing is known.

    A process counts from when its app is loaded: before, it has less with each look than with the next one.
    """
    is_known = instance.memory >= 0 and (instance.isolation != PROCESS or instance.memory_at_boot >= 0)
    return instance.memory + instance.grown if is_known else None


def memory_of(deployment: Deployment) -> int | None:
    """Return what its instances have together; None if nothing is known of those that serve."""
    sizes = [size for each in deployment.slots.all() if (size := size_of(each)) is not None and each.state not in ENDS]
    return sum(sizes) if sizes else None
