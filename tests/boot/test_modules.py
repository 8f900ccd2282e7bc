# SPDX-License-Identifier: Apache-2.0
"""Kernel modules: reading them, load orders, and the indexes compared with those of depmod and modprobe."""

from __future__ import annotations

import lzma
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from elf_samples import MODULES, VERSION, kernel_tree, module_elf, program_elf
from hypothesis import given, settings
from hypothesis import strategies as st

from erofs_edge.boot.elf import dynamic, modinfo
from erofs_edge.boot.kmod import binary_index, index_files
from erofs_edge.boot.modules import KernelModules
from erofs_edge.errors import FormatError, SourceError
from erofs_edge.tree import FileTree

ALL = ["virtio_blk", "dm_verity", "erofs", "ext4", "overlay", "one"]


def write_out(folder: Path, files: dict[str, bytes]) -> Path:
    """A module directory on disk, as depmod -b and modprobe -d want it."""
    top = folder / "usr/lib/modules" / VERSION
    for name, data in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "lib").symlink_to("usr/lib")
    return top


def package_files() -> dict[str, bytes]:
    top = KernelModules(kernel_tree()).directory
    return {path.decode().lstrip("/"): inode.read() for path, inode in top.walk() if inode.is_file}


def test_load_order_is_that_of_the_names_with_needs_first() -> None:
    kernel = KernelModules(kernel_tree())
    assert [module.name for module in kernel.closure(["virtio_blk", "dm_verity"])] == [
        "virtio_blk", "dm_mod", "reed_solomon", "dm_bufio", "dm_verity",
    ]  # fmt: skip
    assert [module.name for module in kernel.closure(["erofs"])] == ["crc32c_generic", "libcrc32c", "erofs"]
    streams = kernel.streams(["dm_verity"], ["erofs"], ["ext4", "overlay"])
    assert [[module.name for module in stream] for stream in streams][1:] == [
        ["crc32c_generic", "libcrc32c", "erofs"],
        ["jbd2", "ext4", "overlay"],
    ]
    assert kernel.closure(["virtio_pci"]) == [], "built in"


def test_selection_by_name_and_glob() -> None:
    kernel = KernelModules(kernel_tree())
    assert kernel.select(["dm-mod", "configfs", "net/a/*", "fs/**"]) == ["dm_mod", "erofs", "ext4", "jbd2", "one",
                                                                         "overlay", "two"]  # fmt: skip
    with pytest.raises(SourceError, match="no module 'virtio_block'") as caught:
        kernel.select(["virtio_block"])
    assert "virtio_blk" in (caught.value.hint or "")
    with pytest.raises(SourceError, match="no module 'net/b"):
        kernel.select(["net/b/*"])


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ({"kernel/a.ko": module_elf("depends=b")}, "no module 'b'"),
        ({"kernel/a.ko": module_elf("depends=b"), "kernel/b.ko": module_elf("depends=a")}, "depends on itself"),
        ({"kernel/a.ko": b"not ELF"}, "not a 64-bit"),
        ({"kernel/a.ko.xz": b"this is not xz at all"}, "not valid xz"),
        ({"kernel/a.ko.xz": lzma.compress(MODULES["kernel/net/a/two.ko"])[:-9]}, "cut short"),
    ],
)
def test_broken_modules_are_named(modules: dict[str, bytes], words: str) -> None:
    with pytest.raises((SourceError, FormatError), match=words):
        KernelModules(kernel_tree(modules)).closure(["a"])


def test_decompression_is_bounded() -> None:
    bomb = lzma.compress(bytes(80 << 20), preset=0)
    with pytest.raises(SourceError, match="64 MiB"):
        KernelModules(kernel_tree({"kernel/a.ko.xz": bomb})).open("a")


def test_not_a_kernel_package() -> None:
    with pytest.raises(SourceError, match="must hold exactly one directory"):
        KernelModules(FileTree())


def test_indexes_are_those_of_depmod(tmp_path: Path, oracle: Callable[[str], str]) -> None:
    top = write_out(tmp_path, package_files())
    subprocess.run([oracle("depmod"), "-b", str(tmp_path), VERSION], check=True, capture_output=True)
    kernel = KernelModules(kernel_tree())
    ours = index_files(kernel, kernel.closure(sorted(kernel.paths)))
    for name in ours:
        theirs = (top / name).read_bytes()
        if name == "modules.dep.bin":
            for module in kernel.paths:
                assert _dep(lookup(ours[name], module.encode())) == _dep(lookup(theirs, module.encode()))
        elif name.endswith(".bin"):
            assert ours[name] == theirs, name
        else:
            lines = [line for line in theirs.splitlines() if not line.startswith(b"#")]
            # modules that do not depend on each other come in depmod's own order
            assert [set(line.split()) for line in ours[name].splitlines()] == [set(line.split()) for line in lines], (
                name
            )


