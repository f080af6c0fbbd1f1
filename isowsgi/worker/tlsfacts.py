"""What was agreed with a client over TLS, and who it is, as apps find it in the environ."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from typing import Any

# Short names of what certificates call people and places by (RFC 4514 section 3, and what OpenSSL adds to it); others stay as they are.
_SHORT_NAMES = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "surname": "SN",
    "givenName": "GN",
    "userId": "UID",
}


def facts_of(tls: ssl.SSLObject) -> dict[str, str]:
    """Return what was agreed with the client, and who it is, by the names that Apache's mod_ssl gives it."""
    facts = {"SSL_PROTOCOL": tls.version() or "", "SSL_CLIENT_VERIFY": "NONE"}
    if (cipher := tls.cipher()) is not None:
        facts |= {"SSL_CIPHER": cipher[0], "SSL_CIPHER_USEKEYSIZE": str(cipher[2])}
    # Without a demand for certificates none is taken.
    octets = tls.getpeercert(binary_form=True)
    if octets is None:
        return facts
    facts |= {"SSL_CLIENT_VERIFY": "SUCCESS", "SSL_CLIENT_CERT": ssl.DER_cert_to_PEM_cert(octets)}
    certificate: Any = tls.getpeercert()
    return facts | {
        "SSL_CLIENT_S_DN": distinguished_name(certificate["subject"]),
        "SSL_CLIENT_I_DN": distinguished_name(certificate["issuer"]),
        "SSL_CLIENT_M_SERIAL": certificate["serialNumber"],
        "SSL_CLIENT_V_START": certificate["notBefore"],
        "SSL_CLIENT_V_END": certificate["notAfter"],
    }


def distinguished_name(parts: Iterable[Iterable[tuple[str, str]]]) -> str:
    """Return a certificate's subject or issuer as text by RFC 4514: the most particular part first, UTF-8 as PEP 3333 has it.

    Args:
        parts: as `getpeercert` gives them.
    """
    turned = ([*part][::-1] for part in [*parts][::-1])
    text = ",".join("+".join(f"{_SHORT_NAMES.get(name, name)}={_escaped(value)}" for name, value in part) for part in turned)
    return text.encode("utf-8", "replace").decode("latin-1")


def _escaped(value: str) -> str:
    text = re.sub(r'([,+"\\<>;])', r"\\\1", value)
    text = re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\{ord(match[0]):02X}", text)
    if text.startswith(("#", " ")):
        text = "\\" + text
    return text[:-1] + "\\ " if text.endswith(" ") and len(value) > 1 else text
