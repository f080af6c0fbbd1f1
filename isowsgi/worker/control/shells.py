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

# An answer is 512 K characters at most, in parts of 32 K.
_MOST_PARTS = 20


class _Session:
    def __init__(self, instance: Instance, ask: int) -> None:
        self.instance = instance
        self.ask = ask
        self.parts: dict[int, list[str]] = {}  # of the answers, by the input's number
        self.answers: dict[int, ShellAnswer] = {}


class Shells:
    """One worker's sessions; one of a deployment at a time.

    Args:
        say: writes a warning to the log.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._sessions: dict[str, _Session] = {}  # by the name that the command gave it
        self._numbers = itertools.count(1)

    def open(self, request: Shell, deployment: Deployment, mount: int, is_allowed: bool) -> Errand:
        """Return the errand that is the session."""
        instance = self._check(request, deployment, is_allowed)
        ask = next(self._numbers)
        self._sessions[request.serial] = _Session(instance, ask)
        now = time.monotonic()
        end = now + MOST_S
        try:
            instance.tell(messages.OpenShell(ask=ask, mount=mount))
            while now < end and instance.state not in ENDS:
                now = yield None
            why = "the instance has ended" if instance.state in ENDS else f"a session lasts {MOST_S / 60:g} minutes at most"
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
        number = next(self._numbers)
        session.parts[number] = []
        try:
            if not session.instance.tell(messages.ShellInput(ask=session.ask, number=number, source=request.source)):
                raise Refusal("no-session", "the session has ended with its instance")
            while number not in session.answers:
                if self._sessions.get(request.serial) is not session:
                    raise Refusal("no-session", "the session has ended")
                yield None
            return session.answers.pop(number)
        finally:
            del session.parts[number]

    def hear(self, instance: Instance, report: ShellOutput) -> None:
        """Take in a part of what an input printed."""
        for session in self._sessions.values():
            parts = session.parts.get(report.number) if session.instance is instance and session.ask == report.ask else None
            if parts is not None and report.number not in session.answers:
                parts.append(report.text)
                if report.is_last or len(parts) > _MOST_PARTS:
                    session.answers[report.number] = ShellAnswer(text="".join(parts), is_more=report.is_more)

    def _check(self, request: Shell, deployment: Deployment, is_allowed: bool) -> Instance:
        """Return the instance for a session.

        Raises:
            Refusal: there is none.
        """
        if not is_allowed:
            raise Refusal("forbidden", "shells are off: whoever may write to the config file can set [control] shell = true")
        if any(session.instance in deployment.slots.all() for session in self._sessions.values()) or request.serial in self._sessions:
            raise Refusal("busy", f"{deployment.name} has a shell already; one at a time")
        serving = deployment.slots.serving()
        if not serving:
            raise Refusal("not-serving", f"{deployment.name} is {deployment.state()}: there is no interpreter to open a shell in")
        self._say(f"{serving[0].tag}: a shell is opened by the operator")
        return serving[0]
