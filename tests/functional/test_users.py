"""Mounts with a user of their own: their processes are that user's and nothing more, and end with their worker, whatever ends first."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isowsgi.cli import client
from isowsgi.shared import landlock
from isowsgi.shared.controlmessages import Outcome, Reload
from tests.command import call
from tests.conftest import DEADLINE_S, ROOT, Server, eventually, running_server
from tests.load import Load
from tests.otherusers import needs_users

pytestmark = [needs_users, pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")]  # /blog has a sandbox

# Users that /etc/passwd does not know.
SHOP, BLOG = 20001, 20002
GROUP, NEW = 20003, 20004

CONFIG = """
[defaults]
threads = 2

[mounts]
"/shop" = {{ app = "owned", user = "{shop}:{group}", env = {{ SECRET = "the shop's" }} }}
"/blog" = {{ app = "owned", user = "{blog}:{blog}", env = {{ SECRET = "the blog's" }}, umask = "077", sandbox = {{ write = "." }} }}
"/sleepy" = {{ app = "owned", user = "{shop}:{group}", lazy = true, idle_timeout = 1 }}
"/neighbour" = {{ app = "hello", isolation = "process" }}

[mounts."*.example.com/site"]
app = "owned"
user = "2000{{1}}:2000{{1}}"
max_live = 1
exists = "tenants/{{1}}"
env = {{ SECRET = "{{1}}'s" }}
sandbox = {{ write = "tenants/{{1}}" }}
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Give a folder that other users may write to; pytest's own are root's alone."""
    path = Path(tempfile.mkdtemp(prefix="isowsgi-users-"))
    path.chmod(0o755)
    for label in ("1", "2", "x"):
        (path / "tenants" / label).mkdir(parents=True)
        os.chown(path / "tenants" / label, *[SHOP if label == "1" else BLOG] * 2)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    config = CONFIG.format(shop=SHOP, blog=BLOG, group=GROUP)
    env = {"SECRET": "the service's", "PASSWORD": "the service's"}
    with running_server(folder, config, "--user", "nobody", "--graceful-timeout", "3", env=env, wait_for=3) as server:
        yield server


def told(server: Server, path: str) -> dict[str, Any]:
    answer = server.get(path)
    assert answer.status_code == 200, answer.text
    facts: dict[str, Any] = answer.json()
    return facts


def ids_of(pid: int) -> tuple[int, int, list[int]]:
    """Return the user of a process, its group and its supplementary ones, by the kernel's word: all four of each are the same."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    [uid] = {int(each) for each in status["Uid"].split()}
    [gid] = {int(each) for each in status["Gid"].split()}
    return uid, gid, [int(each) for each in status["Groups"].split()]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("path", "uid", "gid"), [("/shop", SHOP, GROUP), ("/blog", BLOG, BLOG)])
def test_a_process_is_its_user_alone_and_cannot_become_another(server: Server, path: str, uid: int, gid: int) -> None:
    facts = told(server, path)

    assert ids_of(facts["pid"]) == (uid, gid, [gid])
    assert facts["ids"] == [[uid] * 3, [gid] * 3, [gid]]
    assert os.getsid(facts["pid"]) == facts["pid"], "no terminal of root's is its own"
    status = Path(f"/proc/{facts['pid']}/status").read_text()
    assert "NoNewPrivs:\t1\n" in status
    for kind in ("CapPrm", "CapEff", "CapInh", "CapAmb"):
        assert f"{kind}:\t{0:016x}\n" in status


def test_the_spawner_keeps_four_rights_and_two_descriptors(server: Server) -> None:
    spawner = parent_of(told(server, "/shop")["pid"])

    assert Path(f"/proc/{spawner}/comm").read_text() == "isowsgi-spawner\n"
    assert ids_of(spawner)[0] == 0
    status = Path(f"/proc/{spawner}/status").read_text()
    rights = 1 << 2 | 1 << 5 | 1 << 6 | 1 << 7  # DAC_READ_SEARCH, KILL, SETGID, SETUID (linux/capability.h)
    for kind in ("CapPrm", "CapEff", "CapBnd"):
        assert int(dict(line.split(":") for line in status.splitlines() if line.startswith("Cap"))[kind], 16) & ~rights == 0
    files = [os.readlink(f"/proc/{spawner}/fd/{name}") for name in os.listdir(f"/proc/{spawner}/fd")]
    # Its socket and one to each of its three processes at most; the worker, by a pidfd; what wakes it.
    assert sum(name.startswith("socket:") for name in files) <= 4
    assert {name.partition("[")[0] for name in files if not name.startswith(("socket:", "/"))} <= {"anon_inode:", "pipe:"}
    assert {name for name in files if name.startswith("/")} == {"/dev/null", str(server.folder / "stdout")}


