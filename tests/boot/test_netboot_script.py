# SPDX-License-Identifier: Apache-2.0
"""U-Boot's commands of a diskless board, run by a model of its shell."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hush import Machine, Stop

from erofs_edge.diskless.place import parse_boot_image
from erofs_edge.diskless.start import FIT, netboot_script
from erofs_edge.manifest.load import load_board


@dataclass
class Netboot(Machine):
    """dhcp, tftp: the results of successive attempts; the last one repeats. A run ends where the script would wait."""

    dhcp: list[bool] = field(default_factory=lambda: [True])
    tftp: list[bool] = field(default_factory=lambda: [True])
    calls: list[str] = field(default_factory=list)
    signed: bool = True

    def do_virtio(self, action: str, *arguments: str) -> bool:
        assert action == "scan"
        return True

    def do_dhcp(self) -> bool:
        assert self.env["autoload"] == "no"
        self.calls.append("dhcp")
        return self.dhcp.pop(0) if len(self.dhcp) > 1 else self.dhcp[0]

    def do_tftpboot(self, address: str, file: str) -> bool:
        self.calls.append(f"tftpboot {address} {file}")
        return self.tftp.pop(0) if len(self.tftp) > 1 else self.tftp[0]

    def do_wget(self, address: str, path: str) -> bool:
        self.calls.append(f"wget {address} {path} at port {self.env['httpdstp']}")
        return True

    def do_bootm(self, *arguments: str) -> bool:
        self.calls.append("bootm " + " ".join(arguments))
        if self.signed:
            raise Stop
        return False


@pytest.fixture
def script() -> str:
    return netboot_script(load_board(Path(__file__).parents[2] / "boards/qemu-aarch64.yaml").value)


def machine(**values: object) -> Netboot:
    return Netboot(bytearray(512), {}, lambda fit: True, env={"fdtcontroladdr": "7e"}, **values)  # type: ignore[arg-type]


def test_the_way_from_the_network_to_a_verified_kernel(script: str) -> None:
    board = machine()
    board.run(script)
    assert board.calls == ["dhcp", f"tftpboot 50000000 {FIT}", "bootm 50000000#conf 50000000#conf 7e"]
    assert board.env["bootargs"] == "console=ttyAMA0 quiet panic=-1 gpt"
    assert board.said == ["erofs-edge: stage u-boot slot none"]


def test_the_boot_image_from_a_web_server() -> None:
    qemu = load_board(Path(__file__).parents[2] / "boards/qemu-aarch64.yaml").value
    board = machine()
    board.run(netboot_script(qemu, parse_boot_image("http://192.0.2.1:8000/a/d.fit")))
    assert board.calls == [
        "dhcp", "wget 50000000 192.0.2.1:/a/d.fit at port 8000", "bootm 50000000#conf 50000000#conf 7e",
    ]  # fmt: skip


def test_it_tries_again_until_there_is_an_address_and_a_file(script: str) -> None:
    board = machine(dhcp=[False, True], tftp=[False, True])
    for _ in range(3):
        board.run(script)
    assert [call.split()[0] for call in board.calls] == ["dhcp", "dhcp", "tftpboot", "dhcp", "tftpboot", "bootm"]


def test_what_is_not_signed_never_starts(script: str) -> None:
    board = machine(signed=False)
    for _ in range(2):
        board.run(script)
    assert board.said.count("erofs-edge: slot does not start: none") == 2
    assert [call.split()[0] for call in board.calls] == ["dhcp", "tftpboot", "bootm"] * 2
