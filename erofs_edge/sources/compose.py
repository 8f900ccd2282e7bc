# SPDX-License-Identifier: Apache-2.0
"""`layers:` of a manifest: finished images inside the system, which merges them when it starts.

They are stored below /usr/lib/erofs-edge/layers, covered by the system's own hash tree. systemd looks for extensions
elsewhere (systemd-sysext(8): /run/extensions, then /var/lib/extensions), so a program that runs before the merge links
them into /run, unless the device has an image of that name in /var: a newer file there updates an application, and
removing it brings back the one that came with the system. Both must be signed with a certificate in /usr/lib/verity.d.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.errors import ManifestError
from erofs_edge.manifest.load import Loaded
from erofs_edge.manifest.model import System
from erofs_edge.sources.debian.configure.units import enable, find_unit
from erofs_edge.tree import BytesContent, Content, FileContent, FileTree, Inode

FOLDER = "usr/lib/erofs-edge/layers"
PLACES = {"portable": "usr/lib/portables", "app": f"{FOLDER}/app"}
MERGED = {"sysext": "extensions", "confext": "confexts"}
"""kind → the folder in /run and /var/lib where systemd looks"""
CERTIFICATE = "usr/lib/verity.d/erofs-edge.crt"
LIBRARY = "libcryptsetup.so.12"
"""the library with which systemd opens a hash tree, loaded only then"""
POLICY = "root=signed+absent:usr=signed+absent"
PROGRAM = f"{FOLDER}/offer"
PROGRAM_TEXT = """\
#!/bin/sh
# Made by the build from the manifest's `layers`. offer KIND FOLDER: the images of this system, where systemd looks for
# them; those that the device has brought itself go first.
modprobe -q loop # images are opened by it, and nothing else asks for it
mkdir -p "/run/$2"
for image in /usr/lib/erofs-edge/layers/"$1"/*.raw; do
	name=${image##*/}
	if [ -e "/var/lib/$2/$name" ]; then
		rm -f "/run/$2/$name"
	else
		ln -sf "$image" "/run/$2/$name"
	fi
done
"""
DROP_IN = """\
# Made by the build from the manifest's `layers`. Only signed images are taken: /var is not verified.
[Unit]
ConditionDirectoryNotEmpty=|/{folder}

