"""The spawner and a worker that was taken over: whatever that sends, nothing runs but what root has read from the config file."""

from __future__ import annotations

import contextlib
import grp
import logging
import os
import pwd
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from isowsgi import configuration
from isowsgi.configuration import App, Config, Mount, accounts, costs, tenants
from isowsgi.configuration.costs import Cost
from isowsgi.configuration.differences import Summary
from isowsgi.configuration.faults import Fault
from isowsgi.instances import spawnedprocess
from isowsgi.instances.forkserver import memory_file
from isowsgi.instances.spawnedprocess import SpawnedProcess, SpawnerClient, SpawnFailed
from isowsgi.master import users
from isowsgi.shared import births, rootsown, spawning, wire
from isowsgi.shared.handover import blocking
from isowsgi.shared.messages import BootOrder, Descriptors
from isowsgi.shared.routing import Route
from isowsgi.shared.spawning import Start, start_of
from isowsgi.shared.wire import MessageError
from isowsgi.spawner import process
from isowsgi.spawner.vouched import NotVouchedFor, Vouched
from isowsgi.worker import ownspawner
from tests.conftest import DEADLINE_S, ROOT, eventually
from tests.orders import any_orders
from tests.otherusers import needs_users

# pytest-xdist's worker has threads. The spawner uses none of what they may hold: in a worker, too, it is forked from the only one.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

USER, OTHER_USER = 20001, 20002
SHOP = Mount(
    pattern="/shop",
    prefix="/shop",
    app=App(kind="module", target="tried", call="application"),
    user=f"{USER}:{USER}",
    isolation="process",
    env={"SECRET": "s"},
    threads=1,
)
OTHER = Mount(pattern="/other", prefix="/other", app=SHOP.app)


def vouched(*mounts: Mount) -> Vouched:
    return Vouched(Config(path="/isowsgi.toml", mounts=mounts or (SHOP, OTHER)), any_orders([]))


def order_of(mount: Mount, **changes: Any) -> BootOrder:
    return any_orders([mount]).write([mount], "process", 0, 1, 5).replace(fds=Descriptors(board=3, channel=4, mail=5), **changes)


def start(mount: Mount = SHOP, **changes: Any) -> Start:
    return start_of(order_of(mount), {3: 2, 4: 3, 5: 4}).replace(**changes)


def test_only_its_place_is_the_workers_word() -> None:
    """What a worker would run is of no account, for it says nothing of it; but where its rows are, and whose requests are whose."""
    said = start(members=[("/shop", 7, "/health")], first_row=9, generation=3, routes=[Route(7, "", "/shop")], log_files={"/etc/shadow": 2})

    order = vouched().order(said)

    assert [(member.mount, member.warmup, member.app.target) for member in order.members] == [(7, "/health", "tried")]
    assert (order.place.first_row, order.tag, order.serving.routes) == (9, "/shop #3", [Route(7, "", "/shop")])
    assert order.environment.env == {"SECRET": "s"}
    assert order.walls is not None
    assert order.walls.user == SHOP.user
    assert order.log_files == {}
    assert not {"app", "env", "python", "user", "walls", "pythonpath", "environment", "host"} & Start.fields.keys()


@pytest.mark.parametrize(
    "hostile",
    [
        start(name="/other"),
        start(name="/etc"),
        start(members=[]),
        start(members=[("/other", 1, None)]),
        start(members=[("/shop", 0, None), ("/shop", 1, None)]),
        start(members=[("/shop", 0, None), ("/other", 1, None)]),
    ],
)
def test_what_root_has_not_read_is_not_started(hostile: Start) -> None:
    with pytest.raises(NotVouchedFor):
        vouched().order(hostile)


