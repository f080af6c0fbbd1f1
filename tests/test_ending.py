"""How a request ends is one decision, whatever its thread, the watcher and the supervisor do at the same time.

The real code runs here, in every order: each access to what the parties share is a step, and before each one another party may go first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from isowsgi.inside import ending
from isowsgi.inside.ending import Ending
from isowsgi.shared import judgement
from isowsgi.shared.judgement import Question
from isowsgi.shared.rows import ANSWERED, BUSY, BY_APP, BY_WATCHER, JUDGED, REQUESTS
from tests.conftest import DEADLINE_S, WHOLE

# How often at most one party gets in before another that could go on, besides where one waits or ends. Three showed mistakes that two did
# not, and take half a minute; four take minutes.
MOST_SWITCHES = 3 if WHOLE else 2

SHARED = {"_app", "_is_raised", "_is_watcher_busy", "_open", "_status", "is_timed_out", "number"}


class Schedule:
    """Lets one of several threads go at a time, and decides before each step which one.

    Args:
        choices: at which step who goes on; where it says nothing, whoever is at it.
    """

    def __init__(self, choices: dict[int, str]) -> None:
        self._choices = choices
        self._turns = {}  # type: dict[str, threading.Lock]
        self._waiting: list[str] = []  # longest first
        self._ended = threading.Lock()
        self.steps: list[tuple[str, list[str]]] = []  # who was at it, and who else could have been
        self._at_it = ""
        self.errors: list[BaseException] = []

    def run(self, parties: dict[str, Callable[[], None]]) -> None:
        threads = []
        for name, party in parties.items():
            self._turns[name] = threading.Lock()
            self._turns[name].acquire()
            threads.append(threading.Thread(target=self._be, args=(name, party), daemon=True))
        self._ended.acquire()
        for thread in threads:
            thread.start()
        self._pass_to(next(iter(parties)))
        assert self._ended.acquire(timeout=DEADLINE_S), f"they wait for each other, with {self._choices}"
        for thread in threads:
            thread.join(DEADLINE_S)
        if self.errors:
            raise self.errors[0]

    def step(self) -> None:
        """Let whoever is to go next go; to be called before each access to what is shared."""
        me = self._at_it
        if me in self._waiting:
            self._waiting.remove(me)
        others = [name for name in self._turns if name != me]
        chosen = self._choices.get(len(self.steps), me)
        self.steps.append((me, others))
        if chosen in self._turns and chosen != me:
            self._pass_to(chosen)
            self._turns[me].acquire()

    def pause(self, seconds: float) -> None:
        """Stand in for `time.sleep`: the others go first."""
        me = self._at_it
        self._waiting = [name for name in self._waiting if name != me] + [me]
        chosen = self._next()
        if chosen != me:
            self._pass_to(chosen)
            self._turns[me].acquire()

    def _next(self) -> str:
        return [*(name for name in self._turns if name not in self._waiting), *self._waiting][0]

    def _be(self, name: str, party: Callable[[], None]) -> None:
        self._turns[name].acquire()
        try:
            party()
        except BaseException as exc:
            self.errors.append(exc)
        del self._turns[name]
        self._waiting = [other for other in self._waiting if other != name]
        if self._turns:
            self._pass_to(self._next())
        else:
            self._ended.release()

    def _pass_to(self, name: str) -> None:
        self._at_it = name
        self._turns[name].release()


class World:
    """One connection, its thread, and what becomes of it."""

    def __init__(self, schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
        self.schedule = schedule
        self.words = Words(schedule)
        self.wire: list[tuple[int, str]] = []  # what was written to which request's client
        self.is_shut = False
        self.owner = 0  # the request whose connection it is
        self.pending: int | None = None  # for which request an exception is on its way to the thread
        self.ending = _stepping(schedule)
        monkeypatch.setattr(ending, "set_async_exception", self._set_exception)
        for module in (ending, judgement):
            monkeypatch.setattr(module.time, "sleep", schedule.pause)

    def _set_exception(self, ident: int, exception: Any) -> None:
        self.schedule.step()
        self.pending = None if exception is None else self.owner

    # The thread.

    def serve(self) -> None:
        for number in (1, 2):
            self.words[REQUESTS] += 1
            self.words[ANSWERED] = 0
            self.words[BUSY] = 6
            self.owner, self.is_shut = number, False
            self.ending.begin(self.words)  # type: ignore[arg-type]
            if self.ending.enter_app():
                self.schedule.step()  # the app is at work
                if self.ending.claim():
                    self._write(number, "200")
            self.ending.leave_app()
            assert self.pending is None, "an exception may come outside of the app"
            self.words[BUSY] = 0
            is_timed_out = self.ending.end()
            assert is_timed_out == self.is_shut
            self.owner = 0

    def _write(self, number: int, what: str) -> None:
        self.schedule.step()
        assert self.owner == number, f"{what} for request {number} is written into the connection of request {self.owner}"
        if not self.is_shut:
            self.wire.append((number, what))

    # The watcher, who has looked at request 1.

    def watch(self) -> None:
        def act(is_answered: bool) -> None:
            if is_answered:
                self._write(1, "504")
            self._shut(1)

        if self.ending.time_out(1, lambda: True, act, KeyboardInterrupt):
            assert self.is_shut

    # The supervisor, who has looked at it too.

    def judge(self) -> None:
        if self.words[REQUESTS] != 1 or not self.words[BUSY]:
            return
        question = Question(self.words, 1)  # type: ignore[arg-type]
        question.settle()
        is_cut = False
        if question.is_in_flight() and self.words[ANSWERED] != BY_WATCHER:
            is_cut = True
            if self.words[ANSWERED] != BY_APP:
                self._write(1, "504")
            self._shut(1)
        question.decide(is_cut)

    def _shut(self, number: int) -> None:
        self.schedule.step()
        assert self.owner == number
        self.is_shut = True


class Words(dict[int, int]):
    """A row's words."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__({REQUESTS: 0, ANSWERED: 0, BUSY: 0, JUDGED: 0})
        self._schedule = schedule

    def __getitem__(self, word: int) -> int:
        self._schedule.step()
        return super().__getitem__(word)

    def __setitem__(self, word: int, value: int) -> None:
        self._schedule.step()
        super().__setitem__(word, value)


