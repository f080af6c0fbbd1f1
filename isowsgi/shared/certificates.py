"""The files of a server's certificate: as they were read, and where they are.

Root's command may read a key that the workers may not, and gives it to them. So which files those are must not be the workers' word: they
could name any key on the machine. The master says it in memory that only it can have written, see `publish` and `published`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from typing import NamedTuple

from isowsgi.shared import regularfiles

# Most bytes of either file: a certificate with its chain has some 6 KiB.
_MOST_BYTES = 256 * 1024

_MEMORY = "isowsgi-certificate"
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Files(NamedTuple):
    """Where a certificate and its key are; absolute paths."""

    certificate: str
    key: str


class Pair(NamedTuple):
    """What is in them, as PEM."""

    certificate: str
    key: str

    @property
    def digest(self) -> str:
        """Return what tells the certificate from others."""
        return hashlib.sha256(self.certificate.encode("latin-1", "replace")).hexdigest()


def name_of(path: str) -> str:
    """Return what the certificate in a file is called among what differs, and what stays as it is."""
    return f"certificate {path}"


def read(files: Files) -> Pair:
    """Return what is in the files now.

    Raises:
        OSError, NotRegular: one cannot be read.
    """
    return Pair(*(regularfiles.read(path, _MOST_BYTES).decode("latin-1") for path in files))


def is_encrypted(pair: Pair) -> bool:
    """Whether its key cannot be read without a passphrase: OpenSSL would ask for it at the terminal, and wait."""
    return "ENCRYPTED" in pair.key  # as both forms of PEM have it


def digest_of(path: str) -> str | None:
    """Return the digest of the certificate in a file, see `Pair`; None if it cannot be read."""
    try:
        return Pair(regularfiles.read(path, _MOST_BYTES).decode("latin-1"), "").digest
    except (OSError, ValueError, regularfiles.NotRegular):
        return None


@contextlib.contextmanager
def as_files(pair: Pair) -> Iterator[Files]:
    """Put a pair where OpenSSL, which reads files only, can read it: in this process' memory."""
    with contextlib.ExitStack() as stack:
        paths = []
        for text in pair:
            file = stack.enter_context(open(os.memfd_create("isowsgi-pem", os.MFD_CLOEXEC), "wb"))
            file.write(text.encode("latin-1"))
            file.flush()
            paths.append(f"/proc/self/fd/{file.fileno()}")
        yield Files(*paths)


def publish(files: Files) -> int:
    """Return the descriptor of memory that says which files they are, and that nobody can change."""
    fd = os.memfd_create(_MEMORY, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, json.dumps(files).encode())
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def published(master: int) -> Files | None:
    """Return what a process has published, for who may look into it; None if nothing."""
    folder = f"/proc/{master}/fd"
    try:
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if os.readlink(path) == f"/memfd:{_MEMORY} (deleted)":
                with open(path, "rb") as file:
                    if fcntl.fcntl(file, fcntl.F_GET_SEALS) == _SEALS:
                        certificate, key = json.loads(file.read(_MOST_BYTES))
                        return Files(str(certificate), str(key))
    except (OSError, ValueError, TypeError):
        return None
    return None
