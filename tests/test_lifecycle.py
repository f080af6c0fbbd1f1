"""An instance's states: every one can be reached, every life has an end, and nothing comes back from the dead."""

import itertools

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from isowsgi.instances.lifecycle import SETTLED, TRANSITIONS, Event, LifecycleError, State, step
from tests.conftest import examples


def reachable(start: State) -> set[State]:
    """Return the states that may follow, at once or later."""
    found: set[State] = set()
    left = [start]
    while left:
        state = left.pop()
        for (before, _), after in TRANSITIONS.items():
            if before is state and after not in found:
                found.add(after)
                left.append(after)
    return found


def test_every_state_but_the_first_is_reached() -> None:
    assert reachable(State.BOOTING) == set(State) - {State.BOOTING}


def test_every_event_has_a_place_in_the_table() -> None:
    assert {event for _, event in TRANSITIONS} == set(Event)


@pytest.mark.parametrize("state", [state for state in State if state not in (State.CLOSED, State.FAILED)])
def test_no_instance_is_lost_between_its_beginning_and_an_end(state: State) -> None:
    """STUCK too may still end: a thread that could not be waited for may return hours later."""
    assert State.CLOSED in reachable(state)
    assert {after for (before, _), after in TRANSITIONS.items() if before is state} != {state}


def test_nothing_happens_to_an_instance_that_has_closed() -> None:
    assert reachable(State.CLOSED) == set()


def test_an_instance_that_failed_stays_so_and_keeps_its_traceback() -> None:
    assert reachable(State.FAILED) == {State.FAILED}


@pytest.mark.parametrize("state", [State.DRAINING, State.STUCK, State.CLOSED, State.FAILED])
def test_an_instance_that_was_told_to_drain_never_serves_again(state: State) -> None:
    """Its connections went back; what is given to it from then on could be lost."""
    assert not reachable(state) & {State.BOOTING, State.SERVING}


@pytest.mark.parametrize("state", State)
def test_a_thread_may_only_be_given_up_while_the_instance_drains(state: State) -> None:
    assert ((state, Event.DRAIN_TIMEOUT) in TRANSITIONS) == (state is State.DRAINING)


def test_only_booting_and_draining_instances_are_still_on_their_way() -> None:
    assert frozenset(State) - {State.BOOTING, State.DRAINING} == SETTLED


@pytest.mark.parametrize(("state", "event"), [pair for pair in itertools.product(State, Event) if pair not in TRANSITIONS])
def test_an_event_that_cannot_be_is_an_error_that_names_both(state: State, event: Event) -> None:
    with pytest.raises(LifecycleError) as caught:
        step(state, event)

    assert str(caught.value) == f"{state.value}: unexpected: {event.value}"


class Life(RuleBasedStateMachine):  # type: ignore[misc,unused-ignore] # hypothesis may be absent where types are checked
    """Any events in any order: what the state says is what happened."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State.BOOTING
        self.happened: list[Event] = []

    @rule(event=st.sampled_from(Event))
    def happens(self, event: Event) -> None:
        try:
            self.state = step(self.state, event)
        except LifecycleError:
            assert (self.state, event) not in TRANSITIONS
            return
        self.happened.append(event)

    @invariant()
    def serving_means_that_the_app_was_imported_and_nobody_asked_for_an_end(self) -> None:
        assert (self.state is State.SERVING) == (self.happened == [Event.READY])

    @invariant()
    def failed_means_that_the_app_could_not_be_imported(self) -> None:
        assert (self.state is State.FAILED) == (Event.BOOT_FAILED in self.happened)

    @invariant()
    def closed_means_that_all_threads_ended_and_that_was_the_last_event(self) -> None:
        if self.state is not State.FAILED:
            assert (self.state is State.CLOSED) == (Event.ENDED in self.happened)
            assert Event.ENDED not in self.happened[:-1]

    @invariant()
    def stuck_means_that_something_took_too_long_and_has_not_ended_since(self) -> None:
        has_ended = {Event.ENDED, Event.BOOT_FAILED} & set(self.happened)
        took_too_long = {Event.DRAIN_TIMEOUT, Event.BOOT_TIMEOUT, Event.THREAD_STUCK, Event.BROKEN} & set(self.happened)
        assert (self.state is State.STUCK) == bool(took_too_long and not has_ended)


TestLife = Life.TestCase
TestLife.settings = examples(100)
