"""What the relay tells of a certificate, beside what OpenSSL makes of it."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from isowsgi.worker.tlsfacts import distinguished_name
from tests.certificates import Authority


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
@pytest.mark.parametrize(
    "subject",
    [
        "/C=CH/ST=Bern/L=Bern/O=Example AG/OU=IT/CN=Alice Example",
        "/DC=com/DC=example/UID=alice/CN=Alice",
        '/CN=a,b\\+c"d<e>f;g',
        "/CN=#1 = one",
        "/CN= two blanks ",
        "/CN=back\\\\slash",
        "/O=one/CN=two+CN=three",
    ],
)
def test_a_distinguished_name_is_what_openssl_makes_of_it(tmp_path: Path, subject: str) -> None:
    path, _ = Authority(tmp_path).sign("client", subject)
    command = ["openssl", "x509", "-in", str(path), "-noout", "-subject", "-nameopt", "RFC2253"]
    expected = subprocess.run(command, capture_output=True, check=True, text=True).stdout.removeprefix("subject=").removesuffix("\n")
    certificate: Any = ssl._ssl._test_decode_cert(str(path))  # type: ignore[attr-defined] # as getpeercert decodes it

    assert distinguished_name(certificate["subject"]) == expected


def test_a_distinguished_name_is_utf_8_in_latin_1_as_an_environ_has_it() -> None:
    assert distinguished_name([[("commonName", "K\xe4se")]]) == "CN=K\xc3\xa4se"


def test_control_characters_are_written_as_numbers() -> None:
    assert distinguished_name([[("commonName", "a\r\nb\0")]]) == "CN=a\\0D\\0Ab\\00"
