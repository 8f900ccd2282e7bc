# SPDX-License-Identifier: Apache-2.0
"""Whether a target looks as if it held an image, or some of it: a few blocks are enough to tell if comparing pays.

It decides what is looked at first and proves nothing: where it is wrong, time is lost and nothing else.
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
"""bytes by which kinds of images are told: most formats, partition tables and FAT, EROFS, ext4"""
HEAD = 2048  # bytes that have all of them
ENOUGH = 4  # of so many samples one must be right: less of a disk is written as fast as it is compared


def resembles(regions: Sequence[Region], image: Image, target: Target) -> bool:
    """Whether of a few blocks, which lie all over the data of these regions, enough are right on the target. Blocks of
    one byte are no sample: a blank disk has those. Raises OSError where the target fails, SourceError where the image
    does."""
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
    """Raises DeviceRefusedError where the target is a file that would have to grow, and holds something of another kind
    than the image: its name is a slip, most likely. Empty ones and those that begin with zeros are there to be filled.
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
    """(region, offset, length) of SAMPLES blocks at equal distances in the data of regions."""
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
