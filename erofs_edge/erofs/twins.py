# SPDX-License-Identifier: Apache-2.0
"""Find equal files: by size, by a sample from the middle, then by all of their bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from erofs_edge.erofs.codings import Codings
from erofs_edge.erofs.contents import digest, read_piece
from erofs_edge.erofs.cut_rules import CutRules
from erofs_edge.erofs.piece import content_of
from erofs_edge.erofs.plan import Node
from erofs_edge.threads import Threads

HASH_BATCH = 64  # files
SAMPLE, SAMPLED = 4096, 16 << 10  # bytes from the middle of files larger than SAMPLED


def find_twins(files: Iterable[Node], codings: Codings, pool: Threads, *, larger_than: int) -> dict[Node, Node]:
    """Return files with content and compression of an earlier one → the first such file. Only files of equal size are
    read, and large ones in full only if their middles are equal."""
    candidates = [n for n in files if n.size > larger_than]
    sizes = Counter(n.size for n in candidates)
    candidates = [n for n in candidates if sizes[n.size] > 1]
    large = [n for n in candidates if n.size > SAMPLED]
    samples = dict(zip(large, _of_each(large, _sample, pool), strict=True))
    alike = Counter((n.size, sample) for n, sample in samples.items())
    candidates = [n for n in candidates if n.size <= SAMPLED or alike[n.size, samples[n]] > 1]
    twins = {}
    first: dict[tuple[bytes, CutRules | None], Node] = {}
    hashes = _of_each(candidates, lambda node: digest(content_of(node), node.where), pool)
    for node, content_hash in zip(candidates, hashes, strict=True):
        original = first.setdefault((content_hash, codings.of(node)), node)
        if original is not node:
            twins[node] = original
    return twins


def _of_each(nodes: Sequence[Node], call: Callable[[Node], bytes], pool: Threads) -> Iterator[bytes]:
    """Yield call(node) for each node, computed in threads."""
    batches = [nodes[at : at + HASH_BATCH] for at in range(0, len(nodes), HASH_BATCH)]
    return (one for batch in pool.map(lambda batch: [call(node) for node in batch], batches) for one in batch)


def _sample(node: Node) -> bytes:
    return read_piece(content_of(node), (node.size - SAMPLE) // 2, SAMPLE, node.where)
