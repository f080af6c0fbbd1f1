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
import time
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

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


class Facts(NamedTuple):
    """What a certificate says of itself.

    Attributes:
        names: hosts that it is for, lower case.
        expires: seconds since the epoch.
    """

    names: tuple[str, ...]
    expires: float


class Told(NamedTuple):
    """A certificate that serves, as people and monitors are told of it.

    Attributes:
        hosts: that get it; none: all others do.
        path: of its file.
        expires: seconds since the epoch; None if it does not say in a way that we read.
    """

    hosts: tuple[str, ...]
    path: str
    expires: float | None


def facts_of(pair: Pair) -> Facts | None:
    """Return what a certificate says of itself; None if it says it in a way that we do not read."""
    import _ssl  # late: few servers have TLS of their own
    import ssl

    try:
        with as_files(pair) as files:
            # No public function decodes a certificate that is no peer's. CPython's own tests have used this one since 2.6.
            said: dict[str, Any] = _ssl._test_decode_cert(files.certificate)  # type: ignore[attr-defined]
        names = tuple(str(name).lower() for kind, name in said.get("subjectAltName", ()) if kind == "DNS")
        return Facts(names, float(ssl.cert_time_to_seconds(said["notAfter"])))
    except (AttributeError, OSError, ValueError, KeyError, TypeError):
        return None


def expiry_of(files: Files) -> float | None:
    """Return until when the certificate in a file is valid, in seconds since the epoch; None if that is not known."""
    try:
        facts = facts_of(Pair(read_one(files.certificate), ""))
    except (OSError, ValueError, regularfiles.NotRegular):
        return None
    return facts and facts.expires


def warnings_of(facts: Facts | None, hosts: Collection[str], now: float) -> Iterator[str]:
    """Yield what a client will not like about a certificate.

    Args:
        hosts: that get it; a wildcard stands for one label, in both (RFC 6125 section 6.4.3).
        now: seconds since the epoch.
    """
    if facts is None:
        return
    if facts.expires <= now:
        yield f"it expired at {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(facts.expires))} UTC; renew it, then run isowsgi apply"
    unnamed = [host for host in hosts if host not in facts.names and f"*.{host.partition('.')[2]}" not in facts.names]
    if unnamed:
        names = ", ".join(facts.names) or "no host"
        yield f"it is not for {', '.join(unnamed)}, so clients will refuse it there; it names {names}"


def name_of(path: str) -> str:
    """Return what the certificate in a file is called among what differs, and what stays as it is."""
    return f"certificate {path}"


def read(files: Files) -> Pair:
    """Return what is in the files now.

    Raises:
        OSError, NotRegular: one cannot be read.
    """
    return Pair(*map(read_one, files))


def read_one(path: str) -> str:
    """Return what is in one of the files now, see `read`."""
    return regularfiles.read(path, _MOST_BYTES).decode("latin-1")


def fault_of(pair: Pair) -> str:
    """Say why nobody could serve with a pair, or return ""."""
    import ssl  # late: few servers have TLS of their own

    if is_encrypted(pair):
        return "the key has a passphrase"
    try:
        with as_files(pair) as files:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*files)
    except ssl.SSLError as exc:
        if exc.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            return f"the key is not this certificate's ({exc.reason})"
        return str(exc)
    except (OSError, ValueError) as exc:
        return str(exc)
    return ""


def is_encrypted(pair: Pair) -> bool:
    """Whether its key cannot be read without a passphrase: OpenSSL would ask for it at the terminal, and wait."""
    return "ENCRYPTED" in pair.key  # as both forms of PEM have it


def digest_of(path: str) -> str | None:
    """Return the digest of the certificate in a file, see `Pair`; None if it cannot be read."""
    try:
        return Pair(read_one(path), "").digest
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


class Published(NamedTuple):
    """What the master says in its memory.

    Attributes:
        files: of gunicorn's own certificate; None: its settings name none.
        config: path of the config file, whose `[[tls]]` tables name the others.
    """

    files: Files | None
    config: str


def publish(what: Published) -> int:
    """Return the descriptor of memory that says it, and that nobody can change."""
    fd = os.memfd_create(_MEMORY, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, json.dumps(what).encode())
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def published(master: int) -> Published | None:
    """Return what a process has published, for who may look into it; None if nothing."""
    folder = f"/proc/{master}/fd"
    try:
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if os.readlink(path) == f"/memfd:{_MEMORY} (deleted)":
                with open(path, "rb") as file:
                    if fcntl.fcntl(file, fcntl.F_GET_SEALS) == _SEALS:
                        files, config = json.loads(file.read(_MOST_BYTES))
                        return Published(None if files is None else Files(*map(str, files)), str(config))
    except (OSError, ValueError, TypeError):
        return None
    return None
