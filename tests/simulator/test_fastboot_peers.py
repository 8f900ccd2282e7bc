# SPDX-License-Identifier: Apache-2.0
"""Google's fastboot with our device, our client with it, and links that lose, repeat and delay packets."""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from erofs_edge.errors import CapacityError, DeviceError, DeviceRefusedError, ProtocolError, UsageError
from erofs_edge.flash.fastboot import Fastboot
from erofs_edge.simulator.fastboot import FastbootDevice, serve_tcp, serve_udp
from erofs_edge.transport.fastboot.link import TcpLink, open_device

MIB = 1 << 20
Oracle = Callable[[str], str]
SERVERS = {"tcp": serve_tcp, "udp": serve_udp}


@pytest.fixture
def device() -> FastbootDevice:
    parts = {"boot_a": bytearray(MIB), "boot_b": bytearray(MIB), "system": bytearray(b"\xee" * (4 * MIB))}
    return FastbootDevice(parts, {"serialno": "S1"}, memory=MIB)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    rng = random.Random(9)
    with path.open("wb") as file:
        file.write(rng.randbytes(MIB + 5000))
        file.seek(2 * MIB + 4096 * 3)
        file.write(rng.randbytes(MIB + 77))
    return path


def google(oracle: Oracle, address: str, *words: str) -> str:
    done = subprocess.run(
        [oracle("fastboot"), "-s", address, *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("wire", SERVERS)
def test_googles_client_with_our_device(wire: str, device: FastbootDevice, image: Path, oracle: Oracle) -> None:
    content = image.read_bytes()
    with image.open("ab") as file:
        file.truncate(4 * MIB)  # in pieces it sends whole blocks only
    with SERVERS[wire](device) as address:
        assert "serialno: S1" in google(oracle, address, "getvar", "serialno")
        assert "partition-size:system: 0x400000" in google(oracle, address, "getvar", "all")
        google(oracle, address, "flash", "system", str(image))
        google(oracle, address, "erase", "boot_a")
        google(oracle, address, "set_active", "b")
    # its own sparse pieces leave holes as they are: only the data is sure
    assert device.partitions["system"][: MIB + 5000] == content[: MIB + 5000]
    assert sum(word.startswith("flash") for word in device.log) >= 3
    assert bytes(device.partitions["boot_a"][:]) == b"\xff" * MIB
    assert device.slot == "b"


@pytest.mark.parametrize("wire", SERVERS)
def test_our_client_with_our_device(wire: str, device: FastbootDevice, image: Path) -> None:
    content = image.read_bytes()
    with SERVERS[wire](device) as address, open_device(address) as opened:
        fastboot = Fastboot(opened)
        assert fastboot.variables()["max-download-size"] == "0x100000"
        sent = fastboot.flash("system", image)
        assert sent < len(content) - 4096 * 200
        padded = content + bytes(-len(content) % 4096)
        assert device.partitions["system"][: len(padded)] == padded
        assert device.partitions["system"][len(padded) :] == b"\xee" * (4 * MIB - len(padded))
        assert b"".join(fastboot.fetch_partition("system")) == bytes(device.partitions["system"][:])
        with pytest.raises(CapacityError, match="needs"):
            fastboot.flash("boot_a", image)
        with pytest.raises(DeviceRefusedError, match="no such slot"):
            fastboot.command("set_active:c")
    assert all(len(word) <= 64 for word in device.log)


def test_an_image_without_holes_goes_as_it_is(device: FastbootDevice, tmp_path: Path) -> None:
    """As one download, if the device holds it; else, or with a hole, in sparse pieces."""
    content = random.Random(7).randbytes(device.memory - 1000)
    (tmp_path / "image").write_bytes(content)
    with serve_tcp(device) as address, open_device(address) as opened:
        fastboot = Fastboot(opened)
        assert fastboot.flash("system", tmp_path / "image") == device.memory
        assert bytes(device.partitions["system"][: device.memory]) == content + bytes(1000)
        assert [word for word in device.log if word.startswith("download")] == [f"download:{device.memory:08x}"]
        device.log.clear()
        with (tmp_path / "image").open("ab") as file:
            file.write(bytes(5000))
        fastboot.flash("system", tmp_path / "image")
    assert len([word for word in device.log if word.startswith("download")]) == len(("one", "two"))


def test_sizes_as_boot_loaders_write_them(
    device: FastbootDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partition's size without 0x is hexadecimal, too; of more memory than a download can fill not all is used."""
    content = random.Random(8).randbytes(3 * MIB)
    (tmp_path / "image").write_bytes(content)
    device.variables |= {"partition-size:system": "400000", "max-download-size": "0x200000000"}
    with serve_tcp(device) as address, open_device(address) as opened:
        monkeypatch.setattr("erofs_edge.transport.fastboot.client.DOWNLOAD_MAX", MIB)
        Fastboot(opened).flash("system", tmp_path / "image")
    assert bytes(device.partitions["system"][: 3 * MIB]) == content
    assert len([word for word in device.log if word.startswith("download")]) > 3


def test_a_sparse_image_is_divided_anew_for_a_device_with_less_memory(
    device: FastbootDevice, image: Path, tmp_path: Path, oracle: Oracle
) -> None:
    with image.open("r+b") as file:
        file.seek(MIB + 8192)
        file.write(b"fill" * 3072)
        file.truncate(4 * MIB)
    subprocess.run([oracle("img2simg"), str(image), str(tmp_path / "sparse")], check=True)
    assert (tmp_path / "sparse").stat().st_size > 2 * device.memory
    with serve_tcp(device) as address, open_device(address) as opened:
        sent = Fastboot(opened).flash("system", tmp_path / "sparse")
        assert sent < (tmp_path / "sparse").stat().st_size + 400
        with pytest.raises(CapacityError, match="boot_a has 1048576 bytes, the image needs 3145728 more"):
            Fastboot(opened).flash("boot_a", tmp_path / "sparse")
    assert bytes(device.partitions["system"][:]) == image.read_bytes()
    assert sum(word.startswith("flash") for word in device.log) >= 3


def test_partitions_with_slots(device: FastbootDevice, tmp_path: Path, oracle: Oracle) -> None:
    """A name without its slot means the one in use, as with Google's tool."""
    small = tmp_path / "small"
    small.write_bytes(random.Random(2).randbytes(8192))
    device.slot = "b"
    with serve_tcp(device) as address:
        google(oracle, address, "flash", "boot", str(small))
        with open_device(address) as opened:
            fastboot = Fastboot(opened)
            assert fastboot.named("boot") == ["boot_b"]
            assert fastboot.named("boot", "other") == ["boot_a"]
            assert fastboot.named("boot", "all") == ["boot_a", "boot_b"]
            assert fastboot.named("boot", "_a") == ["boot_a"]
            assert fastboot.named("boot_a") == fastboot.named("boot_a", "all") == ["boot_a"]
            assert fastboot.named("nothing") == ["nothing"]
            with pytest.raises(UsageError, match="system has no slots"):
                fastboot.named("system", "a")
            device.variables["slot-count"] = "1"
            with pytest.raises(UsageError, match="which slot 'other' is"):
                fastboot.named("boot", "other")
    assert "flash:boot_b" in device.log
    assert device.partitions["boot_b"][:8192] == small.read_bytes()


def test_a_partition_comes_in_pieces(device: FastbootDevice) -> None:
    device.partitions["system"][:] = random.Random(3).randbytes(4 * MIB)
    with serve_tcp(device) as address, open_device(address) as opened:
        fastboot = Fastboot(opened)
        assert b"".join(fastboot.fetch_partition("system")) == bytes(device.partitions["system"][:])
        assert sum(word.startswith("fetch:system:") for word in device.log) == 4
        with pytest.raises(DeviceRefusedError, match="max-fetch-size"):
            fastboot.fetch("fetch:system")
        device.variables["partition-size:system"] = hex(5 * MIB)
        with pytest.raises(ProtocolError, match="the device sent 0 bytes"):
            list(fastboot.fetch_partition("system"))
        device.variables["max-fetch-size"] = "0"
        with pytest.raises(DeviceRefusedError, match="does not allow reading"):
            list(fastboot.fetch_partition("system"))


def test_a_device_that_is_silent_about_slots(device: FastbootDevice) -> None:
    device.quirks = frozenset({"no-slots"})
    with serve_tcp(device) as address, open_device(address) as opened:
        fastboot = Fastboot(opened)
        assert "slot-count" not in fastboot.variables()
        with pytest.raises(DeviceRefusedError, match="not implemented"):
            fastboot.variable("slot-count")


FAULTS = ["drop", "duplicate", "late"]


@pytest.mark.parametrize("fault", FAULTS)
def test_udp_over_a_bad_link(fault: str, device: FastbootDevice, tmp_path: Path) -> None:
    """Every packet may be lost, doubled or come after its successor: the image arrives, each command runs once."""
    rng = random.Random(4)
    held: list[bytes] = []

    def spoil(packet: bytes) -> list[bytes]:
        if rng.random() > 0.02:
            late = held[:]
            held.clear()
            return [packet, *late]
        if fault == "late":
            held.append(packet)
        return {"drop": [], "duplicate": [packet, packet], "late": []}[fault]

    small = tmp_path / "small"
    small.write_bytes(random.Random(2).randbytes(150_000))
    with serve_udp(device, spoil) as address, open_device(address) as opened:
        Fastboot(opened).flash("boot_b", small)
    assert device.partitions["boot_b"][:150_000] == small.read_bytes()
    assert device.log.count("flash:boot_b") == 1


def test_a_cut_connection_ends_in_an_error_in_time(device: FastbootDevice, image: Path, edge: str) -> None:
    with serve_tcp(device) as address:
        pass
    done = subprocess.run(
        [edge, "fastboot", "-s", address, "flash", "system", str(image)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 6
    assert "cannot connect" in done.stderr


@pytest.mark.parametrize("trickle", [b"", bytes(6) + b"\x10\x00" + b"OKAY"], ids=["silent", "trickling"])
def test_a_device_that_does_not_come_to_the_point(trickle: bytes) -> None:
    """Neither silence nor a byte now and then keeps a host: a message has a deadline as a whole."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer, suppress(OSError):
                peer.sendall(b"FB01")
                for byte in itertools.cycle(trickle):
                    peer.sendall(bytes([byte]))
                    time.sleep(0.001)
                while peer.recv(1 << 16):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        with open_device(f"tcp:127.0.0.1:{server.getsockname()[1]}") as opened:
            opened.link.send(b"getvar:product")
            with pytest.raises(DeviceError, match="has not answered"):
                opened.link.receive(patience=0.2)
        thread.join()


def test_the_command(device: FastbootDevice, image: Path, tmp_path: Path, edge: str) -> None:
    def run(*words: str) -> str:
        return subprocess.run(
            [edge, "fastboot", "-s", address, *words], capture_output=True, text=True, check=True, timeout=60
        ).stdout

    with serve_tcp(device) as address:
        assert run("getvar", "product") == "product: simulated\n"
        assert json.loads(run("getvar", "all", "--json"))["variables"]["version"] == "0.4"
        record = json.loads(run("flash", "system", str(image), "--json"))
        run("fetch", "system", str(tmp_path / "back"))
        run("set_active", "b")
        run("set_active", "other")
        run("set_active", "_b")
        run("erase", "boot", "--slot", "a")
        run("continue")
    assert record["bytes_total"] == image.stat().st_size > record["bytes_sent"]
    assert (tmp_path / "back").read_bytes()[: image.stat().st_size] == image.read_bytes()
    assert [word for word in device.log if not word.startswith("getvar")][-5:] == [
        "set_active:b", "set_active:a", "set_active:b", "erase:boot_a", "continue"
    ]  # fmt: skip


def test_commands_as_scripts_for_googles_tool_write_them(device: FastbootDevice, edge: str) -> None:
    """Words of the vendor's own commands may look like options, and restarts have an old form."""
    with serve_tcp(device) as address:
        for words in (["oem", "run", "-x", "--slot", "a"], ["oem", "-v"], ["reboot-recovery"]):
            subprocess.run([edge, "fastboot", "-s", address, *words], capture_output=True, check=False, timeout=60)
    assert device.log == ["oem run -x --slot a", "oem -v", "reboot-recovery"]


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("tcp:board", "board", 5554),
        ("tcp:board/", "board", 5554),
        ("udp:192.0.2.1:99", "192.0.2.1", 99),
        ("udp:[fe80::1%eth0]:99", "fe80::1%eth0", 99),
        ("tcp:[::1]", "::1", 5554),
    ],
)
def test_addresses(address: str, host: str, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def link(host: str, port: int) -> TcpLink:
        asked.append((host, port))
        raise OSError(0, "not now")

    monkeypatch.setattr("erofs_edge.transport.fastboot.link.LINKS", {"tcp": link, "udp": link})
    with pytest.raises(DeviceError, match="not now"):
        open_device(address)
    assert asked == [(host, port)]


@pytest.mark.parametrize(
    "address",
    ["tcp:", "tcp:h:0", "tcp:h:70000", "tcp:h:x", "tcp:h/path", "tcp:h?x=1", "tcp:me@h", "udp:::1", "udp:[]", "ftp:h"],
)
def test_what_is_no_address_is_refused_before_it_is_looked_up(address: str) -> None:
    with pytest.raises(UsageError, match="not a fastboot device"):
        open_device(address)


def test_what_is_no_image_and_what_is_no_partition(device: FastbootDevice, image: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with serve_tcp(device) as address, open_device(address) as opened:
        fastboot = Fastboot(opened)
        for path in (tmp_path / "pipe", Path("/dev/zero")):
            with pytest.raises(UsageError, match="not an image"):
                fastboot.flash("system", path)
        with pytest.raises(DeviceRefusedError, match="no such partition: nothing"):
            fastboot.command("erase:nothing")


def test_a_device_that_left_is_given_up_soon(device: FastbootDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens any more where it was: unplugged, restarted, or killed."""
    monkeypatch.setattr("erofs_edge.transport.fastboot.link.GONE", 0.2)
    with serve_udp(device) as address:
        opened = open_device(address)
        assert Fastboot(opened).variable("product") == "simulated"
    with opened, pytest.raises(DeviceError, match="the device has disappeared") as caught:
        Fastboot(opened).variable("product")
    assert caught.value.where == address
