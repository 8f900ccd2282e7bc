# SPDX-License-Identifier: Apache-2.0
"""`-z auto`: the smallest image that a kernel can mount and a time budget allows.

No clock is involved: the time a codec takes comes from a table of measured costs, so the same tree, budget and kernel
give the same image on any machine. The savings are estimated by writing images of a sample of the tree: files, and
slices of large ones, chosen by the hash of their paths.
"""

from __future__ import annotations

import gc
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erofs_edge.erofs.contents import read_piece
from erofs_edge.erofs.malloc import give_back_large_memory
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.write import write_image
from erofs_edge.errors import UsageError
from erofs_edge.tree import Content, FileTree, Inode

BUDGET = 60.0  # seconds
SAMPLE = 8 << 20  # bytes
SLICE = 512 << 10
THREADS = 2  # of the machine on which the seconds were measured
WRITING = 2.0  # ns per byte for everything except compression
SMALL_PCLUSTER = 16384
COSTS: dict[tuple[str, int | None], tuple[float, float]] = {
    ("lz4", None): (1.6, 1.4),
    ("lz4hc", None): (8.7, 14.2),
    ("lz4hc", 9): (13.4, 21.0),
    ("lz4hc", 12): (38.5, 78.4),
    ("deflate", 1): (12.5, 8.6),
    ("deflate", 6): (22.1, 18.8),
    ("deflate", 9): (72.5, 70.1),
    ("deflate", 12): (377.0, 247.0),
    ("zstd", 1): (8.0, 4.6),
    ("zstd", 3): (9.7, 6.8),
    ("zstd", 9): (35.4, 32.3),
    ("zstd", 15): (223.0, 194.0),
    ("zstd", 19): (778.0, 475.0),
}
"""(codec, level) → ns per byte of input on one thread, with pclusters below SMALL_PCLUSTER and with larger ones; the
codecs are ordered from fast to small. Measured on two x86-64 cores with files of an arm64 root. lzma is missing here
because its library is the host's, whose output is not the same everywhere."""
PCLUSTERS = (65536, 262144, 1 << 20)
PACKINGS: tuple[dict[str, Any], ...] = (
    {},
    {"dedupe": True},
    {"ztailpacking": True},
    {"fragments": "tails", "dedupe": True},
    {"fragments": "all", "dedupe": True},
)


