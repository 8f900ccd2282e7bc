# SPDX-License-Identifier: Apache-2.0
"""Chromium without a window, from the private prefix; and the pixels of what it shows.

It starts itself again by its own path, so it cannot run under a loader that is named on the command line, as other
reference tools do. It is of the oldest release: the host's own loader and C library are new enough for it, and all
other libraries come from the prefix.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from erofs_edge.toolbox.prefix import prefix

C_LIBRARY = re.compile(
    r"(libc|libm|libmvec|libpthread|libdl|librt|libresolv|libutil|libanl|libnss_\w+|libnsl|libthread_db"
    r"|libBrokenLocale|libc_malloc_debug|ld-linux[\w-]*)[.-]"
)


class Browser:
    """Runs in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        root = prefix() / "roots/oracles-browser"
        self.program = root / "usr/lib/chromium/chromium-headless-shell"
        if not self.program.exists():
            pytest.fail("Chromium is missing: run 'erofs-edge tools fetch --oracles' (make test does)")
        self.folder = folder
        libraries = folder / "libraries"
        libraries.mkdir()
        for pattern in ("lib/*-linux-gnu", "usr/lib/*-linux-gnu", "usr/lib/*-linux-gnu/pulseaudio"):
            for place in root.glob(pattern):
                for path in place.glob("*.so*"):
                    if not C_LIBRARY.match(path.name) and not (libraries / path.name).is_symlink():
                        (libraries / path.name).symlink_to(path)

    def run(self, page: Path, *options: str) -> str:
        """Open a page; what was asked for with options, on stdout."""
        command = [
            str(self.program), "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--mute-audio",
            "--disable-background-networking",
            f"--user-data-dir={self.folder / 'profile'}", *options, page.as_uri(),
        ]  # fmt: skip
        environment = {
            "LD_LIBRARY_PATH": str(self.folder / "libraries"), "HOME": str(self.folder), "PATH": os.environ["PATH"],
        }  # fmt: skip
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    def pixels(self, page: Path) -> set[bytes]:
        """The colours (three bytes) that are to be seen in the first 1,800 pixels of a page, at half its size."""
        picture = self.folder / "picture.png"
        self.run(page, f"--screenshot={picture}", "--window-size=1100,1800", "--force-device-scale-factor=0.5")
        return colours(picture.read_bytes())


def colours(png: bytes) -> set[bytes]:
    """The colours of a PNG with 8 bits a channel, without its alpha (W3C, PNG: 9 Filtering)."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    position, data = 8, b""
    width = height = channels = 0
    while position < len(png):
        size, kind = struct.unpack_from(">I4s", png, position)
        body = png[position + 8 : position + 8 + size]
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack_from(">IIBB", body)
            assert depth == 8 and colour in (2, 6)
            channels = 3 if colour == 2 else 4
        elif kind == b"IDAT":
            data += body
        position += size + 12
    raw, stride = zlib.decompress(data), width * channels
    before, found = bytearray(stride), set[bytes]()
    for row in range(height):
        start = row * (stride + 1)
        line = _unfiltered(raw[start], bytearray(raw[start + 1 : start + 1 + stride]), before, channels)
        found |= {bytes(line[at : at + 3]) for at in range(0, stride, channels)}
        before = line
    return found


def _unfiltered(kind: int, line: bytearray, above: bytearray, step: int) -> bytearray:
    for at in range(len(line)):
        left = line[at - step] if at >= step else 0
        up = above[at]
        corner = above[at - step] if at >= step else 0
        if kind == 1:
            add = left
        elif kind == 2:
            add = up
        elif kind == 3:
            add = (left + up) // 2
        elif kind == 4:
            guess = left + up - corner
            add = min((abs(guess - left), 0, left), (abs(guess - up), 1, up), (abs(guess - corner), 2, corner))[2]
        else:
            return line
        line[at] = (line[at] + add) & 0xFF
    return line
