"""Long work in pieces: how much is done in a step, and what becomes of the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from isowsgi.worker.pieces import PAUSE_S, STEP_S, Pieces


class Thread:
    """A thread whose CPU time passes only with what is done, and its loop, which is turned by the test."""

    def __init__(self) -> None:
        self.cpu_s = 0.0
        self.planned: list[Callable[[], object]] = []
        self.done: list[str] = []
        self.pieces = Pieces("test", self.later, lambda: self.cpu_s)

    def later(self, delay_s: float, callback: Callable[[], object], what: str = "") -> None:
        assert (delay_s, what) == (PAUSE_S, "test")
        self.planned.append(callback)

    def turn(self) -> list[str]:
        """Call what is planned; return what was done in that step."""
        (callback,) = self.planned
        self.planned.clear()
        before = len(self.done)
        callback()
        return self.done[before:]

    def work(self, *pieces: str, each_s: float = STEP_S / 2) -> Iterator[None]:
        for piece in pieces:
            if piece == "fails":
                raise ZeroDivisionError
            self.cpu_s += each_s
            self.done.append(piece)
            yield


def test_a_step_has_as_many_pieces_as_there_is_time_for_and_the_next_one_comes_after_a_pause() -> None:
    thread = Thread()
    thread.pieces.begin(thread.work(*"abcde"))

    assert thread.done == [], "whoever begins it is not held up"
    assert [thread.turn(), thread.turn(), thread.turn()] == [["a", "b"], ["c", "d"], ["e"]]
    assert (thread.planned, thread.pieces.is_under_way) == ([], False)


def test_a_long_piece_is_a_step_of_its_own() -> None:
    thread = Thread()
    thread.pieces.begin(thread.work(*"abc", each_s=10 * STEP_S))

    assert [thread.turn(), thread.turn(), thread.turn()] == [["a"], ["b"], ["c"]]


def test_what_is_left_is_done_at_once_when_the_next_work_begins() -> None:
    thread = Thread()
    thread.pieces.begin(thread.work(*"abcd"))
    thread.turn()
    thread.pieces.begin(thread.work(*"ABC"))

    assert thread.done == [*"abcd"]
    assert [thread.turn(), thread.turn()] == [["A", "B"], ["C"]], "one step a turn, and not the old one's too"
    assert thread.planned == []


def test_a_short_work_that_begins_at_once_needs_no_other_turn() -> None:
    thread = Thread()
    thread.pieces.begin(thread.work("a"), at_once=True)
    assert (thread.done, thread.planned) == (["a"], [])

    thread.pieces.begin(thread.work(*"bcd"), at_once=True)
    assert thread.done == [*"abc"]
    thread.pieces.begin(thread.work(*"ABC"), at_once=True)
    assert thread.done == [*"abcd"], "that is enough for one turn"
    assert [thread.turn(), thread.turn()] == [["A", "B"], ["C"]]
    assert thread.planned == []


def test_a_piece_that_fails_costs_the_rest_of_its_work_only() -> None:
    thread = Thread()
    thread.pieces.begin(thread.work("a", "fails", "b"))
    with pytest.raises(ZeroDivisionError):
        thread.turn()

    assert (thread.done, thread.planned, thread.pieces.is_under_way) == (["a"], [], False)
    thread.pieces.begin(thread.work("c"))
    assert thread.turn() == ["c"]


def test_what_is_dropped_is_not_done() -> None:
    thread = Thread()
    thread.pieces.begin(thread.work(*"abcd"))
    thread.turn()
    thread.pieces.drop()

    assert thread.turn() == []
    assert thread.planned == []


def test_a_work_may_begin_the_next_one_at_its_end() -> None:
    """So does a text that was outdated before it was whole."""
    thread = Thread()

    def first() -> Iterator[None]:
        yield from thread.work("a")
        thread.pieces.begin(thread.work("b"))

    thread.pieces.begin(first())

    assert [thread.turn(), thread.turn()] == [["a"], ["b"]]


def test_without_a_loop_all_is_done_at_once() -> None:
    thread = Thread()
    Pieces("test").begin(thread.work(*"abcdef"))

    assert thread.done == [*"abcdef"]