def _stepping(schedule: Schedule) -> Ending:
    """Return an ending that takes each access to what is shared as a step."""

    class Token(list[None]):
        def pop(self, *args: Any) -> None:
            schedule.step()
            super().pop()

        def append(self, item: None) -> None:
            schedule.step()
            super().append(item)

    class Stepping(Ending):
        __slots__ = ()

        def __getattribute__(self, name: str) -> Any:
            if name in SHARED:
                schedule.step()
            return super().__getattribute__(name)

        def __setattr__(self, name: str, value: Any) -> None:
            if name in SHARED:
                schedule.step()
            super().__setattr__(name, Token(value) if isinstance(value, list) else value)

    return Stepping()


def _orders(run: Callable[[dict[int, str]], Schedule], most_switches: int) -> Iterator[dict[int, str]]:
    """Yield every order with few switches, as choices: each is run, and what could have been otherwise in it follows."""
    waiting: list[dict[int, str]] = [{}]
    while waiting:
        choices = waiting.pop()
        schedule = run(choices)
        yield choices
        if len(choices) < most_switches:
            first = max(choices, default=-1) + 1
            waiting += [{**choices, place: other} for place, (_, others) in enumerate(schedule.steps) if place >= first for other in others]


@pytest.mark.parametrize(
    ("others", "most_switches"), [(["watch"], MOST_SWITCHES), (["judge"], MOST_SWITCHES), (["watch", "judge"], MOST_SWITCHES - 1)]
)
def test_in_every_order_a_client_gets_one_status_of_its_own_and_no_other_request_is_touched(others: list[str], most_switches: int) -> None:
    results: set[tuple[tuple[int, str], ...]] = set()

    def run(choices: dict[int, str]) -> Schedule:
        with pytest.MonkeyPatch.context() as monkeypatch:
            schedule = Schedule(choices)
            world = World(schedule, monkeypatch)
            try:
                schedule.run({"serve": world.serve, **{other: getattr(world, other) for other in others}})
            except AssertionError as exc:
                raise AssertionError(f"{exc}\nwith {choices}") from exc
        assert (2, "200") in world.wire
        assert world.pending is None
        results.add(tuple(world.wire))
        return schedule

    count = sum(1 for _ in _orders(run, most_switches))

    assert count > (1000 if WHOLE else 100)
    # Both first, or the first is cut off: with nothing where its thread had claimed the status, and not sent it yet.
    assert results == {((1, "200"), (2, "200")), ((1, "504"), (2, "200")), ((2, "200"),)}


def test_a_request_that_was_kept_open_gives_its_token_to_no_other_request() -> None:
    """Its thread waits only so long. The next request then had two tokens, and could time out after it had ended."""
    it = Ending()
    it.begin(Words(Schedule({})))  # type: ignore[arg-type]
    token = it.hold_open()
    assert token is not None
    it.begin(Words(Schedule({})))  # type: ignore[arg-type]
    it.release_open(token)

    assert it.hold_open() is not None
    assert it.hold_open() is None


def test_in_every_order_a_request_that_the_watcher_leaves_alone_can_be_kept_open() -> None:
    """The app's socket said that its request had ended, if it was asked just when the watcher looked."""

    def run(choices: dict[int, str]) -> Schedule:
        with pytest.MonkeyPatch.context() as monkeypatch:
            schedule = Schedule(choices)
            world = World(schedule, monkeypatch)
            world.ending.begin(world.words)  # type: ignore[arg-type]

            def hold() -> None:
                token = world.ending.hold_open()
                assert token is not None
                world.ending.release_open(token)

            def watch() -> None:
                assert not world.ending.time_out(1, lambda: False, lambda is_answered: pytest.fail("acted"), None)

            schedule.run({"watch": watch, "hold": hold})
        return schedule

    assert sum(1 for _ in _orders(run, 3)) > 10
