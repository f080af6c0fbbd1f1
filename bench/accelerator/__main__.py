"""What a small C accelerator would bring: `python -m bench.accelerator`. Needs a C compiler and Python's headers.

Compiles sketch.c to a folder to throw away, and times its one function beside the two that it stands for.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import timeit
from pathlib import Path
from typing import Any

from gunicorn.config import Config

from bench.linkage import linkage_of
from isowsgi.configuration.crossing import snapshot
from isowsgi.inside.plainrequest import PlainReader, PlainSettings
from isowsgi.inside.settings import Settings
from isowsgi.shared.peek import Peeker
from isowsgi.shared.routing import Route, Router

HEADS = {
    "wrk's": b"GET /hello/ HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n\r\n",
    "a browser's": b"GET /hello/a/page?x=1 HTTP/1.1\r\nHost: example.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0)\r\n"
    b"Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en\r\nAccept-Encoding: gzip, br\r\nDNT: 1\r\n"
    b"Connection: keep-alive\r\nCookie: session=0123456789abcdef0123456789abcdef\r\nUpgrade-Insecure-Requests: 1\r\n\r\n",
}

_NUMBER = 20_000
_ROUNDS = 25


def main() -> None:
    cfg = Settings(snapshot(Config()))
    peeker = Peeker(Router([Route(0, "", "/hello"), Route(1, "", "/shop")]), cfg)
    base: dict[str, Any] = {f"wsgi.{number}": number for number in range(14)} | {"SERVER_NAME": "127.0.0.1"}
    peer = ("127.0.0.1", 50000)
    with tempfile.TemporaryDirectory(prefix="isowsgi-bench-") as folder:
        sketch = _compiled(folder)
        print("| head | Python, us | fields as before, us | C, us |\n|---|---:|---:|---:|")
        for name, head in HEADS.items():
            reader = PlainReader(base, PlainSettings(cfg, len("/hello")), None, peer)

            def read(reader: PlainReader = reader, head: bytes = head, repeats: bool = False) -> object:
                length, _, line, _ = peeker.find(head, peer, first_look=False, fields=reader.block if repeats else b"")
                assert line is not None
                return reader.read(line, repeats, head, length)

            assert sketch.read(head, base, len("/hello")) is not None
            times = [_us(read), _us(lambda read=read: read(repeats=True)), _us(lambda head=head: sketch.read(head, base, 6))]
            print(f"| {name} | " + " | ".join(f"{time:.2f}" for time in times) + " |")


def _compiled(folder: str) -> Any:
    path = os.path.join(folder, "sketch" + str(sysconfig.get_config_var("EXT_SUFFIX")))
    compiler = shlex.split(str(sysconfig.get_config_var("CC") or "cc"))
    source = Path(__file__).with_name("sketch.c")
    command = [*compiler, "-O2", "-shared", "-fPIC", f"-I{sysconfig.get_path('include')}", str(source), "-o", path]
    subprocess.run(command, env={**os.environ, **linkage_of(sys.executable).build_environ}, check=True)
    spec = importlib.util.spec_from_file_location("sketch", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _us(function: Any) -> float:
    return min(timeit.repeat(function, number=_NUMBER, repeat=_ROUNDS)) / _NUMBER * 1e6


if __name__ == "__main__":
    main()
