"""Code that was taken over: `POST /NAME` with what it knows of its surroundings as JSON tries an attack, and says whether it came off."""

import contextlib
import ctypes
import json
import mmap
import os
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ATTACKS = {}


def attack(function):
    ATTACKS[function.__name__] = function
    return function


@attack
def read_env(place):
    return Path(place["folder"], ".env").read_text()


@attack
def list_folder(place):
    return os.listdir(place["folder"])


@attack
def write_file(place):
    Path(place["folder"], "new").write_text("x")


@attack
def overwrite_file(place):
    Path(place["folder"], "victim").write_text("x")


@attack
def cut_off_file(place):
    os.truncate(Path(place["folder"], "victim"), 0)


@attack
def remove_file(place):
    os.remove(Path(place["folder"], "victim"))


@attack
def link_file(place):
    with tempfile.TemporaryDirectory() as own:
        os.link(Path(place["folder"], ".env"), Path(own, "link"))
        Path(own, "link").read_text()


@attack
def follow_symlink(place):
    with tempfile.TemporaryDirectory() as own:
        os.symlink(Path(place["folder"], ".env"), Path(own, "link"))
        Path(own, "link").read_text()


@attack
def change_mode(place):
    os.chmod(Path(place["folder"], "victim"), 0o644)


@attack
def poison_bytecode(place):
    Path(place["apps"], "__pycache__").mkdir(exist_ok=True)
    planted = Path(place["apps"], "__pycache__", f"planted-{os.getpid()}.pyc")
    planted.write_bytes(b"")
    planted.unlink()


@attack
def write_to_shared_tmp(place):
    planted = Path(place["shared tmp"], f"planted-{os.getpid()}")
    planted.write_text("x")
    planted.unlink()


@attack
def read_shadow(place):
    Path("/etc/shadow").read_text()


@attack
def read_config(place):
    Path(place["config"]).read_text()


@attack
def read_log(place):
    Path(place["log"]).read_text()


@attack
def forge_log(place):
    with open(place["log"], "a") as file:
        file.write("")


@attack
def read_environ(place):
    assert Path(f"/proc/{place['neighbour']}/environ").read_bytes()


@attack
def read_memory(place):
    with open(f"/proc/{place['neighbour']}/maps") as maps, open(f"/proc/{place['neighbour']}/mem", "rb") as memory:
        memory.seek(int(maps.readline().split("-")[0], 16))
        memory.read(8)


@attack
def trace_worker(place):
    _check(ctypes.CDLL(None, use_errno=True).ptrace(0x4206, place["worker"], None, None))  # PTRACE_SEIZE, which stops nothing


@attack
def take_descriptor(place):
    pidfd = os.pidfd_open(place["worker"])
    _check(fd := ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, 1, 0))  # pidfd_getfd
    os.close(fd)


@attack
def signal_worker(place):
    os.kill(place["worker"], 0)


@attack
def signal_master(place):
    os.kill(place["master"], 0)


@attack
def signal_neighbour(place):
    os.kill(place["neighbour"], 0)


@attack
def limit_neighbour(place):
    resource.prlimit(place["neighbour"], resource.RLIMIT_CORE)


@attack
def connect_to_abstract_socket(place):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0" + place["abstract"])


@attack
def connect_to_port(place):
    socket.create_connection(("127.0.0.1", place["port"]), 5).close()


@attack
def listen_on_port(place):
    socket.create_server(("127.0.0.1", 0)).close()


@attack
def open_control_socket(place):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(place["control"])


@attack
def execute_what_it_wrote(place):
    with tempfile.TemporaryDirectory() as own:
        program = Path(own, "program")
        program.write_text("#!/bin/sh\nexit 0\n")
        program.chmod(0o755)
        subprocess.run([str(program)], check=True)


@attack
def use_roots_rights(place):
    os.chroot("/")


@attack
def gain_rights_by_exec(place):
    status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines())
    assert status["NoNewPrivs"] == "0"


@attack
def raise_limits(place):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert hard != resource.RLIM_INFINITY, "there is none"
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard + 1))


