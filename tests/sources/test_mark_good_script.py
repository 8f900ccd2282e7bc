# SPDX-License-Identifier: Apache-2.0
"""How a system that has come up says so, run here with stand-ins for what needs a board."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Told = tuple[str, list[str], list[str]]
MarkGood = Callable[..., Told]


@pytest.fixture
def mark_good(tmp_path: Path, repository: Path) -> MarkGood:
    """mark_good(appears=…, slot=…, images=…): what it says on the console, the environment that it set, and the names
    of the kernel images then. The partitions are there from the `appears`th wait on."""
    top = tmp_path
    text = (repository / "manifests/files/edge-minimal/usr/lib/erofs-edge/mark-good").read_text()
    for place in ("/run/erofs-edge", "/sys/firmware/efi", "/dev/console", "/dev/disk/by-partlabel"):
        text = text.replace(place, f"{top}{place}")
    for folder in ("run/erofs-edge", "dev/disk/by-partlabel", "bin"):
        (top / folder).mkdir(parents=True)
    stand_ins = {
        "sleep": 'echo x >>"$TOP/waits"\n[ "$(wc -l <"$TOP/waits")" -lt "$APPEARS" ] || '
        'touch "$TOP/dev/disk/by-partlabel/misc" "$TOP/dev/disk/by-partlabel/esp"',
        "fw_setenv": 'echo "$*" >>"$TOP/set"',
        "sync": "",
        "mount": "",
        "umount": "",
    }  # fmt: skip
    for name, body in stand_ins.items():
        (top / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (top / "bin" / name).chmod(0o755)
    (top / "mark-good").write_text(text)

    def run(*, appears: int, slot: str = "a", images: tuple[str, ...] | None = None) -> Told:
        (top / "run/erofs-edge/boot").write_text(f"slot={slot}\nroot_hash=00\n")
        for name in ("waits", "set", "dev/console"):
            (top / name).write_text("")
        folder = top / "run/erofs-edge/esp/EFI/Linux"
        if images is not None:
            (top / "sys/firmware/efi").mkdir(parents=True)
            folder.mkdir(parents=True)
            for name in images:
                (folder / name).touch()
        environment = {"PATH": f"{top}/bin:/usr/bin:/bin", "TOP": str(top), "APPEARS": str(appears)}
        subprocess.run(["sh", str(top / "mark-good")], env=environment, check=True, timeout=60)
        names = sorted(path.name for path in folder.iterdir()) if images is not None else []
        return (top / "dev/console").read_text().strip(), (top / "set").read_text().splitlines(), names

    return run


IMAGES = ("erofs-edge-1-b+3.efi", "erofs-edge-2-a+2-1.efi")


def test_the_slot_gets_its_attempts_back(mark_good: MarkGood) -> None:
    assert mark_good(appears=1) == ("erofs-edge: slot a is good", ["BOOT_A_LEFT 4"], [])


def test_a_board_without_slots_says_nothing(mark_good: MarkGood) -> None:
    assert mark_good(appears=1, slot="") == ("", [], [])


def test_on_uefi_firmware_it_is_counted_no_more(mark_good: MarkGood) -> None:
    said, _, names = mark_good(appears=1, images=IMAGES)
    assert (said, names) == ("erofs-edge: slot a is good", ["erofs-edge-1-b+3.efi", "erofs-edge-2-a.efi"])


def test_partitions_are_waited_for(mark_good: MarkGood, tmp_path: Path) -> None:
    """udev may come to the ESP after everything else: a slot that stays counted would be given up one day."""
    (tmp_path / "dev/disk/by-partlabel/misc").touch()
    said, _, names = mark_good(appears=7, images=IMAGES)
    assert (said, names) == ("erofs-edge: slot a is good", ["erofs-edge-1-b+3.efi", "erofs-edge-2-a.efi"])
    assert len((tmp_path / "waits").read_text().splitlines()) == 7


def test_a_partition_that_never_comes(mark_good: MarkGood) -> None:
    said, _, names = mark_good(appears=1000, images=IMAGES)
    assert (said, names) == ("erofs-edge: slot a is good", list(IMAGES))
