"""The inside of an interpreter: what an app finds around it, and what of it is its own."""

from __future__ import annotations

import os
import re
import sysconfig
import textwrap
import time
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import APPS, DEADLINE_S, Server, StartServer, running_server
from tests.raw import Client


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two mounts that run what they are sent, and a mount for each test that needs another one, loaded by its first request."""
    config = f"""
        [defaults]
        pythonpath = ["{APPS}"]

        [mounts]
        "/a" = {{ app = "shell", env = {{ COLOUR = "red", ONLY_A = "1" }} }}
        "/b" = {{ app = "shell", env = {{ COLOUR = "blue" }} }}
        "/twice" = {{ app = "shell", instances = 2 }}
        "/exits" = {{ app = "exits_on_import", lazy = true }}
        "/plain" = {{ app = "site.wsgi", lazy = true }}
        "/named" = {{ app = "./site.wsgi:other", lazy = true }}
        "/made" = {{ app = './site.wsgi:make("something")', lazy = true }}
        "/dashed" = {{ app = "not-a-name.wsgi", lazy = true }}
        "/none" = {{ app = "factories:make()", lazy = true }}
        "/some" = {{ app = "factories:make('x', 1, key=[True, None])", lazy = true }}
        "/nothing" = {{ app = "factories:make_nothing()", lazy = true }}
        "/wrong" = {{ app = "factories:make_nothing(1)", lazy = true }}
        "/one" = {{ app = "hello:environ", threads = 1, lazy = true }}
        "/default" = {{ app = "hello:environ", lazy = true }}
        "/responses" = {{ app = "responses", threads = 2, lazy = true }}
        "/slow" = {{ app = "slow", threads = 2, lazy = true }}
        """
    files = {"site.wsgi": SCRIPT, "not-a-name.wsgi": SCRIPT}
    env = {"COLOUR": "grey", "FOR_ALL": "yes"}
    with running_server(tmp_path_factory.mktemp("inside"), config, env=env, files=files, wait_for=4) as server:
        yield server


def run(server: Server, mount: str, source: str) -> Any:
    """Run source in a mount's interpreter; return what it assigned to `answer`."""
    response = requests.post(server.url + mount, data=textwrap.dedent(source).encode(), timeout=DEADLINE_S)
    assert response.status_code == 200, server.log()
    return response.json()


# The environment.


def test_an_app_sees_the_process_variables_and_its_mounts(server: Server) -> None:
    source = "import os; answer = [os.environ.get(name) for name in ('COLOUR', 'ONLY_A', 'FOR_ALL')]"
    assert run(server, "/a", source) == ["red", "1", "yes"]
    assert run(server, "/b", source) == ["blue", None, "yes"]


def test_what_an_app_sets_neither_the_neighbour_nor_the_process_sees(server: Server) -> None:
    """CPython's own os.environ calls putenv(): two Djangos would get each other's settings module."""
    run(server, "/a", "import os; os.environ['NEW'] = 'a'; os.putenv('PUT', 'a'); os.environ.update(COLOUR='green')")

    source = """
        import ctypes, os
        getenv = ctypes.CDLL(None).getenv
        getenv.restype = ctypes.c_char_p
        names = ("NEW", "PUT", "COLOUR", "ONLY_A")
        answer = [[os.environ.get(name) for name in names], [(getenv(name.encode()) or b"").decode() for name in names]]
        """
    in_c = ["", "", "grey", ""]
    assert run(server, "/a", source) == [["a", "a", "green", "1"], in_c]
    assert run(server, "/b", source) == [[None, None, "blue", None], in_c]
    run(server, "/a", "import os; os.environ['COLOUR'] = 'red'")


