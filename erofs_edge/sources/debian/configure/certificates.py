# SPDX-License-Identifier: Apache-2.0
"""The trust store of update-ca-certificates: one link per certificate, OpenSSL's hash links, one bundle.

A hash link is named by OpenSSL's X509_NAME_hash of the subject: the first four bytes, little-endian, of the SHA-1 of
the name's canonical encoding (crypto/x509/x_name.c: sets without the outer sequence, strings as UTF-8, lower case in
ASCII, spaces trimmed and collapsed).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import stat
from collections.abc import Iterator

from erofs_edge.errors import SourceError
from erofs_edge.tree import BytesContent, FileTree, Inode

PACKAGED = "usr/share/ca-certificates"
LOCAL = "usr/local/share/ca-certificates"
STORE = "etc/ssl/certs"
LIST = "etc/ca-certificates.conf"
STRINGS = {
    0x0C: "utf-8",
    0x13: "ascii",
    0x14: "latin-1",
    0x16: "ascii",
    0x1A: "ascii",
    0x1C: "utf-32-be",
    0x1E: "utf-16-be",
}
"""DER string tags that the canonical form rewrites as UTF-8"""
SPACES = " \t\n\v\f\r"


def update_certificates(tree: FileTree) -> None:
    """Fill /etc/ssl/certs with the packaged certificates (sorted) and then the local ones, and write their list."""
    packaged = list(_certificates(tree, PACKAGED))
    local = list(_certificates(tree, LOCAL))
    if tree.get(LIST) is None:
        names = [path.removeprefix(PACKAGED + "/") for path, _ in packaged]
        _add_file(tree, LIST, "".join(name + "\n" for name in names).encode())
    else:
        chosen = set(_chosen(tree))
        packaged = [(path, node) for path, node in packaged if path.removeprefix(PACKAGED + "/") in chosen]
    bundle, hashes = [], dict[str, int]()
    for path, node in packaged + local:
        data = node.read()
        bundle.append(data if data.endswith(b"\n") else data + b"\n")
        name = re.sub(r"[ ,]", "_", path.rpartition("/")[2].removesuffix(".crt"))
        pem = re.sub(r"[()]", "=", name) + ".pem"
        _add_link(tree, f"{STORE}/{pem}", f"/{path}")
        subject = subject_hash(data, path)
        _add_link(tree, f"{STORE}/{subject}.{hashes.get(subject, 0)}", pem)
        hashes[subject] = hashes.get(subject, 0) + 1
    _add_file(tree, f"{STORE}/ca-certificates.crt", b"".join(bundle))


def subject_hash(pem: bytes, where: str) -> str:
    """OpenSSL's hash of the subject of the first certificate in a PEM file, eight hexadecimal digits.

    Raises SourceError if the file contains no certificate.
    """
    match = re.search(rb"-----BEGIN (?:TRUSTED )?CERTIFICATE-----(.+?)-----END", pem, re.S)
    try:
        if match is None:
            raise ValueError("no certificate in the file")
        der = base64.b64decode(match[1])
        fields = _items(_first(_items(_first(_items(der)))))
        if fields and fields[0][0] == 0xA0:
            del fields[0]
        canonical = b"".join(_canonical_set(body) for _, body in _items(fields[4][1]))
    except (ValueError, IndexError, binascii.Error) as error:
        raise SourceError(f"not a certificate: {error}", where=where) from error
    return hashlib.sha1(canonical, usedforsecurity=False).digest()[3::-1].hex()


def _certificates(tree: FileTree, top: str) -> Iterator[tuple[str, Inode]]:
    folder = tree.get(top)
    for path, node in FileTree(folder).walk() if folder is not None else ():
        if node.is_file and path.endswith(b".crt"):
            yield top + os.fsdecode(path), node


def _chosen(tree: FileTree) -> list[str]:
    node = tree.get(LIST, follow=True)
    lines = node.read().decode().splitlines() if node is not None else []
    return [line for line in lines if line and not line.startswith(("#", "!"))]


def _add_file(tree: FileTree, path: str, data: bytes) -> None:
    tree.add(path, Inode(stat.S_IFREG | 0o644, content=BytesContent(data), origin="ca-certificates"))


def _add_link(tree: FileTree, path: str, target: str) -> None:
    tree.add(path, Inode(stat.S_IFLNK | 0o777, target=target.encode(), origin="ca-certificates"))


def _items(der: bytes) -> list[tuple[int, bytes]]:
    """(tag, body) of consecutive DER values. Raises ValueError if they do not fit."""
    found, at = [], 0
    while at < len(der):
        tag, length = der[at], der[at + 1]
        at += 2
        if length >= 0x80:
            count = length & 0x7F
            length = int.from_bytes(der[at : at + count], "big")
            at += count
        if at + length > len(der):
            raise ValueError("a value is longer than what holds it")
        found.append((tag, der[at : at + length]))
        at += length
    return found


def _first(items: list[tuple[int, bytes]]) -> bytes:
    return items[0][1]


def _der(tag: int, body: bytes) -> bytes:
    if len(body) < 0x80:
        return bytes((tag, len(body))) + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size))) + size + body


def _canonical_set(body: bytes) -> bytes:
    attributes = []
    for _, attribute in _items(body):
        (oid_tag, oid), (tag, value) = _items(attribute)
        if tag in STRINGS:
            text = value.decode(STRINGS[tag])
            words = [word for word in re.split(f"[{SPACES}]+", text) if word]
            tag, value = 0x0C, re.sub(r"[A-Z]", lambda m: m[0].lower(), " ".join(words)).encode()
        attributes.append(_der(0x30, _der(oid_tag, oid) + _der(tag, value)))
    return _der(0x31, b"".join(sorted(attributes)))
