"""What an operator sees of a real gunicorn: counters that are exact whatever becomes of its workers, and the page in a real browser."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import threading
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from isowsgi.shared.interpreters import best_isolation
from tests.bystander import again_if_disturbed
from tests.conftest import APPS, DEADLINE_S, ROOT, WHOLE, Server, StartServer, eventually, shared_server
from tests.load import PAUSE_S, Load
from tests.raw import Client

# Its isolation is told, as `auto` tries the page's extension module in each server's folder: 0.9 s of CPU time, three times a server.
STATUS = f'"/-/isowsgi" = {{ app = "isowsgi.status:application", isolation = "{best_isolation()}" }}\n'
TWO = '[mounts]\n"/a" = { app = "hello", touch = "touched" }\n"/b" = "hello"\n' + STATUS

# Whose counters are added up.
WORKERS = 3 if WHOLE else 2

CHROMIUM = shutil.which("chromium")
CHROMIUM_ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(server: Server) -> Samples:
    text = server.get("/-/isowsgi/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def value(samples: Samples, name: str, **labels: str) -> float:
    """Return the sum of a metric's samples with these labels."""
    return sum(value for (of, has), value in samples.items() if of == name and labels.items() <= dict(has).items())


def snapshot(server: Server) -> dict[str, Any]:
    taken: dict[str, Any] = server.get("/-/isowsgi/status.json").json()
    return taken


def mount(server: Server, pattern: str) -> dict[str, Any]:
    return next(one for one in snapshot(server)["mounts"] if one["pattern"] == pattern)


SOURCES = {
    "raises.py": "def application(environ, start):\n    raise ValueError('<img src=x onerror=document.title=1>')\n",
    "board.py": "def application(environ, start):\n    start('200 OK', [])\n    return [repr(environ.get('isowsgi.status')).encode()]\n",
}

# For what leaves it as it was. What raises is loaded by the one test that asks for it.
site = shared_server(
    f"[defaults]\npythonpath = ['.', '{APPS}']\n"
    + TWO
    + '"/lazy" = { app = "hello", lazy = true }\n"/raises" = { app = "raises", lazy = true }\n"/board" = { app = "board", lazy = true }\n',
    files=SOURCES,
    wait_for=3,
)


