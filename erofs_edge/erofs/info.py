# SPDX-License-Identifier: Apache-2.0
"""What the writer reports when it is done."""

from __future__ import annotations

from pathlib import Path

from erofs_edge.erofs.gate import Version
from erofs_edge.erofs.records import Record


class ErofsInfo(Record):
    """What was written.

    size, uncompressed  bytes of the image; bytes of all regular files (hard links once)
    blocks              of the whole image: data_blocks hold file data, metadata_blocks the rest
    kinds               number of 'files', 'directories', 'symlinks', 'devices', 'fifos', 'sockets'
    compressed          files stored compressed; `stored`: files with blocks for which compression gained nothing;
                        `reused`: files whose bytes were taken from an equal one, `shared` of them without a copy
    repeats             extents that refer to parts of earlier files' pclusters: `repeated` bytes before compression
    fragments           files that are, or end, in the packed inode: `packed` bytes before compression
    cache_hits, cache_misses  segments found in the cache, and those compressed anew
    chunked             chunk-based files; `equal_chunks`, `holes`: their chunks that needed no blocks
    device_blocks       blocks on the blob device
    free_blocks         blocks of the image that belong to nothing
    kept_blocks         data blocks that are where the baseline has them; `changed_blocks`: blocks of the image that
                        differ from the baseline's at the same position; both None without a baseline
    hot_blocks          blocks after the first ones that hold what the profile names; `unmatched`: its paths that do not
                        exist
    placed_anew         block from which everything was placed anew to keep the image small; None: nothing was
    lent                files whose data already is on extra devices, `lent_bytes` in total; `devices`: all of these, in
                        order
    features            names (keys of gate.FEATURES) of what the image needs
    minimum_kernel      the first Linux that mounts it, as (6, 1)
    """

    path: Path
    size: int
    block_size: int
    blocks: int
    data_blocks: int
    metadata_blocks: int
    inodes: int
    uuid: bytes
    epoch: int
    volume_name: bytes
    uncompressed: int
    kinds: dict[str, int]
    compressed: int = 0
    stored: int = 0
    reused: int = 0
    shared: int = 0
    repeats: int = 0
    repeated: int = 0
    fragments: int = 0
    packed: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    chunked: int = 0
    equal_chunks: int = 0
    holes: int = 0
    device_blocks: int = 0
    lent: int = 0
    lent_bytes: int = 0
    devices: tuple[Path, ...] = ()
    free_blocks: int = 0
    kept_blocks: int | None = None
    changed_blocks: int | None = None
    hot_blocks: int = 0
    unmatched: int = 0
    placed_anew: int | None = None
    features: list[str]
    minimum_kernel: Version = (5, 4)
