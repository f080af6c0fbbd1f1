"""What one app changes, and who sees it: the table of docs/explanation/isolation.md, each cell tried out between two mounts.

The page is what is expected here. A cell says "own" (the app sees the change, its neighbour with the same isolation does not),
"shared" (both do) or "fixed" (neither does).
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import requests

from isowsgi.shared import interpreters
from tests.conftest import DEADLINE_S, ROOT, Server, running_server

PAGE = ROOT / "docs/explanation/isolation.md"

ISOLATIONS = ("own-gil", "shared-gil", "process", "main")

HAS_OWN_GIL = not (interpreters.own_gil_error() or interpreters.own_gil_warning())


class Claim(NamedTuple):
    change: str  # done by one app; what it assigns to `answer` the others find in `before`
    look: str  # assigns to `answer` whether the change is seen
    undo: str  # done by the same app


MEMORY = """
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        try:
            memory.seek(before[0])
            answer = memory.read(len(before[1])) == before[1].encode()
        except (OSError, ValueError):  # nothing is there
            answer = False
    """

CLAIMS = {
    "modules": Claim(
        "import json, sys, types; json.left = 1; sys.modules['made_up'] = types.ModuleType('made_up')",
        "import json, sys; answer = hasattr(json, 'left') and 'made_up' in sys.modules",
        "import json, sys; del json.left, sys.modules['made_up']",
    ),
    "builtins": Claim(
        "import builtins; builtins.left = 1",
        "import builtins; answer = hasattr(builtins, 'left')",
        "import builtins; del builtins.left",
    ),
    "`sys.path`": Claim(
        "import sys; sys.path.append('/made/up')",
        "import sys; answer = '/made/up' in sys.path",
        "import sys; sys.path.remove('/made/up')",
    ),
    "`os.environ`": Claim(
        "import os; os.environ['LEFT'] = 'yes'",
        "import os, subprocess; answer = 'LEFT' in os.environ and subprocess.check_output('echo $LEFT', shell=True) == b'yes\\n'",
        "import os; del os.environ['LEFT']",
    ),
    "environment as C sees it": Claim(
        "import os; os.environ['LEFT'] = 'yes'",
        """
        import ctypes
        getenv = ctypes.CDLL(None).getenv
        getenv.restype = ctypes.c_char_p
        answer = getenv(b"LEFT") is not None
        """,
        "import os; del os.environ['LEFT']",
    ),
    "standard streams": Claim(
        "import sys; sys.stdout_before = sys.stdout; sys.stdout = sys.stderr",
        "import sys; answer = sys.stdout is sys.stderr",
        "import sys; sys.stdout = sys.stdout_before; del sys.stdout_before",
    ),
    "logging": Claim(
        "import logging; logging.getLogger('left').setLevel(7)",
        "import logging; answer = logging.getLogger('left').level == 7",
        "import logging; logging.getLogger('left').setLevel(0)",
    ),
    "threads": Claim(
        "import sys, threading; sys.left = threading.Event(); "
        "sys.left.thread = threading.Thread(target=sys.left.wait, name='left'); sys.left.thread.start()",
        "import threading; answer = 'left' in [thread.name for thread in threading.enumerate()]",
        "import sys; sys.left.set(); sys.left.thread.join(); del sys.left",
    ),
    "garbage collector": Claim(
        "import gc; answer = gc.get_threshold(); gc.set_threshold(701, *answer[1:])",
        "import gc; answer = gc.get_threshold()[0] == 701",
        "import gc; gc.set_threshold(*before)",
    ),
    "recursion limit": Claim(
        "import sys; answer = sys.getrecursionlimit(); sys.setrecursionlimit(2345)",
        "import sys; answer = sys.getrecursionlimit() == 2345",
        "import sys; sys.setrecursionlimit(before)",
    ),
    "`socket.setdefaulttimeout`": Claim(
        "import socket; socket.setdefaulttimeout(1234.0)",
        "import socket; answer = socket.getdefaulttimeout() == 1234.0",
        "import socket; socket.setdefaulttimeout(None)",
    ),
    "`sys.set_int_max_str_digits`": Claim(
        "import sys; answer = sys.get_int_max_str_digits(); sys.set_int_max_str_digits(4999)",
        "import sys; answer = sys.get_int_max_str_digits() == 4999",
        "import sys; sys.set_int_max_str_digits(before)",
    ),
    "`sys.setswitchinterval`": Claim(
        "import sys; answer = sys.getswitchinterval(); sys.setswitchinterval(0.004)",
        "import sys; answer = round(sys.getswitchinterval(), 6) == 0.004",
        "import sys; sys.setswitchinterval(before)",
    ),
    "memory": Claim(
        "import ctypes, sys; sys.left = ctypes.create_string_buffer(b'a secret of its own'); "
        "answer = [ctypes.addressof(sys.left), sys.left.value.decode()]",
        MEMORY,
        "import sys; del sys.left",
    ),
    "variables of C libraries": Claim(
        "import ctypes; variable = ctypes.c_int.in_dll(ctypes.CDLL(None), 'opterr'); answer = variable.value; variable.value = 77",
        "import ctypes; answer = ctypes.c_int.in_dll(ctypes.CDLL(None), 'opterr').value == 77",
        "import ctypes; ctypes.c_int.in_dll(ctypes.CDLL(None), 'opterr').value = before",
    ),
    "file descriptors": Claim(
        "import os; answer = os.memfd_create('left'); os.write(answer, b'what it says')",
        """
        import os
        try:
            answer = os.pread(before, 100, 0) == b"what it says"
        except OSError:
            answer = False
        """,
        "import os; os.close(before)",
    ),
    "process id": Claim("import os; answer = os.getpid()", "import os; answer = os.getpid() == before", ""),
    "working directory": Claim(
        "import os; answer = os.getcwd(); os.chdir('/')",
        "import os; answer = os.getcwd() == '/'",
        "import os; os.chdir(before)",
    ),
    "umask": Claim(
        "import os; answer = os.umask(0o35)",
        "answer = 'Umask:\\t0035\\n' in open('/proc/self/status')",
        "import os; os.umask(before)",
    ),
    "locale": Claim(
        "import locale; answer = locale.setlocale(locale.LC_MONETARY); locale.setlocale(locale.LC_MONETARY, 'C.UTF-8')",
        "import locale; answer = locale.setlocale(locale.LC_MONETARY) == 'C.UTF-8'",
        "import locale; locale.setlocale(locale.LC_MONETARY, before)",
    ),
    "time zone": Claim(
        "import os, time; os.environ['TZ'] = 'XYZ-7'; time.tzset()",
        "import time; answer = time.localtime().tm_gmtoff == 7 * 3600",
        "import os, time; del os.environ['TZ']; time.tzset()",
    ),
    "resource limits": Claim(
        "import resource as r; answer = r.getrlimit(r.RLIMIT_NOFILE); r.setrlimit(r.RLIMIT_NOFILE, (answer[0] - 1, answer[1]))",
        "import resource as r; answer = r.getrlimit(r.RLIMIT_NOFILE)[0] == before[0] - 1",
        "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, tuple(before))",
    ),
    "user and group": Claim(
        "import os; answer = os.getegid(); os.setegid(12345)",
        "import os; answer = os.getegid() == 12345",
        "import os; os.setegid(before)",
    ),
}


def rows() -> dict[str, dict[str, str]]:
    """Return the page's table: what each isolation's cell says, by what is changed."""
    [table] = re.findall(r"^\| what an app changes \|.*?(?=\n\n)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    isolations = [title.strip("`") for title in head[1:5]]
    return {line[0]: dict(zip(isolations, line[1:5], strict=True)) for line in lines}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two mounts in each kind of isolation, all of which run what they are sent."""
    isolations = [isolation for isolation in ISOLATIONS if isolation != "own-gil" or HAS_OWN_GIL]
    lines = [f'"/{isolation}/a" = {{ app = "shell", isolation = "{isolation}", env = {{ SECRET = "a\'s" }} }}' for isolation in isolations]
    lines += [f'"/{isolation}/b" = {{ app = "shell", isolation = "{isolation}" }}' for isolation in isolations]
    instances = 2 * len(isolations) - 1  # the main interpreter is one
    config = "[mounts]\n" + "\n".join(lines)
    # By a launcher: a process that was forked shows the environment of another one.
    with running_server(tmp_path_factory.mktemp("walls"), config, env={"TZ": "UTC"}, wait_for=instances, launcher=["env"]) as server:
        yield server


