# SPDX-License-Identifier: Apache-2.0
"""How each file is compressed, and what the image must state about the codecs used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from erofs_edge.codec.deflate import WINDOW_BITS
from erofs_edge.codec.lz4 import OPTIMAL
from erofs_edge.codec.registry import Codec, dictionary_for, find_codec
from erofs_edge.codec.zstd import SLOW
from erofs_edge.erofs import ondisk
from erofs_edge.erofs.cut_rules import CutRules
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.plan import Node, Plan
from erofs_edge.errors import SourceError

if TYPE_CHECKING:
    from erofs_edge.erofs.rules import CompressionRule

TWIN = 128 << 10  # bytes, see least_twin: of 12 MB in 189 equal files, this finds 9 MB in 6 for a fifth of the time
FAST = {"lz4hc": OPTIMAL, "zstd": SLOW}  # codec: level below which a small file compresses faster than a twin is found
LZ4_DISTANCE = 65535  # bytes a match may reach back


class Codings(NamedTuple):
    """default      how files are compressed, None: not at all
    special      files for which a rule says otherwise
    algorithms   numbers of all algorithms that may be used, with their dictionary sizes in bytes (0: no choice)
    largest      bytes of the largest LZ4 pcluster
    big          whether any pcluster exceeds one block: then every index has the form for that
    """

    default: CutRules | None
    special: dict[Node, CutRules | None]
    algorithms: dict[int, int]
    largest: int
    big: bool

    def of(self, node: Node) -> CutRules | None:
        return self.special.get(node, self.default)

    @property
    def least_twin(self) -> int | None:
        """Size in bytes of the smallest file for which it pays to find equal ones and compress them only once; None if
        compression takes less time than reading files twice."""
        used = [one for one in (self.default, *self.special.values()) if one is not None and one.level is not None]
        if not used:
            return None
        return TWIN if all((one.level or 0) < FAST.get(one.codec.name, 0) for one in used) else 0

    @property
    def has_records(self) -> bool:
        """Whether the image needs compression records: LZ4 alone with one-block pclusters does not."""
        return self.big or bool(self.algorithms.keys() - {ondisk.ALGORITHM_LZ4})

    def records(self, block_size: int) -> bytes:
        """Encode the records after the superblock, each at a multiple of 4 bytes."""
        if not self.has_records:
            return b""
        out = bytearray()
        for algorithm, dictionary in sorted(self.algorithms.items()):
            out += bytes(-len(out) % 4)
            if algorithm == ondisk.ALGORITHM_LZ4:
                out += ondisk.LZ4_CFG.pack(ondisk.LZ4_CFG.size - 2, LZ4_DISTANCE, self.largest // block_size)
            elif algorithm == ondisk.ALGORITHM_LZMA:
                out += ondisk.LZMA_CFG.pack(ondisk.LZMA_CFG.size - 2, dictionary, 0)
            elif algorithm == ondisk.ALGORITHM_DEFLATE:
                out += ondisk.DEFLATE_CFG.pack(ondisk.DEFLATE_CFG.size - 2, WINDOW_BITS)
            else:
                out += ondisk.ZSTD_CFG.pack(ondisk.ZSTD_CFG.size - 2, 0, dictionary.bit_length() - 11)
        return bytes(out)

    def features(self) -> tuple[int, int]:
        """Return (feature_incompat, u1) of the superblock."""
        if not self.algorithms:
            return 0, 0
        if not self.has_records:
            return ondisk.INCOMPAT_LZ4_0PADDING, LZ4_DISTANCE
        bits = ondisk.INCOMPAT_LZ4_0PADDING | ondisk.INCOMPAT_COMPR_CFGS
        if self.big:
            bits |= ondisk.INCOMPAT_BIG_PCLUSTER
        return bits, sum(1 << algorithm for algorithm in self.algorithms)


class _Choice(NamedTuple):
    """A codec and a pcluster size in bytes, before the dictionary size is known. `by_kind`: no level is given, and the
    best one depends on the content. `exact` as in CutRules."""

    codec: Codec
    level: int | None
    pcluster: int
    dictionary: int | None
    by_kind: bool
    exact: bool = False


def choose_codings(plan: Plan, options: WriteOptions) -> Codings:
    """Apply the options' rules to the files of a plan: the first match wins.

    Only algorithms that can be used are listed: a kernel does not mount an image that lists one it lacks. All users of
    an algorithm share the dictionary size, which the image states once. Raises SourceError for a file that is too large
    to be compressed.
    """
    default = None
    if options.compression != "none":
        codec, level = find_codec(options.compression, options.level)
        by_kind = options.level is None and bool(codec.kinds)
        default = _Choice(codec, level, options.pcluster_size, options.dictionary, by_kind, options.exact_level)
    matched = {}
    for node in plan.files if options.rules else ():
        for rule in options.rules:
            if rule.matches(node.path):
                matched[node] = _choice(rule, options)
                break
    used = {choice for choice in matched.values() if choice} | ({default} if default else set())
    # the packed inode is compressed like most files, but with a different pcluster size
    sizes = [(choice, choice.pcluster) for choice in used] + ([(default, options.pcluster_largest)] if default else [])
    largest = {number: max(s for c, s in sizes if c.codec.algorithm == number) for number in _algorithms(used)}
    algorithms = {
        number: max(dictionary_for(c.codec, c.dictionary, largest[number]) for c in used if c.codec.algorithm == number)
        for number in largest
    }
    cut = {
        c: CutRules(c.codec, c.level, options.block_size, c.pcluster, algorithms[c.codec.algorithm], c.by_kind, c.exact)
        for c in used
    }
    codings = Codings(
        cut[default] if default else None,
        {node: cut[choice] if choice else None for node, choice in matched.items()},
        algorithms,
        largest.get(ondisk.ALGORITHM_LZ4, 0),
        max(largest.values(), default=0) > options.block_size,
    )
    for node in plan.files:
        if node.size > ondisk.LCLUSTERS_MAX * options.block_size and codings.of(node) is not None:
            hint = "leave it uncompressed, in chunks: --compress-hints, --chunksize"
            raise SourceError(
                f"file of {node.size} bytes: kernels read no compressed file of more than 2**32 blocks",
                where=node.where,
                hint=hint,
            )
    return codings


def _algorithms(choices: Iterable[_Choice]) -> set[int]:
    return {choice.codec.algorithm for choice in choices}


def _choice(rule: CompressionRule, options: WriteOptions) -> _Choice | None:
    if rule.compression == "none":
        return None
    codec, level = find_codec(rule.compression, rule.level)
    by_kind = rule.level is None and bool(codec.kinds)
    return _Choice(codec, level, rule.pcluster or options.pcluster_size, rule.dictionary, by_kind, options.exact_level)
