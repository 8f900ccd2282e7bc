# SPDX-License-Identifier: Apache-2.0
"""The ways round a signed FIT: each is open in Debian's U-Boot and closed in the one that we compile.

The short twin, on the configuration that is compiled, is in tests/boot/test_loader.py.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from u_boot_alone import ADDRESS, KERNEL, STARTED, Alone, environment, legacy_kernel, read, small_fit

from erofs_edge.boot.firmware import script_image
from erofs_edge.sources.cache import Cache
from erofs_edge.trust.signer import KeySigner
from erofs_edge.u_boot.compile import KINDS, UEFI, Compiled, compiled

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(1500)]
COMMANDS = ("booti", "bootefi", "go", "source", "bootelf", "saveenv", "mw", "loadb", "bootflow", "tftpboot")
UNKNOWN = "Unknown command '{}' - try 'help'"
LOCKED = "boards/qemu-aarch64-locked.yaml"
TREE = "${fdtcontroladdr}"


@pytest.fixture(scope="module")
def key() -> KeySigner:
    return KeySigner("dev", generate_private_key(65537, 2048))


@pytest.fixture(scope="module")
def locked() -> Compiled:
    return compiled("qemu_arm64", Cache())


@pytest.fixture
def stock_u_boot(stock: Callable[[str], Path], key: KeySigner, tmp_path: Path) -> Alone:
    return Alone(tmp_path, stock("qemu-aarch64") / "u-boot.bin", None, key)


@pytest.fixture
def ours(stock: Callable[[str], Path], key: KeySigner, locked: Compiled, tmp_path: Path) -> Alone:
    return Alone(tmp_path, stock("qemu-aarch64") / "u-boot.bin", locked.image, key)


@pytest.mark.parametrize("kind", [*KINDS, UEFI])
def test_it_compiles_to_the_same_bytes_in_another_folder(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cached one was compiled in some folder; this is another, of another length, with one process more."""
    first, processes = compiled(kind, Cache()), os.cpu_count() or 1
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.cpu_count", lambda: processes + 1)
    again = compiled(kind, Cache(), fresh=True)
    assert again.image == first.image and again.config == first.config


def test_commands_that_start_what_nobody_signed(stock_u_boot: Alone, ours: Alone) -> None:
    tries = "; ".join(f"echo try {name}; help {name}" for name in COMMANDS)
    said, locked = (one.run(one.tree(f"{tries}; poweroff")) for one in (stock_u_boot, ours))
    assert [name for name in COMMANDS if UNKNOWN.format(name) in locked] == list(COMMANDS)
    assert [name for name in COMMANDS if UNKNOWN.format(name) in said] == []


def bypasses() -> list[tuple[str, bytes, str, str]]:
    """(name, what is on the disk, U-Boot's words, what the locked one says)"""
    script = script_image("echo a script ran; booti 50001000 - ${fdtcontroladdr}", name="x", epoch=0)
    return [
        ("booti", KERNEL, f"booti {ADDRESS:x} - {TREE}", UNKNOWN.format("booti")),
        ("legacy", legacy_kernel(), f"bootm {ADDRESS:x} - {TREE}", "Wrong Image"),
        ("source", script.ljust(4096, b"\0") + KERNEL, f"source {ADDRESS:x}", UNKNOWN.format("source")),
    ]


@pytest.mark.parametrize(("name", "data", "words", "refusal"), bypasses(), ids=["booti", "legacy", "source"])
def test_a_kernel_that_nobody_signed(
    stock_u_boot: Alone, ours: Alone, name: str, data: bytes, words: str, refusal: str
) -> None:
    script = f"{read(0, len(data))}; echo try {name}; {words}; poweroff"
    said = stock_u_boot.run(stock_u_boot.tree(script), [(0, data)])
    assert STARTED in said, said[-2000:]
    locked = ours.run(ours.tree(script), [(0, data)])
    assert f"try {name}" in locked and refusal in locked and STARTED not in locked, locked[-2000:]


def test_an_unsigned_configuration(stock_u_boot: Alone, ours: Alone, key: KeySigner) -> None:
    """Debian's U-Boot starts it as it comes, without a key; ours has no other tree than the one with the key."""
    fit, signed = small_fit(None), small_fit(key)
    where = f"{ADDRESS:x}#conf"
    script = f"{read(0, len(signed))}; bootm {where} {where} {TREE}; poweroff"
    disk = [(0, fit)]
    said = stock_u_boot.run(stock_u_boot.tree(script, keyed=False), disk, size=4 << 20)
    assert STARTED in said, said[-2000:]
    locked = ours.run(ours.tree(script), disk, size=4 << 20)
    assert "Failed to verify required signature 'key-dev'" in locked and STARTED not in locked
    good = ours.run(ours.tree(script), [(0, signed)], size=4 << 20)
    assert "sha256,rsa2048:dev+ OK" in good and STARTED in good, "and what is signed does start"


def test_an_environment_on_flash(stock_u_boot: Alone, ours: Alone) -> None:
    """With nothing in the tree that forbids it: Debian's U-Boot takes what somebody has written there."""
    flash = environment(evil="was read")
    found = []
    for one in (stock_u_boot, ours):
        tree = one.tree('echo "evil ${evil}."; poweroff')
        del tree.root.children["config"].props["load-environment"]
        found.append(one.run(tree, flash=flash))
    assert "evil was read." in found[0]
    assert "evil ." in found[1]


def test_the_prompt(stock_u_boot: Alone, ours: Alone) -> None:
    """Ctrl-C and commands all along: Debian's U-Boot breaks off what it does and obeys when its script has ended."""
    script = "if sleep 4; then echo slept well; else echo broken off; fi"
    typed = b"\x03\npoweroff\n"
    said = stock_u_boot.run(stock_u_boot.tree(script), typed=typed)
    assert "broken off" in said and "poweroff ..." in said, said[-2000:]
    locked = ours.run(ours.tree(script), typed=typed, until="slept well")
    assert "slept well" in locked and "poweroff ..." not in locked, locked[-2000:]


@pytest.fixture(scope="module")
def locked_build(tmp_path_factory: pytest.TempPathFactory, edge: str, repository: Path) -> Path:
    out = tmp_path_factory.mktemp("locked") / "out"
    command = [edge, "build", LOCKED, "-o", str(out), "--relock-if-gone"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def boot(edge: str, repository: Path, out: Path, *options: str) -> dict[str, object]:
    command = [edge, "boot", LOCKED, "-o", str(out), "--smoke", "--json", "--timeout", "1300", *options]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record: dict[str, object] = json.loads(done.stdout)
    return record


@pytest.mark.parametrize("slot", ["a", "b"])
def test_the_whole_chain(locked_build: Path, edge: str, repository: Path, slot: str) -> None:
    assert boot(edge, repository, locked_build, "--slot", slot)["slot"] == slot


@pytest.mark.parametrize("tamper", ["unsigned", "wrong-key", "kernel", "downgrade", "cmdline", "data"])
def test_what_it_must_not_start(locked_build: Path, edge: str, repository: Path, tamper: str) -> None:
    assert boot(edge, repository, locked_build, "--tamper", tamper)["tamper"] == tamper