@attack
def take_all_memory(place):
    hoard = [bytearray(2**20) for _ in range(400)]
    assert hoard


@attack
def take_all_descriptors(place):
    with contextlib.ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(open(os.devnull))


@attack
def fill_the_disk(place):
    with tempfile.TemporaryFile() as file:
        for _ in range(40):
            file.write(bytes(2**16))


@attack
def escape_by_a_child(place):
    text = f"open({str(Path(place['folder'], '.env'))!r}).read()"
    subprocess.run([sys.executable, "-I", "-c", text], check=True, capture_output=True)


@attack
def write_on_the_scoreboard(place):
    """Find the neighbour's rows, by the names of all mounts that stand there."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if "isowsgi-scoreboard" in os.readlink(f"/proc/self/fd/{name}") and (found := _find(int(name), b'"/neighbour"')):
                with _mapped(int(name), found) as memory:
                    memory[found % 4096] = memory[found % 4096]
                return
    raise LookupError("nothing of a neighbour's is there")


def _mapped(fd, place):
    """Return memory from the page of a place on; `pwrite` would stop at the limit for the size of files."""
    return mmap.mmap(fd, 2**16, offset=place - place % 4096)


def _find(fd, text):
    end = 0
    with contextlib.suppress(OSError):  # no more data
        while True:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
            if (place := os.pread(fd, end - start, start).find(text)) >= 0:
                return start + place
    return 0


def make_noise():
    """Write anything to all that this process shares with the worker."""
    fds = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the folder
            fds[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    for fd, target in fds.items():
        if "isowsgi-scoreboard" in target:
            with _mapped(fd, os.lseek(fd, 0, os.SEEK_DATA)) as memory:
                memory[:] = os.urandom(2**16)
    report = json.dumps({"is": "Extensions", "extensions": [["a", "b"]] * 1000}).encode()
    for fd, target in fds.items():
        if target.startswith("socket:"):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
                if sock.family == socket.AF_UNIX:
                    sock.settimeout(0.2)
                    for _ in range(2000):
                        sock.send(os.urandom(9))
                        sock.send(report)


def boast():
    """Say all the time to have served more, and more."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if "isowsgi-scoreboard" in os.readlink(f"/proc/self/fd/{name}"):
                fd = int(name)
    with _mapped(fd, os.lseek(fd, 0, os.SEEK_DATA)) as memory:
        for number in range(1, 10**6):
            memory[:] = number.to_bytes(8, sys.byteorder) * (2**16 // 8)
            time.sleep(0.02)


def close_slowly():
    """Have whoever closes this client's connection last wait until the client has read all, or for ten minutes."""
    for sock in _sockets(socket.AF_INET):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 400_000)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 600))


def cut_off():
    """Shut down all sockets to the worker: the worker has the same ends, and they are shut down there too."""
    for sock in _sockets(socket.AF_UNIX):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def talk_nonsense():
    """Report what makes no sense."""
    for sock in _sockets(socket.AF_UNIX):
        with contextlib.suppress(OSError):
            sock.send(b"nonsense.")


def _sockets(family):
    """Yield this process' sockets of a family, by descriptors of their own."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as sock:
            if sock.family == family:
                yield sock


def _check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def application(environ, start_response):
    name = environ["PATH_INFO"].removeprefix("/")
    place = json.loads((name != "linger" and environ["wsgi.input"].read()) or b"{}")
    told = {"pid": os.getpid(), "tmp": tempfile.gettempdir(), "attacks": list(ATTACKS)}
    if name == "noise":
        make_noise()
    if name == "linger":
        close_slowly()
        told["padding"] = "x" * 200_000
    if name == "boast":
        boast()
    if name == "cut":
        cut_off()
    if name == "nonsense":
        talk_nonsense()
    if name in ATTACKS:
        try:
            ATTACKS[name](place)
            told["outcome"] = "succeeds"
        except BaseException as exc:
            told["outcome"] = f"{type(exc).__name__}: {exc}"
    body = json.dumps(told).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
