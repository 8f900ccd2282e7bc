# SPDX-License-Identifier: Apache-2.0
"""Typed values that say where a system's content comes from: part of the vocabulary of model.py."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from erofs_edge.manifest.words import HostPath, Line, Name, Sha256

Arch = Literal["arm64", "armhf", "armel", "amd64", "i386", "riscv64", "ppc64el", "s390x", "loong64"]
"""Debian's words for architectures"""

ImageReference = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9.-]+(:[0-9]{1,5})?/[a-z0-9]+([._/-]+[a-z0-9]+)*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?"
        r"(@sha256:[0-9a-f]{64})?$",
        extra={"says": "an image with its registry, as in registry.example/app:1.2 or …@sha256:…"},
    ),
]
ArchiveUri = Annotated[
    str,
    Meta(
        pattern=r"^(https?://[^\s/]+|file:)/?[^\s\[\]]*$",
        extra={"says": "the URI of a package archive: https://, http:// or file:"},
    ),
]
SuiteName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9./_+-]+$",
        extra={"says": "a suite as in apt's sources, or a path that ends in '/' for an archive without suites"},
    ),
]


class Oci(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A container image: exactly one of `image` (in a registry) or `layout` (on this machine)."""

    image: ImageReference | None = None
    """registry/name:tag or registry/name@sha256:…; the lock pins the digest of a tag"""
    layout: HostPath | None = None
    """an OCI image layout, relative to this file: a directory, or a tar of one"""
    name: Line | None = None
    """which image to use from a layout that holds several: its org.opencontainers.image.ref.name"""
    plain_http: bool = False
    """use HTTP without TLS; registries on this machine are always reached that way"""


class Archive(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A package archive in addition to the suite's own: another suite of Debian's, or a third party's."""

    uri: ArchiveUri | None = None
    """address of the archive; not given: the Debian mirror"""
    suite: SuiteName
    """the suite, such as trixie-backports; './' for an archive without suites"""
    components: list[Name] = []
    """components of the suite; an archive without suites has none"""
    key: HostPath | None = None
    """the OpenPGP key that signs it, relative to this file, armored or not; needed with `uri`"""


class LockedSource(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A pinned source or base."""

    kind: Literal["base", "directory", "oci", "tar"]
    """as in the manifest"""
    name: Line
    """as in the manifest: a path relative to it, or an image reference"""
    sha256: Sha256
    """hash of the file; for an image, its manifest's digest; for a directory, over names, kinds and contents"""
    size: int = 0
    """bytes of the file, of the stored layers, or of all files"""