def test_an_app_pays_for_no_library_that_only_gunicorns_own_workers_use(tmp_path: Path) -> None:
    """Most of these came with gunicorn's class of workers, of which an instance uses one function: 1.8 MiB a mount in all.

    The last ones came with the colours of tracebacks, which nobody sees, and with logging.config: a third of an instance's imports.
    """
    with running_server(tmp_path, '[mounts]\n"/" = "shell"\n') as server:
        source = """
            import sys
            unused = {"html.entities", "platform", "random", "ssl", "_ssl", "subprocess", "tempfile",
                "dataclasses", "inspect", "logging", "pickle", "socketserver", "traceback"}
            answer = sorted(unused & set(sys.modules))
            """
        assert run(server, "/", source) == []
        source = """
            import html, os, platform, random, ssl, subprocess, tempfile
            tempfile.TemporaryFile().close()
            os.environ["COLOUR"] = "red"
            printed = subprocess.check_output("echo $COLOUR", shell=True, text=True)
            answer = [html.unescape("&amp;"), platform.system(), random.randint(1, 1), printed, os.system("test $COLOUR = red")]
            """
        assert run(server, "/", source) == ["&", "Linux", 1, "red\n", 0]


def test_an_apps_own_tls_error_is_answered_as_gunicorn_does(tmp_path: Path) -> None:
    """Its map from exceptions to answers knows `ssl.SSLError`, which an instance has only once its app has imported `ssl`."""
    with running_server(tmp_path, '[mounts]\n"/" = "shell"\n') as server:
        statuses = [
            requests.post(server.url, data=source, timeout=DEADLINE_S).status_code
            for source in (b"raise OSError(1, '<&>')", b"import ssl\nraise ssl.SSLError(1, '<&>')", b"raise OSError(1, 'again')")
        ]
    assert statuses == [500, 403, 500]


def test_two_djangos_with_settings_of_their_own_and_sqlite(server: Server) -> None:
    source = """
        import os
        import django, django.conf
        memory = {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}
        django.conf.settings.configure(DATABASES={'default': memory}, SECRET_KEY=os.environ['COLOUR'])
        django.setup()
        from django.core.wsgi import get_wsgi_application
        from django.db import connection
        get_wsgi_application()
        with connection.cursor() as cursor:
            cursor.execute("SELECT 'a ' || %s", [django.conf.settings.SECRET_KEY])
            answer = cursor.fetchone()
        """
    assert run(server, "/a", source) == ["a red"]
    assert run(server, "/b", source) == ["a blue"]


def test_os_environb_is_the_same_environment(server: Server) -> None:
    source = """
        import os
        os.environb[b"BYTES"] = b"caf\\xc3\\xa9"
        os.environ["TEXT"] = "é"
        answer = [os.environ["BYTES"], os.environb[b"TEXT"] == "é".encode(), os.getenvb(b"TEXT") == "é".encode()]
        del os.environb[b"TEXT"]
        answer += ["TEXT" in os.environ, os.getenv("TEXT")]
        """
    assert run(server, "/a", source) == ["café", True, True, False, None]


def test_a_variable_can_be_deleted(server: Server) -> None:
    source = """
        import os, subprocess
        del os.environ["FOR_ALL"]
        answer = ["FOR_ALL" in os.environ, subprocess.check_output("echo $FOR_ALL", shell=True, text=True)]
        try:
            del os.environ["FOR_ALL"]
        except KeyError as exc:
            answer.append(str(exc))
        """
    assert run(server, "/a", source) == [False, "\n", "'FOR_ALL'"]
    assert run(server, "/b", "import os; answer = os.environ['FOR_ALL']") == "yes"


@pytest.mark.parametrize("mount", ["/a", "/b"])
def test_child_processes_of_every_kind_get_the_mounts_environment(server: Server, tmp_path: Path, mount: str) -> None:
    source = f"""
        import multiprocessing, os, subprocess, spawned
        answer = [subprocess.run(["printenv", "COLOUR"], capture_output=True, text=True).stdout.strip()]
        answer.append(os.popen("echo $COLOUR").read().strip())
        answer.append(os.system("echo $COLOUR > {tmp_path}/system; exit 3"))
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=spawned.report, args=(sender, "COLOUR"))
        process.start()
        answer.append(receiver.recv()[0])
        process.join()
        """
    colour = {"/a": "red", "/b": "blue"}[mount]
    assert run(server, mount, source) == [colour, colour, 3 << 8, colour]
    assert (tmp_path / "system").read_text() == colour + "\n"


