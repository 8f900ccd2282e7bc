# SPDX-License-Identifier: Apache-2.0
"""`verify` of discoverable disk images: what the signature partition vouches for, and every way to break that."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

import pytest
from fixed_key import fixed_key
from made_build import EPOCH, MIB, Made, make_build

from erofs_edge.disk import gpt
from erofs_edge.disk.ddi import write_ddi
from erofs_edge.errors import UsageError
from erofs_edge.trust.certificate import self_signed
from erofs_edge.trust.key import KeySigner
from erofs_edge.trust.root_hash import verity_signature_json
from erofs_edge.verify.checks import Verdict
from erofs_edge.verify.path import verify_path

KEY = fixed_key(1, "product")
OTHER = fixed_key(2, "product")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_build(tmp_path_factory.mktemp("made") / "out", KEY)


def image_of(made: Made, folder: Path, signer: KeySigner | None, root_hash: bytes | None = None) -> Path:
    """The build's system as an image; another root hash is signed and named where one is given."""
    whole, root = (made.out / "system.img").read_bytes(), root_hash or made.verity.root_hash
    (folder / "data").write_bytes(whole[: made.verity.hash_offset])
    (folder / "tree").write_bytes(whole[made.verity.hash_offset :])
    signature = verity_signature_json(root, signer, self_signed(signer, EPOCH)) if signer else None
    write_ddi(
        folder / "image.raw", name="edge", arch="arm64", data=folder / "data", tree=folder / "tree", root_hash=root,
        signature=signature,
    )  # fmt: skip
    return folder / "image.raw"


def test_an_architecture_without_types_is_told(made: Made, tmp_path: Path) -> None:
    parts = {"data": made.out / "system.img", "tree": made.out / "system.img", "root_hash": bytes(32)}
    with pytest.raises(UsageError, match="for the architecture 'vax'"):
        write_ddi(tmp_path / "image.raw", name="edge", arch="vax", signature=None, **parts)
    assert not list(tmp_path.iterdir())


def failed(verdict: Verdict) -> dict[str, str]:
    return {check.what: check.error or "" for check in verdict.failed}


def table_of(path: Path) -> gpt.Table:
    raw = path.read_bytes()
    return gpt.decode(lambda at, length: raw[at : at + length], len(raw), 512)


def test_a_signed_image_passes(made: Made, tmp_path: Path) -> None:
    verdict = verify_path(image_of(made, tmp_path, KEY), KEY)
    assert verdict.ok, failed(verdict)
    assert [check.what for check in verdict.checks][2:] == [
        "edge-verity-sig: root hash", "edge-verity-sig: tree", "edge: file system",
    ]  # fmt: skip


def test_other_keys_other_hashes_and_no_signature_fail(made: Made, tmp_path: Path) -> None:
    found = failed(verify_path(image_of(made, tmp_path, OTHER), KEY))
    assert set(found) == {"edge-verity-sig: root hash", "edge", "edge-verity"}
    assert set(failed(verify_path(image_of(made, tmp_path, None), KEY))) == {"edge", "edge-verity", "disk"}
    wrong = hashlib.sha256(b"another tree").digest()
    assert "does not match" in failed(verify_path(image_of(made, tmp_path, KEY, wrong), KEY))["edge-verity-sig: tree"]
    short = failed(verify_path(image_of(made, tmp_path, KEY, bytes(20)), KEY))
    assert "a root hash of 20 bytes" in short["edge-verity-sig: root hash"]


@pytest.mark.parametrize(("partition", "offset", "row"), [(0, 5000, "tree"), (1, 5000, "tree"), (2, 20, "root hash")])
def test_every_partition_counts(partition: int, offset: int, row: str, made: Made, tmp_path: Path) -> None:
    path = image_of(made, tmp_path, KEY)
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), b"\xa5", table_of(path).partitions[partition].first_lba * 512 + offset)
    assert f"edge-verity-sig: {row}" in failed(verify_path(path, KEY))


def test_identifiers_that_do_not_follow_from_the_root_hash_fail(made: Made, tmp_path: Path) -> None:
    """And a further partition that nothing signs."""
    path = image_of(made, tmp_path, KEY)
    table = table_of(path)
    entries = list(table.partitions)
    entries[0] = entries[0]._replace(guid=uuid.UUID(int=5))
    head, tail = gpt.encode(table._replace(partitions=tuple(entries)))
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), head, 0)
        os.pwrite(file.fileno(), tail, path.stat().st_size - len(tail))
    found = failed(verify_path(path, KEY))
    assert "identifiers" in found["edge-verity-sig: tree"] and found["edge"] == "no signature covers this partition"
    assert entries[0].first_lba * 512 == MIB
