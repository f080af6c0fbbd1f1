"""Control groups: where this process' is, and what is made below it. The kernel's own tree where this machine has one that root may change.

Limits need controllers that only a service manager delegates: tests/guest.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from isowsgi.inside import walls
from isowsgi.shared import cgroups
from isowsgi.shared.cgroups import CONTROLLERS, Subtree, Unavailable
from isowsgi.shared.messages import Descriptors
from tests.conftest import eventually
from tests.orders import any_order

# pytest-xdist's worker has threads; the child executes another program.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

UNIFIED = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = "30 23 0:26 / /sys/fs/cgroup/cpu rw shared:4 - cgroup cgroup rw,cpu\n31 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("own", "mounts", "path"),
    [
        ("0::/system.slice/a.service\n", UNIFIED, "/sys/fs/cgroup/system.slice/a.service"),
        ("0::/\n", UNIFIED, "/sys/fs/cgroup"),
        ("4:memory:/x\n1:cpu:/\n0::/b\n", HYBRID, "/sys/fs/cgroup/unified/b"),
        ("0::/docker/1/a\n", UNIFIED.replace(" / /sys", " /docker/1 /sys"), "/sys/fs/cgroup/a"),
        ("0::/a b\n", UNIFIED, "/sys/fs/cgroup/a b"),
    ],
)
def test_a_group_is_found_where_its_tree_is_mounted(own: str, mounts: str, path: str) -> None:
    assert cgroups._path(own, mounts) == path


@pytest.mark.parametrize(
    ("own", "mounts"),
    [
        ("4:memory:/x\n", UNIFIED),
        ("0::/x\n", HYBRID.splitlines()[0]),
        ("0::/x\n", ""),
        ("0::/../x\n", UNIFIED.replace(" / /sys", " /docker/1 /sys")),
    ],
)
def test_there_is_none_without_version_2_or_beyond_what_is_mounted(own: str, mounts: str) -> None:
    with pytest.raises(Unavailable, match="no control groups of version 2"):
        cgroups._path(own, mounts)


def test_limits_are_files_of_the_controllers_that_are_there() -> None:
    every = dict(cgroups.files_of(2**29, 0.5, 64, frozenset(CONTROLLERS)))

    assert every == {
        "memory.max": str(2**29), "memory.swap.max": "0", "memory.oom.group": "1", "cpu.max": "50000 100000", "pids.max": "64",
    }  # fmt: skip
    assert dict(cgroups.files_of(2**29, 0.5, 64, frozenset({"pids"}))) == {"pids.max": "64"}
    assert dict(cgroups.files_of(0, 0.0, 0, frozenset(CONTROLLERS))) == {}


@pytest.fixture
def tree() -> Iterator[Subtree]:
    """A group of the kernel's, as if it were delegated; without controllers, as those may be in use by version 1."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup2 " in line]
    path = Path(points[0] if points else "/nowhere", f"isowsgi-test-{os.getpid()}")
    try:
        path.mkdir()
    except OSError as exc:
        pytest.skip(f"no control groups of version 2 that can be changed: {exc}")
    if not (path / "cgroup.kill").exists():
        path.rmdir()
        pytest.skip("this kernel kills no control group: it is older than Linux 5.14")
    yield Subtree(str(path), frozenset())
    for group in [*path.glob("*/"), path]:
        assert cgroups.Group(str(group)).remove()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_gunicorns_processes_make_room_for_groups_and_what_killed_workers_left_is_removed(
    tree: Subtree, sleeper: subprocess.Popen[bytes]
) -> None:
    path = Path(tree.path)
    left = path / "mount-999999999.1-shop"
    left.mkdir()
    (left / "cgroup.procs").write_text(str(sleeper.pid))
    master = subprocess.Popen(["sleep", "600"])
    (path / "cgroup.procs").write_text(str(master.pid))
    try:
        tree.prepare(None)
        tree.prepare((os.getuid(), os.getgid()))  # each worker does

        assert (path / "gunicorn" / "cgroup.procs").read_text() == f"{master.pid}\n"
        assert sleeper.wait() == -9
        assert not left.exists()
    finally:
        master.kill()
        master.wait()


def test_a_worker_that_begins_meanwhile_keeps_its_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begins(_: str) -> list[int]:
        (tmp_path / "mount-6.1-new").mkdir()
        return [5]

    for name in ("mount-4.1-left", "mount-5.1-served"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(cgroups, "_processes", begins)

    Subtree(str(tmp_path), frozenset())._sweep("leaf")

    assert {each.name for each in tmp_path.iterdir()} == {"mount-5.1-served", "mount-6.1-new"}


def test_a_process_enters_its_group_by_a_door_that_it_closes_and_ends_with_it(tree: Subtree) -> None:
    group = tree.make("shop.example.com/a b", [])
    assert Path(group.path).name.endswith("-shop.example.com-a-b")
    door = group.door()
    order = any_order("process").replace(fds=Descriptors(board=0, channel=0, door=door))
    pid = os.fork()
    if not pid:
        try:
            after = walls.enter_group(order)
            assert after.fds is not None
            assert after.fds.door == -1
            os.fstat(door)
        except OSError:
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)"])
        os._exit(1)
    os.close(door)

    eventually(lambda: (Path(group.path) / "cgroup.procs").read_text() == f"{pid}\n", "the process in its group")
    eventually(lambda: group.use().cpu_s > 0, "what it uses")
    assert group.remove()

    assert os.waitpid(pid, 0)[1] == 9
    assert not Path(group.path).exists()
    assert group.remove()
    assert group.use() == (0, 0, 0, 0)


def test_a_limit_that_cannot_be_set_leaves_no_group_behind(tree: Subtree) -> None:
    with pytest.raises(FileNotFoundError):
        tree.make("shop", [("memory.swap.max", "0"), ("memory.max", "1")])

    assert [entry.name for entry in Path(tree.path).iterdir() if entry.is_dir()] == []