# Modules.


def test_two_mounts_have_different_modules_of_the_same_name(serve: StartServer, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.py").write_text(f"NAME = {name!r}\n")
        (tmp_path / name / "site_app.py").write_text(
            "import settings\ndef application(environ, start_response):\n"
            "    start_response('200 OK', [])\n    return [settings.NAME.encode()]\n"
        )
    server = serve(
        f"""
        [mounts]
        "/one" = {{ app = "site_app", pythonpath = ["{tmp_path}/one"] }}
        "/two" = {{ app = "site_app", pythonpath = ["{tmp_path}/two"] }}
        """,
        wait_for=2,
    )

    assert [server.get(path).text for path in ("/one", "/two", "/one")] == ["one", "two", "one"]


def test_what_an_app_does_to_builtins_and_modules_stays_its_own(server: Server) -> None:
    run(
        server,
        "/a",
        """
        import builtins, json, sys, types
        builtins.left_behind = json.left_behind = 1
        sys.modules["made_up"] = types.ModuleType("made_up")
        sys.path.append("/made/up")
        sys.setrecursionlimit(2345)
        """,
    )

    source = """
        import builtins, json, sys
        answer = [hasattr(builtins, "left_behind"), hasattr(json, "left_behind"), "made_up" in sys.modules, "/made/up" in sys.path]
        """
    assert run(server, "/a", source) == [True] * 4
    assert run(server, "/b", source) == [False] * 4


def test_sys_argv_is_the_apps_name(server: Server) -> None:
    assert run(server, "/a", "import sys; answer = sys.argv") == ["shell"]


# Streams and logging.


def test_what_an_app_prints_is_in_the_log_with_its_mount(server: Server) -> None:
    run(server, "/a", "import sys; print('to', 'stdout', 1); print('to stderr 1', file=sys.stderr)")
    run(server, "/b", "environ['wsgi.errors'].write('to wsgi.errors\\nin two lines\\n')")

    server.wait_for_log(r"(?m)\[INFO\] /a #1: to stdout 1$")
    server.wait_for_log(r"(?m)\[WARNING\] /a #1: to stderr 1$")
    server.wait_for_log(r"(?m)\[WARNING\] /b #1: to wsgi.errors$")
    server.wait_for_log(r"(?m)\[WARNING\] /b #1: in two lines$")
    assert server.output() == ""


def test_lines_of_threads_that_print_at_once_stay_whole(server: Server) -> None:
    """print() writes each of its arguments, and the line's end, by a call of its own."""
    source = """
        import threading
        barrier = threading.Barrier(8)
        def work(number):
            barrier.wait()
            for line in range(50):
                print("whole", number, line, "x" * 100, "end")
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        """
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda mount: run(server, mount, source), ["/a", "/b"]))

    for mount in ("/a", "/b"):
        lines = server.wait_for_log(rf"(?m)^\[[^]]+\] \[\d+\] \[INFO\] {mount} #1: whole (\d) (\d+) x{{100}} end$", 400)
        assert len(set(lines)) == 400
    assert server.log().count("whole") == 800


def test_what_is_printed_without_a_line_end_is_in_the_log_when_the_request_ends(server: Server) -> None:
    run(server, "/a", "import sys; print('no end', end=''); sys.stderr.write('nor here')")

    server.wait_for_log(r"(?m)/a #1: no end$")
    server.wait_for_log(r"(?m)/a #1: nor here$")


