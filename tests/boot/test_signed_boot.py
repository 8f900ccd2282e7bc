# SPDX-License-Identifier: Apache-2.0
"""boot.sig of the Raspberry Pi, checked by openssl, and damage to the firmware partition that it covers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from erofs_edge.boot import signed_boot
from erofs_edge.boot.signed_boot import boot_signature, files_digest, verify_boot_signature
from erofs_edge.build.loader import signed_image
from erofs_edge.disk.fat import build_fat
from erofs_edge.disk.fat_read import Volume
from erofs_edge.errors import ErofsEdgeError, FormatError, ManifestError, VerificationError
from erofs_edge.manifest.load import load_board
from erofs_edge.trust.signer import KeySigner, public_key_pem
from erofs_edge.verify.checks import Verdict
from erofs_edge.verify.firmware import verify_firmware

EPOCH = 1_700_000_000
FILES = {"u-boot.bin": b"loader" * 999, "config.txt": b"[all]\narm_64bit=1\n", "start4.elf": b"\x7fELF" * 5000}


@pytest.fixture(scope="module")
def signer() -> KeySigner:
    return KeySigner("product", rsa.generate_private_key(65537, 2048))


def test_openssl_accepts_it(signer: KeySigner, tmp_path: Path, oracle: Callable[[str], str]) -> None:
    image = b"a boot image" * 1000
    digest, stamp, signature = boot_signature(image, signer, EPOCH).decode().splitlines()
    assert stamp == f"ts: {EPOCH}" and signature.startswith("rsa2048: ")
    (tmp_path / "image").write_bytes(image)
    (tmp_path / "key").write_bytes(public_key_pem(signer))
    (tmp_path / "signature").write_bytes(bytes.fromhex(signature.removeprefix("rsa2048: ")))
    command = [oracle("openssl"), "dgst", "-sha256", "-verify", "key", "-signature", "signature", "image"]
    assert "Verified OK" in subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    command = [oracle("openssl"), "dgst", "-sha256", "-r", "image"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.startswith(digest)


def test_what_does_not_fit_is_refused(signer: KeySigner) -> None:
    image = b"a boot image"
    text = boot_signature(image, signer, EPOCH)
    verify_boot_signature(text, image, signer)
    with pytest.raises(VerificationError, match="another hash"):
        verify_boot_signature(text, image + b"!", signer)
    forged = boot_signature(image, KeySigner("other", rsa.generate_private_key(65537, 2048)), EPOCH)
    with pytest.raises(VerificationError, match="does not match"):
        verify_boot_signature(forged, image, signer)
    for broken in (b"", text[:-20], text.replace(b"ts:", b"t:"), text + b"more\n", b"\0" * 700):
        with pytest.raises(FormatError, match="not a signature"):
            verify_boot_signature(broken, image, signer)


def test_the_rom_holds_rsa_2048_only() -> None:
    with pytest.raises(ErofsEdgeError, match=r"needs an RSA-2048 key, this one has 3072 bits") as caught:
        boot_signature(b"", KeySigner("k", rsa.generate_private_key(65537, 3072)), EPOCH)
    assert caught.value.hint


def test_digest_of_files() -> None:
    assert files_digest(FILES) == files_digest(dict(reversed(FILES.items()))), "their order is of no account"
    for changed in (
        {**FILES, "more": b""}, {**FILES, "config.txt": b""}, {k: v for k, v in FILES.items() if k != "start4.elf"},
        {("Start4.elf" if k == "start4.elf" else k): v for k, v in FILES.items()},
    ):  # fmt: skip
        assert files_digest(changed) != files_digest(FILES)


def test_the_partition_for_signed_boot(signer: KeySigner, tmp_path: Path) -> None:
    outer = signed_image(FILES, work=tmp_path, signer=signer, epoch=EPOCH)
    assert list(outer) == ["boot.img", "boot.sig", "config.txt"]
    assert outer["config.txt"] == b"boot_ramdisk=1\n"
    image = outer["boot.img"]
    assert (tmp_path / "boot.img").read_bytes() == image and (tmp_path / "boot.sig").read_bytes() == outer["boot.sig"]
    inner = Volume(lambda at, length: image[at : at + length], len(image))
    assert {entry.path: inner.content(entry.clusters, entry.size) for entry in inner.files()} == FILES
    again = tmp_path / "again"
    again.mkdir()
    assert signed_image(FILES, work=again, signer=signer, epoch=EPOCH) == outer, "the same bytes each time"


def rows(files: dict[str, bytes], known: dict[str, str], signer: KeySigner, path: Path) -> Verdict:
    build_fat(files, path, size=48 << 20, label="FIRMWARE", serial=1, epoch=EPOCH)
    raw, verdict = path.read_bytes(), Verdict()
    volume = Volume(lambda at, length: raw[at : at + length], len(raw))
    verify_firmware("firmware", volume, known, signer, verdict)
    return verdict


def test_verification_of_a_firmware_partition(signer: KeySigner, tmp_path: Path) -> None:
    known = {files_digest(FILES): "boot_a", "0" * 64: "boot_b"}
    good = rows(FILES, known, signer, tmp_path / "fat")
    assert good.ok and [(row.what, row.against, row.digest) for row in good.checks] == [
        ("firmware: files", "the FIT in boot_a", files_digest(FILES))
    ]
    for changed in ({**FILES, "config.txt": b"kernel=evil\n"}, {**FILES, "recovery.bin": b"evil"}):
        bad = rows(changed, known, signer, tmp_path / "fat")
        assert not bad.ok and "not the firmware's files" in (bad.checks[0].error or "")
    outer = signed_image(FILES, work=tmp_path, signer=signer, epoch=EPOCH)
    both = rows(outer, {files_digest(outer): "boot_a"}, signer, tmp_path / "fat")
    assert both.ok and both.checks[1].what == "firmware: boot.img"
    outer["boot.sig"] = boot_signature(b"another image", signer, EPOCH)
    wrong = rows(outer, {files_digest(outer): "boot_a"}, signer, tmp_path / "fat")
    assert [row.ok for row in wrong.checks] == [True, False]


def test_a_board_without_a_firmware_partition_has_nothing_to_put_it_on(repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "board.yaml"
    file.write_text(f"board: mine\nextends: {repository / 'boards/qemu-aarch64.yaml'}\nboot: {{signed_image: true}}\n")
    with pytest.raises(ManifestError, match='needs a partition with the content "firmware"'):
        load_board(file)


def test_sizes() -> None:
    assert signed_boot.image_size({}) == signed_boot.IMAGE_MIN
    large = {"kernel": bytes(40 << 20)}
    assert (44 << 20) <= signed_boot.image_size(large) < (48 << 20)