class Scraper:
    """Scrapes over and over, and holds that no counter ever goes back."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.fallen: list[str] = []
        self._scrapes = 0

    def __enter__(self) -> Scraper:
        self._thread.start()
        try:
            self._wait_for(1)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._wait_for(self._scrapes + 2)  # the second one begins after all that happened
        finally:
            self._end()

    def _wait_for(self, scrapes: int) -> None:
        eventually(lambda: self._scrapes >= scrapes, f"scrape {scrapes}")

    def _end(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        before: Samples = {}
        while not self._stop.wait(PAUSE_S):
            try:
                now = scrape(self._server)
            except OSError:  # a connection of a worker that was killed
                continue
            for key, last in before.items():
                name, labels = key
                is_counter = name.endswith(("_total", "_bucket", "_count")) and "worker" not in dict(labels)
                if is_counter and now.get(key, 0) < last:
                    self.fallen.append(f"{name} {dict(labels)}: {last} -> {now.get(key)}")
            before = now
            self._scrapes += 1


def test_metrics_are_the_clients_own_count_over_all_workers_a_reload_and_a_restart(serve: StartServer) -> None:
    server = serve(TWO, "-w", str(WORKERS), wait_for=3 * WORKERS)

    with (
        Scraper(server) as scraper,
        Load(server.connect, ["/a/"], clients=3) as a,
        Load(server.connect, ["/b/"], clients=2, keep_alive=False) as b,
    ):
        (server.folder / "touched").write_text("")
        server.wait_for_log(r"/a #1: ended", WORKERS)
        server.send_signal(signal.SIGHUP)
        server.wait_for_log(r"/b #1: serving", 2 * WORKERS)
        eventually(lambda: len(server.workers()) == WORKERS, "the end of the old workers")

    samples = scrape(server)
    assert a.failures == b.failures == scraper.fallen == [], server.log()
    assert value(samples, "isowsgi_requests_total", mount="/a") == a.answered
    assert value(samples, "isowsgi_requests_total", mount="/b") == b.answered
    assert value(samples, "isowsgi_responses_total", mount="/a", code="2xx") == a.answered
    assert value(samples, "isowsgi_response_body_bytes_total", mount="/b") <= 13 * b.answered
    assert value(samples, "isowsgi_boots_total", mount="/a") >= 3 * WORKERS
    # A request's end is noted after its client has the answer.
    count = "isowsgi_request_duration_seconds_count"
    eventually(lambda: value(scrape(server), count, mount="/a") == a.answered, "the end of the last request")


def test_a_killed_worker_takes_no_count_with_it(serve: StartServer) -> None:
    server = serve(TWO, "-w", str(WORKERS), wait_for=3 * WORKERS)

    with Scraper(server) as scraper, Load(server.connect, ["/a/"], clients=4) as load:
        before = scrape(server)
        os.kill(server.workers()[0], signal.SIGKILL)
        server.wait_for_log(r"/a #1: serving", WORKERS + 1)
        eventually(lambda: value(scrape(server), "isowsgi_worker_crashes_total") == 1, "the count of the crash")

    samples = scrape(server)
    counted = value(samples, "isowsgi_requests_total", mount="/a")
    assert scraper.fallen == []
    assert value(before, "isowsgi_requests_total", mount="/a") <= counted
    assert load.answered <= counted <= load.sent


def test_a_crash_is_counted_at_the_door_of_the_app_that_did_it(serve: StartServer) -> None:
    server = serve('[mounts]\n"/t" = "troubles"\n"/b" = "hello"\n' + STATUS, wait_for=3)
    server.get("/b/")
    crashes = 0
    blamed = 0.0
    while not blamed:
        # The thread of a request that its client has the answer of may not have noted that it is over, and then nobody is blamed.
        assert crashes < 3
        crashes += 1
        server.exchange(b"GET /t/crash HTTP/1.1\r\nHost: localhost\r\n\r\n")
        server.wait_for_log(r"/-/isowsgi #\d+: serving", 1 + crashes)
        samples = scrape(server)
        blamed = value(samples, "isowsgi_crashes_total", mount="/t")

    assert blamed == 1
    assert value(samples, "isowsgi_worker_crashes_total") == crashes
    assert value(samples, "isowsgi_crashes_total", mount="/b") == 0
    assert [value(samples, "isowsgi_requests_total", mount=pattern) for pattern in ("/t", "/b")] == [crashes, 1]


@again_if_disturbed
def test_what_goes_wrong_is_counted_at_the_mount_it_goes_wrong_at(serve: StartServer) -> None:
    server = serve('[mounts]\n"/t" = { app = "troubles", request_timeout = 1 }\n"/x" = "crashes_on_import"\n' + STATUS, wait_for=2)
    server.wait_for_log(r"/x: answers 503")

    statuses = [server.get(path).status_code for path in ("/t/", "/t/recursion", "/t/loop", "/x/", "/nowhere")]

    samples = scrape(server)
    assert statuses == [200, 500, 504, 503, 404]
    assert [value(samples, "isowsgi_responses_total", mount="/t", code=code) for code in ("2xx", "5xx")] == [1, 2]
    assert value(samples, "isowsgi_exceptions_total", mount="/t") == 1
    assert value(samples, "isowsgi_request_timeouts_total", mount="/t") == 1
    assert value(samples, "isowsgi_responses_total", mount="/x", code="5xx") == 1
    assert value(samples, "isowsgi_boot_failures_total", mount="/x") >= 1
    assert value(samples, "isowsgi_refusals_total", code="4xx") == 1
    assert "GET /t/recursion HTTP/1.1: RecursionError" in mount(server, "/t")["last_error"]["text"]
    assert re.match(r"/x #\d+: ZeroDivisionError", mount(server, "/x")["last_error"]["text"])


def test_the_cpu_time_of_a_busy_app_is_its_own(serve: StartServer) -> None:
    """Also while its request goes on: an app in an endless loop must be seen."""
    server = serve('[mounts]\n"/t" = "troubles"\n"/b" = "hello"\n' + STATUS, "--graceful-timeout", "1", wait_for=3)
    loaded_s = mount(server, "/b")["cpu_s"]  # what its import took
    server.ask("/t/loop")

    eventually(lambda: mount(server, "/t")["cpu_s"] > loaded_s + 1, "CPU time of the loop")

    assert mount(server, "/b")["cpu_s"] < loaded_s + 0.5
    assert mount(server, "/t")["requests_in_flight"][0]["line"] == "GET /t/loop HTTP/1.1"


def test_ready_tells_a_load_balancer_what_can_be_served(serve: StartServer) -> None:
    server = serve('[mounts]\n"/a" = "hello"\n"/x" = "crashes_on_import"\n' + STATUS, wait_for=2)
    server.wait_for_log(r"/x: answers 503")
    eventually(lambda: server.get("/-/isowsgi/ready?mount=/a").status_code == 200, "/a is ready")

    statuses = [server.get(f"/-/isowsgi/{path}").status_code for path in ("live", "ready?mount=/x", "ready")]

    assert statuses == [200, 503, 503]


WAITS = """
import os, time

def application(environ, start_response):
    print("begun", flush=True)
    while environ["PATH_INFO"] == "/wait" and not os.path.exists("open"):
        time.sleep(0.01)
    body = repr(environ["isowsgi.queue_s"]).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.mark.parametrize("isolation", [best_isolation(), "process"])
