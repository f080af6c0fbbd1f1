"""`isowsgi shell` in a worker: passes on what an operator types to an instance, and what that prints.

A session is one connection that stays open; its end is the session's end, so that nothing is left when the command goes away. Each input is
a request of its own. On the acceptor's thread; nothing here waits.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from isowsgi.instances.lifecycle import ENDS
from isowsgi.shared import messages
from isowsgi.shared.controlmessages import Outcome, Refusal, Shell, ShellAnswer, ShellLine
from isowsgi.shared.messages import ShellOutput
from isowsgi.worker.control.server import Errand
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.slots import Instance

# How long a session may last, and an input at most be: an order has 64 KiB.
MOST_S = 3600.0
MOST_SOURCE_CHARS = 10_000

# How long a session lasts without an input, and how many there are in a worker: each holds one of the 16 connections of the control socket,
# which the other commands need too.
IDLE_S = 600.0
MOST_SESSIONS = 4

# An answer is 512 K characters at most, in parts of 32 K.
_MOST_PARTS = 20


class _Session:
    def __init__(self, instance: Instance, ask: int) -> None:
        self.instance = instance
        self.ask = ask
        self.heard_at = time.monotonic()  # the last input
        self.parts: dict[int, list[str]] = {}  # of the answers, by the input's number
        self.answers: dict[int, ShellAnswer] = {}


class Shells:
    """One worker's sessions; one of a deployment at a time.

    Args:
        say: writes a warning to the log.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.on_answer: Callable[[], None] = lambda: None  # looks at errands: one has what it waits for
        self._sessions: dict[str, _Session] = {}  # by the name that the command gave it
        self._numbers = itertools.count(1)

    def open(self, request: Shell, deployment: Deployment, mount: int, is_allowed: bool) -> Errand:
        """Return the errand that is the session."""
        instance = self._check(request, deployment, is_allowed)
        ask = next(self._numbers)
        session = self._sessions[request.serial] = _Session(instance, ask)
        now = time.monotonic()
        end = now + MOST_S
        try:
            if not instance.tell(messages.OpenShell(ask=ask, mount=mount)):
                raise Refusal("busy", f"{instance.tag} has many orders to read yet, or has ended; try again")
            while not (why := _why_over(session, now, end)):
                now = yield None
            return Outcome(mount=deployment.mount.pattern, outcome="ended", text=why, generation=instance.generation)
        finally:
            del self._sessions[request.serial]
            if instance.state not in ENDS:
                instance.tell(messages.EndShell(ask=ask))

    def line(self, request: ShellLine) -> Errand:
        """Return the errand of one input: it waits for what that prints."""
        session = self._sessions.get(request.serial)
        if session is None:
            raise Refusal("no-session", "there is no such session, or it has ended")
        if len(request.source) > MOST_SOURCE_CHARS:
            raise Refusal("malformed", f"expected at most {MOST_SOURCE_CHARS} characters, got {len(request.source)}")
        if session.parts:
            raise Refusal("busy", "the input before is still executed")
        number = next(self._numbers)
        session.heard_at = time.monotonic()
        session.parts[number] = []
        try:
            if not session.instance.tell(messages.ShellInput(ask=session.ask, number=number, source=request.source)):
                raise Refusal("no-session", "the session has ended with its instance")
            while number not in session.answers:
                if self._sessions.get(request.serial) is not session:
                    raise Refusal("no-session", "the session has ended")
                yield None
            answer = session.answers.pop(number)
            if answer.outcome == "lost":
                raise Refusal("no-session", answer.text)
            return answer
        finally:
            session.heard_at = time.monotonic()  # an input may take longer than the limit
            del session.parts[number]

    def hear(self, instance: Instance, report: ShellOutput) -> None:
        """Take in a part of what an input printed."""
        for session in self._sessions.values():
            parts = session.parts.get(report.number) if session.instance is instance and session.ask == report.ask else None
            if parts is not None and report.number not in session.answers:
                parts.append(report.text)
                if report.is_last or len(parts) > _MOST_PARTS:
                    session.answers[report.number] = ShellAnswer(text="".join(parts), is_more=report.is_more, outcome=report.outcome)
                    self.on_answer()
                    return

    def _check(self, request: Shell, deployment: Deployment, is_allowed: bool) -> Instance:
        """Return the instance for a session.

        Raises:
            Refusal: there is none.
        """
        if not is_allowed:
            raise Refusal("forbidden", "shells are off: whoever may write to the config file can set [control] shell = true")
        if any(session.instance in deployment.slots.all() for session in self._sessions.values()) or request.serial in self._sessions:
            raise Refusal("busy", f"{deployment.name} has a shell already; one at a time")
        if len(self._sessions) >= MOST_SESSIONS:
            raise Refusal("busy", f"this worker has {MOST_SESSIONS} shells already; end one of them")
        serving = deployment.slots.serving()
        if not serving:
            raise Refusal("not-serving", f"{deployment.name} is {deployment.state()}: there is no interpreter to open a shell in")
        self._say(f"{serving[0].tag}: a shell is opened by the operator")
        return serving[0]


def _why_over(session: _Session, now: float, end: float) -> str:
    """Return why a session is over; empty if it is not.

    Args:
        end: monotonic seconds, at the latest.
    """
    if session.instance.state in ENDS:
        return "the instance has ended"
    if now >= end:
        return f"a session lasts {MOST_S / 60:g} minutes at most"
    if now >= session.heard_at + IDLE_S and not session.parts:
        return f"a session ends after {IDLE_S / 60:g} minutes without an input"
    return ""