@dataclass(slots=True)
class Candidate:
    """One set of options. `seconds` according to the cost table, `bytes` of the whole image as estimated from the
    sample (None: not tried), and why it was chosen or not."""

    compression: str
    level: int | None
    pcluster: int
    packing: str
    seconds: float
    bytes: int | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and from which candidates; budget in seconds, sample in bytes of content."""

    options: WriteOptions
    chosen: Candidate
    candidates: list[Candidate]
    budget: float
    sample: int


@dataclass(frozen=True, slots=True)
class _Slice:
    content: Content
    start: int
    size: int
    where: str

    def read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size - offset))
        return read_piece(self.content, self.start + offset, length, self.where) if length else b""


def choose(
    tree: FileTree, options: WriteOptions, scratch: Path, *, budget: float = BUDGET, pcluster: int | None = None
) -> Choice:
    """Return the options that make the smallest image. `scratch` is overwritten repeatedly; the caller removes it.

    `options` hold everything else, and what is required in any case; `pcluster`, if given, is kept. Codecs are compared
    first, then pcluster sizes, then ways of packing. With a baseline, the smallest is what keeps most of it (see
    auto_baseline.py), and the budget does not count. Raises UsageError if the budget is not positive, if nothing suits
    the kernel, or if the baseline does not reveal how it was compressed.
    """
    if not 0 < budget < math.inf:
        raise UsageError(f"the time budget must be a number of seconds above 0, not {budget:g}")
    give_back_large_memory()
    if options.baseline is not None:
        return _as_baseline(tree, options if pcluster is None else options.replaced(pcluster=pcluster), budget)
    sample, sampled, total = _sample(tree)
    search = _Search(sample, total / max(1, sampled), total, options, scratch, budget)
    sizes = (pcluster,) if pcluster is not None else PCLUSTERS
    first = [size for size in sizes if search.fits({"compression": "lz4", "pcluster": size})]
    start = first[0] if first else options.block_size
    packings = [packing for packing in PACKINGS if search.fits({**search.base, **packing})]
    packing = packings[-1] if packings else {}
    codecs = []
    for codec in dict.fromkeys(name for name, _ in COSTS):
        level = search.best_level(codec, start)
        if level is not None:
            codecs.append({**packing, "compression": codec, "level": level[0], "pcluster": start})
    best = search.best(codecs)
    best = search.best([best, *({**best, "pcluster": size} for size in first[1:])])
    plain = {key: best[key] for key in ("compression", "level", "pcluster")}
    best = search.best([best, *({**plain, **other} for other in packings if other != packing)])
    chosen = search.tried[search.key(best)]
    chosen.why = "chosen: the smallest"
    return Choice(search.options(best), chosen, [*search.tried.values(), *search.refused], budget, sampled)


def _as_baseline(tree: FileTree, options: WriteOptions, budget: float) -> Choice:
    from erofs_edge.erofs.auto_baseline import as_baseline

    chosen, found = as_baseline(options)
    total = sum(inode.size for inode in {id(inode): inode for _, inode in tree.walk() if inode.is_file}.values())
    packing = _packing(chosen)
    candidates = []
    for one in found:
        why = f"gives {one.same} of {one.probes} pclusters as the baseline has them"
        seconds = _seconds(total, one.compression, one.level, chosen.pcluster_size)
        candidates.append(Candidate(one.compression, one.level, chosen.pcluster_size, packing, seconds, None, why))
    candidates[0].why = f"chosen: {candidates[0].why}"
    return Choice(chosen, candidates[0], candidates, budget, 0)


def _packing(options: WriteOptions) -> str:
    words = [options.fragments.replace("all", "all-fragments").replace("tails", "fragments")]
    words += [name for name in ("dedupe", "ztailpacking") if getattr(options, name)]
    return ",".join(word for word in words if word != "none")


def _seconds(total: int, codec: str, level: int | None, pcluster: int) -> float:
    """Look up the time in the table. A missing level costs as much as the next slower one listed."""
    if (codec, level) not in COSTS:
        known = [one for name, one in COSTS if name == codec and one is not None]
        level = min((one for one in known if one >= (level or 0)), default=max(known, default=None))
    small, large = COSTS[codec, level]
    return round(total * ((small if pcluster < SMALL_PCLUSTER else large) + WRITING) / THREADS / 1e9, 3)


class _Search:
    def __init__(
        self, sample: FileTree, scale: float, total: int, options: WriteOptions, scratch: Path, budget: float
    ) -> None:
        self.base: dict[str, Any] = {"compression": "lz4", "level": None, "pcluster": options.block_size}
        self.tried: dict[tuple[object, ...], Candidate] = {}
        self.refused: list[Candidate] = []
        self._sample = sample
        self._scale = scale
        self._total = total
        self._given = options
        self._scratch = scratch
        self._budget = budget

    def options(self, candidate: dict[str, Any]) -> WriteOptions:
        """Raises UsageError if the kernel, or another requested option, does not allow it."""
        fields = dict(candidate)
        for name in ("dedupe", "ztailpacking"):
            fields[name] = fields.get(name, False) or getattr(self._given, name)
        if self._given.fragments != "none":
            fields["fragments"] = self._given.fragments
        return self._given.replaced(**{"fragments": "none", "dictionary": None, **fields})

    def fits(self, candidate: dict[str, Any]) -> bool:
        try:
            self.options(candidate)
        except UsageError:
            return False
        return True

    def seconds(self, codec: str, level: int | None, pcluster: int) -> float:
        return _seconds(self._total, codec, level, pcluster)

    def best_level(self, codec: str, pcluster: int) -> tuple[int | None] | None:
        """Return the slowest level within the budget. The fastest of all codecs is always accepted."""
        found = None
        for name, level in COSTS:
            if name != codec:
                continue
            seconds = self.seconds(name, level, pcluster)
            try:
                self.options({"compression": name, "level": level, "pcluster": pcluster})
            except UsageError as error:
                self.refused.append(Candidate(name, level, pcluster, "", seconds, why=error.message))
                return None
            if seconds <= self._budget or name == "lz4":
                found = (level,)
            else:
                why = f"over the budget of {self._budget:g} s"
                self.refused.append(Candidate(name, level, pcluster, "", seconds, why=why))
        return found

    def best(self, candidates: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the candidate with the smallest image, the first of equals."""
        if not candidates:
            raise UsageError("the kernel supports none of the compressions", hint="use -z none")
        return min(candidates, key=self._estimate)

    @staticmethod
    def key(candidate: dict[str, Any]) -> tuple[object, ...]:
        return tuple(sorted((name, str(value)) for name, value in candidate.items()))

    def _estimate(self, candidate: dict[str, Any]) -> int:
        known = self.tried.get(self.key(candidate))
        if known is not None and known.bytes is not None:
            return known.bytes
        options = self.options(candidate)
        trial = options.replaced(
            uuid=bytes(16), cache=None, progress=None, meter=None, blob=None, profile=(), scanned=False
        )
        size = int(write_image(self._sample, self._scratch, trial).size * self._scale)
        gc.collect()  # files refer to each other, so the memory of a trial would stay, including the codecs'
        codec, level, pcluster = candidate["compression"], candidate["level"], candidate["pcluster"]
        made = Candidate(
            codec, level, pcluster, _packing(options), self.seconds(codec, level, pcluster), size, "larger"
        )
        self.tried[self.key(candidate)] = made
        return size


def _sample(tree: FileTree) -> tuple[FileTree, int, int]:
    """Return (the sample, its bytes, the tree's bytes). Hard links count once."""
    files: dict[int, tuple[bytes, Inode]] = {}
    for path, inode in tree.walk():
        if inode.is_file and inode.size:
            files.setdefault(id(inode), (path, inode))
    total = sum(inode.size for _, inode in files.values())
    if total <= SAMPLE:
        return tree, total, total
    units = [
        (hashlib.sha256(b"%s %d" % (path, start)).digest(), start, path, inode)
        for path, inode in files.values()
        for start in range(0, inode.size, SLICE)
    ]
    sample, size = FileTree(), 0
    for number, (_, start, path, inode) in enumerate(sorted(units, key=lambda unit: unit[:2])):
        if size >= SAMPLE:
            break
        assert inode.content is not None  # noqa: S101 - it is not empty
        part = _Slice(inode.content, start, min(SLICE, inode.size - start), path.decode("utf-8", "backslashreplace"))
        sample.add(f"{number % 64}/{number}", Inode(inode.mode, inode.uid, inode.gid, inode.mtime_ns, content=part))
        size += part.size
    return sample, size, total
