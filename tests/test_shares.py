"""How many connections a mount may have that it does not answer."""

from __future__ import annotations

from isowsgi.worker.shares import STALLED_S, Shares


class Instance:
    def __init__(self, is_busy: bool = True) -> None:
        self.done = 0
        self.is_busy = is_busy
        self.is_over = False

    def progress(self) -> int:
        return self.done

    def is_at_leisure(self) -> bool:
        return not self.is_busy

    def has_ended(self) -> bool:
        return self.is_over


def fill(shares: Shares, instance: Instance) -> int:
    """Return how many connections an instance gets that does nothing."""
    count = 0
    while shares.may_have(instance, 0.0):
        count += 1
    return count


def test_one_that_answers_nobody_gets_half_and_each_of_its_kind_half_of_the_rest() -> None:
    """So there is always room for a neighbour."""
    shares = Shares(100)

    assert [fill(shares, Instance(False)) for _ in range(4)] == [50, 25, 12, 6]


def test_one_that_answers_gets_as_many_as_come() -> None:
    shares, instance = Shares(100), Instance(False)
    for _ in range(1000):
        assert shares.may_have(instance, 0.0)
        instance.done += 1


def test_with_all_threads_busy_only_as_many_more_wait_as_were_begun() -> None:
    shares, instance = Shares(100), Instance()
    fill(shares, instance)
    instance.done += 10

    assert fill(shares, instance) == 10


def test_a_free_thread_means_that_nobody_waits() -> None:
    """Clients that went away without a request would otherwise count for ever."""
    shares, instance = Shares(100), Instance()
    fill(shares, instance)
    instance.is_busy, instance.done = False, 1

    assert fill(shares, instance) == 50


def test_what_has_ended_takes_no_share() -> None:
    shares, dead = Shares(100), Instance()
    fill(shares, dead)
    dead.is_over = True
    shares.tick(0.0)

    assert fill(shares, Instance()) == 50


def test_even_a_limit_of_one_lets_one_in() -> None:
    assert fill(Shares(1), Instance()) == 1


def test_one_that_does_nothing_for_a_while_does_not_answer_and_one_that_is_slow_does() -> None:
    shares, hung, slow = Shares(100), Instance(), Instance()
    fill(shares, hung)
    fill(shares, slow)
    slow.done += 1
    shares.tick(STALLED_S)

    assert shares.is_stalled(hung, STALLED_S)
    assert not shares.is_stalled(slow, STALLED_S)


def test_a_counter_that_goes_back_makes_nobody_wait_more() -> None:
    """Whoever has the scoreboard may write anything into it."""
    shares, instance = Shares(100), Instance()
    for _ in range(20):
        assert shares.may_have(instance, 0.0)
    instance.done = -1_000_000
    shares.tick(0.0)

    assert fill(shares, instance) == 30