def _dep(found: list[tuple[int, bytes]]) -> list[tuple[int, bytes, set[bytes]]]:
    return [(rank, value.split()[0], set(value.split()[1:])) for rank, value in found]


def test_modprobe_works_with_our_files_alone(tmp_path: Path, oracle: Callable[[str], str]) -> None:
    kernel = KernelModules(kernel_tree())
    modules = kernel.closure(ALL)
    files = {module.path: kernel.file(module.path).read() for module in modules}
    write_out(tmp_path, files | index_files(kernel, modules))

    def loads(name: str) -> list[str]:
        command = [oracle("modprobe"), "-d", str(tmp_path), "-S", VERSION, "-n", "-a", "--show-depends", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [Path(line.split()[-1]).name for line in done.stdout.splitlines()]

    assert loads("fs-erofs") == ["crc32c_generic.ko", "libcrc32c.ko", "erofs.ko"]
    assert loads("virtio:d00000002v00001AF4") == ["virtio_blk.ko"]
    order = loads("dm_verity")
    assert order.index("dm-mod.ko") < order.index("dm-bufio.ko") < order.index("dm-verity.ko")
    assert loads("of:NxTyCvendor,a-b-d")[-1] == "one.ko"


def lookup(index: bytes, key: bytes) -> list[tuple[int, bytes]]:
    """A second reader of the format, as simple as possible."""
    reference, position = int.from_bytes(index[8:12], "big"), 0
    while True:
        at = reference & 0x0FFFFFFF
        if reference & 0x80000000:
            end = index.index(b"\0", at)
            prefix, at = index[at:end], end + 1
            if key[position : position + len(prefix)] != prefix:
                return []
            position += len(prefix)
        first, last, children = 0, -1, 0
        if reference & 0x20000000:
            first, last, children = index[at], index[at + 1], at + 2
            at += 2 + 4 * (last - first + 1)
        if position == len(key):
            values = []
            count = int.from_bytes(index[at : at + 4], "big") if reference & 0x40000000 else 0
            at += 4
            for _ in range(count):
                end = index.index(b"\0", at + 4)
                values.append((int.from_bytes(index[at : at + 4], "big"), index[at + 4 : end]))
                at = end + 1
            return values
        if not first <= key[position] <= last:
            return []
        slot = children + 4 * (key[position] - first)
        reference, position = int.from_bytes(index[slot : slot + 4], "big"), position + 1
        if not reference:
            return []


WORDS = st.text("abc_:*", min_size=1, max_size=8)


@given(st.lists(st.tuples(WORDS, WORDS, st.integers(0, 9)), max_size=30), WORDS)
def test_every_key_is_found_and_no_other(entries: list[tuple[str, str, int]], other: str) -> None:
    index = binary_index(entries)
    for key in {key for key, _, _ in entries} | {other}:
        expected = sorted((priority, value.encode()) for k, value, priority in entries if k == key)
        assert lookup(index, key.encode()) == expected


@settings(deadline=None)
@given(st.lists(st.from_regex(r"lib[a-z]{1,8}\.so\.[0-9]", fullmatch=True), max_size=5, unique=True))
def test_needed_libraries(names: list[str]) -> None:
    found = dynamic(program_elf(names, "/lib/ld.so"))
    assert (found.interpreter, found.needed) == ("/lib/ld.so", names)
    assert dynamic(program_elf(names)).interpreter == ""


def test_broken_elf_raises_format_error_only() -> None:
    rng = random.Random(2)
    for sample, reader in ((module_elf("a=b", "c=d"), modinfo), (program_elf(["libc.so.6"], "/lib/ld"), dynamic)):
        for length in range(0, len(sample), 3):
            broken = bytearray(sample[:length] if rng.random() < 0.5 else sample)
            for _ in range(3):
                if broken:
                    broken[rng.randrange(len(broken))] = rng.randrange(256)
            try:
                reader(bytes(broken))
            except FormatError:
                continue