def test_the_streams_answer_what_libraries_ask_of_them(server: Server) -> None:
    source = r"""
        import io, sys
        sys.stdout.buffer.write("bytes é\n".encode())
        sys.stdout.writelines(["by ", "pieces\n"])
        sys.stdout.flush()
        wrapped = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", line_buffering=True)
        wrapped.write("wrapped\n")
        del wrapped  # closes what it wraps
        print("still there")
        streams = (sys.stdout, sys.stderr)
        answer = [[s.fileno(), s.isatty(), s.writable(), s.encoding, s.name, s.closed] for s in streams]
        """
    assert run(server, "/a", source) == [
        [1, False, True, "utf-8", "<stdout>", False],
        [2, False, True, "utf-8", "<stderr>", False],
    ]
    for line in ("bytes é", "by pieces", "wrapped", "still there"):
        server.wait_for_log(rf"(?m)/a #1: {line}$")


def test_input_is_at_its_end(server: Server) -> None:
    """An app that asks a question must not wait for the terminal that started gunicorn, nor take its keys."""
    source = """
        import sys
        try:
            answer = input("Your name? ")
        except EOFError:
            answer = ["EOFError", sys.stdin.read(), sys.stdin.readline(), list(sys.stdin)]
        """
    assert run(server, "/a", source) == ["EOFError", "", "", []]
    server.wait_for_log(r"(?m)/a #1: Your name\? $")


def test_logging_works_as_the_app_configures_it(server: Server) -> None:
    source = """
        import logging, warnings
        logging.basicConfig(level=logging.INFO, format="%(levelname)s by logging: %(message)s", force=True)
        logging.getLogger("some.library").info("informed")
        logging.captureWarnings(True)
        warnings.warn("be warned")
        logging.captureWarnings(False)
        """
    run(server, "/a", source)

    server.wait_for_log(r"(?m)/a #1: INFO by logging: informed$")
    server.wait_for_log(r"(?m)/a #1: WARNING by logging: .*be warned")
    assert run(server, "/b", "import logging; answer = logging.getLogger().handlers") == []


def test_an_app_that_disables_all_loggers_does_not_silence_gunicorns(serve: StartServer) -> None:
    """Django's default settings do so, when it is loaded; others only when the first request comes."""
    server = serve('[mounts]\n"/" = "reconfigures_logging"', "--access-logfile", "access.log")

    for path, name in [("/", "first"), ("/again", "second"), ("/", "third")]:
        assert server.get(f"{path}?{name}").status_code == 500
        server.wait_for_log(rf"(?m)/ #1: app says info of {name}$")
        server.wait_for_log(rf"(?m)/ #1: printed: {name}$")
        server.wait_for_log(
            rf"(?m)/ #1: Error handling request GET {re.escape(path)}\?{name}\n(?:.*\n)+?  \| RuntimeError: raised: {name}$"
        )
        assert f"?{name} HTTP/1.1" in (server.folder / "access.log").read_text()


# Exits and threads.


def test_an_app_that_exits_on_import_fails_alone_and_the_log_says_so(server: Server) -> None:
    assert server.get("/exits").status_code == 503

    server.wait_for_log(r"\[ERROR\] /exits #1: cannot load 'exits_on_import:application': SystemExit: no database is configured\n")
    server.wait_for_log(r"(?m)^  \|     sys.exit\(\"no database is configured\"\)$")
    server.wait_for_log(r"(?m)/exits #1: printed before the end$")
    assert run(server, "/a", "answer = 1") == 1


def test_daemon_threads_of_an_app_run_and_do_not_keep_the_server_from_ending(serve: StartServer) -> None:
    server = serve('[mounts]\n"/" = "background"', "--graceful-timeout", "600")  # longer than `stop` waits

    assert server.get("/?one").text == "background: one"
    assert server.get("/?two").text == "background: two"
    assert server.stop() == 0
    assert "Traceback" not in server.log() + server.output()


