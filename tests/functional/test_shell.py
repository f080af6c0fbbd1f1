"""`isowsgi shell` on a real server: a console inside the app, for the operator alone, that ends with the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from isowsgi.shared.interpreters import PROCESS, best_isolation
from tests.command import call
from tests.conftest import DEADLINE_S, ROOT, Server, StartServer, eventually, shared_server

ISOLATIONS = [best_isolation(), PROCESS]
MOUNTS = "[mounts]\n" + "".join(f'"/{isolation}" = {{ app = "hello", isolation = "{isolation}" }}\n' for isolation in ISOLATIONS)


server = shared_server(MOUNTS + "[control]\nfolder = 'control'\nshell = true\n", wait_for=len(ISOLATIONS))


def begin(server: Server, isolation: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "isowsgi", "shell", f"/{isolation}"],
        cwd=server.folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def shell(server: Server, isolation: str, source: str) -> tuple[int, str, str]:
    """Type some lines; return the exit code and what was printed."""
    command = begin(server, isolation)
    out, err = command.communicate(source, timeout=DEADLINE_S)
    return command.returncode, out, err


def until(command: subprocess.Popen[str], said: str) -> None:
    """Read from a command until it has printed a line."""
    assert command.stdout is not None
    while said not in (line := command.stdout.readline()):
        assert line, "it has ended"


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_what_is_typed_is_executed_in_the_app(server: Server, isolation: str) -> None:
    source = """
import sys, os
callable(app), app.__module__
def twice(number):
    return 2 * number

twice(21)
print("to me"); print("and", "this", file=sys.stderr)
1 / 0
if True:
broken
"x" * (
    3)
sys.exit("no end")
os.getpid()
"""
    status, out, err = shell(server, isolation, source)

    assert (status, err) == (1, ""), "some of it failed"
    assert "(True, 'hello')\n42\nto me\nand this\n" in out
    assert 'File "<shell>", line 1, in <module>' in out
    assert "ZeroDivisionError: division by zero" in out
    assert "IndentationError" in out
    assert "'xxx'\n" in out
    assert "SystemExit: no end" in out
    pid = int(out.splitlines()[-1])
    assert (pid in server.workers()) == (isolation != PROCESS)
    assert f"/{isolation} #1: a shell is opened by the operator" in server.log()
    assert f"(uid {os.geteuid()}, pid " in server.log()
    assert "the operator's shell executes: twice(21)" in server.log()
    assert server.get(f"/{isolation}").status_code == 200


def test_a_session_ends_with_its_command_and_what_it_executes_is_interrupted(server: Server) -> None:
    command = begin(server, PROCESS)
    assert command.stdin is not None
    command.stdin.write("print('begins', flush=True)\nwhile True: pass\n\n")
    command.stdin.flush()
    until(command, "begins")
    busy = shell(server, PROCESS, "1\n")
    assert busy[0] == 1
    assert f"/{PROCESS} has a shell already" in busy[2]
    server.wait_for_log("the operator's shell executes: while True: pass")

    command.send_signal(signal.SIGKILL)
    command.communicate()

    eventually(lambda: shell(server, PROCESS, "6 * 7\n")[:2] == (0, "42\n"), "a second session")
    # The first one's thread has come out of its loop.
    names = "import threading; print([each.name for each in threading.enumerate()].count('isowsgi-shell'))\n"
    eventually(lambda: shell(server, PROCESS, names)[1] == "1\n", "the end of the first session's thread")


def test_a_session_ends_with_its_instance(server: Server) -> None:
    with begin(server, PROCESS) as command:
        assert command.stdin is not None
        assert command.stderr is not None
        command.stdin.write("print('begins')\n")
        command.stdin.flush()
        until(command, "begins")
        reloaded = call(server.folder, "reload", f"/{PROCESS}")
        assert reloaded.returncode == 0, reloaded.stderr
        server.wait_for_log(f"/{PROCESS} #1: ended")
        command.stdin.write("1\n")
        command.stdin.flush()

        assert "has ended" in command.stderr.readline()
    assert command.returncode == 1


def test_a_block_at_the_end_is_executed_and_what_is_not_is_told(server: Server) -> None:
    assert shell(server, PROCESS, "for number in range(2):\n    print(number)") == (0, "0\n1\n", "")
    assert shell(server, PROCESS, "exit()\n7 * 7\n") == (0, "", "")

    status, out, err = shell(server, PROCESS, f"len('{'x' * 10_000}')\n8 * 8\n")
    assert (status, out) == (1, "64\n")
    assert "expected at most 10000 characters" in err

    status, out, err = shell(server, PROCESS, "print(1)\nprint(\n")
    assert (status, out) == (1, "1\n")
    assert "the input ends within a statement, which was not executed" in err


def test_more_than_anyone_reads_is_cut(server: Server) -> None:
    _, out, _ = shell(server, PROCESS, "print('x' * 10_000_000)\n'goes on'\n")

    assert len(out) < 600_000
    assert out.endswith("(the rest is cut)\n'goes on'\n")


def test_there_is_no_shell_unless_the_config_allows_it(serve: StartServer) -> None:
    server = serve('[mounts]\n"/a" = "hello"\n[control]\nfolder = "control"')

    status, out, err = shell(server, "a", "1\n")

    assert (status, out) == (1, "")
    assert "shells are off: whoever may write to the config file can set [control] shell = true" in err
