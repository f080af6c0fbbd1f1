"""Clients that are slow or hostile: each stage has its time limit, and an attack leaves nothing behind.

`python bench/isolation.py --only siege` puts far more of them on a server at a time.
"""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor

from tests.conftest import DEADLINE_S, Server, StartServer


def connect_with_small_window(server: Server, receive_bytes: int = 256 * 1024) -> socket.socket:
    """Connect so that little is on its way that was not read: the server's thread has to wait."""
    sock = socket.socket()
    sock.settimeout(DEADLINE_S)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.connect((server.host, server.port))
    return sock


def read_slowly(sock: socket.socket, bytes_per_s: int) -> int:
    """Read to the end, evenly, and return how many bytes came."""
    began = time.monotonic()
    count = 0
    while data := sock.recv(16 * 1024):
        count += len(data)
        time.sleep(max(began + count / bytes_per_s - time.monotonic(), 0))
    return count


def test_a_download_that_moves_is_not_cut_off_however_long_it_takes(serve: StartServer) -> None:
    """A response of one piece, and one sent by the kernel, were taken for standing still from their first byte to their last."""
    server = serve(
        """
        [defaults]
        request_timeout = 1
        [mounts]
        "/big" = "big"
        "/files" = { app = "files", env = { FILE = "file" } }
        """,
        wait_for=2,
        files={"file": "x" * 10 * 2**20},
    )

    def download(path: str) -> int:
        with connect_with_small_window(server) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            return read_slowly(sock, 3 * 2**20)

    with ThreadPoolExecutor(2) as pool:
        assert min(pool.map(download, ["/big", "/files/whole"])) > 10 * 2**20
    assert "no progress" not in server.log()
