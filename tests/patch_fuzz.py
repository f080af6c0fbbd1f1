"""Whether an app can break what serves it by patching the standard library: `python -m tests.patch_fuzz` (`make patch-fuzz`).

A mount replaces every public attribute of every module of the standard library that serving touches, all at once: by something that
raises, or by something that returns nonsense. Then requests of all kinds, time limits, logs, stacks, a reload and the stop must work. If
they do, they use nothing of all that. If something fails, the names are halved until those that matter are left.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from isowsgi.shared import interpreters
from tests.conftest import APPS, ROOT, Server, running_server

ISOLATIONS = tuple(dict.fromkeys([interpreters.best_isolation(), interpreters.SHARED_GIL, interpreters.PROCESS]))
KINDS = ("raises", "nonsense")

# Not patched: CPython's own C code calls what is in these. No file could be read as text, and no app would run.
_NEEDED_BY_PYTHON = ("builtins", "__main__", "codecs")

_LIST = """
import importlib.util, os, sys
import gunicorn
folders = {{"isowsgi": {root!r}, "gunicorn": os.path.dirname(os.path.dirname(gunicorn.__file__))}}
spec = importlib.util.spec_from_file_location("isowsgi.inside.private", {root!r} + "/isowsgi/inside/private.py")
private = importlib.util.module_from_spec(spec)
spec.loader.exec_module(private)
table = private.build(folders)
table.load("isowsgi.inside.boot")
table.load("isowsgi.inside.hooks")
print(*sorted(name for name in table.modules if name.partition(".")[0] not in folders))
"""


def touched_modules() -> list[str]:
    """Return the modules of the standard library that our code imports, directly or not, inside an interpreter."""
    command = [sys.executable, "-c", _LIST.format(root=str(ROOT))]
    names = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    return [name for name in names if name not in _NEEDED_BY_PYTHON]


def names_of(modules: Sequence[str]) -> list[str]:
    """Return all names that can be patched in modules."""
    code = (
        "import importlib, sys\nfor n in sys.argv[1:]:\n  for a in dir(importlib.import_module(n)):\n    if a[0] != '_': print(n + '.' + a)"
    )
    return subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=True).stdout.split()


def mount(
    pattern: str,
    isolation: str,
    kind: str,
    modules: Sequence[str],
    names: Sequence[str] | None = None,
    folder: str = "",
    at_import: bool = False,
) -> str:
    """Return a mount's lines of a config file."""
    patches = json.dumps({"modules": list(modules), "names": names and list(names), "kind": kind, "at_import": at_import})
    name = pattern.replace("/", "-")
    touch = f", touch = '{folder}/touch{name}'" if folder else ""
    settings = f"app = 'patched', isolation = '{isolation}', request_timeout = 1, threads = 3{touch}"
    return f"{json.dumps(pattern)} = {{ {settings}, env = {{ PATCHES = {json.dumps(patches)} }} }}\n"


def faults(server: Server, pattern: str) -> Iterator[str]:
    """Yield what does not work in a mount."""
    tag = f"{pattern} #1: "

    def expect(what: str, answer: bytes, wanted: bytes) -> Iterator[str]:
        if not re.search(wanted, answer, re.DOTALL):
            yield f"{what}: {answer[:200]!r}"

    head = f"Host: x\r\n{'X-Y: z' * 2}\r\n".encode()
    get = b"GET " + pattern.encode()
    yield from expect("the request that patches", _exchange(server, get + b"/patch HTTP/1.0\r\n\r\n"), rb"^HTTP/1.0 200")
    two = get + b"/ HTTP/1.1\r\n" + head + b"\r\n" + get + b"/a%20b?c=d HTTP/1.1\r\nConnection: close\r\n" + head + b"\r\n"
    yield from expect("two requests on a connection", _exchange(server, two), rb"^HTTP/1.1 200.*ok.*HTTP/1.1 200.*ok$")
    post = b"POST " + pattern.encode() + b"/echo HTTP/1.1\r\nConnection: close\r\n" + head
    chunked = post + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: u\r\n\r\n"
    yield from expect("a chunked body", _exchange(server, chunked), rb"^HTTP/1.1 200.*abcde$")
    yield from expect("a body", _exchange(server, post + b"Content-Length: 4\r\n\r\nbody"), rb"^HTTP/1.1 200.*body$")
    close = b" HTTP/1.1\r\nConnection: close\r\n" + head + b"\r\n"
    odd = get.replace(b"GET /", b"GET http://x/") + b"/" + close.replace(b"X-Y", b"X_Y")
    yield from expect("a request for gunicorn's parser", _exchange(server, odd), rb"^HTTP/1.1 200.*ok$")
    yield from expect("a file", _exchange(server, get + b"/file" + close), rb"^HTTP/1.1 200.*json.loads")
    yield from expect("an exception", _exchange(server, get + b"/raise" + close), rb"^HTTP/1.1 500")
    yield from expect("a time limit", _exchange(server, get + b"/slow" + close), rb"^HTTP/1.1 504")
    yield from expect("output", _exchange(server, get + b"/print" + close), rb"^HTTP/1.1 200.*ok$")
    command = [sys.executable, "-m", "isowsgi", "stacks", pattern, "--config", str(server.folder / "isowsgi.toml")]
    stacks = subprocess.run(command, capture_output=True, cwd=ROOT, check=False, timeout=30)
    yield from expect("stacks", stacks.stdout + stacks.stderr, rb"isowsgi-\d")
    for wanted in (
        rf"{tag}Error handling request GET {pattern}/raise\n(?:.*\n)+?  \| RuntimeError: raised on purpose\n",
        rf"{tag}no progress for .*{pattern}/slow",
        rf"{tag}printed on purpose\n",
    ):
        yield from _in_log(server.log_path, wanted)
    yield from _in_log(server.folder / "access.log", rf"GET {pattern}/print HTTP/1.1")
    touch = server.folder / f"touch{pattern.replace('/', '-')}"
    if touch.exists():
        touch.write_text("x")
        missing = list(_in_log(server.log_path, rf"{pattern} #2: serving(?:.*\n)+?.*{pattern} #1: (?:drained|ended|closed)", 15))
        yield from missing
        if not missing:
            yield from expect("a reload", _exchange(server, get + b"/" + close), rb"^HTTP/1.1 200.*ok$")