def test_an_app_may_use_threads_pools_and_event_loops(server: Server) -> None:
    source = """
        import asyncio, threading
        from concurrent.futures import ThreadPoolExecutor
        async def double(number):
            await asyncio.sleep(0)
            return await asyncio.to_thread(lambda: number * 2)
        async def main():
            return await asyncio.gather(*map(double, range(4)))
        with ThreadPoolExecutor(4) as pool:
            answer = list(pool.map(lambda number: number * 2, range(4))) + asyncio.run(main())
        local = threading.local()
        local.value = "seen"
        threading.Thread(target=lambda: answer.append(hasattr(local, "value"))).start()
        """
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda mount: run(server, mount, source), ["/a", "/b"] * 4))
    assert [answer[:8] for answer in answers] == [[0, 2, 4, 6] * 2] * 8


def test_app_code_runs_in_threads_born_in_its_interpreter(server: Server) -> None:
    """Not on the keeper's, where extensions that use PyGILState find the main interpreter."""
    source = """
        import threading
        current = threading.current_thread()
        answer = [type(current).__name__, current.name.startswith("isowsgi-"), current is threading.main_thread()]
        """
    assert run(server, "/a", source) == ["Thread", True, False]


# Apps as scripts and from factories.

SCRIPT = """
import os, sys
NAME = os.path.basename(__file__)
class Kept: ...
def _answer(start_response, word):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{word} of {NAME}, {sys.argv[0] == __file__}, {Kept.__module__ in sys.modules}".encode()]
def application(environ, start_response):
    return _answer(start_response, "application")
def other(environ, start_response):
    return _answer(start_response, "other")
def make(word):
    return lambda environ, start_response: _answer(start_response, word)
"""


def test_a_script_file_is_an_app_as_for_mod_wsgi(server: Server) -> None:
    assert server.get("/plain").text == "application of site.wsgi, True, True"
    assert server.get("/named").text == "other of site.wsgi, True, True"
    assert server.get("/made").text == "something of site.wsgi, True, True"
    assert server.get("/dashed").text == "application of not-a-name.wsgi, True, True"


def test_a_factory_is_called_with_its_arguments(server: Server) -> None:
    assert server.get("/none").text == "((), {})"
    assert server.get("/some").text == "(('x', 1), {'key': [True, None]})"
    assert (server.get("/nothing").status_code, server.get("/wrong").status_code) == (503, 503)
    server.wait_for_log(r"/nothing #1: cannot load 'factories:make_nothing\(\)': .*")
    server.wait_for_log(r"/wrong #1: cannot load .* make_nothing\(\) takes 0 positional arguments but 1 was given")


# Virtual environments.


def make_venv(folder: Path, version: str) -> None:
    """Make a venv by hand that holds a package of some version, .pth files of three kinds, and impostors of the server's packages."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    packages = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder)}))
    files = {
        packages / "shared_dep" / "__init__.py": f"__version__ = {version!r}\n",
        packages / f"shared_dep-{version}.dist-info" / "METADATA": f"Metadata-Version: 2.1\nName: shared-dep\nVersion: {version}\n",
        packages / "path.pth": f"# a comment\n{folder}/elsewhere\n{folder}/not-there\n",
        folder / "elsewhere" / "from_elsewhere.py": f"VERSION = {version!r}\n",
        packages / "line.pth": "import sys; sys.prefix_in_pth = sys.prefix\n",
        packages / "__editable__.project-1.pth": "import __editable___project_finder; __editable___project_finder.install()\n",
        packages / "__editable___project_finder.py": f"""
import importlib.util, sys
class Finder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, "{folder}/src/project.py") if name == "project" else None
def install():
    sys.meta_path.append(Finder)
""",
        folder / "src" / "project.py": f"VERSION = {version!r}\n",
        packages / "gunicorn" / "__init__.py": "raise ImportError('the impostor')\n",
        packages / "isowsgi" / "__init__.py": "raise ImportError('the impostor')\n",
    }
    for path, text in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


@pytest.fixture(scope="module")
def venvs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two mounts in venvs of their own, and one without."""
    folder = tmp_path_factory.mktemp("venvs")
    make_venv(folder / "one", "1.0")
    make_venv(folder / "two", "2.0")
    config = f"""
        [mounts]
        "/one" = {{ app = "shell", venv = "{folder}/one" }}
        "/two" = {{ app = "shell", venv = "{folder}/two" }}
        "/host" = "shell"
        """
    with running_server(folder, config, wait_for=3) as server:
        yield server


