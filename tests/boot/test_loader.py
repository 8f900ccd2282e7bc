# SPDX-License-Identifier: Apache-2.0
"""How a locked U-Boot is assembled, and its compilation without a compiler."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erofs_edge.boot.fdt import DeviceTree, Node, parse, string, write
from erofs_edge.boot.loader import ALIGN, control_tree, join, replace_script, split
from erofs_edge.build.loader import loader_digest, loader_record, refuse_open_loader
from erofs_edge.errors import ErofsEdgeError, FormatError, ManifestError, PackagesGoneError
from erofs_edge.manifest.load import load_board
from erofs_edge.sources.cache import Cache
from erofs_edge.trust.key import KeySigner
from erofs_edge.u_boot import compile as recipe
from erofs_edge.u_boot.toolchain import GROUP, PACKAGES, lock_digest, pinned

TREE = write(DeviceTree(Node({"model": string("a machine")})))


@given(st.binary(max_size=40), st.booleans())
def test_split_undoes_join(program: bytes, magic: bool) -> None:
    """Also if the program contains the magic number of a device tree."""
    program += b"\xd0\x0d\xfe\xed" * 9 if magic else b""
    loader = join(program, TREE)
    head, tree = split(loader)
    assert head.rstrip(b"\0") == program.rstrip(b"\0") and len(head) % ALIGN == 0
    assert write(tree) == TREE


@pytest.mark.parametrize(
    "damage", [b"", b"only a program", join(b"x" * 8, TREE)[:-1], join(b"x" * 8, TREE) + b"\0" * 8]
)
def test_what_has_no_tree_at_its_end_is_refused(damage: bytes) -> None:
    with pytest.raises(FormatError, match="no device tree follows"):
        split(damage)


def test_another_script_and_the_same_key(fixed_signer: KeySigner) -> None:
    loader = join(b"program", control_tree(TREE, fixed_signer, "echo one"))
    other = replace_script(loader, "echo two")
    (_, before), (_, after) = split(loader), split(other)
    assert before.root.children["signature"] == after.root.children["signature"]
    assert after.root.children["config"].props["bootcmd"] == b"echo two\0"
    assert after.root.children["config"].props["bootdelay"] == b"\xff\xff\xff\xfe"
    with pytest.raises(FormatError, match="no script"):
        replace_script(join(b"program", TREE), "echo two")


@pytest.fixture
def fixed_signer() -> KeySigner:
    from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

    return KeySigner("dev", generate_private_key(65537, 2048))


def test_dropped_options_are_found() -> None:
    config = "CONFIG_FIT=y\n# CONFIG_CMD_GO is not set\nCONFIG_BOOTDELAY=-2\n"
    fragment = "CONFIG_FIT=y\n# CONFIG_CMD_GO is not set\n# a comment\nCONFIG_BOOTDELAY=-2\n"
    assert recipe.not_taken(config, [fragment]) == []
    assert recipe.not_taken(config, [fragment, "CONFIG_BOOTDELAY=0\n"]) == ["CONFIG_BOOTDELAY=0"], "the last counts"
    assert recipe.not_taken(config, ["# CONFIG_FIT is not set"]) == ["# CONFIG_FIT is not set"]
    assert recipe.not_taken(config, ["# CONFIG_NEVER_HEARD_OF is not set"]) == []


# What starts something unsigned, or changes what is started: each must be off in every build of ours.
# The long test compiles them and tries (tests/qemu/test_locked_u_boot.py).
BYPASSES = (
    "CMD_BOOTI", "CMD_BOOTZ", "CMD_BOOTEFI", "EFI_LOADER", "CMD_GO", "CMD_ELF", "CMD_SOURCE", "LEGACY_IMAGE_FORMAT",
    "BOOTSTD", "DISTRO_DEFAULTS", "CMD_SYSBOOT", "CMD_PXE", "CMD_DHCP", "CMD_LOADB", "CMD_LOADS", "CMD_MEMORY",
    "CMD_SAVEENV", "CMD_EDITENV", "ENV_IS_IN_FLASH", "ENV_IS_IN_FAT", "FASTBOOT_OEM_RUN", "OF_BOARD", "CMD_XIMG",
)  # fmt: skip
NEEDED = (
    "OF_SEPARATE=y", "FIT_SIGNATURE=y", "FIT_FULL_CHECK=y", "RSA=y", "RSA_VERIFY=y", "BOOTDELAY=-2",
    "ENV_IS_NOWHERE=y", "CMD_MMC=y",
    "FS_EROFS=y", "UDP_FUNCTION_FASTBOOT=y", 'PREBOOT="setenv stdin nulldev"',
)  # fmt: skip


@pytest.mark.parametrize("kind", recipe.KINDS)
def test_every_way_round_the_signature_is_closed_in_the_configuration(kind: str) -> None:
    texts = [path.read_text() for path in recipe.fragments(kind)]
    last: dict[str, str] = {}
    for line in "\n".join(texts).splitlines():
        if "CONFIG_" in line:
            last[line.removeprefix("# ").split("=")[0].split(" ")[0]] = line
    assert [name for name in BYPASSES if last.get(f"CONFIG_{name}") != f"# CONFIG_{name} is not set"] == []
    assert [line for line in NEEDED if last.get(f"CONFIG_{line.split('=')[0]}") != f"CONFIG_{line}"] == []


def test_it_is_compiled_once_for_each_set_of_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []

    def build(source: Path, root: Path, defconfig: str, laid_over: tuple[Path, ...]) -> Path:
        runs.append(defconfig)
        (source / ".config").write_text("CONFIG_X=y\n")
        (source / "u-boot-nodtb.bin").write_bytes(b"program %d" % len(runs))
        return source

    monkeypatch.setattr(recipe, "build", build)
    monkeypatch.setattr(recipe, "toolchain", lambda lock, cache: tmp_path)
    monkeypatch.setattr(recipe, "unpack", lambda folder, cache, patch, ours: folder)
    cache = Cache(tmp_path / "cache")
    first = recipe.compiled("qemu_arm64", cache)
    assert (first.image, first.config) == (b"program 1", "CONFIG_X=y\n")
    assert recipe.compiled("qemu_arm64", cache) == first and runs == ["qemu_arm64_defconfig"]
    assert recipe.compiled("qemu_arm64", cache, fresh=True).image == b"program 2"
    assert recipe.compiled("qemu_arm64", cache) == first, "a fresh one leaves the cache as it is"
    assert recipe.compiled("rpi_arm64", cache).key != first.key
    # a damaged entry is dropped and rebuilt
    path = cache.derived_path("u-boot-1", first.key)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert recipe.compiled("qemu_arm64", cache).image == b"program 4"


def test_pinned_packages_that_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(lock: object, cache: object) -> Path:
        raise PackagesGoneError(["gcc-14 14.2.0-19"], hint="update the lock: erofs-edge lock")

    monkeypatch.setattr(recipe, "toolchain", gone)
    with pytest.raises(PackagesGoneError, match="gcc-14") as caught:
        recipe.compiled("qemu_arm64", Cache(tmp_path))
    assert "EROFS_EDGE_MIRROR" in (caught.value.hint or "") and "lock again" not in (caught.value.hint or "")


def test_the_digest_covers_compiler_configuration_and_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = pinned()
    assert lock.requested == {GROUP: sorted(PACKAGES)}
    before = recipe.input_digest("qemu_arm64", lock)
    import msgspec

    older = msgspec.structs.replace(lock.packages[GROUP][0], version="0", sha256="0" * 64)
    other = msgspec.structs.replace(lock, packages={GROUP: [older, *lock.packages[GROUP][1:]]})
    assert lock_digest(other) != lock_digest(lock)
    assert recipe.input_digest("qemu_arm64", other) != before
    for path in recipe.HERE.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(recipe, "HERE", tmp_path)
    assert recipe.input_digest("qemu_arm64", lock) == before
    (tmp_path / "locked.config").write_text("# CONFIG_FIT is not set\n")
    assert recipe.input_digest("qemu_arm64", lock) != before
    with pytest.raises(ManifestError, match="cannot be built for 'sandbox'"):
        recipe.input_digest("sandbox", lock)


def test_releases_are_built_with_a_locked_loader_only(repository: Path) -> None:
    stock = load_board(repository / "boards/qemu-aarch64.yaml").value
    with pytest.raises(ErofsEdgeError, match="u-boot-qemu, which leaves ways around the signature") as caught:
        refuse_open_loader(stock)
    assert "u_boot: {build:" in (caught.value.hint or "")
    locked = load_board(repository / "boards/qemu-aarch64-locked.yaml").value
    refuse_open_loader(locked)
    assert loader_digest(stock) == "" and loader_record(stock)["package"] == "u-boot-qemu"
    assert loader_record(locked)["inputs"] == loader_digest(locked) != ""


def test_the_board_says_either_a_package_or_a_build(repository: Path, tmp_path: Path) -> None:
    for words, message in (
        ("{build: qemu_arm64}", "not both"),
        ("{package: null}", "needs a package and a path"),
        ("{build: qemu_arm64, package: null, path: null}, chain: u-boot-booti", "starts signed FITs only"),
        ("{build: sandbox}", "qemu_arm64"),
    ):
        file = tmp_path / "board.yaml"
        file.write_text(f"board: mine\nextends: {repository / 'boards/qemu-aarch64.yaml'}\nboot: {{u_boot: {words}}}\n")
        with pytest.raises(ManifestError, match=message) as caught:
            load_board(file)
        assert "board.yaml:3" in (caught.value.where or "")


def test_the_tree_holds_what_was_put_in(fixed_signer: KeySigner) -> None:
    tree = parse(control_tree(TREE, fixed_signer, "run me")).root
    assert tree.props["model"] == b"a machine\0"
    assert tree.children["config"].props["load-environment"] == bytes(4)
