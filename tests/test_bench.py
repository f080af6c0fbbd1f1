"""bench/: what its figures, its page and its options are; no server is started here."""

import copy
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import scoreboard, tenants
from bench.__main__ import DOCS, options_of
from bench.peers import PEERS, Mount, Site
from bench.report import page
from bench.results import TARGETS, Figure, Reading, errors, figure, verdicts
from bench.scenarios import LOADS, MOUNTS, flask_apps
from bench.venvs import HOME, Failed, reason_of
from isowsgi import configuration
from tests.load import asked


def measurement(peer: str, scenario: str, number: int, **figures: Any) -> dict[str, Any]:
    return {"peer": peer, "scenario": scenario, "round": number, "others_cores": 0.0, **figures}


def load_figures(rps: float) -> dict[str, Any]:
    return {"rps": rps, "p50_ms": 0.1, "p99_ms": 2.0, "server_cores": 1.0, "cpu_us": 11.0, "errors": {}}


RESULT = {
    "when": "2026-01-02",
    "settings": {"scenarios": [], "rounds": 3, "seconds": 3, "threads": 8, "apps": 20, "mounts": 1000},
    "machine": {"python": "3.14.10", "kernel": "6.18", "cores": 2, "wrk": "4.1.0"},
    "peers": {"isowsgi": "isowsgi 0.1.0", "uwsgi": "uwsgi 2.0.31"},
    "skipped": {"granian": "no wheel"},
    "notes": [],
    "measurements": [
        measurement("isowsgi", "flask", 1, **load_figures(12_000.0)),
        measurement("uwsgi", "flask", 1, **load_figures(8_000.0)),
        measurement("isowsgi", "flask", 2, **load_figures(14_000.0)),
        measurement("uwsgi", "flask", 2, **load_figures(9_000.0)),
        measurement("isowsgi", "flask", 3, **load_figures(13_000.0)),
        measurement("uwsgi", "flask", 3, **load_figures(10_000.0)),
        measurement("isowsgi", "apps", 1, start_s=2.0, first_s=0.5, server_s=3.5, pss_mib=400.0, few_mib=60.0, mib_per_app=18.9),
    ],
}

FLASK = Reading(peer="isowsgi", scenario="flask", metric="rps")


@pytest.fixture
def result() -> dict[str, Any]:
    return copy.deepcopy(RESULT)


def known(found: Figure | None) -> Figure:
    assert found is not None
    return found


def test_a_figure_is_the_median_over_the_rounds(result: dict[str, Any]) -> None:
    found = known(figure(result, FLASK))

    assert (found.value, found.low, found.high) == (13_000, 12_000, 14_000)
    assert (found.rounds, found.calm_rounds) == (3, 3)


def test_disturbed_rounds_are_left_out_of_the_median_as_long_as_one_was_calm(result: dict[str, Any]) -> None:
    result["measurements"][0]["others_cores"] = result["measurements"][4]["others_cores"] = 1.5

    found = known(figure(result, FLASK))

    assert (found.value, found.low, found.calm_rounds) == (14_000, 12_000, 1)

    result["measurements"][2]["others_cores"] = 1.5

    found = known(figure(result, FLASK))

    assert (found.value, found.is_calm) == (13_000, False)


def test_what_was_not_measured_is_no_figure(result: dict[str, Any]) -> None:
    """A load that nobody answered has no latency; that is not a latency of 0."""
    result["measurements"][0]["p99_ms"] = None

    assert known(figure(result, Reading(peer="isowsgi", scenario="flask", metric="p99_ms"))).rounds == 2
    assert figure(result, Reading(peer="granian", scenario="flask", metric="rps")) is None


def test_errors_are_added_up_over_rounds(result: dict[str, Any]) -> None:
    result["measurements"][0]["errors"] = {"reads": 2}
    result["measurements"][2]["errors"] = {"reads": 1, "timeouts": 4}

    assert errors(result, "isowsgi", "flask") == {"reads": 3, "timeouts": 4}


def test_a_target_is_met_by_the_ratio_of_medians(result: dict[str, Any]) -> None:
    (verdict,) = (one for one in verdicts(result) if one.is_met is not None)

    assert (verdict.target.what, verdict.target.to) == ("Flask", "uwsgi")
    assert verdict.ratio == pytest.approx(13 / 9)
    assert verdict.is_met

    for one in result["measurements"]:
        if one["peer"] == "uwsgi":
            one["rps"] *= 2

    assert [one.is_met for one in verdicts(result) if one.is_met is not None] == [False]


def test_a_target_of_at_most_is_met_below_it(result: dict[str, Any]) -> None:
    result["measurements"].append(measurement("gunicorn-per-app", "apps", 1, start_s=4.0, mib_per_app=20.0))

    met = {verdict.target.ours.metric: verdict.is_met for verdict in verdicts(result) if verdict.target.ours.scenario == "apps"}

    assert met == {"start_s": True, "mib_per_app": False}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.what}, {target.to}")
def test_targets_are_about_what_is_measured(target: Any) -> None:
    """A misspelt name would read as "not measured" for ever."""
    scenarios = {load.name for load in LOADS} | {"apps", "mounts-few", "mounts-many"}

    for reading in (target.ours, target.theirs):
        assert reading.peer in PEERS
        assert reading.scenario in scenarios
    assert (target.at_least is None) != (target.at_most is None)