@pytest.mark.parametrize(("mount", "version"), [("/one", "1.0"), ("/two", "2.0")])
def test_each_venv_gives_its_own_version_of_a_package(venvs: Server, mount: str, version: str) -> None:
    source = "import importlib.metadata, shared_dep; answer = [shared_dep.__version__, importlib.metadata.version('shared-dep')]"
    assert run(venvs, mount, source) == [version] * 2


def test_a_mount_without_a_venv_has_the_hosts_packages_and_no_ones_venv(venvs: Server) -> None:
    source = """
        import importlib.util, sys
        names = ("requests", "flask", "shared_dep", "from_elsewhere", "project")
        answer = [[bool(importlib.util.find_spec(name)) for name in names], hasattr(sys, "prefix_in_pth")]
        """
    assert run(venvs, "/host", source) == [[True, True, False, False, False], False]


@pytest.mark.parametrize(("mount", "version"), [("/one", "1.0"), ("/two", "2.0")])
def test_pth_files_of_a_venv_do_what_they_do_for_its_own_python(venvs: Server, mount: str, version: str) -> None:
    """A path, a line of code (which sees the venv's prefix already), and the finder of an editable install."""
    source = """
        import from_elsewhere, os, project, sys
        there = [path for path in sys.path if path.endswith("not-there")]
        answer = [from_elsewhere.VERSION, project.VERSION, sys.prefix_in_pth == sys.prefix, os.path.basename(sys.prefix), there]
        """
    assert run(venvs, mount, source) == [version, version, True, mount[1:], []]


def test_a_mount_with_a_venv_has_nothing_of_the_hosts_packages(venvs: Server) -> None:
    source = """
        import importlib.util, sys
        names = ("requests", "flask", "django", "attrs", "attr", "cattrs", "werkzeug", "dotenv", "packaging", "pytest", "pip")
        answer = [[name for name in names if importlib.util.find_spec(name)], [path for path in sys.path if "site-packages" in path]]
        """
    found, paths = run(venvs, "/one", source)
    assert found == []
    assert [Path(path).is_relative_to(venvs.folder / "one") for path in paths] == [True]


def test_impostors_in_a_venv_do_not_replace_the_server(venvs: Server) -> None:
    """Also not where the server imports a part of itself late, as for the page of an error."""
    source = "import gunicorn, gunicorn.util, isowsgi; answer = [gunicorn.__file__, isowsgi.__file__]"
    assert run(venvs, "/one", source) == run(venvs, "/host", source)
    assert requests.post(venvs.url + "/one", data=b"1 / 0", timeout=DEADLINE_S).status_code == 500
    venvs.wait_for_log(r"/one #1: Error handling request POST /one\n(?:.*\n)+?  \| ZeroDivisionError")
    with Client(venvs) as client:
        client.send("POST /one HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n")
        assert client.answer().status == 400


def test_an_app_in_a_venv_believes_that_it_runs_by_the_venvs_python(venvs: Server) -> None:
    source = """
        import os, subprocess, sys, sysconfig
        child = "import shared_dep, sys; print(shared_dep.__version__, sys.prefix)"
        answer = {
            "prefix": sys.prefix,
            "exec_prefix": sys.exec_prefix,
            "executable": sys.executable,
            "is a venv": sys.prefix != sys.base_prefix,
            "packages": sysconfig.get_path("purelib"),
            "VIRTUAL_ENV": os.environ["VIRTUAL_ENV"],
            "child": subprocess.check_output([sys.executable, "-c", child], text=True),
        }
        """
    folder = str(venvs.folder / "two")
    assert run(venvs, "/two", source) == {
        "prefix": folder,
        "exec_prefix": folder,
        "executable": f"{folder}/bin/python",
        "is a venv": True,
        "packages": sysconfig.get_path("purelib", "venv", vars={"base": folder}),
        "VIRTUAL_ENV": folder,
        "child": f"2.0 {folder}\n",
    }


