# SPDX-License-Identifier: Apache-2.0
"""Rules by path: how individual files are compressed."""

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
    """How files with a matching path are compressed. Of several rules, the first match wins.

    match        a glob (`globs`), matching the name, or the whole path if it contains '/'; or a regular expression that
                 may match anywhere in the path (without its leading '/')
    compression  as in WriteOptions; 'none': store the file uncompressed
    level        None: the codec's default
    pcluster     bytes; None: the image's
    dictionary   how far back matches may reach, in bytes (zstd, lzma); None: what suits the pcluster size
    """

    match: str | re.Pattern[bytes]
    compression: str
    level: int | None = None
    pcluster: int | None = None
    dictionary: int | None = None

    def check(self, block_size: int) -> None:
        """Raises UsageError for values that no image can have, and for an invalid glob."""
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
        """Whether this rule matches the file at `path`, which starts with '/'."""
        if not isinstance(self.match, str):
            return self.match.search(path[1:]) is not None
        anchored, glob = _glob(self.match)
        return glob.fullmatch(path[1:] if anchored else path.rpartition(b"/")[2]) is not None


def idle_rules(tree: FileTree, rules: Sequence[CompressionRule]) -> list[int]:
    """Return the positions of rules that apply to no file: nothing matches, or earlier rules match all that does."""
    idle = set(range(len(rules)))
    for path, inode in tree.walk():
        if not idle:
            break
        if inode.is_file:
            idle.discard(next((index for index, rule in enumerate(rules) if rule.matches(path)), -1))
    return sorted(idle)


@lru_cache(maxsize=256)
def _glob(pattern: str) -> tuple[bool, re.Pattern[bytes]]:
    """Return whether the glob is for the whole path, and its expression. Raises ValueError for an invalid one."""
    return "/" in pattern, re.compile(glob_regex(pattern.removeprefix("/")), re.S)