def run(server: Server, mount: str, source: str, before: Any = None) -> Any:
    text = f"before = {before!r}\n{textwrap.dedent(source)}"
    response = requests.post(server.url + mount, data=text.encode(), timeout=DEADLINE_S)
    assert response.status_code == 200, server.log()
    return response.json()


def skip_without_own_gil(isolation: str) -> None:
    if isolation == "own-gil" and not HAS_OWN_GIL:
        pytest.skip("an own GIL is not sound on this Python")


def test_the_page_has_a_row_for_each_claim() -> None:
    assert list(rows()) == list(CLAIMS)
    assert all(list(cells) == list(ISOLATIONS) for cells in rows().values())


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("changed", CLAIMS)
def test_a_change_is_seen_where_the_page_says_so(server: Server, changed: str, isolation: str) -> None:
    skip_without_own_gil(isolation)
    if changed == "user and group" and os.geteuid() != 0:
        pytest.skip("only root can change them")
    change, look, undo = CLAIMS[changed]

    before = run(server, f"/{isolation}/a", change)
    try:
        seen = [run(server, f"/{isolation}/{name}", look, before) for name in ("a", "b")]
    finally:
        run(server, f"/{isolation}/a", undo, before)

    said = rows()[changed][isolation]
    if changed == "`socket.setdefaulttimeout`" and isolation == "shared-gil" and interpreters.VERSION < (3, 12):
        said = "shared"  # as the page's remark has it
    assert {"own": [True, False], "shared": [True, True], "fixed": [False, False]}[said] == seen
    assert [run(server, f"/{isolation}/{name}", look, before) for name in ("a", "b")] == [False, False] or not undo


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_priority_is_the_calling_threads(server: Server, isolation: str) -> None:
    """On Linux `nice` counts for a thread and those that it starts, although POSIX says for the process."""
    skip_without_own_gil(isolation)
    source = """
        import os, threading
        def work():
            os.nice(1)
            answer.append(os.getpriority(os.PRIO_PROCESS, 0))
            answer.append(min(os.getpriority(os.PRIO_PROCESS, int(task)) for task in os.listdir("/proc/self/task")))
        answer = [os.getpriority(os.PRIO_PROCESS, 0)]
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        answer.append(os.getpriority(os.PRIO_PROCESS, 0))
        """
    usual, own, least, after = run(server, f"/{isolation}/a", source)

    assert (own, least, after) == (usual + 1, usual, usual)


