"""The apps of the guest's service: `hello`, and `hog`, which takes what it can get."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any


def answer(start_response: Any, facts: object) -> list[bytes]:
    body = json.dumps(facts).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    return answer(start_response, "hello")


def hog(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    return answer(start_response, TRICKS[environ["PATH_INFO"]]())


def facts() -> dict[str, object]:
    with open("/proc/self/cgroup") as file:
        return {"pid": os.getpid(), "uid": os.getuid(), "cgroup": file.read().strip().removeprefix("0::")}


def memory() -> None:
    hoard = []
    while True:
        hoard.append(b"1" * 2**20)


def processes() -> dict[str, object]:
    """Start processes until that is refused; say how many there were, and why."""
    sleepers: list[subprocess.Popen[bytes]] = []
    error = ""
    try:
        while len(sleepers) < 200:
            sleepers.append(subprocess.Popen(["sleep", "60"]))
    except OSError as exc:
        error = str(exc.strerror)
    for sleeper in sleepers:
        sleeper.kill()
        sleeper.wait()
    return {"count": len(sleepers), "error": error}


def cpu() -> float:
    """Be busy for a second by the clock; say for how long it was."""
    began, until = time.process_time(), time.monotonic() + 1
    while time.monotonic() < until:
        pass
    return time.process_time() - began


def child() -> int:
    """Leave a process behind."""
    return subprocess.Popen([sys.executable, "-c", "import os, time; os.setsid(); time.sleep(600)"]).pid


TRICKS: dict[str, Callable[[], object]] = {
    "": facts, "/memory": memory, "/processes": processes, "/cpu": cpu, "/child": child,
}  # fmt: skip