def _exchange(server: Server, data: bytes) -> bytes:
    """Send bytes and return what came until the connection ended, however it did."""
    answer = b""
    try:
        with socket.create_connection((server.host, server.port), 30) as sock:
            sock.sendall(data)
            while chunk := sock.recv(65536):
                answer += chunk
    except OSError as exc:
        return answer + f" ({exc})".encode()
    return answer


def _in_log(path: Path, pattern: str, seconds: float = 30.0) -> Iterator[str]:
    end = time.monotonic() + seconds
    while not (path.exists() and re.search(pattern, path.read_text(errors="replace"))):
        if time.monotonic() > end:
            yield f"not in {path.name}: {pattern}"
            return
        time.sleep(0.02)


def mistakes(log: str) -> list[str]:
    """Return the lines that say that isowsgi itself made a mistake."""
    return re.findall(r"(?m)^.*(?:internal error|please report|exited with code|did not end|killed).*$", log)


def trial(isolation: str, kind: str, modules: Sequence[str], names: Sequence[str] | None) -> list[str]:
    """Return what fails in a server of its own."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "touch-m").write_text("")
        mounts = f"{mount('/m', isolation, kind, modules, names, text)}'/good' = 'hello'\n"
        config = f"[defaults]\npythonpath = ['{APPS}']\nboot_timeout = 20\n[mounts]\n{mounts}"
        with running_server(folder, config, "--access-logfile", str(folder / "access.log"), wait_for=0) as server:
            found = list(_in_log(server.log_path, "/m #1: serving", 25))
            if not found:
                server.learn_port()
                found = list(faults(server, "/m"))
                code = server.stop()
                found += [f"exit code {code}"] if code else []
            found += mistakes(server.log())
            if found:
                print(server.log()[-6000:], server.output()[-6000:])
        return found


def culprits(isolation: str, kind: str, modules: Sequence[str], names: list[str]) -> list[str]:
    """Return names each of which breaks something alone, by halves; or a set of which only all together do."""
    if len(names) == 1:
        return names
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    found = [name for half in halves if trial(isolation, kind, modules, half) for name in culprits(isolation, kind, modules, half)]
    return found or names


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.patch_fuzz", description="Patch what serves. Ends with 1 at a failure.")
    parser.add_argument("--isolation", choices=ISOLATIONS, action="append")
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("names", nargs="*", help="names to patch (socket.socket); all if there is none")
    options = parser.parse_args()
    modules = touched_modules()
    failed = 0
    for isolation in options.isolation or ISOLATIONS:
        for kind in options.kind or KINDS:
            names = options.names or names_of(modules)
            found = trial(isolation, kind, modules, names)
            print(f"{isolation}, {kind}: {len(names)} names in {len(modules)} modules: {'; '.join(found) or 'nothing fails'}", flush=True)
            if found and len(names) > 1:
                print(f"because of: {' '.join(culprits(isolation, kind, modules, names))}", flush=True)
            failed |= bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
