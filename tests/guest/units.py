"""The units of deploy/systemd as they are shipped, under a real systemd, with limits by control groups.

The machine is emulated and has one core: nothing here measures time, and each wait is for a condition.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from isowsgi.cli.main import main as command

CARRIED = Path(__file__).parent.parent

GROUPS = Path("/sys/fs/cgroup/system.slice/isowsgi.service")
CONFIG = Path("/etc/isowsgi/isowsgi.toml")

# How often a condition is looked at. The machine is emulated, on one that others may keep busy: then a look takes seconds, and so does
# what is waited for. So what counts is looks, and no time.
LOOKS = 2000

# The same for what a look waits for itself, and for what the service is given time for: it is there for what hangs.
LONG_S = 1800.0

# How often a limit of memory is reached in a row. Each time takes seconds here, since its process must start again.
HITS = 20 if os.environ.get("ISOWSGI_WHOLE") else 2

TIMES = "".join(f"{name} = {LONG_S:.0f}\n" for name in ("boot_timeout", "request_timeout", "queue_timeout"))

MOUNTS = """
[mounts]
"/" = "apps:hello"
"/free" = { app = "apps:hog", isolation = "process" }

[mounts."/small"]
app = "apps:hog"
limits = { memory = "64M" }

[mounts."/hog"]
app = "apps:hog"
threads = 2
limits = { memory = "128M", cpu = 0.5, processes = 24 }
"""

KILLED = "killed at its memory limit of 64M while serving GET /small/memory"

T = TypeVar("T")


def eventually(condition: Callable[[], T | None], what: str) -> T:
    began = time.monotonic()
    for _ in range(LOOKS):
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"looked {LOOKS} times in {time.monotonic() - began:.0f} s for {what}\n{journal()[-5000:]}")


def run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def systemctl(*arguments: str) -> str:
    try:
        return run("systemctl", *arguments)
    except subprocess.CalledProcessError as exc:
        raise AssertionError(f"{exc}\n{journal()[-5000:]}") from exc


def journal() -> str:
    run("journalctl", "--sync")
    return run("journalctl", "-u", "isowsgi", "-o", "cat", "--no-pager")


def shown(name: str) -> str:
    return systemctl("show", "isowsgi", f"--property={name}", "--value").strip()


def get(path: str) -> tuple[int, Any]:
    """Ask as nginx does, by the socket of the unit."""
    connection = http.client.HTTPConnection("localhost", timeout=LONG_S)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(LONG_S)
    connection.sock.connect("/run/isowsgi.sock")
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        return response.status, json.loads(body) if response.status == 200 else body
    finally:
        connection.close()


def facts(path: str) -> dict[str, Any]:
    """Return what the app says of its process, once it serves."""

    def said() -> Any:
        status, body = get(path)
        return body if status == 200 else None

    found: dict[str, Any] = eventually(said, f"an answer from {path}")
    return found


def groups() -> list[Path]:
    return sorted(GROUPS.glob("mount-*"))


def group_of(path: str) -> Path:
    return Path("/sys/fs/cgroup", str(facts(path)["cgroup"]).lstrip("/"))


def start(pattern: str) -> None:
    """Do what `isowsgi start` does, if there is anything to do; in this process, as another Python takes seconds to start."""
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        command(["start", pattern, "--config", str(CONFIG)])


def use_of(mount: str) -> dict[str, Any]:
    """Return what `isowsgi status` says of a mount's control group."""
    [worker] = json.loads(run("/opt/isowsgi/bin/isowsgi", "status", "--json", "--config", str(CONFIG)))["workers"]
    [found] = [each for each in worker["mounts"] if each["mount"] == mount]
    use: dict[str, Any] = found["instances"][0]["control_group"]
    return use


def install(python: Path) -> None:
    """Make the venv that the units expect, with what was carried here: the service sees neither /tmp nor homes."""
    run(sys.executable, "-m", "venv", "--without-pip", str(python))
    [site] = python.glob("lib/python*/site-packages")
    run("mount", "--bind", str(CARRIED / "site"), str(site))
    run(sys.executable, "-m", "compileall", "-q", "-x", "pygments/lexers|pytest", str(site))
    for name, module in (("gunicorn", "gunicorn.app.wsgiapp:run"), ("isowsgi", "isowsgi.cli.entry:main")):
        package, _, function = module.partition(":")
        script = python / "bin" / name
        script.write_text(f"#!{python}/bin/python3\nimport sys\nfrom {package} import {function}\nsys.exit({function}())\n")
        script.chmod(0o755)


