# SPDX-License-Identifier: Apache-2.0
"""EROFS for diffoscope: `python -m erofs_edge.diff.comparator OLD NEW` is diffoscope with one more file type.

diffoscope has a fixed list of comparators and loads no plug-ins, so this adds to the list and then runs diffoscope. It
runs the program `erofs-edge`, as diffoscope's other comparators run theirs: any Python that has diffoscope can be used.
Seen with diffoscope 297 and 332.
"""
# mypy: disable-error-code="import-not-found,import-untyped,misc,no-any-return,untyped-decorator"
# diffoscope has no types, and no build of ours needs it

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from diffoscope.comparators import ComparatorManager
from diffoscope.comparators.utils.archive import Archive, ArchiveMember
from diffoscope.comparators.utils.command import Command
from diffoscope.comparators.utils.file import File
from diffoscope.difference import Difference
from diffoscope.main import main
from diffoscope.tempfiles import get_temporary_directory
from diffoscope.tools import tool_required

PROGRAM = "erofs-edge"
MAGIC = (1024, bytes.fromhex("e2e1f5e0"))
"""position and start of the superblock (fs/erofs/erofs_fs.h), independent of file(1)"""
BEFORE = ("symlink.Symlink", "device.Device", "socket_or_fifo.SocketOrFIFO")
"""entries of diffoscope's list that come before ours, so that only regular files are read"""


class Superblock(Command):
    """The fields of the superblock."""

    @tool_required(PROGRAM)
    def cmdline(self) -> list[str]:
        return [PROGRAM, "fs", "dump", self.path]


class Listing(Command):
    """Each path: type, mode, links, owner, size, time, target."""

    @tool_required(PROGRAM)
    def cmdline(self) -> list[str]:
        return [PROGRAM, "fs", "ls", "-lR", self.path]

    def filter(self, line: bytes) -> bytes:
        """Remove the padding, whose width depends on the longest line of either image; the path is unchanged."""
        return b"  ".join(line.split(None, 5))


class Member(ArchiveMember):
    """A regular file of an image."""

    @property
    def name(self) -> str:
        return f"/{self._name}"

    @property
    def path(self) -> str:
        return os.path.join(self.container.archive.name, self._name)


class Contents(Archive):
    """The regular files of an image, extracted together; the listing has everything else."""

    auto_diff_metadata = False

    @tool_required(PROGRAM)
    def open_archive(self) -> Any:
        folder = get_temporary_directory(suffix="erofs")
        command = [PROGRAM, "fs", "extract", "--no-owners", "--json", self.source.path, folder.name]
        subprocess.run(command, check=True, capture_output=True)
        subprocess.run(["chmod", "-R", "u+rwX", folder.name], check=True)  # root could read them anyway
        return folder

    def close_archive(self) -> None:
        self.archive.cleanup()

    def get_member_names(self) -> list[str]:
        top = self.archive.name
        found = [os.path.join(folder, name) for folder, _, names in os.walk(top) for name in names]
        return sorted(os.path.relpath(path, top) for path in found if os.path.isfile(path) and not os.path.islink(path))

    def get_member(self, member_name: str) -> Member:
        return Member(self, member_name)

    def extract(self, member_name: str, dest_dir: str) -> str:
        return os.path.join(self.archive.name, member_name)


class ErofsFile(File):
    """An image: the output of `erofs-edge diff` for two, with superblock, listing and files as shown by diffoscope."""

    DESCRIPTION = "EROFS filesystems"
    CONTAINER_CLASSES = (Contents,)

    @classmethod
    def recognizes(cls, file: Any) -> bool:
        with open(file.path, "rb") as image:
            image.seek(MAGIC[0])
            return image.read(len(MAGIC[1])) == MAGIC[1]

    def compare_details(self, other: Any, source: object = None) -> list[Any]:
        return [
            explanation(self.path, other.path),
            Difference.from_operation(Superblock, self.path, other.path),
            Difference.from_operation(Listing, self.path, other.path),
        ]


@tool_required(PROGRAM)
def explanation(old: str, new: str) -> Any:
    """The output of `erofs-edge diff`, as a comment: packages, attributes, why bytes differ; None for a single
    image.
    """
    if os.devnull in (old, new):
        return None
    done = subprocess.run([PROGRAM, "diff", old, new], check=False, capture_output=True, text=True, errors="replace")
    difference = Difference(old, new, source="erofs-edge diff")
    difference.add_comment(done.stdout.strip() or done.stderr.strip())
    return difference


def join(comparators: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Add ours to diffoscope's list, after the types that are not regular files."""
    names = list(comparators)
    at = max(index for index, one in enumerate(names) if set(one) & set(BEFORE)) + 1
    return [*names[:at], ("erofs.ErofsFile",), *names[at:]]


if __name__ == "__main__":
    ours = os.path.dirname(sys.executable)
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), ours])
    sys.modules["diffoscope.comparators.erofs"] = sys.modules[__name__]
    ComparatorManager.COMPARATORS = join(ComparatorManager.COMPARATORS)
    main()
