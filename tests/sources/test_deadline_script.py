# SPDX-License-Identifier: Apache-2.0
"""What a system does whose slot has not been marked good in time, run here with stand-ins for what needs a board."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Told = tuple[str, list[str]]
Deadline = Callable[..., Told]


@pytest.fixture
def deadline(tmp_path: Path, repository: Path) -> Deadline:
    """deadline(state, good=…, slot=…, images=…, appears=…): what it says on the console, and the calls of systemctl.
    The partitions are there from the `appears`th wait on."""
    top, labels = tmp_path, "$TOP/dev/disk/by-partlabel"
    text = (repository / "manifests/files/edge-minimal/usr/lib/erofs-edge/deadline").read_text()
    for place in ("/run/erofs-edge", "/sys/firmware/efi", "/dev/console", "/dev/disk/by-partlabel"):
        text = text.replace(place, f"{top}{place}")
    for folder in ("run/erofs-edge", "dev/disk/by-partlabel", "bin"):
        (top / folder).mkdir(parents=True)
    stand_ins = {
        "systemctl": 'echo "$*" >>"$TOP/calls"\ncase $* in\n*is-active*) [ -e "$TOP/good" ] ;;\n'
        '*list-units*) cat "$TOP/failed" ;;\nesac',
        "sleep": 'echo x >>"$TOP/waits"\n[ "$(wc -l <"$TOP/waits")" -lt "$APPEARS" ] || '
        f'touch "{labels}/misc" "{labels}/esp"',
        "fw_printenv": f'[ -e "{labels}/misc" ] && value=$(grep "^$2=" "$TOP/state") && echo "${{value#*=}}"',
        "mount": f'[ -e "{labels}/esp" ]',
        "umount": "",
    }
    for name, body in stand_ins.items():
        (top / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (top / "bin" / name).chmod(0o755)
    (top / "deadline").write_text(text)

    def run(
        state: str,
        *,
        good: bool = False,
        slot: str = "b",
        failed: str = "",
        images: tuple[str, ...] | None = None,
        appears: int = 1,
    ) -> Told:
        (top / "run/erofs-edge/boot").write_text(f"slot={slot}\nroot_hash=00\n")
        (top / "state").write_text(state.replace(" ; ", "\n") + "\n")
        (top / "failed").write_text(failed)
        (top / "calls").write_text("")
        (top / "dev/console").write_text("")
        if good:
            (top / "good").touch()
        if images is not None:
            (top / "sys/firmware/efi").mkdir(parents=True)
            folder = top / "run/erofs-edge/esp/EFI/Linux"
            folder.mkdir(parents=True)
            for name in images:
                (folder / name).touch()
        environment = {"PATH": f"{top}/bin:/usr/bin:/bin", "TOP": str(top), "APPEARS": str(appears)}
        subprocess.run(["sh", str(top / "deadline")], env=environment, check=True, timeout=60)
        return (top / "dev/console").read_text().strip(), (top / "calls").read_text().splitlines()

    return run


RESTARTS = ["--no-block reboot", "--force reboot"]


def test_a_slot_that_is_good_goes_on(deadline: Deadline) -> None:
    assert deadline("BOOT_ORDER=B A ; BOOT_A_LEFT=4 ; BOOT_B_LEFT=4", good=True) == (
        "", ["-q is-active edge-mark-good.service"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("state", "restarts"),
    [
        ("BOOT_ORDER=B A ; BOOT_A_LEFT=4 ; BOOT_B_LEFT=2", True),
        ("BOOT_ORDER=B A ; BOOT_A_LEFT=1 ; BOOT_B_LEFT=0", True),
        ("BOOT_ORDER=B A ; BOOT_A_LEFT=0 ; BOOT_B_LEFT=2", False),
        ("BOOT_ORDER=B ; BOOT_A_LEFT=3 ; BOOT_B_LEFT=2", False),
        ("BOOT_ORDER=B A RECOVERY ; BOOT_A_LEFT=0 ; BOOT_B_LEFT=2 ; BOOT_RECOVERY_LEFT=3", True),
    ],
)
def test_the_board_restarts_where_another_slot_could_start(deadline: Deadline, state: str, restarts: bool) -> None:
    said, calls = deadline(state, failed="app.service loaded failed failed An app\nb.mount loaded failed failed B\n")
    assert said.startswith("erofs-edge: slot b is not well: app.service b.mount; ")
    assert said.endswith("the board restarts" if restarts else "there is no other slot")
    assert calls[2:] == (RESTARTS if restarts else [])


def test_without_a_failed_unit_it_was_too_slow(deadline: Deadline) -> None:
    said, _ = deadline("BOOT_ORDER=A B ; BOOT_A_LEFT=2 ; BOOT_B_LEFT=1", slot="a")
    assert said == "erofs-edge: slot a is not well: it did not come up in time; the board restarts"


@pytest.mark.parametrize("images", [None, ("erofs-edge-2-b+1-2.efi", "erofs-edge-1-a.efi")])
def test_partitions_are_waited_for(deadline: Deadline, images: tuple[str, ...] | None) -> None:
    """udev may come to them after everything else: a state that is not read looks as if there were no other slot."""
    said, calls = deadline("BOOT_ORDER=B A ; BOOT_A_LEFT=4 ; BOOT_B_LEFT=0", images=images, appears=7)
    assert said.endswith("the board restarts") and calls[2:] == RESTARTS


def test_a_board_without_slots_goes_on(deadline: Deadline) -> None:
    assert deadline("", slot="") == ("", [])


@pytest.mark.parametrize(
    ("images", "restarts"),
    [
        (("erofs-edge-2-b+1-2.efi", "erofs-edge-1-a.efi"), True),
        (("erofs-edge-2-b+1-2.efi", "erofs-edge-1-a+2-1.efi"), True),
        (("erofs-edge-2-b+1-2.efi", "erofs-edge-1-a+0-3.efi"), False),
        (("erofs-edge-2-b+1-2.efi", "erofs-edge-1-a+0.efi"), False),
        (("erofs-edge-2-b.efi",), False),
    ],
)
def test_uefi_boards_count_in_names(deadline: Deadline, images: tuple[str, ...], restarts: bool) -> None:
    said, calls = deadline("", images=images)
    assert said.endswith("restarts" if restarts else "there is no other slot")
    assert calls[2:] == (RESTARTS if restarts else [])