def test_a_start_that_makes_no_sense_is_refused() -> None:
    good = wire.plain(start())
    assert spawning.read_start(wire.encode(good)) == start()
    for name, value in (("fds", {}), ("members", [1]), ("routes", [["a"]]), ("limits", None), ("first_row", 2**70), ("command", "sh")):
        with pytest.raises(MessageError):
            spawning.read_start(wire.encode({**good, name: value}))
    with pytest.raises(MessageError):
        spawning.read_start(wire.encode({**good, "fds": {**good["fds"], "channel": -1}}))


def test_answers_arrive_as_they_were_sent() -> None:
    for answer in (spawning.Started(pid=3), spawning.Refused(error="no"), spawning.Ended(status=-9)):
        assert spawning.decode(spawning.encode(answer)) == answer
    for packet in (b"{}", b"[]", b'{"is": ["Ended"]}', b'{"is": "Ended", "status": "0"}', b"\xff"):
        with pytest.raises(MessageError):
            spawning.decode(packet)


def test_a_process_of_another_user_gets_what_programs_need_and_no_secret() -> None:
    ours = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "PYTHONPATH": "/p",
        "PYTHONHOME": "/h",
        "SECRET": "s",
        "HOME": "/root",
        "USER": "root",
        "LD_X": "1",
    }
    shop = accounts.Account(uid=1, gid=1, groups=(1,), name="shop", home="/home/shop")

    found = accounts.environ_of(shop, ours)

    assert found == {
        "PATH": "/bin", "LC_ALL": "C", "PYTHONPATH": "/p", "PYTHONHOME": "/h", "LD_X": "1",
        "HOME": "/home/shop", "USER": "shop", "LOGNAME": "shop",
    }  # fmt: skip
    assert accounts.environ_of(accounts.Account(uid=1, gid=1, groups=(1,)), ours)["HOME"] == "/"


def test_what_root_may_do_is_known_whatever_the_process_is_called() -> None:
    """It was read from /proc/self/status, which begins with the name: bytes that are no ASCII ended the start with a traceback."""
    script = """
import re
from isowsgi.shared import privileges
with open("/proc/self/status") as file:
    said = int(re.search(r"^CapPrm:\\s*(\\w+)$", file.read(), re.M)[1], 16)
privileges.prctl(privileges.PR_SET_NAME, b"\\xff")
assert privileges.capabilities() == said
privileges.keep_capabilities(said & 1)
assert privileges.capabilities() == said & 1
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)


# Accounts.


def test_a_user_is_looked_up_with_all_its_groups() -> None:
    entry = next(each for each in pwd.getpwall() if each.pw_uid)
    group = next(each for each in grp.getgrall() if each.gr_gid not in (0, entry.pw_gid))

    found = accounts.find(entry.pw_name)
    assert (found.uid, found.gid, found.name, found.home) == (entry.pw_uid, entry.pw_gid, entry.pw_name, entry.pw_dir)
    assert {*found.groups} == {*os.getgrouplist(entry.pw_name, entry.pw_gid)}
    assert accounts.find(str(entry.pw_uid)) == found
    other = accounts.find(f"{entry.pw_name}:{group.gr_name}")
    assert (other.gid, other.groups[0]) == (group.gr_gid, group.gr_gid)
    assert accounts.find(f"{entry.pw_name}:{group.gr_gid}") == other
    assert accounts.find("20001:20002") == accounts.Account(uid=20001, gid=20002, groups=(20002,))
    assert accounts.user("") == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("root", "root may do all that walls are to keep from an app; expected another user"),
        ("0", "root may do all"),
        ("nobody-of-that-name", "no such user: 'nobody-of-that-name'; create it"),
        ("20001", "the machine does not know user 20001, so write its group too, as in '20001:20001'"),
        ("20001:no-such-group", "no such group: 'no-such-group'; create it"),
        ("shop:", "expected a user, or user:group, such as 'shop' or 'shop:www-data', got 'shop:'"),
        (":shop", "expected a user, or user:group"),
        ("99999999999999", "no such user"),
        ("a\0b", "no such user"),
    ],
)
def test_a_user_that_cannot_be_is_a_fault_that_says_what_to_do(text: str, said: str) -> None:
    with pytest.raises(Fault, match="^" + said.replace("?", r"\?")):
        accounts.find(text)


def test_a_user_needs_a_process_and_is_no_status_pages(tmp_path: Path) -> None:
    config = tmp_path / "isowsgi.toml"
    config.write_text("""
