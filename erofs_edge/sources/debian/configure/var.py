# SPDX-License-Identifier: Apache-2.0
"""/var of a system that keeps it on the data partition: its packaged contents as tmpfiles.d lines.

At boot /var is a bind mount that starts empty. Each directory and link that packages, their known scripts or the
manifest put below /var becomes a line of /usr/lib/tmpfiles.d/erofs-edge-var.conf; files with content move to
/usr/share/factory, from where 'C' lines copy them (tmpfiles.d(5)). Paths that a packaged line creates are left to it.
"""

from __future__ import annotations

import os
import stat

from erofs_edge.sources.debian.configure.tmpfiles import read_tmpfiles
from erofs_edge.tree import BytesContent, FileTree, Inode

LINES = "usr/lib/tmpfiles.d/erofs-edge-var.conf"
FACTORY = b"/usr/share/factory"
MAKES = "dDvqQfFLCpbc"
HEAD = """\
# Made by the build: what packages and the manifest have below /var, which starts empty on the data partition.
"""


def move_var(tree: FileTree) -> None:
    """Empty /var and write the lines that create its contents at boot."""
    var = tree.get("var")
    if var is None or not var.is_dir:
        return
    made = {entry.path for entry in read_tmpfiles(tree) if entry.kind in MAKES}
    lines = []
    for below, node in FileTree(var).walk():
        path = b"/var" + below if below != b"/" else b"/var"
        if os.fsdecode(path) not in made:
            lines += _lines(tree, path, node)
    var.children = {}
    content = BytesContent((HEAD + "".join(line + "\n" for line in lines)).encode("utf-8", "surrogateescape"))
    tree.add(LINES, Inode(stat.S_IFREG | 0o644, content=content, origin="/var"))


def _lines(tree: FileTree, path: bytes, node: Inode) -> list[str]:
    name = _quote(path)
    rights = f"{stat.S_IMODE(node.mode):04o} {node.uid} {node.gid}"
    if node.is_dir:
        return [f"d {name} {rights} -"]
    if node.is_symlink:
        return [f"L {name} - - - - {_escape(node.target)}"]
    if node.is_file and not node.size:
        return [f"f {name} {rights} -"]
    if node.is_file:
        tree.add(FACTORY + path, node)
        return [f"C {name} {rights} -"]
    if stat.S_ISFIFO(node.mode):
        return [f"p {name} {rights} -"]
    kind = "c" if stat.S_ISCHR(node.mode) else "b"
    return [f"{kind} {name} {rights} - {node.rdev[0]}:{node.rdev[1]}"] if node.rdev != (0, 0) else []


def _quote(path: bytes) -> str:
    text = _escape(path)
    return f'"{text}"' if any(c.isspace() for c in text) else text


def _escape(path: bytes) -> str:
    return os.fsdecode(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("\n", "\\n")