def test_a_process_has_the_secrets_of_its_mount_and_none_of_the_service(server: Server) -> None:
    for path, secret in (("/shop", "the shop's"), ("/blog", "the blog's")):
        facts = told(server, path)
        assert facts["secrets"] == [secret, 0]
        assert "PASSWORD" not in facts["environ"]
        assert facts["environ"]["HOME"] == "/"
    text = Path(f"/proc/{told(server, '/shop')['pid']}/environ").read_text()
    assert {line.partition("=")[0] for line in text.split("\0")} & {"SECRET", "PASSWORD", "ISOWSGI_CACHE_DIR", "PWD", "SUDO_USER"} == set()


def test_a_walled_process_has_the_descriptors_that_the_page_names_and_no_other(server: Server) -> None:
    page = (ROOT / "docs" / "explanation" / "isolation.md").read_text()
    rows = re.search(r"^\| descriptor, as .*\n\|.*\n((?:\|.*\n)+)", page, re.MULTILINE)
    assert rows is not None
    named = re.findall(r"`([^`]+)`", "".join(row.split("|")[1] for row in rows[1].splitlines()))
    for path in ("/shop", "/blog"):

        def has_no_more(path: str = path) -> bool:
            files = [
                target for target in told(server, path)["files"].values() if target and ".so" not in target
            ]  # libffi opens its own file
            known = {target for target in files if any(target.startswith(each) for each in named)}
            assert {*files} - known == {str(server.folder / "stdout"), str(server.log_path)}
            return len({target for target in known if target.startswith("socket:")}) == 3  # orders, connections, and this request's

        eventually(has_no_more, "no connection of an earlier request is left")


def test_what_a_process_writes_belongs_to_its_user(server: Server, folder: Path) -> None:
    place = folder / "open"
    place.mkdir()
    place.chmod(0o777)

    told(server, f"/shop/write?{place}/by-shop")
    assert server.get(f"/neighbour/write?{place}/x").status_code == 200
    assert ((place / "by-shop").stat().st_uid, (place / "by-shop").stat().st_gid) == (SHOP, GROUP)
    told(server, f"/blog/write?{place}/by-blog")
    status = (place / "by-blog").stat()
    assert (status.st_uid, status.st_mode & 0o777) == (BLOG, 0o600)
    assert server.get(f"/blog/write?{place}/by-shop").status_code == 500, "what is another user's"


def test_a_sandbox_of_another_user_has_its_own_folder_for_temporary_files(server: Server) -> None:
    facts = told(server, "/blog")
    folder = Path(facts["environ"]["TMPDIR"])
    assert (folder.stat().st_uid, folder.stat().st_mode & 0o777) == (BLOG, 0o700)

    os.kill(facts["pid"], signal.SIGKILL)

    server.wait_for_log("/blog #1: ended unexpectedly: its process was killed by SIGKILL")
    eventually(lambda: not folder.exists(), "its removal")
    assert told(server, "/blog")["environ"]["TMPDIR"] != str(folder)


def test_a_reload_and_a_crash_cost_the_neighbours_nothing(server: Server) -> None:
    before = told(server, "/shop")["pid"]
    with Load(server.connect, ["/neighbour", "/shop"], clients=2) as load:
        [answer] = client.ask(client.find(str(server.folder / "isowsgi.toml"), None), Reload(mount="/shop"), DEADLINE_S)
        assert isinstance(answer.answer, Outcome)
        after = told(server, "/shop")["pid"]
        assert load.failures == []

    assert after != before
    assert ids_of(after) == (SHOP, GROUP, [GROUP])
    server.wait_for_log("/shop #1: ended")


