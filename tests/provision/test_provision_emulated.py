# SPDX-License-Identifier: Apache-2.0
"""The provisioning system in real QEMU, with TLS: a slot is mended and starts; strangers reach nothing."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from first_boot import PATIENCE

from erofs_edge.errors import DeviceError, DeviceRefusedError
from erofs_edge.manifest.load import load_board
from erofs_edge.provision.credentials import make_credentials, write_credentials
from erofs_edge.qemu.attach import attached
from erofs_edge.qemu.scratch import copy_sparse
from erofs_edge.transport.nbd.connect import Connection, parse_address

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(2400)]
BOARD = "boards/qemu-aarch64.yaml"


def test_a_slot_is_mended_over_tls_and_starts(
    stock: Callable[[str], Path], edge: str, repository: Path, tmp_path: Path
) -> None:
    """Both slots have lost a MiB: the one that is not in use is made right by what differs, and started."""
    out = stock("qemu-aarch64")
    disk = copy_sparse(out / "disk.img", tmp_path / "disk.img")
    places = json.loads((out / "release.json").read_text())["partitions"]
    with disk.open("r+b") as file:
        for slot in "ab":
            file.seek(places[f"system_{slot}"]["start"] + (8 << 20))
            file.write(random.Random(slot).randbytes(1 << 20))

    def command(*words: str) -> dict[str, Any]:
        done = subprocess.run([edge, *words, "--json"], cwd=repository, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        record: dict[str, Any] = json.loads(done.stdout)
        return record

    flashed = command("flash", BOARD, "-o", str(out), "--to", "qemu:nbds", "--disk", str(disk), "--yes")
    assert flashed["target"]["path"].startswith("provisions://") and flashed["target"]["product"]
    assert (flashed["slot"], flashed["bytes_written"]) == ("b", 1 << 20)
    assert flashed["bytes_on_wire"] < 3 << 20
    booted = command("boot", BOARD, "-o", str(out), "--disk", str(disk), "--smoke", "--timeout", PATIENCE)
    assert (booted["slot"], booted["report"]["status"]) == ("b", "V")


def test_strangers_reach_nothing_of_a_board_with_tls(
    stock: Callable[[str], Path], repository: Path, tmp_path: Path
) -> None:
    """Without TLS, and with the certificate of another board's host; whoever has the right one reads."""
    disk, other = tmp_path / "disk.img", tmp_path / "other"
    disk.write_bytes(bytes(1 << 20))
    write_credentials(other, make_credentials())
    with attached(load_board(repository / BOARD), stock("qemu-aarch64"), "nbds", disk) as address:
        place, _, query = address.removeprefix("provisions://").partition("?")
        host, _, port = place.partition(":")
        for number in (int(port), int(port) + 1):
            for uri in (f"nbd://{host}:{number}", f"nbds://{host}:{number}?tls-certificates={other}"):
                with pytest.raises((DeviceError, DeviceRefusedError), match="TLS"):
                    Connection(parse_address(uri + "&tls-hostname=provisioning" * ("nbds" in uri)))
            right = Connection(parse_address(f"nbds://{host}:{number}?{query}&tls-hostname=provisioning"))
            assert right.read(0, 512) == bytes(512)
            right.close()
    assert disk.read_bytes() == bytes(1 << 20)