[Service]
{environment}ExecStartPre=/{program} {kind} {place}
ExecStart=
ExecStart=systemd-{kind} --image-policy={policy} refresh
ExecReload=
ExecReload=/{program} {kind} {place}
ExecReload=systemd-{kind} --image-policy={policy} refresh
"""
MUTABLE = "Environment=SYSTEMD_CONFEXT_MUTABLE_MODE=yes\n"
"""what is written to /etc after the merge goes to /var/lib/extensions.mutable/etc: otherwise a merged /etc is
read-only
"""


@dataclass(frozen=True, slots=True)
class Layer:
    """A finished image: name and kind as in its manifest, and its tree."""

    name: str
    kind: str
    path: Path
    tree: FileTree
    root_hash: bytes


def refuse_clashes(loaded: Loaded[System], layers: Sequence[Layer]) -> None:
    """Raises ManifestError if two merged layers have different files at one path: which one a device would show depends
    on their names."""
    seen: dict[bytes, tuple[Layer, Inode]] = {}
    for index, layer in enumerate(layers):
        for path, inode in layer.tree.walk() if layer.kind in MERGED else ():
            if path not in seen:
                seen[path] = (layer, inode)
                continue
            other, there = seen[path]
            if not (inode.is_dir and there.is_dir) and not _equal(inode, there):
                raise loaded.error(
                    f"layers.{index}",
                    f"{path.decode(errors='replace')} is in layer {other.name} and in layer {layer.name}",
                    hint="leave it out of one of them: `exclude` in its manifest",
                )


def lay_certificate(loaded: Loaded[System], certificate: bytes, tree: FileTree) -> None:
    """Put the certificate (PEM) of the build's signer at the manifest's `signer_certificate`.

    Raises ManifestError if there is anything other than a file.
    """
    for index, path in enumerate(loaded.value.signer_certificate):
        here = tree.get(path)
        if here is not None and not here.is_file:
            raise loaded.error(f"signer_certificate.{index}", f"{path} is not a file that could be replaced")
        _add(tree, path, BytesContent(certificate))


def lay_layers(loaded: Loaded[System], layers: Sequence[Layer], certificate: bytes, tree: FileTree) -> list[str]:
    """Put the images into a system's tree, with what makes it merge them; return notes for the user.

    `certificate` (PEM) belongs to the key that signed the images. Raises ManifestError if the system lacks what is
    needed to use such images.
    """
    _need_programs(loaded, layers, tree)
    if not any(LIBRARY.encode() in node.children for node in _library_folders(tree)):
        raise loaded.error(
            "layers", f"the system has no {LIBRARY} to open images with", hint="add libcryptsetup12 to `packages`"
        )
    notes = []
    _add(tree, CERTIFICATE, BytesContent(certificate))
    for layer in layers:
        folder = PLACES.get(layer.kind, f"{FOLDER}/{layer.kind}")
        _add(tree, f"{folder}/{layer.name}.raw", FileContent(layer.path, layer.path.stat().st_size), layer.name)
        if layer.kind in MERGED:
            notes += _hidden(layer, tree)
    for kind, place in MERGED.items():
        if any(layer.kind == kind for layer in layers):
            _merge_at_start(loaded, tree, kind, place)
    return notes


def _need_programs(loaded: Loaded[System], layers: Sequence[Layer], tree: FileTree) -> None:
    for index, layer in enumerate(layers):
        program = {"portable": "portablectl", "app": "systemctl"}.get(layer.kind, f"systemd-{layer.kind}")
        if tree.get(f"usr/bin/{program}", follow=True) is None:
            package = "systemd-container" if layer.kind == "portable" else "systemd"
            raise loaded.error(
                f"layers.{index}",
                f"the system has no {program} for a {layer.kind}",
                hint=f"add {package} to `packages`",
            )


def _library_folders(tree: FileTree) -> list[Inode]:
    top = tree.get("usr/lib")
    return [] if top is None else [top, *(node for node in top.children.values() if node.is_dir)]


def _merge_at_start(loaded: Loaded[System], tree: FileTree, kind: str, place: str) -> None:
    unit = f"systemd-{kind}.service"
    if find_unit(tree, unit) is None or _is_masked(tree, unit):
        raise ManifestError(
            f"the system cannot merge a {kind}: {unit} is masked or not there", where=loaded.position("layers")
        )
    text = DROP_IN.format(
        folder=f"{FOLDER}/{kind}", program=PROGRAM, kind=kind, place=place, policy=POLICY,
        environment=MUTABLE if kind == "confext" else "",
    )  # fmt: skip
    _add(tree, PROGRAM, BytesContent(PROGRAM_TEXT.encode()), mode=0o755)
    _add(tree, f"usr/lib/systemd/system/{unit}.d/10-layers.conf", BytesContent(text.encode()))
    enable(tree, unit)


def _is_masked(tree: FileTree, unit: str) -> bool:
    node = tree.get(f"etc/systemd/system/{unit}")
    return node is not None and node.target == b"/dev/null"


def _hidden(layer: Layer, tree: FileTree) -> list[str]:
    """A note if files of the system become invisible once the layer is merged."""
    paths = [
        path.decode(errors="replace")
        for path, inode in layer.tree.walk()
        if not inode.is_dir and (there := tree.get(path)) is not None and not _equal(inode, there)
    ]
    if not paths:
        return []
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return [f"layer {layer.name} hides these files of the system: {', '.join(paths[:3])}{more}"]


def _equal(one: Inode, two: Inode) -> bool:
    """Whether kind, mode, owner and content are equal."""
    same = (one.mode, one.uid, one.gid, one.target, one.size) == (two.mode, two.uid, two.gid, two.target, two.size)
    return same and (not one.is_file or one.read() == two.read())


def _add(tree: FileTree, path: str, content: Content, name: str = "", mode: int = 0o644) -> None:
    origin = f"layer {name}" if name else "layers of the manifest"
    tree.add(path, Inode(stat.S_IFREG | mode, content=content, origin=origin))