def test_a_process_sleeps_and_wakes(server: Server) -> None:
    first = told(server, "/sleepy")["pid"]
    server.wait_for_log("/sleepy #1: ended")
    assert not is_there(first)

    assert ids_of(told(server, "/sleepy")["pid"])[0] == SHOP


def test_each_tenant_has_its_own_user(server: Server, folder: Path) -> None:
    """Its user is its name's, looked up when it comes; where there is none its requests are answered 503, and nobody else is concerned."""

    def ask(label: str, path: str = "/site") -> Any:
        return server.get(path, headers={"Host": f"{label}.example.com"})

    pids = []
    for label, uid in (("1", SHOP), ("2", BLOG)):
        facts = ask(label).json()
        pids.append(facts["pid"])
        assert ids_of(facts["pid"]) == (uid, uid, [uid])
        assert facts["secrets"] == [f"{label}'s", 0]
        assert ask(label, f"/site/write?{folder}/tenants/{label}/own").status_code == 200
        assert (folder / "tenants" / label / "own").stat().st_uid == uid
        assert ask(label, f"/site/write?{folder}/tenants/{3 - int(label)}/others").status_code == 500
    eventually(lambda: not is_there(pids[0]), "the end of the one that has gone for another")

    assert ask("3").status_code == 404
    assert ask("x").status_code == 503
    server.wait_for_log("no such user: '2000x'; create it, or write another one")
    assert is_there(pids[1]) or ask("2").status_code == 200
    again = ask("1").json()["pid"]
    assert ids_of(again)[0] == SHOP
    [answer] = client.ask(client.find(str(server.folder / "isowsgi.toml"), None), Reload(mount="1.example.com/site"), DEADLINE_S)
    assert isinstance(answer.answer, Outcome)
    eventually(lambda: not is_there(again), "the end of what was replaced")
    assert ids_of(ask("1").json()["pid"])[0] == SHOP


def test_what_runs_as_another_user_is_changed_by_who_is_root_alone(server: Server) -> None:
    """A table that is applied is the workers' word; what runs by itself goes on with other settings."""
    path = server.folder / "isowsgi.toml"
    text = path.read_text()
    pid = told(server, "/shop")["pid"]
    changed = text.replace('app = "owned", user = "20001:20003", env', 'app = "owned", queue = 7, user = "20001:20003", env')
    try:
        path.write_text(changed)
        assert call(server.folder, "apply").returncode == 0
        path.write_text(path.read_text() + '[mounts."/new"]\napp = "owned"\nuser = "20001:20001"\n')
        refused = call(server.folder, "apply")
        planned = call(server.folder, "plan")
    finally:
        path.write_text(text)
    assert refused.returncode == 1
    assert "/new: what runs as another user must be read from the config file by root: send SIGHUP to gunicorn" in refused.stderr
    assert "needs SIGHUP to gunicorn" in planned.stdout
    assert call(server.folder, "apply").returncode == 0
    assert told(server, "/shop")["pid"] == pid


def test_a_user_that_is_new_comes_with_sighup_and_no_other_way(server: Server) -> None:
    """The master reads the file as root then; one that others can change is refused, and changes nothing."""
    path = server.folder / "isowsgi.toml"
    text = path.read_text()
    try:
        path.write_text(text + f'[mounts."/new"]\napp = "owned"\nuser = "{NEW}:{NEW}"\n')
        path.chmod(0o666)
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("it says which user runs what, so nobody but root may be able to change it")
        server.wait_for_log("invalid config file; keeping the previous mounts")
        path.chmod(0o644)
        server.send_signal(signal.SIGHUP)
        server.wait_for_log(r"/new #1: serving")
    finally:
        path.write_text(text)

    eventually(lambda: server.get("/new").status_code == 200, "the worker that has it")
    assert ids_of(told(server, "/new")["pid"]) == (NEW, NEW, [NEW])


