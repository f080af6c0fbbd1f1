"""Each app has an environment, a path and signals of its own.

All of it changes an interpreter for good, so each test has a new one, in a process of its own.
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEADLINE_S, ROOT

PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"

# Code that says what a child process finds.
CHILD = "import os; print([os.environ.get(name) for name in ('PROCESS', 'MOUNT', 'APP')])"
SHELL = "echo [$PROCESS, $MOUNT, $APP]"


def in_interpreter(code: str, **facts: Any) -> Any:
    """Run code in a new interpreter, with facts as variables; return what it told, and the process' environment afterwards."""
    lines = [f"{name} = {value!r}" for name, value in facts.items()] + [textwrap.dedent(code)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.in_interpreter"],
        input="\n".join(lines),
        env={**os.environ, "PROCESS": "process", "PYTHONPATH": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=4 * DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stdout}{done.stderr}"
    return json.loads(done.stdout)


# Environment variables.


def test_an_app_sees_the_process_variables_and_its_mounts_own() -> None:
    result = in_interpreter("""
        environment.set_environ({"MOUNT": "mount", "LANG": "mine"})
        tell([os.environ["PROCESS"], os.getenv("MOUNT"), os.environb[b"MOUNT"].decode(), os.environ["LANG"]])
    """)

    assert result["told"] == [["process", "mount", "mount", "mine"]]


def test_the_process_variables_cannot_be_brought_back() -> None:
    """os.reload_environ() (3.14+) would undo what the mount says; putenv and unsetenv take bytes too."""
    result = in_interpreter("""
        environment.set_environ({"PROCESS": "mine"})
        os.putenv(b"APP", b"bytes")
        if hasattr(os, "reload_environ"):
            os.reload_environ()
        tell([os.environ["PROCESS"], os.environ["APP"]])
        os.unsetenv(b"APP")
        tell("APP" in os.environ)
    """)

    assert result["told"] == [["mine", "bytes"], False]


def test_what_an_app_sets_stays_its_own() -> None:
    """CPython's os.environ calls putenv(): two Djangos would get each other's DJANGO_SETTINGS_MODULE."""
    result = in_interpreter("""
        environment.set_environ({"MOUNT": "mount"})
        os.environ["APP"] = "app"
        os.environb[b"PROCESS"] = b"changed"
        os.putenv("APP", "by putenv")
        os.environ.update(MOUNT="changed")
        os.environ |= {"MOUNT": "changed again"}
        tell([os.environ["APP"], os.environ["PROCESS"], os.environ["MOUNT"]])
        os.unsetenv("PROCESS")
        del os.environ["APP"]
        os.environ.pop("MOUNT")
        os.unsetenv("NEVER_SET")
        tell([os.environ.get(name) for name in ("PROCESS", "APP", "MOUNT")])
    """)

    assert result["told"] == [["by putenv", "changed", "changed again"], [None, None, None]]
    assert result["python"]["PROCESS"] == result["c"]["PROCESS"] == "process"
    assert result["python"]["MOUNT"] is result["c"]["MOUNT"] is result["c"]["APP"] is None


def test_a_variable_that_is_not_set_is_a_key_error_by_its_name() -> None:
    result = in_interpreter("""
        environment.set_environ({})
        for attempt in (lambda: os.environ["APP"], lambda: os.environ.__delitem__("APP")):
            try:
                attempt()
            except KeyError as exc:
                tell(str(exc))
    """)

    assert result["told"] == ["'APP'", "'APP'"]


@pytest.mark.parametrize(
    "start",
    [
        "subprocess.run([sys.executable, '-c', child], stdout=pipe)",
        "subprocess.run([sys.executable, '-c', child], stdout=pipe, close_fds=False)",
        "subprocess.run(shell, shell=True, stdout=pipe)",
        "subprocess.run(shell, shell=True, stdout=pipe, close_fds=False)",
        "subprocess.run(shell, shell=True, stdout=pipe, env={**os.environ})",
        "subprocess.run(shell, shell=True, stdout=pipe, start_new_session=True)",
        "os.system(f'({shell}) >&{pipe}')",
        "os.write(pipe, os.popen(shell).read().encode())",
        "asyncio.run(start_by_asyncio())",
    ],
)
def test_child_processes_get_the_apps_environment(start: str) -> None:
    """Whichever way they are started: CPython has several, and the C code below some takes the process' environment."""
    result = in_interpreter(
        f"""
        import asyncio, subprocess
        environment.set_environ({{"MOUNT": "mount"}})
        os.environ["APP"] = "app"
        reader, pipe = os.pipe()
        os.set_inheritable(pipe, True)  # os.system passes it on, as C's does

        async def start_by_asyncio():
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", child, stdout=pipe)
            await process.wait()

        {start}
        os.close(pipe)
        tell(os.read(reader, 1000).decode().replace("'", "").strip())
        """,
        child=CHILD,
        shell=SHELL,
    )

    assert result["told"] == ["[process, mount, app]"]


def test_a_child_process_can_still_be_given_another_environment() -> None:
    result = in_interpreter(
        """
        import subprocess
        environment.set_environ({"MOUNT": "mount"})
        tell(subprocess.run(shell, shell=True, env={"APP": "only"}, capture_output=True).stdout.decode())
        """,
        shell=SHELL,
    )

    assert result["told"] == ["[, , only]\n"]


def test_processes_of_multiprocessing_get_the_apps_environment(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text("import os\ndef work(queue): queue.put([os.environ.get('MOUNT'), os.environ.get('APP')])\n")

    result = in_interpreter(
        """
        import multiprocessing
        environment.set_environ({"MOUNT": "mount", "PYTHONPATH": folder})
        os.environ["APP"] = "app"
        sys.path.insert(0, folder)
        sys.modules["__main__"].__spec__ = None
        import work
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        process = context.Process(target=work.work, args=(queue,))
        process.start()
        tell(queue.get(timeout=60))
        process.join()
        queue.close()
        queue.join_thread()
        """,
        folder=str(tmp_path),
    )

    assert result["told"] == [["mount", "app"]]


def test_os_system_returns_a_wait_status() -> None:
    result = in_interpreter("""
        environment.set_environ({})
        tell([os.waitstatus_to_exitcode(os.system(command)) for command in ("exit 0", "exit 3", "kill -9 $$")])
    """)

    assert result["told"] == [[0, 3, -9]]


# Signals.


def test_a_handler_is_not_installed_but_an_app_that_wants_one_loads() -> None:
    """CPython refuses it in a subinterpreter by a ValueError, which no app expects at import."""
    result = in_interpreter("""
        import signal
        lines = []
        environment.set_signals(lines.append)
        def first(*_): pass
        def second(*_): pass
        tell([
            signal.signal(signal.SIGTERM, first) is signal.SIG_DFL,
            signal.signal(signal.SIGTERM, second) is first,
            signal.signal(15, signal.SIG_DFL) is second,
        ])
        signal.signal(signal.SIGHUP, first)
        tell(lines)
    """)

    said = "signal.signal({}) has no effect: gunicorn handles a worker's signals"
    assert result["told"] == [
        [True, True, True],
        [said.format("SIGTERM"), said.format("SIGHUP")],  # once for each signal, not for each call
    ]


# The path.


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """What `python -m venv` makes, as far as the path goes, with a module, a .pth file and a sitecustomize in it."""
    venv = tmp_path / "venv"
    packages = venv / "lib" / PYTHON / "site-packages"
    packages.mkdir(parents=True)
    (venv / "pyvenv.cfg").write_text("home = /nowhere\ninclude-system-site-packages = false\n")
    (packages / "only_in_venv.py").write_text("")
    (packages / "plain.pth").write_text("extra\n")
    (packages / "code.pth").write_text("import sys; sys.pth_ran = True\n")
    (packages / "extra").mkdir()
    (packages / "extra" / "named_by_pth.py").write_text("")
    return venv


SET_PATH = """
import site
host_site = site.getsitepackages()
environment.set_environ({})
environment.set_path(pythonpath, venv, host_site, '/')
in_host_site = [folder for folder in sys.path if os.path.realpath(folder) in map(os.path.realpath, host_site)]
"""


def test_the_mounts_folders_come_first_and_the_hosts_packages_remain() -> None:
    result = in_interpreter(SET_PATH + "tell([sys.path, in_host_site])", pythonpath=["/x/one", "/x/two", "/x/one"], venv=None)

    path, in_host_site = result["told"][0]
    assert path[:2] == ["/x/one", "/x/two"]
    assert path.count("/x/one") == 1
    assert "" not in path
    assert in_host_site


def test_a_mount_with_a_venv_sees_its_packages_and_not_the_hosts(venv: Path) -> None:
    code = """
import only_in_venv, named_by_pth, json, ssl
try:
    import hypothesis
except ImportError:
    tell("no hypothesis")
tell([in_host_site, sys.prefix, sys.executable, os.environ["VIRTUAL_ENV"], sys.pth_ran])
"""
    result = in_interpreter(SET_PATH + code, pythonpath=["/x"], venv=str(venv))

    assert result["told"] == ["no hypothesis", [[], str(venv), str(venv / "bin" / "python"), str(venv), True]]
    assert result["python"]["VIRTUAL_ENV"] == os.environ.get("VIRTUAL_ENV")


def test_the_order_is_the_mounts_folders_then_the_library_then_the_venv(venv: Path) -> None:
    result = in_interpreter(SET_PATH + "tell([sys.path, json.__file__])", pythonpath=["/x"], venv=str(venv))

    path, library = result["told"][0]
    assert path[0] == "/x"
    assert path.index(str(Path(library).parent.parent)) < path.index(str(venv / "lib" / PYTHON / "site-packages"))


def test_a_venv_with_system_site_packages_sees_those_of_the_base_python(venv: Path) -> None:
    """As with its own interpreter: the base is what it was made from, not the environment that gunicorn runs in."""
    (venv / "pyvenv.cfg").write_text("home = /nowhere\ninclude-system-site-packages = TRUE\n")
    code = "tell([sys.path, [folder for folder in site.getsitepackages([sys.base_prefix]) if os.path.isdir(folder)]])"

    result = in_interpreter(SET_PATH + code, pythonpath=[], venv=str(venv))

    path, of_base = result["told"][0]
    assert set(of_base) <= set(path)


def test_what_the_hosts_pth_files_imported_is_forgotten_for_a_mount_with_a_venv(venv: Path, tmp_path: Path) -> None:
    """Such a module would be the host's version, and an import hook would find more of the host."""
    host = tmp_path / "host"
    host.mkdir()
    (host / "from_the_host.py").write_text("")
    code = """
sys.path.insert(0, host)
import from_the_host
class Hook:
    def find_spec(self, name, path=None, target=None): return None
sys.meta_path.insert(0, Hook())
environment.set_environ({})
environment.set_path([], venv, [host], '/')
tell(["from_the_host" in sys.modules, [type(finder).__name__ for finder in sys.meta_path if isinstance(finder, Hook)], host in sys.path])
"""
    result = in_interpreter(code, venv=str(venv), host=str(host))

    assert result["told"] == [[False, [], False]]


@pytest.mark.parametrize(("module", "variable"), [("gevent.monkey._state", "saved"), ("eventlet.patcher", "already_patched")])
def test_green_threads_are_named_where_they_may_be_the_cause(module: str, variable: str) -> None:
    """The errors that they lead to say nothing of them: "cannot release un-acquired lock", "module 'select' has no attribute 'epoll'"."""
    code = f"""
import types
tell(environment.green_threads())
sys.modules[{module!r}] = patcher = types.ModuleType({module!r})
patcher.{variable} = {{}}
tell(environment.green_threads())
patcher.{variable} = {{"socket": {{}}}}
tell(environment.green_threads())
"""
    before, imported, patched = in_interpreter(code)["told"]

    assert (before, imported) == ("", "")
    assert patched.startswith(f"; {module.partition('.')[0]} patched the standard library while the app was loaded")