def test_an_app_is_told_how_long_its_request_waited_for_a_thread(serve: StartServer, isolation: str) -> None:
    """Both one that the worker hands over and one on a connection that the busy app has already."""
    settings = f'app = "code", pythonpath = ".", threads = 1, server_timing = true, isolation = "{isolation}"'
    server = serve(f'[mounts]\n"/a" = {{ {settings} }}\n' + STATUS, wait_for=2, files={"code.py": WAITS})
    with Client(server) as kept, Client(server) as blocking, Client(server) as handed:
        assert 0 <= float(kept.ask("/a/").body) < DEADLINE_S
        blocking.send("GET /a/wait HTTP/1.1\r\nHost: x\r\n\r\n")
        server.wait_for_log("begun", 2)
        for client in (kept, handed):
            client.send("GET /a/ HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually(lambda: mount(server, "/a")["queued"] == 2, "both requests in the queue")
        since = time.monotonic()
        eventually(lambda: time.monotonic() - since > 0.1)
        (server.folder / "open").write_text("")
        answers = [client.answer() for client in (kept, handed, blocking)][:2]

    waits = [float(answer.body) for answer in answers]
    assert min(waits) > 0.1 - 0.02, "the kernel counts ticks of 10 ms at most"
    for wait, answer in zip(waits, answers, strict=True):
        assert answer.fields["server-timing"].startswith(f"queue;dur={wait * 1000:.3f}, app;dur=")
    eventually(lambda: sum(mount(server, "/a")["waiting_buckets"]) == 4, "the end of the last request")
    assert sum(mount(server, "/a")["waiting_buckets"][1:]) >= 2
    assert mount(server, "/a")["waiting_s"] >= sum(waits) - 1e-6


def test_only_the_status_page_is_given_the_board(site: Server) -> None:
    assert site.get("/board/").text == "None"
    assert site.get("/-/isowsgi/live").status_code == 200


def test_the_page_is_closed_to_what_comes_through_a_proxy_and_to_rebound_names(site: Server) -> None:
    proxied = site.get("/-/isowsgi/status.json", headers={"X-Forwarded-For": "203.0.113.5"})
    rebound = site.get("/-/isowsgi/status.json", headers={"Host": "evil.example"})

    assert (proxied.status_code, rebound.status_code) == (403, 403)


def test_the_page_needs_nothing_of_an_apps_venv(serve: StartServer, tmp_path: Path) -> None:
    """`[defaults]` may give every mount a venv without the packages that the page is made with."""
    venv.create(tmp_path / "venv")

    server = serve(f"[defaults]\nvenv = '{tmp_path}/venv'\n[mounts]\n\"/a\" = 'hello'\n" + STATUS, wait_for=2)

    assert server.get("/-/isowsgi/live").status_code == 200


def test_the_status_page_lives_where_auto_puts_it(serve: StartServer) -> None:
    server = serve('[mounts]\n"/-/isowsgi" = "isowsgi.status:application"\n', wait_for=1)

    assert server.get("/-/isowsgi/live").status_code == 200


# In a browser.


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of a real browser, with nothing kept of the one before; what its scripts complain of is a failure."""
    complaints: list[str] = []
    page = browser.new_page()
    page.set_default_timeout(DEADLINE_S * 1000)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    yield page
    page.close()
    assert complaints == []


def card(page: Any, pattern: str) -> Any:
    return page.locator(f'[data-mount="{pattern}"]')


def test_the_page_shows_every_mount_and_goes_on_by_itself(site: Server, page: Any) -> None:
    page.goto(f"{site.url}/-/isowsgi")  # without the slash

    card(page, "/lazy").wait_for()
    assert page.locator("h3").all_inner_texts() == ["/a", "/b", "/-/isowsgi", "/lazy", "/raises", "/board"]
    states = ["serving", "serving", "serving", "asleep", "asleep"]
    eventually(lambda: page.locator(".badge").all_inner_texts()[:5] == states, "a page on which all but the lazy mounts serve")
    assert page.locator("#verdict").inner_text() == "All mounts are healthy."
    assert page.locator("#workers tbody tr").count() == 1

    for _ in range(7):
        site.get("/a/")
    card(page, "/a").locator("dt:text-is('requests') + dd:text-is('7')").wait_for()


def test_a_stuck_mount_is_shown_as_stuck_with_its_stack_on_a_page_that_is_open(serve: StartServer, page: Any) -> None:
    server = serve('[mounts]\n"/t" = { app = "troubles", request_timeout = 0.5 }\n"/b" = "hello"\n' + STATUS, wait_for=3)
    page.goto(f"{server.url}/-/isowsgi/")
    card(page, "/t").wait_for()

    server.ask("/t/sleep")
    server.wait_for_log("/t #1: a thread is stuck")
    card(page, "/t").locator(".badge:text-is('stuck')").wait_for()

    text = card(page, "/t").inner_text()
    assert re.search(r"/t #1 is stuck for \d+ s", text)
    assert "time.sleep(60)" in text
    assert page.locator("#verdict").inner_text() == "/t is stuck."
    assert card(page, "/b").locator(".badge").inner_text() == "serving"


def test_what_comes_from_an_app_is_text_and_no_markup(site: Server, page: Any) -> None:
    assert site.get("/raises/").status_code == 500
    page.goto(f"{site.url}/-/isowsgi/")

    card(page, "/raises").locator(".note code", has_text="<img src=x").wait_for()

    assert page.locator("main img").count() == 0


def test_the_page_says_so_when_nobody_answers_any_more(site: Server, page: Any) -> None:
    page.goto(f"{site.url}/-/isowsgi/")
    card(page, "/a").wait_for()
    page.route("**/status.json", lambda route: route.fulfill(status=200, body="no JSON"))

    page.locator("#verdict.bad", has_text="The figures below are out of date.").wait_for()


AXE = ROOT / "tests/axe-core/axe.min.js"

# More than the page shows as cards, and as many as one can be expected to have in whole runs.
MOUNTS = 200 if WHOLE else 30
SITES = TWO + "".join(f'"/sites/{number:03}" = {{ app = "hello", lazy = true }}\n' for number in range(MOUNTS - 3))


def rows(page: Any) -> list[str]:
    patterns: list[str] = page.locator("#dense tbody th").all_inner_texts()
    return patterns


def test_many_mounts_are_a_table_that_is_sorted_filtered_and_linked(serve: StartServer, page: Any, browser: Any) -> None:
    """One server for all that is asked of the page with many mounts."""
    server = serve(SITES, wait_for=3)
    for _ in range(3):
        server.get("/b/")
    page.goto(f"{server.url}/-/isowsgi/?sort=name#/b")
    page.locator("#dense tbody tr").first.wait_for()
    assert page.locator("#dense tbody tr").count() == MOUNTS
    assert rows(page) == sorted(rows(page))
    assert page.locator("#chosen h3").all_inner_texts() == ["/b"]
    assert page.locator("#mounts .card").count() == 0

    page.keyboard.press("/")
    page.keyboard.type("sites/01")
    eventually(lambda: len(rows(page)) == 10, "a table of what is like the filter")
    assert "filter=sites%2F01" in page.url
    assert page.locator("#filter").input_value() == "sites/01"
    page.keyboard.press("Escape")
    page.get_by_role("button", name="req/s").click()
    assert page.locator("[aria-sort]").all_inner_texts() == ["req/s"]
    eventually(lambda: len(rows(page)) == MOUNTS)
    press_while_the_page_is_drawn(page, "/sites/005")

    page.locator("#dense tbody th a", has_text="/sites/007").focus()
    page.keyboard.press("Enter")
    page.locator("#chosen h3", has_text="/sites/007").wait_for()
    assert page.url.endswith("#/sites/007")

    page.locator("#view").select_option("cards")
    card(page, "/sites/007").wait_for()
    looks = itertools.product(("cards", "table"), ("light", "dark")) if WHOLE else [("cards", "dark")]
    for view, scheme in looks:
        look_at_phone_width(browser, f"{server.url}/-/isowsgi/?view={view}&filter=/a", scheme)
    look_at_phone_width(browser, f"{server.url}/-/isowsgi/#/sites/007", "light")  # a table, and one mount's card


def press_while_the_page_is_drawn(page: Any, pattern: str) -> None:
    """The page exchanges its rows each second: a click that had that between press and release was none."""
    page.locator("#dense tbody th a", has_text=pattern).hover()
    page.mouse.down()
    for _ in range(2):
        with page.expect_response("**/status.json"):
            pass
    page.mouse.up()
    page.locator("#chosen h3", has_text=pattern).wait_for()


def look_at_phone_width(browser: Any, url: str, scheme: str) -> None:
    """Hold that nothing is cut off, and that axe-core finds nothing to complain of."""
    context = browser.new_context(bypass_csp=True, color_scheme=scheme, viewport={"width": 360, "height": 740})
    phone = context.new_page()
    phone.goto(url)
    phone.locator("[data-mount]").first.wait_for()
    assert phone.evaluate("document.documentElement.scrollWidth") <= 360
    cut = "[...document.querySelectorAll('.scroll')].filter((box) => box.scrollWidth > box.clientWidth).length"
    assert phone.evaluate(cut) == 0
    phone.add_script_tag(path=AXE)
    assert phone.evaluate("axe.run().then((found) => found.violations.map((one) => [one.id, one.nodes[0].html]))") == []
    context.close()