def test_when_the_spawner_ends_its_processes_do_and_another_worker_takes_over(server: Server) -> None:
    pid = told(server, "/shop")["pid"]
    [worker] = server.workers()

    os.kill(parent_of(pid), signal.SIGKILL)

    server.wait_for_log("replacing this worker: its spawner, which starts the processes of mounts with a user, has ended")
    eventually(lambda: not is_there(pid), "the end of its process")
    eventually(lambda: server.workers() not in ([worker], []), "another worker")
    eventually(lambda: server.get("/shop").status_code == 200, "the mount in it")
    assert ids_of(told(server, "/shop")["pid"])[0] == SHOP


def test_what_a_process_leaves_behind_ends_with_the_worker_too(server: Server) -> None:
    """Whoever it is: the kernel would not kill another user's process for a worker that has died."""
    pid, left = told(server, "/shop")["pid"], told(server, "/shop/leave")["left"]
    spawner = parent_of(pid)
    eventually(lambda: parent_of(left) == spawner, "its adoption")
    [worker] = server.workers()

    os.kill(worker, signal.SIGKILL)

    for each in (pid, left, spawner):
        eventually(lambda each=each: not is_there(each), "its end")  # type: ignore[misc]
    eventually(lambda: server.workers() not in ([worker], []), "another worker")
    eventually(lambda: _serves(server), "the mount in it")


def _serves(server: Server) -> bool:
    with contextlib.suppress(OSError, json.JSONDecodeError):
        return server.get("/shop").status_code == 200
    return False


IMPORTED = """
import os, socket, tempfile
from pathlib import Path
Path("{folder}", f"loaded-by-{{os.getresuid()}}-{{os.getresgid()}}-{{os.getgroups()}}").touch()
tmp = Path(tempfile.gettempdir())
(tmp / "mine").touch()
(tmp / "closed").mkdir()
(tmp / "closed" / "a").touch()
(tmp / "closed").chmod(0)
Path("{folder}", "tmp").write_text(str(tmp))
assert "SECRET" not in os.environ, "the caller's"

def application(environ, start_response): ...
"""


def test_root_checks_an_app_as_its_user(folder: Path) -> None:
    """The app was loaded by root, and so were its extension modules."""
    place = folder / "checked"
    place.mkdir()
    place.chmod(0o777)
    (place / "imported.py").write_text(IMPORTED.format(folder=place))
    config = f'[mounts]\n"/" = {{ app = "imported", pythonpath = ".", user = "{SHOP}:{GROUP}", sandbox = {{ write = "." }} }}\n'
    (place / "isowsgi.toml").write_text(config)

    done = call(place, "check", "--json", SECRET="root's")

    assert done.returncode == 0, done.stdout + done.stderr
    [mount] = json.loads(done.stdout)["mounts"]
    assert (mount["isolation"], mount["warnings"]) == ("process", [])
    assert [path.name for path in place.glob("loaded-by*")] == [f"loaded-by-{(SHOP,) * 3}-{(GROUP,) * 3}-{[GROUP]}"]
    # Its folder was removed by the same user: root does nothing where another user may be at work.
    tmp = Path((place / "tmp").read_text())
    left = [path.name for path in tmp.iterdir()]
    shutil.rmtree(tmp)
    assert left == ["closed"]


def test_only_root_can_be_asked_for_users(folder: Path, tmp_path: Path) -> None:
    """All that is missing is said at the start, with what to do."""
    place = folder / "faulty"
    place.mkdir()
    os.chown(place, SHOP, SHOP)
    for user, launcher, said in (
        ("20001:20001", ["setpriv", "--reuid=20001", "--regid=20001", "--clear-groups"], "only root can start a process as another user"),
        ("20001:20001", ["setpriv", "--bounding-set=-setuid"], "may not become another user: it lacks CAP_SETUID; in a systemd unit add"),
        ("20001:20001", [], "it says which user runs what, so nobody but root may be able to change it"),
        ("nobody-of-that-name", [], "no such user: 'nobody-of-that-name'; create it, or write another one"),
    ):
        config = f'[mounts]\n"/" = {{ app = "owned", user = "{user}" }}\n'
        with running_server(place, config, launcher=launcher, wait_for=0) as server:
            assert server.process.wait(DEADLINE_S) == 1
            assert said in server.output()
