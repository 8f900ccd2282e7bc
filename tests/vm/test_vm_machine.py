# SPDX-License-Identifier: Apache-2.0
"""How the machine is started, and how a run of it that goes wrong ends."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from sources.samples import control_text, deb_bytes, entry
from waiting import Clock

from erofs_edge.errors import SourceError, ToolError, UsageError
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.deb import Package, read_deb
from erofs_edge.tree import BytesContent, FileTree, Inode
from erofs_edge.vm import machine
from erofs_edge.vm.configure import Machine, cache_key, configure_packages, patience

SAYS = "#!/bin/sh\n[ \"$1\" = --version ] && echo 'QEMU emulator version 10.0.2' && exit\n"


def command(**options: object) -> list[str]:
    given = {"kernel": Path("/k"), "initramfs": Path("/i"), "disks": {"input": Path("/a,b"), "output": Path("/o")},
             "memory": (1 << 30) + 1, "epoch": 1700000000} | options  # fmt: skip
    return machine.arguments(machine.kind_of("arm64"), **given)  # type: ignore[arg-type]


def test_the_machine_has_no_network_and_cannot_write_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    words = " ".join(command())
    assert "-nic none" in words and "-no-reboot" in words
    assert "id=input,format=raw,file=/a,,b,readonly=on" in words
    assert "id=output,format=raw,file=/o,cache=unsafe" in words
    assert "-m 1025M" in words and "base=2023-11-14T22:13:20,clock=vm" in words
    assert "-cpu cortex-a72" in words and "kvm" not in words


def test_the_kernel_keeps_no_page_tables_of_its_own_for_programs() -> None:
    words = command()
    kernel = words[words.index("-append") + 1].split()
    assert kernel[0] == "console=ttyAMA0" and {"mitigations=off", "nokaslr"} <= set(kernel)


def test_kvm_where_the_host_has_it_for_the_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = tmp_path / "kvm"
    monkeypatch.setattr(machine, "KVM", node)
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    assert "kvm" not in command()
    node.touch()
    assert " ".join(command()).count("-accel kvm -accel tcg -cpu max") == 1
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    assert "kvm" not in command()


def test_an_architecture_without_a_machine() -> None:
    with pytest.raises(SourceError, match="maintainer scripts of m68k cannot be run"):
        machine.kind_of("m68k")


def test_memory_grows_with_the_tree() -> None:
    tree = FileTree()
    small = machine.memory_for(tree)
    tree.add("x", Inode(0o100644, content=BytesContent(bytes(1 << 20))))
    assert small + (1 << 20) < machine.memory_for(tree) < small + (2 << 20)


@pytest.mark.parametrize("text", ["0", "-1", "soon", "1e9"])
def test_patience_is_a_number_of_seconds(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EROFS_EDGE_SCRIPT_TIMEOUT", text)
    with pytest.raises(UsageError, match="EROFS_EDGE_SCRIPT_TIMEOUT"):
        patience()


@pytest.fixture
def parts(tmp_path: Path, cache: Cache) -> tuple[dict[str, Path], list[Package], Machine]:
    """The least that a run needs: two packages, a kernel without modules' dependencies, a busybox."""
    kernel = [
        entry("./boot/vmlinuz-6", b"Image"), entry("./usr/lib/modules/6/modules.builtin", b"kernel/virtio_blk.ko\n"),
    ]  # fmt: skip
    debs = {}
    for name, members in (
        ("dpkg", []), ("tar", []), ("linux", kernel), ("busybox-static", [entry("./usr/bin/busybox", b"box")]),
    ):  # fmt: skip
        debs[name] = tmp_path / f"{name}.deb"
        debs[name].write_bytes(deb_bytes(members, control=control_text(name)))
    made = Machine("arm64", debs.pop("linux"), debs.pop("busybox-static"), 1700000000)
    return debs, [read_deb(path, cache) for path in debs.values()], made


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    program = tmp_path / "qemu"
    program.write_text(SAYS + text)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("EROFS_EDGE_QEMU", str(program))


Parts = tuple[dict[str, Path], list[Package], Machine]


def test_a_script_that_hangs_ends_in_bounded_time(
    parts: Parts, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = r"1.0 processing: configure: tar\n1.1 waiting for godot\n"  # at once, before time is looked at again
    fake(tmp_path, monkeypatch, f"printf '{said}'\nexec sleep 600\n")
    monkeypatch.setattr("erofs_edge.vm.configure.time", clock := Clock())
    monkeypatch.setenv("EROFS_EDGE_SCRIPT_TIMEOUT", "200")
    with pytest.raises(SourceError, match=r"postinst script of tar has not ended after .*\n    waiting for godot"):
        configure_packages(*parts, cache, progress=lambda done, total: setattr(clock, "ahead", 200))
    assert list((cache.root / "tmp").iterdir()) == [], "nothing is left behind"


def test_a_qemu_that_dies(parts: Parts, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, "echo 'no such machine' >&2\nexit 1\n")
    with pytest.raises(ToolError, match="QEMU ended: no such machine"):
        configure_packages(*parts, cache)


def test_a_machine_that_sends_nothing_back(
    parts: Parts, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, monkeypatch, "echo 'erofs-edge: result ok'\n")
    with pytest.raises(SourceError, match="sent back no files"):
        configure_packages(*parts, cache)


def test_no_qemu(parts: Parts, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EROFS_EDGE_QEMU", raising=False)
    monkeypatch.setenv("EROFS_EDGE_PREFIX", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with pytest.raises(ToolError, match="not found") as failure:
        configure_packages(*parts, cache)
    assert failure.value.hint == "erofs-edge tools fetch"


def test_the_key_covers_packages_machine_and_clock(
    parts: Parts, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    debs, _, made = parts
    keys = {cache_key(debs, made, cache)}
    assert cache_key(dict(reversed(debs.items())), made, cache) in keys
    keys.add(cache_key(debs, Machine("arm64", made.kernel, made.busybox, 1700000001), cache))
    keys.add(cache_key(debs, Machine("arm64", made.busybox, made.kernel, 1700000000), cache))
    keys.add(cache_key({"tar": debs["tar"]}, made, cache))
    other = tmp_path / "guest.sh"
    other.write_bytes(machine.GUEST.read_bytes() + b"# a comment\n")
    monkeypatch.setattr("erofs_edge.vm.configure.GUEST", other)
    keys.add(cache_key(debs, made, cache))
    assert len(keys) == 5