@pytest.fixture(scope="session", autouse=True)
def service() -> Iterator[None]:
    """The installation of the page about deployment, with apps of its own."""
    run("useradd", "--system", "--user-group", "isowsgi")
    install(Path("/opt/isowsgi"))
    CONFIG.parent.mkdir()
    shutil.copy(CARRIED / "deploy" / "gunicorn.conf.py", CONFIG.parent)
    Path("/srv/apps").mkdir()
    shutil.copy(CARRIED / "tests" / "apps.py", "/srv/apps")
    CONFIG.write_text(f'[defaults]\npythonpath = "/srv/apps"\n{TIMES}{MOUNTS}')
    with CONFIG.with_name("gunicorn.conf.py").open("a") as settings:
        settings.write(f"timeout = {LONG_S:.0f}\n")
    drop_in = Path("/etc/systemd/system/isowsgi.service.d/times.conf")
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nTimeoutStartSec=infinity\n")  # 90 s were not enough where others had the processor
    shutil.copy(CARRIED / "deploy" / "logrotate" / "isowsgi", "/etc/logrotate.d/isowsgi")
    for unit in ("isowsgi.service", "isowsgi.socket"):
        shutil.copy(CARRIED / "deploy" / "systemd" / unit, "/etc/systemd/system")
    systemctl("daemon-reload")
    systemctl("start", "isowsgi.service")
    yield
    print(journal()[-5000:])


class Neighbour:
    """Asks another mount of the same worker for as long as the block lasts."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Neighbour:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._is_over.is_set():
            try:
                self.statuses.append(get("/")[0])
            except OSError:
                self.statuses.append(0)


def test_a_process_with_limits_is_in_a_group_of_its_own_and_gunicorn_and_the_others_beside_it() -> None:
    hog, free = facts("/hog"), facts("/free")

    group = Path("/sys/fs/cgroup") / hog["cgroup"].lstrip("/")
    assert (group.parent, group.name.endswith("-hog")) == (GROUPS, True)
    assert (group / "cgroup.procs").read_text().split() == [str(hog["pid"])]
    wanted = {"memory.max": "134217728", "memory.oom.group": "1", "cpu.max": "50000 100000", "pids.max": "24"}
    assert {name: (group / name).read_text().strip() for name in wanted} == wanted
    assert free["cgroup"].endswith("/isowsgi.service/gunicorn")
    assert shown("MainPID") in (GROUPS / "gunicorn" / "cgroup.procs").read_text().split()
    assert (GROUPS / "cgroup.procs").read_text() == ""
    assert hog["uid"] != 0
    assert "no effect" not in journal()


def test_a_process_that_takes_too_much_memory_is_killed_alone_told_and_started_again() -> None:
    """In a row, without the pauses between the starts of what keeps failing: `isowsgi start` ends them."""
    before = facts("/small")
    told = journal().count(KILLED)
    worker = run("pgrep", "-P", shown("MainPID")).split()[0]

    with Neighbour() as neighbour:
        for _ in range(HITS):
            assert get("/small/memory")[0] == 502
            start("/small")
            after = facts("/small")
            assert (after["cgroup"] != before["cgroup"], after["pid"] != before["pid"]) == (True, True)
            before = after

    assert set(neighbour.statuses) == {200}
    assert len(neighbour.statuses) > HITS
    assert run("pgrep", "-P", shown("MainPID")).split()[0] == worker
    assert journal().count(KILLED) == told + HITS
    assert len([group for group in groups() if group.name.endswith("-small")]) == 1


def test_a_process_cannot_start_more_than_its_limit_of_processes() -> None:
    status, said = get("/hog/processes")

    assert (status, said["error"]) == (200, "Resource temporarily unavailable")
    assert 5 < said["count"] < 24


def test_a_process_gets_its_share_of_a_core_and_no_more() -> None:
    group = group_of("/hog")

    get("/hog/cpu")

    counts = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
    assert int(counts["nr_throttled"]) > 0
    use = eventually(lambda: (found := use_of("/hog")) and found["throttled_s"] and found, "what the group uses, in the status")
    # Memory counts from the process' entry on: what Python had touched before is the service's.
    assert (use["memory_bytes"] > 0, use["processes"] > 2, use["cpu_s"] > 0) == (True, True, True)


def test_what_an_app_leaves_behind_ends_with_its_process_and_the_group_goes() -> None:
    before, child = group_of("/hog"), get("/hog/child")[1]
    assert str(child) in (before / "cgroup.procs").read_text().split()

    run("runuser", "-u", "isowsgi", "--", "/opt/isowsgi/bin/isowsgi", "reload", "/hog", "--config", str(CONFIG))

    eventually(lambda: not before.exists(), "the old group's end")
    assert not Path(f"/proc/{child}").exists()
    assert [group for group in groups() if group.name.endswith("-hog")] == [group_of("/hog")]


def test_systemctl_reload_takes_up_a_changed_limit_and_loads_nothing_else() -> None:
    free = facts("/free")["pid"]
    CONFIG.write_text(CONFIG.read_text().replace('"128M"', '"160M"'))

    systemctl("reload", "isowsgi.service")

    eventually(lambda: (group_of("/hog") / "memory.max").read_text() == f"{160 * 2**20}\n", "the new limit")
    assert facts("/free")["pid"] == free


def test_logrotate_renames_the_access_log_and_gunicorn_opens_another() -> None:
    log = Path("/var/log/isowsgi/access.log")
    facts("/free")

    run("logrotate", "--force", "/etc/logrotate.d/isowsgi")

    assert log.with_name("access.log.1").stat().st_size
    get("/free?after")
    eventually(lambda: log.exists() and "/free?after" in log.read_text(), "the new file")


def test_groups_of_a_killed_worker_are_removed_with_what_is_in_them() -> None:
    child = get("/hog/child")[1]
    before = groups()
    [worker] = run("pgrep", "-P", shown("MainPID")).split()

    os.kill(int(worker), 9)

    eventually(lambda: groups() and not set(before) & set(groups()), "the end of the old groups")
    assert not Path(f"/proc/{child}").exists()


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_the_service_comes_back_with_its_groups(how: str) -> None:
    before = shown("MainPID")
    if how == "restart":
        systemctl("restart", "isowsgi.service")
    else:
        os.kill(int(before), 9)

    eventually(lambda: shown("ActiveState") == "active" and shown("MainPID") not in ("0", before), "another master")
    assert group_of("/hog").name.endswith("-hog")
    assert (group_of("/hog") / "memory.max").read_text().strip() != "max"


RIGHTS = {"CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_DAC_READ_SEARCH": 2, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7}


def rights_of(pid: str | int) -> set[str]:
    """Return the capabilities that a process can use."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("CapEff:")]
    has = int(line.split()[1], 16)
    assert has < 1 << 8
    return {name for name, bit in RIGHTS.items() if has >> bit & 1}


