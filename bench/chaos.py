"""Do to one app all that can happen to one, and say what became of it, of its neighbour and of the worker.

    python bench/chaos.py [--only troubles,reload,lazy,crashes,kills] [--reloads 200] [--trials 20] [--json FILE]

Takes about fifteen minutes, on the Python that runs it, over the loopback. Prints Markdown tables. The neighbour is a hello app under load
from two connections; its latency is compared with the same load before the trouble.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from isowsgi.shared import interpreters  # noqa: E402
from isowsgi.worker.backoff import LONG_LIFE_S  # noqa: E402
from tests.conftest import Server, eventually, running_server  # noqa: E402
from tests.load import Load  # noqa: E402
from tests.load_process import LoadProcess, Result, run_load  # noqa: E402

# Seconds of quiet load, and of load with the trouble in the middle.
QUIET_S = 2.0
TROUBLED_S = 6.0

# Of a steady load: some 900 requests/s from ten connections, a third of a core.
_PAUSE_S = 0.01

CONFIG = """
[defaults]
request_timeout = 1
threads = 2
[worker]
crashes = 100
[mounts]
"/t" = "troubles"
"/h" = "hello"
"""

# What the app does, and whether it ends the process: then the neighbour must lose what it had in flight.
REQUESTS = {
    "a Python loop": "loop",
    "a loop that swallows every exception": "swallow",
    "time.sleep": "sleep",
    "a lock never released": "lock",
    "C code without the GIL": "release_the_gil",
    "C code that holds its own GIL": "hold_the_gil",
    "infinite recursion": "recursion",
    "1 GiB allocated": "gigabyte",
    "1,000 threads leaked": "leak_threads",
    "10,000 descriptors leaked": "leak_descriptors",
    "os.chdir": "chdir",
    "os._exit": "exit",
    "SIGSEGV": "crash",
}
FATAL = {"exit", "crash"}


@contextmanager
def server(config: str, mounts: int, **options: Any) -> Iterator[Server]:
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(Path(folder), config, "--graceful-timeout", "5", wait_for=mounts, **options) as found,
    ):
        yield found


def neighbour(found: Server, seconds: float) -> LoadProcess:
    return LoadProcess(f"{found.url}/h/", connections=2, seconds=seconds)


def quiet(found: Server) -> Result:
    return run_load(f"{found.url}/h/", connections=2, seconds=QUIET_S)[0]


def lost(result: Result) -> int:
    return result.errors + sum(count for status, count in result.statuses.items() if status != "200")


def ask(found: Server, path: str, **options: Any) -> str:
    """Return what a client sees."""
    try:
        return str(requests.get(found.url + path, timeout=20, **options).status_code)
    except requests.ConnectionError:
        return "closed"
    except requests.Timeout:
        return "no answer"


def under_trouble(found: Server, trouble: Callable[[], str]) -> dict[str, Any]:
    """Do something to the app while its neighbour is under load, and return a row of the table."""
    (worker,) = found.workers()
    before = quiet(found)
    with neighbour(found, TROUBLED_S) as load:
        load.go()
        client = trouble()
        during = load.result()
    after = eventually(lambda: (answer := ask(found, "/t/")) != "closed" and answer, "an answer of the app")
    return {
        "client": client,
        "app afterwards": after,
        "neighbour lost": lost(during),
        "neighbour p99, ms": during.p99_ms,
        "quiet p99, ms": before.p99_ms,
        "worker": "same" if found.workers() == [worker] else "new",
        "in the log": last_word(found),
    }


def last_word(found: Server) -> str:
    """Return what the log says of it, short."""
    says = {
        "died while serving": "crash attributed",
        "holds the interpreter's GIL": "answered from outside, replaced",
        "is stuck in its request": "stuck, replaced",
        ": generation 1 keeps serving": "the old generation keeps serving",
        "was not loaded within": "left behind",
        "request timed out": "timed out, interrupted",
        "cannot load": "tried again with pauses",
        "Error handling request": "traceback",
    }
    return next((text for sign, text in says.items() if sign in found.log()), "")


def troubles() -> list[dict[str, Any]]:
    rows = []
    for name, path in REQUESTS.items():
        if path == "hold_the_gil" and interpreters.best_isolation() != interpreters.OWN_GIL:
            continue
        with server(CONFIG, 2) as found:
            rows.append({"trouble": name, **under_trouble(found, lambda path=path, found=found: ask(found, f"/t/{path}"))})  # type: ignore[misc]
        progress(rows[-1])
    for name, config, trouble in _other_troubles():
        with server(config, 2, files={"made.py": "from wsgiref.simple_server import demo_app as application\n"}) as found:
            rows.append({"trouble": name, **under_trouble(found, lambda trouble=trouble, found=found: trouble(found))})  # type: ignore[misc]
        progress(rows[-1])
    return rows


def _other_troubles() -> list[tuple[str, str, Callable[[Server], str]]]:
    made = CONFIG.replace('"troubles"', '{ app = "made", pythonpath = ".", touch = "made.py" }').replace(
        "request_timeout", 'pythonpath = "{apps}"\nrequest_timeout'
    )

    def edit(found: Server, text: str, sign: str) -> str:
        (found.folder / "made.py").write_text(text)
        found.wait_for_log(sign)
        return ask(found, "/t/")

    def body(found: Server) -> str:
        return found.exchange(b"POST /t/body HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")[9:12].decode()

    def unread(found: Server) -> str:
        with found.connect() as sock:
            sock.sendall(b"GET /t/ HTTP/1.1\r\nHost: x\r\n\r\n")
            found.wait_for_log("no progress for")
        return "cut"

    return [
        ("a client that stops sending its body", CONFIG, body),
        ("a client that stops reading", CONFIG.replace('"troubles"', '"big"'), unread),
        ("raises at import, after an edit", made, lambda found: edit(found, "1 / 0\n", ": generation 1 keeps serving")),
        ("SyntaxError after an edit", made, lambda found: edit(found, "def (:\n", ": generation 1 keeps serving")),
        (
            "a warm-up that fails",
            made.replace('touch = "made.py"', 'touch = "made.py", warmup = "/health"'),
            lambda found: edit(
                found, "def application(environ, start):\n    start('500 Oh', [])\n    return []\n", ": generation 1 keeps serving"
            ),
        ),
    ]


def reload(count: int) -> list[dict[str, Any]]:
    """Replace a Flask and a Django mount over and over, both under load: as much as two cores bear, then a steady one that leaves room."""
    return [_reload(count, pause_s=0.0), _reload(count, pause_s=_PAUSE_S)]


def _reload(count: int, pause_s: float) -> dict[str, Any]:
    flask = "from flask import Flask\napplication = Flask(__name__)\n@application.get('/')\ndef index():\n    return 'flask'\n"
    config = """
        [mounts]
        "/f" = { app = "flask_site", pythonpath = ".", touch = "touch-f" }
        "/d" = { app = "django_site", pythonpath = ".", touch = "touch-d" }
        "/h" = { app = "hello", pythonpath = "{apps}" }
        """
    with server(config, 3, files={"flask_site.py": flask, "django_site.py": _DJANGO}) as found:
        (worker,) = found.workers()
        seconds = count / 2 * 2.0
        urls = [f"{found.url}/f/", f"{found.url}/d/"]
        # What the reloads do to the neighbour, and not what the load does: so before them too both are under load.
        before = _under_load(urls, found, pause_s)
        # And what any program costs the neighbour that takes as much of a processor as a reload does.
        with _other_program():
            beside = _under_load(urls, found, pause_s)
        loads = [LoadProcess(url, connections=4, seconds=seconds + 600, pause_s=pause_s) for url in urls]
        hello = LoadProcess(f"{found.url}/h/", connections=2, seconds=seconds + 600, pause_s=pause_s)
        sizes: list[float] = []
        for load in (*loads, hello):
            load.go()
        began = time.monotonic()
        for generation in range(2, count // 2 + 2):
            for name in "fd":
                (found.folder / f"touch-{name}").write_text(str(generation))
            found.wait_for_log(rf"/f #{generation}: serving")
            found.wait_for_log(rf"/d #{generation}: serving")
            eventually(lambda generation=generation: found.log().count(": ended") >= 2 * (generation - 2), "the ones before to end")  # type: ignore[misc]
            sizes.append(_rss_mib(worker))
            if generation % 10 == 0:
                print(f"... {2 * (generation - 1)} reloads, {sizes[-1]:.0f} MiB, {time.monotonic() - began:.0f} s", file=sys.stderr)
        results = [_stop(load) for load in (*loads, hello)]
        return {
            "load": "steady" if pause_s else "all that two cores bear",
            "reloads": count,
            "requests": sum(result.requests for result in results[:2]),
            "requests/s": sum(result.per_second for result in results),
            "failed": sum(lost(result) for result in results[:2]),
            "neighbour lost": lost(results[2]),
            "neighbour p99, ms": results[2].p99_ms,
            "p99 without reloads, ms": before.p99_ms,
            "p99 beside another program, ms": beside.p99_ms,
            "MiB after 20": sizes[min(9, len(sizes) - 1)],
            "MiB at the end": sizes[-1],
            "left behind": len(re.findall("left behind", found.log())),
            "worker": "same" if found.workers() == [worker] else "new",
        }


@contextmanager
def _other_program() -> Iterator[None]:
    """Run a program that has nothing to do with the server and takes a fifth of a processor, a few milliseconds at a time."""
    busy = "import time\nwhile True:\n end = time.thread_time() + 0.003\n while time.thread_time() < end: pass\n time.sleep(0.012)"
    program = subprocess.Popen([sys.executable, "-I", "-S", "-c", busy])
    try:
        yield
    finally:
        program.kill()
        program.wait()


def _under_load(urls: list[str], found: Server, pause_s: float) -> Result:
    """Measure the neighbour while others are under load and nothing is replaced."""
    loads = [LoadProcess(url, connections=4, seconds=20, pause_s=pause_s) for url in urls]
    hello = LoadProcess(f"{found.url}/h/", connections=2, seconds=20, pause_s=pause_s)
    for load in (*loads, hello):
        load.go()
    for load in loads:
        load.result()
    return hello.result()


_DJANGO = """
from django.conf import settings
settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="chaos", MIDDLEWARE=[])
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
urlpatterns = [path("", lambda request: HttpResponse("django", headers={"Content-Length": "6"}))]
application = get_wsgi_application()
"""


def _stop(load: LoadProcess) -> Result:
    """End a load early and return what it had so far."""
    load.stop()
    return load.result()


def lazy(count: int = 500) -> list[dict[str, Any]]:
    mounts = "\n".join(f'"/m{number}" = "flask_site"' for number in range(count))
    flask = "from flask import Flask\napplication = Flask(__name__)\n@application.get('/')\ndef index():\n    return 'flask'\n"
    began = time.monotonic()
    with server(f'[defaults]\nlazy = true\npythonpath = "."\n[mounts]\n{mounts}', 0, files={"flask_site.py": flask}) as found:
        found.wait_for_log("Booting worker")
        found.learn_port()
        eventually(lambda: ask(found, "/") == "404")
        started_s = time.monotonic() - began
        (worker,) = found.workers()
        size = _rss_mib(worker)
        began = time.monotonic()
        answer = ask(found, f"/m{count - 1}/")
        return [
            {
                "lazy mounts": count,
                "start, s": started_s,
                "worker, MiB": size,
                "first request, s": time.monotonic() - began,
                "answer": answer,
            }
        ]


def crashes(trials: int) -> list[dict[str, Any]]:
    rows = []
    for path in sorted(FATAL):
        with server(CONFIG, 2) as found:
            for trial in range(trials):
                eventually(lambda: ask(found, "/t/") == "200")
                ask(found, f"/t/{path}")
                found.wait_for_log(r"worker \d+ died", trial + 1)
            # The request before it may still be there: its thread has sent the answer and not come round to say so.
            right = len(re.findall(rf"worker \d+ died while serving (?:/t: [^;\n]+; )*/t: GET /t/{path} HTTP/1.1", found.log()))
            right -= found.log().count("none of them is blamed")
            rows.append({"crash": path, "trials": trials, "attributed": right})
        progress(rows[-1])
    return rows


def kills(trials: int) -> list[dict[str, Any]]:
    """Kill a mount's process under load, over and over; never sooner than its next start would have to wait (see `backoff`)."""
    threads, clients = 4, 8
    config = f"""
        [mounts]
        "/p" = {{ app = "housed:napping", isolation = "process", threads = {threads}, queue = 1000 }}
        "/h" = "hello"
        """
    with server(config, 2) as found:
        (worker,) = found.workers()
        before = _beside_naps(found, clients)
        failures: list[list[str]] = []
        back_s: list[float] = []
        answered = lost_by_neighbour = 0
        p99_ms: list[float] = []
        for trial in range(trials):
            pid = found.get("/p/").json()["pid"]
            found.wait_for_log(r"/p #\d+: serving", trial + 1)
            time.sleep(LONG_LIFE_S)  # it is the age that is waited for
            with neighbour(found, 3.0) as hello, Load(found.connect, ["/p/"], clients=clients) as load:
                hello.go()
                time.sleep(1.0)
                os.kill(pid, signal.SIGSEGV)
                killed = time.monotonic()
                eventually(lambda pid=pid: (answer := requests.get(f"{found.url}/p/", timeout=20)).ok and answer.json()["pid"] != pid)  # type: ignore[misc]
                back_s.append(time.monotonic() - killed)
                result = hello.result()
            failures.append(load.failures)
            answered += load.answered
            lost_by_neighbour += lost(result)
            p99_ms.append(result.p99_ms)
            print(f"... kill {trial + 1}: back in {back_s[-1]:.2f} s, {load.failures}", file=sys.stderr)
        return [
            {
                "kills": trials,
                "requests": answered,
                "failed": sum(map(len, failures)),
                "most by one kill": max(map(len, failures)),
                "in flight": threads,
                "back, s (median)": sorted(back_s)[trials // 2],
                "back, s (longest)": max(back_s),
                "neighbour lost": lost_by_neighbour,
                "neighbour p99, ms (worst)": max(p99_ms),
                "without kills, ms": before.p99_ms,
                "worker": "same" if found.workers() == [worker] else "new",
            }
        ]


def _beside_naps(found: Server, clients: int) -> Result:
    """Measure the neighbour beside the same load while nothing is killed."""
    with neighbour(found, 3.0) as hello, Load(found.connect, ["/p/"], clients=clients):
        hello.go()
        return hello.result()


def _rss_mib(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None, "each process has it"
    return int(found[1]) / 1024


def progress(row: dict[str, Any]) -> None:
    print("...", "; ".join(f"{key}: {_text(value)}" for key, value in row.items()), file=sys.stderr)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n## {title}\n\n| {' | '.join(rows[0])} |\n|{' --- |' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(_text(value) for value in row.values())} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="troubles,crashes,lazy,reload,kills", help="which parts, with commas")
    parser.add_argument("--reloads", type=int, default=200)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    options = parser.parse_args()
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "troubles": troubles,
        "crashes": lambda: crashes(options.trials),
        "lazy": lazy,
        "reload": lambda: reload(options.reloads),
        "kills": lambda: kills(options.trials),
    }
    print(f"Python {interpreters.version_text()}, {interpreters.best_isolation()}")
    rows = {}
    for name in options.only.split(","):
        rows[name] = parts[name]()
        print_table(name, rows[name])
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