@pytest.mark.parametrize("isolation", ["own-gil", "shared-gil", "main"])
def test_an_app_can_overwrite_a_neighbours_memory(server: Server, isolation: str) -> None:
    """No security boundary: two lines of ctypes are enough."""
    skip_without_own_gil(isolation)
    make = "import ctypes, sys; sys.mine = ctypes.create_string_buffer(b'mine'); answer = ctypes.addressof(sys.mine)"
    address = run(server, f"/{isolation}/a", make)

    run(server, f"/{isolation}/b", f"import ctypes; ctypes.memmove({address}, b'gone', 4)")

    assert run(server, f"/{isolation}/a", "import sys; answer = sys.mine.value.decode(); del sys.mine") == "gone"


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_the_process_shows_what_it_was_started_with_and_not_what_a_mount_was_given(server: Server, isolation: str) -> None:
    skip_without_own_gil(isolation)
    source = """
        import os, subprocess
        started_with = open("/proc/self/environ", "rb").read()
        child = subprocess.check_output(["env"], text=True)
        answer = [b"TZ=UTC" in started_with, b"SECRET" in started_with, "SECRET=a's" in child]
        """
    assert run(server, f"/{isolation}/a", source) == [True, False, True]
    assert run(server, f"/{isolation}/b", source) == [True, False, isolation == "main"]


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_apps_of_every_isolation_are_in_one_cgroup_and_belong_to_one_user(server: Server, isolation: str) -> None:
    skip_without_own_gil(isolation)
    source = "import os; answer = [open('/proc/self/cgroup').read(), os.getresuid(), os.getresgid(), os.getgroups(), os.getsid(0)]"

    assert run(server, f"/{isolation}/a", source) == run(server, "/shared-gil/a", source)