[defaults]
user = "20001:20001"
[mounts]
"/a" = { app = "a", isolation = "own-gil" }
"/b" = "b"
"/status" = "isowsgi.status"
""")
    with pytest.raises(configuration.ConfigError) as caught:
        configuration.load(config)
    texts = [fault.partition(": ")[2] for fault in caught.value.faults]
    assert [text.partition(":")[0] for text in texts] == ["defaults.user"] * 2
    assert 'only a process has its own: expected isolation = "process" (or "auto")' in texts[0]
    assert "the status page reads what gunicorn's user has counted" in texts[1]
    own = config.read_text().replace('isowsgi.status"', 'isowsgi.status"\n"/x" = { app = "x", user = \'\' }')
    own = own.replace('"/a" = { app = "a", isolation = "own-gil" }', "").replace('"/status" = "isowsgi.status"', "")
    config.write_text(own)
    assert {mount.pattern: (mount.user, mount.needs_process) for mount in configuration.load(config).mounts} == {
        "/b": ("20001:20001", True), "/x": ("", False),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("max_live = 2, user = 'site-{1}'", "with '{1}' in it set exists too"),
        ("user = 'site-{1}'", "'{1}' stands for a tenant's label; set max_live too"),
        ("max_live = 2, exists = '/srv/{1}', user = '{1}'", "expected more than '{1}', which could be the name of any user"),
        ("max_live = 2, exists = '/srv/{1}', user = 'site-{1}:{1}'", "expected more than '{1}', which could be the name of any user"),
        ("max_live = 2, exists = '/srv/{1}', user = 'site-{1}:no-such'", "no such group: 'no-such'"),
        ("max_live = 2, exists = '/srv/{1}', user = 'a:b:{1}'", "expected more than '{1}'"),
    ],
)
def test_whoever_sends_a_request_chooses_none_of_the_machines_users(settings: str, said: str, tmp_path: Path) -> None:
    config = tmp_path / "isowsgi.toml"
    config.write_text(f"[mounts.'*.example.com/']\napp = 'a'\n{settings.replace(', ', chr(10))}\n")
    with pytest.raises(configuration.ConfigError) as caught:
        configuration.load(config)
    assert [fault.partition("user: ")[2][: len(said)] for fault in caught.value.faults] == [said]


def template(folder: Path, **changes: Any) -> Mount:
    values: dict[str, Any] = {"user": "2000{1}:2000{1}", "exists": str(folder / "{1}"), "max_live": 1, **changes}
    return attrs.evolve(SHOP, pattern="*.example.com/in", host="*.example.com", prefix="/in", **values)


def tenant(label: str, folder: Path) -> Start:
    mount = tenants.tenant_of(template(folder), label, 7)
    return start(mount)


def test_a_tenant_runs_as_its_own_user_and_as_no_other(tmp_path: Path) -> None:
    for name in ("1", "2", "www"):
        (tmp_path / name).mkdir()
    own = attrs.evolve(OTHER, pattern="www.example.com/in", host="www.example.com", prefix="/in")
    table = vouched(template(tmp_path), own)

    for label in ("1", "2"):
        charge = table.charge(f"{label}.example.com/in")
        assert charge.account is not None
        assert (charge.account.uid, charge.account.groups) == (20000 + int(label), (20000 + int(label),))
        order = table.order(tenant(label, tmp_path))
        assert order.walls is not None
        assert (order.name, order.walls.user, order.members[0].mount) == (f"{label}.example.com/in", f"2000{label}:2000{label}", 7)
        assert charge.most_of_template == 5 * charge.most
    for name in (
        "3.example.com/in", "..example.com/in", "1.2.example.com/in", "1.example.com/", "1.example.org/in", "1.example.com/in/..",
        "*.example.com/in", ".example.com/in", "1\n.example.com/in", "www.example.com/in",
    ):  # fmt: skip
        with pytest.raises(NotVouchedFor):
            table.charge(name)
    (tmp_path / "1").rmdir()
    with pytest.raises(NotVouchedFor):
        table.order(tenant("1", tmp_path))


def test_a_tenant_whose_user_is_not_there_yet_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "acme").mkdir()
    charge = vouched(template(tmp_path, user="site-{1}")).charge("acme.example.com/in")

    assert (charge.account, charge.fault) == (None, "no such user: 'site-acme'; create it, or write another one")


def test_who_is_a_tenant_with_a_user_is_changed_by_root_alone(tmp_path: Path) -> None:
    before = template(tmp_path)
    assert costs.is_in_place(before, attrs.evolve(before, max_live=3))
    assert not costs.is_in_place(before, attrs.evolve(before, exists="/srv/{1}"))
    for said, cost in (({"max_live": "3"}, Cost.IN_PLACE), ({"exists": "'/srv/{1}'"}, Cost.SIGHUP)):
        old = {"app": "'a'", "user": "'site-{1}'", "max_live": "2", "exists": "'/a/{1}'"}
        changed = costs.of_mounts(Summary(mounts={"*.a/": old}, tables={}), Summary(mounts={"*.a/": {**old, **said}}, tables={}))
        assert changed == {"*.a/": cost}


@needs_users
def test_the_folder_that_says_who_is_a_tenant_is_roots(tmp_path: Path) -> None:
    path = tmp_path / "isowsgi.toml"
    path.touch()
    folder = tmp_path / "tenants"
    folder.mkdir()
    config = Config(path=str(path), mounts=(template(folder),))
    cfg = SimpleNamespace(check_config=False)
    assert users.faults(config, cfg, "isowsgi.toml") == []

    os.chown(folder, USER, USER)

    text = "what is there says which user runs the app, so nobody but root may be able to change this folder; use chown and chmod"
    assert users.faults(config, cfg, "isowsgi.toml") == [f'isowsgi.toml: mounts."*.example.com/in".exists: {folder}: {text}']
    fixed = Config(path=str(path), mounts=(template(folder, user=f"{USER}:{USER}"),))
    assert users.faults(fixed, cfg, "isowsgi.toml") == [], "there is nothing to choose"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has what others cannot change")
def test_what_others_can_change_is_not_roots_alone(tmp_path: Path) -> None:
    file, link = tmp_path / "isowsgi.toml", tmp_path / "link"
    file.write_text("")
    link.symlink_to(file)
    assert rootsown.is_roots(str(file))
    assert rootsown.is_roots(str(link))
    os.lchown(link, USER, USER)
    assert not rootsown.is_roots(str(link))
    file.chmod(0o664)
    assert not rootsown.is_roots(str(file))
    file.chmod(0o644)
    os.chown(tmp_path, USER, USER)
    assert not rootsown.is_roots(str(file))
    assert not rootsown.is_roots(str(tmp_path / "none"))


@needs_users
def test_root_asks_a_python_as_the_first_user_who_can_change_which_one_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is executed to say its version: as root, it could do anything, and as its owner, what the first has chosen of the owner's."""
    monkeypatch.setenv("SECRET", "s")
    # Below /tmp, where other users may look; what is there itself may be anybody's once its owner has removed it.
    with tempfile.TemporaryDirectory(prefix="isowsgi-python-", dir="/tmp") as top:
        shared, between, place = Path(top), Path(top, "between"), Path(top, "between", "place")
        shared.chmod(0o755)
        said = shared / "said"
        said.touch()
        said.chmod(0o666)
        place.mkdir(parents=True)
        fake = place / "python"
        fake.write_text(f'#!/bin/sh\necho "$(id -u) $(id -G) $SECRET" > {said}\nexec {sys.executable} "$@"\n')
        fake.chmod(0o755)
        link = shared / "link"
        link.symlink_to(fake)
        cases = [
            ((0, 0, 0, 0), link, "0"),
            ((0, 0, USER, 0), link, f"{USER} 65534"),
            ((0, USER, OTHER_USER, 0), fake, f"{USER} 65534"),
            ((0, USER, 0, 0), fake, f"{USER} 65534"),
            ((0, 0, OTHER_USER, USER), link, f"{USER} 65534"),
            ((USER, 0, 0, 0), fake, "65534 65534"),
        ]
        for number, (uids, path, expected) in enumerate(cases):
            for uid, changed in zip(uids, (shared, between, fake, link), strict=True):
                os.lchown(changed, uid, uid)
            os.utime(fake, (number, number))  # else the answer is known
            assert configuration.pythons.ask(str(path)).version == sys.version_info[:3]
            whose = said.read_text().split()
            assert (whose[-1] == "s") == (expected == "0")
            assert " ".join(whose).startswith(expected)


