"""Static files beside nginx: `python -m bench.files [--rounds 5] [--seconds 2]`. Needs wrk and nginx.

The same folder, served by one worker of each, both running; nginx as its manual has it for files (sendfile, tcp_nopush, keep-alive),
without an access log, as isowsgi is. wrk has one thread, and 16 connections for the small file, 4 for the large one. The two take turns;
the figures are the medians of their rounds, and of each round's quotient.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.tls import wrk
from tests.balancers import PATH, own_name
from tests.conftest import eventually, running_server

FILES = {"10 KiB": (10 * 1024, 16), "10 MiB": (10 * 1024 * 1024, 4)}

NGINX = """
daemon off; pid nginx.pid; error_log stderr crit; worker_processes 1; user {user};
events {{}}
http {{
    include /etc/nginx/mime.types;
    client_body_temp_path t; proxy_temp_path t; fastcgi_temp_path t; uwsgi_temp_path t; scgi_temp_path t;
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000;
    server {{ listen 127.0.0.1:{port}; location / {{ root {site}; }} }}
}}
"""


@contextmanager
def nginx(folder: Path, site: Path) -> Iterator[str]:
    """Serve a folder by nginx; return its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "nginx.conf").write_text(NGINX.format(port=port, site=site, user=own_name()))
    program = shutil.which("nginx", path=PATH)
    assert program is not None, "main has looked"
    process = subprocess.Popen([program, "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")])
    try:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: subprocess.run(["curl", "-sf", "-o/dev/null", f"{url}/10 KiB".replace(" ", "%20")], check=False).returncode == 0)
        yield url
    finally:
        process.terminate()
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    options = parser.parse_args()
    if missing := [name for name in ("wrk", "nginx", "curl") if shutil.which(name, path=PATH) is None]:
        print(f"bench/files.py: not found: {', '.join(missing)}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="isowsgi-bench-") as name:
        folder, site = Path(name), Path(name) / "site"
        site.mkdir()
        for file, (size, _) in FILES.items():
            (site / file).write_bytes(os.urandom(size))
        config = f'[mounts]\n"/" = {{ static = "{site}" }}\n'
        with running_server(folder, config, wait_for=1) as server, nginx(folder, site) as other:
            measure({"nginx": other, "isowsgi": server.url}, options.rounds, options.seconds)
    return 0


def measure(urls: dict[str, str], rounds: int, seconds: int) -> None:
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, {rounds} rounds of {seconds} s: medians\n")
    print("| file | nginx, files/s | isowsgi, files/s | isowsgi / nginx |\n|---|---:|---:|---:|")
    for file, (_, connections) in FILES.items():
        found: dict[str, list[float]] = {name: [] for name in urls}
        for _ in range(rounds):
            for name, url in urls.items():
                found[name].append(wrk(f"{url}/{file}".replace(" ", "%20"), connections, seconds)[0])
        quotient = statistics.median(a / b for a, b in zip(found["isowsgi"], found["nginx"], strict=True))
        print(
            f"| {file} | {statistics.median(found['nginx']):,.0f} | {statistics.median(found['isowsgi']):,.0f} | {quotient:.2f} |",
            flush=True,
        )
    print(f"\nload average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    sys.exit(main())
