"""Keys and certificates of a project: an authority of its own, the server's certificate, a key for each site.

**Source** RFC 5280 (certificates), RFC 6125 (names of services).
"""

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedmedgen.errors import RunError

AUTHORITY_DAYS = 3650
RENEW_DAYS = 30  # before its end a certificate is renewed
OWN = ("localhost", "127.0.0.1", "::1")  # as the server's own machine reaches it
Key = ec.EllipticCurvePrivateKey


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP384R1())


def write_key(path: Path, key: Key, *, ssh: bool = False) -> None:
    """A private key that only its owner can read, from the moment the file exists."""
    form = serialization.PrivateFormat.OpenSSH if ssh else serialization.PrivateFormat.PKCS8
    content = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def read_key(path: Path) -> Key:
    """**Raises** `RunError` where there is none of ours."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unreadable("private key", path, error) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _unreadable("private key", path, "it is none of an elliptic curve")
    return key


def public_ssh(key: Key) -> bytes:
    """The public half in OpenSSH's form, as Flower registers it."""
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH) + b"\n"


def authority(key: Key, project: str) -> x509.Certificate:
    """The certificate that the project's others are checked by; it signs itself."""
    name = _name(f"{project} authority")
    usage = _usage(digital_signature=False, key_cert_sign=True, crl_sign=True)
    found = _begun(name, name, key.public_key(), AUTHORITY_DAYS)
    found = found.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return found.add_extension(usage, critical=True).sign(key, hashes.SHA384())


def for_server(key: Key, names: Sequence[str], days: int, by: tuple[Key, x509.Certificate]) -> x509.Certificate:
    """The server's certificate, good for these names and for its own machine's."""
    issuer_key, issuer = by
    usage = _usage(digital_signature=True, key_cert_sign=False, crl_sign=False)
    found = _begun(_name(names[0]), issuer.subject, key.public_key(), days)
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (usage, True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.SubjectAlternativeName([_general(name) for name in dict.fromkeys((*names, *OWN))]), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False),
    ):
        found = found.add_extension(extension, critical=critical)
    return found.sign(issuer_key, hashes.SHA384())


def names_of(certificate: x509.Certificate) -> set[str]:
    """The host names and addresses that a certificate is good for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}


def days_left(certificate: x509.Certificate) -> float:
    """Days until a certificate ends; below 0 where it has."""
    return (certificate.not_valid_after_utc - _now()).total_seconds() / 86400


def write_certificate(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def read_certificate(path: Path) -> x509.Certificate:
    """**Raises** `RunError` where there is none."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable("certificate", path, error) from error


def _unreadable(what: str, path: Path, why: object) -> RunError:
    return RunError(
        f"expected a {what} at {path}, in PEM: {why}. Bring a copy back; where it is the server's and there is none, "
        "delete it and run `fedmedgen provision` again"
    )


def _begun(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    start = _now() - datetime.timedelta(minutes=5)  # clocks differ
    return (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, digital_signature: bool, key_cert_sign: bool, crl_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature, key_cert_sign=key_cert_sign, crl_sign=crl_sign, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _name(words: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, words[:64])])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