@pytest.fixture
def of_roots() -> None:
    """The service with the drop-in for users, and a site with one; it takes the place of the service as it is shipped."""
    run("useradd", "--system", "--user-group", "tenant")
    drop_in = Path("/etc/systemd/system/isowsgi.service.d/users.conf")
    shutil.copy(CARRIED / "deploy" / "systemd" / "users.conf", drop_in)
    with CONFIG.open("a") as file:
        file.write('\n[mounts."/own"]\napp = "apps:hog"\nuser = "tenant"\nsandbox = true\nlimits = { memory = "64M", processes = 64 }\n')
    settings = CONFIG.with_name("gunicorn.conf.py")
    settings.write_text(settings.read_text() + 'user = group = "isowsgi"\n')
    systemctl("daemon-reload")
    systemctl("restart", "isowsgi.service")


def test_a_master_of_roots_starts_processes_of_other_users_in_their_groups(of_roots: None) -> None:
    """systemd took CAP_SETUID from the master where the unit said "User=root": no worker could become another user."""
    master, hog, own = shown("MainPID"), facts("/hog"), facts("/own")

    assert [owner(master), owner(hog["pid"]), owner(own["pid"])] == ["root", "isowsgi", "tenant"]
    [worker] = run("pgrep", "-P", master).split()
    [spawner] = run("pgrep", "-P", worker, "-u", "root").split()
    wanted = {"CAP_SETUID", "CAP_SETGID", "CAP_KILL", "CAP_DAC_READ_SEARCH"}
    assert [rights_of(pid) for pid in (master, spawner, worker, own["pid"])] == [{*RIGHTS}, wanted, set(), set()]
    assert (group_of("/hog") / "cpu.max").read_text() == "50000 100000\n"
    assert (group_of("/own") / "memory.max").read_text() == f"{64 * 2**20}\n"
    assert get("/own/memory")[0] == 500, "it limits itself too, as its spawner takes no word of groups"
    assert '/own #1: limits.memory = "64M" is reached: MemoryError in GET /own/memory' in journal()

    systemctl("reload", "isowsgi.service")

    assert owner(facts("/own")["pid"]) == "tenant"


def owner(pid: str | int) -> str:
    return Path(f"/proc/{pid}").owner()
