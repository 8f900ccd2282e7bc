# SPDX-License-Identifier: Apache-2.0
"""Guess from a few blocks whether a target holds some of an image, to decide whether comparing is worthwhile.

The guess only decides what is done first and proves nothing: a wrong one costs time, nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from erofs_edge.errors import DeviceRefusedError
from erofs_edge.flash.image import Image
from erofs_edge.flash.plan import Region
from erofs_edge.flash.survey import digest
from erofs_edge.flash.target import BLOCK, Ability, Target

SAMPLES = 16
MARKS = ((0, 4), (510, 512), (1024, 1028), (1080, 1082))
"""byte patterns that identify kinds of images: common formats, partition tables and FAT, EROFS, ext4"""
HEAD = 2048  # bytes at the start that contain all of them
ENOUGH = 4  # one of this many samples must match: below that, writing is as fast as comparing


def resembles(regions: Sequence[Region], image: Image, target: Target) -> bool:
    """Whether enough of a few sample blocks, spread over the data of these regions, match the target. Blocks of a
    single byte value are not sampled, because a blank disk has those too. Raises OSError if the target fails,
    SourceError if the image does."""
    samples = []
    for region, start, length in _spread(regions):
        data = image.read(start - region.shift, length)
        if data.count(data[:1]) != len(data):
            samples.append((start, data))
    if Ability.HASH in target.abilities:
        name, asked = target.hash_name, [(start, len(data)) for start, data in samples]
        found = target.digests(asked) if asked else []
        right = sum(answer == digest(name, data) for answer, (_, data) in zip(found, samples, strict=False))
    elif Ability.READ in target.abilities:
        right = sum(target.read(start, len(data)) == data for start, data in samples)
    else:
        return False
    return bool(samples) and right * ENOUGH >= len(samples)


def refuse_other_file(image: Image, target: Target) -> None:
    """Raises DeviceRefusedError if the target is a file that would have to grow and holds a different kind of data than
    the image: most likely its name was mistyped. Empty files and those that begin with zeros may be filled.
    """
    if target.file is None or (size := os.fstat(target.file).st_size) >= image.size:
        return
    head, ours = target.read(0, HEAD), image.read(0, min(HEAD, image.size))
    alike = any(head[start:end] == ours[start:end] != bytes(end - start) for start, end in MARKS)
    if head.strip(b"\0") and not alike:
        raise DeviceRefusedError(
            f"this file of {size} bytes does not look like a disk image, and would grow to {image.size} bytes",
            where=target.identity.path,
            hint="check the name; add --whole to overwrite the file",
        )


def _spread(regions: Sequence[Region]) -> Iterator[tuple[Region, int, int]]:
    """(region, offset, length) of SAMPLES blocks, evenly spaced over the data of regions."""
    total = sum(region.data_bytes for region in regions)
    wanted = [total * (2 * number + 1) // (2 * SAMPLES) for number in range(SAMPLES)] if total else []
    passed = number = 0
    for region in regions:
        for start, end in region.data:
            last = None
            while number < len(wanted) and wanted[number] < passed + end - start:
                block = start + (wanted[number] - passed) // BLOCK * BLOCK
                number += 1
                if block != last:
                    yield region, block, min(BLOCK, end - block)
                last = block
            passed += end - start