def test_processes_of_multiprocessing_run_by_the_venvs_python(venvs: Server) -> None:
    source = f"""
        import multiprocessing, sys
        sys.path.append("{APPS}")
        import spawned
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=spawned.report, args=(sender, "VIRTUAL_ENV"))
        process.start()
        answer = receiver.recv()
        process.join()
        """
    assert run(venvs, "/one", source) == [str(venvs.folder / "one")] * 2


# Instances and threads.


def test_two_instances_are_two_interpreters(server: Server) -> None:
    source = """
        import builtins, uuid
        builtins.mark = getattr(builtins, "mark", None) or uuid.uuid4().hex
        print("mark", builtins.mark)
        answer = [builtins.mark, environ["wsgi.multiprocess"]]
        """
    answers = [run(server, "/twice", source) for _ in range(6)]

    assert len({mark for mark, _ in answers}) == 2
    assert all(multiprocess for _, multiprocess in answers)
    for letter in "ab":
        server.wait_for_log(rf"/twice #1{letter}: mark ", 3)


def test_a_mount_has_as_many_threads_as_are_set(serve: StartServer) -> None:
    """A barrier for so many requests lets them through; one for one more waits in vain."""
    server = serve(
        """
        [mounts]
        "/three" = { app = "barrier", threads = 3 }
        "/gunicorns" = "barrier"
        "/one" = { app = "barrier", threads = 1 }
        """,
        "--threads",
        "2",
        wait_for=3,
    )

    def together(mount: str, count: int, seconds: float) -> set[str]:
        with ThreadPoolExecutor(count) as pool:
            return set(pool.map(lambda _: server.get(f"{mount}?{count}&{seconds}").text, range(count)))

    for mount, count in [("/three", 3), ("/gunicorns", 2), ("/one", 1)]:
        assert together(mount, count, DEADLINE_S) == {"together"}
        assert together(mount, count + 1, 0.3) == {"in turn"}


def test_threads_are_what_the_app_is_told(server: Server) -> None:
    assert server.get("/one").json()["wsgi.multithread"] is False
    assert server.get("/default").json()["wsgi.multithread"] is True
    assert server.get("/default").json()["wsgi.multiprocess"] is False


def test_a_request_that_waits_hardly_delays_the_next_one_of_its_mount(server: Server) -> None:
    """A standby thread takes over after about two ticks of 2 ms; the bound is for a busy machine, the best of five for a hiccup.

    Without one the first request would wait for the second for ever, as it is that which lets it go.
    """
    waits = []
    for _ in range(5):
        with Client(server) as waiting, Client(server) as next_one:
            waiting.send("GET /responses/streams HTTP/1.1\r\nHost: x\r\n\r\n")
            waiting.head()
            assert waiting.chunk() == b"first"
            started = time.monotonic()
            next_one.ask("/responses/release")
            waits.append(time.monotonic() - started)
            assert waiting.chunk() == b"second"

    assert min(waits) < 1.0


def test_requests_wait_for_a_thread_in_the_order_they_came(server: Server) -> None:
    """None is lost or starved when there are far more of them than threads."""
    with ThreadPoolExecutor(30) as pool:
        assert set(pool.map(lambda _: server.get("/slow?s=0.02").status_code, range(60))) == {200}


def test_the_environ_names_mount_generation_and_isolation(server: Server) -> None:
    source = "answer = [environ[key] for key in ('isowsgi.mount', 'isowsgi.generation', 'isowsgi.isolation', 'SCRIPT_NAME')]"
    mount, generation, isolation, script_name = run(server, "/a", source)
    assert (mount, generation, script_name) == ("/a", 1, "/a")
    assert isolation in ("own-gil", "shared-gil")


def test_the_working_directory_is_the_process(server: Server) -> None:
    assert run(server, "/a", "import os; answer = os.getcwd()") == os.fspath(server.folder)
