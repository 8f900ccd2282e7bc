# SPDX-License-Identifier: Apache-2.0
"""The files from which a diskless board starts: complete, signed, the same each time; and what is refused."""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from erofs_edge.boot.contents import init_values, unpack_initramfs
from erofs_edge.boot.cpio import read_cpio, write_cpio
from erofs_edge.boot.elf import dynamic
from erofs_edge.boot.fdt import parse
from erofs_edge.boot.fit import Image, build_fit, verify_fit
from erofs_edge.boot.initramfs import InitConfig, compress
from erofs_edge.diskless.place import Place, parse_boot_image, parse_place
from erofs_edge.diskless.start import board_lock, netboot_script
from erofs_edge.errors import ErofsEdgeError, ManifestError, UsageError
from erofs_edge.manifest.load import load_board
from erofs_edge.provision.credentials import make_credentials
from erofs_edge.trace.record import make_trace, write_trace
from erofs_edge.tree import BytesContent, FileTree, Inode
from erofs_edge.trust.key import rsa_key
from erofs_edge.trust.signer import open_signer

BOARD = "boards/qemu-aarch64.yaml"
HASH = "5a" * 32
Edge = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The part of a build that a diskless start needs."""
    folder = tmp_path / "out"
    folder.mkdir()
    config = InitConfig(
        HASH,
        "aa",
        4096,
        100,
        101,
        "system",
        ("a", "b"),
        "data",
        state="misc",
        cmdline="console=ttyAMA0",
        etc=("/etc/x",),
    )
    (folder / "boot.fit").write_bytes(_fit(config.text()))
    (folder / "release.json").write_text(json.dumps({"format": 1, "system": {"root_hash": HASH}}))
    return folder


def _fit(config: str) -> bytes:
    tree = FileTree()
    tree.add("config", Inode(stat.S_IFREG | 0o644, content=BytesContent(config.encode())))
    images = {
        "kernel": Image("kernel_noload", b"k", "kernel"),
        "ramdisk": Image("ramdisk", compress(write_cpio(tree, epoch=0)), "ramdisk"),
    }
    return build_fit(images, description="x", epoch=0, signer=None)


@pytest.fixture
def run(edge: str, repository: Path) -> Edge:
    def command(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [edge, *map(str, words)], cwd=repository, capture_output=True, text=True, check=False, timeout=300
        )

    return command


def _members(fit: bytes) -> dict[str, bytes]:
    node = parse(fit).root.at("/images/ramdisk")
    assert node is not None
    return {m.name.decode(): m.data for m in read_cpio(unpack_initramfs(node.props["data"]))}


def test_a_complete_and_signed_start(run: Edge, out: Path, tmp_path: Path) -> None:
    write_trace(
        make_trace(
            [(0, 7, 3), (1, 2, 1)], root_hash=HASH, image_bytes=1 << 20, block_size=4096, requests=2, bytes_read=9
        ),
        tmp_path / "trace",
    )
    authority = make_credentials()["ca-cert.pem"]
    (tmp_path / "ca.pem").write_bytes(authority)
    words = ("diskless", BOARD, "-o", out, "--system", "nbds://192.0.2.1/system", "--data", "nbd://192.0.2.1:99/data/")
    done = run(*words, "--tls-ca", tmp_path / "ca.pem", "--prefetch", tmp_path / "trace", "--json")
    assert done.returncode == 0, done.stderr
    fit = (out / "diskless.fit").read_bytes()
    record = json.loads(done.stdout)
    assert record["files"]["diskless.fit"] == len(fit)
    assert record["root_hash"] == HASH
    verify_fit(fit, rsa_key(open_signer("dev:dev"), "a FIT"))
    values = init_values(fit)
    assert (values["ROOT_HASH"], values["SLOTS"], values["STATE"], values["ETC"]) == (HASH, "", "", "/etc/x")
    assert values["SYSTEM_FROM"] == (
        "nbd hostname=192.0.2.1 port=10809 tls=require tls-certificates=/run/tls export=system "
        "retries=1000000000 retry-delay=1 retry-exponential=no cow-on-read=/run/ahead cow-block-size=4096"
    )
    assert values["DATA_FROM"] == "nbd hostname=192.0.2.1 port=99 export=data/"
    assert (values["DATA"], values["DATA_ID"]) == ("data", "mac")
    members = _members(fit)
    assert members["prefetch"] == b"2 8\n"
    assert members["tls/ca-cert.pem"] == authority
    modules = " ".join(name for name in members if name.startswith("modules/"))
    assert "-virtio_net.ko" in modules and "-nbd.ko" in modules and "-dm_verity.ko" in modules
    assert "-virtio_blk.ko" not in modules
    _check_linked(members)


def _check_linked(members: dict[str, bytes]) -> None:
    """Check that every ELF file for the guest finds its libraries."""
    objects = {n: d for n, d in members.items() if d[:4] == b"\x7fELF" and not n.startswith("modules/")}
    present = {name.rpartition("/")[2] for name in objects}
    plugins = [name for name in objects if "nbdkit-" in name]
    assert {name.rpartition("/")[2] for name in plugins} == {
        "nbdkit-nbd-plugin.so", "nbdkit-retry-filter.so", "nbdkit-cow-filter.so"
    }  # fmt: skip
    for name, data in objects.items():
        assert set(dynamic(data).needed) <= present, name


def test_a_boot_image_that_names_no_system(run: Edge, out: Path) -> None:
    for config in ("SLOTS='a b'\nSYSTEM='system'\n", f"ROOT_HASH='{HASH[:-1]}x'\nSLOTS='a b'\nSYSTEM='system'\n"):
        (out / "boot.fit").write_bytes(_fit(config))
        done = run("diskless", BOARD, "-o", out, "--system", "nbd://192.0.2.1/system")
        assert done.returncode == 1 and f"{out}: the boot image of this build names no system" in done.stderr, (
            done.stderr
        )


def test_the_same_bytes_each_time_and_over_http(run: Edge, out: Path) -> None:
    fits = []
    for _ in range(2):
        done = run("diskless", BOARD, "-o", out, "--system", "http://192.0.2.1:8000/a/system.img")
        assert done.returncode == 0, done.stderr
        fits.append((out / "diskless.fit").read_bytes())
    assert fits[0] == fits[1]
    assert "tftpboot 50000000 diskless.fit; then" in (out / "diskless.cmd").read_text()
    words = ("diskless", BOARD, "-o", out, "--system", "http://192.0.2.1:8000/a/system.img")
    done = run(*words, "--boot-image", "http://192.0.2.1:8000/a/diskless.fit")
    assert done.returncode == 0, done.stderr
    assert (out / "diskless.fit").read_bytes() == fits[0], "where it comes from is not part of it"
    script = (out / "diskless.cmd").read_text()
    assert "tftp" not in script
    assert "setenv httpdstp 8000 && wget 50000000 192.0.2.1:/a/diskless.fit; then" in script
    members = _members(fits[0])
    assert any(name.endswith("nbdkit-curl-plugin.so") for name in members)
    assert not any(name.endswith("nbdkit-nbd-plugin.so") for name in members)
    values = init_values(fits[0])
    assert values["SYSTEM_FROM"].startswith("curl url=http://192.0.2.1:8000/a/system.img retries=")
    assert (values["DATA"], values["DATA_FROM"], members["prefetch"]) == ("", "", b"")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--system", "nbd://a-name/system"), "is a name, not an address"),
        (("--system", "ftp://192.0.2.1/x"), "not the address"),
        (("--system", "nbd://192.0.2.1:99999/x"), "not the address"),
        (("--system", "nbd://[2001:db8::1/x"), "not the address"),
        (("--system", "nbd://127.0.0.1:10809/system"), "cannot reach a server at 127.0.0.1"),
        (("--system", "nbd://0.0.0.0/system"), "cannot reach a server at 0.0.0.0"),
        (("--system", "nbd://[fe80::1]/system"), "cannot reach a server at fe80::1"),
        (("--system", "nbd://192.0.2.1/x", "--data", "nbd://[::1]/data"), "cannot reach a server at ::1"),
        (("--system", "nbd://192.0.2.1/x", "--data", "elsewhere"), "memory, disk or nbd://"),
        (("--system", "nbd://192.0.2.1/x'; reboot"), "characters"),
        (("--system", "nbd://192.0.2.1/x?y=1"), "characters"),
        (("--system", "nbds://192.0.2.1/x"), "TLS needs the certificate"),
        (("--system", "nbd://192.0.2.1/x", "--data", "http://192.0.2.1/"), "does not accept writes"),
        (("--system", "nbd://192.0.2.1/x", "--tls-key", "README.md"), "must be given together"),
        (("--system", "nbd://192.0.2.1/x", "--data", "nbds://192.0.2.1/d"), "TLS needs the certificate"),
        (("--system", "nbds://192.0.2.1/x", "--tls-ca", "README.md"), "no certificate in PEM"),
        (("--system", "nbd://192.0.2.1/x", "--prefetch", "README.md"), "not a trace"),
        (("--system", "nbd://192.0.2.1/x", "--boot-image", "https://192.0.2.1/diskless.fit"), "over plain HTTP"),
        (("--system", "nbd://192.0.2.1/x", "--boot-image", "http://[2001:db8::1]/diskless.fit"), "IPv4 only"),
        (("--system", "nbd://192.0.2.1/x", "--boot-image", "http://192.0.2.1/"), "names no file"),
        (("--system", "nbd://192.0.2.1/x", "--boot-image", "http://192.0.2.1/a;reset"), "characters"),
    ],
)
def test_what_is_refused(run: Edge, out: Path, words: tuple[str, ...], reason: str) -> None:
    done = run("diskless", BOARD, "-o", out, *words)
    assert done.returncode != 0
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert not (out / "diskless.fit").exists()


def test_certificates_that_fit_nothing(run: Edge, out: Path, tmp_path: Path) -> None:
    for name, data in make_credentials().items():
        (tmp_path / name).write_bytes(data)
    authority = ("--tls-ca", tmp_path / "ca-cert.pem")
    own = ("--tls-certificate", tmp_path / "client-cert.pem", "--tls-key")
    for words, reason in (
        (("nbds://192.0.2.1/x", *authority, *own, tmp_path / "server-key.pem"), "not a certificate with the key"),
        (("https://192.0.2.1/x", *authority, *own, tmp_path / "client-key.pem"), "--tls-certificate is for nbds://"),
        (("nbd://192.0.2.1/x", *authority), "for encrypted connections"),
    ):
        done = run("diskless", BOARD, "-o", out, "--system", *words)
        assert done.returncode != 0 and reason in done.stderr, done.stderr
    done = run("diskless", BOARD, "-o", out, "--system", "nbds://192.0.2.1/x", *authority, *own,
               tmp_path / "client-key.pem")  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_trace_of_another_system_and_a_build_that_is_not_there(run: Edge, out: Path, tmp_path: Path) -> None:
    other = make_trace([], root_hash="00" * 32, image_bytes=1, block_size=4096, requests=0, bytes_read=0)
    write_trace(other, tmp_path / "trace")
    words = ("diskless", BOARD, "--system", "nbd://192.0.2.1/x")
    done = run(*words, "-o", out, "--prefetch", tmp_path / "trace")
    assert done.returncode != 0 and f"this one has {HASH}" in done.stderr
    done = run(*words, "-o", tmp_path / "none")
    assert done.returncode != 0 and "no boot image here" in done.stderr


def test_what_is_in_the_way_is_named(run: Edge, tmp_path: Path, repository: Path) -> None:
    """A boot image that is not one; a board that will never have one, however often it is built."""
    (tmp_path / "boot.fit").write_bytes(b"no device tree" * 10)
    done = run("diskless", BOARD, "--system", "nbd://192.0.2.1/x", "-o", tmp_path)
    assert f"{tmp_path / 'boot.fit'}: offset 0x0: not a device tree" in done.stderr
    done = run("diskless", repository / "boards/rpi4.yaml", "--system", "nbd://192.0.2.1/x", "-o", tmp_path)
    assert "does not start from a verified FIT" in done.stderr
    assert "hint: set boot: {chain: u-boot-fit}" in done.stderr


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("nbd://192.0.2.1/system", Place("nbd", "192.0.2.1", 10809, "system", "nbd://192.0.2.1/system")),
        ("nbds://[2001:db8::1]:7/a/b", Place("nbds", "2001:db8::1", 7, "a/b", "nbds://[2001:db8::1]:7/a/b")),
        ("nbd://192.0.2.1", Place("nbd", "192.0.2.1", 10809, "", "nbd://192.0.2.1")),
    ],
)
def test_places(uri: str, place: Place) -> None:
    assert parse_place(uri) == place
    assert all(" " not in word and word for word in place.arguments)


def test_where_a_boot_image_is() -> None:
    assert parse_boot_image("http://192.0.2.1/d.fit") == Place(
        "http", "192.0.2.1", 80, "/d.fit", "http://192.0.2.1/d.fit"
    )
    assert parse_boot_image("http://192.0.2.1:8000//a/d.fit").export == "//a/d.fit"


def test_a_place_for_a_shell_has_no_characters_of_a_shell() -> None:
    for bad in "'\"$`;|&<>()*?\\ \t\n{}#!":
        with pytest.raises(ErofsEdgeError):
            parse_place(f"nbd://192.0.2.1/x{bad}y")
    with pytest.raises(UsageError):
        parse_place("nbd://192.0.2.1/%27x")


def test_the_lock_that_a_build_made_anew_wins(repository: Path, tmp_path: Path) -> None:
    board = repository / BOARD
    lock = board_lock(board, tmp_path)
    (tmp_path / "locks").mkdir()
    anew = (repository / "boards/qemu-aarch64.lock").read_text().replace(f'"date": {lock.date}', '"date": 7')
    (tmp_path / "locks/qemu-aarch64.board.lock").write_text(anew)
    assert (board_lock(board, tmp_path).date, lock.name) == (7, "qemu-aarch64")


def test_a_board_that_verifies_nothing_takes_no_code_from_a_network(repository: Path) -> None:
    board = load_board(repository / "boards/generic-uefi-arm64.yaml").value
    with pytest.raises(ManifestError, match="verified FIT"):
        netboot_script(board)
