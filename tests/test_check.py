"""`isowsgi check` says which isolation each mount gets; what an app does to it is a finding, not the end of the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from isowsgi.shared import interpreters
from tests.command import call
from tests.conftest import DEADLINE_S, ROOT, WHOLE, whole_only
from tests.orders import REFUSES_OWN_GIL, WSGI, copy_extension

BEST = interpreters.best_isolation()
needs_own_gil = pytest.mark.skipif(BEST != "own-gil", reason="needs an own GIL")

APPS = {
    "sound": "import json" + WSGI,
    "flasks": "import flask\napplication = flask.Flask('x')",
    "djangos": (
        "import django, django.conf\n"
        "django.conf.settings.configure(DATABASES={'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}})\n"
        "django.setup()\nfrom django.core.wsgi import get_wsgi_application\nfrom django.db import connection\n"
        "connection.ensure_connection()\napplication = get_wsgi_application()"
    ),
    "segfaults": "import ctypes\nctypes.string_at(0)",
    "hangs": "import time\ntime.sleep(1000)",
    "leaves": "import os\nos._exit(7)",
    "prints": "for number in range(100):\n    print('x' * 100_000)" + WSGI,
    "broken": "def (",
    "refused": f"import {REFUSES_OWN_GIL}" + WSGI,
    "shares": "import xxlimited_35" + WSGI,
    "once": "import _curses" + WSGI,
    "falls_back": f"try:\n    import {REFUSES_OWN_GIL}\nexcept ImportError:\n    pass" + WSGI,
}


# Each is tried in every isolation, up to nine copies of it: 6 s of CPU time for Flask, 3 s for Django. Flask is served on each release in
# functional/test_websockets, Django in functional/test_inside.
FRAMEWORKS = ["djangos", "flasks"]


class Checked:
    """What the command said."""

    def __init__(self, done: subprocess.CompletedProcess[str], folder: Path) -> None:
        self.folder = folder
        self.code = done.returncode
        self.output = done.stdout
        self.errors = done.stderr

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.output)
        return value

    def mount(self, pattern: str) -> dict[str, Any]:
        found: dict[str, Any]
        [found] = [mount for mount in self.json["mounts"] if mount["pattern"] == pattern]
        return found


class Command:
    """The command, in a folder with apps to check and a memory of its own.

    Args:
        is_process: whether it is run as users do, or in this process, which takes a quarter of a second less.
    """

    def __init__(self, folder: Path, is_process: bool = True) -> None:
        self.folder = folder
        self._is_process = is_process
        for name, code in APPS.items():
            (folder / f"{name}.py").write_text(code)

    def __call__(self, mounts: str, *arguments: str) -> Checked:
        (self.folder / "isowsgi.toml").write_text(mounts)
        env = {"PYTHONPATH": str(ROOT), "ISOWSGI_CACHE_DIR": str(self.folder / "cache"), "NO_COLOR": ""}
        if self._is_process:
            done = subprocess.run(
                [sys.executable, "-m", "isowsgi", "check", *arguments],
                cwd=self.folder,
                env={**os.environ, **env},
                capture_output=True,
                text=True,
                timeout=4 * DEADLINE_S,
                check=False,
            )
        else:
            done = call(self.folder, "check", *arguments, **env)
        assert "Traceback" not in done.stderr, done.stderr
        return Checked(done, self.folder)


@pytest.fixture
def check(tmp_path: Path) -> Command:
    return Command(tmp_path, is_process=WHOLE)


def mounts(*names: str) -> str:
    return "[mounts]\n" + "\n".join(f'"/{name}" = "{name}"' for name in names)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Future[Checked]]]:
    """Two runs at the same time, as the second one mostly waits."""
    load, fail = (Command(tmp_path_factory.mktemp("check")) for _ in range(2))
    copy_extension(REFUSES_OWN_GIL, load.folder)
    copy_extension("xxlimited_35", load.folder)
    names = ["prints", *(FRAMEWORKS if WHOLE else []), "refused", "falls_back", "shares"]
    with ThreadPoolExecutor(2) as pool:
        failing = pool.submit(fail, mounts("segfaults", "leaves", "hangs", "broken", "sound"), "--timeout", "4")
        yield [pool.submit(load, mounts(*names), "--json"), failing]


@pytest.fixture(scope="module")
def loading(runs: list[Future[Checked]]) -> Checked:
    """One run over apps that load somewhere, for machines."""
    return runs[0].result()


@pytest.fixture(scope="module")
def failing(runs: list[Future[Checked]]) -> Checked:
    """One run over a sound app and those that load nowhere, for people."""
    return runs[1].result()


def test_a_sound_app_has_an_isolation(loading: Checked) -> None:
    mount = loading.mount("/prints")

    assert (loading.code, loading.json["is_fine"], mount["isolation"], mount["error"]) == (0, True, BEST, "")
    assert all(trial["loaded"] and trial["memory_mib"] > 1 for trial in mount["trials"].values())
    assert {"shared-gil", "process"} <= set(mount["trials"])


@whole_only("takes seconds of CPU time")
@pytest.mark.parametrize("app", FRAMEWORKS)
def test_flask_and_django_with_sqlite_load_in_an_interpreter(loading: Checked, app: str) -> None:
    assert loading.mount(f"/{app}")["isolation"] == BEST


def test_ten_megabytes_of_output_are_not_shown(loading: Checked) -> None:
    assert loading.mount("/prints")["isolation"] == BEST
    assert len(json.dumps(loading.mount("/prints"))) < 100_000


@needs_own_gil
def test_it_names_what_refuses_what_that_said_and_what_it_declares(loading: Checked) -> None:
    mount = loading.mount("/refused")

    assert (mount["isolation"], mount["reason"]) == ("shared-gil", f"{REFUSES_OWN_GIL} refuses an own GIL")
    [extension] = mount["extensions"]
    assert (extension["name"], extension["interpreters"]) == (REFUSES_OWN_GIL, "shared GIL")
    assert "does not support loading in subinterpreters" in extension["refused"]


@needs_own_gil
def test_an_app_that_would_silently_run_without_a_module_gets_an_isolation_that_has_it(loading: Checked) -> None:
    mount = loading.mount("/falls_back")

    reason = f"{REFUSES_OWN_GIL} cannot be loaded with an own GIL, and the app would run without it"
    assert (mount["isolation"], mount["reason"], mount["fallbacks"]) == ("shared-gil", reason, [])
    assert mount["trials"]["own-gil"]["worse"] == reason


@needs_own_gil
def test_modules_that_share_state_between_interpreters_are_named(loading: Checked) -> None:
    mount = loading.mount("/shares")

    assert mount["isolation"] == "process"
    assert mount["reason"].startswith("xxlimited_35 gives all interpreters the same class ")


@pytest.mark.parametrize(
    ("app", "line", "place"),
    [
        ("segfaults", "it crashed the process by SIGSEGV", 'segfaults.py", line 2'),
        ("leaves", "it ended the process with exit code 7", ""),
        ("hangs", "it was not loaded within 4 s", 'hangs.py", line 2'),
        ("broken", "SyntaxError: invalid syntax", 'broken.py", line 1'),
    ],
)
def test_what_an_app_does_is_a_line_and_exit_code_1(failing: Checked, app: str, line: str, place: str) -> None:
    assert failing.code == 1
    assert f"/{app}: cannot be loaded: {line}" in failing.output
    assert place in failing.output


def test_the_others_are_checked_all_the_same(failing: Checked) -> None:
    assert "/sound: it loads" in failing.output


def test_a_pipe_gets_no_colour_and_no_progress(failing: Checked) -> None:
    assert "\x1b" not in failing.output
    assert failing.errors == ""


@pytest.mark.skipif(interpreters.VERSION < (3, 14), reason="_curses loads once per process from 3.14 on")
def test_two_mounts_that_want_the_only_slot_of_a_file_clash(check: Command) -> None:
    copy_extension("_curses", check.folder)
    config = (
        '[defaults]\nisolation = "shared-gil"\n' + mounts("once") + '\n"/twice" = "once"\n"/other" = { app = "once", isolation = "auto" }'
    )

    checked = check(config)

    assert checked.code == 1
    assert "clash: /once, /twice: _curses loads once per process" in checked.output
    assert "warning: _curses loads once per process, so this mount can have one instance only" in checked.output
    assert "/other: _curses loads once per process" in checked.output


@needs_own_gil
def test_an_isolation_that_was_asked_for_and_is_refused_is_none(check: Command) -> None:
    copy_extension(REFUSES_OWN_GIL, check.folder)

    checked = check('[mounts]\n"/" = { app = "refused", isolation = "own-gil" }')

    assert checked.code == 1
    assert "does not load with isolation = 'own-gil'" in checked.output
    assert 'set isolation = "shared-gil" for this mount' in checked.output


def test_it_says_which_patterns_take_requests_from_others(check: Command) -> None:
    others = '\n"/sound/inner" = "sound"\n"example.com/" = "sound"'
    checked = check('[defaults]\nisolation = "process"\n' + mounts("sound") + others, "--mount", "/sound")

    assert "note: /sound: requests that begin with /sound/inner go there" in checked.output
    assert "note: /sound: not reached at the hosts of example.com/" in checked.output
    assert "\n/sound/inner" not in checked.output


def test_a_faulty_config_file_is_exit_code_2(check: Command) -> None:
    checked = check('[mounts]\n"/" = 1\nx = 2')
    assert checked.code == 2
    assert "isowsgi.toml: mounts" in checked.errors
    assert checked.output == ""

    checked = check('[mounts]\n"/" = 1', "--json")
    assert checked.code == 2
    assert len(checked.json["faults"]) == 1


def test_a_mount_that_is_not_there_is_bad_usage(check: Command) -> None:
    checked = check(mounts("sound"), "--mount", "/soud")

    assert checked.code == 2
    assert "did you mean '/sound'?" in checked.errors


def test_the_next_start_knows_what_was_found(failing: Checked) -> None:
    """Of those that failed nothing is remembered."""
    assert len(list((failing.folder / "cache").iterdir())) == 1


def test_what_the_policy_says_of_loading_is_told(tmp_path: Path) -> None:
    check = Command(tmp_path)
    (check.folder / "moves.py").write_text("import os\nos.chdir(os.getcwd())" + WSGI)
    rest = '[mounts]\n"/warned" = { app = "moves", policy = "warn" }\n"/denied" = { app = "moves", policy = { chdir = "deny" } }\n'

    # In a process the end of the trial was told as a call of the app's.
    found = check('[defaults]\nisolation = "process"\n' + rest, "--json")

    assert found.code == 1
    assert found.mount("/warned")["warnings"] == [f'when it is loaded, os.chdir({str(check.folder)!r}) is called: policy chdir = "warn"']
    assert found.mount("/denied")["isolation"] is None
    assert 'is refused by policy chdir = "deny"' in found.mount("/denied")["error"]


def test_a_url_without_lazy_or_without_a_slash_is_bad_usage(check: Command) -> None:
    for arguments in (("--url", "/x"), ("--lazy", "--url", "x")):
        assert check(mounts("sound"), *arguments).code == 2
