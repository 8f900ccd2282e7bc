# SPDX-License-Identifier: Apache-2.0
"""Rules by path: how single files are compressed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from erofs_edge.codec.registry import dictionary_for, find_codec
from erofs_edge.erofs.ondisk import PCLUSTER_MAX
from erofs_edge.errors import UsageError
from erofs_edge.globs import glob_regex

if TYPE_CHECKING:
    from erofs_edge.tree import FileTree


class CompressionRule(NamedTuple):
    """How files are compressed whose path matches; of several rules the first that matches wins.

    match        a glob (`globs`), without '/' about the name, else about the whole path; or an expression that is
                 found anywhere in the path (no leading '/')
    compression  as in WriteOptions; 'none': the file stays as it is
    level        None: the codec's default
    pcluster     bytes; None: the image's
    dictionary   bytes that matches may reach back (zstd, lzma); None: what suits the pcluster size
    """

    match: str | re.Pattern[bytes]
    compression: str
    level: int | None = None
    pcluster: int | None = None
    dictionary: int | None = None

    def check(self, block_size: int) -> None:
        """Raises UsageError for what no image can have, and a glob that means nothing."""
        if isinstance(self.match, str):
            try:
                _glob(self.match)
            except ValueError as error:
                raise UsageError(f"bad glob {self.match!r}: {error}") from error
        if self.compression == "none":
            if self.level is not None or self.pcluster is not None or self.dictionary is not None:
                raise UsageError(
                    f"files that match {self.text} are not compressed, so nothing else can be set for them"
                )
            return
        codec, _ = find_codec(self.compression, self.level)
        if self.pcluster is not None and (self.pcluster % block_size or not 0 < self.pcluster <= PCLUSTER_MAX):
            raise UsageError(
                f"pcluster size {self.pcluster} of {self.text} is not a multiple of the block size {block_size}"
                " up to 1 MiB"
            )
        dictionary_for(codec, self.dictionary, self.pcluster or block_size)

    @property
    def text(self) -> str:
        """The pattern, for messages."""
        return self.match if isinstance(self.match, str) else self.match.pattern.decode("utf-8", "backslashreplace")

    def matches(self, path: bytes) -> bool:
        """Whether this is about the file at `path`, which starts with '/'."""
        if not isinstance(self.match, str):
            return self.match.search(path[1:]) is not None
        anchored, glob = _glob(self.match)
        return glob.fullmatch(path[1:] if anchored else path.rpartition(b"/")[2]) is not None


def idle_rules(tree: FileTree, rules: Sequence[CompressionRule]) -> list[int]:
    """Places of the rules that are about no file: none matches, or earlier ones match all that do."""
    idle = set(range(len(rules)))
    for path, inode in tree.walk():
        if not idle:
            break
        if inode.is_file:
            idle.discard(next((index for index, rule in enumerate(rules) if rule.matches(path)), -1))
    return sorted(idle)


@lru_cache(maxsize=256)
def _glob(pattern: str) -> tuple[bool, re.Pattern[bytes]]:
    """Whether it is about the whole path, and its expression. Raises ValueError for one that means nothing."""
    return "/" in pattern, re.compile(glob_regex(pattern.removeprefix("/")), re.S)
