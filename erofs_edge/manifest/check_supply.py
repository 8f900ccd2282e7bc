# SPDX-License-Identifier: Apache-2.0
"""Rules for where a manifest's content comes from."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn

from erofs_edge.manifest.model import Source, System

Fail = Callable[..., NoReturn]

SOURCE_KINDS = ("directory", "tar", "oci")
RESERVED = ("debian", "debian-security", "local")
"""names of archives that have a special meaning in a lock"""


def check_supply(system: System, fail: Fail) -> None:
    """Check base, sources, package files and archives: that they exist and go together."""
    if system.base is not None and not os.path.exists(system.base):
        fail("base", f"no such image: {system.base}", "name an EROFS file, or the output folder of a build")
    for index, source in enumerate(system.sources):
        _check_source(f"sources.{index}", source, fail)
    names: dict[str, str] = {}
    for index, path in enumerate(system.debs):
        pointer, name = f"debs.{index}", os.path.basename(path)
        if not name.endswith(".deb"):
            fail(pointer, f"not a package file by its name: {name}")
        if not os.path.isfile(path):
            fail(pointer, f"no such file: {path}")
        if name in names:
            fail(pointer, f"a second package file of the name {name}")
        names[name] = path
    for name, archive in system.archives.items():
        pointer = f"archives.{name}"
        if name in RESERVED:
            fail(pointer, f'"{name}" is not free: the lock means something else by it')
        if archive.uri is not None and archive.key is None:
            fail(pointer, 'an archive of somebody else needs the "key" that signs it')
        if archive.key is not None and not os.path.isfile(archive.key):
            fail(f"{pointer}.key", f"no such file: {archive.key}")
        flat = archive.suite.endswith("/")
        if flat and archive.components:
            fail(f"{pointer}.components", "an archive without suites has no components")
        if not flat and not archive.components:
            fail(pointer, 'a suite needs "components", as in [main]')


def check_layers(system: System, fail: Fail) -> None:
    """Check the images included in a system: each manifest exists and is listed once, and the including one is a
    system."""
    for index, path in enumerate(system.layers):
        pointer = f"layers.{index}"
        if system.kind != "system":
            fail(pointer, f"a {system.kind} has no layers of its own", "name them in the manifest of the system")
        if not os.path.isfile(path):
            fail(pointer, f"no such manifest: {path}")
        if path in system.layers[:index]:
            fail(pointer, f"a second layer of the manifest {os.path.basename(path)}")


def _check_source(here: str, source: Source, fail: Fail) -> None:
    named = [kind for kind in SOURCE_KINDS if getattr(source, kind) is not None]
    if len(named) != 1:
        fail(here, f"a source is exactly one of {', '.join(SOURCE_KINDS)}")
    if source.directory is not None and not os.path.isdir(source.directory):
        fail(f"{here}.directory", f"no such directory: {source.directory}")
    if source.tar is not None and not os.path.isfile(source.tar):
        fail(f"{here}.tar", f"no such file: {source.tar}")
    if source.tar is None and source.sha256 is not None:
        fail(f"{here}.sha256", f'"sha256" pins a tar; the lock pins what a {named[0]} holds')
    oci = source.oci
    if oci is None:
        return
    if (oci.image is None) == (oci.layout is None):
        fail(f"{here}.oci", 'an image is either an "image" of a registry or a "layout"')
    if oci.layout is not None and not os.path.exists(oci.layout):
        fail(f"{here}.oci.layout", f"no such image layout: {oci.layout}")
    for key in ("name", "plain_http"):
        if getattr(oci, key) and (oci.layout is None) == (key == "name"):
            fail(f"{here}.oci.{key}", f'"{key}" means nothing here')
