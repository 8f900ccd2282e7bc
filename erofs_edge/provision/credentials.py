# SPDX-License-Identifier: Apache-2.0
"""Credentials that decide who may flash a board, and prove which board it is: a certificate per side, from a private
authority.

The board's is in its provisioning system, the host's stays in a folder; the authority signs both and is then discarded,
so a third certificate can never exist. Files are named as programs with GnuTLS (nbdkit, libnbd, QEMU) expect.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from erofs_edge.errors import SourceError, UsageError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate

AUTHORITY = "ca-cert.pem"
SERVER = ("server-cert.pem", "server-key.pem")
CLIENT = ("client-cert.pem", "client-key.pem")
ON_BOARD = (AUTHORITY, *SERVER)
NAME = "provisioning"
"""of every board, whatever its address: the authority belongs to the board alone"""
# a board without a clock is in 1970 (RFC 5280, 4.1.2.5: the last date means no end)
BEGIN, END = datetime.datetime(1970, 1, 1), datetime.datetime(9999, 12, 31, 23, 59, 59)


def make_credentials(address: str | None = None) -> dict[str, bytes]:
    """File name → PEM, all new. `address`: an IP address by which the server may also be known."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    authority = ec.generate_private_key(ec.SECP256R1())
    root = _certificate(authority, authority, None)
    files = {AUTHORITY: root.public_bytes(Encoding.PEM)}
    for names, server in ((SERVER, True), (CLIENT, False)):
        key = ec.generate_private_key(ec.SECP256R1())
        files[names[0]] = _certificate(key, authority, root, server=server, address=address).public_bytes(Encoding.PEM)
        files[names[1]] = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return files


def board_credentials(folder: Path) -> dict[str, bytes]:
    """The files of a folder that the board needs. Raises SourceError if one is missing."""
    try:
        return {name: (folder / name).read_bytes() for name in ON_BOARD}
    except OSError as error:
        raise SourceError(
            f"cannot read the board's certificate: {error.strerror}",
            where=str(error.filename),
            hint="name an empty or new folder to get new certificates",
        ) from error


def write_credentials(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files that only their owner can read. Raises UsageError if one exists already, OSError if writing fails."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in files:
        if (folder / name).exists():
            raise UsageError(
                "there is already a certificate here", where=str(folder / name), hint="name another folder"
            )
    # the authority goes last: it marks a folder as complete
    for name, data in sorted(files.items(), key=lambda item: item[0] == AUTHORITY):
        path = folder / name
        path.touch(0o600, exist_ok=False)
        path.write_bytes(data)


def _certificate(
    key: EllipticCurvePrivateKey,
    signer: EllipticCurvePrivateKey,
    issuer: Certificate | None,
    *,
    server: bool = False,
    address: str | None = None,
) -> Certificate:
    """A certificate for `key`, signed by `signer`; the authority's own without an issuer (RFC 5280)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    common = "erofs-edge provisioning authority" if issuer is None else NAME if server else "erofs-edge host"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(BEGIN)
        .not_valid_after(END)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=0 if issuer is None else None), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)
        .add_extension(_usage(authority=issuer is None), True)
    )
    if issuer is not None:
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        made = made.add_extension(x509.ExtendedKeyUsage([purpose]), False)
        if server:
            names: list[x509.GeneralName] = [x509.DNSName(NAME)]
            names += [x509.IPAddress(ipaddress.ip_address(address))] if address else []
            made = made.add_extension(x509.SubjectAlternativeName(names), False)
    return made.sign(signer, hashes.SHA256())


def _usage(*, authority: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not authority, key_cert_sign=authority, crl_sign=False, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
