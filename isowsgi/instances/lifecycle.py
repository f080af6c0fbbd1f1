"""Life of an instance: its states, and the one table along which they change. Values only, no I/O.

A replaced instance drains while the next generation serves. STUCK is a thread that does not end: it cannot be killed, so the
interpreter is left behind (an orphan), counted and shown.
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    BOOTING = "booting"
    SERVING = "serving"
    DRAINING = "draining"
    CLOSED = "closed"
    FAILED = "failed"
    STUCK = "stuck"


class Event(Enum):
    READY = "the app was loaded"
    BOOT_FAILED = "the app could not be loaded"
    BOOT_TIMEOUT = "the app was not loaded in time"
    DRAIN = "no further connections are handed over"
    ENDED = "every serving thread has ended"
    DRAIN_TIMEOUT = "a thread did not end in time"
    THREAD_STUCK = "a thread is stuck in its request"
    BROKEN = "it sent an invalid report, or one of isowsgi's own threads in it died"


class LifecycleError(Exception):
    """An event came in a state that knows no such event: a mistake in isowsgi."""


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.BOOTING, Event.READY): State.SERVING,
    (State.BOOTING, Event.BOOT_FAILED): State.FAILED,
    (State.BOOTING, Event.BOOT_TIMEOUT): State.STUCK,
    (State.BOOTING, Event.DRAIN): State.DRAINING,  # stopped before it was up
    (State.DRAINING, Event.READY): State.DRAINING,  # ... and its boot ended only then
    (State.DRAINING, Event.DRAIN): State.DRAINING,  # it was replaced, and now the worker stops too
    (State.DRAINING, Event.BOOT_FAILED): State.FAILED,
    (State.SERVING, Event.DRAIN): State.DRAINING,
    (State.SERVING, Event.THREAD_STUCK): State.STUCK,  # its other threads keep serving until it is replaced
    (State.SERVING, Event.ENDED): State.CLOSED,  # its threads ended unexpectedly; what was in flight is lost
    (State.DRAINING, Event.ENDED): State.CLOSED,
    (State.DRAINING, Event.DRAIN_TIMEOUT): State.STUCK,
    (State.DRAINING, Event.THREAD_STUCK): State.STUCK,
    (State.STUCK, Event.THREAD_STUCK): State.STUCK,  # another one
    # What is broken is replaced, and told to end; until it does it counts as stuck.
    (State.BOOTING, Event.BROKEN): State.STUCK,
    (State.SERVING, Event.BROKEN): State.STUCK,
    (State.DRAINING, Event.BROKEN): State.STUCK,
    (State.STUCK, Event.BROKEN): State.STUCK,
    (State.STUCK, Event.DRAIN): State.STUCK,
    (State.STUCK, Event.ENDED): State.CLOSED,
    (State.STUCK, Event.READY): State.STUCK,  # a boot that outlived its deadline or its stop
    (State.STUCK, Event.BOOT_FAILED): State.FAILED,
    (State.FAILED, Event.ENDED): State.FAILED,  # the interpreter is gone; the traceback is kept
    (State.FAILED, Event.DRAIN): State.FAILED,
}

# Not before every one of a mount's instances is in one of these is there anything to say about the mount's boot.
SETTLED = frozenset({State.SERVING, State.FAILED, State.CLOSED, State.STUCK})

# Nothing more happens to an instance in one of these.
ENDS = frozenset({State.CLOSED, State.FAILED})


def step(state: State, event: Event) -> State:
    """Return the state after an event.

    Raises:
        LifecycleError: the table has no such transition.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise LifecycleError(f"{state.value}: unexpected: {event.value}") from None
