# SPDX-License-Identifier: Apache-2.0
"""How much data an image can plausibly hold: one that decodes to more is a bomb."""

from __future__ import annotations

from erofs_edge.erofs.read import Image


def output_limit(image_size: int) -> int:
    """Return how many bytes an image of this size may decode to before it counts as a bomb (LZ4: at most 255:1)."""
    return 256 * image_size + (1 << 30)


def output_limit_of(image: Image) -> int:
    """Return the same limit for an image including its available extra devices."""
    devices = enumerate(image.superblock.devices, 1)
    blocks = sum(device.blocks for number, device in devices if number not in image.missing_devices)
    return output_limit(image.superblock.size + (blocks << image.superblock.raw.blkszbits))
