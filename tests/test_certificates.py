"""Files of a certificate: which they are is believed of memory that nobody can have changed, and of no other."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from isowsgi.shared import certificates
from isowsgi.shared.certificates import Files, Pair, Published


def test_what_was_published_is_found_and_cannot_be_changed() -> None:
    said = Published(Files("/etc/ssl/a.pem", "/etc/ssl/a.key"), "/etc/isowsgi.toml")
    fd = certificates.publish(said)
    try:
        assert certificates.published(os.getpid()) == said
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)
    assert certificates.published(os.getpid()) is None


def test_memory_that_can_be_changed_is_not_believed() -> None:
    fd = os.memfd_create("isowsgi-certificate", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, json.dumps([["/etc/ssl/a.pem", "/etc/shadow"], "/etc/isowsgi.toml"]).encode())
        assert certificates.published(os.getpid()) is None
    finally:
        os.close(fd)


def test_a_pair_is_read_and_lent_as_files(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_bytes(b"certificate \xff")
    (tmp_path / "a.key").write_bytes(b"key")
    pair = certificates.read(Files(str(tmp_path / "a.pem"), str(tmp_path / "a.key")))

    with certificates.as_files(pair) as files:
        assert [Path(path).read_bytes() for path in files] == [b"certificate \xff", b"key"]
    assert certificates.digest_of(str(tmp_path / "a.pem")) == pair.digest
    assert certificates.digest_of(str(tmp_path / "nothing")) is None


def test_a_key_with_a_passphrase_is_known() -> None:
    assert certificates.is_encrypted(Pair("", "-----BEGIN ENCRYPTED PRIVATE KEY-----"))
    assert not certificates.is_encrypted(Pair("", "-----BEGIN PRIVATE KEY-----"))
