# SPDX-License-Identifier: Apache-2.0
"""Compare two trees: every difference, and which of them a list (explained.yaml) explains.

Times are not compared, because an image has one for all files. If only one side has a directory, what is below it is
not listed separately.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import Literal

import msgspec

from erofs_edge.errors import ManifestError
from erofs_edge.sources.globs import matcher
from erofs_edge.tree import FileTree, Inode

Kind = Literal["only-first", "only-second", "type", "mode", "owner", "target", "device", "content", "xattrs", "links"]
STOCK = "explained.yaml"
SHOWN = 100
"""characters of a line that are shown"""
TEXT = 1 << 20
"""bytes of a file that are searched for the first differing line"""
ENTRIES = "each entry: `path: GLOB`, `why: TEXT`, and `kinds: [KIND, …]` where it is not for all"


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    """One difference. first, second: what is on either side, '' for nothing. package: the one whose file or script it
    is. why: the explanation, '' if there is none."""

    path: str
    kind: Kind
    first: str
    second: str
    package: str
    why: str = ""


class Explanation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """path: a glob. kinds: of differences; all if none is given."""

    path: str
    why: str
    kinds: list[Kind] = []


def compare(first: FileTree, second: FileTree) -> list[Difference]:
    """Every difference, by path."""
    return sorted(_compare(first, second))


def explain(found: Sequence[Difference], explanations: Sequence[Explanation]) -> list[Difference]:
    """The differences, each with the first explanation that covers it."""
    compiled = [(matcher([e.path]), e) for e in explanations]

    def why(one: Difference) -> str:
        path = os.fsencode(one.path)
        covering = (e.why for covers, e in compiled if covers(path) and (not e.kinds or one.kind in e.kinds))
        return next(covering, "")

    return [replace(one, why=why(one)) for one in found]


def read_explanations(path: Path | None = None) -> list[Explanation]:
    """Read a list of explanations; without a path, the one for the two ways to configure. Raises ManifestError, also
    for an invalid glob."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        text = _stock() if path is None else path.read_text(encoding="utf-8")
        found = msgspec.convert(YAML(typ="safe").load(text) or [], list[Explanation])
    except OSError as error:
        raise ManifestError(f"cannot read: {error.strerror}", where=str(path)) from error
    except (YAMLError, msgspec.ValidationError, ValueError, RecursionError) as error:  # what the parser may raise
        raise ManifestError(f"not a list of explanations: {error}", where=str(path), hint=ENTRIES) from error
    matcher([one.path for one in found], lambda _: str(path))
    return found


@functools.cache
def _stock() -> str:
    return resources.files(__package__).joinpath(STOCK).read_text(encoding="utf-8")


def _compare(first: FileTree, second: FileTree) -> Iterator[Difference]:
    stack = [(b"", first.root, second.root)]
    first_names: dict[int, str] = {}
    second_names: dict[int, str] = {}
    while stack:
        path, one, two = stack.pop()
        shown, package = os.fsdecode(path or b"/"), two.origin or one.origin
        for kind, old, new in _facts(one, two):
            yield Difference(shown, kind, old, new, package)
        if not one.is_dir and not two.is_dir:
            names = first_names.setdefault(id(one), shown), second_names.setdefault(id(two), shown)
            if names[0] != names[1]:
                yield Difference(shown, "links", f"the file {names[0]}", f"the file {names[1]}", package)
        for name in sorted(one.children.keys() | two.children.keys(), reverse=True):
            below = path + b"/" + name
            left, right = one.children.get(name), two.children.get(name)
            if left is not None and right is not None:
                stack.append((below, left, right))
            elif left is not None:
                yield Difference(os.fsdecode(below), "only-first", _told(left), "", left.origin)
            elif right is not None:
                yield Difference(os.fsdecode(below), "only-second", "", _told(right), right.origin)


def _facts(one: Inode, two: Inode) -> Iterator[tuple[Kind, str, str]]:
    if stat.S_IFMT(one.mode) != stat.S_IFMT(two.mode):
        yield "type", _told(one), _told(two)
        return
    if one.mode != two.mode:
        yield "mode", f"{stat.S_IMODE(one.mode):04o}", f"{stat.S_IMODE(two.mode):04o}"
    if (one.uid, one.gid) != (two.uid, two.gid):
        yield "owner", f"{one.uid}:{one.gid}", f"{two.uid}:{two.gid}"
    if one.target != two.target:
        yield "target", os.fsdecode(one.target), os.fsdecode(two.target)
    if one.rdev != two.rdev:
        yield "device", "{}:{}".format(*one.rdev), "{}:{}".format(*two.rdev)
    if one.xattrs != two.xattrs:
        yield "xattrs", _attributes(one), _attributes(two)
    if one.is_file and (one.size != two.size or _digest(one) != _digest(two)):
        yield ("content", *_first_line(one, two))


def _told(inode: Inode) -> str:
    kinds = {
        stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFCHR: "char",
        stat.S_IFBLK: "block", stat.S_IFIFO: "fifo",
    }  # fmt: skip
    text = f"{kinds.get(stat.S_IFMT(inode.mode), 'socket')} {stat.S_IMODE(inode.mode):04o} {inode.uid}:{inode.gid}"
    if inode.is_symlink:
        return f"symlink to {os.fsdecode(inode.target)}"
    if inode.is_dir:
        return f"{text}, {sum(1 for _ in FileTree(inode).walk()) - 1} below"
    return f"{text}, {inode.size} bytes" if inode.is_file else text


def _attributes(inode: Inode) -> str:
    return ", ".join(f"{os.fsdecode(name)}=0x{value.hex()}" for name, value in sorted(inode.xattrs.items()))


def _digest(inode: Inode) -> bytes:
    digest = hashlib.sha256()
    for at in range(0, inode.size, TEXT):
        if inode.content is not None:
            digest.update(inode.content.read(at, TEXT))
    return digest.digest()


def _first_line(one: Inode, two: Inode) -> tuple[str, str]:
    """The first lines that differ, or sizes and hashes if it is not text or differs only in its line ends."""
    if max(one.size, two.size) <= TEXT:
        old, new = one.read(), two.read()
        if b"\0" not in old + new:
            lines = [data.decode("utf-8", "replace").splitlines() for data in (old, new)]
            for number, (left, right) in enumerate(zip_longest(*lines, fillvalue="(end)"), 1):
                if left != right:
                    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
                    at = 0 if same < SHOWN else same - SHOWN // 2
                    more = "…" if at else ""
                    old_text, new_text = (f"line {number}: {more}{text[at : at + SHOWN]}" for text in (left, right))
                    return old_text, new_text
    old_digest, new_digest = _digest(one).hex()[:12], _digest(two).hex()[:12]
    return f"{one.size} bytes, sha256 {old_digest}", f"{two.size} bytes, sha256 {new_digest}"
