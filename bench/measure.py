"""Load on a running server for some seconds, and the figures: wrk's, and the CPU time of the server, of wrk and of everybody else."""

from __future__ import annotations

import http.client
import json
import os
import resource
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.peers import Mount
from bench.scenarios import Load
from bench.server import Failed, Server, interrupts_put_off, machine_cpu_s

_SCRIPT = Path(__file__).parent / "wrk.lua"

# Requests before the first figure is taken: CPython specialises code after some dozen turns.
_WARM_UP = 200

# How long the neighbour's load runs before it is measured what it does, and how long it outlasts that.
_AHEAD_S = 0.5


def warm_up(server: Server, mounts: Iterable[Mount]) -> None:
    """Ask these apps some times, one after another on one connection."""
    connection = http.client.HTTPConnection(server.url("").removeprefix("http://"), timeout=10)
    try:
        for mount in mounts:
            for _ in range(3 if mount.module == "sleeper" else _WARM_UP):
                connection.request("GET", f"{mount.prefix}/")
                connection.getresponse().read()
    except (OSError, http.client.HTTPException) as exc:
        raise Failed(f"{server.peer.name}: it ceased to answer at warm-up: {exc!r}") from exc
    finally:
        connection.close()


def measure(server: Server, load: Load, seconds: int) -> dict[str, Any]:
    """Run a load and return its figures.

    Returns:
        rps: good answers a second; over several paths, their sum.
        p50_ms, p99_ms: latency by wrk's account, which adds what a stalled connection would have asked meanwhile; the worst of the paths.
        server_cores, others_cores: cores in use by the server, and by all but it, wrk and this process, on average.
        cpu_us: the server's CPU time for one request.
        beside_rps: good answers a second to the neighbour's load, if there is one.
        errors: by kind, without those that did not occur.
    """
    for path in (*load.paths, *([load.beside.path] if load.beside else [])):
        server.check(path, closes=load.closes)
    cores = sorted(os.sched_getaffinity(0))
    if not load.is_on_one_core:
        return _measure(server, load, seconds, None)
    with server.on_one_core(cores[0]):
        return _measure(server, load, seconds, cores[-1])


def _measure(server: Server, load: Load, seconds: int, wrk_core: int | None) -> dict[str, Any]:
    meter = Meter(server)
    running: list[Wrk] = []
    beside = None
    try:
        if load.beside:
            beside = Wrk(server.url(load.beside.path), load.beside.connections, seconds + 1, core=None)
            running.append(beside)
            time.sleep(_AHEAD_S)
        for path in load.paths:
            url = server.url(path, closes=load.closes)
            running.append(Wrk(url, load.connections, seconds, core=wrk_core, closes=load.closes))
        answers = [wrk.result() for wrk in running if wrk is not beside]
        beside_answer = beside.result() if beside else None
        meter.stop()
    finally:
        for wrk in running:
            wrk.stop()
    every = answers + ([beside_answer] if beside_answer else [])
    errors = {kind: count for kind in every[0]["errors"] if (count := sum(answer["errors"][kind] for answer in every))}
    count = sum(answer["good"] for answer in every)
    figures = {
        "rps": sum(answer["rps"] for answer in answers),
        "p50_ms": max(answer["p50_ms"] for answer in answers),
        "p99_ms": max(answer["p99_ms"] for answer in answers),
        "server_cores": meter.server_s / meter.wall_s,
        "others_cores": meter.others_cores,
        "cpu_us": meter.server_s / count * 1e6 if count else None,
        "errors": errors,
    }
    if not sum(answer["good"] for answer in answers):
        figures |= {"p50_ms": None, "p99_ms": None}  # nobody answered, which takes no time at all
    if beside_answer:
        figures["beside_rps"] = beside_answer["rps"]
    return figures


class Meter:
    """Counts CPU time from its making until `stop`.

    Attributes:
        wall_s: how long that was.
        server_s: the server's CPU time.
        others_cores: cores that processes used which are neither the server's nor ours.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._began = self._now()

    def stop(self) -> None:
        self.wall_s, machine_s, self.server_s, our_s = (now - then for now, then in zip(self._now(), self._began, strict=True))
        self.others_cores = max(0.0, (machine_s - self.server_s - our_s) / self.wall_s)  # ticks are counted at different moments

    def _now(self) -> tuple[float, float, float, float]:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]  # wrk is a child of ours
        return time.monotonic(), machine_cpu_s(), self._server.cpu_s(), sum(usage.ru_utime + usage.ru_stime for usage in used)


class Wrk:
    """One wrk with one thread."""

    def __init__(self, url: str, connections: int, seconds: int, *, core: int | None, closes: bool = False) -> None:
        pinned = [] if core is None else ["taskset", "--cpu-list", str(core)]
        header = ["--header", "Connection: close"] if closes else []
        command = [*pinned, "wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"]
        with interrupts_put_off():
            self._process = subprocess.Popen(
                [*command, "--timeout", "5s", "--script", str(_SCRIPT), *header, url],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                process_group=0,
            )
        self._time_limit_s = seconds + 30  # it waits for no answer when its time is over, but it may not get the CPU

    def result(self) -> dict[str, Any]:
        """Wait for its end and return what it counted; raises Failed."""
        try:
            output, _ = self._process.communicate(timeout=self._time_limit_s)
            (line,) = (line for line in output.splitlines() if line.startswith("{"))
        except (subprocess.TimeoutExpired, ValueError) as exc:
            raise Failed(f"wrk gave no figures: {exc}") from exc
        said = json.loads(line)
        good = said["requests"] - said["statuses"]
        return {
            "good": good,
            "rps": good / said["duration_us"] * 1e6,
            "p50_ms": said["p50_us"] / 1e3,
            "p99_ms": said["p99_us"] / 1e3,
            "errors": {kind: said[kind] for kind in ("statuses", "connects", "reads", "writes", "timeouts")},
        }

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
