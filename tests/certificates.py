"""Certificates for tests: an authority, what it signs, and TLS contexts of clients; by the program `openssl`."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path

# Not the system's file, whose extensions differ; those here satisfy VERIFY_X509_STRICT, the default from Python 3.13 on.
_CONFIG = """
[req]
distinguished_name = dn
string_mask = utf8only
[dn]
[authority]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:false
subjectAltName = DNS:localhost, IP:127.0.0.1
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[hosts]
basicConstraints = critical, CA:false
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[client]
basicConstraints = critical, CA:false
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


class Authority:
    """Signs certificates.

    Args:
        folder: where all of them are put.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "openssl.cnf").write_text(_CONFIG)
        self.path = self._make("authority", "/CN=Test Authority")

    def sign(self, kind: str, subject: str = "/CN=localhost", name: str = "", hosts: Sequence[str] = ()) -> tuple[Path, Path]:
        """Return the files of a new certificate and its key.

        Args:
            kind: "server" or "client".
            hosts: that a server's is for, in place of localhost.
        """
        for_hosts = ["-addext", "subjectAltName=" + ",".join(f"DNS:{host}" for host in hosts)] if hosts else []
        by = ["-CA", str(self.path), "-CAkey", str(self.path.with_suffix(".key"))]
        path = self._make(kind if not hosts else "hosts", subject, *by, *for_hosts, name=name or kind)
        return path, path.with_suffix(".key")

    def _make(self, kind: str, subject: str, *more: str, name: str = "") -> Path:
        path = self._folder / f"{name or kind}.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-utf8"),
                *("-config", str(self._folder / "openssl.cnf"), "-extensions", kind, "-subj", subject, *more),
                *("-out", str(path), "-keyout", str(path.with_suffix(".key"))),
            ],
            check=True,
            capture_output=True,
        )
        return path

    def client_context(self, certificate: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """Return a client's context that trusts this authority and takes no end of a connection that TLS does not say."""
        context = ssl.create_default_context(cafile=str(self.path))
        if certificate is not None:
            context.load_cert_chain(*map(str, certificate))
        return context
