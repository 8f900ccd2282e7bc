# SPDX-License-Identifier: Apache-2.0
"""U-Boot as a UEFI board's firmware, without a machine: what it is made of, and what the command refuses.

The machine is in test_u_boot_bootefi.py (long).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_machine import BOARD_YAML
from msgspec.structs import replace

from erofs_edge.boot.loader import split
from erofs_edge.boot.u_boot_vars import decode
from erofs_edge.boot.uefi import ImageName
from erofs_edge.cli.boot import boot
from erofs_edge.errors import ErofsEdgeError, FormatError, UsageError
from erofs_edge.manifest.model import Board, Disk, Partition
from erofs_edge.qemu.stages import match_line
from erofs_edge.qemu.u_boot_uefi import programs, put_firmware
from erofs_edge.trust.certificate import self_signed
from erofs_edge.trust.signer import KeySigner
from erofs_edge.u_boot.seed import blank

IMAGES = [ImageName("a", 1, 3), ImageName("b", 2, 3)]


def uefi(board: Board) -> Board:
    return replace(board, disk=Disk(partitions={"esp": Partition(size="1M", content="esp")}))


def test_the_order_is_that_of_systemd_boot() -> None:
    assert programs(IMAGES) == {"b": "EFI/Linux/erofs-edge-2-b+3.efi", "a": "EFI/Linux/erofs-edge-1-a+3.efi"}
    assert list(programs([ImageName("a", 1), ImageName("b", 2, 0, 3)])) == ["a", "b"], "no attempts left: last"


def test_what_the_firmware_is_made_of(board: Board, rsa_key: object, tmp_path: Path) -> None:
    """The certificate is in the program, the script in the tree behind it."""
    signer = KeySigner("dev", rsa_key)  # type: ignore[arg-type]
    certificate = self_signed(signer, 0)
    (tmp_path / "sign.crt").write_bytes(certificate.pem)
    path = put_firmware(uefi(board), b"code" + blank(), tmp_path, signer, IMAGES, tmp_path)
    program, tree = split(path.read_bytes())
    assert program.startswith(b"code")
    keys = {variable.name: variable.data for variable in decode(program[4:])}
    assert set(keys) == {"PK", "KEK", "db"} and all(certificate.der in data for data in keys.values())
    script = tree.root.children["config"].props["bootcmd"].decode()
    assert script.index("erofs-edge-2-b+3.efi") < script.index("erofs-edge-1-a+3.efi") < script.index("no slot boots")
    with pytest.raises(FormatError, match="no blank place"):
        put_firmware(uefi(board), b"code", tmp_path, signer, IMAGES, tmp_path)
    (tmp_path / "sign.crt").unlink()
    with pytest.raises(ErofsEdgeError, match="certificate"):
        put_firmware(uefi(board), b"code" + blank(), tmp_path, signer, IMAGES, tmp_path)


def test_what_u_boot_says_is_why_nothing_starts() -> None:
    (match,) = match_line("Image not authenticated")
    assert (match.kind, match.name) == ("trouble", "efi-refused")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--falls-back"], "does not count the starts"),
        (["--tamper", "loader"], "without systemd-boot"),
        ([], "no UEFI images"),
    ],
    ids=["falls-back", "loader", "other-board"],
)
def test_what_the_command_refuses(more: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text("system: lab\n")
    (tmp_path / "board.yaml").write_text(BOARD_YAML)
    done = CliRunner().invoke(boot, [str(tmp_path / "board.yaml"), "-o", str(tmp_path), "--u-boot", *more])
    assert isinstance(done.exception, UsageError) and message in str(done.exception)
