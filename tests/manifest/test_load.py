# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501  one case a line
"""Boards and manifests: values, positions, digests, and one clear error for everything that is wrong."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifest_samples import BOARD, SYSTEM, Write

from erofs_edge.errors import ManifestError
from erofs_edge.manifest.load import load_any, load_board, load_system
from erofs_edge.manifest.model import Board, System, mode_bits, size_bytes

ERRORS: list[tuple[str, str, str, str, str | None]] = [
    # file, replaced text, new text, message, hint
    ("demo.yaml", "partitions:", "partions:", 'demo.yaml:4:3: unknown key "partions"', 'did you mean "partitions"?'),
    ("demo.yaml", "board: demo", "board: demo\nzzz: 1", 'demo.yaml:2:1: unknown key "zzz"', "known here: arch, board,"),
    ("demo.yaml", "board: demo", "board: Demo", 'demo.yaml:1:8: "board" must be a name of lower-case', None),
    ("demo.yaml", "board: demo", "board: 7", 'demo.yaml:1:8: "board" must be a name', 'quote it to make it text: "7"'),
    ("demo.yaml", "board: demo", "board:", 'demo.yaml:1:1: "board" must be a name', "give it a value"),
    ("demo.yaml", "board: demo", "board: demo\narch: amd64", 'demo.yaml:2:7: "arch" must be arm64, not "amd64"', None),
    ("demo.yaml", "board: demo", "board: demo\nflash: [blok]", "demo.yaml:2:9: an item of", 'did you mean "block"?'),
    ("demo.yaml", "size: 2G", "size: 2X", 'demo.yaml:3:9: "size" must be a size (4096, 64K, 512M, 2G), not "2X"', None),
    ("demo.yaml", "size: 2G", "size: 0", 'demo.yaml:3:9: "size" must be a size', None),
    ("demo.yaml", "size: 2G", "size: -4096", 'demo.yaml:3:9: "size" must be a size', None),
    ("demo.yaml", "size: 2G", "size: 2.5", 'demo.yaml:3:9: "size" must be a size', None),
    ("demo.yaml", "size: 2G", "size: true", 'demo.yaml:3:9: "size" must be a size', None),
    ("demo.yaml", "size: 2G", "size: rest", 'demo.yaml:3:9: "size" must be a size', None),
    ("demo.yaml", "size: 2G", "size: [2G]", 'demo.yaml:3:9: "size" must be a size, not a list', None),
    ("demo.yaml", "size: 2G", f"size: {'9' * 30}G", 'demo.yaml:3:9: "size" must be a size', None),
    ("demo.yaml", "size: 2G", "size: 2G\n  sector: 1024", 'demo.yaml:4:11: "sector" must be one of 512, 4096', None),
    ("demo.yaml", "size: 2G", "size: 2G\n  hybrid_mbr: 1", 'demo.yaml:4:15: "hybrid_mbr" must be true or false', None),
    ("demo.yaml", "size: 2G", "size: 1G", "demo.yaml:3:3: the partitions need 1153 MiB, the disk has 1024", "raise disk.size"),
    ("demo.yaml", "size: 2G", "size: 2147483647", 'demo.yaml:3:3: "size" must be a multiple of 4096', None),
    ("demo.yaml", "{size: 1M, ", "{", 'demo.yaml:7:13: key "size" is missing in "misc"', None),
    ("demo.yaml", "1M", "1000", 'demo.yaml:7:14: "size" must be a multiple of 4096 bytes, not 1000', None),
    ("demo.yaml", "    misc: ", "    rest: {size: rest}\n    misc: ", 'demo.yaml:7:12: "rest" is for the last partition', None),
    ("demo.yaml", "    misc: ", "    boot_a: {size: 1M}\n    misc: ", "demo.yaml:7:5: the disk would have two", None),
    ("demo.yaml", "    misc: ", f"    {'x' * 37}: {{size: 1M}}\n    misc: ", f'demo.yaml:7:5: "{"x" * 37}" is longer', None),
    ("demo.yaml", "    misc: ", "    Misc: {size: 1M}\n    misc: ", 'demo.yaml:7:5: a key of "partitions" must be a name', None),
    ("demo.yaml", "64M, slots: [a, b]", "64M, slots: [a]", 'demo.yaml:5:25: "slots" must name two different', None),
    ("demo.yaml", "64M, slots: [a, b]", "64M, slots: [a, a]", 'demo.yaml:5:25: "slots" must name two different', None),
    ("demo.yaml", "512M, slots: [a, b]", "512M, slots: [x, y]", 'demo.yaml:6:26: "slots" must be [a, b]', None),
    ("demo.yaml", "size: rest", "size: rest, slots: [a, b]", "demo.yaml:8:14: a partition with slots cannot", "give it"),
    ("demo.yaml", "content: fit", "content: fitt", "demo.yaml:5:40: no such manifest: ", "or one of fit, esp, firmware, slot"),
    ("demo.yaml", "content: fit", f"content: {'x' * 5000}", "demo.yaml:5:40: no such manifest: ", None),
    ("demo.yaml", ", content: fit", "", "demo.yaml:4:3: no partition holds the kernel", 'one needs "content: fit"'),
    ("demo.yaml", ", content: demo-system.yaml", "", "demo.yaml:4:3: no partition holds a system", "one needs"),
    ("demo.yaml", ", content: slot-state", "", "demo.yaml:5:25: slots need a place", "add a partition"),
    ("demo.yaml", "content: demo-system.yaml", "content: fit", 'demo.yaml:6:41: a second partition with "fit"', None),
    ("demo.yaml", "content: fit", "content: fit, filesystem: ext4", "demo.yaml:5:54: a partition with", None),
    ("demo.yaml", "content: slot-state", "content: slot-state, slots: [a, b]", "demo.yaml:7:45: the slot state is one", None),
    ("demo.yaml", "boot:\n", "boots:\n", 'demo.yaml:9:1: unknown key "boots"', 'did you mean "boot"?'),
    ("demo.yaml", "cmdline:", "cmdline+:", 'demo.yaml:11:3: unknown key "cmdline+"', 'it needs "extends"'),
    ("demo.yaml", "[console=ttyAMA0]", "console=ttyAMA0", 'demo.yaml:11:12: "cmdline" must be a list, not "console', None),
    ("demo.yaml", "cmdline:", "firmware_texts: [{to: a, text: b}]\n  cmdline:", "demo.yaml:11:3: no partition has", None),
    ("demo.yaml", "cmdline:", "device: -1\n  cmdline:", 'demo.yaml:11:11: "device" must be a number of at least 0', None),
    ("demo.yaml", "path: /usr", "path: usr", 'demo.yaml:10:40: "path" must be an absolute path on the device', None),
    ("demo.yaml", "path: /usr", "path: /../usr", 'demo.yaml:10:40: "path" must be an absolute path', None),
    ("demo.yaml", "boot:\n", "verity: {block_size: 8K}\nboot:\n", 'demo.yaml:9:10: "block_size" must be 512', None),
    ("demo.yaml", "boot:\n", "verity: {repair_from: http://web/x}\nboot:\n", 'demo.yaml:9:23: "repair_from" must be http://ADDRESS', None),
    ("demo.yaml", "boot:\n", "sign: {key: kms:x}\nboot:\n", 'demo.yaml:9:13: "key" must be dev:NAME, file:', None),
    ("demo.yaml", "boot:\n", "qemu: {smp: 0}\nboot:\n", 'demo.yaml:9:13: "smp" must be a number of at least 1', None),
    ("demo.yaml", "boot:\n", "disk:\n  table: gpt\nboot:\n", 'demo.yaml:9:1: key "disk" is already in line 2', None),
    ("demo-system.yaml", "[systemd, udev]", "[systemd=257]", "demo-system.yaml:2:12: an item of", None),
    ("demo-system.yaml", "[systemd, udev]", "[systemd, [udev]]", "demo-system.yaml:2:21: an item of", None),
    ("demo-system.yaml", "hostname: demo", "hostname: a_b", 'demo-system.yaml:3:11: "hostname" must be a host name', None),
    ("demo-system.yaml", "hostname: demo", 'hostname: "demo\\n"', 'demo-system.yaml:3:11: "hostname" must be a host name', None),
    ("demo-system.yaml", "from: files", "from: file", "demo-system.yaml:5:5: no such directory: ", None),
    ("demo-system.yaml", "- from: files", "- to: /", 'demo-system.yaml:5:5: key "from" is missing in an item', None),
    ("demo-system.yaml", "0640", "rw-r--r--", 'demo-system.yaml:6:16: "file_mode" must be permission bits', None),
    ("demo-system.yaml", "0640", "0888", 'demo-system.yaml:6:16: "file_mode" must be permission bits', None),
    ("demo-system.yaml", "directory: files", "directory: nope", "demo-system.yaml:8:5: no such directory", None),
    ("demo-system.yaml", "directory: files", "tar: nope.tar", "demo-system.yaml:8:5: no such file", None),
    ("demo-system.yaml", "directory: files", "directory: files\n    tar: x", "demo-system.yaml:8:5: a source is exactly one", None),
    ("demo-system.yaml", "  - directory: files\n", "  -\n", "demo-system.yaml:9:", None),
    ("demo-system.yaml", "to: /opt", "sha256: abc", 'demo-system.yaml:9:13: "sha256" must be a SHA-256', None),
    ("demo-system.yaml", "to: /opt", f"sha256: {'a' * 64}", 'demo-system.yaml:9:5: "sha256" pins a tar', None),
    ("demo-system.yaml", "pi: {", "pi: {password: plain, ", 'demo-system.yaml:11:8: "password" is no hash', "openssl passwd -6"),
    ("demo-system.yaml", "pi: {", "pi: {ssh_keys: [AAAA], ", "demo-system.yaml:11:19: not a public key of ssh", ".pub"),
    ("demo-system.yaml", "pi: {", "pi: {ssh_keys: ['-----BEGIN OPENSSH PRIVATE KEY-----'], ", "demo-system.yaml:11:19: this is a private key", ".pub"),
    ("demo-system.yaml", "pi: {", "Pi: {", 'demo-system.yaml:11:3: a key of "users" must be a user', None),
    ("demo-system.yaml", "uid: 1000", "uid: 4294967295", 'demo-system.yaml:11:13: "uid" must be a number from 0 to', None),
    ("demo-system.yaml", "uid: 1000", 'uid: "1000"', 'demo-system.yaml:11:13: "uid" must be a number, not "1000"', None),
    ("demo-system.yaml", "uid: 1000", 'gecos: "a:b"', "demo-system.yaml:11:15: \"gecos\" must be text without ':'", None),
    ("demo-system.yaml", "uid: 1000", r'gecos: "a\nb"', 'demo-system.yaml:11:15: "gecos" must be text without', None),
    ("demo-system.yaml", "ssh.service", "ssh", "demo-system.yaml:13:12: an item of", None),
    ("demo-system.yaml", "[ssh.service]", "[a.service]\n  mask: [a.service]", 'demo-system.yaml:13:12: "a.service" is', None),
    ("demo-system.yaml", "text: hello", "target: /x", 'demo-system.yaml:15:23: "target" means nothing for a file', None),
    ("demo-system.yaml", "text: hello", "type: symlink", 'demo-system.yaml:15:5: a symlink needs "target"', None),
    ("demo-system.yaml", "text: hello", "type: char", 'demo-system.yaml:15:5: a char needs "rdev"', None),
    ("demo-system.yaml", "text: hello", "type: dir", 'demo-system.yaml:15:29: "type" must be one of', 'did you mean "directory"'),
    ("demo-system.yaml", "text: hello", "type: char, rdev: 1", 'demo-system.yaml:15:41: "rdev" must be a device', "quote"),
    ("demo-system.yaml", "text: hello", "text: 5", 'demo-system.yaml:15:29: "text" must be text, not 5', 'quote it'),
    ("demo-system.yaml", "level: 12", "level: 13", 'demo-system.yaml:16:9: "level" 13 is none of lz4hc', None),
    ("demo-system.yaml", "level: 12", "level: 1, compression: lz4", 'demo-system.yaml:16:9: "level" belongs to lz4hc', None),
    ("demo-system.yaml", "level: 12", "pcluster: 2M", 'demo-system.yaml:16:9: "pcluster" must be at most 1M', None),
    ("demo-system.yaml", "level: 12", "rules: [{match: '[z-a]', compression: lz4}]", "demo-system.yaml:16:18: bad glob '[z-a]'", None),
    ("demo-system.yaml", "level: 12", "pcluster: 5000", 'demo-system.yaml:16:9: "pcluster" must be a multiple of', None),
    ("demo-system.yaml", "level: 12", "packed_pcluster: 64K", 'demo-system.yaml:16:9: "packed_pcluster" needs', None),
    ("demo-system.yaml", "level: 12", "fragments: all, packed_pcluster: 2M", 'demo-system.yaml:16:25: "packed_pcluster" must be at', None),
    ("demo-system.yaml", "level: 12", "compression: none, fragments: all", 'demo-system.yaml:16:28: "fragments" works on', None),
    ("demo-system.yaml", "level: 12", "compression: none, ztailpacking: true", 'demo-system.yaml:16:28: "ztailpacking" works', None),
    ("demo-system.yaml", "level: 12", "block_size: 3K", 'demo-system.yaml:16:9: "block_size" must be a power', None),
    ("demo-system.yaml", "{level: 12}", "[]", 'demo-system.yaml:16:8: "erofs" must be a map of keys', None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "message", "hint"), ERRORS, ids=[f"{e[1]}→{e[2]}"[:60] for e in ERRORS])
def test_one_clear_error(variant: Write, name: str, old: str, new: str, message: str, hint: str | None) -> None:
    path = variant(name, old, new)
    with pytest.raises(ManifestError) as caught:
        load_any(path)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert hint is None or hint in (caught.value.hint or "")
    with pytest.raises(ManifestError, match=re.escape(message)):
        (load_board if name == "demo.yaml" else load_system)(path)


def test_values_of_a_board(folder: Path) -> None:
    loaded = load_board("demo.yaml")
    assert isinstance(loaded.value, Board)
    assert list(loaded.value.disk.partitions) == ["boot", "system", "misc", "data"]
    assert loaded.value.disk.partitions["system"].content == str(folder / "demo-system.yaml")
    assert loaded.value.disk.partitions["boot"].content == "fit"
    assert loaded.value.disk.partitions["data"].size == "rest"
    assert (loaded.value.boot.cmdline, loaded.value.boot.kernel) == (["console=ttyAMA0"], "linux-image-arm64")
    assert (loaded.path, loaded.files) == (Path("demo.yaml"), (Path("demo.yaml"),))


def test_values_of_a_manifest(folder: Path) -> None:
    loaded = load_system(folder / "demo-system.yaml")
    assert isinstance(loaded.value, System)
    overlay = loaded.value.overlay[0]
    assert (overlay.from_, overlay.file_mode, overlay.dir_mode) == (str(folder / "files"), "0640", "0755")
    assert loaded.value.sources[0].directory == str(folder / "files")
    assert (loaded.value.users["pi"].uid, loaded.value.users["pi"].gid) == (1000, None)


@pytest.mark.parametrize("written", ["0640", '"0640"', "'640'", "640", "0o640"])
def test_modes_are_octal_however_they_are_written(variant: Write, written: str) -> None:
    loaded = load_system(variant("demo-system.yaml", "0640", written))
    assert loaded.value.overlay[0].file_mode == "0640"
    assert mode_bits(loaded.value.overlay[0].file_mode) == 0o640


def test_positions(folder: Path) -> None:
    board = load_board("demo.yaml")
    assert board.position("") == "demo.yaml:1:1"
    assert board.position("disk.partitions.boot") == "demo.yaml:5:5"
    assert board.position("disk.partitions.boot.slots.1") == "demo.yaml:5:36"
    assert board.position("boot.cmdline.0") == "demo.yaml:11:13"
    assert board.position("boot.kernel") == "demo.yaml:9:1", "a default: what is around it"
    assert board.position("boot.cmdline.7") == "demo.yaml:11:3"
    assert board.position("nothing.at.all") == "demo.yaml:1:1"
    assert board.is_written("boot.cmdline.0") and not board.is_written("boot.kernel")
    error = board.error("disk.size", "too small", hint="more")
    assert (str(error), error.hint) == ("demo.yaml:3:3: too small", "more")


def test_pointers_reach_keys_with_dots(variant: Write) -> None:
    board = load_board(variant("demo.yaml", "    misc:", "    a.b: {size: 1M}\n    misc:"))
    assert board.position("disk.partitions.a.b.size") == "demo.yaml:7:11"


def test_paths_shown_are_those_given(folder: Path) -> None:
    assert load_board(folder / "demo.yaml").position("disk") == f"{folder}/demo.yaml:2:1"


def test_the_digest_is_that_of_the_content_wherever_the_checkout_is(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "checkout"
    for name in ("demo.yaml", "demo-system.yaml", "files/motd"):
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, elsewhere / name)
    for load, name in ((load_board, "demo.yaml"), (load_system, "demo-system.yaml")):
        assert load(name).digest == load(elsewhere / name).digest
        assert re.fullmatch("[0-9a-f]{64}", load(name).digest)
    (folder / "demo.yaml").write_text("# a comment\n" + BOARD.replace("[a, b]", "['a', \"b\"]"))
    assert load_board("demo.yaml").digest == load_board(elsewhere / "demo.yaml").digest


@pytest.mark.parametrize(
    ("old", "new"),
    [("ttyAMA0", "ttyAMA1"), ("demo-system.yaml", "files/../other.yaml"), ("board: demo", "board: demo2")],
)
def test_the_digest_changes_with_the_content(variant: Write, old: str, new: str) -> None:
    shutil.copy("demo-system.yaml", "other.yaml")
    before = load_board("demo.yaml").digest
    assert load_board(variant("demo.yaml", old, new)).digest != before


def test_the_order_of_partitions_is_part_of_the_digest(folder: Path) -> None:
    before = load_board("demo.yaml").digest
    boot, system = BOARD.splitlines(keepends=True)[4:6]
    Path("demo.yaml").write_text(BOARD.replace(boot + system, system + boot))
    assert load_board("demo.yaml").digest != before


def test_the_digest_of_a_key_file_is_relative(variant: Write, folder: Path) -> None:
    loaded = load_board(variant("demo.yaml", "boot:\n", "sign: {key: 'file:keys/my.pem'}\nboot:\n"))
    assert loaded.value.sign.key == f"file:{folder}/keys/my.pem"


def test_kinds_are_told_apart(folder: Path) -> None:
    assert isinstance(load_any("demo.yaml").value, Board)
    assert isinstance(load_any("demo-system.yaml").value, System)
    with pytest.raises(ManifestError, match=r"demo.yaml:1:1: this is a board file, but a manifest is expected"):
        load_system("demo.yaml")
    with pytest.raises(ManifestError, match=r"demo-system.yaml:1:1: this is a manifest, but a board file is expected"):
        load_board("demo-system.yaml")
    Path("x.yaml").write_text("packages: []\n")
    with pytest.raises(ManifestError, match=r"x.yaml:1:1: neither a board nor a manifest"):
        load_any("x.yaml")
    Path("x.yaml").write_text("[board, demo]\n")
    with pytest.raises(ManifestError, match=r"x.yaml:1:1: a map of keys and values is expected"):
        load_any("x.yaml")


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("64K", 65536), ("512m", 512 << 20), ("2G", 2 << 30), ("64KiB", 65536), ("1kb", 1024), (7, 7)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "K", "1T", "1.5G", "-1", " 1", "1 K", "1_000", "1BB", "0x10", "٣", "1K\n"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        size_bytes(text)


LINES = [
    *BOARD.splitlines(),
    *SYSTEM.splitlines(),
    "extends: demo.yaml",
    "a+: []",
    "disk: null",
    "b: &a [*a]",
    "<<: {}",
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(LINES) | st.text("abk:-[]{} \n#&*!0'", max_size=12), max_size=14))
def test_any_file_loads_or_is_one_manifest_error(folder: Path, lines: list[str]) -> None:
    Path("fuzz.yaml").write_text("\n".join(lines))
    for load in (load_any, load_board, load_system):
        try:
            load("fuzz.yaml")
        except ManifestError as error:
            assert re.match(r"(fuzz|demo)\.yaml(:\d+:\d+)?: ", str(error))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_never_crashes_the_loader(folder: Path, data: st.DataObject) -> None:
    name, text = data.draw(st.sampled_from([("demo.yaml", BOARD), ("demo-system.yaml", SYSTEM)]))
    raw = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    Path("fuzz.yaml").write_bytes(raw)
    try:
        load_any("fuzz.yaml")
    except ManifestError as error:
        assert str(error).startswith("fuzz.yaml") or name in str(error)


@pytest.mark.parametrize("hashed", ["''", "'*'", "'!'", "'!*'", "$6$salt$hash", "'!$y$j9T$salt$hash'", "ab01FAX.bQRSU"])
def test_hashes_of_passwords(variant: Write, hashed: str) -> None:
    path = variant("demo-system.yaml", "pi: {", f"pi: {{password: {hashed}, ")
    assert load_system(path).value.users["pi"].password == hashed.strip("'")


@pytest.mark.parametrize(
    "key",
    [
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ me@here",
        "ssh-rsa  AAAAB3NzaC1yc2E+/==",
        "webauthn-sk-ecdsa-sha2-nistp256@openssh.com AAAAInNrLWVjZHNh",
        "ecdsa-sha2-nistp256 AAAAE2VjZHNh with a comment",
        "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5",
        'command="echo ssh-rsa AAAA" ssh-ed25519-cert-v01@openssh.com AAAAIHNzaA',
    ],
)
def test_public_keys_of_ssh(variant: Write, key: str) -> None:
    path = variant("demo-system.yaml", "pi: {", f"pi: {{ssh_keys: ['{key}'], ")
    assert load_system(path).value.users["pi"].ssh_keys == [key]