def test_nothing_is_left_open_of_a_process_whose_end_makes_no_sense() -> None:
    ours, theirs = map(blocking, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    fd = os.memfd_create("process")
    with theirs:
        theirs.send(b"{}")
        with pytest.raises(SpawnFailed, match="makes no sense"):
            SpawnedProcess(ours, 1, fd).wait()

    assert ours.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


# A real spawner, with this process as its worker.


@pytest.fixture
def client() -> Iterator[SpawnerClient]:
    ours, theirs = map(blocking, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    with ours:
        with theirs:
            made = SpawnerClient(ours, process.fork(theirs, vouched))
        assert made.wait_ready(DEADLINE_S)
        yield made
    eventually(lambda: os.waitpid(made.pid, os.WNOHANG)[0] == made.pid, "its end with the socket's")


def ends_early(*_: object) -> Vouched:
    raise OSError("no such directory service")


def hangs(*_: object) -> Vouched:
    signal.pause()
    raise AssertionError


@needs_users
@pytest.mark.parametrize(("begin", "limit_s"), [(ends_early, DEADLINE_S), (hangs, 0.05)])
def test_a_worker_whose_spawner_cannot_begin_has_none_and_says_so(
    begin: Callable[..., Vouched], limit_s: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It would have been replaced at once, and so would the next one, with all that has no user."""
    monkeypatch.setattr("isowsgi.spawner.vouched.Vouched", begin)
    monkeypatch.setattr(ownspawner, "_BEGIN_S", limit_s)
    monkeypatch.setattr(ownspawner, "BootOrders", lambda *_, **__: None)
    share = SimpleNamespace(vouched=Config(path="/isowsgi.toml", mounts=(SHOP,)), settings={}, region=SimpleNamespace(region=None))
    before = set(os.listdir("/proc/self/fd"))

    assert ownspawner.take_spawner(share, SimpleNamespace(reload=False, timeout=0), [], {}, logging.getLogger()) is None  # type: ignore[arg-type]

    assert [record.message.partition(";")[0].rpartition(", ")[2] for record in caplog.records] == ["could not begin"]
    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(SpawnFailed, match="has no spawner"):
        spawnedprocess.spawn(None, order_of(SHOP))


class Ends(contextlib.ExitStack):
    """The descriptors of one instance, and this side of its channel."""

    def __init__(self) -> None:
        super().__init__()
        board = os.memfd_create("board")
        self.callback(os.close, board)
        self.channel, inner = (self.enter_context(blocking(each)) for each in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        _, mail = (self.enter_context(blocking(each)) for each in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        self.fds = Descriptors(board=board, channel=inner.fileno(), mail=mail.fileno())


def start_one(client: SpawnerClient) -> None:
    """Have a process started and killed."""
    with Ends() as ends:
        started = client.start(order_of(SHOP).replace(fds=ends.fds))
        started.kill()
        assert started.wait() == -signal.SIGKILL
        started.kill()  # without effect


@needs_users
def test_a_process_is_started_killed_and_waited_for(client: SpawnerClient) -> None:
    start_one(client)


@needs_users
def test_what_is_not_vouched_for_is_told(client: SpawnerClient) -> None:
    with Ends() as ends, pytest.raises(SpawnFailed, match="'/other' is not among the mounts with a user that gunicorn's master has read"):
        client.start(order_of(OTHER).replace(fds=ends.fds))


@needs_users
def test_a_mount_has_so_many_processes_at_a_time_and_no_more(client: SpawnerClient) -> None:
    with Ends() as ends:
        order = order_of(SHOP).replace(fds=ends.fds)
        started = []
        for _ in range(8):
            started.append(client.start(order))
            os.kill(started[-1].pid, signal.SIGSTOP)  # what it is to run is not there, so it would end by itself
        with pytest.raises(SpawnFailed, match="'/shop' has 8 processes, and no more are started for it"):
            client.start(order)
        for each in started:
            each.kill()
            assert each.wait() == -signal.SIGKILL
        again = client.start(order)
        again.kill()
        again.wait()


@needs_users
def test_nonsense_starts_nothing_and_ends_nothing(client: SpawnerClient) -> None:
    """Random bytes, hostile numbers, descriptors of all kinds, none at all, a flood that nobody reads the answers of."""
    chance = random.Random(19)
    good = wire.encode(wire.plain(start()))
    start_one(client)  # so that it has closed what it had from this process
    held = {*os.listdir(f"/proc/{client.pid}/fd")}  # perhaps with one of that process, which it closes just now
    with Ends() as ends, open(os.devnull, "rb") as device, contextlib.closing(socket.socket()) as lone:
        reader, writer = os.pipe()
        ends.callback(os.close, reader)
        ends.callback(os.close, writer)
        kinds = [reader, writer, device.fileno(), lone.fileno(), ends.fds.board, ends.fds.channel]
        for number in range(300):
            data = bytearray(good)
            for _ in range(chance.randrange(5)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            with memory_file(bytes(data[: chance.randrange(len(data) + 1)] if number % 3 else data)) as source:
                source.flush()
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with ours, theirs:
                    fds = [theirs.fileno(), source.fileno(), *chance.choices(kinds, k=chance.randrange(5))]
                    chance.shuffle(fds) if number % 2 else None
                    births.send(client._sock, chance.randbytes(chance.randrange(1, 50)), fds[: chance.randrange(len(fds) + 1)] or [reader])

    start_one(client)
    eventually(lambda: {*os.listdir(f"/proc/{client.pid}/fd")} <= held, "all descriptors are closed again")


@needs_users
def test_a_process_that_cannot_be_executed_is_told_with_the_reason() -> None:
    mount = SHOP
    config = Config(path="/isowsgi.toml", mounts=(mount,))

    def table() -> Vouched:
        sys.executable = "/no/python"  # of the spawner, where this is called
        return Vouched(config, any_orders([]))

    ours, theirs = map(blocking, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    with ours, Ends() as ends:
        with theirs:
            made = SpawnerClient(ours, process.fork(theirs, table))
        assert made.wait_ready(DEADLINE_S)
        with pytest.raises(SpawnFailed, match="cannot be started as user 20001: FileNotFoundError"):
            made.start(order_of(mount).replace(fds=ends.fds)).wait()  # it may say so before it is said that it is there
    eventually(lambda: os.waitpid(made.pid, os.WNOHANG)[0] == made.pid, "its end")