def test_the_page_has_targets_figures_and_what_is_missing(result: dict[str, Any]) -> None:
    result["notes"].append("round 2: uwsgi: /django: it ended with status 1")
    text = page(result, [("Requests a second", "img/throughput.svg")])

    assert "| Flask | uwsgi | at least 1.3 | 1.44 | 13,000 | 9,000 | yes |" in text
    assert "| Flask | gunicorn | at least 3 |  | 13,000 | - | not measured |" in text
    assert "![Requests a second](img/throughput.svg)" in text
    assert "- `granian`: no wheel" in text
    assert "| `isowsgi` | 13,000 | 0.10 | 2.00 | 1.00 | 11.0 | 12,000 to 14,000 | 3/3 | 0 |" in text
    assert "### 20 Flask apps" in text
    assert "### Django" not in text  # nobody was measured in it
    assert "round 2: uwsgi: /django: it ended with status 1" in text


def test_figures_that_rest_on_no_calm_round_are_marked(result: dict[str, Any]) -> None:
    for one in result["measurements"]:
        one["others_cores"] = 0.5

    assert "| Flask | uwsgi | at least 1.3 | 1.44? | 13,000? | 9,000? | yes |" in page(result, [])


def test_only_a_run_of_everything_is_reported_to_the_docs() -> None:
    """A smoke test's figures must not replace those of a quiet machine and three rounds."""
    assert options_of([]).out == DOCS
    assert options_of(["report"]).out == DOCS
    assert options_of(["--quick"]).out == HOME / "report"
    assert options_of(["--peers", "isowsgi,uwsgi"]).out == HOME / "report"
    assert options_of(["--scenarios", "flask"]).out == HOME / "report"


def test_options_set_what_is_measured() -> None:
    options = options_of(["run", "--quick", "--peers", "uwsgi,isowsgi", "--scenarios", "django,flask", "--rounds", "5", "--seconds", "2"])

    assert options.peers == ("isowsgi", "uwsgi")
    assert options.settings.scenarios == ("flask", "django")
    assert (options.settings.rounds, options.settings.seconds) == (5, 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--peers", "isowsgi,unicorn"], "argument --peers: expected some of isowsgi, gunicorn, "),
        (["--scenarios", "flask,"], "got ''"),
        (["--rounds", "0"], "argument --rounds: expected a number of 1 or more, got '0'"),
    ],
)
def test_options_that_will_not_do_are_explained(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options_of(arguments)

    assert said in capsys.readouterr().err


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(mounts=MOUNTS, folder=tmp_path, venv=tmp_path / "venv", port=21001, close_port=21002)


def test_the_config_written_for_isowsgi_is_a_good_one(site: Site) -> None:
    PEERS["isowsgi"].commands(site)

    config = configuration.load(site.folder / "isowsgi.toml")

    assert {mount.pattern for mount in config.mounts} == {mount.prefix for mount in MOUNTS}


def test_the_module_written_for_servers_without_mounts_serves_them_all(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """As granian and gunicorn import it."""
    site.write("first.py", "def application(environ, start_response): return [environ['SCRIPT_NAME'].encode()]\n")
    mounts = (Mount(prefix="/one", module="first"), Mount(prefix="/two", module="first"))
    command = PEERS["granian"].commands(Site(mounts=mounts, folder=site.folder, venv=site.venv, port=1, close_port=2))
    monkeypatch.syspath_prepend(site.folder)

    assert command[0][-1] == "dispatched:application"
    dispatched = __import__("dispatched").application
    assert dispatched({"PATH_INFO": "/two/", "SCRIPT_NAME": ""}, None) == [b"/two"]


def test_every_mount_of_uwsgi_has_its_file(site: Site) -> None:
    mounts, modules = flask_apps(3)
    for name, text in modules.items():
        site.write(f"{name}.py", text)
    PEERS["uwsgi"].commands(Site(mounts=mounts, folder=site.folder, venv=site.venv, port=1, close_port=2))

    assert [line for line in (site.folder / "uwsgi.ini").read_text().splitlines() if line.startswith("mount")] == [
        f"mount = /app{number}={site.folder}/app{number}.py" for number in range(3)
    ]


def test_the_reason_of_a_failed_build_is_the_compilers(tmp_path: Path) -> None:
    """pip's own last line is only the package's name again."""
    output = "gcc -c\nPython.h:14: fatal error: pyconfig.h: No such file\nERROR: Failed building wheel\n  uwsgi\n"

    assert reason_of(Failed("uwsgi: python ended with status 1", output)) == (
        "uwsgi: python ended with status 1: Python.h:14: fatal error: pyconfig.h: No such file"
    )


def test_the_counters_that_the_scoreboards_benchmark_cuts_out_are_there(tmp_path: Path) -> None:
    scoreboard.without_counters(tmp_path)

    for name in scoreboard.CUTS:
        compile((tmp_path / "isowsgi" / name).read_text(), name, "exec")


@pytest.mark.alone
def test_recording_a_request_takes_no_longer_than_promised() -> None:
    """With room for a busy machine; the limit is for a calm one."""
    assert scoreboard.recording_ns()[0] < 5 * scoreboard.LIMIT_NS


def test_tenants_that_are_all_loaded_leave_no_others_to_ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["tenants", "--known", "40", "--live", "50"])

    with pytest.raises(SystemExit):
        tenants.main()

    assert "--known 40: needs more than --live 50" in capsys.readouterr().err


def test_a_load_that_fails_leaves_no_thread_behind() -> None:
    """The thread that asked went on until the server was gone, and its traceback hid why."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        before = threading.active_count()
        site: Any = SimpleNamespace(host="127.0.0.1", port=server.server_port)

        with pytest.raises(ValueError, match="wrk failed"), asked(site, "/app/", pause_s=0.01):
            raise ValueError("wrk failed")

        left = threading.active_count() - before
        server.shutdown()
        serving.join()
    assert left == 0
